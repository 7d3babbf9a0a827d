"""Timing of alternatives against each other: interleaved rounds, medians and percentiles, cold L2 on a GPU."""

import statistics
import time
from dataclasses import dataclass

import torch


@dataclass
class Timing:
    median_ms: float
    p20_ms: float
    p80_ms: float

    @classmethod
    def of(cls, seconds: list[float]) -> "Timing":
        cuts = statistics.quantiles(seconds, n=5, method="inclusive") if len(seconds) > 1 else seconds * 4
        return cls(*(1e3 * value for value in (statistics.median(seconds), cuts[0], cuts[3])))


class _CpuClock:
    """Each timed call comes after an untimed one, so that none pays for what another function left in the caches."""

    def time(self, function) -> float:
        function()
        start = time.perf_counter()
        function()
        return time.perf_counter() - start


class _CudaClock:
    """Device time between two events; the L2 cache is overwritten before, so that every run reads from memory."""

    def __init__(self):
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.flush = torch.empty(4 * properties.L2_cache_size, dtype=torch.int8, device="cuda")

    def time(self, function) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def interleave(functions: dict, device: str = "cpu", *, rounds: int = 15, budget_s: float = 1.0) -> dict[str, Timing]:
    """Times `functions` in turns: at least 3 and at most `rounds` rounds, within `budget_s` seconds if it can."""
    clock = _CudaClock() if device == "cuda" else _CpuClock()
    for function in functions.values():
        function()
    seconds = {name: [] for name in functions}
    start = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - start > budget_s:
            break
        order = list(functions)
        for name in order[done % len(order) :] + order[: done % len(order)]:
            seconds[name].append(clock.time(functions[name]))
    return {name: Timing.of(values) for name, values in seconds.items()}
