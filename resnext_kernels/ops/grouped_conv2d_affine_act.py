"""y = act(scale * conv2d(x, weight) + shift), evaluation in one pass, and the backward through a stored z."""

from .._ops import define
from ..checks import check_activation, check_like, check_vectors
from ..problem import ConvProblem, stats_dtype
from .grouped_conv2d import CONV, empty_grads, empty_output


def _problem(x, weight, scale, shift, stride, padding, dilation, groups, activation):
    problem = ConvProblem.from_tensors(x, weight, stride, padding, dilation, groups)
    check_vectors(x, problem.c_out, stats_dtype(x.dtype), scale=scale, shift=shift)
    check_activation(activation)
    return problem


def _fake(x, weight, scale, shift, stride, padding, dilation, groups, activation):
    return empty_output(x, weight, stride, padding, dilation)


def _backward_problem(
    grad_output, z, scale, shift, a, b, c, x, weight, stride, padding, dilation, groups, activation, output_mask
):
    problem = ConvProblem.from_tensors(x, weight, stride, padding, dilation, groups)
    check_like("z", z, problem.output_shape, x)
    check_like("grad_output", grad_output, problem.output_shape, x)
    check_vectors(x, problem.c_out, stats_dtype(x.dtype), scale=scale, shift=shift, a=a, b=b, c=c)
    check_activation(activation)
    return problem


def _backward_fake(
    grad_output, z, scale, shift, a, b, c, x, weight, stride, padding, dilation, groups, activation, output_mask
):
    return empty_grads(x, weight, output_mask)


grouped_conv2d_affine_act = define(
    "grouped_conv2d_affine_act",
    f"Tensor input, Tensor weight, Tensor scale, Tensor shift, {CONV}, str activation",
    "Tensor",
    problem=_problem,
    fake=_fake,
    flops=lambda problem, *_: problem.flops,
)
grouped_conv2d_affine_act_backward = define(
    "grouped_conv2d_affine_act_backward",
    "Tensor grad_output, Tensor z, Tensor scale, Tensor shift, Tensor a, Tensor b, Tensor c, Tensor input,"
    f" Tensor weight, {CONV}, str activation, bool[2] output_mask",
    "(Tensor dx, Tensor dw)",
    problem=_backward_problem,
    fake=_backward_fake,
    flops=lambda problem, *inputs: problem.flops * sum(inputs[-1]),
)
