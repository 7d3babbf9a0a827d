"""Times of work: of CUDA graphs on the GPU, cold or warm, or, dry, of plain calls on the CPU.

Cold, a graph's calls go over as many sets of tensors as four times the L2 cache holds; warm, over one. Before a replay
the GPU sleeps while the CPU queues what follows, so that no launch is in the time. Of some replays, the median is
taken; those of rivals are interleaved.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

METHOD = __doc__
MOST_SETS = 24
LEAST_CALLS = 4  # in a graph
AHEAD_CYCLES = 400_000


@dataclass
class Recorded:
    replay: Callable
    calls: int


class Clock:
    def __init__(self, dry: bool):
        self.dry = dry
        # One for all graphs: freed memory is kept for the stream that it was used on.
        self.stream = None if dry else torch.cuda.Stream()
        self.l2_bytes = 0 if dry else torch.cuda.get_device_properties(0).L2_cache_size

    def sets(self, size: int) -> int:
        """How many sets of tensors, of `size` bytes each, make the calls over them cold."""
        return max(1, min(MOST_SETS, math.ceil(4 * self.l2_bytes / size)))

    def record(self, calls: list[Callable]) -> Recorded:
        """The calls, one after the other; each has a set of tensors of its own."""
        repeats = math.ceil(LEAST_CALLS / len(calls))
        if self.dry:
            return Recorded(lambda: [call() for call in calls], len(calls))
        stream = self.stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                # Results stay alive until all sets had their turn, or else the next would be written to warm memory.
                kept = [call() for call in calls]
        torch.cuda.current_stream().wait_stream(stream)
        del kept
        graph, results = torch.cuda.CUDAGraph(), deque(maxlen=len(calls))
        torch.cuda.synchronize()
        # Not by torch.cuda.graph, which gives all cached memory back first: that takes longer than a capture.
        with torch.cuda.stream(stream):
            graph.capture_begin()
            try:
                for call in calls * repeats:
                    results.append(call())
            finally:
                graph.capture_end()
        graph.replay()
        return Recorded(graph.replay, len(calls) * repeats)

    def _seconds(self, replay) -> float:
        if self.dry:
            start = time.perf_counter()
            replay()
            return time.perf_counter() - start
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(AHEAD_CYCLES)
        start.record()
        replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def us(self, rivals: dict[str, Recorded], *, rounds: int = 15, budget_s: float = 0.4) -> dict[str, float]:
        """Microseconds a call: medians of at least 3 and at most `rounds` interleaved rounds."""
        seconds = {name: [] for name in rivals}
        start = time.perf_counter()
        for done in range(1 if self.dry else rounds):
            if done >= 3 and time.perf_counter() - start > budget_s:
                break
            for name, each in rivals.items():
                seconds[name].append(self._seconds(each.replay) / each.calls)
        return {name: 1e6 * statistics.median(values) for name, values in seconds.items()}
