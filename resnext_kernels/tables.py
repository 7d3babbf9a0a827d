"""Measured speed-ups over plain PyTorch, by device, op and problem: what `auto` chooses by.

A table is a JSON file with "device", "provenance" and "rows": "<op> <problem>" -> {"backend", "eager", "compiled"}, the
speed-ups being of the slow end of ours over the fast end of PyTorch's times. Those that ship lie in measured/, written
by scripts/measure_table.py. calibrate writes to the user's folder, which goes before: RESNEXT_KERNELS_TABLES, or
resnext_kernels in XDG_CACHE_HOME or ~/.cache. A problem that was not measured itself is taken to be as fast as the
slowest of its class: of the same op, kernel, stride, dilation, channels a group, dtype and layout.
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
_WAYS = ("eager", "compiled")
SHIPPED = Path(__file__).parent / "measured"
ROWS: dict[tuple, dict] = {}
_SLOWEST: dict[tuple, dict] = {}  # of each class
_DEVICES: set[str] = set()
_logger = logging.getLogger("resnext_kernels")


def folder() -> Path:
    """Where the user's tables are; RuntimeError where this user has no home and none is named."""
    named, cache = os.environ.get("RESNEXT_KERNELS_TABLES"), os.environ.get("XDG_CACHE_HOME")
    return Path(named) if named else Path(cache or Path.home() / ".cache") / "resnext_kernels"


def cpu_model() -> str:
    """The name of the processor; where that is generic, as in virtual machines, family and model tell it apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "CPU"
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    name = fields.get("model name", "CPU")
    numbered = "cpu family" in fields and "model" in fields
    return f"{name} (family {fields['cpu family']}, model {fields['model']})" if numbered else name


def _key(op: str, p) -> tuple:
    """Of plain values, which compilers can trace."""
    return op, *p.sizes, p.dtype, p.layout, p.device


def _class(op: str, p) -> tuple:
    per_group = p.c_in // p.groups, p.c_out // p.groups
    return op, *p.kernel, *p.stride, *p.dilation, *per_group, p.dtype, p.layout, p.device


def load() -> None:
    """Reads all tables anew; a file that is no table is skipped, with a warning."""
    ROWS.clear()
    try:
        users = sorted(folder().glob("*.json"))
    except (OSError, RuntimeError) as error:
        _logger.info("no tables of this user: %s", error)
        users = []
    for path in (*sorted(SHIPPED.glob("*.json")), *users):
        try:
            ROWS.update(_read(path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _logger.warning("%s is no table of measurements: %s; delete it and calibrate again", path, error)
    _SLOWEST.clear()
    _DEVICES.clear()
    for (device, op, *_), row in ROWS.items():
        _DEVICES.add(device)
        slowest = _SLOWEST.setdefault((device, *_class(op, row["problem"])), dict(row))
        slowest.update({key: min(slowest[key], row[key]) for key in _WAYS})


def _read(path) -> dict[tuple, dict]:
    table, rows = json.loads(path.read_text()), {}
    for name, row in table["rows"].items():
        op, problem = name.split()
        problem, speedups = ConvProblem.parse(problem), {key: float(row[key]) for key in _WAYS}
        rows[(table["device"], *_key(op, problem))] = {"backend": row["backend"], "problem": problem, **speedups}
    return rows


def state() -> int:
    """What a choice by the tables depends on besides the problem."""
    return torch.get_num_threads() if ROWS else 0


def is_measured(prefix: str) -> bool:
    """Whether there are rows of a device whose name begins so."""
    return any(device.startswith(prefix) for device in _DEVICES)


def speedup(device: str, op: str, problem) -> float | None:
    """Of the kernel over plain PyTorch; in a graph that is compiled, the lesser of that and of compiled PyTorch."""
    row = ROWS.get((device, *_key(op, problem))) or _SLOWEST.get((device, *_class(op, problem)))
    if row is None:
        return None
    return min(row["eager"], row["compiled"]) if torch.compiler.is_compiling() else row["eager"]


def file_name(device: str) -> str:
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', device).strip('-')}.json"


def check_writable(subfolder: str = "") -> None:
    """Raises OSError now, rather than after the measuring."""
    try:
        (folder() / subfolder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder() / subfolder).close()
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"tables: expected a folder to write to, got {error}; name one in RESNEXT_KERNELS_TABLES"
        ) from error


def write(path: Path, table: dict) -> None:
    """Whoever reads meanwhile sees the old table or the new one."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".partial", delete=False) as partial:
        partial.write(json.dumps(table, indent=1) + "\n")
    os.replace(partial.name, path)


def save(device: str, rows: dict[str, dict], provenance: dict) -> Path:
    """Adds rows to the user's table of the device, as it now is, and takes them into use."""
    check_writable()
    path = folder() / file_name(device)
    try:
        _read(path)
        before = json.loads(path.read_text())["rows"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # there is none yet
        before = {}
    write(path, {"device": device, "provenance": provenance, "rows": {**before, **rows}})
    load()
    return path


load()
