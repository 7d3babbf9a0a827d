"""Whole models and what cardinality costs: evaluation and training steps of swapped models against PyTorch's own.

torchvision's resnext50_32x4d and timm's regnety_016 with random weights, in both memory formats; ours with the kernels
named (cpu,aten), as `auto` chooses, and frozen for evaluation. The tax is the time of a training step of
resnext50_32x4d over resnet50's; closed is the part of what the grouped step costs (the floor leaves that step out)
that swapping takes away.
"""

import contextlib
import copy
from functools import partial

import torch
from layers import LAYOUTS, ran
from options import add_compile, add_timing
from pairs import verdict
from rich.table import Table

import resnext_kernels as rk
from resnext_kernels.testing import cases, timing

MODELS = ("resnext50_32x4d", "regnety_016")
BATCHES = {"eval": (1, 8), "train": (8,)}
KERNELS = "cpu,aten"
TAX_MUST, TAX_GOAL = 0.5, 0.8
COMPILED_MUST, COMPILED_GOAL = 0.97, 1.1


def add_options(parser) -> None:
    add_compile(parser)
    add_timing(parser, rounds=7, seconds=8.0)


def jobs(options) -> dict:
    names, batches, layouts, size = MODELS, BATCHES, tuple(LAYOUTS), 224
    if options.quick:
        names, batches, layouts, size = names[:1], {"eval": (1,), "train": (2,)}, layouts[:1], 32
        options.rounds = 1
    result = {}
    for pass_name in batches:
        for name in names:
            for n in batches[pass_name]:
                result[f"{name} {pass_name} {n}"] = partial(compete, name, pass_name, n, size, options)
    for layout in layouts:
        result[f"tax {layout}"] = partial(tax, layout, batches["train"][0], size, options)
    return {name: job for name, job in result.items() if options.only in name}


def build(name) -> torch.nn.Module:
    torch.manual_seed(0)
    if name.startswith("regnet"):
        import timm

        return timm.create_model(name)
    import torchvision

    return torchvision.models.get_model(name, weights=None)


def step(model, pass_name, layout, n, size, backend=None, prepare=None):
    """One evaluation or training step of a copy of `model` as a function without arguments.

    prepare(model) -> model comes after the copy is moved to the layout and mode.
    """
    memory = cases.FORMATS[layout]
    model = copy.deepcopy(model).to(memory_format=memory).train(pass_name == "train")
    if prepare is not None:
        model = prepare(model)
    x = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=memory)

    def run():
        with rk.use_backend(backend) if backend else contextlib.nullcontext():
            if pass_name == "eval":
                with torch.no_grad():
                    return model(x)
            model.zero_grad()
            model(x).square().mean().backward()

    return run


def contenders(name, pass_name, n, size, with_compile) -> tuple[dict, dict]:
    """(ours, PyTorch's): name -> function."""
    model, compiled = build(name), partial(torch.compile, dynamic=False)
    swapped = rk.swap(copy.deepcopy(model))
    ours, baselines = {}, {}
    # All copies share this code, which dynamo compiles only a few times: beyond that it would run eagerly.
    torch.compiler.reset()
    for layout, torchs_name in LAYOUTS.items():
        given = (pass_name, layout, n, size)
        baselines[f"eager {torchs_name}"] = step(model, *given)
        for backend in (KERNELS, "auto"):
            ours[f"{backend} {layout}"] = step(swapped, *given, backend)
        if pass_name == "eval":
            ours[f"frozen {KERNELS} {layout}"] = step(swapped, *given, KERNELS, rk.freeze)
        if with_compile:
            baselines[f"compile {torchs_name}"] = step(model, *given, prepare=compiled)
            ours[f"compile {KERNELS} {layout}"] = step(swapped, *given, KERNELS, compiled)
    return ours, baselines


def check(ours, baselines) -> None:
    """The evaluated outputs agree; that is all one can ask of a whole float32 model with random weights."""
    expected = baselines["eager nchw"]()
    for name, function in ours.items():
        error = float((function() - expected).abs().max() / expected.abs().max())
        if not error < 1e-3:
            raise ArithmeticError(f"{name}: outputs differ from eager's by {error:.3g} of the largest")


def compete(name, pass_name, n, size, options) -> list[dict]:
    ours, baselines = contenders(name, pass_name, n, size, options.compile)
    if pass_name == "eval":
        check(ours, baselines)
    # Nothing is recorded where every block ran its original forward.
    backend = {contender: ran(function) or "original" for contender, function in ours.items()}
    times = timing.interleave(ours | baselines, rounds=options.rounds, budget_s=options.seconds)
    times = {contender: each.median_ms for contender, each in times.items()}
    best = min(baselines, key=times.get)
    rows = []
    for contender in ours | baselines:
        rows.append({
            "kind": "model", "name": name, "pass": pass_name, "batch": n, "way": contender,
            "backend": backend.get(contender, "PyTorch"), "median_ms": times[contender], "best": best,
            "ratio": times[best] / times[contender],
        })  # fmt: skip
    return rows


def _without_grouped_step(model):
    """The torchvision ResNet `model` with conv2, bn2 and the activation behind them left out of its blocks."""
    from torchvision.models.resnet import Bottleneck

    class Ungrouped(Bottleneck):
        def forward(self, x):
            stride = self.conv2.stride[0]
            y = self.relu(self.bn1(self.conv1(x)))[:, :, ::stride, ::stride]
            y = self.bn3(self.conv3(y))
            y += x if self.downsample is None else self.downsample(x)
            return self.relu(y)

    for block in model.modules():
        if type(block) is Bottleneck:
            block.__class__ = Ungrouped
    return model


def tax(layout, n, size, options) -> list[dict]:
    """One row: a training step of resnext50_32x4d, unswapped, swapped and without its grouped step, and of resnet50."""
    model = build("resnext50_32x4d")
    models = {
        "resnet50": build("resnet50"),
        "unswapped": model,
        "swapped": rk.swap(copy.deepcopy(model)),
        "floor": _without_grouped_step(copy.deepcopy(model)),
    }
    steps = {
        name: step(model, "train", layout, n, size, KERNELS if name == "swapped" else None)
        for name, model in models.items()
    }
    backend = ran(steps["swapped"]) or "original"
    # What is asked for is a small difference of long times: it needs more rounds than a ratio.
    times = timing.interleave(steps, rounds=options.rounds, budget_s=4 * options.seconds)
    times = {name: each.median_ms for name, each in times.items()}
    closed = (times["unswapped"] - times["swapped"]) / (times["unswapped"] - times["floor"])
    return [{"kind": "tax", "name": "tax", "layout": layout, "backend": backend, "median_ms": times, "closed": closed}]


def report(rows, console) -> None:
    table = Table(title="a step of whole models")
    for title in ("model", "pass", "images", "way", "backend"):
        table.add_column(title)
    for title in ("ms", "best PyTorch : it"):
        table.add_column(title, justify="right")
    for row in (row for row in rows if row["kind"] == "model"):
        table.add_row(
            row["name"], row["pass"], str(row["batch"]), row["way"], row["backend"], f"{row['median_ms']:.1f}",
            f"{row['ratio']:.2f}x",
        )  # fmt: skip
    if table.rows:
        console.print(table)
    _report_compiled(rows, console)
    _report_tax([row for row in rows if row["kind"] == "tax"], console)


def _report_compiled(rows, console):
    """Compiled swapped over compiled unswapped, like for like."""
    times = {(row["name"], row["pass"], row["batch"], row["way"]): row["median_ms"] for row in rows if "way" in row}
    for (*which, way), ms in times.items():
        for layout, torchs_name in LAYOUTS.items():
            if way == f"compile {KERNELS} {layout}":
                speedup = times[(*which, f"compile {torchs_name}")] / ms
                name = " ".join(map(str, which))
                console.print(
                    f"compiled, swapped over unswapped, {name} {layout}: {speedup:.2f}x; "
                    f"must {COMPILED_MUST}x, goal {COMPILED_GOAL}x"
                )


def _report_tax(rows, console):
    if not rows:
        return
    table = Table(title=f"cardinality tax, a training step; must close {TAX_MUST:.0%}, goal {TAX_GOAL:.0%}")
    table.add_column("layout")
    table.add_column("backend")
    names = list(rows[0]["median_ms"])
    for title in (*(f"{name}, ms" for name in names), "tax", "swapped", "floor", "closed", "verdict"):
        table.add_column(title, justify="right")
    for row in rows:
        times = row["median_ms"]
        over = [f"{times[name] / times['resnet50']:.2f}" for name in names[1:]]
        table.add_row(
            row["layout"], row["backend"], *(f"{times[name]:.0f}" for name in names), *over, f"{row['closed']:.0%}",
            verdict(row["closed"], TAX_MUST, TAX_GOAL, row["backend"] not in ("aten", "original")),
        )  # fmt: skip
    console.print(table)
