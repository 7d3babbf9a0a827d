"""Error gates: for each op, float64 references of its results and how far a kernel may be from them.

The bounds are probabilistic (Higham and Mary, SISC 41(5), 2019): a sum of n products in an accumulator of unit
roundoff u_a errs by (sqrt(n) + 4) * u_a times the sum of the products' absolute values; storing adds half an ulp.
Ops of several stages are held stage by stage: what follows a stored z is compared with functions of that z.
"""

import math
from dataclasses import dataclass

import torch

from ..backends import reference

_UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
# Half the smallest subnormal; bf16 kernels may flush subnormals.
_FLOOR = {torch.float64: 0.0, torch.float32: 2.0**-149, torch.float16: 2.0**-25, torch.bfloat16: 2.0**-126}
_SLOPE = {"identity": 1.0, "relu": 1.0, "silu": 1.1}


@dataclass
class Gate:
    """The result to expect, float64, and the allowed absolute error of each of its elements."""

    name: str
    expected: torch.Tensor
    allowed: torch.Tensor


def _accumulator(dtype):
    return _UNIT[torch.float64] if dtype == torch.float64 else _UNIT[torch.float32]


def _stored(name, expected, error, dtype):
    return Gate(name, expected, _UNIT[dtype] * expected.abs() + error + _FLOOR[dtype])


def _double(*tensors):
    return tuple(None if t is None else t.double() for t in tensors)


def _channel(vector):
    return vector.double().view(1, -1, 1, 1)


def _sum_error(absolute, n, dtype):
    return (math.sqrt(n) + 4) * _accumulator(dtype) * absolute


def _conv(x, weight, bias, conv):
    """(z, its error before storing), both float64."""
    z = reference.grouped_conv2d(*_double(x, weight, bias), *conv)
    absolute = reference.grouped_conv2d(*(None if t is None else t.abs() for t in _double(x, weight, bias)), *conv)
    return z, _sum_error(absolute, weight[0].numel() + 1, x.dtype)


def grouped_conv2d(results, x, weight, bias, *conv):
    return [_stored("z", *_conv(x, weight, bias, conv), x.dtype)]


def _conv_backward(grad, grad_error, x, weight, conv, output_mask, dtype):
    """Gates of dx and dw for a float64 grad known to within grad_error."""
    exact = reference.grouped_conv2d_backward(grad, *_double(x, weight), *conv, [*output_mask, False])
    x, weight = x.double().abs(), weight.double().abs()
    absolute = reference.grouped_conv2d_backward(grad.abs(), x, weight, *conv, [*output_mask, False])
    from_grad = reference.grouped_conv2d_backward(grad_error, x, weight, *conv, [*output_mask, False])
    terms = weight.shape[0] // conv[-1] * weight[0, 0].numel(), grad[:, 0].numel()
    gates = [
        _stored(name, exact[i], _sum_error(absolute[i], terms[i], dtype) + from_grad[i], dtype)
        for i, name in enumerate(("dx", "dw"))
        if output_mask[i]
    ]
    return [gates.pop(0) if asked else None for asked in output_mask]


def grouped_conv2d_backward(results, grad_output, x, weight, *rest):
    *conv, output_mask = rest
    grad = grad_output.double()
    gates = _conv_backward(grad, torch.zeros_like(grad), x, weight, conv, output_mask[:2], x.dtype)
    error = _sum_error(grad.abs().sum((0, 2, 3)), grad[:, 0].numel(), x.dtype)
    return [*gates, _stored("db", grad.sum((0, 2, 3)), error, x.dtype) if output_mask[2] else None]


def _affine(z, z_error, scale, shift, residual, activation, dtype):
    """The gate of y = act(scale * z + shift + residual) for a float64 z known to within z_error."""
    scale, shift = _channel(scale), _channel(shift)
    residual = torch.zeros_like(z) if residual is None else residual.double()
    pre = scale * z + shift + residual
    y = reference._ACTIVATE[activation](pre)
    rounding = 4 * _accumulator(dtype) * ((scale * z).abs() + shift.abs() + residual.abs())
    return _stored("y", y, _SLOPE[activation] * (scale.abs() * z_error + rounding), dtype)


def grouped_conv2d_affine_act(results, x, weight, scale, shift, *rest):
    *conv, activation = rest
    z, error = _conv(x, weight, None, conv)
    # One rounding of z is granted to backends that store it between their passes.
    return [_affine(z, error + _UNIT[x.dtype] * z.abs(), scale, shift, None, activation, x.dtype)]


def _masked_grad(grad_output, z, scale, shift, y, activation, dtype):
    """(g, its error): any value between 0 and grad_output where rounding leaves the sign of pre open."""
    g = reference._masked_grad(grad_output, z, scale, shift, y, activation)
    scale, shift = _channel(scale), _channel(shift)
    doubt = torch.zeros_like(g)
    if y is None and activation != "identity":
        terms = (scale * z.double()).abs() + shift.abs()
        open_sign = (scale * z.double() + shift).abs() <= 4 * _accumulator(dtype) * terms
        doubt = torch.where(open_sign & (activation == "relu"), grad_output.double().abs(), doubt)
        if activation == "silu":
            doubt = grad_output.double().abs() * 8 * _accumulator(dtype) * (1 + terms)
    return g, doubt


def _dz(grad_output, z, scale, shift, a, b, c, y, activation, dtype):
    """(dz, its error before storing)."""
    g, doubt = _masked_grad(grad_output, z, scale, shift, y, activation, dtype)
    a, b, c = _channel(a), _channel(b), _channel(c)
    terms = (a * g).abs() + (b * z.double()).abs() + c.abs()
    return a * g + b * z.double() + c, a.abs() * doubt + 8 * _accumulator(dtype) * terms


def affine_act(results, z, scale, shift, residual, activation):
    z = z.double()
    return [_affine(z, torch.zeros_like(z), scale, shift, residual, activation, results[0].dtype)]


def affine_act_backward(results, grad_output, z, scale, shift, a, b, c, y, activation, output_mask):
    g, doubt = _masked_grad(grad_output, z, scale, shift, y, activation, z.dtype)
    dz, error = _dz(grad_output, z, scale, shift, a, b, c, y, activation, z.dtype)
    gates = [_stored("dz", dz, error, z.dtype), _stored("dresidual", g, doubt, z.dtype)]
    return [gate if asked else None for gate, asked in zip(gates, output_mask, strict=True)]


def grouped_conv2d_affine_act_backward(results, grad_output, z, scale, shift, a, b, c, x, weight, *rest):
    *conv, activation, output_mask = rest
    dz, error = _dz(grad_output, z, scale, shift, a, b, c, None, activation, z.dtype)
    # dz is rounded to the storage dtype on its way into the products.
    error = error + _UNIT[z.dtype] * dz.abs() + _FLOOR[z.dtype]
    return _conv_backward(dz, error, x, weight, conv, output_mask, z.dtype)


def bn_act_reduce(results, grad_output, z, scale, shift, mean, rstd, y, activation):
    g, doubt = _masked_grad(grad_output, z, scale, shift, y, activation, z.dtype)
    mean, rstd, unit, dims = _channel(mean), _channel(rstd), _accumulator(z.dtype), (0, 2, 3)
    xhat = (z.double() - mean) * rstd
    size = (z.double().abs() + mean.abs()) * rstd.abs()
    error_g = 2 * unit * g.abs().sum(dims) + doubt.sum(dims)
    error_gx = 2 * unit * (g.abs() * size).sum(dims) + (doubt * xhat.abs()).sum(dims)
    return [Gate("sum_g", g.sum(dims), error_g), Gate("sum_g_xhat", (g * xhat).sum(dims), error_gx)]


def bn_stats(results, z):
    values = z.double().transpose(0, 1).flatten(1)
    unit, count = _accumulator(z.dtype), max(values.shape[1], 1)
    mean = values.sum(1) / count
    m2 = (values - mean[:, None]).square().sum(1)
    mean_error = (math.log2(count) + 4) * unit * values.abs().sum(1) / count
    # condition number of the variance: sqrt(1 + mean^2 / var)
    kappa2 = 1 + mean.square() * count / m2.clamp_min(torch.finfo(torch.float64).tiny)
    m2_error = m2 * (unit * (8 + math.log2(count)) + 4 * kappa2 * (4 * unit) ** 2)
    return [Gate("mean", mean, mean_error), Gate("M2", m2, m2_error)]


def grouped_conv2d_stats(results, x, weight, *conv):
    return [_stored("z", *_conv(x, weight, None, conv), x.dtype), *bn_stats(results, results[0])]


def _fold(mean, var, bn_weight, bn_bias, eps, unit):
    """Gates of (rstd, scale, shift) for the mean and var as used."""
    mean, var = mean.double(), var.double()
    one, zero = torch.ones_like(mean), torch.zeros_like(mean)
    rstd = (var + eps).rsqrt()
    scale = rstd * (one if bn_weight is None else bn_weight.double())
    bias = zero if bn_bias is None else bn_bias.double()
    shift = bias - mean * scale
    return [
        Gate("rstd", rstd, 4 * unit * rstd),
        Gate("scale", scale, 8 * unit * scale.abs()),
        Gate("shift", shift, 8 * unit * ((mean * scale).abs() + bias.abs())),
    ]


def bn_act(results, z, bn_weight, bn_bias, mean, var, residual, eps, activation):
    y, mean_used, var_used, _, scale, shift = results
    count = max(z[:, 0].numel(), 1)
    stats = bn_stats(results, z)
    stats[1] = Gate("var", stats[1].expected / count, stats[1].allowed / count + _accumulator(z.dtype) * var_used)
    if mean is not None:
        stats = [Gate("mean", mean.double(), 0 * mean.double()), Gate("var", var.double(), 0 * var.double())]
    fold = _fold(mean_used, var_used, bn_weight, bn_bias, eps, _accumulator(z.dtype))
    return [*affine_act([y], z, scale, shift, residual, activation), *stats, *fold]


def grouped_conv2d_bn_act(results, x, weight, bn_weight, bn_bias, mean, var, *rest):
    *conv, eps, activation = rest
    y, z, *vectors = results
    inner = bn_act([y, *vectors], z, bn_weight, bn_bias, mean, var, None, eps, activation)
    return [inner[0], _stored("z", *_conv(x, weight, None, conv), x.dtype), *inner[1:]]
