"""z = conv2d(x, weight) with the batch statistics of the stored z: training forward, first half."""

from .._ops import define
from ..problem import ConvProblem
from .bn_stats import empty_stats
from .grouped_conv2d import CONV, empty_output


def _fake(x, weight, stride, padding, dilation, groups):
    z = empty_output(x, weight, stride, padding, dilation)
    return z, *empty_stats(z, 2)


grouped_conv2d_stats = define(
    "grouped_conv2d_stats",
    f"Tensor input, Tensor weight, {CONV}",
    "(Tensor z, Tensor mean, Tensor M2)",
    problem=ConvProblem.from_tensors,
    fake=_fake,
    flops=lambda problem, *_: problem.flops,
)
