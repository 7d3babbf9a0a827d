"""Plain PyTorch: the automatic fallback, built from the functions that the user had."""

import contextlib

import torch
import torch.nn.functional as F

from ..problem import memory_format, stats_dtype

NAME, DEVICE = "aten", None  # of any device
# On fresh tensors only: relu works in place, as it does in the models that this must not be slower than.
ACTIVATE = {"identity": lambda y: y, "relu": torch.relu_, "silu": F.silu}


def missing():
    return None


def measured() -> bool:
    return False  # it is what others are measured against


def unsupported_reasons(op, problem) -> list[str]:
    return []


def not_automatic_reasons(op, problem) -> list[str]:
    return []


def _no_autocast(device_type):
    active = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if active else contextlib.nullcontext()


def _channel(vector):
    return vector.view(1, -1, 1, 1)


def grouped_conv2d(x, weight, bias, stride, padding, dilation, groups):
    layout = memory_format(x)
    weight = weight.contiguous(memory_format=layout)
    # The op's dtype is its inputs': autocast was applied, or not, before it.
    with _no_autocast(x.device.type):
        y = torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return y.contiguous(memory_format=layout)


def grouped_conv2d_backward(grad_output, x, weight, stride, padding, dilation, groups, output_mask):
    layout = memory_format(x)
    grads = torch.ops.aten.convolution_backward(
        grad_output.contiguous(memory_format=layout), x, weight, [weight.shape[0]], stride, padding, dilation,
        False, [0, 0], groups, output_mask,
    )  # fmt: skip
    dx, dw, db = (x.new_empty(0) if grad is None else grad for grad in grads)
    if output_mask[0]:
        dx = dx.contiguous(memory_format=layout)
    if output_mask[1]:
        dw = dw.contiguous(memory_format=memory_format(weight))
    return dx, dw, db


def grouped_conv2d_affine_act(x, weight, scale, shift, stride, padding, dilation, groups, activation):
    z = grouped_conv2d(x, weight, None, stride, padding, dilation, groups)
    return affine_act(z, scale, shift, None, activation)


def grouped_conv2d_affine_act_backward(
    grad_output, z, scale, shift, a, b, c, x, weight, stride, padding, dilation, groups, activation, output_mask
):
    dz, _ = affine_act_backward(grad_output, z, scale, shift, a, b, c, None, activation, (True, False))
    return grouped_conv2d_backward(dz, x, weight, stride, padding, dilation, groups, (*output_mask, False))[:2]


def grouped_conv2d_stats(x, weight, stride, padding, dilation, groups):
    z = grouped_conv2d(x, weight, None, stride, padding, dilation, groups)
    return z, *bn_stats(z)


def bn_stats(z):
    if z.numel() == 0:
        return tuple(z.new_zeros(z.shape[1], dtype=stats_dtype(z.dtype)) for _ in range(2))
    var, mean = torch.var_mean(z.to(stats_dtype(z.dtype)), (0, 2, 3), correction=0)
    return mean, var * (z.numel() // z.shape[1])


def affine_act(z, scale, shift, residual, activation):
    pre = torch.addcmul(_channel(shift), z.to(scale.dtype), _channel(scale))
    if residual is not None:
        pre = pre + residual
    return ACTIVATE[activation](pre).to(z.dtype).contiguous(memory_format=memory_format(z))


def _masked_grad(grad_output, z, scale, shift, y, activation):
    """g = grad_output * act'(pre)."""
    grad = grad_output.to(scale.dtype)
    if activation == "identity":
        return grad
    pre = torch.addcmul(_channel(shift), z.to(scale.dtype), _channel(scale)) if y is None else y
    if activation == "relu":
        return torch.where(pre <= 0, 0, grad)
    return torch.ops.aten.silu_backward(grad, pre)


def bn_act_reduce(grad_output, z, scale, shift, mean, rstd, y, activation):
    g = _masked_grad(grad_output, z, scale, shift, y, activation)
    xhat = (z.to(scale.dtype) - _channel(mean)) * _channel(rstd)
    return g.sum((0, 2, 3)), (g * xhat).sum((0, 2, 3))


def affine_act_backward(grad_output, z, scale, shift, a, b, c, y, activation, output_mask):
    layout = memory_format(z)
    g = _masked_grad(grad_output, z, scale, shift, y, activation)
    dz, dresidual = z.new_empty(0), z.new_empty(0)
    if output_mask[0]:
        dz = _channel(a) * g + (_channel(b) * z.to(scale.dtype) + _channel(c))
        dz = dz.to(z.dtype).contiguous(memory_format=layout)
    if output_mask[1]:
        dresidual = g.to(z.dtype, memory_format=layout, copy=True)
    return dz, dresidual
