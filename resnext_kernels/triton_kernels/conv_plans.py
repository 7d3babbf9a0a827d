"""Which kernels make a convolution's forward, dgrad or wgrad, on which grid.

A plan of the first two is (prepare the weight, the launch, the number of tiles); forward launches take x, the weight,
scale, shift, y and partial statistics, those of dgrad dz, the weight and dx.
"""

import math

from . import configs, configs_wgrad
from .grouped_conv2d import prepack_kernel, rows_kernel
from .grouped_conv2d_dgrad_strided import dgrad_strided_kernel
from .grouped_conv2d_gather import gather_kernel
from .grouped_conv2d_wgrad import wgrad_merge_kernel, wgrad_rows_kernel
from .grouped_conv2d_wgrad_gather import wgrad_gather_kernel
from .launch import Launch, aligned


def forward(problem, architecture, activation):
    if configs.form(problem) == "gather":
        return _by_gather(problem, architecture, activation)
    return _by_rows(problem, architecture, activation)


def dgrad(problem, architecture):
    """Of stride 1 it is the convolution of dz with the weight turned round."""
    if configs.form(problem) != "gather" and problem.stride == (2, 2):
        return dgrad_strided(problem, architecture)
    if configs.form(problem) == "gather":
        prepare, launch, tiles = dgrad_by_gather(problem, architecture)
    else:
        prepare, launch, tiles = _by_rows(configs.transposed(problem), architecture, "identity", turned=True)
    return prepare, lambda dz, weight, dx: launch(dz, weight, None, None, dx, None), tiles


def wgrad(problem, architecture, strides, activation=None):
    """(The launch of partial sums, the launch that adds them to dw, their shape).

    strides: dw's, from input to input and from tap to tap. activation: of the BatchNorm whose backward comes first,
    where wgrad makes that.
    """
    if configs.form(problem) == "gather":
        return wgrad_by_gather(problem, architecture, strides)
    return wgrad_by_rows(problem, architecture, strides, activation if configs_wgrad.makes_dz(problem) else None)


def _sizes(problem, output_size):
    """What every kernel takes of a problem's sizes."""
    vectors = configs.vectors(problem.c_in)[0], configs.vectors(problem.c_out)[0]
    return problem.h, problem.w, *output_size, *vectors


def _vectors(problem):
    return dict(VI=configs.vectors(problem.c_in)[1], VO=configs.vectors(problem.c_out)[1])


def _of_group(problem):
    return dict(CIN=problem.c_in // problem.groups, COUT=problem.c_out // problem.groups)


def prepack(problem, pack, blocks, turned=False, spread=1):
    """(The launch that packs the weight for rows_kernel or, turned and spread, dgrad_strided_kernel, its size.)"""
    made = {name: pack[name] for name in ("GI", "GO", "KC", "NC", "PACKS", "PX")}
    tiles = 3 * ((4 - made["PX"]) // spread)
    constants = dict(**_of_group(problem), **made, SPREAD=spread, TURNED=turned)
    size = blocks * tiles * made["PACKS"] * made["KC"] * made["NC"] * made["PX"] ** 2
    return Launch(prepack_kernel, (blocks, tiles, 1), (problem.c_out,), **constants), size


def _preparation(launch, size):
    def prepare(weight):
        packed = weight.new_empty(size)
        launch(aligned(weight.contiguous()), packed)
        return packed

    return prepare


def _by_rows(problem, architecture, activation, turned=False):
    config, pack = configs.config(architecture, problem), configs.pack(problem)
    positions, strips, blocks, chunks, rows = configs.rows_grid(problem)
    integers = positions, *_sizes(problem, problem.output_size), rows, *problem.padding, blocks
    launch = Launch(
        rows_kernel, (strips * blocks, chunks, 1), integers, config.warps, config.stages, **_vectors(problem),
        STRIDE=problem.stride[0], DILATION=problem.dilation[0], ACTIVATION=activation, **pack,
    )  # fmt: skip
    return _preparation(*prepack(problem, pack, blocks, turned)), launch, strips * chunks


def dgrad_strided(problem, architecture):
    config, pack = configs.strided_config(architecture, problem), configs.strided_pack(problem)
    positions, strips, blocks, chunks, rows = configs.strided_grid(problem)
    integers = positions, *_sizes(problem, problem.output_size), rows, *problem.padding, blocks
    launch = Launch(dgrad_strided_kernel, (strips * blocks, chunks, 1), integers, config.warps, config.stages,
                    **_vectors(problem), **pack)  # fmt: skip
    turned = dict(GI=pack["GO"], GO=pack["GI"], KC=pack["KC"], NC=pack["NC"], PACKS=pack["PACKS"], PX=2)
    made = prepack(configs.transposed(problem), turned, blocks, turned=True, spread=2)
    return _preparation(*made), launch, strips * chunks


def _by_gather(problem, architecture, activation):
    config = configs.config(architecture, problem)
    signed = *(-each for each in problem.padding), *(-each for each in problem.dilation)
    launch, tiles = _gather(problem, problem.output_size, config, (*problem.stride, *signed), activation)
    return lambda weight: aligned(weight.permute(2, 3, 0, 1).contiguous()), launch, tiles


def dgrad_by_gather(problem, architecture):
    config, turned = configs.config(architecture, problem), configs.transposed(problem)
    way = 1, 1, *problem.padding, *problem.dilation
    launch, tiles = _gather(turned, (problem.h, problem.w), config, way, "identity", problem.stride)

    def prepare(weight):
        of_groups = weight.unflatten(0, (problem.groups, -1)).permute(3, 4, 0, 2, 1)
        return aligned(of_groups.contiguous())

    return prepare, launch, tiles


def _gather(problem, output_size, config, way, activation, phases=(1, 1)):
    """(gather_kernel's launch, its tiles) of the signed strides, paddings and dilations `way`."""
    blocks, (oh, ow) = configs.gather(problem), output_size
    positions = problem.n * math.ceil(oh / phases[0]) * math.ceil(ow / phases[1])
    tiles = math.ceil(positions / blocks["BM"])
    steps = [phase // math.gcd(phase, dilation) for phase, dilation in zip(phases, problem.dilation, strict=True)]
    integers = positions, *_sizes(problem, output_size), *way, *problem.kernel
    of_group = _of_group(problem)
    grid = tiles * problem.groups * math.ceil(of_group["COUT"] / blocks["BN"]), math.prod(phases), 1
    launch = Launch(
        gather_kernel, grid, integers, config.warps, config.stages, **_vectors(problem), **of_group,
        ACTIVATION=activation, PHASES_H=phases[0], PHASES_W=phases[1], STEP_H=steps[0], STEP_W=steps[1], **blocks,
    )  # fmt: skip
    return launch, tiles


def wgrad_by_rows(problem, architecture, strides, activation):
    """The launch takes x, grad, z, scale, shift, a, b, c, dz and partials, z to dz None but with an activation."""
    config = configs_wgrad.config(architecture, problem, activation is not None)
    positions, strips, walks, blocks, chunks, rows = configs_wgrad.rows_grid(problem)
    integers = positions, *_sizes(problem, problem.output_size), rows, strips, *problem.padding, blocks
    launch = Launch(
        wgrad_rows_kernel, (walks * blocks, chunks, 1), integers, config.warps, config.stages, **_vectors(problem),
        **_of_group(problem), STRIDE=problem.stride[0], DILATION=problem.dilation[0],
        ACTIVATION=activation or "identity", **configs_wgrad.pack(problem),
    )  # fmt: skip
    return launch, *_merge(problem, walks * chunks, strides)


def wgrad_by_gather(problem, architecture, strides):
    """The launch takes x, dz and partials."""
    config = configs_wgrad.config(architecture, problem, with_dz=False)
    positions, programs, splits, steps = configs_wgrad.gather_grid(problem)
    integers = (positions, *_sizes(problem, problem.output_size), *problem.stride, *problem.padding,
                *problem.dilation, *problem.kernel, steps)  # fmt: skip
    launch = Launch(wgrad_gather_kernel, (programs, splits, 1), integers, config.warps, config.stages,
                    **_vectors(problem), **_of_group(problem), **configs_wgrad.gather(problem))  # fmt: skip
    return launch, *_merge(problem, splits, strides)


def _merge(problem, splits, strides):
    """`strides` are dw's, from input to input and from tap to tap."""
    elements, tile = configs_wgrad.elements(problem), configs_wgrad.merge(splits)
    integers = splits, math.prod(problem.kernel), problem.c_out, problem.c_in // problem.groups, *strides
    grid = math.ceil(elements / tile["BLOCK"]), 1, 1
    return Launch(wgrad_merge_kernel, grid, integers, **tile), (splits, elements)
