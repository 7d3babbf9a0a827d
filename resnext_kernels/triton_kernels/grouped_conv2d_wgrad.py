"""wgrad of grouped 3x3 convolutions, NHWC, of up to 32 channels a group: a program walks down rows of dz and x.

A program has TILE columns of flattened (image, column) positions of dz, PACKS packs of whole groups, a chunk of rows,
and several strips one after the other. Each row of x is loaded once for each of its 3 shifts and meets the rows of dz
of the taps that it is under, which are kept from the steps before: nine sums of products over positions, which stay in
registers until the end. Which programs there are, the problem alone decides; their sums are added in a fixed order.
"""

import triton
import triton.language as tl

from .epilogue import ordered_sum, through_batch_norm


@triton.jit
def _load_x(x, offsets, step, live, is_row):
    """The shifts of one row of x, each of (packs, TILE, KC); zeros outside the image."""
    return (
        tl.load(x + offsets, live[0] & is_row, other=0.0),
        tl.load(x + step + offsets, live[1] & is_row, other=0.0),
        tl.load(x + 2 * step + offsets, live[2] & is_row, other=0.0),
    )


@triton.jit
def _plus_products(sums, dz, row):
    """The sums of one row of taps, (packs, NC, KC) each."""
    dz = tl.trans(dz, 0, 2, 1)
    return (
        tl.dot(dz, row[0], sums[0], input_precision="ieee"),
        tl.dot(dz, row[1], sums[1], input_precision="ieee"),
        tl.dot(dz, row[2], sums[2], input_precision="ieee"),
    )


@triton.jit
def _store_sums(place, sums, tap, live):
    """The three of one row of taps, `tap` elements apart."""
    tl.store(place, sums[0], live)
    tl.store(place + tap, sums[1], live)
    tl.store(place + 2 * tap, sums[2], live)


@triton.jit(do_not_specialize=["n_positions", "h", "w", "oh", "ow", "cin_vectors", "cout_vectors", "rows", "pad_h",
                               "pad_w", "blocks", "strips"])  # fmt: skip
def wgrad_kernel(
    x, dy, z, scale, shift, a, b, c, dz, partials, n_positions, h, w, oh, ow, cin_vectors, cout_vectors, rows, pad_h,
    pad_w, blocks, strips,
    VI: tl.constexpr, VO: tl.constexpr, CIN: tl.constexpr, COUT: tl.constexpr, GI: tl.constexpr, GO: tl.constexpr,
    KC: tl.constexpr, NC: tl.constexpr, PACKS: tl.constexpr, PARTS: tl.constexpr, TILE: tl.constexpr,
    STRIDE: tl.constexpr, DILATION: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """partials (split, tap, C_out, C_in/groups) of x and dy; with z, dy is y's gradient, and dz is made and stored.

    A program has `strips` strips of TILE positions; its rows of dz are DILATION apart, as in rows_kernel. A product
    has NC of the GO channels that a pack has of dz, the PARTS-th part of them.
    """
    c_in, c_out = cin_vectors * VI, cout_vectors * VO
    block, split = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    first = tl.program_id(1) // DILATION * rows * DILATION + tl.program_id(1) % DILATION
    pack = tl.arange(0, PACKS * PARTS)[:, None, None]
    part, pack = pack % PARTS * NC, pack // PARTS
    k, n = tl.arange(0, KC)[None, None, :], part + tl.arange(0, NC)[None, None, :]
    ci, co = (block * PACKS + pack) * GI + k, (block * PACKS + pack) * GO + n
    ci_live, co_live = (k < GI) & (ci < c_in), (n < GO) & (co < c_out)
    if z is not None:
        vectors = (
            tl.load(scale + co, co_live, other=0.0), tl.load(shift + co, co_live, other=0.0),
            tl.load(a + co, co_live, other=0.0), tl.load(b + co, co_live, other=0.0),
            tl.load(c + co, co_live, other=0.0),
        )  # fmt: skip

    nothing = tl.zeros((PACKS * PARTS, NC, KC), tl.float32)
    top, middle, bottom = (nothing, nothing, nothing), (nothing, nothing, nothing), (nothing, nothing, nothing)
    lead: tl.constexpr = 2 if STRIDE == 1 else 1
    for strip in range(split * strips, (split + 1) * strips):
        image0 = strip * TILE // ow
        position = strip * TILE + tl.arange(0, TILE)
        image = position // ow
        column = (position - image * ow)[None, :, None]
        image = (image - image0)[None, :, None]
        is_position = (position < n_positions)[None, :, None]
        dz_live = is_position & co_live
        dz_offsets = (image * oh * ow + column) * c_out + co
        dz_base, x_base = image0.to(tl.int64) * oh * ow * c_out, image0.to(tl.int64) * h * w * c_in
        x_column = column * STRIDE - pad_w
        x_offsets = (image * h * w + x_column) * c_in + ci
        x_live = is_position & ci_live
        live = (
            x_live & (x_column >= 0) & (x_column < w),
            x_live & (x_column + DILATION >= 0) & (x_column + DILATION < w),
            x_live & (x_column + 2 * DILATION >= 0) & (x_column + 2 * DILATION < w),
        )
        above = tl.zeros((PACKS * PARTS, TILE, NC), dy.dtype.element_ty)
        before = tl.zeros((PACKS * PARTS, TILE, NC), dy.dtype.element_ty)
        for i in range(rows + lead):
            out_row = first + i * DILATION
            place = dz_base + out_row * ow * c_out
            is_live = dz_live & (i < rows) & (out_row < oh)
            current = tl.load(dy + place + dz_offsets, is_live, other=0.0)
            if z is not None:
                values = tl.load(z + place + dz_offsets, is_live, other=0.0).to(tl.float32)
                made = through_batch_norm(current.to(tl.float32), values, vectors, ACTIVATION)
                current = tl.where(is_live, made, 0.0).to(dy.dtype.element_ty)
                tl.store(dz + place + dz_offsets, current, is_live)
            in_row = out_row * STRIDE - pad_h
            from_x = x + x_base + in_row * w * c_in
            row = _load_x(from_x, x_offsets, DILATION * c_in, live, (in_row >= 0) & (in_row < h))
            top = _plus_products(top, current, row)
            if STRIDE == 1:
                middle = _plus_products(middle, before, row)
                bottom = _plus_products(bottom, above, row)
            else:
                bottom = _plus_products(bottom, before, row)
                row = _load_x(from_x + w * c_in, x_offsets, c_in, live, (in_row + 1 >= 0) & (in_row + 1 < h))
                middle = _plus_products(middle, current, row)
            # By a choice, as triton does not pipeline loops that hand a value on unchanged.
            above, before = tl.where(i <= rows, before, 0.0), current

    n, k = part + tl.arange(0, NC)[None, :, None], tl.arange(0, KC)[None, None, :]
    co = (block * PACKS + pack) * GO + n
    live = (n < GO) & (k < GI) & (n // COUT == k // CIN) & (co < c_out)
    tap = c_out * CIN
    split = (split * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    place = partials + split * 9 * tap + co * CIN + k % CIN
    _store_sums(place, top, tap, live)
    _store_sums(place + 3 * tap, middle, tap, live)
    _store_sums(place + 6 * tap, bottom, tap, live)


@triton.jit(do_not_specialize=["splits", "n_weights", "cin", "tap_stride", "channel_stride", "taps"])
def wgrad_sum_kernel(
    partials, dw, splits, n_weights, cin, taps, channel_stride, tap_stride,
    TILES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """dw (C_out, C_in/groups, taps), of any strides of the latter two, from (splits, taps, C_out, C_in/groups)."""
    at = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    live = at < n_weights
    total = ordered_sum(partials + at, splits, n_weights, live, TILES, BLOCK_CHANNELS)
    each = n_weights // taps
    tap, out, channel = at // each, at % each // cin, at % cin
    place = out * cin * taps + channel * channel_stride + tap * tap_stride
    tl.store(dw + place, total.to(dw.dtype.element_ty), live)
