"""Exact tests: integer inputs whose every partial sum is exact, so that any order of summation gives the same bits."""

import torch

from . import cases
from .verify import call

# The statistics divide by a count and silu is transcendental: those are held by the error gates.
OPS = ("grouped_conv2d", "grouped_conv2d_backward", "grouped_conv2d_affine_act", "grouped_conv2d_affine_act_backward",
       "affine_act", "affine_act_backward", "bn_act_reduce")  # fmt: skip


def upcast(args: tuple) -> tuple:
    return tuple(a.double() if isinstance(a, torch.Tensor) else a for a in args)


def mismatch(op: str, problem, backend: str, *, activation: str = "relu", oracle: str = "reference") -> str | None:
    """None if `op` is bit-equal to the once-rounded float64 results of `oracle`, else the first difference."""
    args = cases.make(op, problem, integers=True, activation=activation)
    for i, (got, exact) in enumerate(zip(call(op, args, backend), call(op, upcast(args), oracle), strict=True)):
        different = (got != exact.to(got.dtype)).nonzero()
        if len(different):
            place = tuple(different[0].tolist())
            share = f"{len(different)} of {got.numel()}"
            return (
                f"{op} on {problem}, result {i}{list(place)}: {exact[place]} expected, {got[place]} got; {share} differ"
            )
    return None
