"""Triton kernels (triton_kernels/) on the current stream: for GPUs where the CUDA kernels were not built."""

import importlib.util
import math
from functools import lru_cache

import torch

from .._memo import memoised
from ..problem import ConvProblem, memory_format
from ..triton_kernels import configs, configs_wgrad
from ..triton_kernels.launch import Launch, aligned

NAME, DEVICE = "triton", "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_OLDEST = 80


@lru_cache
def is_installed() -> bool:
    try:
        return importlib.util.find_spec("triton") is not None
    except ValueError:  # of a module that is marked as missing
        return False


def missing():
    if not is_installed():
        return "no triton: pip install triton"
    return None if torch.cuda.is_available() else "no CUDA device that torch can use"


def measured() -> bool:
    return False


@lru_cache
def architecture(index: int | None) -> int:
    """major * 10 + minor of the device's compute capability."""
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def unsupported_reasons(op, problem) -> list[str]:
    reasons = [missing()] if missing() else []
    if problem.device != DEVICE:
        reasons.append(f"runs on {DEVICE} tensors, got {problem.device}")
    if problem.dtype not in DTYPES:
        reasons.append(f"takes float32, bfloat16 and float16, got {problem.dtype}")
    if problem.layout != "nhwc":
        reasons.append("takes channels_last images, got NCHW: x.to(memory_format=torch.channels_last)")
    if reasons:
        return reasons
    if architecture(None) < _OLDEST:
        reasons.append(f"takes GPUs of compute capability 8.0 and up, got {architecture(None) / 10}")
    # A tile's addresses are 32-bit numbers from its first image on.
    if problem.h * (problem.w + 256) * max(problem.c_in, problem.c_out) >= 2**31:
        reasons.append(f"takes images of less than 2**31 elements, got {problem}")
    return reasons


def not_automatic_reasons(op, problem) -> list[str]:
    return ["not measured: name it: use_backend('triton', 'aten')"]


def _dense(image):
    """The image dense in channels_last, from an address that vectors of 16 bytes can be loaded from."""
    return aligned(image.contiguous(memory_format=torch.channels_last))


def _vector(vector):
    return None if vector is None else aligned(vector.float().contiguous())


def _plan(problem, architecture, activation):
    from ..triton_kernels import conv_plans

    # What torch.empty makes of channels_last, in less time.
    (n, c, h, w) = shape = problem.output_shape
    return *conv_plans.forward(problem, architecture, activation), shape, (h * w * c, 1, w * c, c)


def _dgrad_plan(problem, architecture):
    from ..triton_kernels import conv_plans

    return conv_plans.dgrad(problem, architecture)


def _run(x, weight, scale, shift, conv, activation, with_stats=False):
    """(y, the tiles' partial statistics or None.)"""
    problem = ConvProblem.from_tensors(x, weight, *conv)
    prepare, launch, tiles, shape, strides = memoised(_plan, problem, architecture(x.device.index), activation)
    y = x.new_empty_strided(shape, strides)
    partials = _partials(y, tiles) if with_stats else None
    launch(_dense(x), prepare(weight), _vector(scale), _vector(shift), y, partials)
    return y, partials


def _partials(z, tiles):
    return torch.empty((tiles, 3, z.shape[1]), dtype=torch.float32, device=z.device)


def grouped_conv2d(x, weight, bias, *conv):
    return _run(x, weight, None, bias, conv, "identity")[0]


def grouped_conv2d_affine_act(x, weight, scale, shift, stride, padding, dilation, groups, activation):
    return _run(x, weight, scale, shift, (stride, padding, dilation, groups), activation)[0]


def grouped_conv2d_stats(x, weight, *conv):
    z, partials = _run(x, weight, None, None, conv, "identity", with_stats=True)
    return z, *_merged(partials)


def _dgrad(problem, dz, weight):
    shape = problem.n, problem.c_in, problem.h, problem.w
    prepare, launch, _ = memoised(_dgrad_plan, problem, architecture(dz.device.index))
    dx = torch.empty(shape, dtype=dz.dtype, device=dz.device, memory_format=torch.channels_last)
    launch(dz, prepare(weight), dx)
    return dx


def _wgrad_plan(problem, architecture, strides, activation):
    from ..triton_kernels import conv_plans

    return conv_plans.wgrad(problem, architecture, strides, activation)


def _wgrad(problem, grad, x, weight, bn=None):
    """dw of z's gradient or, with bn = (z, scale, shift, a, b, c, the activation), (dz, dw) of the activation's."""
    grad, x = _dense(grad), _dense(x)
    z, *vectors, activation = bn or [None] * 7
    if bn is not None and not configs_wgrad.makes_dz(problem):
        dz, _ = affine_act_backward(grad, z, *vectors, None, activation, (True, False))
        return dz, _wgrad(problem, dz, x, weight)
    dw = torch.empty_like(weight, memory_format=memory_format(weight))
    strides = dw.stride(1), dw.stride(3)
    launch, merge, shape = memoised(_wgrad_plan, problem, architecture(x.device.index), strides, activation)
    partials = torch.empty(shape, dtype=torch.float32, device=x.device)
    if configs.form(problem) == "gather":
        launch(x, grad, partials)
    else:
        z, dz = (None, None) if bn is None else (_dense(z), torch.empty_like(grad))
        launch(x, grad, z, *map(_vector, vectors), dz, partials)
    merge(partials, dw)
    return dw if bn is None else (dz, dw)


def grouped_conv2d_backward(grad_output, x, weight, *rest):
    *conv, output_mask = rest
    problem, grad, nothing = ConvProblem.from_tensors(x, weight, *conv), _dense(grad_output), x.new_empty(0)
    return (
        _dgrad(problem, grad, weight) if output_mask[0] else nothing,
        _wgrad(problem, grad, x, weight) if output_mask[1] else nothing,
        _sum(grad).to(x.dtype) if output_mask[2] else nothing,
    )


def grouped_conv2d_affine_act_backward(grad_output, z, scale, shift, a, b, c, x, weight, *rest):
    """wgrad makes dz on the way, or a pass of its own does, and dgrad reads it."""
    *conv, activation, output_mask = rest
    problem, dw = ConvProblem.from_tensors(x, weight, *conv), x.new_empty(0)
    if output_mask[1]:
        dz, dw = _wgrad(problem, grad_output, x, weight, (z, scale, shift, a, b, c, activation))
    else:
        dz, _ = affine_act_backward(grad_output, z, scale, shift, a, b, c, None, activation, (True, False))
    return _dgrad(problem, dz, weight) if output_mask[0] else x.new_empty(0), dw


def _sum(grad):
    """Over all but the channels, in float32."""
    zeros = [grad.new_zeros(grad.shape[1], dtype=torch.float32)] * 4
    return bn_act_reduce(grad, grad, *zeros, None, "identity")[0]


def _merge_plan(tiles, channels):
    from ..triton_kernels.bn_stats import merge_kernel

    grid = math.ceil(channels / configs.MERGE["BLOCK_CHANNELS"]), 1, 1
    return Launch(merge_kernel, grid, (tiles, channels), **configs.MERGE)


def _merged(partials):
    tiles, _, channels = partials.shape
    mean, m2 = (torch.empty(channels, dtype=torch.float32, device=partials.device) for _ in range(2))
    memoised(_merge_plan, tiles, channels)(partials, mean, m2)
    return mean, m2


def _image_plan(shape, tile):
    """(pixels, vectors of channels, their size, tiles along the pixels, tiles along the channels)."""
    n, c, h, w = shape
    pixels = n * h * w
    blocks = math.ceil(pixels / tile["BLOCK_ROWS"]), math.ceil(c / tile["BLOCK_CHANNELS"])
    return pixels, *configs.vectors(c), *blocks


def _stats_plan(shape):
    from ..triton_kernels.bn_stats import tiles_kernel

    pixels, vectors, vec, down, across = _image_plan(shape, configs.STATS)
    steps = configs.steps(down, across)
    tiles = math.ceil(down / steps)
    return Launch(tiles_kernel, (tiles * across, 1, 1), (pixels, vectors, steps), VEC=vec, **configs.STATS), tiles


def bn_stats(z):
    launch, tiles = memoised(_stats_plan, z.shape)
    partials = _partials(z, tiles)
    launch(_dense(z), partials)
    return _merged(partials)


def _affine_plan(shape, activation):
    from ..triton_kernels.affine_act import affine_act_kernel

    pixels, vectors, vec, down, across = _image_plan(shape, configs.AFFINE_ACT)
    constants = dict(VEC=vec, ACTIVATION=activation, **configs.AFFINE_ACT)
    return Launch(affine_act_kernel, (down * across, 1, 1), (pixels, vectors), **constants)


def affine_act(z, scale, shift, residual, activation):
    y = torch.empty_like(z, memory_format=torch.channels_last)
    residual = None if residual is None else _dense(residual)
    memoised(_affine_plan, z.shape, activation)(_dense(z), _vector(scale), _vector(shift), residual, y)
    return y


def _affine_backward_plan(shape, activation):
    from ..triton_kernels.affine_act_backward import affine_act_backward_kernel

    pixels, vectors, vec, down, across = _image_plan(shape, configs.AFFINE_ACT)
    constants = dict(VEC=vec, ACTIVATION=activation, **configs.AFFINE_ACT)
    return Launch(affine_act_backward_kernel, (down * across, 1, 1), (pixels, vectors), **constants)


def affine_act_backward(grad_output, z, scale, shift, a, b, c, y, activation, output_mask):
    launch = memoised(_affine_backward_plan, z.shape, activation)
    dz, dresidual = (
        torch.empty_like(z, memory_format=torch.channels_last) if asked else None for asked in output_mask
    )  # fmt: skip
    if any(output_mask):
        y = None if y is None else _dense(y)
        launch(_dense(grad_output), _dense(z), *map(_vector, (scale, shift, a, b, c)), y, dz, dresidual)
    return tuple(z.new_empty(0) if image is None else image for image in (dz, dresidual))


def _reduce_plan(shape, activation):
    """(The launch that sums tiles, the launch that sums these, the number of tiles.)"""
    from ..triton_kernels.bn_act_reduce import sum_kernel, tile_sums_kernel

    pixels, vectors, vec, down, across = _image_plan(shape, configs.REDUCE)
    steps = configs.steps(down, across)
    tiles = math.ceil(down / steps)
    constants = dict(VEC=vec, ACTIVATION=activation, **configs.REDUCE)
    launch = Launch(tile_sums_kernel, (tiles * across, 1, 1), (pixels, vectors, steps), **constants)
    grid = math.ceil(shape[1] / configs.MERGE["BLOCK_CHANNELS"]), 2, 1
    return launch, Launch(sum_kernel, grid, (tiles, shape[1]), **configs.MERGE), tiles


def bn_act_reduce(grad_output, z, scale, shift, mean, rstd, y, activation):
    of_tiles, of_all, tiles = memoised(_reduce_plan, z.shape, activation)
    channels, y = z.shape[1], None if y is None else _dense(y)
    partials = torch.empty((tiles, 2, channels), dtype=torch.float32, device=z.device)
    of_tiles(_dense(grad_output), _dense(z), *map(_vector, (scale, shift, mean, rstd)), y, partials)
    sums = tuple(torch.empty(channels, dtype=torch.float32, device=z.device) for _ in range(2))
    of_all(partials, *sums)
    return sums
