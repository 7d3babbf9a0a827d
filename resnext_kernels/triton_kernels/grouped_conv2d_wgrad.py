"""wgrad of grouped 3x3 convolutions, NHWC, of up to 32 channels a group: a program walks down rows of x and of dz.

A program has PACKS packs, a chunk of dz's rows, and some strips of TILE flattened (image, column) positions of dz that
it walks one after the other. A pack is one or more whole groups, of up to KC input channels and PARTS times 16 output
channels. A row of x is loaded once for each of its 3 shifts and meets the 3 rows of dz that it is under the taps of:
the newest is loaded, the others are kept. The 9 sums, of 16 output times KC input channels for each part of a pack,
stay in registers to the end, when what lies within groups is stored, for a second kernel to add the splits.
"""

import triton
import triton.language as tl

from .epilogue import bn_backward, load_vector, masked_grad, ordered_sum
from .grouped_conv2d import load_row


@triton.jit
def _plus_products(sums, dz, row):
    """The sums of one row of taps, each of (parts, N, K); dz is (parts, N, TILE)."""
    return (
        tl.dot(dz, row[0], sums[0], input_precision="ieee"),
        tl.dot(dz, row[1], sums[1], input_precision="ieee"),
        tl.dot(dz, row[2], sums[2], input_precision="ieee"),
    )


@triton.jit
def _bits(values):
    if values.dtype.primitive_bitwidth == 16:
        return values.to(tl.int16, bitcast=True)
    else:
        return values.to(tl.int32, bitcast=True)


@triton.jit
def _store_sums(partials, sums, tap_size, live):
    tl.store(partials, sums[0], live)
    tl.store(partials + tap_size, sums[1], live)
    tl.store(partials + 2 * tap_size, sums[2], live)


@triton.jit(do_not_specialize=["n_positions", "h", "w", "oh", "ow", "cin_vectors", "cout_vectors", "rows", "strips",
                               "pad_h", "pad_w", "blocks"])  # fmt: skip
def wgrad_rows_kernel(
    x, grad, z, scale, shift, a, b, c, dz, partials, n_positions, h, w, oh, ow, cin_vectors, cout_vectors, rows,
    strips, pad_h, pad_w, blocks,
    VI: tl.constexpr, VO: tl.constexpr, CIN: tl.constexpr, COUT: tl.constexpr, GI: tl.constexpr, GO: tl.constexpr,
    KC: tl.constexpr, PARTS: tl.constexpr, PACKS: tl.constexpr, TILE: tl.constexpr, STRIDE: tl.constexpr,
    DILATION: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """partials (split, tap, C_out, C_in/groups); grad is dz or, with z, the gradient of which dz is made and stored.

    C_in = cin_vectors * VI and C_out = cout_vectors * VO, which tells the compiler how far addresses are aligned.
    """
    N: tl.constexpr = 16
    c_in, c_out = cin_vectors * VI, cout_vectors * VO
    block, walk = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    # The rows of dz of a program are DILATION apart, so that they share rows of x.
    first = tl.program_id(1) // DILATION * rows * DILATION + tl.program_id(1) % DILATION
    part = tl.arange(0, PACKS * PARTS)[:, None, None]
    pack = block * PACKS + part // PARTS
    k, n = tl.arange(0, KC)[None, None, :], part % PARTS * N + tl.arange(0, N)[None, :, None]
    ci, co = pack * GI + k, pack * GO + n
    ci_live, co_live = (k < GI) & (ci < c_in), (n < GO) & (co < c_out)

    zeros = tl.zeros((PACKS * PARTS, N, KC), tl.float32)
    top, middle, bottom = (zeros, zeros, zeros), (zeros, zeros, zeros), (zeros, zeros, zeros)
    lead: tl.constexpr = 2 if STRIDE == 1 else 1
    for strip in range(walk * strips, walk * strips + strips):
        image0 = strip * TILE // ow
        position = strip * TILE + tl.arange(0, TILE)
        image = position // ow
        column = position - image * ow
        image -= image0
        is_position = position < n_positions
        x_column = (column * STRIDE - pad_w)[None, :, None]
        x_offsets = (image[None, :, None] * h * w + x_column) * c_in + ci
        x_live = is_position[None, :, None] & ci_live
        live = (
            x_live & (x_column >= 0) & (x_column < w),
            x_live & (x_column + DILATION >= 0) & (x_column + DILATION < w),
            x_live & (x_column + 2 * DILATION >= 0) & (x_column + 2 * DILATION < w),
        )
        dz_offsets = (image * oh * ow + column)[None, None, :] * c_out + co
        dz_live = is_position[None, None, :] & co_live
        images = image0.to(tl.int64)
        # The rows of dz of the two steps before.
        newer = tl.zeros((PACKS * PARTS, N, TILE), x.dtype.element_ty)
        oldest = _bits(newer)
        for i in range(rows + lead):
            dz_row = first + i * DILATION
            is_dz = dz_live & (i < rows) & (dz_row < oh)
            place = images * oh * ow * c_out + dz_row * ow * c_out + dz_offsets
            row = tl.load(grad + place, is_dz, other=0.0)
            if z is not None:
                # Loaded anew: they would take more registers than there are.
                values = tl.load(z + place, is_dz, other=0.0).to(tl.float32)
                pre = tl.fma(values, load_vector(scale, co, co_live), load_vector(shift, co, co_live))
                by_grad, by_z = load_vector(a, co, co_live), load_vector(b, co, co_live)
                g = masked_grad(row.to(tl.float32), pre, ACTIVATION)
                made = bn_backward(g, values, by_grad, by_z, load_vector(c, co, co_live))
                row = tl.where(is_dz, made, 0.0).to(x.dtype.element_ty)
                tl.store(dz + place, row, is_dz)
            x_row = dz_row * STRIDE - pad_h
            x_place = x + images * h * w * c_in + x_row * w * c_in
            above = load_row(x_place, x_offsets, DILATION * c_in, live, (x_row >= 0) & (x_row < h))
            top = _plus_products(top, row, above)
            if STRIDE == 1:
                middle = _plus_products(middle, newer, above)
                bottom = _plus_products(bottom, oldest.to(x.dtype.element_ty, bitcast=True), above)
                # As other bits: what is handed on unchanged for two steps keeps triton from pipelining the loads.
                oldest = _bits(newer)
            else:
                below = load_row(x_place + w * c_in, x_offsets, c_in, live, (x_row >= -1) & (x_row < h - 1))
                middle = _plus_products(middle, row, below)
                bottom = _plus_products(bottom, newer, above)
            newer = row

    split = walk * tl.num_programs(1) + tl.program_id(1)
    tap_size = c_out * CIN
    partials += split.to(tl.int64) * 9 * tap_size + (co * CIN + k % CIN)
    live = co_live & ci_live & (n // COUT == k // CIN)
    _store_sums(partials, top, tap_size, live)
    _store_sums(partials + 3 * tap_size, middle, tap_size, live)
    _store_sums(partials + 6 * tap_size, bottom, tap_size, live)


@triton.jit(do_not_specialize=["splits", "taps", "c_out", "c_in", "in_stride", "tap_stride"])
def wgrad_merge_kernel(
    partials, dw, splits, taps, c_out, c_in, in_stride, tap_stride, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """dw (c_out, c_in, taps), the latter two of any strides, of partials (split, tap, c_out, c_in)."""
    size = taps * c_out * c_in
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = ordered_sum(partials + at, splits, size, at < size, SPLITS, BLOCK)
    tap, out, inner = at // c_in // c_out, at // c_in % c_out, at % c_in
    place = out * c_in * taps + inner * in_stride + tap * tap_stride
    tl.store(dw + place, total.to(dw.dtype.element_ty), at < size)
