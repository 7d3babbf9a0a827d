"""y = act(scale * z + shift [+ residual]): training forward, second half; and dz = a * g + b * z + c."""

import torch

from .._ops import define
from ..checks import check_activation, check_like, check_vectors
from ..problem import ConvProblem, memory_format, stats_dtype


def empty_like_image(z):
    return torch.empty_like(z, memory_format=memory_format(z))


def _problem(z, scale, shift, residual, activation):
    problem = ConvProblem.from_image(z)
    check_vectors(z, problem.c_out, stats_dtype(z.dtype), scale=scale, shift=shift)
    if residual is not None:
        check_like("residual", residual, z.shape, z)
    check_activation(activation)
    return problem


def _fake(z, scale, shift, residual, activation):
    return empty_like_image(z)


def check_saved_output(y, z, activation):
    """In the residual form y stands for the pre-activation, which only relu and identity allow."""
    check_activation(activation)
    if y is None:
        return
    check_like("y", y, z.shape, z)
    if activation == "silu":
        raise ValueError(
            "activation: expected identity or relu where y is given, got silu, whose slope y does not tell"
        )


def _backward_problem(grad_output, z, scale, shift, a, b, c, y, activation, output_mask):
    problem = ConvProblem.from_image(z)
    check_like("grad_output", grad_output, z.shape, z)
    check_vectors(z, problem.c_out, stats_dtype(z.dtype), scale=scale, shift=shift, a=a, b=b, c=c)
    check_saved_output(y, z, activation)
    return problem


def _backward_fake(grad_output, z, scale, shift, a, b, c, y, activation, output_mask):
    return tuple(empty_like_image(z) if asked else z.new_empty(0) for asked in output_mask)


affine_act = define(
    "affine_act",
    "Tensor z, Tensor scale, Tensor shift, Tensor? residual, str activation",
    "Tensor",
    problem=_problem,
    fake=_fake,
)
affine_act_backward = define(
    "affine_act_backward",
    "Tensor grad_output, Tensor z, Tensor scale, Tensor shift, Tensor a, Tensor b, Tensor c, Tensor? y,"
    " str activation, bool[2] output_mask",
    "(Tensor dz, Tensor dresidual)",
    problem=_backward_problem,
    fake=_backward_fake,
)
