"""Statistics of each channel of an NHWC image, as (n, mean, M2) of tiles and their merging."""

import triton
import triton.language as tl

from .epilogue import merged, of_values, store_partial


@triton.jit(do_not_specialize=["n_rows", "vectors", "steps"])
def tiles_kernel(
    z, partials, n_rows, vectors, steps,
    VEC: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Of each tile of BLOCK_ROWS * steps pixels and BLOCK_CHANNELS of the vectors * VEC channels."""
    channels = vectors * VEC
    blocks = (channels + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    tile = tl.program_id(0) // blocks
    at = tl.program_id(0) % blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    first = tile * steps * BLOCK_ROWS
    row = tl.arange(0, BLOCK_ROWS)
    shape: tl.constexpr = (BLOCK_ROWS // LANES, LANES, BLOCK_CHANNELS)
    n = tl.zeros((LANES, BLOCK_CHANNELS), tl.float32)
    mean = tl.zeros((LANES, BLOCK_CHANNELS), tl.float32)
    m2 = tl.zeros((LANES, BLOCK_CHANNELS), tl.float32)
    z += first.to(tl.int64) * channels
    for step in range(steps):
        live = ((first + step * BLOCK_ROWS + row) < n_rows)[:, None] & (at < channels)[None, :]
        values = tl.load(z + (step * BLOCK_ROWS + row)[:, None] * channels + at[None, :], live, other=0.0)
        values = tl.reshape(values.to(tl.float32), shape)
        lanes = tl.reshape(live, shape)
        counts = tl.sum(lanes.to(tl.float32), 0)
        new_mean, new_m2 = of_values(values, lanes, counts, 0)
        part = counts / tl.maximum(n + counts, 1.0)
        away = new_mean - mean
        mean += away * part
        m2 += new_m2 + away * away * n * part
        n += counts
    n, mean, m2 = merged(n, mean, m2, 0)
    store_partial(partials, tile, channels, at, at < channels, n, mean, m2)


@triton.jit(do_not_specialize=["tiles", "channels"])
def merge_kernel(
    partials, mean, m2, tiles, channels, TILES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr
):  # fmt: skip
    """(mean, M2) of all tiles: those of every TILES-th one after the other, then these together."""
    at = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    n = tl.zeros((TILES, BLOCK_CHANNELS), tl.float32)
    all_mean = tl.zeros((TILES, BLOCK_CHANNELS), tl.float32)
    all_m2 = tl.zeros((TILES, BLOCK_CHANNELS), tl.float32)
    for start in range(0, tiles, TILES):
        tile = start + tl.arange(0, TILES)
        live = (tile < tiles)[:, None] & (at < channels)[None, :]
        place = partials + tile.to(tl.int64)[:, None] * 3 * channels + at[None, :]
        counts = tl.load(place, live, other=0.0)
        away = tl.load(place + channels, live, other=0.0) - all_mean
        part = counts / tl.maximum(n + counts, 1.0)
        all_mean += away * part
        all_m2 += tl.load(place + 2 * channels, live, other=0.0) + away * away * n * part
        n += counts
    n, total, total_m2 = merged(n, all_mean, all_m2, 0)
    tl.store(mean + at, total, at < channels)
    tl.store(m2 + at, total_m2, at < channels)
