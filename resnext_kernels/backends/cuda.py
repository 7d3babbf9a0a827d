"""CUDA C++ kernels (csrc/cuda) on the current stream."""

import torch

from .. import _native, tables
from .._memo import memoised
from ..checks import ACTIVATIONS
from ..problem import ConvProblem, memory_format

NAME = DEVICE = "cuda"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # in the order of csrc/problem.h
_CONVOLUTIONS = ("grouped_conv2d", "grouped_conv2d_affine_act", "grouped_conv2d_stats", "grouped_conv2d_backward")
_ALIGNMENT = 16


def missing():
    if _native.cuda_missing:
        return _native.cuda_missing
    return None if torch.cuda.is_available() else "no CUDA device that torch can use"


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
    if op not in _CONVOLUTIONS or reasons:
        return reasons
    if problem.layout != "nhwc":
        reasons.append("takes channels_last images, got NCHW: x.to(memory_format=torch.channels_last)")
    return reasons + memoised(_native_reasons, problem, op.endswith("backward"))


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


def _native_reasons(problem, backward) -> list[str]:
    native = _native_conv(problem, (0, 0, 0, 0))
    return native.backward_reasons() if backward else native.reasons()


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


def grouped_conv2d_backward(grad_output, x, weight, stride, padding, dilation, groups, output_mask):
    problem = ConvProblem.from_tensors(x, weight, stride, padding, dilation, groups)
    native = memoised(_native_conv, problem, weight.stride())
    grad, x = _dense(grad_output, torch.channels_last), _dense(x, torch.channels_last)
    workspace = _workspace(x, native.backward_workspace())
    dx = dw = db = x.new_empty(0)
    if output_mask[0]:
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        addresses = grad.data_ptr(), weight.data_ptr(), dx.data_ptr(), workspace.data_ptr()
        native.grouped_conv2d_dgrad(*addresses, *queue(x))
    if output_mask[1]:
        dw = torch.empty_like(weight, memory_format=memory_format(weight))
        addresses = x.data_ptr(), grad.data_ptr(), dw.data_ptr(), workspace.data_ptr()
        memoised(_native_conv, problem, dw.stride()).grouped_conv2d_wgrad(*addresses, *queue(x))
    if output_mask[2]:
        db = grad_output.float().sum((0, 2, 3)).to(x.dtype)
    return dx, dw, db
