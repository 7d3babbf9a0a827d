"""Evaluation by one look-up and one native call, where nothing has to see the ops themselves.

The first call of a signature goes the way of functional.py, with all its checks, and leaves a recipe here.
"""

import torch
from torch.autograd import forward_ad

from . import backends, tables

_PLAIN = {torch.Tensor, torch.nn.Parameter}
_MOST = 4096


def is_watched() -> bool:
    """Whether a compiler, a transform, a mode, autocast, a tracer or a profiler is to see the ops."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._is_any_autocast_enabled()
        or torch._C._is_tracing()
        or torch.autograd._profiler_enabled()
        or forward_ad._current_level >= 0
    )


def are_plain(args) -> bool:
    """Whether all tensors among `args` are of PyTorch's own classes."""
    return all(type(a) in _PLAIN or not isinstance(a, torch.Tensor) for a in args)


def key(tensors, *settings):
    """What a recipe is good for, or None where something watches, transforms or differentiates."""
    if is_watched() or backends.is_recording():
        return None
    differentiates, signatures = torch.is_grad_enabled(), []
    for t in tensors:
        if t is None:
            signatures.append(None)
        elif type(t) not in _PLAIN or (differentiates and t.requires_grad):
            return None
        else:
            signatures.append((t.shape, t.stride(), t.dtype, t.is_cpu))
    return backends.requested(), tables.state(), settings, *signatures


def find(key):
    """The recipe, a function of the tensors, or None."""
    try:
        return backends.recipes.get(key)
    except TypeError:  # lists cannot be looked up
        return None


def remember(key, recipe) -> None:
    """Keeps what find(key) is to return; None: there is no recipe for this signature."""
    if key and recipe:
        if len(backends.recipes) >= _MOST:
            backends.recipes.clear()
        backends.recipes[key] = recipe


def recipe(op, problem, maker, *args):
    """What `maker` of the backend that `op` gets makes of args; None where the backend has no such function."""
    make = getattr(backends.select(op, problem, backends.requested()), maker, None)
    return make and make(problem, *args)
