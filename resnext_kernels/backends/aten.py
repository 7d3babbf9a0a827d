"""Plain PyTorch: the automatic fallback, exactly what the user had."""

import torch
import torch.nn.functional as F

from ..problem import memory_format

NAME = "aten"
_ACTIVATE = {"identity": lambda y: y, "relu": F.relu, "silu": F.silu}


def missing():
    return None


def unsupported_reasons(op, problem) -> list[str]:
    return [] if op in globals() else [f"has no {op}"]


def not_automatic_reasons(op, problem) -> list[str]:
    return []


def grouped_conv2d(x, weight, bias, stride, padding, dilation, groups):
    layout = memory_format(x)
    y = torch.conv2d(x, weight.contiguous(memory_format=layout), bias, stride, padding, dilation, groups)
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
    return dx, dw.contiguous(), db


def grouped_conv2d_affine_act(x, weight, scale, shift, stride, padding, dilation, groups, activation):
    z = grouped_conv2d(x, weight, None, stride, padding, dilation, groups)
    channel = (1, -1, 1, 1)
    y = torch.addcmul(shift.view(channel), z.to(scale.dtype), scale.view(channel))
    return _ACTIVATE[activation](y).to(x.dtype).contiguous(memory_format=memory_format(x))
