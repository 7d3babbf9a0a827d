"""Benchmarks: python benchmarks/run.py [SUITE], where cardinality is the default; SUITE --help lists its options."""

import argparse
import json
import sys
from pathlib import Path

import cardinality
import goals_cpu
import models
import overhead
import torch
from options import positive
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from resnext_kernels.testing import machine

# A suite is a module with add_options(parser), jobs(options) -> {label: function that returns rows, dictionaries} and
# report(rows, console).
SUITES = {"cardinality": cardinality, "goals-cpu": goals_cpu, "models": models, "overhead": overhead}


def json_path(text):
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file in a folder that exists, got {text}")
    return path


def parse(argv):
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", type=json_path, metavar="PATH", help="also write the rows and the machine to PATH")
    common.add_argument("--quick", action="store_true", help="few, small rows, to see that all works")
    common.add_argument("--only", default="", metavar="TEXT", help="only rows with TEXT in their name")
    common.add_argument("--threads", type=positive, help="CPU threads; default: torch's")
    parser = argparse.ArgumentParser(description=__doc__)
    suites = parser.add_subparsers(dest="suite", required=True, metavar="SUITE")
    for name, suite in SUITES.items():
        summary = suite.__doc__.splitlines()[0]
        suite.add_options(
            suites.add_parser(
                name, parents=[common], help=summary, description=suite.__doc__,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )  # fmt: skip
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        argv = ["cardinality", *argv]
    options = parser.parse_args(argv)
    jobs = SUITES[options.suite].jobs(options)
    if not jobs:
        parser.error(f"--only: expected a part of a row's name, got {options.only!r}")
    return options, jobs


def measure(suite, jobs, console) -> list[dict]:
    columns = (
        *Progress.get_default_columns(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[row]}"),
    )
    rows = []
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(suite, total=len(jobs), row="")
        for name, job in jobs.items():
            progress.update(task, row=name)
            rows += [{"suite": suite, **row} for row in job()]
            progress.advance(task)
    return rows


def main(argv=None) -> int:
    options, jobs = parse(sys.argv[1:] if argv is None else argv)
    # A table wider than 80 columns is readable in a file, where there is no terminal to fit.
    console = Console(width=None if sys.stdout.isatty() else 170)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    if options.threads:
        torch.set_num_threads(options.threads)
    header = machine.describe() | {"commit": machine.commit(Path(__file__).parent)}
    console.print("  ".join(f"{key}: {value}" for key, value in header.items()), highlight=False)
    rows = measure(options.suite, jobs, console)
    if options.json:
        options.json.write_text(json.dumps({"header": header, "rows": rows}, indent=1) + "\n")
        console.print(f"{len(rows)} rows written to {options.json}")
    SUITES[options.suite].report(rows, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
