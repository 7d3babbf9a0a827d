"""Native C++ kernels (csrc/cpu) on torch's thread pool."""

import torch

from .. import _native, tables
from .._memo import memoised
from ..checks import ACTIVATIONS
from ..problem import ConvProblem, memory_format

NAME = DEVICE = "cpu"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # in the order of csrc/problem.h
# What a CPU has beside AVX-512 is a matter of its model.
_PROCESSOR = f"{tables.cpu_model()}, {str(_native.cpu_isa).partition('_')[0]}"


def missing():
    return _native.missing


def measured() -> bool:
    return tables.is_measured(f"{_PROCESSOR}, ")  # on any number of threads


@torch.compiler.assume_constant_result
def device_name() -> str:
    """What measurements hold for: the processor, the instruction set in use, the number of threads."""
    return f"{_PROCESSOR}, {torch.get_num_threads()} threads"


def unsupported_reasons(op, problem) -> list[str]:
    reasons = [_native.missing] if _native.missing else []
    if problem.device != DEVICE:
        reasons.append(f"runs on {DEVICE} tensors, got {problem.device}")
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


def _address(tensor) -> int:
    return 0 if tensor is None else tensor.data_ptr()


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


def _native_image(shape, channels_last, dtype):
    n, c, h, w = shape
    return _native._C.ImageProblem(n, c, h * w, channels_last, _DTYPES.index(dtype))


def _image(z):
    """(The native ImageProblem of z, the memory format that all its images must be in.)"""
    layout = memory_format(z)
    return memoised(_native_image, z.shape, layout is torch.channels_last, z.dtype), layout


def bn_stats(z):
    problem, layout = _image(z)
    z = z.contiguous(memory_format=layout)
    mean, m2 = (z.new_empty(z.shape[1], dtype=torch.float32) for _ in range(2))
    problem.bn_stats(z.data_ptr(), mean.data_ptr(), m2.data_ptr(), _native.parallel_for)
    return mean, m2


def affine_act(z, scale, shift, residual, activation):
    problem, layout = _image(z)
    z, scale, shift = z.contiguous(memory_format=layout), scale.contiguous(), shift.contiguous()
    residual = None if residual is None else residual.contiguous(memory_format=layout)
    y = torch.empty_like(z, memory_format=layout)
    problem.affine_act(
        z.data_ptr(), scale.data_ptr(), shift.data_ptr(), _address(residual), y.data_ptr(),
        ACTIVATIONS.index(activation), _native.parallel_for,
    )  # fmt: skip
    return y


def _backward_images(grad_output, z, y, activation):
    """(The native ImageProblem, its memory format, the three images in it); y only where the slope is read from it."""
    problem, layout = _image(z)
    y = None if y is None or activation == "identity" else y.contiguous(memory_format=layout)
    return problem, layout, grad_output.contiguous(memory_format=layout), z.contiguous(memory_format=layout), y


def bn_act_reduce(grad_output, z, scale, shift, mean, rstd, y, activation):
    problem, _, grad, z, y = _backward_images(grad_output, z, y, activation)
    vectors = [vector.contiguous() for vector in (scale, shift, mean, rstd)]
    sum_g, sum_g_xhat = (torch.empty_like(vectors[0]) for _ in range(2))
    problem.bn_act_reduce(
        grad.data_ptr(), z.data_ptr(), *map(_address, vectors), _address(y), ACTIVATIONS.index(activation),
        sum_g.data_ptr(), sum_g_xhat.data_ptr(), _native.parallel_for,
    )  # fmt: skip
    return sum_g, sum_g_xhat


def affine_act_backward(grad_output, z, scale, shift, a, b, c, y, activation, output_mask):
    problem, layout, grad, z, y = _backward_images(grad_output, z, y, activation)
    vectors = [vector.contiguous() for vector in (scale, shift, a, b, c)]
    dz, dresidual = (torch.empty_like(z, memory_format=layout) if asked else None for asked in output_mask)
    problem.affine_act_backward(
        grad.data_ptr(), z.data_ptr(), *map(_address, vectors), _address(y), ACTIVATIONS.index(activation),
        _address(dz), _address(dresidual), _native.parallel_for,
    )  # fmt: skip
    return tuple(z.new_empty(0) if image is None else image for image in (dz, dresidual))


def grouped_conv2d_affine_act(x, weight, scale, shift, stride, padding, dilation, groups, activation):
    return _forward(x, weight, scale.contiguous(), shift.contiguous(), stride, padding, dilation, groups, activation)


def _are_native(*vectors) -> bool:
    return all(v is None or (v.dtype is torch.float32 and v.is_contiguous()) for v in vectors)


def _direct(problem, x, weight):
    """(the native problem, a function that makes y)."""
    y = torch.empty(problem.output_shape, dtype=x.dtype, memory_format=memory_format(x))
    shape, strides = y.shape, y.stride()
    return _native_problem(problem, x, weight.float(), y), lambda x: x.new_empty_strided(shape, strides)


def direct_conv(problem, x, weight, bias):
    """The recipe of grouped_conv2d, a function of (x, weight, bias); see direct.py."""
    if not _are_native(bias):
        return None
    native, output = _direct(problem, x, weight)

    def run(x, weight, bias):
        y, weight = output(x), weight.float()
        addresses = x.data_ptr(), weight.data_ptr(), y.data_ptr(), 0, _address(bias)
        native.grouped_conv2d_fwd(*addresses, 0, _native.parallel_for)
        return y

    return run


def direct_conv_affine_act(problem, x, weight, scale, shift, activation):
    """The recipe of grouped_conv2d_affine_act, a function of (x, weight, scale, shift)."""
    if not _are_native(scale, shift):
        return None
    native, output = _direct(problem, x, weight)
    activation = ACTIVATIONS.index(activation)

    def run(x, weight, scale, shift):
        y, weight = output(x), weight.float()
        addresses = x.data_ptr(), weight.data_ptr(), y.data_ptr(), scale.data_ptr(), shift.data_ptr()
        native.grouped_conv2d_fwd(*addresses, activation, _native.parallel_for)
        return y

    return run


def direct_conv_bn_act(problem, x, weight, bn_weight, bn_bias, mean, var, eps, activation):
    """The recipe of grouped_conv2d_bn_act in evaluation, a function of its tensors."""
    if not _are_native(bn_weight, bn_bias, mean, var):
        return None
    native, output = _direct(problem, x, weight)
    activation = ACTIVATIONS.index(activation)

    def run(x, weight, bn_weight, bn_bias, mean, var):
        y, weight = output(x), weight.float()
        bn = _address(bn_weight), _address(bn_bias), mean.data_ptr(), var.data_ptr(), eps
        native.grouped_conv2d_bn_act(
            x.data_ptr(), weight.data_ptr(), y.data_ptr(), *bn, activation, _native.parallel_for
        )  # fmt: skip
        return y

    return run


def direct_bn_act(problem, z, residual, bn_weight, bn_bias, mean, var, eps, activation):
    """The recipe of bn_act in evaluation, a function of its tensors."""
    native, layout = _image(z)
    dense = all(image is None or image.is_contiguous(memory_format=layout) for image in (z, residual))
    if not dense or not _are_native(bn_weight, bn_bias, mean, var):
        return None
    activation = ACTIVATIONS.index(activation)

    def run(z, residual, bn_weight, bn_bias, mean, var):
        y = torch.empty_like(z)
        bn = _address(bn_weight), _address(bn_bias), mean.data_ptr(), var.data_ptr(), eps
        native.bn_act(z.data_ptr(), _address(residual), y.data_ptr(), *bn, activation, _native.parallel_for)
        return y

    return run


def grouped_conv2d_stats(x, weight, stride, padding, dilation, groups):
    z = _forward(x, weight, None, None, stride, padding, dilation, groups, "identity")
    return z, *bn_stats(z)


def _dgrad(problem, grad, x, weight, bn):
    weight, dx = weight.float(), torch.empty_like(x, memory_format=memory_format(x))
    _native_problem(problem, dx, weight, grad).grouped_conv2d_dgrad(
        grad.data_ptr(), weight.data_ptr(), dx.data_ptr(), bn, _native.parallel_for
    )
    return dx


def _wgrad(problem, grad, x, weight, bn):
    dw = torch.empty_like(weight, dtype=torch.float32, memory_format=memory_format(weight))
    _native_problem(problem, x, dw, grad).grouped_conv2d_wgrad(
        grad.data_ptr(), x.data_ptr(), dw.data_ptr(), bn, _native.parallel_for
    )
    return dw.to(weight.dtype)


def _grads(problem, grad, x, weight, bn, output_mask):
    """(dx, dw); with bn = (z's address, those of scale, shift, a, b, c, the activation) of the dz that it makes."""
    functions = zip((_dgrad, _wgrad), output_mask, strict=True)
    return tuple(f(problem, grad, x, weight, bn) if asked else x.new_empty(0) for f, asked in functions)


def grouped_conv2d_backward(grad_output, x, weight, stride, padding, dilation, groups, output_mask):
    problem = ConvProblem.from_tensors(x, weight, stride, padding, dilation, groups)
    grad, db = grad_output.contiguous(memory_format=memory_format(x)), x.new_empty(0)
    if output_mask[2]:
        zeros = [grad.new_zeros(problem.c_out, dtype=torch.float32)] * 4
        db = bn_act_reduce(grad, grad, *zeros, None, "identity")[0].to(x.dtype)
    return *_grads(problem, grad, x, weight, None, output_mask[:2]), db


def grouped_conv2d_affine_act_backward(
    grad_output, z, scale, shift, a, b, c, x, weight, stride, padding, dilation, groups, activation, output_mask
):
    problem = ConvProblem.from_tensors(x, weight, stride, padding, dilation, groups)
    grad, z = (image.contiguous(memory_format=memory_format(x)) for image in (grad_output, z))
    vectors = [vector.contiguous() for vector in (scale, shift, a, b, c)]
    bn = (z.data_ptr(), *map(_address, vectors), ACTIVATIONS.index(activation))
    return _grads(problem, grad, x, weight, bn, output_mask)
