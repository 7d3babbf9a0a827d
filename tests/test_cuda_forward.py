"""The CUDA forward kernels under emulation: exact integers, error gates, what they refuse."""

from dataclasses import replace

import pytest
import timm
import torch
from emulated import modes

import resnext_kernels as rk
from resnext_kernels.backends import cuda
from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import cases, exact
from resnext_kernels.testing.verify import verify

# Every width, the block of 64 channels met and missed, C_out of a multiple of C_in; images that share a block's 32
# positions, are cut by it, or are one pixel wide; rows that end a block or an image.
PROBLEMS = [
    "n1_c64_h9_w33_g64", "n2_c64_h7_g32", "n2_c64_h7_g16", "n3_c64_h5_w6_g8", "n2_c128_h6_w40_g8", "n5_c64_h7_g2",
    "n1_c32_h4_w3_g8", "n1_c96_h5_w11_g6", "n2_c40_h6_g10", "n40_c8_h3_w1_g2", "n1_c16_h1_w2_g4", "n1_c64_h20_w8_g4",
    "n2_c32_o64_h6_g8", "n1_c32_o64_h5_g4", "n1_c32_o64_h5_w9_g2", "n1_c16_o48_h5_g2", "n1_c32_o64_h4_g1",
    "n2_c12_h6_g2", "n1_c42_h5_g3", "n1_c56_h5_g2", "n1_c48_h7_g2", "n2_c20_h5_g2", "n1_c12_o24_h5_g2", "n1_c84_h5_g6",
    "n2_c64_h9_w34_g16_s2", "n2_c64_h8_g8_s2", "n3_c64_h7_g2_s2", "n1_c64_h3_w70_g4_s2", "n1_c28_h9_g2_s2",
    "n1_c32_o64_h7_g4_s2", "n45_c16_h2_w1_g4_s2",
    "n1_c64_h9_g16_p2_d2", "n2_c32_h12_w37_g1_p4_d4", "n1_c28_h7_g2_p2_d2", "n3_c16_h5_w7_g4_p1_d3",
    "n1_c16_h9_w5_g2_p4_d4", "n1_c64_h7_g16_p0", "n2_c32_h6_g1_p0", "n1_c16_h4_g2_p2", "n1_c64_h9_g8_p0_s2",
    "n1_c16_h4_g2_p3_s2",
]  # fmt: skip
# What float32 takes besides, and tensor cores do not; the last are of slabs of inputs that the group does not fill.
ONLY_FLOAT32 = ["n2_c9_h5_g3", "n1_c25_h7_g5_s3", "n1_c80_h6_g2", "n1_c6_o9_h7_w5_g3_p2_d2_s2", "n1_c64_h9_g1",
                "n1_c12_h4_g4", "n1_c72_h3_g1", "n1_c70_o6_h5_w6_g1_s2"]  # fmt: skip


@pytest.fixture(autouse=True)
def kernels(emulated_cuda):
    yield emulated_cuda


def _problem(text, dtype):
    """As ConvProblem.parse, in channels last."""
    return replace(ConvProblem.parse(text), dtype=dtype, layout="nhwc")


@pytest.mark.parametrize("dtype", cuda._DTYPES, ids=str)
@pytest.mark.parametrize("text", PROBLEMS)
def test_exact(kernels, text, dtype):
    problem = _problem(text, dtype)
    assert not cuda.unsupported_reasons("grouped_conv2d", problem)
    for _ in modes(kernels, text):
        assert exact.mismatch("grouped_conv2d", problem, "cuda") is None
        assert exact.mismatch("grouped_conv2d_affine_act", problem, "cuda") is None


@pytest.mark.parametrize("text", ONLY_FLOAT32)
def test_exact_in_float32(kernels, text):
    assert cuda.unsupported_reasons("grouped_conv2d", _problem(text, torch.float16))
    test_exact(kernels, text, torch.float32)
    test_gates(kernels, text, torch.float32)


@pytest.mark.parametrize("dtype", cuda._DTYPES, ids=str)
@pytest.mark.parametrize("text", PROBLEMS[::2])
def test_gates(kernels, text, dtype):
    problem = _problem(text, dtype)
    for _ in modes(kernels, text):
        for op, activation in (("grouped_conv2d_affine_act", "silu"), ("grouped_conv2d_stats", "identity")):
            verdict = verify(op, problem, "cuda", activation=activation)
            assert verdict.passed, verdict


def test_an_empty_batch():
    args = cases.make("grouped_conv2d_stats", _problem("n0_c16_h5_g2", torch.float16), integers=True)
    z, mean, m2 = cuda.grouped_conv2d_stats(*args)  # without the dispatch, to which an empty image reads as NCHW
    assert z.shape == (0, 16, 5, 5) and not mean.any() and not m2.any()


@pytest.mark.parametrize("text", ["n2_c128_h56_g32", "n2_c256_h28_g32_s2", "n16_c64_h7_g2"])
def test_bytes_moved(kernels, text):
    """Blocks that are neighbours read the rows and columns between them twice; beside that all moves once."""
    problem = _problem(text, torch.float16)
    x, weight, _, *conv = cases.make("grouped_conv2d", problem, integers=True)
    with rk.use_backend("cuda"):
        y = rk.functional.grouped_conv2d(x, weight, None, *conv)
    counters, plan = kernels.counters(), cuda._native_conv(problem, weight.stride()).forward_plan()
    rows, columns = (size * problem.stride[0] for size in (plan["rows"], plan["positions"]))
    halo = (rows + 2) / rows * (columns + 2) / columns
    assert counters["bytes_stored"] == y.numel() * y.element_size()
    assert counters["bytes_copied"] <= halo * x.numel() * x.element_size()
    # Of the shared memory's cycles for ldmatrix; images of 7 columns have a frame at every seventh.
    assert counters["matrix_cycles"] <= 2 * counters["matrix_phases"]


def test_nothing_beyond_the_tensors(kernels):
    """Loads and stores outside the tensors, and bytes stored twice, are errors of the emulation."""
    for text in PROBLEMS[::3]:
        problem = _problem(text, torch.float16)
        x, weight, _, *conv = cases.make("grouped_conv2d", problem, integers=True)
        native = cuda._native_conv(problem, weight.stride())
        y = torch.empty(problem.output_shape, dtype=x.dtype).to(memory_format=torch.channels_last)
        vectors = [torch.empty(problem.c_out) for _ in range(2)]
        workspace = torch.empty(native.workspace(), dtype=torch.uint8)
        for tensor in (x, weight, y, workspace, *vectors):
            kernels.add_region(tensor.data_ptr(), tensor.numel() * tensor.element_size(), tensor is not x)
        addresses = [t.data_ptr() for t in (x, weight, y, *vectors, workspace)]
        try:
            native.grouped_conv2d_stats(*addresses, 0, 0)
        finally:
            kernels.clear_regions()


def test_a_misaligned_or_strided_input():
    base = torch.randint(-2, 3, (2 * 9 * 9 * 16 + 1,)).half()
    x = base[1:].view(2, 9, 9, 16).permute(0, 3, 1, 2)
    weight = torch.randint(-1, 2, (16, 4, 3, 3)).half()
    expected = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1, groups=4)
    with rk.use_backend("cuda"):
        assert torch.equal(rk.functional.grouped_conv2d(x, weight, padding=1, groups=4).double(), expected)
        part = x[:, :, ::2]
        expected = torch.nn.functional.conv2d(part.double(), weight.double(), padding=1, groups=4)
        assert torch.equal(rk.functional.grouped_conv2d(part, weight, padding=1, groups=4).double(), expected)
        assert torch.equal(rk.functional.grouped_conv2d(part, weight.to(memory_format=torch.channels_last), padding=1,
                                                        groups=4).double(), expected)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("n1_c64_h5_g16_k5_p2", "takes 3x3 kernels"),
        ("n1_c64_h5_g16_s3", "takes stride 1 and 2"),
        ("n1_c64_h5_g16_p5_d5", "takes dilation up to 4"),
        ("n1_c64_h5_g16_d2_s2", "takes dilation at stride 1"),
        ("n1_c128_h5_g2", "takes up to 32 channels a group"),
        ("n1_c9_h5_g3", "even numbers up to 32"),
        ("n1_c4_h5_g2", "multiples of 8"),
        ("n1_c32_o48_h5_g2", "multiple of C_in"),
    ],
)
def test_reasons(text, reason):
    problem = _problem(text, torch.float16)
    assert any(reason in each for each in cuda.unsupported_reasons("grouped_conv2d", problem))
    refusing = replace(problem, layout="nchw")
    assert any("channels_last" in each for each in cuda.unsupported_reasons("grouped_conv2d", refusing))


@pytest.mark.parametrize("training", [False, True])
def test_a_swapped_block(training):
    """All that runs in a block's forward is the kernels', and its gradients come back through plain PyTorch."""
    block = timm.create_model("resnext50_32x4d").layer1[0].bfloat16().to(memory_format=torch.channels_last)
    block = rk.swap(block).train(training)
    x = torch.randn(1, 64, 14, 14).bfloat16().to(memory_format=torch.channels_last)
    results = {}
    for backend in ("cuda,aten", "reference"):
        own = x.clone().requires_grad_(training)
        with rk.use_backend(backend), rk.backends.record() as ran, torch.set_grad_enabled(training):
            y = block(own)
        results[backend] = (y, torch.autograd.grad(y.sum(), own)[0]) if training else (y,)
        assert {name for _, _, name in ran} == {backend.partition(",")[0]}
    for result, expected in zip(*results.values(), strict=True):
        torch.testing.assert_close(result, expected)
