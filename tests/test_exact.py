"""Integer inputs whose every partial sum is exact: results are compared bit for bit with a float64 reference."""

import pytest
import torch
import torch.nn.functional as F

import resnext_kernels as rk

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
# n, c_in, c_out, h, w, kernel, stride, padding, dilation, groups; corners of the cpu kernel's strips and tiles
SHAPES = [
    (2, 128, 128, 56, 56, 3, 1, 1, 1, 32),
    (1, 256, 256, 14, 14, 3, 2, 1, 1, 32),
    (2, 28, 28, 9, 11, 3, 1, 2, 2, 2),
    (1, 6, 9, 7, 5, 3, 2, 1, 1, 3),
    (1, 10, 10, 1, 1, 3, 1, 1, 1, 5),
    (2, 8, 4, 5, 6, 1, 1, 0, 1, 4),
    (1, 4, 4, 30, 30, 5, 3, 4, 3, 1),
    (1, 8, 8, 1, 97, 3, 1, 1, 1, 8),
    (1, 66, 66, 4, 4, 3, 1, 4, 4, 1),
    (0, 8, 8, 4, 4, 3, 1, 1, 1, 2),
]


def integers(shape, high, dtype, memory_format=torch.contiguous_format):
    return torch.randint(-high, high + 1, shape).to(dtype).contiguous(memory_format=memory_format)


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORWARD = [("cpu", torch.float32), *((backend, dtype) for backend in ("aten", "reference") for dtype in DTYPES)]


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend, dtype", FORWARD, ids=str)
def test_conv_is_exact(backend, dtype, shape, layout):
    n, c_in, c_out, h, w, kernel, stride, padding, dilation, groups = shape
    torch.manual_seed(0)
    x = integers((n, c_in, h, w), 2, dtype, FORMATS[layout])
    weight = integers((c_out, c_in // groups, kernel, kernel), 1, dtype)
    bias = integers((c_out,), 3, dtype)
    conv = (stride, padding, dilation, groups)
    with rk.use_backend(backend):
        y = rk.functional.grouped_conv2d(x, weight, bias, *conv)
    assert n == 0 or y.is_contiguous(memory_format=FORMATS[layout])
    expected = F.conv2d(x.double(), weight.double(), bias.double(), *conv).to(dtype)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
@pytest.mark.parametrize("backend", ["aten", "reference"])
def test_conv_backward_is_exact(backend, shape, dtype, layout):
    n, c_in, c_out, h, w, kernel, stride, padding, dilation, groups = shape
    torch.manual_seed(0)
    x = integers((n, c_in, h, w), 1, dtype, FORMATS[layout]).requires_grad_()
    weight = integers((c_out, c_in // groups, kernel, kernel), 1, dtype).requires_grad_()
    conv = (stride, padding, dilation, groups)
    with rk.use_backend(backend):
        y = rk.functional.grouped_conv2d(x, weight, None, *conv)
    # density 1/8 keeps wgrad's sums over N * OH * OW within the dtype's integers before the final rounding
    grad = integers(y.shape, 1, dtype) * (torch.rand(y.shape) < 0.125)
    dx, dw = torch.autograd.grad(y, (x, weight), grad)
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    expected = torch.autograd.grad(F.conv2d(*wide, None, *conv), wide, grad.double())
    torch.testing.assert_close(dx, expected[0].to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(dw, expected[1].to(dtype), rtol=0, atol=0)
