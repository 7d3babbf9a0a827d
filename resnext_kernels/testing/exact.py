"""Exact tests: integer inputs whose every partial sum is exact, so that any order of summation gives the same bits."""

import torch

from . import cases
from .verify import call, wrong_form

# The statistics divide by a count and silu is transcendental: those are held by the error gates.
OPS = ("grouped_conv2d", "grouped_conv2d_backward", "grouped_conv2d_affine_act", "grouped_conv2d_affine_act_backward",
       "affine_act", "affine_act_backward", "bn_act_reduce")  # fmt: skip


def upcast(args: tuple) -> tuple:
    return tuple(a.double() if isinstance(a, torch.Tensor) else a for a in args)


def mismatch(op: str, problem, backend: str, *, activation: str = "relu", oracle: str = "reference") -> str | None:
    """None if `op` is bit-equal to the once-rounded float64 results of `oracle`, else the first difference."""
    for args in cases.variants(op, problem, integers=True, activation=activation):
        found = _difference(op, args, call(op, args, backend), call(op, upcast(args), oracle))
        if found:
            return f"{op} on {problem}: {found}"
    return None


def _difference(op, args, results, exact_results) -> str | None:
    found = wrong_form(op, args, results)
    if found:
        return found
    for i, (got, exact) in enumerate(zip(results, exact_results, strict=True)):
        different = (got != exact.to(got.dtype)).nonzero()
        if len(different):
            place = tuple(different[0].tolist())
            values = f"expected {exact[place]}, got {got[place]}; {len(different)} of {got.numel()} differ"
            return f"result {i}{list(place)}: {values}"
    return None
