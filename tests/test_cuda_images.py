"""The CUDA kernels over whole images under emulation: bn_stats and affine_act."""

from dataclasses import replace

import pytest
import torch
from emulated import modes

from resnext_kernels.backends import cuda, reference
from resnext_kernels.problem import ConvProblem, memory_format
from resnext_kernels.testing import cases, exact
from resnext_kernels.testing.verify import judge, verify

# Vectors and single channels; rows in several tiles, the last one short, and in several blocks of columns; planes
# that share a tile, are cut into runs, begin anywhere in a vector, or are one pixel; one channel.
PROBLEMS = [
    "n2_c5_h7_w9", "n1_c64_h8_w8", "n3_c24_h5_w5", "n1_c1_h3_w3", "n2_c200_h4_w6", "n3_c120_h9_w10", "n1_c264_h5_w7",
    "n1_c260_h3_w7", "n2_c3_h26_w41", "n7_c3_h13_w13", "n9_c2_h8_w8", "n4_c1_h16_w17", "n70_c24_h1_w1", "n1_c24_h1_w1",
    "n3_c5_h40_w32",
]  # fmt: skip


@pytest.fixture(autouse=True)
def kernels(emulated_cuda):
    yield emulated_cuda


def _problem(text, layout, dtype):
    return replace(ConvProblem.parse(text), dtype=dtype, layout=layout)


@pytest.mark.parametrize("dtype", cuda._DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("text", PROBLEMS)
def test_images(kernels, text, layout, dtype):
    problem = _problem(text, layout, dtype)
    for _ in modes(kernels, text):
        for activation in ("relu", "identity"):
            assert exact.mismatch("affine_act", problem, "cuda", activation=activation) is None
        assert verify("affine_act", problem, "cuda", activation="silu").passed
        verdict = verify("bn_stats", problem, "cuda")
        assert verdict.passed, verdict


def _judge_statistics(z):
    verdict = judge("bn_stats", (z,), cuda.bn_stats(z))
    assert verdict.passed, verdict


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("text", PROBLEMS)
def test_statistics_far_from_zero(kernels, text, layout):
    (z,) = cases.make("bn_stats", _problem(text, layout, torch.float32), integers=False)
    far = 1000 * (1 + torch.arange(z.shape[1]).view(1, -1, 1, 1) % 3)
    _judge_statistics(z + far)
    mean, m2 = cuda.bn_stats((0 * z + far).contiguous(memory_format=cases.FORMATS[layout]))
    assert torch.equal(mean, far.flatten().float()) and not m2.any()


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("text", PROBLEMS)
def test_one_value_far_off(kernels, text, layout):
    """It must not be what all are taken less of: neither the first one nor any of the three samples."""
    value = 2.0**20 if layout == "nchw" else -(2.0**20)
    (z,) = cases.make("bn_stats", _problem(text, layout, torch.float32), integers=False)
    pixels = z[0, 0].numel()
    for sixth in (0, 1, 3, 5):
        image, pixel = divmod(sixth * z[:, 0].numel() // 6, pixels)
        off = z.clone()
        off[image, :, pixel // z.shape[3], pixel % z.shape[3]] = value
        _judge_statistics(off)


def _misaligned(z):
    """A copy, dense as z is, one element past a multiple of 16 bytes."""
    return z.new_empty(z.numel() + 1)[1:].as_strided(z.shape, z.stride(), 1).copy_(z)


def _run_native(kernels, z, residual, y, activation):
    """Statistics and affine_act at the addresses given, and in those tensors alone."""
    c, layout = z.shape[1], memory_format(z)
    native = cuda._native_image(z.shape, layout is torch.channels_last, z.dtype)
    vectors = [torch.ones(c), torch.arange(c) / 2.0]
    results, workspace = [torch.empty(c), torch.empty(c)], torch.empty(native.bn_stats_workspace(), dtype=torch.uint8)
    read, written = [z, *vectors, *([] if residual is None else [residual])], [y, *results, workspace]
    for tensors, writable in ((read, False), (written, True)):
        for tensor in tensors:
            kernels.add_region(tensor.data_ptr(), tensor.numel() * tensor.element_size(), writable)
    try:
        native.bn_stats(z.data_ptr(), *(each.data_ptr() for each in (*results, workspace)), 0, 0)
        addresses = (cuda._address(each) for each in (z, *vectors, residual, y))
        native.affine_act(*addresses, activation, 0, 0)
    finally:
        kernels.clear_regions()
    return y, *results


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("text", PROBLEMS)
def test_any_address(kernels, text, layout, dtype):
    """The same bits as at multiples of 16 bytes, and nothing beyond the tensors."""
    problem = _problem(text, layout, dtype)
    z, residual = (cases.make("bn_stats", problem, integers=False, seed=seed)[0] for seed in range(2))
    activation = z.shape[1] % 3
    for added in (residual, None):
        expected = _run_native(kernels, z, added, z.clone(), activation)
        for apart in range(3 if added is residual else 1):
            tensors = [z, added, z.clone()]
            tensors[apart] = _misaligned(tensors[apart])
            assert all(map(torch.equal, _run_native(kernels, *tensors, activation), expected))


@pytest.mark.parametrize("dtype", cuda._DTYPES, ids=str)
@pytest.mark.parametrize("text", ["n1_c64_h16_nhwc", "n256_c64_h1"])
def test_bytes_moved(kernels, text, dtype):
    """Rows of whole vectors: a thread loads its channels' scale and shift once for all of them."""
    args = cases.make("affine_act", replace(ConvProblem.parse(text), dtype=dtype), integers=True, optional=False)
    y = cuda.affine_act(*args)
    counters, size = kernels.counters(), y.numel() * y.element_size()
    assert counters["bytes_stored"] == size and counters["bytes_loaded"] <= 2 * size


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("activation", ["identity", "relu", "silu"])
def test_what_is_not_finite(kernels, layout, activation):
    """As in eager PyTorch: NaN and infinities pass."""
    for dtype in cuda._DTYPES:
        args = list(cases.make("affine_act", _problem("n2_c16_h3_w5", layout, dtype), integers=True))
        args[0][0, ::7, 0, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf])
        args[4] = activation
        assert torch.allclose(cuda.affine_act(*args), reference.affine_act(*args), equal_nan=True)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", [(0, 16, 3, 3), (2, 0, 3, 3), (2, 16, 0, 3), (2, 1, 0, 3)])
def test_empty_images(kernels, shape, layout):
    z = torch.empty(shape).to(memory_format=cases.FORMATS[layout])
    mean, m2 = cuda.bn_stats(z)
    assert mean.shape == m2.shape == shape[1:2] and not mean.any() and not m2.any()
    assert cuda.affine_act(z, mean, m2, None, "relu").shape == shape


@pytest.mark.parametrize(
    ("shape", "layout", "dtype", "tiles"),
    [
        ((1, 64, 513, 1), "nhwc", torch.float16, 3),  # 8 rows of 32 at once
        ((32, 256, 56, 56), "nhwc", torch.float16, 1568),  # 8 rows of 8
        ((1, 64, 32 * 10, 2113), "nhwc", torch.float16, 1921),  # 11 rows, as 10 would make 2113 blocks
        ((1, 2048, 32, 8), "nhwc", torch.float32, 4),  # 8 rows of 8, in 16 blocks of columns
        ((1024, 64, 112, 112), "nhwc", torch.float16, 6272),  # 64 rows of 32
        ((600, 64, 1, 1), "nchw", torch.float16, 3),  # one-pixel images are rows
        ((100, 1, 600, 1), "nchw", torch.float16, 118),  # one channel is a plane
        ((64, 3, 1537, 1), "nchw", torch.float32, 256),  # 512 values
        ((1024, 64, 4097, 1), "nchw", torch.float32, 2048),  # 4096 values
        ((1, 1, 600, 16897), "nchw", torch.float16, 16675),  # 608 values, as 600 would make too many warps
    ],
)
def test_tiles(shape, layout, dtype, tiles):
    """Of statistics too large to run: their bits go by the tiles, so that other tiles are to be meant."""
    workspace = cuda._native_image(shape, layout == "nhwc", dtype).bn_stats_workspace()
    c = shape[1]
    assert workspace == sum(-(-part // 256) * 256 for part in (8 * tiles * c, 4 * tiles, 4 * c))


@pytest.mark.parametrize("text", ["n1_c1_h1024_w1030", "n1_c255_h2_w1100", "n1_c2_h363"])
def test_many_tiles(kernels, text):
    z = cases.make("bn_stats", _problem(text, "nhwc" if "c255" in text else "nchw", torch.float32), integers=False)[0]
    _judge_statistics(z + 1000)
