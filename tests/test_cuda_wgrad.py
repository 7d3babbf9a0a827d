"""The weights' gradient on tensor cores under emulation: exact integers, error gates, its plan, what it reads."""

from dataclasses import replace

import pytest
import torch
from cuda_problems import PROBLEMS, nhwc
from emulated import modes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cuda_plan import MOST_X, MOST_Y, SHARED

from resnext_kernels.backends import cuda, reference
from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import cases, gates, problems

DTYPES = (torch.bfloat16, torch.float16)
MOST_CHAIN = 8192
# Several tiles in each of several splits, the last of fewer: dense and padded, both strides, 16 and 32 inputs a warp.
SPLIT = ["n61_c512_h4_w9_g16", "n21_c896_h3_w15_g64", "n110_c576_h5_w10_g36_s2", "n31_c512_h6_w18_g32_p3_d3",
         "n12_c448_h9_w15_g16_p3_d3"]  # fmt: skip


@pytest.fixture(autouse=True)
def kernels(emulated_cuda):
    yield emulated_cuda


def _arguments(problem, integers=True):
    """(dz, x, weight, stride, padding, dilation, groups)."""
    return cases.make("grouped_conv2d_backward", problem, integers=integers)[:-1]


def _wgrad(dz, x, weight, *conv):
    """dw, with the strides of `weight`."""
    native = cuda._native_conv(ConvProblem.from_tensors(x, weight, *conv), weight.stride())
    dw = torch.empty_like(weight)
    workspace = torch.empty(native.wgrad_workspace() // 4)
    addresses = (tensor.data_ptr() for tensor in (x, dz, dw, workspace))
    native.grouped_conv2d_wgrad(*addresses, 0, 0)
    return dw


def _exact(dz, x, weight, *conv):
    """dw in float64."""
    double = (tensor.double() for tensor in (dz, x, weight))
    return reference.grouped_conv2d_backward(*double, *conv, [False, True, False])[1]


def _check_exact(module, text, problem):
    arguments = _arguments(problem)
    expected = _exact(*arguments)
    assert expected.abs().max() > 0
    for _ in modes(module, text):
        assert torch.equal(_wgrad(*arguments).double(), expected.to(problem.dtype).double()), text


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("text", PROBLEMS)
def test_exact(kernels, text, dtype):
    _check_exact(kernels, text, nhwc(text, dtype))


@pytest.mark.parametrize("text", SPLIT)
def test_several_splits_of_several_tiles(kernels, text):
    problem = nhwc(text, DTYPES[len(text) % 2])
    plan = cuda._native_conv(problem, (0, 0, 0, 0)).wgrad_plan()
    assert plan["tiles"] > plan["grid"][0] > 1, plan
    _check_exact(kernels, text, problem)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("text", [*PROBLEMS[::3], SPLIT[1]])
def test_gate(kernels, text, dtype):
    problem = nhwc(text, dtype)
    arguments = _arguments(problem, integers=False)
    gate = gates.grouped_conv2d_backward(None, *arguments, [False, True, False])[1]
    for mode in modes(kernels, text):
        for truncate in (False, True):
            kernels.configure(**mode, truncate=truncate)
            error = (_wgrad(*arguments).double() - gate.expected).abs()
            assert (error <= gate.allowed).all(), (error / gate.allowed).max()


def test_strided_weights(kernels):
    problem = nhwc("n2_c64_h7_g16", torch.float16)
    dz, x, weight, *conv = _arguments(problem)
    strided = weight.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)
    assert strided.stride() != weight.stride()
    assert torch.equal(_wgrad(dz, x, strided, *conv), _wgrad(dz, x, weight, *conv))


def test_the_same_bits_in_every_order(kernels):
    arguments = _arguments(nhwc("n16_c64_h16_w35_g16", torch.bfloat16), integers=False)
    first, *others = [_wgrad(*arguments) for _ in modes(kernels, "")]
    assert all(torch.equal(first, each) for each in others)


@pytest.mark.parametrize("text", ["n2_c64_h7_g8", "n1_c64_h9_g8_p0", "n1_c64_h8_w40_g2", "n2_c64_h8_g8_s2",
                                  "n1_c28_h7_g2_p2_d2", "n1_c64_h70_w9_g16", "n40_c8_h3_w1_g2"])  # fmt: skip
def test_what_is_not_finite_stays_at_its_taps(kernels, text):
    """Whatever lies in x or dz: it spreads to no other channels, and none that PyTorch does not multiply counts."""
    problem = nhwc(text, torch.float16)
    dz, x, weight, *conv = _arguments(problem)
    dz = torch.ones_like(dz)
    for value in (torch.nan, torch.inf):
        for h in {0, problem.h // 2, problem.h - 1}:
            for n, w in ((0, 0), (problem.n - 1, problem.w - 1), (0, problem.w // 2)):
                odd = x.clone()
                odd[n, 3, h, w] = value
                expected = _exact(dz, odd, weight, *conv).half()
                assert torch.equal(_wgrad(dz, odd, weight, *conv).isnan(), expected.isnan()), (value, n, h, w)
    # PyTorch multiplies what dz meets in padding in some types and not in others: either will do.
    dz[0, 5, 0, 0] = torch.nan
    met = torch.zeros_like(dz)
    met[0, 5, 0, 0] = 1
    least, most = _exact(met, torch.ones_like(x), weight, *conv) != 0, _exact(dz, x, weight, *conv).isnan()
    result = _wgrad(dz, x, weight, *conv).isnan()
    assert least.any() and result[least].all() and not result[~most].any()
    # Of whole rows of padding nothing counts, as with PyTorch's kernels for 16 bits.
    rows = [kh for kh in range(3) if kh * problem.dilation[0] < problem.padding[0]]
    assert not result[:, :, rows].any()


@pytest.mark.parametrize("text", ["n2_c128_h56_g32", "n2_c256_h28_g32_s2", "n16_c64_h7_g2"])
def test_bytes_moved(kernels, text):
    """A tile reads the rows and columns around it once more, and nothing else is read twice."""
    problem = nhwc(text, torch.float16)
    dz, x, weight, *conv = _arguments(problem)
    kernels.take_launches()
    _wgrad(dz, x, weight, *conv)
    counters, _ = kernels.take_launches()  # the other merges
    plan, stride = _native(problem).wgrad_plan(), problem.stride[0]
    rows, columns = stride * plan["rows"], stride * plan["positions"]
    halo = (rows + 2) / rows * (columns + 2) / columns
    assert dz.nbytes + x.nbytes * 0.9 <= counters["bytes_copied"] <= dz.nbytes + halo * x.nbytes
    assert counters["bytes_stored"] == plan["workspace"]
    # Of the shared memory's cycles for ldmatrix; images of 7 columns have a frame at every seventh.
    assert counters["matrix_cycles"] <= 2 * counters["matrix_phases"]


def test_nothing_beyond_the_tensors(kernels):
    """Loads and stores outside the tensors, and bytes stored twice, are errors of the emulation."""
    for text in [*PROBLEMS[::2], SPLIT[1]]:
        problem = nhwc(text, torch.float16)
        dz, x, weight, *_ = _arguments(problem)
        native = cuda._native_conv(problem, weight.stride())
        dw, workspace = torch.empty_like(weight), torch.empty(native.wgrad_plan()["workspace"] // 4)
        for tensor in (x, dz, dw, workspace):
            writable = tensor is dw or tensor is workspace
            kernels.add_region(tensor.data_ptr(), tensor.numel() * tensor.element_size(), writable)
        try:
            native.grouped_conv2d_wgrad(*(t.data_ptr() for t in (x, dz, dw, workspace)), 0, 0)
        finally:
            kernels.clear_regions()
        assert not workspace.isnan().any(), text


def test_an_empty_batch(kernels):
    problem = nhwc("n0_c16_h5_g2", torch.float16)
    x = torch.empty(0, 16, 5, 5, dtype=torch.float16)
    weight = torch.ones(16, 8, 3, 3, dtype=torch.float16)
    native = cuda._native_conv(problem, weight.stride())
    assert native.wgrad_plan()["grid"][0] == 0 == native.wgrad_workspace()
    dw = torch.empty_like(weight)
    native.grouped_conv2d_wgrad(x.data_ptr(), x.data_ptr(), dw.data_ptr(), 0, 0, 0)
    assert torch.equal(dw, torch.zeros_like(dw))


def _native(problem):
    return cuda._native_conv(problem, (0, 0, 0, 0))


def _check_plan(problem):
    """That the plan covers all rows, once, within the limits of devices and of its own."""
    plan, forward = _native(problem).wgrad_plan(), _native(problem).forward_plan()
    assert plan == _native(problem).wgrad_plan()
    (splits, channel_blocks), positions, rows = plan["grid"], plan["positions"], plan["rows"]
    assert plan["threads"] in (128, 256) and 0 < plan["shared_bytes"] <= SHARED
    partials = 4 * 9 * problem.c_out * (problem.c_in // problem.groups)
    assert plan["workspace"] == splits * partials
    if 0 in problem.output_shape:
        assert splits == 0
        return
    assert 0 < splits <= MOST_X and 0 < channel_blocks <= MOST_Y
    assert 0 < positions <= forward["positions"]
    oh, ow = problem.output_shape[2:]
    phases = problem.dilation[0]
    row_blocks = plan["row_blocks"] // phases
    assert row_blocks * phases == plan["row_blocks"]
    assert (row_blocks - 1) * rows < -(-oh // phases) <= row_blocks * rows
    column_blocks = plan["tiles"] // plan["row_blocks"]
    assert (column_blocks - 1) * positions < problem.n * ow <= column_blocks * positions
    assert plan["tiles"] == column_blocks * plan["row_blocks"] >= splits
    chain = positions * rows * -(-plan["tiles"] // splits)
    assert chain <= MOST_CHAIN
    # Columns of zeros lie behind those of the positions, for places that are none.
    frame = 2 * problem.dilation[1] if problem.stride[0] == 1 else 1
    used = positions + frame * (1 + -(-(positions - 1) // ow)) + (frame + 1 if positions < 32 else 0)
    assert used <= forward["columns"]
    images = 2 * (problem.n * problem.c_in * problem.h * problem.w + problem.n * problem.c_out * oh * ow)
    # Beyond a tenth of the bytes only as far as blocks for the multiprocessors, or as short sums, ask for it.
    assert splits * partials <= images / 10 or splits * channel_blocks <= 132 or splits == 1 or 2 * chain > MOST_CHAIN


@pytest.mark.parametrize("n", [32, 256])
def test_plans_of_models(kernels, n):
    shapes = {**problems.resnext50(n), **problems.cardinality(n), **problems.regnety_016(n)}
    for problem in shapes.values():
        problem = replace(problem, dtype=torch.float16, layout="nhwc")
        if not _native(problem).reasons():
            _check_plan(problem)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(0, 300), h=st.integers(1, 400), w=st.integers(1, 90), groups=st.integers(1, 40),
    width=st.integers(1, 33), times=st.integers(1, 3), stride=st.integers(1, 2), padding=st.integers(0, 4),
    dilation=st.integers(1, 4),
)  # fmt: skip
def test_plan_of_anynhwc(kernels, n, h, w, groups, width, times, stride, padding, dilation):
    if min(h, w) + 2 * padding < 2 * dilation + 1:
        return
    text = f"n{n}_c{groups * width}_h{h}_w{w}_o{groups * width * times}_g{groups}_s{stride}_p{padding}_d{dilation}"
    problem = nhwc(text, torch.bfloat16)
    if not _native(problem).reasons():
        _check_plan(problem)
