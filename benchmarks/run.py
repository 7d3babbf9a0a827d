"""Throughput report: python benchmarks/run.py [SUITE].

Every row is one layer in one layout: resnext_kernels against the best of PyTorch's own ways to do the same work (eager
in both layouts, BatchNorm folded into the convolution for evaluation, torch.compile with --compile), interleaved in
this process. Each kernel is held against float64 before it is timed; one that fails stops the run.
"""

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import cardinality
import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import resnext_kernels as rk
from resnext_kernels import backends
from resnext_kernels.testing import machine, timing

SUITES = {"cardinality": cardinality}


def measure(suite, name, problem, pass_name, options) -> list[dict]:
    """The rows of one problem and pass, one for each layout."""
    verdicts = {
        layout: suite.check(replace(problem, layout=layout), pass_name, options.backend) for layout in ("nchw", "nhwc")
    }
    with rk.use_backend(*options.backend.split(",")):
        ours, baselines = suite.Layer(problem).competitors(pass_name, options.compile)
        ran = {layout: suite.ran(function) for layout, function in ours.items()}
        times = timing.interleave(ours | baselines, problem.device, rounds=options.rounds, budget_s=options.seconds)
    rows, best = [], min(times[baseline].median_ms for baseline in baselines)
    flops, nbytes = suite.work(problem, pass_name)
    for layout in ours:
        mine = times[layout]
        rows.append({
            "suite": options.suite, "name": name, "problem": str(replace(problem, layout=layout)), "pass": pass_name,
            "backend": ran[layout], "dtype": str(problem.dtype).removeprefix("torch."), "layout": layout,
            "median_ms": mine.median_ms, "p20_ms": mine.p20_ms, "p80_ms": mine.p80_ms,
            "baselines": {baseline: times[baseline].median_ms for baseline in baselines},
            "ratio": best / mine.median_ms, "tflops": flops / mine.median_ms / 1e9,
            "gbps": nbytes / mine.median_ms / 1e6, "max_error": verdicts[layout].max_error,
            "error_over_gate": verdicts[layout].ratio,
        })  # fmt: skip
    return rows


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
        for layout in ("nchw", "nhwc"):
            ratios = [row["ratio"] for row in mine if row["layout"] == layout and row["backend"] != "aten"]
            if ratios:
                mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
                console.print(f"{layout}: geometric mean {mean:.2f}x over {len(ratios)} layers that ran a kernel")
            else:
                console.print(f"{layout}: no layer ran a kernel; aten is plain PyTorch, its ratio is no gain")


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", nargs="?", default="cardinality", choices=SUITES)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the rows and the machine to PATH")
    parser.add_argument("--quick", action="store_true", help="two layers, one image, 3 rounds")
    parser.add_argument("--only", default="", metavar="TEXT", help="only layers with TEXT in their name, as 32x4d")
    parser.add_argument("--passes", nargs="+", default=["eval", "train"], choices=["eval", "train"])
    parser.add_argument("--batch", type=int, default=4, help="images; default 4")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    default = ",".join(module.NAME for module in backends.ORDER)
    parser.add_argument("--backend", default=default, help=f"names as in use_backend, by commas; default {default}")
    parser.add_argument("--compile", action="store_true", help="torch.compile as one more baseline (slow to start)")
    parser.add_argument("--rounds", type=int, default=11, help="at most so many rounds a layer; default 11")
    parser.add_argument("--seconds", type=float, default=0.6, help="budget for a layer and pass; default 0.6")
    options = parser.parse_args(argv)
    options.dtype = getattr(torch, options.dtype)
    for name, low in (("batch", 1), ("rounds", 1), ("threads", 1)):
        if getattr(options, name) is not None and getattr(options, name) < low:
            parser.error(f"--{name}: expected a number >= {low}, got {getattr(options, name)}")
    known = {"auto", *rk.available_backends()}
    if not known.issuperset(options.backend.split(",")):
        parser.error(f"--backend: expected names among {', '.join(sorted(known))}, got {options.backend}")
    if not SUITES[options.suite].select(options):
        parser.error(f"--only: expected a part of a layer's name, as 32x4d or conv2, got {options.only!r}")
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json: expected a file in a folder that exists, got {options.json}")
    if options.quick:
        options.rounds, options.batch = min(options.rounds, 3), 1
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected a device that torch sees, got cuda without one; use --device cpu")
    return options


def main(argv=None) -> int:
    # A table wider than 80 columns is readable in a file, where there is no terminal to fit.
    options, console = parse(argv), Console(width=None if sys.stdout.isatty() else 140)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    if options.threads:
        torch.set_num_threads(options.threads)
    suite, header = SUITES[options.suite], machine.describe()
    header["commit"] = machine.commit(Path(__file__).parent)
    console.print("  ".join(f"{key}: {value}" for key, value in header.items()), highlight=False)
    work = [(name, p, pass_name) for pass_name in options.passes for name, p in suite.select(options).items()]
    rows = []
    columns = (
        *Progress.get_default_columns(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[row]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(options.suite, total=len(work), row="")
        for name, problem, pass_name in work:
            progress.update(task, row=f"{name} {pass_name}")
            rows += measure(suite, name, problem, pass_name, options)
            progress.advance(task)
    report(rows, console)
    if options.json:
        options.json.write_text(json.dumps({"header": header, "rows": rows}, indent=1) + "\n")
        console.print(f"{len(rows)} rows written to {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
