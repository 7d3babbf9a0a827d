"""The CUDA gradient of a convolution's input under emulation, plain and behind BatchNorm's backward."""

import pytest
import torch
from test_cuda_forward import PROBLEMS, _modes, _problem

from resnext_kernels.backends import cuda, reference
from resnext_kernels.checks import ACTIVATIONS
from resnext_kernels.testing import cases

HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def kernels(emulated_cuda):
    yield emulated_cuda


def _taken(text, dtype):
    problem = _problem(text, dtype)
    return problem, cuda._native_conv(problem, (0, 0, 0, 0)).dgrad_reasons()


def _dgrad(native, problem, grad, weight, dx, dz, bn, activation):
    addresses = (0, 0, 0, 0, 0, 0) if bn is None else [tensor.data_ptr() for tensor in bn]
    workspace = torch.empty(native.dgrad_workspace(), dtype=torch.uint8)
    bn = None if bn is None else (*addresses, ACTIVATIONS.index(activation))
    address = 0 if dz is None else dz.data_ptr()
    arguments = grad.data_ptr(), weight.data_ptr(), dx.data_ptr(), bn, address, workspace.data_ptr()
    native.grouped_conv2d_dgrad(*arguments, 0, 0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("text", PROBLEMS)
def test_exact(kernels, text, dtype):
    problem, reasons = _taken(text, dtype)
    if reasons:
        pytest.skip(f"{text}: {reasons}")
    for activation in (None, *ACTIVATIONS[:2]):
        args = cases.make("grouped_conv2d_affine_act_backward", problem, integers=True)
        grad, z, scale, shift, a, b, c, x, weight, *conv, _, _ = args
        native = cuda._native_conv(problem, weight.stride())
        dx = torch.empty_like(x)
        bn = None if activation is None else (z, scale, shift, a, b, c)
        dz = None if bn is None else torch.empty_like(z)
        expected = grad
        if bn:
            expected = reference.affine_act_backward(grad, *bn, None, activation, [True, False])[0]
        want = reference.grouped_conv2d_backward(expected, x, weight, *conv, [True, False, False])[0]
        for _ in _modes(kernels, text):
            _dgrad(native, problem, grad, weight, dx.fill_(float("nan")), dz, bn, activation)
            assert torch.equal(dx, want)
            assert dz is None or torch.equal(dz, expected)
