"""sum g and sum g * xhat of each channel, g = grad_output * act'(pre): backward, first half."""

from .._ops import define
from ..checks import check_like, check_vectors
from ..problem import ConvProblem, stats_dtype
from .affine_act import check_saved_output
from .bn_stats import empty_stats


def _problem(grad_output, z, scale, shift, mean, rstd, y, activation):
    problem = ConvProblem.from_image(z)
    check_like("grad_output", grad_output, z.shape, z)
    check_vectors(z, problem.c_out, stats_dtype(z.dtype), scale=scale, shift=shift, mean=mean, rstd=rstd)
    check_saved_output(y, z, activation)
    return problem


def _fake(grad_output, z, scale, shift, mean, rstd, y, activation):
    return empty_stats(z, 2)


bn_act_reduce = define(
    "bn_act_reduce",
    "Tensor grad_output, Tensor z, Tensor scale, Tensor shift, Tensor mean, Tensor rstd, Tensor? y, str activation",
    "(Tensor sum_g, Tensor sum_g_xhat)",
    problem=_problem,
    fake=_fake,
)
