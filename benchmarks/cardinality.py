"""Grouped 3x3 convolution + BatchNorm + ReLU over the paper's settings at each ResNeXt stage.

Every row is one layer in one layout: resnext_kernels against the best of PyTorch's own ways to do the same work (eager
in both layouts, BatchNorm folded into the convolution for evaluation, torch.compile with --compile), interleaved in
this process. Each kernel is held against float64 before it is timed; one that fails stops the run.
"""

import argparse
import math
from dataclasses import replace
from functools import partial

import torch
from layers import LAYOUTS, Layer, check, ran
from options import add_compile, add_timing, positive
from rich.table import Table

import resnext_kernels as rk
from resnext_kernels import backends
from resnext_kernels.testing import problems, timing


def _device(text):
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("expected a device that torch sees, got cuda without one; use --device cpu")
    return text


def _backends(text):
    known = {"auto", *rk.available_backends()}
    if not known.issuperset(text.split(",")):
        raise argparse.ArgumentTypeError(f"expected names among {', '.join(sorted(known))}, got {text}")
    return text


def add_options(parser) -> None:
    parser.add_argument("--passes", nargs="+", default=["eval", "train"], choices=["eval", "train"])
    parser.add_argument("--batch", type=positive, default=4, help="images; default 4")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", type=_device, default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--backend", type=_backends, help="names as in use_backend, by commas; default: all that run on the device"
    )
    add_compile(parser)
    add_timing(parser, rounds=11, seconds=0.6)


def jobs(options) -> dict:
    if options.quick:
        options.rounds, options.batch = min(options.rounds, 3), 1
    if options.backend is None:
        here = [module.NAME for module in backends.ORDER if module.DEVICE in (None, options.device)]
        options.backend = ",".join(here)
    # NCHW, but every row is measured in both layouts.
    rows = problems.cardinality(options.batch, dtype=getattr(torch, options.dtype), device=options.device)
    if options.quick:
        rows = {name: rows[name] for name in ("32x4d conv2", "32x4d conv3")}
    return {
        f"{name} {pass_name}": partial(measure, name, problem, pass_name, options)
        for pass_name in options.passes
        for name, problem in rows.items()
        if options.only in name
    }


def measure(name, problem, pass_name, options) -> list[dict]:
    """The rows of one problem and pass, one for each layout."""
    verdicts = {layout: check(replace(problem, layout=layout), pass_name, options.backend) for layout in LAYOUTS}
    ways = ["eager"] + ["folded"] * (pass_name == "eval") + ["compile"] * options.compile
    with rk.use_backend(*options.backend.split(",")):
        ours, baselines = Layer(problem).competitors(pass_name, ways)
        backend = {layout: ran(function) for layout, function in ours.items()}
        times = timing.interleave(ours | baselines, problem.device, rounds=options.rounds, budget_s=options.seconds)
    rows, best = [], min(times[baseline].median_ms for baseline in baselines)
    flops, nbytes = work(problem, pass_name)
    for layout in ours:
        mine = times[layout]
        rows.append({
            "name": name, "problem": str(replace(problem, layout=layout)), "pass": pass_name,
            "backend": backend[layout], "dtype": options.dtype, "layout": layout,
            "median_ms": mine.median_ms, "p20_ms": mine.p20_ms, "p80_ms": mine.p80_ms,
            "baselines": {baseline: times[baseline].median_ms for baseline in baselines},
            "ratio": best / mine.median_ms, "tflops": flops / mine.median_ms / 1e9,
            "gbps": nbytes / mine.median_ms / 1e6, "max_error": verdicts[layout].max_error,
            "error_over_gate": verdicts[layout].ratio,
        })  # fmt: skip
    return rows


def work(problem, pass_name) -> tuple[int, int]:
    """(FLOP, bytes) of a pass: forward i + o; training adds dgrad and wgrad, and moves 2 i + 6 o more.

    i and o are the input's and the output's bytes; of training, stats and normalise move i + 3 o, backward 2 i + 6 o.
    """
    o = problem.n * problem.c_out * problem.output_size[0] * problem.output_size[1] * problem.dtype.itemsize
    i = problem.bytes - o
    return (problem.flops, i + o) if pass_name == "eval" else (3 * problem.flops, 3 * i + 9 * o)


def report(rows, console) -> None:
    for pass_name in dict.fromkeys(row["pass"] for row in rows):
        mine = [row for row in rows if row["pass"] == pass_name]
        titles = {"eval": "evaluation forward", "train": "training forward + backward"}
        table = Table(title=f"{titles[pass_name]}: conv3x3 + BatchNorm + ReLU")
        for title in ("layer", "layout", "backend"):
            table.add_column(title)
        for title in ("ms", "p20-p80", "GFLOP/s", "GB/s", "best PyTorch", "ms", "ratio", "error/gate"):
            table.add_column(title, justify="right")
        for row in mine:
            best = min(row["baselines"], key=row["baselines"].get)
            table.add_row(
                row["name"], row["layout"], row["backend"], f"{row['median_ms']:.3f}",
                f"{row['p20_ms']:.3f}-{row['p80_ms']:.3f}", f"{1e3 * row['tflops']:.0f}", f"{row['gbps']:.1f}", best,
                f"{row['baselines'][best]:.3f}", f"{row['ratio']:.2f}x", f"{row['error_over_gate']:.2f}",
            )  # fmt: skip
        console.print(table)
        for layout in LAYOUTS:
            ratios = [row["ratio"] for row in mine if row["layout"] == layout and row["backend"] != "aten"]
            if ratios:
                mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
                console.print(f"{layout}: geometric mean {mean:.2f}x over {len(ratios)} layers that ran a kernel")
            else:
                console.print(f"{layout}: no layer ran a kernel; aten is plain PyTorch, its ratio is no gain")
