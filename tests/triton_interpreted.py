"""The Triton kernels in triton's interpreter, on CPU tensors; test_triton.py runs this file in a process of its own,
as TRITON_INTERPRET=1 has to be set before anything imports triton.

The interpreter runs programs one after the other as numpy: it shows what is computed and where it is stored, but no
races, no layouts, no spills, nothing of tensor cores' accumulation, and it takes products that the compiler refuses
(K < 16). bfloat16 is left out: arithmetic on it is garbage there, and stores truncate; triton_aot.py compiles it.
"""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from triton_tensors import amid_nan, backward_tensors, bn_case, expected_dw

import resnext_kernels as rk
from resnext_kernels import backends, tuning
from resnext_kernels.backends import triton
from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import cases, exact, gates
from resnext_kernels.testing.verify import judge, verify
from resnext_kernels.triton_kernels import config_tables, configs, configs_wgrad

DTYPES = (torch.float32, torch.float16)
# Every form; widths that fill a pack and that do not; C_out of more and of less than C_in; tiles that images share, are
# cut by, or end with half a pair; rows cut into chunks; the dilations' interleaved rows; less padding and more.
PROBLEMS = [
    "n2_c64_h7_g16", "n1_c64_h9_w35_g8", "n3_c12_h5_w3_g4", "n2_c24_h4_w6_g4", "n1_c128_h3_g32", "n1_c16_h1_w2_g4",
    "n1_c32_h29_w4_g8", "n2_c16_o32_h5_g4", "n1_c32_o16_h4_g4", "n40_c8_h3_w1_g2", "n1_c16_h4_g4_p0", "n1_c16_h4_g4_p2",
    "n1_c64_h5_w70_g4", "n2_c28_h6_g2", "n1_c48_h5_g2", "n1_c16_o48_h5_g2", "n1_c96_h3_w4_g24", "n1_c65_h3_g1",
    "n2_c64_h9_w34_g16_s2", "n1_c32_h8_g8_s2", "n1_c64_h5_g2_s2", "n1_c16_h3_g1_s2_p0", "n1_c32_h61_w3_g4_s2",
    "n1_c32_h9_g8_p2_d2", "n1_c32_h9_w20_g2_p4_d4", "n1_c32_h4_g1_p2_d2",
    "n1_c80_h5_g2", "n1_c40_o136_h5_g1", "n1_c160_h4_g2_s2", "n1_c16_h5_g4_k5_p2", "n1_c12_h9_g3_s3",
    "n1_c16_h9_g4_d2_s2", "n1_c16_h6_w9_g4_k1x3_p0x1_s1x2",
]  # fmt: skip
# What dgrad of strides meets besides: paddings, one row or column less than the taps reach, taps that divide unevenly.
STRIDED = [
    "n2_c16_h7_w6_g4_s2_p0", "n2_c16_h6_w7_g2_s2_p2", "n1_c32_h8_w9_g1_s2_p3", "n3_c24_h5_w4_g4_s2_p0x1",
    "n1_c16_h9_w11_g4_s3x2_d2x3_p2", "n1_c16_h8_g2_k4_s4_p1", "n1_c16_o32_h9_g4_s2", "n1_c32_o16_h9_w40_g2_s2",
    "n1_c16_h3_g1_k2_s3_p0", "n1_c8_h7_g2_s2_d2_p3", "n1_c8_h68_w3_g2_s2",
]  # fmt: skip
# The rows of wgrad with BatchNorm's backward before it, and the gathering kernel after it.
WITH_BN = ["n2_c64_h7_w6_g16", "n3_c12_h5_w3_g4", "n1_c28_h6_g2_p0", "n2_c16_o48_h5_g2", "n2_c32_h8_w9_g8_s2",
           "n1_c64_h5_w7_g2_s2", "n1_c32_h9_g8_p2_d2", "n1_c80_h4_g2", "n1_c96_h3_w4_g24"]  # fmt: skip
MEMORY = ["n2_c5_h7_w9", "n1_c64_h8_w8", "n3_c24_h5_w5", "n2_c200_h4_w6"]


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    """The backend `triton` on CPU tensors, as if for a GPU of compute capability 9.0."""
    monkeypatch.setattr(triton, "DEVICE", "cpu")
    monkeypatch.setattr(triton, "missing", lambda: None)
    monkeypatch.setattr(triton, "architecture", lambda index: 90)
    backends.forget()
    yield
    backends.forget()


def _problem(text, dtype):
    return replace(ConvProblem.parse(text), dtype=dtype, layout="nhwc")


def _dtype(text, other=False):
    return DTYPES[(sum(map(ord, text)) + other) % 2]


def _check(verdict):
    assert verdict.passed, verdict


@pytest.mark.parametrize("text", PROBLEMS)
def test_exact(text):
    assert exact.mismatch("grouped_conv2d", _problem(text, _dtype(text)), "triton") is None


@pytest.mark.parametrize("text", PROBLEMS)
def test_gates(text):
    """In the dtype that test_exact does not take."""
    problem = _problem(text, _dtype(text, other=True))
    _check(verify("grouped_conv2d_stats", problem, "triton"))
    if len(text) % 2:
        _check(verify("grouped_conv2d_affine_act", problem, "triton", activation="silu"))
    else:
        assert exact.mismatch("grouped_conv2d_affine_act", problem, "triton") is None


@pytest.mark.parametrize("text", [*PROBLEMS, *STRIDED])
def test_dgrad(text):
    problem = _problem(text, _dtype(text))
    *_, weight, dz = backward_tensors(problem)
    expected = torch.nn.grad.conv2d_input(
        (problem.n, problem.c_in, problem.h, problem.w), weight.double(), dz.double(), problem.stride,
        problem.padding, problem.dilation, problem.groups,
    )  # fmt: skip
    assert torch.equal(triton._dgrad(problem, dz, weight).double(), expected)


@pytest.mark.parametrize("text", [*PROBLEMS, *STRIDED])
def test_wgrad(text):
    problem = _problem(text, _dtype(text, other=True))
    x, weight, dz = backward_tensors(problem)
    assert torch.equal(triton._wgrad(problem, dz, x, weight), expected_dw(problem, x, weight, dz))


@pytest.mark.parametrize("activation", ["identity", "relu", "silu"])
@pytest.mark.parametrize("text", WITH_BN)
def test_wgrad_that_makes_dz(text, activation):
    problem = _problem(text, _dtype(text + activation))
    x, weight, _ = backward_tensors(problem)
    grad, bn = bn_case(problem, activation)
    dz, dw = triton._wgrad(problem, grad, x, weight, bn)
    assert torch.equal(dz, triton.affine_act_backward(grad, *bn[:-1], None, activation, (True, False))[0])
    assert torch.equal(dw, triton._wgrad(problem, dz, x, weight))
    if activation != "silu":
        assert torch.equal(dw, expected_dw(problem, x, weight, dz))


# (strips of a walk, chunks, rows of a chunk): whole ones, some with less to do, and some with nothing.
LAYOUTS = {"n2_c16_h9_w37_g4": (2, 2, 5), "n3_c32_h9_w18_g2_s2": (3, 3, 2), "n2_c16_h11_w35_g1_p2_d2": (2, 6, 2),
           "n5_c16_h10_w10_g4": (1, 4, 4)}  # fmt: skip


@pytest.mark.parametrize("makes_dz", [False, True])
@pytest.mark.parametrize("text", LAYOUTS)
def test_wgrad_of_many_strips_and_chunks(text, makes_dz, monkeypatch):
    strips, chunks, rows = LAYOUTS[text]

    def layout(problem):
        positions = problem.n * problem.output_size[1]
        return positions, strips, math.ceil(positions / configs_wgrad.pack(problem)["TILE"] / strips), 1, chunks, rows

    monkeypatch.setattr(configs_wgrad, "rows_grid", layout)
    problem = _problem(text, DTYPES[makes_dz])
    x, weight, dz = backward_tensors(problem)
    if makes_dz:
        grad, bn = bn_case(problem, "relu")
        dz, dw = triton._wgrad(problem, grad, x, weight, bn)
        assert torch.equal(dz, triton.affine_act_backward(grad, *bn[:-1], None, "relu", (True, False))[0])
    else:
        dw = triton._wgrad(problem, dz, x, weight)
    assert torch.equal(dw, expected_dw(problem, x, weight, dz))


@pytest.mark.parametrize("steps", [2, 3])
def test_wgrad_of_many_blocks_of_positions(steps, monkeypatch):
    problem = _problem(f"n{steps}_c80_h9_w7_g1", torch.float32)
    blocks, positions = configs_wgrad.gather(problem), steps * 9 * 7
    splits = math.ceil(positions / blocks["BM"] / steps)
    programs = 9 * math.ceil(80 / blocks["BN"]) * math.ceil(80 / blocks["BK"])
    monkeypatch.setattr(configs_wgrad, "gather_grid", lambda problem: (positions, programs, splits, steps))
    x, weight, dz = backward_tensors(problem)
    assert torch.equal(triton._wgrad(problem, dz, x, weight), expected_dw(problem, x, weight, dz))


@pytest.mark.parametrize("text", ["n4_c32_h9_w8_g8", "n2_c32_h9_w8_g1_s2", "n2_c48_h6_g1"])
def test_gate_of_wgrad(text):
    problem = _problem(text, _dtype(text))
    dz, x, weight, *conv, _ = cases.make("grouped_conv2d_backward", problem, integers=False)
    gate = gates.grouped_conv2d_backward(None, dz, x, weight, *conv, [False, True, False])[1]
    error = (triton._wgrad(problem, dz, x, weight).double() - gate.expected).abs()
    assert (error <= gate.allowed).all(), (error / gate.allowed).max()


def test_wgrad_has_the_strides_of_the_weight():
    for text in ("n1_c32_h4_g4", "n1_c12_h5_g2_k2x1_p0"):
        problem = _problem(text, torch.float32)
        x, weight, dz = backward_tensors(problem)
        last = weight.contiguous(memory_format=torch.channels_last)
        dw = triton._wgrad(problem, dz, x, last)
        assert dw.stride() == last.stride() and torch.equal(dw, triton._wgrad(problem, dz, x, weight))


@pytest.mark.parametrize("text", ["n0_c16_h5_g2", "n0_c80_h5_g2"])
def test_wgrad_of_an_empty_batch(text):
    problem = _problem(text, torch.float16)
    x, weight, _ = backward_tensors(problem)
    grad, bn = bn_case(problem, "relu")
    dz, dw = triton._wgrad(problem, grad, x, weight, bn)
    assert dz.shape == problem.output_shape and dw.shape == weight.shape and not dw.any()


@pytest.mark.parametrize("text", ["n2_c32_h6_w5_g8", "n1_c32_h6_w5_g2", "n1_c64_h7_g8_s2", "n2_c24_h5_w6_g2_p2_d2",
                                  "n2_c80_h4_g2"])  # fmt: skip
def test_wgrad_reads_nothing_beside_the_tensors(text):
    problem = _problem(text, torch.float16)
    x, weight, _ = backward_tensors(problem)
    grad, (*bn, activation) = bn_case(problem, "silu")
    poisoned = [amid_nan(tensor) for tensor in (grad, x, *bn)]
    expected = triton._wgrad(problem, grad, x, weight, (*bn, activation))
    got = triton._wgrad(problem, *poisoned[:2], weight, (*poisoned[2:], activation))
    for one, other in zip(got, expected, strict=True):
        assert other.isfinite().all() and torch.equal(one, other)


def test_what_is_not_finite_stays_at_its_channels():
    problem = _problem("n1_c64_h8_g8", torch.float32)
    x, weight, dz = backward_tensors(problem)
    expected = triton._wgrad(problem, dz, x, weight)
    for image, channel in ((x, 9), (dz, 21)):
        kept, image[0, channel, 4, 4] = image[0, channel, 4, 4].clone(), torch.nan
        different = ~(triton._wgrad(problem, dz, x, weight) == expected)
        image[0, channel, 4, 4] = kept
        meant = torch.zeros_like(different)
        meant[(slice(8, 16), 1) if image is x else channel] = True
        assert torch.equal(different, meant)


BACKWARD = ("grouped_conv2d_backward", "grouped_conv2d_affine_act_backward")


@pytest.mark.parametrize("text", WITH_BN)
def test_backward(text):
    problem = _problem(text, _dtype(text))
    for op in BACKWARD:
        assert exact.mismatch(op, problem, "triton") is None
        _check(verify(op, problem, "triton", activation="silu"))


def test_of_backward_what_is_asked_for():
    problem = _problem("n2_c16_h5_w6_g2", torch.float16)
    for op, n in zip(BACKWARD, (3, 2), strict=True):
        *args, mask = cases.make(op, problem, integers=True)
        everything = getattr(triton, op)(*args, [True] * n)
        for asked in range(n):
            results = getattr(triton, op)(*args, [each == asked for each in range(n)])
            for i, (result, whole) in enumerate(zip(results, everything, strict=True)):
                assert torch.equal(result, whole) if i == asked else result.numel() == 0


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_swapped_block(stride, frozen):
    """All of a training step is the kernels', against the block as it was in float64."""
    shortcut = nn.Sequential(nn.Conv2d(32, 64, 1, stride, bias=False), nn.BatchNorm2d(64))
    block = torchvision.models.resnet.Bottleneck(32, 16, stride, shortcut, groups=4).train(not frozen)
    block = block.to(memory_format=torch.channels_last)
    exact_block, swapped = copy.deepcopy(block).double(), rk.swap(block)
    x = torch.randn(2, 32, 9, 11).to(memory_format=torch.channels_last)
    results = []
    for each, own in ((swapped, x.clone()), (exact_block, x.double())):
        own.requires_grad_()
        with rk.use_backend("triton", "aten"), rk.backends.record() as ran:
            y = each(own)
            results.append((y, *torch.autograd.grad(y.square().sum(), [own, *each.parameters()])))
        assert {name for _, _, name in ran} == ({"triton"} if each is swapped else set())
    for result, expected in zip(*results, strict=True):
        # Sums of up to 400 terms of either sign, rounded a few times: their largest has the scale of all.
        assert (result.double() - expected).abs().max() <= 2**-24 * 400 * expected.abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("text", MEMORY)
def test_images(text, dtype):
    problem = _problem(text, dtype)
    for activation in ("relu", "identity"):
        for op in ("affine_act", "affine_act_backward", "bn_act_reduce"):
            assert exact.mismatch(op, problem, "triton", activation=activation) is None
    for op in ("affine_act", "affine_act_backward", "bn_act_reduce"):
        _check(verify(op, problem, "triton", activation="silu"))
    _check(verify("bn_stats", problem, "triton"))


def test_many_tiles(monkeypatch):
    """Several steps of a tile, and more tiles than are merged at a time."""
    monkeypatch.setattr(configs, "steps", lambda *blocks: 2)
    for op in ("bn_stats", "bn_act_reduce"):
        _check(verify(op, _problem("n9_c8_h31_w33", torch.float32), "triton"))


def test_statistics_of_what_is_far_from_zero():
    """Means of parts are rounded: M2 errs by 2**-23 * |mean| / std / sqrt(count), which the gate has room for here."""
    values = 30.1 + torch.randn(2, 8, 9, 9, generator=torch.Generator().manual_seed(0))
    z = values.to(memory_format=torch.channels_last)
    _check(judge("bn_stats", (z,), triton.bn_stats(z)))


def test_the_variance_of_a_constant_is_nothing_or_next_to_it():
    z = torch.full((2, 8, 9, 9), 1000.1).to(memory_format=torch.channels_last)
    _, m2 = triton.bn_stats(z)
    assert (m2 >= 0).all() and (m2 / 162 <= (2**-22 * 1000.1) ** 2).all()


@pytest.mark.parametrize("text", ["n2_c32_h6_w5_g8", "n1_c32_h6_w5_g2", "n1_c64_h7_g8_s2", "n2_c80_h4_g2"])
def test_nothing_is_read_beside_the_tensors(text):
    """All that surrounds the input, the weight and the vectors is NaN."""
    problem = _problem(text, torch.float16)
    expected = cases.make("grouped_conv2d_affine_act", problem, integers=True)
    poisoned = tuple(amid_nan(a) if isinstance(a, torch.Tensor) else a for a in expected)
    y, z = triton.grouped_conv2d_affine_act(*poisoned), triton.grouped_conv2d_affine_act(*expected)
    assert z.isfinite().all() and torch.equal(y, z)


def test_what_is_not_finite_stays_within_its_pack():
    """A pack's products with zeros spread it to the pack's channels and, with pairs, to the neighbouring column."""
    problem = _problem("n1_c128_h8_g32", torch.float32)
    x, weight, _, *conv = cases.make("grouped_conv2d", problem, integers=True)
    expected = triton.grouped_conv2d(x, weight, None, *conv)
    x[0, 9, 4, 4] = torch.nan
    different = ~(triton.grouped_conv2d(x, weight, None, *conv) == expected)
    channels = different.any(dim=(0, 2, 3)).nonzero().flatten()
    columns = different.any(dim=(0, 1, 2)).nonzero().flatten()
    assert channels.min() >= 8 and channels.max() < 16 and columns.min() >= 2 and columns.max() <= 6


def test_of_the_gradients_those_asked_for():
    *args, _ = cases.make("affine_act_backward", _problem(MEMORY[0], torch.float32), integers=True)
    both = triton.affine_act_backward(*args, [True, True])
    for mask in ([True, False], [False, True], [False, False]):
        for asked, one, other in zip(mask, triton.affine_act_backward(*args, mask), both, strict=True):
            assert torch.equal(one, other) if asked else one.numel() == 0


def test_an_empty_batch():
    args = cases.make("grouped_conv2d_stats", _problem("n0_c16_h5_g2", torch.float16), integers=True)
    z, mean, m2 = triton.grouped_conv2d_stats(*args)  # without the dispatch, to which an empty image reads as NCHW
    assert z.shape == (0, 16, 5, 5) and not mean.any() and not m2.any()


def test_a_misaligned_or_strided_input():
    base = torch.randint(-2, 3, (2 * 9 * 9 * 16 + 1,)).half()
    x = base[1:].view(2, 9, 9, 16).permute(0, 3, 1, 2)
    weight = torch.randint(-1, 2, (16, 4, 3, 3)).half()
    for part in (x, x[:, :, ::2]):
        expected = torch.nn.functional.conv2d(part.double(), weight.double(), padding=1, groups=4)
        with rk.use_backend("triton"):
            assert torch.equal(rk.functional.grouped_conv2d(part, weight, padding=1, groups=4).double(), expected)


def test_tune(monkeypatch):
    """The real kernels, which the interpreter gives the same bits and no meaningful time."""
    monkeypatch.setattr(tuning, "WARPS", (2,))
    monkeypatch.setattr(tuning, "STAGES", (1,))
    monkeypatch.setattr(tuning.timing, "interleave", partial(tuning.timing.interleave, rounds=2, budget_s=0.1))
    rows = tuning.rows(tuning.problems(["n1_c16_h5_g4_s2", "n1_c16_h5_g4"]))
    for names, jobs in rows.items():
        outcome = tuning.tune(names, jobs)
        assert outcome.best in tuning.candidates(names) and not outcome.dropped
        tuning.save(outcome, "tune")
    read = {"narrow 32 s2", "pairs 32 s2 dgrad", "narrow 32 s2 wgrad", "pairs 32 s1", "narrow 32 s1 wgrad"}
    assert set(config_tables.users(90)) == read and len(rows[("pairs 32 s1",)]) == 2


DEFECTS = {
    "drops the last row": lambda grid: (*grid[:4], grid[4] - 1),
    "drops the last strip": lambda grid: (grid[0], grid[1] - 1, *grid[2:]),
    "forgets the last position": lambda grid: (grid[0] - 1, *grid[1:]),
}


@pytest.mark.parametrize("defect", DEFECTS.values(), ids=DEFECTS)
def test_defects_are_caught(defect, monkeypatch):
    right = configs.rows_grid
    monkeypatch.setattr(configs, "rows_grid", lambda problem: defect(right(problem)))
    # Of a size of its own: what a problem came to is remembered.
    problem = _problem(f"n{2 + list(DEFECTS.values()).index(defect)}_c16_h5_w11_g4", torch.float32)
    assert exact.mismatch("grouped_conv2d", problem, "triton") is not None


WGRAD_DEFECTS = {
    "forgets the last position": (0, -1), "drops the last strip": (1, -1), "drops the last row": (5, -1),
    "drops the last chunk": (4, -1),
}  # fmt: skip


@pytest.mark.parametrize("defect", WGRAD_DEFECTS)
def test_defects_of_wgrad_are_caught(defect, monkeypatch):
    at, by = WGRAD_DEFECTS[defect]
    wrong = [70, 3, 1, 1, 2, 4]
    wrong[at] += by
    monkeypatch.setattr(configs_wgrad, "rows_grid", lambda problem: tuple(wrong))
    # Of a size of its own: what a problem came to is remembered.
    problem = _problem(f"n2_c16_h8_w35_g{(1, 2, 4, 8)[list(WGRAD_DEFECTS).index(defect)]}", torch.float16)
    x, weight, dz = backward_tensors(problem)
    assert not torch.equal(triton._wgrad(problem, dz, x, weight), expected_dw(problem, x, weight, dz))
