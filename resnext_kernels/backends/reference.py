"""The specification: every op in float64, rounded once to its storage dtype. Chosen only by name."""

import torch
import torch.nn.functional as F

from ..problem import memory_format, output_size

NAME = "reference"
_ACTIVATE = {"identity": lambda y: y, "relu": F.relu, "silu": F.silu}


def missing():
    return None


def unsupported_reasons(op, problem) -> list[str]:
    return [] if op in globals() else [f"has no {op}"]


def _columns(x, weight, stride, padding, dilation, groups):
    """Per image and group, the patch under each output position: (N, groups, C_in/groups * kH * kW, OH * OW)."""
    columns = F.unfold(x.double(), weight.shape[2:], dilation, padding, stride)
    return columns.view(x.shape[0], groups, weight[0].numel(), columns.shape[-1])


def _conv(x, weight, stride, padding, dilation, groups):
    columns = _columns(x, weight, stride, padding, dilation, groups)
    z = torch.einsum("gok,ngkl->ngol", weight.double().reshape(groups, -1, columns.shape[2]), columns)
    return z.reshape(x.shape[0], weight.shape[0], *output_size(x.shape, weight.shape, stride, padding, dilation))


def grouped_conv2d(x, weight, bias, stride, padding, dilation, groups):
    """z = weight times the patches of x (zero outside the image), group by group, + bias."""
    z = _conv(x, weight, stride, padding, dilation, groups)
    if bias is not None:
        z = z + bias.double().view(1, -1, 1, 1)
    return z.to(x.dtype).contiguous(memory_format=memory_format(x))


def grouped_conv2d_backward(grad_output, x, weight, stride, padding, dilation, groups, output_mask):
    """dx = weight^T times grad_output, added back onto the patches; dw = grad_output times the patches; db = its sum.

    An empty tensor stands where `output_mask` does not ask.
    """
    columns = _columns(x, weight, stride, padding, dilation, groups)
    grad = grad_output.double().reshape(x.shape[0], groups, -1, columns.shape[-1])
    dx, dw, db = (x.new_empty(0) for _ in range(3))
    if output_mask[0]:
        dcolumns = torch.einsum("gok,ngol->ngkl", weight.double().reshape(groups, -1, columns.shape[2]), grad)
        dx = F.fold(dcolumns.flatten(1, 2), x.shape[2:], weight.shape[2:], dilation, padding, stride)
        dx = dx.to(x.dtype).contiguous(memory_format=memory_format(x))
    if output_mask[1]:
        dw = torch.einsum("ngol,ngkl->gok", grad, columns).reshape(weight.shape).to(x.dtype)
    if output_mask[2]:
        db = grad_output.double().sum((0, 2, 3)).to(x.dtype)
    return dx, dw, db


def grouped_conv2d_affine_act(x, weight, scale, shift, stride, padding, dilation, groups, activation):
    """y = act(scale * conv(x, weight) + shift)."""
    z = _conv(x, weight, stride, padding, dilation, groups)
    y = z * scale.double().view(1, -1, 1, 1) + shift.double().view(1, -1, 1, 1)
    return _ACTIVATE[activation](y).to(x.dtype).contiguous(memory_format=memory_format(x))
