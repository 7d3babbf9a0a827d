"""The CUDA backward of the convolution in float32 under emulation: exact integers, gates, memory, plans."""

from dataclasses import replace

import pytest
import torch
from cuda_problems import ONLY_FLOAT32, PROBLEMS, nhwc
from emulated import modes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cuda_plan import MOST_X, MOST_Y, SHARED

from resnext_kernels.backends import cuda
from resnext_kernels.testing import cases, exact, problems
from resnext_kernels.testing.verify import call, verify

OP = "grouped_conv2d_backward"
# Strides and dilations that leave pixels without taps, taps that meet in one class of pixels or in none, unlike axes,
# tiles of each shape, segments of rows, channels of which a block has no whole number.
BACKWARD = [
    "n1_c8_h9_g2_s3", "n1_c8_h11_w8_g2_s4_p0", "n1_c8_h12_g2_s2_d2_p2", "n1_c8_h13_w9_g1_s3_d3_p1",
    "n2_c4_h9_g4_s4_d2_p3", "n1_c8_h9_w12_g2_s1x2", "n1_c8_h9_w12_g2_s2x1_d1x2", "n1_c8_h10_g2_s2x3_p0x2",
    "n1_c6_o4_h9_g2_s2", "n1_c12_h8_g1_s2_p0", "n1_c8_h4_w150_g2", "n1_c8_h4_w150_g2_s2", "n1_c132_h3_g33_s2",
    "n3_c72_h5_o48_g2_s2", "n1_c20_o40_h6_g1", "n1_c160_h5_g1_s2", "n1_c3_h9_o16_g1_s2", "n1_c8_h6_g2_s2_p5",
    "n1_c64_h10_g1_s2", "n2_c16_h8_g8_s2_p2", "n2_c16_h7_g16_s2",
]  # fmt: skip
# So many splits that a thread of the merge has more than it loads at a time.
SPLITS = ["n1_c4_h1100_w1_g1", "n1_c4_h530_w2_g1"]
ALL = SPLITS + PROBLEMS + ONLY_FLOAT32 + BACKWARD


@pytest.fixture(autouse=True)
def kernels(emulated_cuda):
    yield emulated_cuda


def _native(problem, weight_strides=(0, 0, 0, 0)):
    return cuda._native_conv(problem, weight_strides)


@pytest.mark.parametrize("text", ALL)
def test_exact(kernels, text):
    problem = nhwc(text, torch.float32)
    assert not cuda.unsupported_reasons(OP, problem)
    for _ in modes(kernels, text):
        assert exact.mismatch(OP, problem, "cuda") is None


@pytest.mark.parametrize("text", ALL[::2])
def test_gates(kernels, text):
    for _ in modes(kernels, text):
        verdict = verify(OP, nhwc(text, torch.float32), "cuda")
        assert verdict.passed, verdict


def _arguments(problem):
    *tensors, stride, padding, dilation, groups, _ = cases.make(OP, problem, integers=True)
    return tensors, (stride, padding, dilation, groups, [True, True, False])


@pytest.mark.parametrize("text", ALL[::3])
def test_nothing_beyond_the_tensors(kernels, text):
    """Loads and stores outside the tensors, and bytes stored twice, are errors of the emulation."""
    problem = nhwc(text, torch.float32)
    (grad, x, weight), _ = _arguments(problem)
    native = _native(problem, weight.stride())
    dx, dw = torch.empty_like(x), torch.empty_like(weight)
    workspace = torch.empty(native.wgrad_workspace(), dtype=torch.uint8)
    for tensor, writable in ((grad, False), (x, False), (weight, False), (dx, True), (dw, True), (workspace, True)):
        kernels.add_region(tensor.data_ptr(), tensor.numel() * tensor.element_size(), writable)
    try:
        native.grouped_conv2d_dgrad(*(t.data_ptr() for t in (grad, weight, dx)), None, 0, 0, 0, 0)
        assert kernels.counters()["bytes_stored"] == 4 * dx.numel()
        native.grouped_conv2d_wgrad(*(t.data_ptr() for t in (x, grad, dw, workspace)), 0, 0)
        assert kernels.counters()["bytes_stored"] == 4 * dw.numel()
    finally:
        kernels.clear_regions()


def _moved(image, elements):
    """A copy so many elements behind an address that is aligned."""
    memory = torch.empty(image.numel() + elements)[elements:]
    return memory.as_strided(image.shape, image.stride()).copy_(image)


@pytest.mark.parametrize("text", ["n2_c16_h6_g4", "n2_c16_h6_g4_s2", "n1_c6_h7_g2_s3"])
def test_weights_in_any_strides_and_images_at_any_address(text):
    (grad, x, weight), rest = _arguments(nhwc(text, torch.float32))
    expected = call(OP, (grad, x, weight, *rest), "reference")
    strided = weight.transpose(2, 3).contiguous().transpose(2, 3)
    for weights in (weight.to(memory_format=torch.channels_last), strided):
        for got, want in zip(call(OP, (grad, x, weights, *rest), "cuda"), expected, strict=True):
            assert torch.equal(got, want)
    native = _native(nhwc(text, torch.float32), strided.stride())
    dw = torch.empty_strided(strided.shape, strided.stride())
    workspace = torch.empty(native.wgrad_workspace(), dtype=torch.uint8)
    for grad_off, x_off in ((1, 1), (1, 0), (0, 1)):
        own_grad, own_x, dx = _moved(grad, grad_off), _moved(x, x_off), _moved(x, x_off).fill_(float("nan"))
        native.grouped_conv2d_dgrad(*(t.data_ptr() for t in (own_grad, strided, dx)), None, 0, 0, 0, 0)
        native.grouped_conv2d_wgrad(*(t.data_ptr() for t in (own_x, own_grad, dw, workspace)), 0, 0)
        assert torch.equal(dx, expected[0]) and torch.equal(dw, expected[1])


@pytest.mark.parametrize("mask", [[True, False, False], [False, True, False], [False, False, True]], ids=str)
def test_what_is_not_asked_for_is_empty(mask):
    tensors, rest = _arguments(nhwc("n1_c8_h5_g2_s2", torch.float32))
    results = call(OP, (*tensors, *rest[:-1], mask), "cuda")
    assert [result.numel() > 0 for result in results] == mask


@pytest.mark.parametrize("text", ["n0_c16_h5_g2", "n0_c16_h5_g2_s2", "n1_c8_h0_w5_g2_p2_s2", "n1_c8_h5_w0_g2_p2"])
def test_images_without_pixels(text):
    tensors, rest = _arguments(nhwc(text, torch.float32))
    # Without the dispatch, to which an empty image reads as NCHW.
    dx, dw, _ = cuda.grouped_conv2d_backward(*tensors, *rest)
    assert dx.shape == tensors[1].shape and torch.equal(dw, torch.zeros_like(dw))


def test_the_merge_reads_more_than_once():
    assert _native(nhwc(SPLITS[0], torch.float32)).wgrad_float_plan()["splits"] > 8 * 16


def test_reasons():
    problem, five = (nhwc(text, torch.float32) for text in ("n1_c64_h5_g16", "n1_c64_h5_g16_k5_p2"))
    assert any("3x3" in each for each in cuda.unsupported_reasons(OP, five))
    assert any("channels_last" in each for each in cuda.unsupported_reasons(OP, replace(problem, layout="nchw")))


def _check_dgrad(problem):
    plan, (x, y) = _native(problem).dgrad_float_plan(), _native(problem).dgrad_float_plan()["grid"]
    if 0 in (problem.n, problem.h, problem.w):
        assert x == 0
        return
    assert 0 < x <= MOST_X and 0 < y <= MOST_Y and 0 < plan["shared_bytes"] <= SHARED


def _check_wgrad(problem):
    """That the splits have all rows once, none of them too long a sum, within the limits of all devices."""
    native = _native(problem)
    plan, (n, _, oh, ow) = native.wgrad_float_plan(), problem.output_shape
    splits, (x, y) = plan["splits"], plan["grid"]
    assert plan["threads"] == 256
    if 0 in (n, oh, ow):
        assert x == splits == 0
        return
    assert 0 < x <= MOST_X and 0 < y <= MOST_Y
    segments = plan["units"] // (n * oh)
    assert plan["units"] == n * oh * segments and (segments - 1) * plan["columns"] < ow <= segments * plan["columns"]
    assert (splits - 1) * plan["split_units"] < plan["units"] <= splits * plan["split_units"]
    assert -(-plan["split_units"] // 8) * plan["columns"] <= 8192
    weights = problem.c_out * (problem.c_in // problem.groups) * 9
    assert plan["tiles"] * plan["tile"][0] * plan["tile"][1] * 9 == weights
    assert 4 * splits * weights <= native.wgrad_workspace()
    assert native.wgrad_float_plan() == plan


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(0, 300), h=st.integers(1, 300), w=st.integers(1, 300), groups=st.integers(1, 70),
    width=st.integers(1, 70), out=st.integers(1, 70), stride=st.integers(1, 4), padding=st.integers(0, 4),
    dilation=st.integers(1, 4),
)  # fmt: skip
def test_plans(n, h, w, groups, width, out, stride, padding, dilation):
    if min(h, w) + 2 * padding < 2 * dilation + 1:
        return
    text = f"n{n}_c{groups * width}_h{h}_w{w}_o{groups * out}_g{groups}_s{stride}_p{padding}_d{dilation}"
    _check_wgrad(nhwc(text, torch.float32))
    _check_dgrad(nhwc(text, torch.float32))


@pytest.mark.parametrize("batch", [1, 32, 256])
def test_partials_of_models_are_few(batch):
    for name, problem in problems.resnext50(batch).items():
        problem = replace(problem, dtype=torch.float32, layout="nhwc")
        _check_wgrad(problem)
        plan, (n, c, h, w) = _native(problem).wgrad_float_plan(), problem.output_shape
        images = n * (c * h * w + problem.c_in * problem.h * problem.w)
        few = plan["splits"] * problem.c_out * (problem.c_in // problem.groups) * 9 * 10 <= images
        # Else they fill the largest devices once, and no more.
        assert few or plan["grid"][0] < 264 + plan["grid"][0] // plan["splits"], name
