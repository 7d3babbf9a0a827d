"""y = act(batch_norm(z) [+ residual]), differentiable: bn_stats and affine_act, bn_act_reduce and affine_act_backward.

mean and var None: batch statistics; else frozen ones, which take no gradient. Also returned, not differentiable:
mean and (biased) var as used, and what backward needs.
"""

from .._ops import define
from ..backends import run
from ..batch_norm import coefficients, fold, frozen_coefficients
from ..checks import check_activation, check_batch, check_bn, check_like
from ..problem import ConvProblem, stats_dtype
from .affine_act import affine_act_backward, empty_like_image
from .bn_act_reduce import bn_act_reduce
from .bn_stats import empty_stats


def fold_batch_or_frozen(batch_stats, mean, var, bn_weight, bn_bias, eps, z):
    """(mean, biased var, rstd, scale, shift) as fresh vectors, of the given ones or of `batch_stats` = (mean, M2)."""
    count = 1
    if mean is None:
        (mean, var), count = batch_stats, max(z.numel() // z.shape[1], 1)
    else:
        mean, var = (vector.to(stats_dtype(z.dtype), copy=True) for vector in (mean, var))
    return mean, *fold(mean, var, bn_weight, bn_bias, eps, count)


def _problem(z, bn_weight, bn_bias, mean, var, residual, eps, activation):
    problem = ConvProblem.from_image(z)
    check_bn(z, problem.c_out, bn_weight, bn_bias, mean, var)
    if mean is None:
        check_batch(z.shape, eps)
    if residual is not None:
        check_like("residual", residual, z.shape, z)
    check_activation(activation)
    if residual is not None and activation == "silu":
        raise ValueError("activation: expected identity or relu with a residual, got silu; apply silu to the identity")
    return problem


def _impl(z, bn_weight, bn_bias, mean, var, residual, eps, activation, backend):
    problem = _problem(z, bn_weight, bn_bias, mean, var, residual, eps, activation)
    stats = run("bn_stats", problem, backend, z) if mean is None else None
    mean, var, rstd, scale, shift = fold_batch_or_frozen(stats, mean, var, bn_weight, bn_bias, eps, z)
    y = run("affine_act", problem, backend, z, scale, shift, residual, activation)
    return y, mean, var, rstd, scale, shift


def _fake(z, bn_weight, bn_bias, mean, var, residual, eps, activation):
    return empty_like_image(z), *empty_stats(z, 5)


def bn_backward(ctx, grad, z, mean, rstd, scale, shift, y, needs):
    """((a, b, c), bn_weight's gradient, bn_bias's) for needs = (bn_weight, bn_bias), None where not needed."""
    if ctx.frozen and not any(needs):
        return frozen_coefficients(scale), None, None
    sum_g, sum_g_xhat = bn_act_reduce(grad, z, scale, shift, mean, rstd, y, ctx.activation, ctx.backend)
    if ctx.frozen:
        abc = frozen_coefficients(scale)
    else:
        abc = coefficients(sum_g, sum_g_xhat, mean, rstd, scale, max(z.numel() // z.shape[1], 1))
    return (
        abc,
        sum_g_xhat.to(ctx.dtypes[0]) if needs[0] else None,
        sum_g.to(ctx.dtypes[1]) if needs[1] else None,
    )


def _setup(ctx, inputs, output):
    z, bn_weight, bn_bias, mean, _, residual, _, ctx.activation, ctx.backend = inputs
    y, mean_used, _, rstd, scale, shift = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.frozen = mean is not None
    ctx.dtypes = [None if v is None else v.dtype for v in (bn_weight, bn_bias)]
    mask_from_y = residual is not None and ctx.activation == "relu"
    ctx.save_for_backward(z, mean_used, rstd, scale, shift, y if mask_from_y else None)


def _backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 9
    z, mean, rstd, scale, shift, y = ctx.saved_tensors
    needs = ctx.needs_input_grad
    abc, dweight, dbias = bn_backward(ctx, grad, z, mean, rstd, scale, shift, y, needs[1:3])
    mask = [needs[0], needs[5]]
    dz = dresidual = None
    if any(mask):
        args = (grad, z, scale, shift, *abc, y, ctx.activation, mask, ctx.backend)
        dz, dresidual = (v if asked else None for v, asked in zip(affine_act_backward(*args), mask, strict=True))
    return dz, dweight, dbias, None, None, dresidual, None, None, None


bn_act = define(
    "bn_act",
    "Tensor z, Tensor? bn_weight, Tensor? bn_bias, Tensor? mean, Tensor? var, Tensor? residual, float eps,"
    " str activation",
    "(Tensor y, Tensor mean, Tensor var, Tensor rstd, Tensor scale, Tensor shift)",
    problem=_problem,
    fake=_fake,
    impl=_impl,
    setup_context=_setup,
    backward=_backward,
)
