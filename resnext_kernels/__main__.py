"""python -m resnext_kernels info | explain PROBLEM | tune [PROBLEM...]."""

import argparse
import json
import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import _native, available_backends, backends, tables, tuning
from .problem import ConvProblem
from .testing import cases, machine
from .triton_kernels import config_tables


def info(arguments, console) -> int:
    """Prints versions, the machine and which backends this installation has, with the reasons for those it lacks."""
    places = {
        "package": str(Path(__file__).parent),
        "native module": getattr(_native._C, "__file__", _native.missing),
        "CUDA module": getattr(_native._cuda, "__file__", _native.cuda_missing),
    }
    built = _native._cuda.build_info() if _native._cuda else {}
    states = {f"backend {name}": state for name, state in available_backends().items()}
    rows = {**machine.describe(), **places, **{f"CUDA {key}": value for key, value in built.items()}, **states}
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, str(value))
    console.print(table)
    return 0


def explain(arguments, console) -> int:
    """Prints, for every op on one problem, the backend that would run it and why those before it would not."""
    try:
        problem = ConvProblem.parse(arguments.problem)
        ops = [op for op in cases.CASES if hasattr(backends.reference, op)]
        rows = [(op, *backends.explain(op, problem, arguments.backend)) for op in ops]
    except (ValueError, TypeError) as error:
        console.print(f"[red]error:[/red] {error}")
        return 2
    console.print(f"{problem}: {problem.flops / 1e9:.3g} GFLOP, {problem.bytes / 1e6:.3g} MB", highlight=False)
    table = Table("op", "backend", "why not the others")
    for op, name, refused in rows:
        table.add_row(op, name or "none", "\n".join(f"{other}: {'; '.join(why)}" for other, why in refused.items()))
    console.print(table)
    return 0


def tune(arguments, console) -> int:
    """Finds the fastest warps and stages of the Triton kernels on the present GPU, which `triton` runs with from then
    on: a table beside those of calibrate. Without a problem: the grouped layers of ResNeXt-50 and RegNetY-1.6GF."""
    try:
        problems = tuning.problems(arguments.problems, arguments.dry_run)
        if not arguments.dry_run:
            tables.check_writable(config_tables.FOLDER)
    except (ValueError, TypeError, OSError, backends.BackendError) as error:
        console.print(f"[red]error:[/red] {error}")
        return 2
    outcomes = []
    for names, jobs in tuning.rows(problems).items():
        console.print(f"{names[0]} (measured by {len(jobs)})", highlight=False)
        if arguments.dry_run:
            console.print("  " + "; ".join(map(str, tuning.candidates(names))), highlight=False, soft_wrap=True)
            continue
        outcomes.append(tuning.tune(names, jobs))
        _report(outcomes[-1], console)
        if outcomes[-1].best:
            path = tuning.save(outcomes[-1], shlex.join(["python", "-m", "resnext_kernels", *arguments.argv]))
            console.print(f"  written to {path}", highlight=False, soft_wrap=True)
    return int(any(outcome.best is None for outcome in outcomes))


def _report(outcome, console):
    for config, reason in outcome.dropped.items():
        console.print(f"  {config} dropped: {reason}", highlight=False, markup=False)
    speed = f", {outcome.gain:.2f} times the speed of {outcome.shipped}" if outcome.gain else ""
    console.print(f"  {outcome.best or 'no candidate is right'}{speed}", highlight=False)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m resnext_kernels", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("info", help=info.__doc__, description=info.__doc__)
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=info)
    command = commands.add_parser("explain", help=explain.__doc__, description=explain.__doc__)
    command.add_argument("problem", help="such as n8_c128_h56_g32_s2_float32_nhwc_cpu; unnamed parts have defaults")
    command.add_argument("--backend", default="auto", help="names as in use_backend, joined by commas; default: auto")
    command.set_defaults(run=explain)
    command = commands.add_parser("tune", help=tune.__doc__, description=tune.__doc__)
    words = "as for explain, such as n64_c128_h56_g32_float16; the dtype is float32 unless named, the layout NHWC"
    command.add_argument("problems", nargs="*", metavar="PROBLEM", help=words)
    command.add_argument("--dry-run", action="store_true", help="list the candidates; needs no GPU")
    command.set_defaults(run=tune)
    arguments = parser.parse_args(argv)
    arguments.argv = sys.argv[1:] if argv is None else argv
    return arguments.run(arguments, Console(width=None if sys.stdout.isatty() else 140))


if __name__ == "__main__":
    sys.exit(main())
