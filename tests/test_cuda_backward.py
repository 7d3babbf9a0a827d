"""Gradients of whole ops and blocks through the CUDA kernels, under emulation."""

import pytest
import timm
import torch
from cuda_problems import ONLY_FLOAT32, PROBLEMS, nhwc
from emulated import modes

import resnext_kernels as rk
from resnext_kernels.backends import cuda
from resnext_kernels.testing import cases, exact
from resnext_kernels.testing.verify import judge, verify

OPS = ("grouped_conv2d_backward", "grouped_conv2d_affine_act_backward")
HALVES = (torch.float16, torch.bfloat16)
# More of float32: test_cuda_backward_float.py.
CASES = [(text, dtype) for text in PROBLEMS for dtype in HALVES]
CASES += [(text, torch.float32) for text in PROBLEMS[::5] + ONLY_FLOAT32]
REFUSED = {"n1_c32_o64_h4_g1": "takes up to 32 channels a group", "n1_c16_h4_g2_p3_s2": "padding of up to 2 * dilation"}


@pytest.fixture(autouse=True)
def kernels(emulated_cuda):
    yield emulated_cuda


def _taken(text, dtype):
    problem = nhwc(text, dtype)
    reasons = cuda.unsupported_reasons(OPS[0], problem)
    if dtype is torch.float32 or text not in REFUSED:
        assert not reasons
        return problem
    assert any(REFUSED[text] in reason for reason in reasons)
    return None


@pytest.mark.parametrize(("text", "dtype"), CASES, ids=str)
def test_exact(kernels, text, dtype):
    problem = _taken(text, dtype)
    for _ in modes(kernels, text) if problem else ():
        assert exact.mismatch(OPS[0], problem, "cuda") is None
        for activation in ("relu", "identity"):
            assert exact.mismatch(OPS[1], problem, "cuda", activation=activation) is None


@pytest.mark.parametrize(("text", "dtype"), CASES[::2], ids=str)
def test_gates(kernels, text, dtype):
    problem = _taken(text, dtype)
    for _ in modes(kernels, text) if problem else ():
        for op, activation in zip(OPS, ("identity", "silu"), strict=True):
            verdict = verify(op, problem, "cuda", activation=activation)
            assert verdict.passed, verdict


@pytest.mark.parametrize("dtype", cuda._DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_one_gradient_alone(op, dtype):
    """What is not asked for is empty, what is asked for has the bits that it has beside the other."""
    args = cases.make(op, nhwc("n2_c32_h6_w9_g4_s2", dtype), integers=False)
    wanted = len(args[-1])
    both = getattr(cuda, op)(*args)
    for i in range(wanted):
        mask = [i == j for j in range(wanted)]
        results = getattr(cuda, op)(*args[:-1], mask)
        assert torch.equal(results[i], both[i])
        assert all(result.numel() == 0 for j, result in enumerate(results) if j != i)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", cuda._DTYPES, ids=str)
def test_an_empty_batch(op, dtype):
    args = cases.make(op, nhwc("n0_c16_h5_g2", dtype), integers=True)
    dx, dw, *_ = getattr(cuda, op)(*args)
    assert dx.shape == (0, 16, 5, 5) and dw.shape == (16, 8, 3, 3) and not dw.any()


def test_a_gradient_that_is_expanded_or_of_another_layout():
    problem = nhwc("n2_c16_h6_g2", torch.float16)
    args = list(cases.make(OPS[0], problem, integers=True))
    args[0] = torch.ones((1, 1, 1, 1), dtype=torch.float16).expand(problem.output_shape)
    assert judge(OPS[0], tuple(args), cuda.grouped_conv2d_backward(*args)).ratio == 0
    args[0] = args[0].contiguous()
    args[2] = args[2].transpose(2, 3).contiguous().transpose(2, 3)
    assert judge(OPS[0], tuple(args), cuda.grouped_conv2d_backward(*args)).ratio == 0


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_swapped_block(stride, dtype, frozen):
    """All of a training step is the kernels'; running statistics are not frozen in the other."""
    layer = timm.create_model("resnext50_32x4d").layer2 if stride == 2 else timm.create_model("resnext50_32x4d").layer1
    block = rk.swap(layer[0].to(dtype).to(memory_format=torch.channels_last)).train(not frozen)
    x = torch.randn(1, 64 * stride**2, 10, 10).to(dtype).to(memory_format=torch.channels_last)
    results = {}
    for backend in ("cuda,aten", "reference"):
        own = x.clone().requires_grad_()
        parameters = [own, block.conv2.weight, block.bn2.weight, block.bn2.bias]
        with rk.use_backend(backend), rk.backends.record() as ran:
            y = block(own)
            grads = torch.autograd.grad(y.square().sum(), parameters)
        results[backend] = (y, *grads)
        assert {name for _, _, name in ran} == {backend.partition(",")[0]}
    for result, expected in zip(*results.values(), strict=True):
        torch.testing.assert_close(result, expected, rtol=2e-2 if dtype is torch.bfloat16 else 1e-4, atol=1e-2)
