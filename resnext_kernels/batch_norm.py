"""The per-channel arithmetic of BatchNorm between the passes over images; all vectors in the statistics' dtype."""

import torch

from . import _native
from .problem import stats_dtype


def fold(mean, m2, bn_weight, bn_bias, eps, count=1):
    """(var, rstd, scale, shift): var = m2 / count, scale * z + shift = (z - mean) / sqrt(var + eps) * weight + bias.

    In native code where that can be, as the functions below: a few tiny PyTorch ops take several times as long.
    """
    if addresses := _native.addresses(mean, m2, bn_weight, bn_bias):
        results = [torch.empty_like(mean) for _ in range(4)]
        _native._C.bn_fold(len(mean), *addresses, eps, count, *(result.data_ptr() for result in results))
        return results
    var = m2 / count
    rstd = torch.rsqrt(var + eps)
    scale = rstd.clone() if bn_weight is None else rstd * bn_weight.to(rstd.dtype)
    if bn_bias is None:
        return var, rstd, scale, -mean * scale
    return var, rstd, scale, torch.addcmul(bn_bias.to(rstd.dtype), mean, scale, value=-1)


def fold_running(bn_weight, bn_bias, running_mean, running_var, eps, x):
    """(scale, shift) of evaluation, in the dtype that the vectors beside `x` have."""
    dtype = stats_dtype(x.dtype)
    return fold(running_mean.to(dtype), running_var.to(dtype), bn_weight, bn_bias, eps)[2:]


def coefficients(sum_g, sum_g_xhat, mean, rstd, scale, count):
    """(a, b, c) with a * g + b * z + c = scale * (g - mean(g) - xhat * mean(g * xhat)); `count` values a channel."""
    if addresses := _native.addresses(sum_g, sum_g_xhat, mean, rstd, scale):
        b, c = torch.empty_like(mean), torch.empty_like(mean)
        _native._C.bn_coefficients(len(mean), *addresses, count, b.data_ptr(), c.data_ptr())
        return scale, b, c
    b = -scale * rstd * sum_g_xhat / count
    return scale, b, -scale * sum_g / count - b * mean


def frozen_coefficients(scale):
    """(a, b, c) where the statistics do not depend on z: dz = scale * g."""
    zero = torch.zeros_like(scale)
    return scale, zero, zero


def update_running_stats(running_mean, running_var, mean, var, count, momentum):
    """In place, as torch.nn.functional.batch_norm: the running variance is of the unbiased estimate."""
    if count == 0:
        return
    if addresses := _native.addresses(running_mean, running_var, mean, var):
        _native._C.bn_update_running(len(mean), *addresses, count, momentum)
        torch.autograd.graph.increment_version((running_mean, running_var))
        return
    for running, value, factor in ((running_mean, mean, 1), (running_var, var, count / (count - 1))):
        running.copy_(running.to(value.dtype).mul(1 - momentum).add_(value, alpha=momentum * factor))
