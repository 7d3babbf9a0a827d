"""y = act(scale * conv2d(x, weight) + shift): evaluation with BatchNorm and activation in the epilogue."""

import torch

from .._ops import define
from ..backends import select
from ..problem import ConvProblem, check_activation, check_conv, check_vector
from .grouped_conv2d import CONV, empty_output


def _check_affine(x, weight, scale, shift, activation):
    check_vector("scale", scale, weight.shape[0], torch.float32 if x.dtype != torch.float64 else x.dtype, x)
    check_vector("shift", shift, weight.shape[0], scale.dtype, x)
    check_activation(activation)


def _impl(x, weight, scale, shift, stride, padding, dilation, groups, activation, backend):
    problem = ConvProblem.from_tensors(x, weight, stride, padding, dilation, groups)
    _check_affine(x, weight, scale, shift, activation)
    return select("grouped_conv2d_affine_act", problem, backend).grouped_conv2d_affine_act(
        x, weight, scale, shift, stride, padding, dilation, groups, activation
    )


def _fake(x, weight, scale, shift, stride, padding, dilation, groups, activation, backend):
    check_conv(x, weight, stride, padding, dilation, groups)
    _check_affine(x, weight, scale, shift, activation)
    return empty_output(x, weight, stride, padding, dilation)


grouped_conv2d_affine_act = define(
    "grouped_conv2d_affine_act",
    f"(Tensor input, Tensor weight, Tensor scale, Tensor shift, {CONV}, str activation, str backend) -> Tensor",
    _impl,
    _fake,
)
