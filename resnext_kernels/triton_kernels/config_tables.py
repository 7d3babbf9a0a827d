"""Tables of configurations: the one that ships, configs.json, and the user's, which goes before it.

`python -m resnext_kernels tune` writes the user's: triton/sm_<architecture>.json in tables.folder(), of the same form,
read for that architecture alone.
"""

import contextlib
import json
import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .. import tables

FOLDER = "triton"
_trying: dict[str, "Config"] = {}
_noted: list[tuple[str, ...]] | None = None
_logger = logging.getLogger("resnext_kernels")


@dataclass(frozen=True)
class Config:
    warps: int
    stages: int

    def __post_init__(self):
        if self.warps not in (1, 2, 4, 8, 16) or self.stages not in range(1, 9):
            raise ValueError(f"expected 1, 2, 4, 8 or 16 warps and 1 to 8 stages, got {self.warps} and {self.stages}")

    def __str__(self):
        return f"warps {self.warps}, stages {self.stages}"


def _read(path) -> dict[int, dict[str, Config]]:
    rows = json.loads(path.read_text())["rows"]
    return {int(name): {key: Config(*values) for key, values in each.items()} for name, each in rows.items()}


@lru_cache
def shipped() -> dict[int, dict[str, Config]]:
    return _read(Path(__file__).with_name("configs.json"))


def users(architecture: int) -> dict[str, Config]:
    try:
        return _users(tables.folder() / FOLDER / f"sm_{architecture}.json", architecture)
    except RuntimeError:  # of a user without a home
        return {}


@lru_cache
def _users(path, architecture) -> dict[str, Config]:
    try:
        return _read(path)[architecture]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _logger.warning("%s is no table of configurations: %s; delete it and tune again", path, error)
        return {}


def save(architecture: int, rows: dict[str, Config], provenance: dict) -> Path:
    """Adds rows to the user's table as it now is; plans that were made before keep what they have."""
    tables.check_writable(FOLDER)
    path = tables.folder() / FOLDER / f"sm_{architecture}.json"
    _users.cache_clear()
    rows = {name: [row.warps, row.stages] for name, row in {**users(architecture), **rows}.items()}
    table = {"provenance": provenance, "fields": ["warps", "stages"], "rows": {str(architecture): rows}}
    tables.write(path, table)
    _users.cache_clear()
    return path


@contextlib.contextmanager
def trying(name: str, config: Config):
    """Within the block that is the row `name`, whatever the tables say."""
    before = dict(_trying)
    _trying[name] = config
    try:
        yield
    finally:
        _trying.clear()
        _trying.update(before)


@contextlib.contextmanager
def noting():
    """Yields a list that gets the names of every row that is asked for within the block."""
    global _noted
    before, _noted = _noted, []
    try:
        yield _noted
    finally:
        _noted = before


def _find(architecture: int, name: str, with_users: bool) -> Config | None:
    """Of the table that ships that of the architecture itself or of the next lower one."""
    own = _trying.get(name) or users(architecture).get(name) if with_users else None
    known = [each for each, rows in shipped().items() if each <= architecture and name in rows]
    return own or (shipped()[max(known)][name] if known else None)


def row(architecture: int, *names: str, with_users: bool = True) -> Config:
    """Of the first name that there is a row of."""
    if _noted is not None:
        _noted.append(names)
    for name in names:
        if found := _find(architecture, name, with_users):
            return found
    raise KeyError(f"configs.json: expected a row of {names[-1]} for {architecture} or lower")
