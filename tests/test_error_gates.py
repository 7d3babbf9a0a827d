"""Random inputs against float64 within the error gates, stage by stage."""

import pytest
import torch

from resnext_kernels.checks import ACTIVATIONS
from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import cases, gates
from resnext_kernels.testing.verify import call, judge, verify

DTYPES = ["float64", "float32", "bfloat16", "float16"]
PROBLEMS = ["n2_c32_h14_g8", "n1_c24_h9_w11_o12_g3_s2", "n2_c10_h7_w6_g1_p2_d2"]


def activations(op):
    schema = getattr(torch.ops.resnext_kernels, op).default._schema
    return ACTIVATIONS if any(argument.name == "activation" for argument in schema.arguments) else ["identity"]


@pytest.mark.parametrize("layout", cases.FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op, activation", [(op, activation) for op in cases.CASES for activation in activations(op)])
@pytest.mark.parametrize("backend", ["cpu,aten", "reference"])
def test_every_op(backend, op, activation, dtype, layout):
    for text in PROBLEMS:
        verdict = verify(op, ConvProblem.parse(f"{text}_{dtype}_{layout}"), backend, activation=activation)
        assert verdict.passed, f"{text}: {verdict}"


def inputs_with_an_offset(x):
    return x + 10


def inputs_after_relu(x):
    return x.relu()


def tiny_inputs(x):
    return x * 1e-30


def huge_inputs(x):
    return x * 1e30


@pytest.mark.parametrize("layout", cases.FORMATS)
@pytest.mark.parametrize("change", [inputs_with_an_offset, inputs_after_relu, tiny_inputs, huge_inputs])
def test_hard_inputs(change, layout):
    problem = ConvProblem.parse(f"n2_c32_h14_g8_float32_{layout}")
    x, *rest = cases.make("grouped_conv2d", problem, integers=False)
    args = (change(x), *rest)
    verdict = judge("grouped_conv2d", args, call("grouped_conv2d", args, "cpu"))
    assert verdict.passed, verdict


def test_weights_that_cancel():
    x, weight, *rest = cases.make("grouped_conv2d", ConvProblem.parse("n2_c32_h14_g8"), integers=False)
    args = (x + 10, weight - weight.mean((1, 2, 3), keepdim=True), *rest)
    verdict = judge("grouped_conv2d", args, call("grouped_conv2d", args, "cpu"))
    assert verdict.passed, verdict


@pytest.mark.parametrize("ratio", [0, 1, 10, 100, 1e3, 1e4])
@pytest.mark.parametrize("backend", ["aten", "reference"])
def test_statistics_far_from_zero(backend, ratio):
    torch.manual_seed(0)
    z = torch.randn(8, 4, 28, 28) + ratio
    verdict = judge("bn_stats", (z,), call("bn_stats", (z,), backend))
    assert verdict.passed, verdict


@pytest.mark.parametrize("backend", ["aten", "reference"])
def test_constant_channel_has_no_variance(backend):
    mean, m2 = call("bn_stats", (torch.full((4, 2, 9, 9), 1234.5),), backend)
    assert torch.equal(m2, torch.zeros(2)) and torch.equal(mean, torch.full((2,), 1234.5))


def test_judge_sees_nan_and_infinity():
    args = cases.make("affine_act", ConvProblem.parse("n1_c4_h5_g2"), integers=False)
    (y,) = call("affine_act", args, "reference")
    for value in (float("nan"), float("inf")):
        broken = y.clone()
        broken[0, 1, 2, 3] = value
        assert judge("affine_act", args, (broken,)).ratio == float("inf")


def test_gates_are_tight():
    """An error of two ulps in one element of a float32 result, or one ulp and a half in bfloat16, is seen."""
    for dtype, factor in (("float32", 1e-5), ("bfloat16", 1.5 * 2**-7)):
        args = cases.make("grouped_conv2d", ConvProblem.parse(f"n1_c16_h8_g4_{dtype}"), integers=False)
        (z,) = call("grouped_conv2d", args, "reference")
        (gate,) = gates.grouped_conv2d((z,), *args)
        worst = int(gate.expected.abs().argmax())
        broken = z.clone()
        broken.view(-1)[worst] *= 1 + factor
        assert not judge("grouped_conv2d", args, (broken,)).passed
