"""z = conv2d(x, weight) + bias, and its backward (dgrad, wgrad, bias gradient)."""

import torch

from .._ops import define
from ..backends import select
from ..problem import ConvProblem, check_conv, check_vector, memory_format, output_size

CONV = "int[2] stride, int[2] padding, int[2] dilation, int groups"


def empty_output(x, weight, stride, padding, dilation):
    size = (x.shape[0], weight.shape[0], *output_size(x.shape, weight.shape, stride, padding, dilation))
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def _check_bias(bias, x, weight):
    if bias is not None:
        check_vector("bias", bias, weight.shape[0], x.dtype, x)


def _impl(x, weight, bias, stride, padding, dilation, groups, backend):
    problem = ConvProblem.from_tensors(x, weight, stride, padding, dilation, groups)
    _check_bias(bias, x, weight)
    return select("grouped_conv2d", problem, backend).grouped_conv2d(x, weight, bias, stride, padding, dilation, groups)


def _fake(x, weight, bias, stride, padding, dilation, groups, backend):
    check_conv(x, weight, stride, padding, dilation, groups)
    _check_bias(bias, x, weight)
    return empty_output(x, weight, stride, padding, dilation)


def check_grad_output(name, grad, x, weight, stride, padding, dilation):
    expected = (x.shape[0], weight.shape[0], *output_size(x.shape, weight.shape, stride, padding, dilation))
    if tuple(grad.shape) != expected:
        raise ValueError(f"{name}: expected shape (N, C_out, OH, OW) = {expected}, got {tuple(grad.shape)}")
    if grad.dtype != x.dtype:
        raise TypeError(f"{name}: expected dtype {x.dtype} as the input's, got {grad.dtype}")
    if grad.device != x.device:
        raise ValueError(f"{name}: expected device {x.device} as the input's, got {grad.device}")


def _backward_impl(grad_output, x, weight, stride, padding, dilation, groups, output_mask, backend):
    problem = ConvProblem.from_tensors(x, weight, stride, padding, dilation, groups)
    check_grad_output("grad_output", grad_output, x, weight, stride, padding, dilation)
    return select("grouped_conv2d_backward", problem, backend).grouped_conv2d_backward(
        grad_output, x, weight, stride, padding, dilation, groups, output_mask
    )


def _backward_fake(grad_output, x, weight, stride, padding, dilation, groups, output_mask, backend):
    check_conv(x, weight, stride, padding, dilation, groups)
    check_grad_output("grad_output", grad_output, x, weight, stride, padding, dilation)
    return (
        torch.empty_like(x, memory_format=memory_format(x)) if output_mask[0] else x.new_empty(0),
        torch.empty_like(weight, memory_format=torch.contiguous_format) if output_mask[1] else x.new_empty(0),
        x.new_empty(weight.shape[0]) if output_mask[2] else x.new_empty(0),
    )


def _setup_backward(ctx, inputs, output):
    grad_output, x, weight, *ctx.conv, _, ctx.backend = inputs
    ctx.save_for_backward(grad_output, x, weight)


def _double_backward(ctx, ddx, ddw, ddb):
    """The backward is bilinear in (grad_output, weight) and (grad_output, x): its own gradients are convolutions."""
    grad_output, x, weight = ctx.saved_tensors
    dgrad_output = dx = dw = None
    if ddx.numel():
        dgrad_output = grouped_conv2d(ddx, weight, None, *ctx.conv, ctx.backend)
        dw = grouped_conv2d_backward(grad_output, ddx, weight, *ctx.conv, [False, True, False], ctx.backend)[1]
    if ddw.numel():
        from_weight = grouped_conv2d(x, ddw, None, *ctx.conv, ctx.backend)
        dgrad_output = from_weight if dgrad_output is None else dgrad_output + from_weight
        dx = grouped_conv2d_backward(grad_output, x, ddw, *ctx.conv, [True, False, False], ctx.backend)[0]
    if ddb.numel():
        from_bias = ddb.view(1, -1, 1, 1).expand_as(grad_output)
        dgrad_output = from_bias if dgrad_output is None else dgrad_output + from_bias
    return dgrad_output, dx, dw, None, None, None, None, None, None


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
    f"(Tensor grad_output, Tensor input, Tensor weight, {CONV}, bool[3] output_mask, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    _backward_impl,
    _backward_fake,
    _setup_backward,
    _double_backward,
)
grouped_conv2d = define(
    "grouped_conv2d",
    f"(Tensor input, Tensor weight, Tensor? bias, {CONV}, str backend) -> Tensor",
    _impl,
    _fake,
    _setup,
    _backward,
)
