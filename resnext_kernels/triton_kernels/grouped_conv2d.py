"""Forward of grouped 3x3 convolutions, NHWC, of up to 32 channels a group: a program walks down rows of the image.

A program has TILE columns (or pairs of columns) of flattened (image, column) positions, PACKS packs of channels, and
ROWS output rows. A row of input is loaded once for each of its 2 or 3 shifts and feeds the sums of the 3 output rows
that it is part of. A pack is one or more whole groups: K of its input channels times N output channels is one product
of a batched dot, with zeros between groups. Up to 8 channels a group the pack holds 2 neighbouring columns besides,
so that 2 loads of a pair each serve for 3 taps and the zeros are a quarter of the product.
"""

import triton
import triton.language as tl

from .epilogue import activate, affine, load_vector, merged, of_values, store_partial, with_row


@triton.jit
def prepack_kernel(
    weight, packed, c_out,
    CIN: tl.constexpr, COUT: tl.constexpr, GI: tl.constexpr, GO: tl.constexpr, KC: tl.constexpr, NC: tl.constexpr,
    PACKS: tl.constexpr, PX: tl.constexpr, SPREAD: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    """(C_out, C_in/groups, 3, 3) -> (block, tap row, shift, pack, K, N).

    TURNED, the weight is that of the convolution whose dgrad this is: (C_in, C_out/groups, 3, 3), each tap at the
    opposite place. SPREAD is how many output columns the 2 input columns of a pair lie apart.
    """
    shifts: tl.constexpr = (4 - PX) // SPREAD
    K: tl.constexpr = KC * PX
    N: tl.constexpr = NC * PX
    block, row, shift = tl.program_id(0), tl.program_id(1) // shifts, tl.program_id(1) % shifts
    pack = tl.arange(0, PACKS)[:, None, None]
    k = tl.arange(0, K)[None, :, None]
    n = tl.arange(0, N)[None, None, :]
    ci, co = k % KC, n % NC
    column = PX * shift + SPREAD * (k // KC) - n // NC
    out = (block * PACKS + pack) * GO + co
    live = (ci < GI) & (co < GO) & (ci // CIN == co // COUT) & (column >= 0) & (column < 3) & (out < c_out)
    if TURNED:
        place = ((out // COUT * CIN + ci % CIN) * COUT + out % COUT) * 9 + 8 - row * 3 - column
    else:
        place = (out * CIN + ci % CIN) * 9 + row * 3 + column
    value = tl.load(weight + place, live, other=0.0)
    to = packed + (tl.program_id(0) * (3 * shifts) + tl.program_id(1)) * (PACKS * K * N)
    tl.store(to + (pack * K + k) * N + n, value)


@triton.jit
def load_weight(packed, block, ROW: tl.constexpr, SHIFTS: tl.constexpr, PACKS: tl.constexpr, K: tl.constexpr,
                N: tl.constexpr):  # fmt: skip
    """The SHIFTS (PACKS, K, N) of one row of taps."""
    inner = tl.arange(0, PACKS)[:, None, None] * K + tl.arange(0, K)[None, :, None]
    place = packed + (block * 3 + ROW) * (SHIFTS * PACKS * K * N) + inner * N + tl.arange(0, N)[None, None, :]
    if SHIFTS == 1:
        return (tl.load(place),)
    elif SHIFTS == 2:
        return tl.load(place), tl.load(place + PACKS * K * N)
    else:
        return tl.load(place), tl.load(place + PACKS * K * N), tl.load(place + 2 * PACKS * K * N)


@triton.jit
def load_row(x, offsets, step, live, is_row):
    """The shifts of one row of input, each of (PACKS, TILE, K); zeros outside the image."""
    first = tl.load(x + offsets, live[0] & is_row, other=0.0)
    second = tl.load(x + step + offsets, live[1] & is_row, other=0.0)
    if len(live) == 2:
        return first, second
    else:
        return first, second, tl.load(x + 2 * step + offsets, live[2] & is_row, other=0.0)


@triton.jit
def _plus_products(total, row, weight):
    total = tl.dot(row[0], weight[0], total, input_precision="ieee")
    total = tl.dot(row[1], weight[1], total, input_precision="ieee")
    if len(row) == 3:
        total = tl.dot(row[2], weight[2], total, input_precision="ieee")
    return total


@triton.jit(do_not_specialize=["n_positions", "h", "w", "oh", "ow", "cin_vectors", "cout_vectors", "rows", "pad_h",
                               "pad_w", "blocks"])  # fmt: skip
def rows_kernel(
    x, packed, scale, shift, y, partials, n_positions, h, w, oh, ow, cin_vectors, cout_vectors, rows, pad_h, pad_w,
    blocks,
    VI: tl.constexpr, VO: tl.constexpr, GI: tl.constexpr, GO: tl.constexpr, KC: tl.constexpr, NC: tl.constexpr,
    PACKS: tl.constexpr, PX: tl.constexpr, TILE: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
    ACTIVATION: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """y = act(scale * conv(x) + shift); with `partials`, statistics of each tile of y.

    C_in = cin_vectors * VI and C_out = cout_vectors * VO, which tells the compiler how far addresses are aligned.
    """
    shifts: tl.constexpr = 4 - PX
    K: tl.constexpr = KC * PX
    N: tl.constexpr = NC * PX
    c_in, c_out = cin_vectors * VI, cout_vectors * VO
    # Neighbours in the grid share pixels, whose channels are one stretch of memory.
    block, strip = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    # The output rows of a program are DILATION apart, so that they share input rows.
    first = tl.program_id(1) // DILATION * rows * DILATION + tl.program_id(1) % DILATION
    across = (ow + PX - 1) // PX
    image0 = strip * TILE // across
    position = strip * TILE + tl.arange(0, TILE)
    image = position // across
    column = (position - image * across) * PX
    image -= image0

    pack = tl.arange(0, PACKS)[:, None, None]
    k, n = tl.arange(0, K)[None, None, :], tl.arange(0, N)[None, None, :]
    ci = (block * PACKS + pack) * GI + k % KC
    co = (block * PACKS + pack) * GO + n % NC
    co_live = (n % NC < GO) & (co < c_out)
    is_position = (position < n_positions)[None, :, None]
    in_column = (column * STRIDE - pad_w)[None, :, None] + k // KC
    in_offsets = (image[None, :, None] * h * w + in_column) * c_in + ci
    out_column = column[None, :, None] + n // NC
    out_offsets = (image[None, :, None] * oh * ow + out_column) * c_out + co
    column_live = is_position & (out_column < ow)
    out_live = column_live & co_live
    x += image0.to(tl.int64) * h * w * c_in
    y += image0.to(tl.int64) * oh * ow * c_out

    step: tl.constexpr = PX if PX == 2 else DILATION
    in_live = is_position & (k % KC < GI) & (ci < c_in)
    if PX == 2:
        live = (in_live & (in_column >= 0) & (in_column < w), in_live & (in_column + 2 >= 0) & (in_column + 2 < w))
    else:
        live = (
            in_live & (in_column >= 0) & (in_column < w),
            in_live & (in_column + step >= 0) & (in_column + step < w),
            in_live & (in_column + 2 * step >= 0) & (in_column + 2 * step < w),
        )
    top = load_weight(packed, block, 0, shifts, PACKS, K, N)
    middle = load_weight(packed, block, 1, shifts, PACKS, K, N)
    bottom = load_weight(packed, block, 2, shifts, PACKS, K, N)
    # One by one: tuples of triton 3.6 hold no None.
    scales = load_vector(scale, co, co_live)
    shifts = load_vector(shift, co, co_live)

    if partials is not None:
        # A thread keeps LANES of the tile's columns apart until the end: sums over the rest need no other thread.
        lanes = tl.reshape(tl.broadcast_to(column_live, (1, TILE, N)), (1, TILE // LANES, LANES, N))
        counts = tl.sum(lanes.to(tl.float32), 1)
        mean = tl.zeros((PACKS, LANES, N), tl.float32)
        m2 = tl.zeros((PACKS, LANES, N), tl.float32)

    # Rows that are begun: `next` has its top taps, `after`, of stride 1 alone, what the next row of input adds.
    lead: tl.constexpr = 2 if STRIDE == 1 else 1
    current = tl.zeros((PACKS, TILE, N), tl.float32)
    after = tl.zeros((PACKS, TILE, N), tl.float32)
    for i in range(rows + lead):
        out_row = first + (i - lead) * DILATION
        in_row = out_row * STRIDE - pad_h + 2 * DILATION
        is_row = (in_row >= 0) & (in_row < h)
        if STRIDE == 1:
            row = load_row(x + in_row * w * c_in, in_offsets, step * c_in, live, is_row)
            total = _plus_products(current, row, bottom)
            current = _plus_products(after, row, middle)
            after = _plus_products(tl.zeros((PACKS, TILE, N), tl.float32), row, top)
        else:
            above = load_row(x + (in_row - 1) * w * c_in, in_offsets, step * c_in, live, (in_row >= 1) & (in_row <= h))
            row = load_row(x + in_row * w * c_in, in_offsets, step * c_in, live, is_row)
            total = _plus_products(_plus_products(current, above, middle), row, bottom)
            current = _plus_products(tl.zeros((PACKS, TILE, N), tl.float32), row, top)
        is_out = (i >= lead) & (out_row < oh)
        z = activate(affine(total, scales, shifts), ACTIVATION).to(y.dtype.element_ty)
        tl.store(y + out_row * ow * c_out + out_offsets, z, out_live & is_out)
        if partials is not None:
            values = tl.reshape(z.to(tl.float32), (PACKS, TILE // LANES, LANES, N))
            row_mean, row_m2 = of_values(values, lanes, counts, 1)
            mean, m2 = with_row(mean, m2, row_mean, row_m2, counts, tl.where(is_out, i - lead, 0), is_out)

    if partials is not None:
        done = tl.maximum(tl.minimum(rows, (oh - first + DILATION - 1) // DILATION), 0)
        n_values = tl.broadcast_to(counts * done, (PACKS, LANES, N))
        shape: tl.constexpr = (PACKS, LANES * PX, NC)
        n_values, mean, m2 = merged(tl.reshape(n_values, shape), tl.reshape(mean, shape), tl.reshape(m2, shape), 1)
        pack, c = tl.arange(0, PACKS)[:, None], tl.arange(0, NC)[None, :]
        at = (block * PACKS + pack) * GO + c
        tile = strip * tl.num_programs(1) + tl.program_id(1)
        store_partial(partials, tile, c_out, at, (c < GO) & (at < c_out), n_values, mean, m2)
