"""The CUDA backward of BatchNorm and activation under emulation: exact integers, error gates, memory."""

from dataclasses import replace

import pytest
import torch
from emulated import MODES, modes

from resnext_kernels.backends import cuda
from resnext_kernels.checks import ACTIVATIONS
from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import cases, exact
from resnext_kernels.testing.verify import call, judge, verify

OPS = ("affine_act_backward", "bn_act_reduce")
# Channels that are whole vectors, of one block and of several, and not; planes of less than a vector, of windows that
# end with them and that do not, of several to a tile and of several tiles, with the last of all cut, too; rows of one
# tile and of several.
SIZES = ["n2_c5_h7_w9", "n1_c64_h8", "n3_c24_h5", "n1_c1_h3", "n2_c200_h4_w6", "n3_c7_h1_w2", "n1_c3_h65_w64",
         "n5_c8_h1", "n2_c328_h3", "n1_c8_h50_w42", "n9_c2_h7", "n14_c3_h7"]  # fmt: skip
MASKS = [[True, True], [True, False], [False, True]]
LAYOUTS = pytest.mark.parametrize("layout", cases.FORMATS)
DTYPES = pytest.mark.parametrize("dtype", cuda._DTYPES, ids=str)


@pytest.fixture(autouse=True)
def kernels(emulated_cuda):
    yield emulated_cuda


def _problem(text, layout, dtype=torch.float32):
    return replace(ConvProblem.parse(text), dtype=dtype, layout=layout)


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("text", SIZES)
def test_exact(kernels, text, layout, dtype):
    problem = _problem(text, layout, dtype)
    for _ in modes(kernels, text):
        for op in OPS:
            for activation in ("relu", "identity"):
                assert exact.mismatch(op, problem, "cuda", activation=activation) is None


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("text", SIZES)
def test_gates(kernels, text, layout, dtype):
    problem = _problem(text, layout, dtype)
    for _ in modes(kernels, text):
        for op in OPS:
            for activation in ACTIVATIONS:
                verdict = verify(op, problem, "cuda", activation=activation)
                assert verdict.passed, (op, activation, verdict)


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_asked_for(layout, dtype, activation):
    for text in ("n2_c5_h7_w9", "n3_c24_h5"):
        for args in cases.variants("affine_act_backward", _problem(text, layout, dtype), integers=False,
                                   activation=activation):  # fmt: skip
            both = call("affine_act_backward", args, "cuda")
            for mask in MASKS:
                results = call("affine_act_backward", (*args[:-1], mask), "cuda")
                for result, asked, whole in zip(results, mask, both, strict=True):
                    assert torch.equal(result, whole if asked else whole.new_empty(0))


@LAYOUTS
@pytest.mark.parametrize("text", ["n2_c200_h4_w6", "n1_c3_h65_w64", "n1_c8_h50_w42"])
def test_the_same_bits_whatever_runs_first(kernels, text, layout):
    for op in OPS:
        args, results = cases.make(op, _problem(text, layout), integers=False, activation="silu"), []
        for mode in MODES:
            kernels.configure(**mode)
            results.append(call(op, args, "cuda"))
        assert all(torch.equal(a, b) for each in results for a, b in zip(each, results[0], strict=True))


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("size", ["h1", "h1_w3", "h2"])
def test_few_values(layout, dtype, size):
    """Of one sign and far from the mean: every rounding counts, and of many channels one has the worst."""
    grad, z, scale, shift, mean, *rest = cases.make("bn_act_reduce", _problem(f"n1_c2000_{size}", layout, dtype),
                                                    integers=False, optional=False)  # fmt: skip
    args = (grad.abs(), z.abs(), scale, shift, mean / 1024, *rest)
    verdict = judge("bn_act_reduce", args, call("bn_act_reduce", args, "cuda"))
    assert verdict.passed, verdict


@LAYOUTS
def test_a_mean_far_from_zero(layout):
    """The gate grows with the mean; here the error does not."""
    grad, z, scale, shift, mean, rstd, *_ = cases.make(
        "bn_act_reduce", _problem("n4_c64_h20", layout), integers=False, activation="identity"
    )
    z, mean = z + 3000, mean + 3000
    result = call("bn_act_reduce", (grad, z, scale, shift, mean, rstd, None, "identity"), "cuda")[1]
    terms = grad.double() * (z.double() - mean.double().view(-1, 1, 1)) * rstd.double().view(-1, 1, 1)
    error = (result.double() - terms.sum((0, 2, 3))).abs()
    assert (error <= 2**-24 * terms.abs().sum((0, 2, 3))).all()


@LAYOUTS
def test_not_finite(layout):
    """An infinite or undefined gradient shows in its channel and in no other."""
    for value in (torch.inf, torch.nan):
        args = cases.make("bn_act_reduce", _problem("n2_c11_h3", layout), integers=False, activation="identity")
        args[0][1, 5, 2, 1] = value
        results, clean = call("bn_act_reduce", args, "cuda"), torch.arange(11) != 5
        assert all(result[clean].isfinite().all() and not result[5].isfinite() for result in results)
        assert results[0][5].isnan() == (value is torch.nan)


@LAYOUTS
def test_an_empty_batch(layout):
    for op in OPS:
        # Without the dispatch, to which an empty image reads as NCHW.
        results = getattr(cuda, op)(*cases.make(op, _problem("n0_c16_h5", layout), integers=True))
        assert not any(result.any() for result in results)
        assert [result.shape for result in results] == [(16,) if op == "bn_act_reduce" else (0, 16, 5, 5)] * 2


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("text", [*SIZES, "n3_c13_h3"])
def test_nothing_beyond_the_tensors(kernels, text, layout, dtype):
    """Loads and stores outside the tensors, and bytes stored twice, are errors of the emulation."""
    problem = _problem(text, layout, dtype)
    for activation in ACTIVATIONS:
        for args in cases.variants("affine_act_backward", problem, integers=False, activation=activation):
            for mask in MASKS:
                _run_in_regions(kernels, problem, args, mask)


def _run_in_regions(kernels, problem, args, mask):
    grad, z, *vectors, y, activation, _ = args
    native = cuda._native_image(z.shape, problem.layout == "nhwc", z.dtype)
    slope = ACTIVATIONS.index(activation)
    y = None if activation == "identity" else y
    read = [grad, *vectors, *([] if y is None else [y])]
    images = [torch.empty_like(z) if asked else None for asked in mask]
    sums = [torch.empty(z.shape[1]) for _ in range(2)]
    workspace = torch.empty(native.bn_act_reduce_workspace(), dtype=torch.uint8)
    reads_z = mask[0] or (activation != "identity" and y is None)

    def run(function, read, written, addresses):
        for tensor in (*read, *written):
            writable = any(tensor is each for each in written)
            kernels.add_region(tensor.data_ptr(), tensor.numel() * tensor.element_size(), writable)
        try:
            function(*(a if isinstance(a, int) else cuda._address(a) for a in addresses), 0, 0)
        finally:
            kernels.clear_regions()

    run(native.affine_act_backward, read + [z] * reads_z, [image for image in images if image is not None],
        [grad, z, *vectors, y, slope, *images])  # fmt: skip
    run(native.bn_act_reduce, [*read, z], [*sums, workspace],
        [grad, z, *vectors[:4], y, slope, *sums, workspace])  # fmt: skip


@DTYPES
@pytest.mark.parametrize(("text", "layout"), [("n1_c64_h16", "nhwc"), ("n256_c64_h1", "nchw")])
def test_bytes_moved(kernels, text, layout, dtype):
    """Rows of whole vectors: a thread loads its channels' five vectors once for all of them."""
    args = cases.make(OPS[0], _problem(text, layout, dtype), integers=True, optional=False)
    dz, _ = cuda.affine_act_backward(*args[:-1], [True, False])
    counters, size = kernels.counters(), dz.numel() * dz.element_size()
    assert counters["bytes_stored"] == size and counters["bytes_loaded"] <= 5 * size


@LAYOUTS
def test_misaligned_and_strided_arguments(layout):
    def off_by_one(tensor):
        memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:]
        return memory.as_strided(tensor.shape, tensor.stride()).copy_(tensor)

    def strided(tensor):
        return tensor.repeat_interleave(2, 0)[::2]

    for op in OPS:
        args = cases.make(op, _problem("n2_c16_h5", layout, torch.bfloat16), integers=True)
        expected = call(op, args, "cuda")
        for change in (off_by_one, strided):
            changed = tuple(change(a) if isinstance(a, torch.Tensor) else a for a in args)
            assert all(map(torch.equal, call(op, changed, "cuda"), expected))
