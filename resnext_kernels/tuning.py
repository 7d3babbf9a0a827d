"""tune: which numbers of warps and pipeline stages the Triton kernels are fastest with on the present GPU.

Nothing else is tried: tiles and splits belong to the problem, and with them the bits of results. A candidate must pass
the error gates and give the bits that the configuration which ships gives, before it is timed.
"""

import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from ._memo import make_cache, using
from .backends import BackendError, triton
from .problem import ConvProblem
from .testing import cases, machine, timing
from .testing import problems as named
from .testing.verify import call, verify
from .triton_kernels import config_tables
from .triton_kernels.config_tables import Config

WARPS, STAGES = (2, 4, 8), (1, 2, 3, 4)
BATCH, CHECKED_BATCH = 64, 2
OLDEST = 80  # what a dry run without a GPU is for


@dataclass(frozen=True)
class Pass:
    """ops: what its kernel serves, the first of which is timed, with `mask` where it has one.

    plan: lays a problem out, given conv_plans, the problem and the architecture.
    """

    ops: tuple[str, ...]
    plan: Callable
    mask: tuple[bool, ...] = ()

    def names(self, problem: ConvProblem) -> tuple[str, ...]:
        """Of the row that it reads."""
        from .triton_kernels import conv_plans

        with config_tables.noting() as noted:
            self.plan(conv_plans, problem, architecture())
        (names,) = noted
        return names

    def timed(self, args: dict) -> tuple:
        """(The op, its arguments.)"""
        op = self.ops[0]
        return op, (*args[op][:-1], list(self.mask)) if self.mask else args[op]


PASSES = {
    "forward": Pass(
        ("grouped_conv2d", "grouped_conv2d_affine_act", "grouped_conv2d_stats"),
        lambda plans, *of: plans.forward(*of, "identity"),
    ),
    "dgrad": Pass(("grouped_conv2d_backward",), lambda plans, *of: plans.dgrad(*of), (True, False, False)),
    "wgrad": Pass(("grouped_conv2d_backward",), lambda plans, *of: plans.wgrad(*of, (9, 1)), (False, True, False)),
    "wgrad that makes dz": Pass(
        ("grouped_conv2d_affine_act_backward",), lambda plans, *of: plans.wgrad(*of, (9, 1), "relu"), (False, True)
    ),
}


@dataclass
class Outcome:
    """Of one row: `gain` is the speed over what ships, None where that cannot run here; best is None if none can."""

    name: str
    shipped: Config
    best: Config | None
    gain: float | None
    dropped: dict[Config, str]


def problems(texts: list[str], dry_run: bool = False) -> list[ConvProblem]:
    """Those named, or ResNeXt-50's and RegNetY-1.6GF's layers; raises where the backend would not take one."""
    missing = triton.missing()
    if missing and not (dry_run and triton.is_installed()):
        raise BackendError(f"tune: expected a GPU for the backend triton: {missing}")
    layers = [*named.resnext50(BATCH).values(), *named.regnety_016(BATCH).values()]
    wanted = [replace(layer, dtype=dtype) for layer in layers for dtype in triton.DTYPES]
    if texts:
        wanted = list(map(ConvProblem.parse, texts))
    wanted = [replace(problem, layout="nhwc", device=triton.DEVICE) for problem in wanted]
    for problem in wanted:
        reasons = [each for each in triton.unsupported_reasons("grouped_conv2d", problem) if each != missing]
        if reasons:
            raise BackendError(f"tune: {problem}: {'; '.join(reasons)}")
    return list(dict.fromkeys(wanted))


def rows(wanted: list[ConvProblem]) -> dict[tuple, list]:
    """The names of each row that a problem's passes read -> (pass, problem)."""
    result = {}
    for problem, name in itertools.product(wanted, PASSES):
        result.setdefault(PASSES[name].names(problem), []).append((name, problem))
    return result


def architecture() -> int:
    return OLDEST if triton.missing() else triton.architecture(None)


def candidates(names: tuple[str, ...]) -> list[Config]:
    """What ships first."""
    others = (Config(*values) for values in itertools.product(WARPS, STAGES))
    return list(dict.fromkeys([config_tables.row(architecture(), *names, with_users=False), *others]))


class _Candidate:
    """A configuration in the place of a row, with plans of its own."""

    def __init__(self, name: str, config: Config):
        self.name, self.config, self.plans = name, config, make_cache()

    def __call__(self, function, *args):
        with config_tables.trying(self.name, self.config), using(self.plans):
            return function(*args, triton.NAME)


def _why_not(candidate: _Candidate, problem, args: dict, expected: dict) -> str | None:
    """None if all ops are within their gates and of the bits in `expected`, which the first candidate fills."""
    small = replace(problem, n=min(problem.n, CHECKED_BATCH))
    try:
        for op in args:
            verdict = candidate(verify, op, small)
            if not verdict.passed:
                return f"outside its error gate: {op} on {small}: {verdict.where}"
            results = candidate(call, op, args[op])
            if not all(a.equal(b) for a, b in zip(results, expected.setdefault(op, results), strict=True)):
                return f"other bits: {op} on {problem}"
    except Exception as error:  # whatever a compiler or a driver raises
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return None


def tune(names: tuple[str, ...], jobs: list) -> Outcome:
    """Of all candidates that are right on all jobs, (pass, problem), the one with the least mean of log(time)."""
    shipped, *_ = every = candidates(names)
    alive, dropped = {config: _Candidate(names[0], config) for config in every}, {}
    logs = {config: [] for config in every}
    for name, problem in jobs:
        args = {op: cases.make(op, problem, integers=False) for op in PASSES[name].ops}
        expected = {}
        for config, candidate in list(alive.items()):
            if reason := _why_not(candidate, problem, args, expected):
                dropped[config] = reason
                del alive[config]
        functions = {config: partial(candidate, call, *PASSES[name].timed(args)) for config, candidate in alive.items()}
        for config, time in timing.interleave(functions, problem.device).items():
            logs[config].append(math.log(time.median_ms))
    means = {config: statistics.fmean(logs[config]) for config in alive}
    best = min(means, key=means.get, default=None)
    gain = math.exp(means[shipped] - means[best]) if shipped in means else None
    return Outcome(names[0], shipped, best, gain, dropped)


def save(outcome: Outcome, command: str):
    """Into the user's table; where it lies."""
    provenance = {**machine.describe(), "command": command}
    return config_tables.save(architecture(), {outcome.name: outcome.best}, provenance)
