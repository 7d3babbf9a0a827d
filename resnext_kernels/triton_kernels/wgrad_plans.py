"""Which kernels make a convolution's wgrad, on which grid.

A plan is (the launch that makes partial sums, the launch that adds them, the shape of the partial sums).
"""

import math

from . import configs, configs_wgrad
from .grouped_conv2d_wgrad import wgrad_merge_kernel, wgrad_rows_kernel
from .grouped_conv2d_wgrad_gather import wgrad_gather_kernel
from .launch import Launch


def by_rows(problem, architecture, strides, activation=None):
    """The launch takes x, grad, z, scale, shift, a, b, c, dz and partials, z to dz None but with an activation."""
    config = configs_wgrad.config(architecture, problem, activation is not None)
    positions, strips, walks, blocks, chunks, rows = configs_wgrad.rows_grid(problem)
    integers = (positions, problem.h, problem.w, *problem.output_size, *_vectors(problem)[0], rows, strips,
                *problem.padding, blocks)  # fmt: skip
    launch = Launch(
        wgrad_rows_kernel, (walks * blocks, chunks, 1), integers, config.warps, config.stages, **_vectors(problem)[1],
        STRIDE=problem.stride[0], DILATION=problem.dilation[0], ACTIVATION=activation or "identity",
        **configs_wgrad.pack(problem),
    )  # fmt: skip
    return launch, *_merge(problem, walks * chunks, strides)


def by_gather(problem, architecture, strides):
    """The launch takes x, dz and partials."""
    config = configs_wgrad.config(architecture, problem, with_dz=False)
    positions, programs, splits, steps = configs_wgrad.gather_grid(problem)
    integers = (positions, problem.h, problem.w, *problem.output_size, *_vectors(problem)[0], *problem.stride,
                *problem.padding, *problem.dilation, *problem.kernel, steps)  # fmt: skip
    launch = Launch(wgrad_gather_kernel, (programs, splits, 1), integers, config.warps, config.stages,
                    **_vectors(problem)[1], **configs_wgrad.gather(problem))  # fmt: skip
    return launch, *_merge(problem, splits, strides)


def _vectors(problem):
    """(How many vectors x's and dz's channels are, what is constant about channels.)"""
    (cin_vectors, vi), (cout_vectors, vo) = configs.vectors(problem.c_in), configs.vectors(problem.c_out)
    c_in, c_out = problem.c_in // problem.groups, problem.c_out // problem.groups
    return (cin_vectors, cout_vectors), dict(VI=vi, VO=vo, CIN=c_in, COUT=c_out)


def _merge(problem, splits, strides):
    """`strides` are dw's, from input to input and from tap to tap."""
    elements, tile = configs_wgrad.elements(problem), configs_wgrad.merge(splits)
    integers = splits, math.prod(problem.kernel), problem.c_out, problem.c_in // problem.groups, *strides
    grid = math.ceil(elements / tile["BLOCK"]), 1, 1
    return Launch(wgrad_merge_kernel, grid, integers, **tile), (splits, elements)
