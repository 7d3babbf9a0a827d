"""The CUDA forward kernels under emulation: exact integers, error gates, what they refuse."""

from dataclasses import replace

import pytest
import timm
import torch
from cuda_problems import ONLY_FLOAT32, PROBLEMS, nhwc
from emulated import modes

import resnext_kernels as rk
from resnext_kernels.backends import cuda
from resnext_kernels.testing import cases, exact
from resnext_kernels.testing.verify import verify

# (taken, refused, why): input and output the larger one, units of 16, 8 and 4 bytes, groups as they are and padded.
UNITS = "up to 2^31 units of 16 bytes"
AT_LIMITS = [
    (f"n{2**28 - 1}_c64_h1_g16", f"n{2**28}_c64_h1_g16", UNITS),
    (f"n{2**26 - 1}_c64_o256_h1_g16", f"n{2**26}_c64_o256_h1_g16", UNITS),
    (f"n{2**31 // 6}_c24_h1_g2", f"n{2**31 // 6 + 1}_c24_h1_g2", UNITS),
    (f"n{2**31 // 12}_c48_o24_h1_g2", f"n{2**31 // 12 + 1}_c48_o24_h1_g2", UNITS),
    (f"n{2**31 // 12}_c24_h1_g4", f"n{2**31 // 12 + 1}_c24_h1_g4", UNITS),
    (f"n1_c{2**22 - 64}_h1_g{2**20 - 16}", f"n1_c{2**22}_h1_g{2**20}", "takes fewer channels"),
    (f"n1_c{16 * 65535}_h5_g{8 * 65535}_d2", f"n1_c{16 * 65535 + 2}_h5_g{8 * 65535 + 1}_d2", "takes fewer channels"),
]


@pytest.fixture(autouse=True)
def kernels(emulated_cuda):
    yield emulated_cuda


@pytest.mark.parametrize("dtype", cuda._DTYPES, ids=str)
@pytest.mark.parametrize("text", PROBLEMS)
def test_exact(kernels, text, dtype):
    problem = nhwc(text, dtype)
    assert not cuda.unsupported_reasons("grouped_conv2d", problem)
    for _ in modes(kernels, text):
        assert exact.mismatch("grouped_conv2d", problem, "cuda") is None
        assert exact.mismatch("grouped_conv2d_affine_act", problem, "cuda") is None


@pytest.mark.parametrize("text", ONLY_FLOAT32)
def test_exact_in_float32(kernels, text):
    assert cuda.unsupported_reasons("grouped_conv2d", nhwc(text, torch.float16))
    test_exact(kernels, text, torch.float32)
    test_gates(kernels, text, torch.float32)


@pytest.mark.parametrize("dtype", cuda._DTYPES, ids=str)
@pytest.mark.parametrize("text", PROBLEMS[::2])
def test_gates(kernels, text, dtype):
    problem = nhwc(text, dtype)
    for _ in modes(kernels, text):
        for op, activation in (("grouped_conv2d_affine_act", "silu"), ("grouped_conv2d_stats", "identity")):
            verdict = verify(op, problem, "cuda", activation=activation)
            assert verdict.passed, verdict


def test_an_empty_batch():
    args = cases.make("grouped_conv2d_stats", nhwc("n0_c16_h5_g2", torch.float16), integers=True)
    z, mean, m2 = cuda.grouped_conv2d_stats(*args)  # without the dispatch, to which an empty image reads as NCHW
    assert z.shape == (0, 16, 5, 5) and not mean.any() and not m2.any()


@pytest.mark.parametrize("text", ["n2_c128_h56_g32", "n2_c256_h28_g32_s2", "n16_c64_h7_g2"])
def test_bytes_moved(kernels, text):
    """Blocks that are neighbours read the rows and columns between them twice; beside that all moves once."""
    problem = nhwc(text, torch.float16)
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
        problem = nhwc(text, torch.float16)
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
        ("n1_c64_h5_g16_s2x1", "takes stride 1 and 2"),
        ("n1_c64_h9_g16_p5_d5x4", "takes dilation up to 4"),
        ("n1_c64_h9_g16_p5_d4x5", "takes dilation up to 4"),
        ("n1_c64_h5_g16_d1x2_s2", "takes dilation at stride 1"),
        ("n1_c64_h5_g16_d2x1_s2", "takes dilation at stride 1"),
        ("n1_c68_h5_g2", "takes up to 32 channels a group"),
        *(
            (text, "even numbers up to 32")
            for text in ("n1_c9_h5_g3", "n1_c12_o6_h5_g2", "n1_c6_o12_h5_g2", "n1_c34_h5_g1", "n1_c24_o72_h5_g2")
        ),
        *((text, "multiples of 8") for text in ("n1_c4_h5_g2", "n1_c4_o8_h5_g4")),
        ("n1_c32_o48_h5_g2", "multiple of C_in"),
        *((refused, reason) for _, refused, reason in AT_LIMITS),
    ],
)
def test_reasons(text, reason):
    problem = nhwc(text, torch.float16)
    assert any(reason in each for each in cuda.unsupported_reasons("grouped_conv2d", problem))
    refusing = replace(problem, layout="nchw")
    assert any("channels_last" in each for each in cuda.unsupported_reasons("grouped_conv2d", refusing))


@pytest.mark.parametrize("text", [taken for taken, *_ in AT_LIMITS])
def test_no_reason_at_the_limit(text):
    assert not cuda.unsupported_reasons("grouped_conv2d", nhwc(text, torch.float16))


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
