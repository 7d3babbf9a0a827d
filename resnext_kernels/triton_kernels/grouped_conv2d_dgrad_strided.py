"""dgrad of grouped 3x3 convolutions of stride 2, NHWC, of up to 32 channels a group: no zeros are inserted.

With the padding counted in, x's rows 2q and 2q + 1 are row q of dz under the taps 0 and 1 and, of the former, row q - 1
under tap 2; columns alike. So a program walks down rows of dz as rows_kernel does down those of x, and makes 2 rows of
dx from each; K is 2 columns of dz, q - 1 and q, and N is 2 columns of dx, 2q and 2q + 1: a quarter of the product is
zeros.
"""

import triton
import triton.language as tl

from .grouped_conv2d import load_weight


@triton.jit(do_not_specialize=["n_positions", "h", "w", "oh", "ow", "cin_vectors", "cout_vectors", "rows", "pad_h",
                               "pad_w", "blocks"])  # fmt: skip
def dgrad_strided_kernel(
    dz, packed, dx, n_positions, h, w, oh, ow, cin_vectors, cout_vectors, rows, pad_h, pad_w, blocks,
    VI: tl.constexpr, VO: tl.constexpr, GI: tl.constexpr, GO: tl.constexpr, KC: tl.constexpr, NC: tl.constexpr,
    PACKS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """dx (N, h, w, cin_vectors * VI) of dz (N, oh, ow, cout_vectors * VO); GO and KC are of dz's channels."""
    K: tl.constexpr = 2 * KC
    N: tl.constexpr = 2 * NC
    c_in, c_out = cin_vectors * VI, cout_vectors * VO
    block, strip = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    first_row, first_column = pad_h // 2 + tl.program_id(1) * rows, pad_w // 2
    across = (w - 1 + pad_w) // 2 - first_column + 1
    image0 = strip * TILE // across
    position = strip * TILE + tl.arange(0, TILE)
    image = position // across
    column = (first_column + position - image * across)[None, :, None]
    image = (image - image0)[None, :, None]
    is_position = (position < n_positions)[None, :, None]

    pack = tl.arange(0, PACKS)[:, None, None]
    k, n = tl.arange(0, K)[None, None, :], tl.arange(0, N)[None, None, :]
    co, ci = (block * PACKS + pack) * GO + k % KC, (block * PACKS + pack) * GI + n % NC
    dz_column = column - 1 + k // KC
    dz_live = is_position & (k % KC < GO) & (co < c_out) & (dz_column >= 0) & (dz_column < ow)
    dz_offsets = (image * oh * ow + dz_column) * c_out + co
    dx_column = 2 * column + n // NC - pad_w
    dx_live = is_position & (n % NC < GI) & (ci < c_in) & (dx_column >= 0) & (dx_column < w)
    dx_offsets = (image * h * w + dx_column) * c_in + ci
    dz += image0.to(tl.int64) * oh * ow * c_out
    dx += image0.to(tl.int64) * h * w * c_in

    # As packed, the taps are turned round.
    (last,) = load_weight(packed, block, 0, 1, PACKS, K, N)
    (middle,) = load_weight(packed, block, 1, 1, PACKS, K, N)
    (first,) = load_weight(packed, block, 2, 1, PACKS, K, N)
    begun = tl.zeros((PACKS, TILE, N), tl.float32)
    for i in range(rows + 1):
        q = first_row + i - 1
        row = tl.load(dz + q * ow * c_out + dz_offsets, dz_live & (q >= 0) & (q < oh), other=0.0)
        even = tl.dot(row, first, begun, input_precision="ieee")
        odd = tl.dot(row, middle, input_precision="ieee")
        begun = tl.dot(row, last, input_precision="ieee")
        dx_row = 2 * q - pad_h
        place = dx + dx_row * w * c_in + dx_offsets
        tl.store(place, even.to(dx.dtype.element_ty), dx_live & (i > 0) & (dx_row >= 0) & (dx_row < h))
        is_odd = (i > 0) & (dx_row + 1 >= 0) & (dx_row + 1 < h)
        tl.store(place + w * c_in, odd.to(dx.dtype.element_ty), dx_live & is_odd)
