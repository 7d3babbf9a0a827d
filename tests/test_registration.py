"""opcheck, gradcheck and fullgraph compilation of every op."""

import pytest
import torch

import resnext_kernels as rk

CONV = ([1, 1], [1, 1], [1, 1], 2)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("backend", ["cpu,aten", "aten", "reference"])
def test_opcheck(backend, memory_format):
    x = torch.randn(2, 4, 5, 6).contiguous(memory_format=memory_format).requires_grad_()
    weight, bias = torch.randn(6, 2, 3, 3, requires_grad=True), torch.randn(6, requires_grad=True)
    ops = torch.ops.resnext_kernels
    torch.library.opcheck(ops.grouped_conv2d.default, (x, weight, bias, *CONV, backend))
    grad = torch.randn(2, 6, 5, 6)
    for mask in ([True, True, True], [False, True, False], [True, False, False]):
        torch.library.opcheck(ops.grouped_conv2d_backward.default, (grad, x, weight, *CONV, mask, backend))
    scale, shift = torch.rand(6), torch.randn(6)
    args = (x.detach(), weight.detach(), scale, shift, *CONV, "silu", backend)
    torch.library.opcheck(ops.grouped_conv2d_affine_act.default, args)


@pytest.mark.parametrize("backend", ["aten", "reference"])
def test_gradcheck_twice(backend):
    x = torch.randn(1, 4, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def conv(*args):
        with rk.use_backend(backend):
            return rk.functional.grouped_conv2d(*args, stride=2, padding=1, groups=2)

    assert torch.autograd.gradcheck(conv, (x, weight, bias))
    assert torch.autograd.gradgradcheck(conv, (x, weight, bias))


def test_compile_fullgraph():
    x, weight = torch.randn(2, 4, 5, 6, requires_grad=True), torch.randn(6, 2, 3, 3, requires_grad=True)

    def conv(x, weight):
        return rk.functional.grouped_conv2d(x, weight, padding=1, groups=2)

    with rk.use_backend("cpu", "aten"):
        compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")(x, weight)
        eager = conv(x, weight)
    torch.testing.assert_close(compiled, eager, rtol=0, atol=0)
    grads = [torch.autograd.grad(y.square().sum(), (x, weight)) for y in (compiled, eager)]
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_functorch_and_forward_mode():
    x, weight = torch.randn(2, 4, 5, 6), torch.randn(6, 2, 3, 3)

    def loss(weight):
        return rk.functional.grouped_conv2d(x, weight, padding=1, groups=2).square().sum()

    expected = torch.autograd.grad(loss(leaf := weight.clone().requires_grad_()), leaf)[0]
    torch.testing.assert_close(torch.func.grad(loss)(weight), expected)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(weight, weight)
        with pytest.raises(RuntimeError, match="jvp"):
            loss(dual)
