"""y = act(scale * z + shift [+ residual]) of an NHWC image."""

import triton
import triton.language as tl

from .epilogue import activate


@triton.jit(do_not_specialize=["n_rows", "vectors"])
def affine_act_kernel(
    z, scale, shift, residual, y, n_rows, vectors,
    VEC: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Of n_rows pixels of vectors * VEC channels, BLOCK_ROWS and BLOCK_CHANNELS of them a program."""
    channels = vectors * VEC
    blocks = (channels + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    first = tl.program_id(0) // blocks * BLOCK_ROWS
    row = tl.arange(0, BLOCK_ROWS)
    at = tl.program_id(0) % blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    live = (first + row < n_rows)[:, None] & (at < channels)[None, :]
    base = first.to(tl.int64) * channels
    place = row[:, None] * channels + at[None, :]
    scales = tl.load(scale + at, at < channels, other=0.0)[None, :]
    shifts = tl.load(shift + at, at < channels, other=0.0)[None, :]
    pre = tl.fma(tl.load(z + base + place, live, other=0.0).to(tl.float32), scales, shifts)
    if residual is not None:
        pre += tl.load(residual + base + place, live, other=0.0).to(tl.float32)
    tl.store(y + base + place, activate(pre, ACTIVATION).to(y.dtype.element_ty), live)
