"""Every pass of networks' grouped layers: ours against cuDNN, eager PyTorch, torch.compile and the memory's floor.

The floor of a pass is its own bytes at the rate of a large copy in the same run. graph_us is cold and without launches,
as clock.py says; warm_us, of batches that the L2 cache holds, is over one set of tensors; api_us is from the call, with
what Python takes, the L2 cache overwritten before.
"""

import itertools
import math
from dataclasses import replace
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from resnext_kernels.testing import problems, timing

from .clock import METHOD, Clock
from .layer import PASSES, Layer
from .ours import names

COPY_BYTES = 1 << 30
BATCHES = (256, 32)
API_PASSES = ("eval", "train_forward", "train")
WARM_PASSES = ("forward", "eval", "train_forward")
COMPILED = ("128@56 s1", "512@14 s1")
COMPILE_S = 30.0
# C, H, stride, groups: ResNeXt-101's stages, whose inner layers are as in ResNeXt-50.
RESNEXT101 = {
    "resnext101_32x8d": ((256, 56, 1, 32), (512, 56, 2, 32), (512, 28, 1, 32), (1024, 28, 2, 32), (1024, 14, 1, 32),
                         (2048, 14, 2, 32), (2048, 7, 1, 32)),
    "resnext101_64x4d": ((256, 56, 1, 64), (512, 56, 2, 64), (512, 28, 1, 64), (1024, 28, 2, 64), (1024, 14, 1, 64),
                         (2048, 14, 2, 64), (2048, 7, 1, 64)),
}  # fmt: skip


def networks(n: int) -> dict:
    """Network -> its layers by name, for a batch of `n`, the most wanted first."""
    result = {"resnext50_32x4d": problems.resnext50(n)}
    for name, layers in RESNEXT101.items():
        result[name] = {f"{c}@{h} s{s}": problems.conv3x3(n, c, h, groups, s) for c, h, s, groups in layers}
    return result | {"regnety_016": problems.regnety_016(n)}


class Speed:
    def __init__(self, stage):
        self.stage, self.clock, self.names = stage, Clock(stage.dry), names(stage.dry)
        self.layer = None
        size = 1 << 10 if stage.dry else COPY_BYTES
        self.copy_gb_s = 1e-3 * 2 * size / self.copy_us(2 * size)

    def _copies(self, size: int, sets: int):
        """Copies that move `size` bytes in all, half of them reads."""
        make = {"dtype": torch.int8, "device": self.stage.device}
        pairs = [[torch.randint(127, (size // 2,), **make) for _ in range(2)] for _ in range(sets)]
        return [partial(to.copy_, source) for source, to in pairs]

    def copy_us(self, size: int) -> float:
        return self.clock.us({"copy": self.clock.record(self._copies(size, self.clock.sets(size)))})["copy"]

    def pass_rows(self, layer: Layer, pass_name: str, ways: dict, about: dict) -> list[dict]:
        """A row for each of `ways`, name -> function of the set's number."""
        clock, size, sets = self.clock, layer.bytes(pass_name), range(layer.sets)
        recorded, broken = {}, {}
        for way, function in ways.items():
            try:
                recorded[way] = clock.record([partial(function, i) for i in sets])
            except RuntimeError as error:
                broken[way] = str(error)[-500:]  # not every way can be captured in a graph
        recorded["copy"] = clock.record(self._copies(size, clock.sets(size)))
        graph = clock.us(recorded)
        warm = {}
        if pass_name in WARM_PASSES and size < clock.l2_bytes:
            functions = {way: ways[way] for way in recorded if way != "copy"}
            warm = {way: clock.record([partial(function, 0)]) for way, function in functions.items()}
            warm = clock.us(warm | {"copy": clock.record(self._copies(size, 1))}, budget_s=0.2)
        api = {}
        if pass_name in API_PASSES:
            calls = {way: partial(function, 0) for way, function in ways.items()}
            options = {"rounds": 1} if self.stage.dry else {"rounds": 15, "budget_s": 0.3}
            api = timing.interleave(calls, self.stage.device, **options)
        floor_us = 1e-3 * size / self.copy_gb_s
        rows = []
        for way in [*ways, "copy"]:
            us = graph.get(way)
            rows.append(about | {
                "pass": pass_name, "way": way, "bytes": size, "graph_us": us, "floor_us": floor_us,
                "of_copy": floor_us / us if us else None, "warm_us": warm.get(way),
                "api_us": 1e3 * api[way].median_ms if way in api else None, "no_graph": broken.get(way),
                "ours": way in self.names,
            })  # fmt: skip
        return rows

    def _layer(self, problem) -> Layer:
        """That of the item before, if it is of the same problem."""
        if self.layer is None or self.layer.problem != problem:
            self.layer = None
            if not self.stage.dry:
                torch.cuda.empty_cache()
            self.layer = Layer(problem, self.clock.sets(problem.bytes))
        return self.layer

    def contest(self, problem, pass_name: str, about: dict) -> list[dict]:
        """Ours and what PyTorch has without a compiler."""
        layer = self._layer(problem)
        lacks = {name: reason for name in self.names if (reason := layer.why_not(pass_name, name))}
        ways = self._ours(layer, pass_name) | layer.peers(pass_name)
        return self.pass_rows(layer, pass_name, ways, about | {"ours_lacks": lacks})

    def _ours(self, layer, pass_name: str) -> dict:
        return {name: layer.ours(pass_name, name) for name in self.names if not layer.why_not(pass_name, name)}

    def compiled(self, problem, pass_name: str, about: dict) -> list[dict]:
        """torch.compile and ours in the same minute."""
        layer = self._layer(problem)
        torch.compiler.reset()
        ways = {"compile nhwc": layer.compiled(pass_name, "nhwc", "eager" if self.stage.dry else "inductor")}
        return self.pass_rows(layer, pass_name, ways | self._ours(layer, pass_name), about)


def plan(speed: Speed) -> list[tuple[dict, float]]:
    """Items and the seconds that one of them needs, in order of importance."""
    if speed.stage.dry:
        batches, compiled = {2: {"tiny": {"16@5 s1": problems.conv3x3(2, 16, 5, 4)}}}, ("16@5 s1",)
    else:
        batches, compiled = {n: networks(n) for n in BATCHES}, COMPILED
    every = [(n, network, layer, problem) for n, networks_of in batches.items()
             for network, layers in networks_of.items() for layer, problem in layers.items()]  # fmt: skip
    largest, first = every[0][:2]

    def items(cases, contest, method, passes):
        result = {}
        for n, network, layer, problem in cases:
            problem = replace(problem, dtype=torch.bfloat16, layout="nhwc", device=speed.stage.device)
            about = {"network": network, "layer": layer, "batch": n, "dtype": "bfloat16", "contest": contest}
            for name in passes:
                result[f"{contest} {network} {layer} {n} {name}"] = partial(method, problem, name, about)
        return result

    wanted = [each for each in every if each[1] == first]
    few = [each for each in wanted if each[2] in compiled and each[0] == largest]
    rest = [each for each in every if each[1] != first]
    return [
        (items(wanted, "all", speed.contest, PASSES), 2.0),
        (items(few, "compile", speed.compiled, ("train", "eval")), COMPILE_S),
        (items(rest, "all", speed.contest, PASSES), 2.0),
    ]


def main(stage) -> str:
    torch.backends.cudnn.benchmark = True
    speed = Speed(stage)
    stage.row(way="method", method=f"{__doc__}\n{METHOD}", copy_gb_s=speed.copy_gb_s)
    for items, needs_s in plan(speed):
        stage.each(items, 0 if stage.dry else needs_s)
    rows = [row for row in stage.rows if "pass" in row]
    report(rows, speed.names)
    return headline(rows, speed)


def _by_case(rows) -> dict:
    """(network, layer, batch, pass, contest) -> way -> row."""
    cases = {}
    for row in rows:
        key = tuple(row[field] for field in ("network", "layer", "batch", "pass", "contest"))
        cases.setdefault(key, {})[row["way"]] = row
    return cases


def _times(ways: dict) -> tuple[dict, float | None]:
    """(Each of ours, the best of the others), in a graph if all could be captured in one."""
    ways = {way: row for way, row in ways.items() if way != "copy"}
    measure = "graph_us" if all(row["graph_us"] for row in ways.values()) else "api_us"
    times = {way: row[measure] for way, row in ways.items() if row[measure]}
    peers = [us for way, us in times.items() if not ways[way]["ours"]]
    return {way: us for way, us in times.items() if ways[way]["ours"]}, min(peers, default=None)


def report(rows, names) -> None:
    """Into the log."""
    table = Table(title="microseconds, in a graph where all could be captured, cold; over a large copy's rate")
    for title in ("network", "layer", "batch", "pass", "rivals"):
        table.add_column(title)
    of_each = [title for name in names for title in (name, "ratio", "of copy", "API")]
    for title in ("best other", "floor", *of_each):
        table.add_column(title, justify="right")
    for case, ways in _by_case(rows).items():
        ours, peer = _times(ways)
        floor = ways["copy"]["floor_us"]
        numbers = [peer, floor]
        for name in names:
            us = ours.get(name)
            ratios = (peer / us if peer else None, floor / us) if us else (None, None)
            numbers += [us, *ratios, ways[name]["api_us"] if name in ways else None]
        table.add_row(*map(str, case), *(f"{number:.2f}" if number else "-" for number in numbers))
    Console(width=180).print(table)


def headline(rows, speed) -> str:
    """Of the first network in its largest batch."""
    if not rows:
        return "no row"
    first, cases = rows[0], _by_case(rows)
    parts = [f"{len(cases)} passes, copy {speed.copy_gb_s:.0f} GB/s, {first['network']} batch {first['batch']}"]
    for name, pass_name in itertools.product(speed.names, ("forward", "eval", "train")):
        ratios, of_copy = [], []
        for (network, _, batch, passes, contest), ways in cases.items():
            ours, peer = _times(ways)
            wanted = (first["network"], first["batch"], pass_name, "all")
            if (network, batch, passes, contest) == wanted and peer and name in ours:
                ratios.append(math.log(peer / ours[name]))
                of_copy.append(ways["copy"]["floor_us"] / ours[name])
        if ratios:
            mean = math.exp(sum(ratios) / len(ratios))
            parts.append(f"{name} {pass_name} {mean:.2f}x, {min(of_copy):.0%} to {max(of_copy):.0%} of copy")
    return "; ".join(parts)
