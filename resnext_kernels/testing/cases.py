"""One function an op, of the op's name: its arguments but `backend`, for a problem and a way to fill tensors.

A new op adds its function here; opcheck, the exact tests, the error gates and the benchmarks then know it.
"""

import torch

from ..problem import ConvProblem, stats_dtype

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


class Fill:
    """Random tensors from a seed: normals, or integers (halves for `scale`) whose sums are exact in any order."""

    def __init__(self, problem: ConvProblem, integers: bool, optional: bool = True, seed: int = 0):
        self.problem, self.integers, self.optional = problem, integers, optional
        self.generator = torch.Generator().manual_seed(seed)

    def _values(self, shape, high, density=1.0):
        if not self.integers:
            return torch.randn(shape, generator=self.generator, dtype=torch.float64)
        values = torch.randint(-high, high + 1, shape, generator=self.generator).double()
        return values * (torch.rand(shape, generator=self.generator) < density) if density < 1 else values

    def image(self, shape, high=2, density=1.0):
        layout = FORMATS[self.problem.layout]
        return self._values(shape, high, density).to(self.problem.device, self.problem.dtype, memory_format=layout)

    def maybe(self, tensor):
        """An optional argument: given or None, one for the whole case."""
        return tensor if self.optional else None

    def x(self):
        p = self.problem
        return self.image((p.n, p.c_in, p.h, p.w))

    def z(self):
        return self.image(self.problem.output_shape)

    def grad(self):
        # Sparse, so that wgrad's long sums of integers stay within float32's.
        return self.image(self.problem.output_shape, 1, 1 / 8)

    def weight(self):
        p = self.problem
        return self._values((p.c_out, p.c_in // p.groups, *p.kernel), 1).to(p.device, p.dtype)

    def bias(self):
        return self._values((self.problem.c_out,), 3).to(self.problem.device, self.problem.dtype)

    def vector(self):
        return self._values((self.problem.c_out,), 3).to(self.problem.device, stats_dtype(self.problem.dtype))

    def scale(self):
        """Positive; a power of two where integers are asked for."""
        if self.integers:
            values = 2.0 ** torch.randint(-1, 2, (self.problem.c_out,), generator=self.generator)
        else:
            values = torch.rand((self.problem.c_out,), generator=self.generator, dtype=torch.float64) + 0.5
        return values.to(self.problem.device, stats_dtype(self.problem.dtype))


CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def _conv(problem):
    return list(problem.stride), list(problem.padding), list(problem.dilation), problem.groups


@case
def grouped_conv2d(problem, fill, activation):
    return fill.x(), fill.weight(), fill.maybe(fill.bias()), *_conv(problem)


@case
def grouped_conv2d_backward(problem, fill, activation):
    return fill.grad(), fill.x(), fill.weight(), *_conv(problem), [True, True, True]


@case
def grouped_conv2d_affine_act(problem, fill, activation):
    return fill.x(), fill.weight(), fill.scale(), fill.vector(), *_conv(problem), activation


@case
def grouped_conv2d_affine_act_backward(problem, fill, activation):
    vectors = (fill.scale(), fill.vector(), fill.scale(), fill.vector(), fill.vector())
    return fill.grad(), fill.z(), *vectors, fill.x(), fill.weight(), *_conv(problem), activation, [True, True]


@case
def grouped_conv2d_stats(problem, fill, activation):
    return fill.x(), fill.weight(), *_conv(problem)


@case
def bn_stats(problem, fill, activation):
    return (fill.z(),)


@case
def affine_act(problem, fill, activation):
    return fill.z(), fill.scale(), fill.vector(), fill.maybe(fill.z()), activation


@case
def bn_act_reduce(problem, fill, activation):
    y = None if activation == "silu" else fill.maybe(fill.z())
    return fill.grad(), fill.z(), fill.scale(), fill.vector(), fill.vector(), fill.scale(), y, activation


@case
def affine_act_backward(problem, fill, activation):
    y = None if activation == "silu" else fill.maybe(fill.z())
    vectors = (fill.scale(), fill.vector(), fill.scale(), fill.vector(), fill.vector())
    return fill.grad(), fill.z(), *vectors, y, activation, [True, True]


def _batch_norm(fill):
    """bn_weight, bn_bias, mean, var: affine with batch statistics, or frozen statistics alone."""
    return (fill.scale(), fill.vector(), None, None) if fill.optional else (None, None, fill.vector(), fill.scale())


@case
def bn_act(problem, fill, activation):
    residual = None if activation == "silu" else fill.maybe(fill.z())
    return fill.z(), *_batch_norm(fill), residual, 1e-5, activation


@case
def grouped_conv2d_bn_act(problem, fill, activation):
    return fill.x(), fill.weight(), *_batch_norm(fill), *_conv(problem), 1e-5, activation


def make(op: str, problem: ConvProblem, *, integers: bool, activation: str = "relu", optional: bool = True,
         seed: int = 0) -> tuple:  # fmt: skip
    """The arguments of `op`, but `backend`, on `problem`; its optional ones given or None."""
    return CASES[op](problem, Fill(problem, integers, optional, seed), activation)


def variants(op: str, problem: ConvProblem, **options) -> list[tuple]:
    """The arguments of `op` with its optional ones and, where it has any, without."""
    given, without = (make(op, problem, optional=optional, **options) for optional in (True, False))
    has_any = any((a is None) != (b is None) for a, b in zip(given, without, strict=True))
    return [given, without] if has_any else [given]
