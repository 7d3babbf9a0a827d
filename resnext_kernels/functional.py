"""Functions with the names, order and defaults of torch.nn.functional."""

import torch
import torch.nn.functional as F

from . import backends, direct
from ._memo import memoised
from .backends.aten import ACTIVATE
from .batch_norm import fold_running
from .checks import check_activation, check_batch, check_bn, check_like, check_statistics, check_vectors, conv_arguments
from .ops.affine_act import affine_act as _affine_act
from .ops.bn_act import bn_act as _bn_act
from .ops.grouped_conv2d import grouped_conv2d as _grouped_conv2d
from .ops.grouped_conv2d_affine_act import grouped_conv2d_affine_act as _grouped_conv2d_affine_act
from .ops.grouped_conv2d_bn_act import grouped_conv2d_bn_act as _grouped_conv2d_bn_act
from .ops.update_running_stats import update_running_stats as _update_running_stats
from .problem import ConvProblem

_CONV_BACKWARD, _BN_BACKWARD = ("grouped_conv2d_backward",), ("bn_act_reduce", "affine_act_backward")
_FUSED_BACKWARD = ("bn_act_reduce", "grouped_conv2d_affine_act_backward")


def _under_autocast(x) -> bool:
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def _autocast(x, *tensors):
    """Under autocast, floating tensors in the autocast dtype, as nn.functional.conv2d has them."""
    if not _under_autocast(x):
        return x, *tensors
    dtype = torch.get_autocast_dtype(x.device.type)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in (x, *tensors))


def _needs_grad(*tensors):
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _is_plain(problem, passes):
    """Whether every pass would run on aten. Then PyTorch's own functions run, which torch.compile can fuse."""
    requested = backends.requested()
    if not torch.compiler.is_compiling():
        return backends.runs_plain(passes, problem, requested)
    if not all(isinstance(size, int) for size in problem.sizes):
        return backends.always_plain(requested)
    # Not by way of the caches, which compilers do not trace.
    return all(backends.explain(op, problem, requested)[0] == "aten" for op in passes)


def grouped_conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """torch.nn.functional.conv2d on the chosen backend, differentiable twice.

    input (N, C_in, H, W), weight (C_out, C_in/groups, kH, kW), bias (C_out,); one of float64, float32, bfloat16 or
    float16 for all. The output (N, C_out, OH, OW) has the input's memory format.
    Raises ValueError or TypeError on bad arguments, BackendError if a backend asked for by name cannot run it.
    """
    key = direct.key((input, weight, bias), "conv", stride, padding, dilation, groups)
    if recipe := direct.find(key):
        return recipe(input, weight, bias)
    x, weight, bias = _autocast(input, weight, bias)
    conv = conv_arguments(weight, stride, padding, dilation, groups)
    problem = ConvProblem.from_tensors(x, weight, *conv)
    check_vectors(x, problem.c_out, x.dtype, bias=bias)
    passes = ("grouped_conv2d", *(_CONV_BACKWARD if _needs_grad(x, weight, bias) else ()))
    if _is_plain(problem, passes):
        direct.remember(key, lambda x, weight, bias: F.conv2d(x, weight, bias, *conv))
        return F.conv2d(x, weight, bias, *conv)
    if key:
        direct.remember(key, direct.recipe("grouped_conv2d", problem, "direct_conv", x, weight, bias))
    return _grouped_conv2d(x, weight, bias, *conv, backends.requested())


def grouped_conv2d_bn_act(
    input, weight, *, running_mean, running_var, bn_weight=None, bn_bias=None, training=False, momentum=0.1, eps=1e-5,
    stride=1, padding=0, dilation=1, groups=1, activation="relu",
):  # fmt: skip
    """act(batch_norm(conv2d(input, weight))), one or two passes over memory forward, differentiable once.

    input (N, C_in, H, W), weight (C_out, C_in/groups, kH, kW) of one dtype: float64, float32, bfloat16 or float16;
    running_mean, running_var, bn_weight, bn_bias (C_out,) of any floating dtype, or None as in F.batch_norm; the
    statistics and the affine map are kept in float32 (float64 for float64). activation: "relu", "silu" or "identity".
    With `training`, z = conv2d(input, weight) rounded to the input's dtype is normalised by its own mean and biased
    variance over N, OH and OW, and running_mean and running_var, if given, are updated in place; else by these two.
    The output (N, C_out, OH, OW) has the input's memory format. Raises as grouped_conv2d does.
    """
    bn, settings = (bn_weight, bn_bias, running_mean, running_var), (stride, padding, dilation, groups, activation)
    key = None if training else direct.key((input, weight, *bn), "conv_bn_act", *settings, momentum, eps)
    if recipe := direct.find(key):
        return recipe(input, weight, *bn)
    check_activation(activation)
    x, weight = _autocast(input, weight)
    conv = conv_arguments(weight, stride, padding, dilation, groups)
    problem = ConvProblem.from_tensors(x, weight, *conv)
    _check_bn(x, problem.output_shape, bn, training, momentum, eps)
    needs_grad = _needs_grad(x, weight, *bn[:2])
    if training:
        forward = ("grouped_conv2d_stats", "affine_act")
    else:
        forward = ("grouped_conv2d", "affine_act") if needs_grad else ("grouped_conv2d_affine_act",)
    if _is_plain(problem, forward + (_FUSED_BACKWARD if needs_grad else ())) and _has_plain_dtypes(x, bn):

        def plain(x, weight, *bn):
            z = F.conv2d(x, weight, None, *conv)
            return ACTIVATE[activation](_plain_batch_norm(z, bn, training, momentum, eps))

        direct.remember(key, plain)
        return plain(x, weight, *bn)
    requested = backends.requested()
    if not training and not needs_grad:
        if key:
            made = direct.recipe(*forward, problem, "direct_conv_bn_act", x, weight, *bn, eps, activation)
            direct.remember(key, made)
        scale, shift = fold_running(*bn, eps, x)
        return _grouped_conv2d_affine_act(x, weight, scale, shift, *conv, activation, requested)
    if not torch.compiler.is_compiling():
        requested = backends.of_chain(forward + (_FUSED_BACKWARD if needs_grad else ()), problem, requested)
    stats = (None, None) if training else bn[2:]
    y, z, mean, var, *_ = _grouped_conv2d_bn_act(x, weight, *bn[:2], *stats, *conv, eps, activation, requested)
    _update(bn, mean, var, z, training, momentum)
    return y


def frozen_conv2d_bn_act(input, weight, scale, shift, *, stride, padding, dilation, groups, activation):
    """grouped_conv2d_bn_act in evaluation, its BatchNorm folded before; None where plain PyTorch is to run instead."""
    tensors, settings = (input, weight, scale, shift), (stride, padding, dilation, groups, activation)
    key = direct.key(tensors, "conv_affine_act", *settings)
    if recipe := direct.find(key):
        return recipe(*tensors)
    x, weight = _autocast(input, weight)
    conv = conv_arguments(weight, stride, padding, dilation, groups)
    problem = ConvProblem.from_tensors(x, weight, *conv)
    if _is_plain(problem, ("grouped_conv2d_affine_act",)):
        return None
    if key:
        op, maker = "grouped_conv2d_affine_act", "direct_conv_affine_act"
        direct.remember(key, direct.recipe(op, problem, maker, x, weight, scale, shift, activation))
    return _grouped_conv2d_affine_act(x, weight, scale, shift, *conv, activation, backends.requested())


def bn_act(
    input, *, running_mean, running_var, bn_weight=None, bn_bias=None, residual=None, training=False, momentum=0.1,
    eps=1e-5, activation="relu",
):  # fmt: skip
    """act(batch_norm(input) [+ residual]), differentiable once; arguments as in grouped_conv2d_bn_act.

    input and residual (N, C, H, W) of one dtype, to which autocast brings the residual; the output has the input's
    dtype and memory format.
    """
    z, bn = input, (bn_weight, bn_bias, running_mean, running_var)
    key = None if training else direct.key((z, residual, *bn), "bn_act", momentum, eps, activation)
    if recipe := direct.find(key):
        return recipe(z, residual, *bn)
    check_activation(activation)
    problem = ConvProblem.from_image(z)
    if residual is not None:
        residual = residual.to(z.dtype) if _under_autocast(z) else residual
        check_like("residual", residual, z.shape, z)
    _check_bn(z, z.shape, bn, training, momentum, eps)
    needs_grad = _needs_grad(z, *bn[:2], residual)
    forward = ("bn_stats", "affine_act") if training else ("affine_act",)
    if _is_plain(problem, forward + (_BN_BACKWARD if needs_grad else ())) and _has_plain_dtypes(z, bn):

        def plain(z, residual, *bn):
            pre = _plain_batch_norm(z, bn, training, momentum, eps)
            return ACTIVATE[activation](pre if residual is None else pre + residual)

        direct.remember(key, plain)
        return plain(z, residual, *bn)
    requested = backends.requested()
    if not training and not needs_grad:
        if key:
            made = direct.recipe("affine_act", problem, "direct_bn_act", z, residual, *bn, eps, activation)
            direct.remember(key, made)
        scale, shift = fold_running(*bn, eps, z)
        return _affine_act(z, scale, shift, residual, activation, requested)
    stats = (None, None) if training else bn[2:]
    # silu's slope does not follow from the stored output, so with a residual it stays an op of its own.
    outside = activation if residual is not None and activation == "silu" else "identity"
    inside = "identity" if outside == "silu" else activation
    y, mean, var, *_ = _bn_act(z, *bn[:2], *stats, residual, eps, inside, requested)
    _update(bn, mean, var, z, training, momentum)
    return ACTIVATE[outside](y)


def _check_bn(x, shape, bn, training, momentum, eps):
    check_bn(x, shape[1], *bn, names=("running_mean", "running_var"))
    check_statistics(*bn[2:], training, momentum, eps)
    if training:
        check_batch(shape, eps)


def _has_plain_dtypes(x, bn):
    """Whether torch.batch_norm takes vectors of these dtypes: all the input's, or all float32; our ops take any."""
    return memoised(_are_plain_dtypes, x.dtype, *(None if vector is None else vector.dtype for vector in bn))


def _are_plain_dtypes(x_dtype, *dtypes):
    dtypes = set(dtypes) - {None}
    return dtypes <= {x_dtype} or (dtypes == {torch.float32} and x_dtype != torch.float64)


def _plain_batch_norm(z, bn, training, momentum, eps):
    # What F.batch_norm calls; some releases of that refuse the eps of 0 that frozen detectors have.
    return torch.batch_norm(z, *bn, training, momentum, eps, torch.backends.cudnn.enabled)


def _update(bn, mean, var, z, training, momentum):
    if training and bn[2] is not None:
        _update_running_stats(*bn[2:], mean, var, z.numel() // z.shape[1], momentum)
