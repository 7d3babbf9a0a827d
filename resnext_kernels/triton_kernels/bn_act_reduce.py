"""(sum g, sum g * xhat) of each channel of NHWC images: sums of tiles, added in a fixed order by a second kernel."""

import triton
import triton.language as tl

from .epilogue import masked_grad, ordered_sum


@triton.jit(do_not_specialize=["n_rows", "vectors", "steps"])
def tile_sums_kernel(
    grad, z, scale, shift, mean, rstd, y, partials, n_rows, vectors, steps,
    VEC: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Of each tile of BLOCK_ROWS * steps pixels and BLOCK_CHANNELS of the vectors * VEC channels."""
    channels = vectors * VEC
    blocks = (channels + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    tile = tl.program_id(0) // blocks
    at = tl.program_id(0) % blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    is_channel = at < channels
    first = tile * steps * BLOCK_ROWS
    row = tl.arange(0, BLOCK_ROWS)
    base = first.to(tl.int64) * channels
    means = tl.load(mean + at, is_channel, other=0.0)[None, :]
    rstds = tl.load(rstd + at, is_channel, other=0.0)[None, :]
    scales = tl.load(scale + at, is_channel, other=0.0)[None, :]
    shifts = tl.load(shift + at, is_channel, other=0.0)[None, :]
    sum_g = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    sum_g_xhat = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    for step in range(steps):
        live = (first + step * BLOCK_ROWS + row < n_rows)[:, None] & is_channel[None, :]
        place = base + ((step * BLOCK_ROWS + row)[:, None] * channels + at[None, :])
        values = tl.load(z + place, live, other=0.0).to(tl.float32)
        if y is None:
            pre = tl.fma(values, scales, shifts)
        else:
            pre = tl.load(y + place, live, other=0.0).to(tl.float32)
        # 0 outside the image, and so are the products with it.
        g = masked_grad(tl.load(grad + place, live, other=0.0).to(tl.float32), pre, ACTIVATION)
        sum_g += g
        sum_g_xhat += g * ((values - means) * rstds)
    here = partials + tile.to(tl.int64) * 2 * channels + at
    tl.store(here, tl.sum(sum_g, 0), is_channel)
    tl.store(here + channels, tl.sum(sum_g_xhat, 0), is_channel)


@triton.jit(do_not_specialize=["tiles", "channels"])
def sum_kernel(
    partials, sum_g, sum_g_xhat, tiles, channels, TILES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr
):  # fmt: skip
    """Of all tiles, of which each has (sum g, sum g * xhat): the second dimension of the grid says which of the two."""
    at = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    which, live = tl.program_id(1), at < channels
    total = ordered_sum(partials + which * channels + at, tiles, 2 * channels, live, TILES, BLOCK_CHANNELS)
    if which == 0:
        tl.store(sum_g + at, total, live)
    else:
        tl.store(sum_g_xhat + at, total, live)
