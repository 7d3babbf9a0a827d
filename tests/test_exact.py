"""Integer inputs whose every partial sum is exact: results are compared bit for bit with float64 references."""

import pytest
import torch

from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import cases, exact
from resnext_kernels.testing.verify import call

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Corners of strips, tiles and vectors; n, c, h, w, o, k, s, p, d, g as ConvProblem.parse has them.
PROBLEMS = [
    "n1_c128_h56_g32",
    "n1_c256_h14_g32_s2",
    "n1_c64_h9_w13_g4",
    "n2_c28_h9_w11_g2_p2_d2",
    "n1_c6_h7_w5_o9_g3_s2",
    "n1_c10_h1_w1_g5",
    "n2_c8_h5_w6_o4_g4_k1_p0",
    "n1_c4_h30_w30_g1_k5_s3_p4",
    "n1_c8_h1_w97_g8",
    "n1_c66_h4_w4_g1_p4_d4",
    "n1_c12_h8_w7_o24_g3_k3x1_s1x2_p1x0_d2x1",
    "n0_c8_h4_w4_g2",
]


def problem_of(text, dtype, layout) -> ConvProblem:
    return ConvProblem.parse(f"{text}_{str(dtype).removeprefix('torch.')}_{layout}")


@pytest.mark.parametrize("layout", cases.FORMATS)
@pytest.mark.parametrize("text", PROBLEMS)
@pytest.mark.parametrize("op", exact.OPS)
# PyTorch sums in half precision on CPUs that lack its instructions.
@pytest.mark.parametrize("backend, dtype", [("aten", "fp32"), *(("reference", dtype) for dtype in DTYPES)])
def test_exact(backend, op, text, dtype, layout):
    # reference is held against PyTorch in float64, everything else against reference
    oracle = "aten" if backend == "reference" else "reference"
    assert exact.mismatch(op, problem_of(text, DTYPES[dtype], layout), backend, oracle=oracle) is None


@pytest.mark.native
@pytest.mark.parametrize("layout", cases.FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["identity", "relu"])
@pytest.mark.parametrize("text", PROBLEMS)
@pytest.mark.parametrize("op", exact.OPS)
def test_cpu_kernel_is_exact(op, text, activation, dtype, layout):
    problem = problem_of(text, DTYPES[dtype], layout)
    assert exact.mismatch(op, problem, "cpu", activation=activation) is None


@pytest.mark.parametrize("layout", cases.FORMATS)
@pytest.mark.parametrize("backend", ["aten", "reference", "cpu"])
def test_output_has_the_inputs_memory_format(backend, layout):
    problem = problem_of("n2_c8_h5_g2", torch.float32, layout)
    (z,) = call("grouped_conv2d", cases.make("grouped_conv2d", problem, integers=True), backend)
    assert z.is_contiguous(memory_format=cases.FORMATS[layout])


@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_statistics_are_exact(dtype):
    """Pairs m + d, m - d over a power of two of values: mean m and M2 = sum d^2 whatever the order."""
    torch.manual_seed(0)
    m, d = torch.randint(-8, 9, (1, 5, 1, 1)), torch.randint(-8, 9, (2, 5, 4, 4))
    mean, m2 = call("bn_stats", (torch.cat([m + d, m - d]).to(DTYPES[dtype]),), "reference")
    assert torch.equal(mean, m.flatten().float()) and torch.equal(m2, 2 * d.square().sum((0, 2, 3)).float())


@pytest.mark.parametrize("backend", ["cpu", "aten", "reference"])
def test_each_weight_reaches_its_own_output_alone(backend):
    """One-hot weights: output channel o of group g is the shifted input channel of that group and no other."""
    groups, per_group, h, w = 3, 4, 6, 7
    x = torch.arange(1, groups * per_group * h * w + 1).float().view(1, groups * per_group, h, w)
    for out, inner, i, j in [(0, 0, 0, 0), (3, 2, 1, 2), (5, 1, 2, 0), (11, 3, 1, 1)]:
        weight = torch.zeros(groups * per_group, per_group, 3, 3)
        weight[out, inner, i, j] = 1
        (z,) = call("grouped_conv2d", (x, weight, None, [1, 1], [1, 1], [1, 1], groups), backend)
        expected = torch.zeros_like(z)
        source = x[0, out // per_group * per_group + inner]
        expected[0, out] = torch.nn.functional.pad(source, (1, 1, 1, 1))[i : i + h, j : j + w]
        assert torch.equal(z, expected)
