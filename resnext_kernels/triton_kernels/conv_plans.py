"""Which kernel makes a convolution's forward, dgrad or wgrad, on which grid.

A plan of the first two is (prepare the weight, the launch, the number of tiles); forward launches take x, the weight,
scale, shift, y and partial statistics, those of dgrad dz, the weight and dx.
"""

import math

from . import configs, configs_wgrad
from .grouped_conv2d import prepack_kernel, rows_kernel
from .grouped_conv2d_dgrad_strided import dgrad_strided_kernel
from .grouped_conv2d_gather import gather_kernel
from .grouped_conv2d_wgrad import wgrad_kernel, wgrad_sum_kernel
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


def wgrad(problem, architecture, activation, strides):
    """(The launch of partial sums, how many there are of each weight, the launch that adds them to dw of `strides`)."""
    if configs.form(problem) == "gather":
        launch, splits = wgrad_by_gather(problem, architecture)
    else:
        launch, splits = wgrad_by_rows(problem, architecture, activation)
    return launch, splits, wgrad_sum(problem, splits, strides)


def prepack(problem, pack, blocks, turned=False, spread=1):
    """(The launch that packs the weight for rows_kernel or, turned and spread, dgrad_strided_kernel, its size.)"""
    made = {name: pack[name] for name in ("GI", "GO", "KC", "NC", "PACKS", "PX")}
    groups, tiles = problem.groups, 3 * ((4 - made["PX"]) // spread)
    constants = dict(CIN=problem.c_in // groups, COUT=problem.c_out // groups, **made, SPREAD=spread, TURNED=turned)
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
    (cin_vectors, vi), (cout_vectors, vo) = configs.vectors(problem.c_in), configs.vectors(problem.c_out)
    integers = (positions, problem.h, problem.w, *problem.output_size, cin_vectors, cout_vectors, rows,
                *problem.padding, blocks)  # fmt: skip
    launch = Launch(
        rows_kernel, (strips * blocks, chunks, 1), integers, config.warps, config.stages, VI=vi, VO=vo,
        STRIDE=problem.stride[0], DILATION=problem.dilation[0], ACTIVATION=activation, **pack,
    )  # fmt: skip
    return _preparation(*prepack(problem, pack, blocks, turned)), launch, strips * chunks


def dgrad_strided(problem, architecture):
    config, pack = configs.strided_config(architecture, problem), configs.strided_pack(problem)
    positions, strips, blocks, chunks, rows = configs.strided_grid(problem)
    (cin_vectors, vi), (cout_vectors, vo) = configs.vectors(problem.c_in), configs.vectors(problem.c_out)
    integers = (positions, problem.h, problem.w, *problem.output_size, cin_vectors, cout_vectors, rows,
                *problem.padding, blocks)  # fmt: skip
    launch = Launch(dgrad_strided_kernel, (strips * blocks, chunks, 1), integers, config.warps, config.stages,
                    VI=vi, VO=vo, **pack)  # fmt: skip
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
    (cin_vectors, vi), (cout_vectors, vo) = configs.vectors(problem.c_in), configs.vectors(problem.c_out)
    c_in, c_out = problem.c_in // problem.groups, problem.c_out // problem.groups
    positions = problem.n * math.ceil(oh / phases[0]) * math.ceil(ow / phases[1])
    tiles = math.ceil(positions / blocks["BM"])
    steps = [phase // math.gcd(phase, dilation) for phase, dilation in zip(phases, problem.dilation, strict=True)]
    integers = positions, problem.h, problem.w, oh, ow, cin_vectors, cout_vectors, *way, *problem.kernel
    grid = tiles * problem.groups * math.ceil(c_out / blocks["BN"]), math.prod(phases), 1
    launch = Launch(
        gather_kernel, grid, integers, config.warps, config.stages, VI=vi, VO=vo, CIN=c_in, COUT=c_out,
        ACTIVATION=activation, PHASES_H=phases[0], PHASES_W=phases[1], STEP_H=steps[0], STEP_W=steps[1], **blocks,
    )  # fmt: skip
    return launch, tiles


def wgrad_by_rows(problem, architecture, activation):
    """(The launch, its splits): the launch takes x, dy, z, the vectors, dz and partial sums."""
    config, made = configs_wgrad.config(architecture, problem), configs_wgrad.pack(problem)
    positions, blocks, splits, strips, chunks, rows = configs_wgrad.grid(problem)
    (cin_vectors, vi), (cout_vectors, vo) = configs.vectors(problem.c_in), configs.vectors(problem.c_out)
    integers = (positions, problem.h, problem.w, *problem.output_size, cin_vectors, cout_vectors, rows,
                *problem.padding, blocks, strips)  # fmt: skip
    launch = Launch(
        wgrad_kernel, (blocks * splits, chunks, 1), integers, config.warps, config.stages, VI=vi, VO=vo,
        STRIDE=problem.stride[0], DILATION=problem.dilation[0], ACTIVATION=activation, **made,
    )  # fmt: skip
    return launch, splits * chunks


def wgrad_by_gather(problem, architecture):
    """The same of wgrad_gather_kernel, whose launch takes x, dz and partial sums."""
    config, (blocks, programs, splits, steps) = (
        configs_wgrad.config(architecture, problem),
        configs_wgrad.gather(problem),
    )
    (cin_vectors, vi), (cout_vectors, vo) = configs.vectors(problem.c_in), configs.vectors(problem.c_out)
    (oh, ow), taps = problem.output_size, math.prod(problem.kernel)
    integers = (
        problem.n * oh * ow, problem.h, problem.w, oh, ow, cin_vectors, cout_vectors, *problem.stride,
        *problem.padding, *problem.dilation, problem.kernel[1], taps, steps,
    )  # fmt: skip
    launch = Launch(
        wgrad_gather_kernel, (programs, splits * taps, 1), integers, config.warps, config.stages, VI=vi, VO=vo,
        CIN=problem.c_in // problem.groups, COUT=problem.c_out // problem.groups, **blocks,
    )  # fmt: skip
    return launch, splits


def wgrad_sum(problem, splits, strides):
    """The launch that adds splits' sums to dw of the given strides."""
    c_in, taps = problem.c_in // problem.groups, math.prod(problem.kernel)
    weights = problem.c_out * c_in * taps
    grid = math.ceil(weights / configs.MERGE["BLOCK_CHANNELS"]), 1, 1
    return Launch(wgrad_sum_kernel, grid, (splits, weights, c_in, taps, strides[1], strides[3]), **configs.MERGE)
