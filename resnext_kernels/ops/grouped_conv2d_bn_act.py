"""y = act(batch_norm(conv2d(x, weight))), differentiable: the stats form and affine_act, the fused backward.

mean and var None: batch statistics; else frozen ones, which take no gradient. Also returned, not differentiable:
mean and (biased) var as used, and what backward needs.
"""

from .._ops import define
from ..backends import run
from ..checks import check_activation, check_batch, check_bn
from ..problem import ConvProblem
from .bn_act import bn_backward, fold_batch_or_frozen
from .bn_stats import empty_stats
from .grouped_conv2d import CONV, empty_output
from .grouped_conv2d_affine_act import grouped_conv2d_affine_act_backward


def _problem(x, weight, bn_weight, bn_bias, mean, var, stride, padding, dilation, groups, eps, activation):
    problem = ConvProblem.from_tensors(x, weight, stride, padding, dilation, groups)
    check_bn(x, problem.c_out, bn_weight, bn_bias, mean, var)
    if mean is None:
        check_batch(problem.output_shape, eps)
    check_activation(activation)
    return problem


def _impl(x, weight, bn_weight, bn_bias, mean, var, *rest):
    *conv, eps, activation, backend = rest
    problem = _problem(x, weight, bn_weight, bn_bias, mean, var, *conv, eps, activation)
    if mean is None:
        z, *stats = run("grouped_conv2d_stats", problem, backend, x, weight, *conv)
    else:
        z, stats = run("grouped_conv2d", problem, backend, x, weight, None, *conv), None
    mean, var, rstd, scale, shift = fold_batch_or_frozen(stats, mean, var, bn_weight, bn_bias, eps, z)
    y = run("affine_act", ConvProblem.from_image(z), backend, z, scale, shift, None, activation)
    return y, z, mean, var, rstd, scale, shift


def _fake(x, weight, bn_weight, bn_bias, mean, var, stride, padding, dilation, groups, eps, activation):
    y, z = (empty_output(x, weight, stride, padding, dilation) for _ in range(2))
    return y, z, *empty_stats(z, 5)


def _setup(ctx, inputs, output):
    x, weight, bn_weight, bn_bias, mean, _, *ctx.conv, _, ctx.activation, ctx.backend = inputs
    _, z, mean_used, _, rstd, scale, shift = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.frozen = mean is not None
    ctx.dtypes = [None if v is None else v.dtype for v in (bn_weight, bn_bias)]
    ctx.save_for_backward(x, weight, z, mean_used, rstd, scale, shift)


def _backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 13
    x, weight, z, mean, rstd, scale, shift = ctx.saved_tensors
    needs = ctx.needs_input_grad
    abc, dbn_weight, dbn_bias = bn_backward(ctx, grad, z, mean, rstd, scale, shift, None, needs[2:4])
    mask = list(needs[:2])
    dx = dw = None
    if any(mask):
        args = (grad, z, scale, shift, *abc, x, weight, *ctx.conv, ctx.activation, mask, ctx.backend)
        grads = grouped_conv2d_affine_act_backward(*args)
        dx, dw = (v if asked else None for v, asked in zip(grads, mask, strict=True))
    return dx, dw, dbn_weight, dbn_bias, *[None] * 9


grouped_conv2d_bn_act = define(
    "grouped_conv2d_bn_act",
    "Tensor input, Tensor weight, Tensor? bn_weight, Tensor? bn_bias, Tensor? mean, Tensor? var,"
    f" {CONV}, float eps, str activation",
    "(Tensor y, Tensor z, Tensor mean, Tensor var, Tensor rstd, Tensor scale, Tensor shift)",
    problem=_problem,
    fake=_fake,
    impl=_impl,
    flops=lambda problem, *_: problem.flops,
    setup_context=_setup,
    backward=_backward,
)
