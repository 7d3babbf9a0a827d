"""z = conv2d(x, weight) + bias, and its backward (dgrad, wgrad, bias gradient)."""

import torch

from .._ops import define
from ..checks import check_like, check_vectors
from ..problem import ConvProblem, memory_format, output_size

CONV = "int[2] stride, int[2] padding, int[2] dilation, int groups"


def empty_output(x, weight, stride, padding, dilation):
    size = output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    shape = (x.shape[0], weight.shape[0], *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def empty_grads(x, weight, output_mask):
    """dx and dw, empty where not asked."""
    dx = torch.empty_like(x, memory_format=memory_format(x)) if output_mask[0] else x.new_empty(0)
    dw = torch.empty_like(weight, memory_format=memory_format(weight)) if output_mask[1] else x.new_empty(0)
    return dx, dw


def _problem(x, weight, bias, stride, padding, dilation, groups):
    problem = ConvProblem.from_tensors(x, weight, stride, padding, dilation, groups)
    check_vectors(x, problem.c_out, x.dtype, bias=bias)
    return problem


def _fake(x, weight, bias, stride, padding, dilation, groups):
    return empty_output(x, weight, stride, padding, dilation)


def _backward_problem(grad_output, x, weight, stride, padding, dilation, groups, output_mask):
    problem = ConvProblem.from_tensors(x, weight, stride, padding, dilation, groups)
    check_like("grad_output", grad_output, problem.output_shape, x)
    return problem


def _backward_fake(grad_output, x, weight, stride, padding, dilation, groups, output_mask):
    return *empty_grads(x, weight, output_mask), x.new_empty(weight.shape[0] if output_mask[2] else 0)


def _setup_backward(ctx, inputs, output):
    grad_output, x, weight, *ctx.conv, _, ctx.backend = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad_output, x, weight)


def _double_backward(ctx, ddx, ddw, ddb):
    """The backward is bilinear in (grad_output, weight) and (grad_output, x): its own gradients are convolutions."""
    grad_output, x, weight = ctx.saved_tensors
    needs_grad, needs_x, needs_weight = ctx.needs_input_grad[:3]
    dgrad, dx, dw = [], None, None
    if ddx is not None:
        if needs_grad:
            dgrad.append(grouped_conv2d(ddx, weight, None, *ctx.conv, ctx.backend))
        if needs_weight:
            dw = grouped_conv2d_backward(grad_output, ddx, weight, *ctx.conv, [False, True, False], ctx.backend)[1]
    if ddw is not None:
        if needs_grad:
            dgrad.append(grouped_conv2d(x, ddw, None, *ctx.conv, ctx.backend))
        if needs_x:
            dx = grouped_conv2d_backward(grad_output, x, ddw, *ctx.conv, [True, False, False], ctx.backend)[0]
    if ddb is not None and needs_grad:
        dgrad.append(ddb.view(1, -1, 1, 1).expand_as(grad_output))
    return sum(dgrad[1:], dgrad[0]) if dgrad else None, dx, dw, *[None] * 6


def _setup(ctx, inputs, output):
    x, weight, _, *ctx.conv, ctx.backend = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad):
    x, weight = ctx.saved_tensors
    mask = list(ctx.needs_input_grad[:3])
    grads = grouped_conv2d_backward(grad, x, weight, *ctx.conv, mask, ctx.backend)
    return *(g if asked else None for g, asked in zip(grads, mask, strict=True)), None, None, None, None, None


grouped_conv2d_backward = define(
    "grouped_conv2d_backward",
    f"Tensor grad_output, Tensor input, Tensor weight, {CONV}, bool[3] output_mask",
    "(Tensor dx, Tensor dw, Tensor db)",
    problem=_backward_problem,
    fake=_backward_fake,
    flops=lambda problem, *inputs: problem.flops * sum(inputs[-1][:2]),
    setup_context=_setup_backward,
    backward=_double_backward,
)
grouped_conv2d = define(
    "grouped_conv2d",
    f"Tensor input, Tensor weight, Tensor? bias, {CONV}",
    "Tensor",
    problem=_problem,
    fake=_fake,
    flops=lambda problem, *_: problem.flops,
    setup_context=_setup,
    backward=_backward,
)
