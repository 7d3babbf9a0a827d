"""CUDA C++ kernels (csrc/cuda) on the current stream."""

import torch

from .. import _native, tables
from .._memo import memoised
from ..checks import ACTIVATIONS
from ..problem import ConvProblem, memory_format

NAME = DEVICE = "cuda"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # in the order of csrc/problem.h
_CONVOLUTIONS = ("grouped_conv2d", "grouped_conv2d_affine_act", "grouped_conv2d_stats")
_GRADIENTS = ("grouped_conv2d_backward", "grouped_conv2d_affine_act_backward")
_ALIGNMENT = 16


def missing():
    if _native.cuda_missing:
        return _native.cuda_missing
    if not torch.cuda.is_available():
        return "no CUDA device that torch can use"
    built, capability = _native._cuda.build_info()["architectures"], torch.cuda.get_device_capability()
    if any(_runs_on(capability, each) for each in built.split()):
        return None
    own = "".join(map(str, capability))
    return (
        f"built for {built}, while {torch.cuda.get_device_name()} is of {own}: from 80 on, build with "
        f"RESNEXT_KERNELS_CUDA_ARCHITECTURES={own}"
    )


def _runs_on(capability: tuple[int, int], architecture: str) -> bool:
    """Whether code for `architecture`, as CMake names it, runs: machine code on its major version, PTX on all later."""
    number, _, kind = architecture.partition("-")
    major, minor = divmod(int(number.rstrip("af")), 10)
    is_machine_code = kind != "virtual" and capability[0] == major and capability[1] >= minor
    return is_machine_code or (kind != "real" and capability >= (major, minor))


def measured() -> bool:
    return torch.cuda.is_available() and tables.is_measured(device_name())


@torch.compiler.assume_constant_result
def device_name() -> str:
    """What measurements hold for."""
    return torch.cuda.get_device_name()


def unsupported_reasons(op, problem) -> list[str]:
    reasons = [missing()] if missing() else []
    if problem.device != DEVICE:
        reasons.append(f"runs on {DEVICE} tensors, got {problem.device}")
    if problem.dtype not in _DTYPES:
        reasons.append(f"takes float32, bfloat16 and float16, got {problem.dtype}")
    if op not in _CONVOLUTIONS + _GRADIENTS or reasons:
        return reasons
    if problem.layout != "nhwc":
        reasons.append("takes channels_last images, got NCHW: x.to(memory_format=torch.channels_last)")
    return reasons + memoised(_native_reasons, problem, op in _GRADIENTS)


def not_automatic_reasons(op, problem) -> list[str]:
    speedup = tables.speedup(device_name(), op, problem) if tables.ROWS else None
    if speedup is None:
        return [f"not measured on {device_name()}: run rk.calibrate(model, x), or name it: use_backend('cuda', 'aten')"]
    if speedup < tables.WORTHWHILE:
        return [f"measured at {speedup:.2f} times plain PyTorch's speed on {device_name()}"]
    return []


def _native_conv(problem, weight_strides):
    images = (0, 0, 0, 0)  # dense, channels last
    return _native._cuda.ConvProblem(problem.sizes, images, weight_strides, images, _DTYPES.index(problem.dtype))


def _native_reasons(problem, gradients) -> list[str]:
    native = _native_conv(problem, (0, 0, 0, 0))
    return native.backward_reasons() if gradients else native.reasons()


def _native_image(shape, channels_last, dtype):
    n, c, h, w = shape
    return _native._cuda.ImageProblem(n, c, h * w, channels_last, _DTYPES.index(dtype))


def queue(x) -> tuple[int, int]:
    """The device's ordinal and its current stream."""
    return x.device.index, torch._C._cuda_getCurrentRawStream(x.device.index)


def _dense(image, layout):
    """The image dense in `layout`, from an address that vectors of 16 bytes can be loaded from."""
    image = image.contiguous(memory_format=layout)
    return image if image.data_ptr() % _ALIGNMENT == 0 else image.clone()


def _address(tensor) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _workspace(x, size):
    return torch.empty(size, dtype=torch.uint8, device=x.device)


def _conv(x, weight, *conv):
    """(the native problem, x as the kernels take it, a tensor for the result, a workspace)."""
    problem = ConvProblem.from_tensors(x, weight, *conv)
    native = memoised(_native_conv, problem, weight.stride())
    y = torch.empty(problem.output_shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return native, _dense(x, torch.channels_last), y, _workspace(x, native.workspace())


def _forward(x, weight, scale, shift, conv, activation):
    native, x, y, workspace = _conv(x, weight, *conv)
    native.grouped_conv2d_fwd(
        x.data_ptr(), weight.data_ptr(), y.data_ptr(), _address(scale), _address(shift),
        ACTIVATIONS.index(activation), workspace.data_ptr(), *queue(x),
    )  # fmt: skip
    return y


def grouped_conv2d(x, weight, bias, *conv):
    bias = None if bias is None else bias.float().contiguous()
    return _forward(x, weight, None, bias, conv, "identity")


def grouped_conv2d_affine_act(x, weight, scale, shift, stride, padding, dilation, groups, activation):
    conv = stride, padding, dilation, groups
    return _forward(x, weight, scale.contiguous(), shift.contiguous(), conv, activation)


def _statistics(x, channels):
    return (torch.empty(channels, dtype=torch.float32, device=x.device) for _ in range(2))


def grouped_conv2d_stats(x, weight, *conv):
    native, x, z, workspace = _conv(x, weight, *conv)
    mean, m2 = _statistics(x, z.shape[1])
    native.grouped_conv2d_stats(
        x.data_ptr(), weight.data_ptr(), z.data_ptr(), mean.data_ptr(), m2.data_ptr(), workspace.data_ptr(), *queue(x)
    )
    return z, mean, m2


def _image(z):
    layout = memory_format(z)
    return memoised(_native_image, z.shape, layout is torch.channels_last, z.dtype), _dense(z, layout), layout


def bn_stats(z):
    native, z, _ = _image(z)
    mean, m2 = _statistics(z, z.shape[1])
    workspace = _workspace(z, native.bn_stats_workspace())
    native.bn_stats(z.data_ptr(), mean.data_ptr(), m2.data_ptr(), workspace.data_ptr(), *queue(z))
    return mean, m2


def affine_act(z, scale, shift, residual, activation):
    native, z, layout = _image(z)
    residual, y = None if residual is None else _dense(residual, layout), torch.empty_like(z, memory_format=layout)
    scale, shift = scale.contiguous(), shift.contiguous()
    native.affine_act(
        z.data_ptr(), scale.data_ptr(), shift.data_ptr(), _address(residual), y.data_ptr(),
        ACTIVATIONS.index(activation), *queue(z),
    )  # fmt: skip
    return y


def _backward_images(grad_output, z, y, activation, vectors):
    """(The native ImageProblem, its memory format, the addressable images and vectors); y only where it is read."""
    native, z, layout = _image(z)
    y = None if y is None or activation == "identity" else _dense(y, layout)
    vectors = [_dense(vector, torch.contiguous_format) for vector in vectors]
    return native, layout, _dense(grad_output, layout), z, y, vectors


def bn_act_reduce(grad_output, z, scale, shift, mean, rstd, y, activation):
    vectors = (scale, shift, mean, rstd)
    native, _, grad, z, y, vectors = _backward_images(grad_output, z, y, activation, vectors)
    sum_g, sum_g_xhat = _statistics(z, z.shape[1])
    workspace = _workspace(z, native.bn_act_reduce_workspace())
    native.bn_act_reduce(
        grad.data_ptr(), z.data_ptr(), *map(_address, vectors), _address(y), ACTIVATIONS.index(activation),
        sum_g.data_ptr(), sum_g_xhat.data_ptr(), workspace.data_ptr(), *queue(z),
    )  # fmt: skip
    return sum_g, sum_g_xhat


def affine_act_backward(grad_output, z, scale, shift, a, b, c, y, activation, output_mask):
    vectors = (scale, shift, a, b, c)
    native, layout, grad, z, y, vectors = _backward_images(grad_output, z, y, activation, vectors)
    dz, dresidual = (torch.empty_like(z, memory_format=layout) if asked else None for asked in output_mask)
    native.affine_act_backward(
        grad.data_ptr(), z.data_ptr(), *map(_address, vectors), _address(y), ACTIVATIONS.index(activation),
        _address(dz), _address(dresidual), *queue(z),
    )  # fmt: skip
    return tuple(z.new_empty(0) if image is None else image for image in (dz, dresidual))


def _dgrad(problem, grad, weight, bn=None, dz=None):
    """dx; grad is z's gradient or, with bn = (z, scale, shift, a, b, c, the activation), y's, and dz is filled."""
    native = memoised(_native_conv, problem, weight.stride())
    shape = problem.n, problem.c_in, problem.h, problem.w
    dx = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)
    workspace = _workspace(grad, native.dgrad_workspace())
    addresses = None if bn is None else (*map(_address, bn[:-1]), ACTIVATIONS.index(bn[-1]))
    native.grouped_conv2d_dgrad(
        grad.data_ptr(), weight.data_ptr(), dx.data_ptr(), addresses, _address(dz), workspace.data_ptr(), *queue(grad)
    )  # fmt: skip
    return dx


def _wgrad(problem, grad, x, weight):
    dw = torch.empty_like(weight, memory_format=memory_format(weight))
    native = memoised(_native_conv, problem, dw.stride())
    x, workspace = _dense(x, torch.channels_last), _workspace(x, native.wgrad_workspace())
    native.grouped_conv2d_wgrad(x.data_ptr(), grad.data_ptr(), dw.data_ptr(), workspace.data_ptr(), *queue(x))
    return dw


def _sum(grad):
    """Over all but the channels, in float32."""
    zeros = [grad.new_zeros(grad.shape[1], dtype=torch.float32)] * 4
    return bn_act_reduce(grad, grad, *zeros, None, "identity")[0]


def grouped_conv2d_backward(grad_output, x, weight, *rest):
    *conv, output_mask = rest
    problem, grad = ConvProblem.from_tensors(x, weight, *conv), _dense(grad_output, torch.channels_last)
    nothing = x.new_empty(0)
    return (
        _dgrad(problem, grad, weight) if output_mask[0] else nothing,
        _wgrad(problem, grad, x, weight) if output_mask[1] else nothing,
        _sum(grad).to(x.dtype) if output_mask[2] else nothing,
    )


def grouped_conv2d_affine_act_backward(grad_output, z, scale, shift, a, b, c, x, weight, *rest):
    """dgrad makes dz on the way and leaves it for wgrad; in float32, and for wgrad alone, a pass of its own does."""
    *conv, activation, output_mask = rest
    vectors = (scale, shift, a, b, c)
    if x.dtype is torch.float32 or not output_mask[0]:
        dz, _ = affine_act_backward(grad_output, z, *vectors, None, activation, (True, False))
        return grouped_conv2d_backward(dz, x, weight, *conv, (*output_mask, False))[:2]
    problem = ConvProblem.from_tensors(x, weight, *conv)
    grad, z = (_dense(image, torch.channels_last) for image in (grad_output, z))
    dz = torch.empty_like(z) if output_mask[1] else None
    dx = _dgrad(problem, grad, weight, (z, *(vector.contiguous() for vector in vectors), activation), dz)
    return dx, _wgrad(problem, dz, x, weight) if output_mask[1] else x.new_empty(0)
