"""Native C++ kernels (csrc/cpu) on torch's thread pool."""

import torch

from .. import _native, tables
from .._memo import memoised
from ..checks import ACTIVATIONS
from ..problem import ConvProblem, memory_format
from . import aten

NAME = "cpu"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # in the order of csrc/problem.h
_PROCESSOR = f"{tables.cpu_model()}, {_native.cpu_isa}"


def missing():
    return _native.missing


def measured() -> bool:
    return bool(tables.ROWS)


@torch.compiler.assume_constant_result
def device_name() -> str:
    """What measurements hold for: the processor, the instruction set in use, the number of threads."""
    return f"{_PROCESSOR}, {torch.get_num_threads()} threads"


def unsupported_reasons(op, problem) -> list[str]:
    reasons = [_native.missing] if _native.missing else []
    if problem.device != "cpu":
        reasons.append(f"runs on cpu tensors, got {problem.device}")
    if problem.dtype not in _DTYPES:
        reasons.append(f"takes float32, bfloat16 and float16, got {problem.dtype}")
    return reasons


def not_automatic_reasons(op, problem) -> list[str]:
    speedup = tables.speedup(device_name(), op, problem) if tables.ROWS else None
    if speedup is None:
        return ["not measured on this CPU: run rk.calibrate(model, x), or name it: use_backend('cpu', 'aten')"]
    if speedup < tables.WORTHWHILE:
        return [f"measured at {speedup:.2f} times plain PyTorch's speed on {device_name()}"]
    return []


def _native_problem(problem, x, weight, y):
    """The native ConvProblem: `problem` with the strides of its tensors."""
    return memoised(_of_strides, problem, x.stride(), weight.stride(), y.stride())


def _of_strides(problem, x, weight, y):
    return _native._C.ConvProblem(problem.sizes, x, weight, y, _DTYPES.index(problem.dtype))


def _forward(x, weight, scale, shift, stride, padding, dilation, groups, activation):
    problem = ConvProblem.from_tensors(x, weight, stride, padding, dilation, groups)
    weight = weight.float()
    y = torch.empty(problem.output_shape, dtype=x.dtype, memory_format=memory_format(x))
    _native_problem(problem, x, weight, y).grouped_conv2d_fwd(
        x.data_ptr(), weight.data_ptr(), y.data_ptr(), 0 if scale is None else scale.data_ptr(),
        0 if shift is None else shift.data_ptr(), ACTIVATIONS.index(activation), _native.parallel_for,
    )  # fmt: skip
    return y


def grouped_conv2d(x, weight, bias, stride, padding, dilation, groups):
    bias = None if bias is None else bias.float().contiguous()
    return _forward(x, weight, None, bias, stride, padding, dilation, groups, "identity")


def grouped_conv2d_affine_act(x, weight, scale, shift, stride, padding, dilation, groups, activation):
    return _forward(x, weight, scale.contiguous(), shift.contiguous(), stride, padding, dilation, groups, activation)


def _wgrad(problem, grad_output, x, weight, bn=None):
    """dw where the output's gradient is grad_output or, with bn = (z, scale, shift, a, b, c, activation), the dz of it.

    grad_output has the strides of z.
    """
    dw = torch.empty_like(weight, dtype=torch.float32, memory_format=memory_format(weight))
    if bn is not None:
        *tensors, activation = bn
        bn = (*(tensor.data_ptr() for tensor in tensors), ACTIVATIONS.index(activation))
    _native_problem(problem, x, dw, grad_output).grouped_conv2d_wgrad(
        grad_output.data_ptr(), x.data_ptr(), dw.data_ptr(), bn, _native.parallel_for
    )
    return dw.to(weight.dtype)


def grouped_conv2d_backward(grad_output, x, weight, stride, padding, dilation, groups, output_mask):
    conv = (stride, padding, dilation, groups)
    mask = (output_mask[0], False, output_mask[2])
    dx, dw, db = aten.grouped_conv2d_backward(grad_output, x, weight, *conv, mask)
    if output_mask[1]:
        problem = ConvProblem.from_tensors(x, weight, *conv)
        dw = _wgrad(problem, grad_output.contiguous(memory_format=memory_format(x)), x, weight)
    return dx, dw, db


def grouped_conv2d_affine_act_backward(
    grad_output, z, scale, shift, a, b, c, x, weight, stride, padding, dilation, groups, activation, output_mask
):
    conv = (stride, padding, dilation, groups)
    vectors = [vector.contiguous() for vector in (scale, shift, a, b, c)]
    mask = (output_mask[0], False)
    dx, dw = aten.grouped_conv2d_affine_act_backward(grad_output, z, *vectors, x, weight, *conv, activation, mask)
    if output_mask[1]:
        problem, layout = ConvProblem.from_tensors(x, weight, *conv), memory_format(x)
        grad_output, z = grad_output.contiguous(memory_format=layout), z.contiguous(memory_format=layout)
        dw = _wgrad(problem, grad_output, x, weight, (z, *vectors, activation))
    return dx, dw
