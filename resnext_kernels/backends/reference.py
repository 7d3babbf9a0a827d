"""The specification: every op in float64, rounded once to its storage dtype. Chosen only by name.

(scale, shift, mean, rstd, a, b, c) are vectors of one value a channel, pre = scale * z + shift [+ residual].
"""

import torch
import torch.nn.functional as F

from ..problem import memory_format, output_size, stats_dtype

NAME, DEVICE = "reference", None  # of any device
_ACTIVATE = {"identity": lambda pre: pre, "relu": F.relu, "silu": F.silu}


def missing():
    return None


def measured() -> bool:
    return False


def unsupported_reasons(op, problem) -> list[str]:
    return []


def _channel(vector):
    return vector.double().view(1, -1, 1, 1)


def _image(values, like):
    return values.to(like.dtype, memory_format=memory_format(like), copy=True)


def _columns(x, weight, stride, padding, dilation, groups):
    """The patches of x: (N, groups, C_in/groups * kH * kW, OH * OW)."""
    columns = F.unfold(x.double(), weight.shape[2:], dilation, padding, stride)
    return columns.reshape(x.shape[0], groups, weight[0].numel(), columns.shape[-1])


def _conv(x, weight, stride, padding, dilation, groups):
    columns = _columns(x, weight, stride, padding, dilation, groups)
    z = torch.einsum("gok,ngkl->ngol", weight.double().reshape(groups, -1, columns.shape[2]), columns)
    size = output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    return z.reshape(x.shape[0], weight.shape[0], *size)


def _conv_backward(grad, x, weight, stride, padding, dilation, groups, output_mask):
    """dx = weight^T times grad, added back onto the patches; dw = grad times the patches."""
    columns = _columns(x, weight, stride, padding, dilation, groups)
    grad = grad.reshape(x.shape[0], groups, weight.shape[0] // groups, columns.shape[-1])
    dx, dw = x.new_empty(0), x.new_empty(0)
    if output_mask[0]:
        dcolumns = torch.einsum("gok,ngol->ngkl", weight.double().reshape(groups, -1, columns.shape[2]), grad)
        dx = _image(F.fold(dcolumns.flatten(1, 2), x.shape[2:], weight.shape[2:], dilation, padding, stride), x)
    if output_mask[1]:
        dw = _image(torch.einsum("ngol,ngkl->gok", grad, columns).reshape(weight.shape), weight)
    return dx, dw


def grouped_conv2d(x, weight, bias, stride, padding, dilation, groups):
    """z = weight times the patches of x (zero outside the image), group by group, + bias."""
    z = _conv(x, weight, stride, padding, dilation, groups)
    return _image(z if bias is None else z + _channel(bias), x)


def grouped_conv2d_backward(grad_output, x, weight, stride, padding, dilation, groups, output_mask):
    """(dx, dw, db) of sum(grad_output * z); an empty tensor stands where `output_mask` does not ask."""
    grad = grad_output.double()
    db = grad.sum((0, 2, 3)).to(x.dtype) if output_mask[2] else x.new_empty(0)
    return *_conv_backward(grad, x, weight, stride, padding, dilation, groups, output_mask), db


def grouped_conv2d_affine_act(x, weight, scale, shift, stride, padding, dilation, groups, activation):
    """y = act(scale * conv(x, weight) + shift), the convolution not rounded before."""
    z = _conv(x, weight, stride, padding, dilation, groups)
    return _image(_ACTIVATE[activation](_channel(scale) * z + _channel(shift)), x)


def grouped_conv2d_affine_act_backward(
    grad_output, z, scale, shift, a, b, c, x, weight, stride, padding, dilation, groups, activation, output_mask
):
    """(dx, dw) of the convolution whose stored output is z, for dz as in affine_act_backward, not rounded before."""
    dz = _dz(_masked_grad(grad_output, z, scale, shift, None, activation), z, a, b, c)
    return _conv_backward(dz, x, weight, stride, padding, dilation, groups, output_mask)


def grouped_conv2d_stats(x, weight, stride, padding, dilation, groups):
    """z = conv(x, weight), and (mean, M2) of the z that is stored."""
    z = grouped_conv2d(x, weight, None, stride, padding, dilation, groups)
    return z, *bn_stats(z)


def bn_stats(z):
    """mean and M2 = sum (z - mean)^2 of each channel over N, H and W; zeros where there are no values."""
    count = max(z.numel() // z.shape[1], 1)
    mean = z.double().sum((0, 2, 3)) / count
    m2 = (z.double() - _channel(mean)).square().sum((0, 2, 3))
    return mean.to(stats_dtype(z.dtype)), m2.to(stats_dtype(z.dtype))


def affine_act(z, scale, shift, residual, activation):
    """y = act(pre)."""
    pre = _channel(scale) * z.double() + _channel(shift)
    return _image(_ACTIVATE[activation](pre if residual is None else pre + residual.double()), z)


def _masked_grad(grad_output, z, scale, shift, y, activation):
    """g = grad_output * act'(pre); y, whose sign is that of pre, stands for pre where a residual was added."""
    grad = grad_output.double()
    if activation == "identity":
        return grad
    pre = _channel(scale) * z.double() + _channel(shift) if y is None else y.double()
    if activation == "relu":
        return torch.where(pre <= 0, 0, grad)
    sigmoid = torch.sigmoid(pre)
    return grad * sigmoid * (1 + pre * (1 - sigmoid))


def _dz(g, z, a, b, c):
    return _channel(a) * g + _channel(b) * z.double() + _channel(c)


def bn_act_reduce(grad_output, z, scale, shift, mean, rstd, y, activation):
    """(sum g, sum g * xhat) of each channel, xhat = (z - mean) * rstd: the gradients of bn_bias and bn_weight."""
    g = _masked_grad(grad_output, z, scale, shift, y, activation)
    xhat = (z.double() - _channel(mean)) * _channel(rstd)
    return tuple(v.sum((0, 2, 3)).to(stats_dtype(z.dtype)) for v in (g, g * xhat))


def affine_act_backward(grad_output, z, scale, shift, a, b, c, y, activation, output_mask):
    """(dz, dresidual) = (a * g + b * z + c, g); an empty tensor stands where `output_mask` does not ask."""
    g = _masked_grad(grad_output, z, scale, shift, y, activation)
    dz = _image(_dz(g, z, a, b, c), z) if output_mask[0] else z.new_empty(0)
    return dz, _image(g, z) if output_mask[1] else z.new_empty(0)
