"""Checks and descriptions that are the same for the same signature are done once."""

from functools import lru_cache

import torch


def memoised(function, *signature):
    """function(*signature), looked up where it can be: not while compiling, nor for sizes that are symbolic."""
    if torch.compiler.is_compiling():
        return function(*signature)
    try:
        return _cache(function, *signature)
    except TypeError as error:
        if not is_unhashable(error):
            raise
    return function(*signature)


@lru_cache(maxsize=8192, typed=True)
def _cache(function, *signature):
    return function(*signature)


def is_unhashable(error: TypeError) -> bool:
    """Whether a look-up failed for what it was given: symbolic sizes, seen while tracing, or lists."""
    return "unhashable" in str(error)
