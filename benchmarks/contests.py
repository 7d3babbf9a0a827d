"""Timed contests of one layer, ours against PyTorch's ways, for the suite goals-cpu.

Run as a program it holds the contests that its standard input asks for, in a process whose environment the caller
chose before torch was loaded, and writes their rows to standard output (`in_own_process`).
"""

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from layers import LAYOUTS, Layer, check, ran

import resnext_kernels as rk
from resnext_kernels import _native
from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import timing

AVX2 = {"RESNEXT_KERNELS_CPU_ISA": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


@dataclass(frozen=True)
class Contest:
    """A pass, the backends that ours may use, and PyTorch's ways to do it."""

    pass_name: str
    backend: str
    ways: tuple[str, ...]


CONTESTS = {
    "eval": Contest("eval", "cpu,aten", ("eager", "folded")),
    "eval folded": Contest("eval", "cpu,aten", ("folded",)),
    "train": Contest("train", "cpu,aten", ("eager",)),
    # What a user has who swaps and names nothing, against what he had.
    "auto eval": Contest("eval", "auto", ("eager",)),
    "auto train": Contest("train", "auto", ("eager",)),
}


@dataclass(frozen=True)
class Case:
    """One contest on one layer, whatever its name; isa is "" for all that the machine has, or "avx2"."""

    name: str = field(compare=False)
    problem: ConvProblem
    threads: int
    contest: str
    isa: str = ""


@dataclass(frozen=True)
class Effort:
    rounds: int
    seconds: float
    compile: bool


@cache
def _check(problem, pass_name, backend):
    check(problem, pass_name, backend)


def hold(case: Case, effort: Effort) -> dict:
    """The row of one case; a kernel outside its error gate raises ArithmeticError instead."""
    contest = CONTESTS[case.contest]
    # Compiling takes many seconds; only the lines on the best that PyTorch can do ask for it.
    ways = contest.ways + ("inductor",) * (effort.compile and case.contest == "eval")
    torch.set_num_threads(case.threads)
    with rk.use_backend(contest.backend):
        ours, peers = Layer(case.problem).competitors(contest.pass_name, ways)
        backend = {layout: ran(function) for layout, function in ours.items()}
        for layout in LAYOUTS:
            if backend[layout] != "aten":
                _check(replace(case.problem, layout=layout), contest.pass_name, contest.backend)
        times = timing.interleave(ours | peers, rounds=effort.rounds, budget_s=effort.seconds)
    return {
        "kind": "contest", **dataclasses.asdict(case), "problem": str(case.problem), "backend": backend,
        "cpu_isa": _native.cpu_isa,
        "ours": {layout: times[layout].median_ms for layout in ours},
        "peers": {peer: times[peer].median_ms for peer in peers},
    }  # fmt: skip


def in_own_process(cases: list[Case], effort: Effort, environment: dict) -> list[dict]:
    """The rows of `cases`, held in a process that has `environment` from its start."""
    asked = {
        "cases": [dataclasses.asdict(case) | {"problem": str(case.problem)} for case in cases],
        "effort": dataclasses.asdict(effort),
    }
    command = [sys.executable, __file__]
    result = subprocess.run(
        command, input=json.dumps(asked), env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(result.stdout)


def main() -> None:
    asked = json.load(sys.stdin)
    cases = [Case(**case | {"problem": ConvProblem.parse(case["problem"])}) for case in asked["cases"]]
    json.dump([hold(case, Effort(**asked["effort"])) for case in cases], sys.stdout)


if __name__ == "__main__":
    main()
