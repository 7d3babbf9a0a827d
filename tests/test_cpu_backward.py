"""The native gradients of the convolution: instruction sets, threads, memory, images larger than a tile."""

import pytest
import torch
from test_cpu import DTYPES, PROBLEMS, check_bits, check_instruction_set, within_nan

from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import cases, exact
from resnext_kernels.testing.verify import call, judge

pytestmark = pytest.mark.native
OPS = ["grouped_conv2d_backward", "grouped_conv2d_affine_act_backward"]
# Rows of more than one tile, chunks of several images, other kernels and strides, blocks of inputs.
LARGE = [
    f"{text}_{layout}"
    for layout in cases.FORMATS
    for text in [
        "n1_c8_h5_w150_g2", "n3_c32_h30_w70_g8_s2", "n40_c8_h20_g2", "n9_c16_h9_g1", "n1_c72_h7_o56_g1",
        "n1_c100_h6_o20_g1", "n2_c24_h9_g3_k1_p0", "n2_c16_h11_g4_k5_p2", "n1_c16_h20_w18_g2_k3x4_s3x1_p2_d1x2",
        "n2_c16_h9_g1_s3", "n0_c16_h9_g4", "n1_c12_h6_o30_g6", "n1_c16_h9_g4_k1_s2_p0", "n1_c16_h10_g2_k2_s3_p4",
    ]
]  # fmt: skip


def mismatches() -> list[str]:
    problems = [ConvProblem.parse(f"{text}_{dtype}") for text in PROBLEMS + LARGE for dtype in DTYPES]
    found = (exact.mismatch(op, problem, "cpu") for op in OPS for problem in problems)
    return [each for each in found if each]


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_is_exact(isa):
    check_instruction_set(isa, "test_cpu_backward")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("text", [*PROBLEMS[::3], *LARGE[::2], *(f"{text}_bfloat16" for text in PROBLEMS[1::3])])
def test_same_bits_for_any_number_of_threads(text, op):
    check_bits(op, cases.make(op, ConvProblem.parse(text), integers=False))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("text", PROBLEMS)
def test_neighbours_in_memory_do_not_matter(text, op, dtype):
    problem = ConvProblem.parse(f"{text}_{dtype}")
    args = cases.make(op, problem, integers=True)
    layout = cases.FORMATS[problem.layout]
    views = [within_nan(a, 1, layout) if isinstance(a, torch.Tensor) and a.dim() == 4 else a for a in args]
    for got, expected in zip(call(op, tuple(views), "cpu"), call(op, args, "reference"), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("strides", ["gradient of a sum", "other layout", "transposed images"])
@pytest.mark.parametrize("layout", cases.FORMATS)
def test_strides_of_any_kind(layout, strides):
    op = "grouped_conv2d_backward"
    grad, x, *rest = cases.make(op, ConvProblem.parse(f"n2_c16_h6_g4_{layout}"), integers=True)
    if strides == "gradient of a sum":
        grad = torch.ones(()).expand_as(grad)
    elif strides == "other layout":
        grad = grad.contiguous(memory_format=cases.FORMATS["nhwc" if layout == "nchw" else "nchw"])
    else:
        x = x.transpose(2, 3)
    args = (grad, x, *rest)
    for got, expected in zip(call(op, args, "cpu"), call(op, args, "reference"), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("text", LARGE)
def test_long_sums_are_within_the_gates(text, op, activation):
    args = cases.make(op, ConvProblem.parse(text), integers=False, activation=activation)
    verdict = judge(op, args, call(op, args, "cpu"))
    assert verdict.passed, verdict


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("text", ["n1_c8_h0_w5_g2_p2", "n1_c8_h5_w0_g2_p2_s2_nhwc", "n1_c32_h0_w5_g2_p2_s2"])
def test_images_without_pixels(text, op):
    """All padding: PyTorch itself refuses these."""
    dx, dw, *_ = call(op, cases.make(op, ConvProblem.parse(text), integers=True), "cpu")
    assert dx.numel() == 0 and torch.equal(dw, torch.zeros_like(dw))
