"""Runs one op on one problem and holds its results against the gates."""

from dataclasses import dataclass

import torch

from .. import ops  # noqa: F401  (registers the ops)
from . import cases, gates


@dataclass
class Verdict:
    """ratio: the largest error over what its gate allows, at most 1 to pass; max_error: absolute, over all results."""

    ratio: float
    max_error: float
    where: str

    @property
    def passed(self) -> bool:
        return self.ratio <= 1


def call(op: str, args: tuple, backend: str) -> tuple:
    """The results of the registered op, always as a tuple."""
    results = getattr(torch.ops.resnext_kernels, op)(*args, backend)
    return (results,) if isinstance(results, torch.Tensor) else tuple(results)


def _meta(tensor):
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def wrong_form(op: str, args: tuple, results: tuple) -> str | None:
    """How the results differ in shape, dtype or strides from what the op promises, its fake; None if they do not."""
    meta = tuple(_meta(a) if isinstance(a, torch.Tensor) else a for a in args)
    for i, (got, promised) in enumerate(zip(results, call(op, meta, "reference"), strict=True)):
        for what in ("shape", "dtype"):
            if getattr(got, what) != getattr(promised, what):
                return f"result {i}: expected {what} {getattr(promised, what)}, got {getattr(got, what)}"
        # The stride of a dimension of size 1 means nothing.
        if got.numel() and any(size > 1 and a != b for size, a, b in zip(got.shape, got.stride(), promised.stride(),
                                                                         strict=True)):  # fmt: skip
            return f"result {i}: expected strides {promised.stride()}, got {got.stride()}"
    return None


def judge(op: str, args: tuple, results: tuple) -> Verdict:
    form = wrong_form(op, args, results)
    if form:
        return Verdict(float("inf"), float("inf"), form)
    worst = Verdict(0.0, 0.0, "exact")
    for result, gate in zip(results, getattr(gates, op)(results, *args), strict=True):
        if gate is None or result.numel() == 0:
            continue  # a gradient that was not asked for, or of an empty batch
        error = (result.double() - gate.expected).abs()
        # Equal infinities and a shared NaN are no error; a NaN in one alone is an infinite one.
        same = (result.double() == gate.expected) | (result.isnan() & gate.expected.isnan())
        error = torch.where(same, 0.0, error.nan_to_num(nan=torch.inf))
        ratio = torch.where(error == 0, 0.0, error / gate.allowed)
        worst.max_error = max(worst.max_error, float(error.max()))
        if float(ratio.max()) > worst.ratio:
            index = int(ratio.argmax())
            place = tuple(int(i) for i in torch.unravel_index(torch.tensor(index), ratio.shape))
            got, expected = result.reshape(-1)[index].item(), gate.expected.reshape(-1)[index].item()
            worst.ratio = float(ratio.max())
            worst.where = f"{gate.name}{list(place)}: expected {expected:.9g}, got {got:.9g}"
    return worst


def verify(op: str, problem, backend: str, *, activation: str = "relu", seed: int = 0) -> Verdict:
    """`op` on normal inputs of `problem`'s size through `backend` (names as in use_backend, joined by commas)."""
    args = cases.variants(op, problem, integers=False, activation=activation, seed=seed)
    return max((judge(op, each, call(op, each, backend)) for each in args), key=lambda verdict: verdict.ratio)
