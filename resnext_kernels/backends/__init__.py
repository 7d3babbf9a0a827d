"""The ordered list of backends and the choice among them."""

import contextlib
import logging
from functools import lru_cache

from . import aten, cpu, reference

logger = logging.getLogger("resnext_kernels")

# In order of preference; `aten` takes everything, `reference` is chosen only by name.
ORDER = (cpu, aten)
_BY_NAME = {module.NAME: module for module in (*ORDER, reference)}

AUTO = "auto"
_requested = AUTO


class BackendError(RuntimeError):
    """A backend asked for by name cannot do the work; the message lists why."""


@contextlib.contextmanager
def use_backend(*names: str):
    """Within the block, process-wide, ops run on the first of `names` that can; none: BackendError with the reasons.

    Recorded in forward and reused in backward.
    """
    global _requested
    unknown = [name for name in names if name not in (*_BY_NAME, AUTO)]
    if unknown or not names:
        raise ValueError(f"use_backend: expected names among {', '.join((AUTO, *_BY_NAME))}, got {names}")
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


@lru_cache(maxsize=4096)
def select(op: str, problem, requested: str):
    """The module that runs `op` on `problem`, for `requested` as recorded by the public function."""
    if requested == AUTO:
        for module in ORDER:
            reasons = module.unsupported_reasons(op, problem) or module.not_automatic_reasons(op, problem)
            if not reasons:
                return module
            logger.info("%s on %s: not %s: %s", op, problem, module.NAME, "; ".join(reasons))
    lines = []
    for name in requested.split(","):
        if name == AUTO:
            return select(op, problem, AUTO)
        if name not in _BY_NAME:
            raise ValueError(f"backend: expected names among {', '.join((AUTO, *_BY_NAME))}, got {name!r}")
        reasons = _BY_NAME[name].unsupported_reasons(op, problem)
        if not reasons:
            return _BY_NAME[name]
        lines.append(f"{name}: {'; '.join(reasons)}")
    raise BackendError(f"{op} on {problem}: no requested backend can run it\n  " + "\n  ".join(lines))
