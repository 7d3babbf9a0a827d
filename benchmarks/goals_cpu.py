"""The performance goals for CPUs: what each demands, what was measured here, and whether it holds.

A line is one goal at one number of threads and images. Its ratio is of the best PyTorch path (eager; BatchNorm folded
into the convolution; with --compile also inductor with freezing; each in both memory formats) over ours, interleaved
in one process, medians; of several layers the worst counts unless the line says otherwise. A line for which no kernel
ran is no win, whatever its ratio.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import contests
import overhead
import torch
from contests import Case, Effort
from options import add_compile, add_timing
from pairs import (
    better,
    dispatched,
    each,
    eager,
    geomean,
    nchw,
    nchw_user,
    nhwc,
    of_floor,
    verdict,
    weakest,
    weighted,
    worst,
)
from rich.table import Table

from resnext_kernels import _native
from resnext_kernels.testing import problems

RESNEXT50 = problems.resnext50(1)
BY_WIDTH = {
    width: {name: p for name, p in RESNEXT50.items() if p.c_in // p.groups == width} for width in (4, 8, 16, 32)
}
WIDE = BY_WIDTH[16] | BY_WIDTH[32]
GENERIC = {width: {f"{c}@56 s1": problems.conv3x3(1, c, 56, c // width)} for width, c in
           ((1, 128), (2, 128), (10, 160), (14, 112), (24, 96), (40, 80))}  # fmt: skip
# One name a problem: the last.
ALL = {p: name for name, p in (problems.cardinality(1) | problems.regnety_016(1) | RESNEXT50).items()}
ALL = {name: p for p, name in ALL.items()}


@dataclass(frozen=True)
class Goal:
    """What the ratio of a line must be, and had better be.

    layers: name -> problem of one image. pairs: what a contest's row compares. value: of all pairs, the ratio.
    """

    name: str
    must: float
    goal: float
    layers: dict
    batches: tuple[int, ...] = (1, 8)
    contest: str = "eval"
    pairs: Callable = better
    value: Callable = worst
    dtype: torch.dtype = torch.float32
    isa: str = ""


def _of(layers, *names):
    return {name: layers[name] for name in names}


GOALS = (
    Goal("4 channels a group", 3.2, 4.5, BY_WIDTH[4]),
    Goal("8 channels a group", 1.85, 2.6, BY_WIDTH[8]),
    Goal("16 channels a group, 14x14", 1.15, 1.5, _of(WIDE, "512@14 s1"), (1,)),
    Goal("16 channels a group, 14x14", 1.05, 1.25, _of(WIDE, "512@14 s1"), (8,)),
    Goal("16 channels a group, 28x28 s2", 1.3, 2.0, _of(WIDE, "512@28 s2")),
    Goal("32 channels a group", 1.1, 1.5, BY_WIDTH[32], (1,)),
    Goal("32 channels a group, 14x14 s2", 1.05, 1.3, _of(WIDE, "1024@14 s2"), (8,)),
    Goal("32 channels a group, 7x7", 0.97, 1.15, _of(WIDE, "1024@7 s1"), (8,)),
    Goal("10 channels a group, NCHW", 1.5, 2.6, GENERIC[10], pairs=nchw),
    Goal("14 channels a group, NCHW", 1.2, 2.2, GENERIC[14], pairs=nchw),
    Goal("24 channels a group, NCHW", 1.25, 1.6, GENERIC[24], pairs=nchw),
    Goal("40 channels a group, NCHW", 1.1, 1.3, GENERIC[40], pairs=nchw),
    Goal("2 channels a group, NHWC", 4.5, 7.0, GENERIC[2], pairs=nhwc),
    Goal("depthwise, NHWC", 1.1, 1.8, GENERIC[1], pairs=nhwc),
    Goal("ResNeXt-50 geomean", 1.6, 2.0, RESNEXT50, value=geomean),
    Goal("ResNeXt-50 geomean, NCHW only", 1.75, 2.3, RESNEXT50, pairs=nchw_user, value=geomean),
    Goal("ResNeXt-50 weighted, over eager", 2.5, 4.0, RESNEXT50, pairs=eager, value=weighted),
    Goal("FMA floor, 4 channels", 0.55, 0.75, BY_WIDTH[4], (1,), pairs=of_floor),
    Goal("FMA floor, 8 and 16 channels", 0.7, 0.85, _of(RESNEXT50, "256@28 s1", "512@14 s1"), (1,),
         pairs=of_floor),
    Goal("auto never slower, evaluation", 0.97, 1.0, ALL, (1,), "auto eval", dispatched),
    Goal("auto never slower, training", 0.97, 1.0, ALL, (1,), "auto train", dispatched),
    *(
        Goal(f"{name}, {widths} channels a group", must, goal, layers, contest="eval folded", dtype=dtype)
        for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16))
        for widths, must, goal, layers in (("4", 3.2, 4.7, BY_WIDTH[4]), ("8", 1.9, 2.6, BY_WIDTH[8]),
                                           ("16-32", 1.2, 2.2, WIDE))
    ),
    Goal("AVX2, 4 channels a group", 2.7, 3.3, BY_WIDTH[4], isa="avx2"),
    Goal("AVX2, 8 channels a group", 1.2, 2.2, BY_WIDTH[8], isa="avx2"),
    Goal("AVX2, 16-32 channels a group", 0.97, 1.1, WIDE, isa="avx2"),
    Goal("training, 4 channels", 3.5, 5.0, BY_WIDTH[4], contest="train", pairs=each),
    Goal("training, 8 channels", 1.7, 2.6, BY_WIDTH[8], contest="train", pairs=each),
    Goal("training, 16-32 channels", 0.95, 1.4, WIDE, contest="train", pairs=each),
)  # fmt: skip
OVERHEAD = "call overhead, us"
# Goals on whole models: the command that measures them.
ELSEWHERE = {
    "cardinality tax closed, training": "python benchmarks/run.py models --only tax",
    "compiled swapped model over unswapped": "python benchmarks/run.py models --compile",
}


def _case_file(text):
    path = Path(text) / "grouped_3x3.csv"
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"expected a folder with grouped_3x3.csv, got {text}")
    return path


def add_options(parser) -> None:
    parser.add_argument(
        "--cases", type=_case_file, metavar="DIR", help="a folder with grouped_3x3.csv: auto is held to it too"
    )
    add_compile(parser)
    add_timing(parser, rounds=15, seconds=0.5)


@dataclass(frozen=True)
class Line:
    """A goal at one number of threads and images, and the cases that decide it."""

    goal: Goal
    threads: int
    images: int | None
    cases: tuple[Case, ...]


def lines(goals, thread_counts, quick=False) -> list[Line]:
    """In `quick` a goal's first layer stands for all and one image for any number."""
    result = []
    for goal in goals:
        layers = list(goal.layers.items())[: 1 if quick else None]
        for threads in thread_counts:
            for images in (1,) if quick else goal.batches:
                sized = {name: replace(p, n=images or p.n, dtype=goal.dtype) for name, p in layers}
                cases = (Case(name, p, threads, goal.contest, goal.isa) for name, p in sized.items())
                result.append(Line(goal, threads, images, tuple(cases)))
    return result


def measure_peaks(threads) -> dict:
    """GFLOP/s in float32, of the better of a matrix product and our multiply-add loop, and GB/s of a copy."""
    torch.set_num_threads(threads)
    a, source = torch.randn(2048, 2048), torch.ones(2**24)
    target = torch.empty_like(source)
    flops, nbytes = 2 * a.shape[0] ** 3, 2 * source.nbytes
    fma = 0.0 if _native.missing else _native._C.fma_gflops()
    return {
        "kind": "peak", "threads": threads, "fma_gflops": fma * threads,
        "sgemm_gflops": flops / _least_seconds(lambda: torch.mm(a, a)) / 1e9,
        "gbps": nbytes / _least_seconds(lambda: target.copy_(source)) / 1e9,
    }  # fmt: skip


def _least_seconds(function, repeats=7) -> float:
    def once():
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return min(once() for _ in range(repeats))


def floor_ms(problem, peak) -> float:
    """What the arithmetic or the memory takes at least."""
    gflops = max(peak["fma_gflops"], peak["sgemm_gflops"])
    return max(problem.flops / gflops, problem.bytes / peak["gbps"]) / 1e6


class Run:
    """The measurements so far, each of which may serve several lines."""

    def __init__(self, options, thread_counts):
        goals = [*GOALS, *_case_goals(options.cases)]
        goals = [goal for goal in goals if options.only in goal.name]
        self.lines = lines(goals, thread_counts, options.quick)
        self.effort = Effort(options.rounds, options.seconds, options.compile)
        self.cases = dict.fromkeys(case for line in self.lines for case in line.cases)
        self.peaks, self.rows, self.calls = {}, {}, {}

    def peak(self, threads) -> list[dict]:
        self.peaks[threads] = measure_peaks(threads)
        return [self.peaks[threads]]

    def contest(self, case) -> list[dict]:
        floor = {"floor_ms": floor_ms(case.problem, self.peaks[case.threads])}
        self.rows[case] = contests.hold(case, self.effort) | floor
        return [self.rows[case]]

    def avx2(self) -> list[dict]:
        cases = [case for case in self.cases if case.isa]
        rows = contests.in_own_process(cases, self.effort, contests.AVX2)
        self.rows |= dict(zip(cases, rows, strict=True))
        return rows

    def overhead(self, threads, calls) -> list[dict]:
        torch.set_num_threads(threads)
        self.calls[threads] = overhead.measure(2, calls)
        return [{"kind": "call", "threads": threads, **row} for row in self.calls[threads]]

    def goals(self) -> list[dict]:
        rows = [judge(line, [self.rows[case] | {"name": case.name} for case in line.cases]) for line in self.lines]
        return rows + [row for threads, calls in self.calls.items() for row in judge_overhead(threads, calls)]


def jobs(options) -> dict:
    thread_counts = [options.threads] if options.threads else [1, 2]
    calls = 2000
    if options.quick:
        options.rounds, options.seconds, thread_counts, calls = 3, 0.05, thread_counts[:1], 20
    run = Run(options, thread_counts)
    result = {f"peaks {threads} threads": partial(run.peak, threads) for threads in thread_counts}
    for case in run.cases:
        if not case.isa:
            result[f"{case.contest} {case.problem} {case.threads} threads"] = partial(run.contest, case)
    if any(case.isa for case in run.cases):
        result["AVX2, in a process of its own"] = run.avx2
    if options.only in OVERHEAD:
        result |= {f"calls {threads} threads": partial(run.overhead, threads, calls) for threads in thread_counts}
    if len(result) == len(thread_counts):
        return {}  # nothing but the peaks
    return result | {"goals": run.goals}


def _case_goals(path) -> list[Goal]:
    if path is None:
        return []
    fitting = [problem for problem in problems.case_file(path) if problems.fits(problem)]
    layers = {str(problem).partition("_float")[0]: problem for problem in fitting}
    return [Goal("auto never slower, case file", 0.97, 1.0, layers, (None,), "auto eval", dispatched)]


def judge(line, rows) -> dict:
    """The verdict on a line by the rows of its cases."""
    goal, pairs = line.goal, [pair for row in rows for pair in line.goal.pairs(row)]
    weak, value = weakest(pairs), goal.value(pairs)
    # Plain PyTorch is no win of ours; to be never slower it is enough.
    won = goal.pairs is dispatched or all(pair.backend != "aten" for pair in pairs)
    return {
        "kind": "goal", "name": goal.name, "threads": line.threads, "images": line.images, "value": value,
        "must": goal.must, "goal": goal.goal, "verdict": verdict(value, goal.must, goal.goal, won),
        "backend": "+".join(sorted({name for pair in pairs for name in pair.backend.split("+")})),
        "ours": weak.ours, "peer": weak.peer, "weakest": weak.layer,
    }  # fmt: skip


def judge_overhead(threads, calls) -> list[dict]:
    """One verdict for each backend, on the call that costs most over plain PyTorch."""
    rows = []
    for backend in dict.fromkeys(call["backend"] for call in calls if "plain" in call):
        mine = [call for call in calls if call["backend"] == backend and "plain" in call]
        most = max(mine, key=lambda call: call["difference_us"])
        rows.append({
            "kind": "goal", "name": OVERHEAD, "threads": threads, "images": 1, "value": most["difference_us"],
            "must": overhead.MUST_US, "goal": overhead.GOAL_US, "verdict": overhead.verdict(most["difference_us"]),
            "backend": backend, "ours": f"{most['us']:.1f} us", "peer": most["plain"], "weakest": most["name"],
        })  # fmt: skip
    return rows


def report(rows, console) -> None:
    for row in rows:
        if row["kind"] == "peak":
            console.print(
                f"{row['threads']} threads: multiply-add {row['fma_gflops']:.0f} GFLOP/s, "
                f"sgemm {row['sgemm_gflops']:.0f} GFLOP/s, copy {row['gbps']:.1f} GB/s"
            )
    table = Table(title="goals: PyTorch's best path over ours, or as the line says")
    table.add_column("goal")
    for title in ("threads", "images", "measured", "must", "goal"):
        table.add_column(title, justify="right")
    for title in ("verdict", "ran", "weakest: layer", "ours", "peer"):
        table.add_column(title)
    judged = [row for row in rows if row["kind"] == "goal"]
    for row in judged:
        table.add_row(
            row["name"], str(row["threads"]), str(row["images"] or "own"),
            *(f"{row[key]:.2f}" for key in ("value", "must", "goal")), row["verdict"], row["backend"],
            row["weakest"], row["ours"], row["peer"],
        )  # fmt: skip
    console.print(table)
    for name, command in ELSEWHERE.items():
        console.print(f"{name}: {command}")
    for what, verdicts in (("musts", ("must", "goal")), ("goals", ("goal",))):
        held = sum(row["verdict"] in verdicts for row in judged)
        console.print(f"{what} held: {held} of {len(judged)}")
