"""The ordered list of backends and the choice among them."""

import contextlib
import logging
from functools import lru_cache

from .. import tables
from .._memo import is_unhashable
from . import aten, cpu, cuda, reference, triton

logger = logging.getLogger("resnext_kernels")

# In order of preference; `aten` takes everything, `reference` is chosen only by name.
ORDER = (cuda, triton, cpu, aten)
_BY_NAME = {module.NAME: module for module in (*ORDER, reference)}

AUTO = "auto"
_requested = AUTO
_record = None
_told = set()
# What direct.py remembers; it rests on the choices made here.
recipes: dict = {}


class BackendError(RuntimeError):
    """A backend asked for by name cannot do the work; the message lists why."""


@contextlib.contextmanager
def use_backend(*names: str):
    """Within the block ops run on the first of `names` that can; none: BackendError with the reasons.

    For the whole process, as torch.nn.attention.sdpa_kernel: not to be entered by several threads at once. Recorded
    in forward and reused in backward.
    """
    global _requested
    names = [each for name in names for each in name.split(",")]
    unknown = [name for name in names if name not in (*_BY_NAME, AUTO)]
    if unknown or not names:
        given = ", ".join(names) or "none"
        raise ValueError(f"use_backend: expected names among {', '.join((AUTO, *_BY_NAME))}, got {given}")
    before, _requested = _requested, ",".join(names)
    try:
        yield
    finally:
        _requested = before


def requested() -> str:
    return _requested


def available_backends() -> dict[str, str]:
    """Backend name -> "available", or the reason why it is not."""
    return {name: module.missing() or "available" for name, module in _BY_NAME.items()}


@contextlib.contextmanager
def record():
    """Yields a list that gets (op, problem, backend name) of every op that runs within the block."""
    global _record
    before, _record = _record, []
    try:
        yield _record
    finally:
        _record = before


def is_recording() -> bool:
    return _record is not None


def run(op: str, problem, requested: str, *args):
    """Runs `op` on the backend chosen for it."""
    module = select(op, problem, requested)
    if _record is not None:
        _record.append((op, problem, module.NAME))
    return getattr(module, op)(*args)


def runs_plain(ops: tuple[str, ...], problem, requested: str) -> bool:
    """Whether all of `ops` would run on aten; a caller then runs what the user had: PyTorch's own functions.

    Raises BackendError where one of them can run on none of the requested backends.
    """
    try:
        plain = _all_aten(ops, problem, requested, tables.state())
    except TypeError as error:
        if not is_unhashable(error):
            raise
        return always_plain(requested)
    if plain and _record is not None:
        _record.extend((op, problem, aten.NAME) for op in ops)
    return plain


@lru_cache(maxsize=4096)
def _all_aten(ops, problem, requested, state):
    chosen = [select(op, problem, requested) for op in ops]
    return all(module is aten for module in chosen)


def of_chain(ops: tuple[str, ...], problem, requested: str) -> str:
    """What to request for the ops of a chain: its kernels were measured together, so auto takes all of them or none.

    Where `ops`, those that the chain was measured by, get one kernel backend, that, and aten for what it lacks.
    """
    if requested != AUTO:
        return requested
    names = {select(op, problem, requested).NAME for op in ops}
    return f"{names.pop()},{aten.NAME}" if len(names) == 1 and names != {aten.NAME} else requested


def always_plain(requested: str) -> bool:
    """Whether `requested` means aten whatever the problem: what can be known while sizes are symbolic."""
    return requested == aten.NAME or (requested == AUTO and not any(module.measured() for module in ORDER))


def explain(op: str, problem, requested: str = AUTO) -> tuple[str | None, dict[str, list[str]]]:
    """(the backend that `op` on `problem` would get or None, name -> reasons of those that come first and cannot)."""
    refused = {}
    for name in requested.split(","):
        if name == AUTO:
            # Why a backend of another device refuses is nothing to tell.
            candidates = [module for module in ORDER if module.DEVICE in (None, problem.device)]
        elif name in _BY_NAME:
            candidates = (_BY_NAME[name],)
        else:
            raise ValueError(f"backend: expected names among {', '.join((AUTO, *_BY_NAME))}, got {name!r}")
        for module in candidates:
            lacking = [] if hasattr(module, op) else [f"has no {op}"]
            reasons = lacking + module.unsupported_reasons(op, problem)
            if name == AUTO and not reasons:
                reasons = module.not_automatic_reasons(op, problem)
            if not reasons:
                return module.NAME, refused
            refused[module.NAME] = reasons
    return None, refused


def select(op: str, problem, requested: str):
    """The module that runs `op` on `problem`, for `requested` as recorded by the public function."""
    return _select(op, problem, requested, tables.state())


@lru_cache(maxsize=4096)
def _select(op, problem, requested, state):
    name, refused = explain(op, problem, requested)
    if name is None:
        lines = [f"\n  {backend}: {'; '.join(reasons)}" for backend, reasons in refused.items()]
        raise BackendError(f"{op} on {problem}: no requested backend can run it{''.join(lines)}")
    for backend, reasons in refused.items():
        # Visible by default, but once for each pair of backends; the line for every problem is at level INFO.
        level = logging.INFO if (backend, name) in _told else logging.WARNING
        _told.add((backend, name))
        logger.log(level, "%s on %s: runs on %s, not %s: %s", op, problem, name, backend, "; ".join(reasons))
    return _BY_NAME[name]


def forget() -> None:
    """Drops the choices made so far: the tables they rest on have changed."""
    _select.cache_clear()
    _all_aten.cache_clear()
    recipes.clear()
