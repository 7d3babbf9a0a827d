"""Measured speed-ups over plain PyTorch, by device, op and problem: what `auto` chooses by.

A table is a JSON file with "device", "provenance" and "rows": "<op> <problem>" -> {"backend", "eager", "compiled"}, the
speed-ups being of the slow end of ours over the fast end of PyTorch's times. calibrate writes them to the user's
folder: RESNEXT_KERNELS_TABLES, or resnext_kernels in XDG_CACHE_HOME or ~/.cache. None ships yet.
"""

import json
import logging
import os
import re
import tempfile
from pathlib import Path

import torch

from .problem import ConvProblem

WORTHWHILE = 1.03
ROWS: dict[tuple, dict] = {}
_logger = logging.getLogger("resnext_kernels")


def folder() -> Path:
    """Where the user's tables are; RuntimeError where this user has no home and none is named."""
    named, cache = os.environ.get("RESNEXT_KERNELS_TABLES"), os.environ.get("XDG_CACHE_HOME")
    return Path(named) if named else Path(cache or Path.home() / ".cache") / "resnext_kernels"


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "CPU"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")


def _key(op: str, problem) -> tuple:
    """Of plain values, which compilers can trace."""
    p = ConvProblem.parse(problem) if isinstance(problem, str) else problem
    return op, *p.sizes, p.dtype, p.layout, p.device


def load() -> None:
    """Reads all tables anew; a file that is no table is skipped, with a warning."""
    ROWS.clear()
    try:
        paths = sorted(folder().glob("*.json"))
    except (OSError, RuntimeError) as error:
        _logger.info("no tables of measurements: %s", error)
        return
    for path in paths:
        try:
            ROWS.update(_read(path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _logger.warning("%s is no table of measurements: %s; delete it and calibrate again", path, error)


def _read(path) -> dict[tuple, dict]:
    table, rows = json.loads(path.read_text()), {}
    for name, row in table["rows"].items():
        speedups = {key: float(row[key]) for key in ("eager", "compiled")}
        rows[(table["device"], *_key(*name.split()))] = {"name": name, "backend": row["backend"], **speedups}
    return rows


def state() -> int:
    """What a choice by the tables depends on besides the problem."""
    return torch.get_num_threads() if ROWS else 0


def speedup(device: str, op: str, problem) -> float | None:
    """Of the kernel over plain PyTorch; in a graph that is compiled, the lesser of that and of compiled PyTorch."""
    row = ROWS.get((device, *_key(op, problem)))
    if row is None:
        return None
    return min(row["eager"], row["compiled"]) if torch.compiler.is_compiling() else row["eager"]


def check_writable() -> None:
    """Raises OSError now, rather than after the measuring."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder()).close()
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"tables: expected a folder to write to, got {error}; name one in RESNEXT_KERNELS_TABLES"
        ) from error


def save(device: str, rows: dict[str, dict], provenance: dict) -> Path:
    """Adds rows to the user's table of the device, as it now is, and takes them into use."""
    check_writable()
    path = folder() / f"{re.sub(r'[^A-Za-z0-9]+', '-', device).strip('-')}.json"
    load()
    before = {row.pop("name"): row for (of, *_), row in ROWS.items() if of == device}
    table = {"device": device, "provenance": provenance, "rows": {**before, **rows}}
    with tempfile.NamedTemporaryFile("w", dir=folder(), suffix=".partial", delete=False) as partial:
        partial.write(json.dumps(table, indent=1) + "\n")
    os.replace(partial.name, path)  # whoever reads meanwhile sees the old table or the new one
    load()
    return path


load()
