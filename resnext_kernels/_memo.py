"""Checks and descriptions that are the same for the same signature are done once."""

import contextlib
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


def make_cache():
    return lru_cache(maxsize=8192, typed=True)(lambda function, *signature: function(*signature))


_cache = make_cache()


@contextlib.contextmanager
def using(cache):
    """Within the block `memoised` looks up in a cache of make_cache, and in no other."""
    global _cache
    before, _cache = _cache, cache
    try:
        yield
    finally:
        _cache = before


def is_unhashable(error: TypeError) -> bool:
    """Whether a look-up failed for what it was given: symbolic sizes, seen while tracing, or lists."""
    return "unhashable" in str(error)
