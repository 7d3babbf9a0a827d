"""The native kernels of the ops on images alone, and the arithmetic of BatchNorm between them."""

import pytest
import torch
from test_cpu import DTYPES, check_bits, check_instruction_set, within_nan

from resnext_kernels import _native, batch_norm
from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import cases, exact
from resnext_kernels.testing.verify import call, judge, verify

pytestmark = pytest.mark.native
EXACT = ("affine_act", "affine_act_backward", "bn_act_reduce")
OPS = (*EXACT, "bn_stats")
# channels that are whole vectors and not, from 1 on; planes of less than a vector and of several chunks
SIZES = ["n1_c1_h5_w3", "n2_c3_h17_w13", "n3_c24_h7", "n9_c5_h1", "n3_c130_h3_w5", "n10_c33_h7", "n1_c2_h100_w99",
         "n2_c70_h14", "n1_c3_h200", "n2_c64_h28", "n2_c520_h6", "n0_c8_h4"]  # fmt: skip
PROBLEMS = [f"{size}_{layout}" for size in SIZES for layout in cases.FORMATS]


def mismatches() -> list[str]:
    """Exact where that can be, else within the gates."""
    found = []
    for text in PROBLEMS:
        for dtype in DTYPES:
            problem = ConvProblem.parse(f"{text}_{dtype}")
            for activation in ("identity", "relu"):
                found += [exact.mismatch(op, problem, "cpu", activation=activation) for op in EXACT]
            verdicts = [verify(op, problem, "cpu", activation="silu") for op in ("affine_act", "affine_act_backward")]
            verdicts.append(verify("bn_stats", problem, "cpu"))
            found += [f"{problem}: {verdict}" for verdict in verdicts if not verdict.passed]
    return [each for each in found if each]


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa):
    check_instruction_set(isa, "test_cpu_images")


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("text", [*PROBLEMS, "n4_c48_h56_bfloat16_nhwc", "n4_c48_h56_nchw"])
def test_same_bits_for_any_number_of_threads(text, op, activation):
    check_bits(op, cases.make(op, ConvProblem.parse(text), integers=False, activation=activation))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("text", PROBLEMS)
def test_neighbours_in_memory_do_not_matter(text, op, dtype):
    """Dense images amid NaN, misaligned by an element; and views, which are not dense."""
    problem = ConvProblem.parse(f"{text}_{dtype}")
    args = cases.make(op, problem, integers=True)
    expected = call(op, args, "cpu")
    layout = cases.FORMATS[problem.layout]
    for change in (lambda t: dense_within_nan(t, layout), lambda t: within_nan(t, 1, layout)):
        changed = [change(a) if isinstance(a, torch.Tensor) and a.dim() == 4 else a for a in args]
        for got, want in zip(call(op, changed, "cpu"), expected, strict=True):
            assert torch.equal(got, want)


def dense_within_nan(values, memory_format):
    values = values.contiguous(memory_format=memory_format)
    flat = torch.full((values.numel() + 64,), float("nan"), dtype=values.dtype)
    return flat.as_strided(values.shape, values.stride(), 33).copy_(values)


@pytest.mark.parametrize("layout", cases.FORMATS)
def test_gradient_of_a_sum(layout):
    """It comes expanded from one element, and with z of another memory format."""
    for op in ("affine_act_backward", "bn_act_reduce"):
        _, z, *rest = cases.make(op, ConvProblem.parse(f"n2_c6_h5_{layout}"), integers=True)
        results = call(op, (torch.ones(1).expand(z.shape), z, *rest), "cpu")
        expected = call(op, (torch.ones_like(z), z, *rest), "reference")
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("mask", [[True, False], [False, True]])
def test_only_what_is_asked_for(mask):
    *args, _ = cases.make("affine_act_backward", ConvProblem.parse("n2_c6_h5"), integers=True)
    results, expected = (call("affine_act_backward", (*args, mask), backend) for backend in ("cpu", "reference"))
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("layout", cases.FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ratio", [0, 1, 10, 100, 1e3, 1e4])
@pytest.mark.parametrize("size", [28, 7, 1])
def test_statistics_far_from_zero(size, ratio, dtype, layout):
    torch.manual_seed(0)
    z = (
        (torch.randn(8, 20, size, size) + ratio)
        .to(getattr(torch, dtype))
        .contiguous(memory_format=cases.FORMATS[layout])
    )
    verdict = judge("bn_stats", (z,), call("bn_stats", (z,), "cpu"))
    assert verdict.passed, verdict


@pytest.mark.parametrize("layout", cases.FORMATS)
@pytest.mark.parametrize("size", [1, 3, 9, 70])
def test_constant_channel_has_no_variance(size, layout):
    z = torch.full((4, 3, size, size), 0.1).contiguous(memory_format=cases.FORMATS[layout])
    mean, m2 = call("bn_stats", (z,), "cpu")
    assert torch.equal(m2, torch.zeros(3)) and torch.equal(mean, torch.full((3,), 0.1))


def test_nan_passes():
    z = torch.randn(1, 2, 9, 9)
    z[0, 1, 4, 4] = torch.nan
    ones, zeros = torch.ones(2), torch.zeros(2)
    assert torch.equal(call("affine_act", (z, ones, zeros, None, "relu"), "cpu")[0].isnan(), z.isnan())
    for result in call("bn_stats", (z,), "cpu"):
        assert result.isnan().tolist() == [False, True]


def vectors(count):
    torch.manual_seed(0)
    return [torch.rand(37) + 0.5 for _ in range(count)]


@pytest.fixture
def without_native(monkeypatch):
    """Runs a function with PyTorch's ops alone."""

    def run(function, *args):
        with monkeypatch.context() as patch:
            patch.setattr(_native, "addresses", lambda *_: None)
            return function(*args)

    return run


@pytest.mark.parametrize("given", [(0, 1), (0,), (1,), ()])
def test_native_fold(given, without_native):
    mean, m2, *affine = vectors(4)
    affine = [vector if i in given else None for i, vector in enumerate(affine)]
    args = (mean, m2, *affine, 1e-5, 7)
    torch.testing.assert_close(list(batch_norm.fold(*args)), list(without_native(batch_norm.fold, *args)))


def test_native_coefficients(without_native):
    args = (*vectors(5), 9)
    torch.testing.assert_close(batch_norm.coefficients(*args), without_native(batch_norm.coefficients, *args))


def test_native_running_statistics(without_native):
    ours, theirs = vectors(4), vectors(4)
    version = ours[0]._version
    batch_norm.update_running_stats(*ours, 9, 0.3)
    without_native(batch_norm.update_running_stats, *theirs, 9, 0.3)
    torch.testing.assert_close(ours, theirs)
    assert ours[0]._version > version


def test_native_arithmetic_only_where_nothing_else_watches():
    vector = torch.ones(3)
    assert _native.addresses(vector, None) == [vector.data_ptr(), 0]
    assert _native.addresses(torch.ones(6)[::2]) is None and _native.addresses(vector.double()) is None
    assert _native.addresses(vector.clone().requires_grad_()) is None
    assert _native.addresses(torch.ones(3, device="meta")) is None
    seen = []
    torch.func.vmap(lambda v: seen.append(_native.addresses(v)) or v)(torch.ones(2, 3))
    torch.func.jvp(lambda v: seen.append(_native.addresses(v)) or v, (vector,), (vector,))
    torch.fx.experimental.proxy_tensor.make_fx(lambda v: seen.append(_native.addresses(v)) or v + 1)(vector)
    torch.jit.trace(lambda v: seen.append(_native.addresses(v)) or v + 1, vector, check_trace=False)
    assert seen == [None] * 4
