"""(dz, dresidual) = (a * g + b * z + c, g) of NHWC images, g = grad * act'(pre)."""

import triton
import triton.language as tl

from .epilogue import bn_backward, masked_grad


@triton.jit(do_not_specialize=["n_rows", "vectors"])
def affine_act_backward_kernel(
    grad, z, scale, shift, a, b, c, y, dz, dresidual, n_rows, vectors,
    VEC: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Of n_rows pixels of vectors * VEC channels; what is None of y, dz and dresidual is not read or written."""
    channels = vectors * VEC
    blocks = (channels + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    first = tl.program_id(0) // blocks * BLOCK_ROWS
    row = tl.arange(0, BLOCK_ROWS)
    at = (tl.program_id(0) % blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS))[None, :]
    live = (first + row < n_rows)[:, None] & (at < channels)
    place = first.to(tl.int64) * channels + (row[:, None] * channels + at)
    values = tl.load(z + place, live, other=0.0).to(tl.float32)
    if y is None:
        scales, shifts = tl.load(scale + at, at < channels, other=0.0), tl.load(shift + at, at < channels, other=0.0)
        pre = tl.fma(values, scales, shifts)
    else:
        pre = tl.load(y + place, live, other=0.0).to(tl.float32)
    g = masked_grad(tl.load(grad + place, live, other=0.0).to(tl.float32), pre, ACTIVATION)
    if dz is not None:
        by_z, constant = tl.load(b + at, at < channels, other=0.0), tl.load(c + at, at < channels, other=0.0)
        result = bn_backward(g, values, tl.load(a + at, at < channels, other=0.0), by_z, constant)
        tl.store(dz + place, result.to(dz.dtype.element_ty), live)
    if dresidual is not None:
        tl.store(dresidual + place, g.to(dresidual.dtype.element_ty), live)
