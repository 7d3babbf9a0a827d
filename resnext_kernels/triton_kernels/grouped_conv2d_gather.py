"""Forward and dgrad of any grouped convolution, NHWC: a product of gathered pixels for each group, tap by tap.

For what grouped_conv2d.py is not made for: more than 32 channels a group, where the product is worth more than the
loads, and other kernels, strides and dilations.
"""

import triton
import triton.language as tl

from .epilogue import activate, affine, load_vector, of_values, store_partial


@triton.jit
def _taps(at, dilation, taps, PHASES: tl.constexpr, STEP: tl.constexpr):
    """Of the taps t for which PHASES divides at - t * dilation: the first, how many there are, the first's quotient."""
    first = taps
    for back in tl.static_range(PHASES):
        first = tl.where((at - (PHASES - 1 - back) * dilation) % PHASES == 0, PHASES - 1 - back, first)
    count = (tl.maximum(taps - first, 0) + STEP - 1) // STEP
    return first, count, (at - first * dilation) // PHASES


@triton.jit(do_not_specialize=["n_positions", "h", "w", "oh", "ow", "cin_vectors", "cout_vectors", "stride_h",
                               "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w", "kernel_h",
                               "kernel_w"])  # fmt: skip
def gather_kernel(
    x, weight, scale, shift, y, partials, n_positions, h, w, oh, ow, cin_vectors, cout_vectors, stride_h, stride_w,
    pad_h, pad_w, dilation_h, dilation_w, kernel_h, kernel_w,
    VI: tl.constexpr, VO: tl.constexpr, CIN: tl.constexpr, COUT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, ACTIVATION: tl.constexpr, PHASES_H: tl.constexpr, PHASES_W: tl.constexpr,
    STEP_H: tl.constexpr, STEP_W: tl.constexpr,
):  # fmt: skip
    """y = act(scale * conv(x) + shift), weight being (tap, C_out, C_in/groups); with `partials`, statistics of y.

    y[o] = sum over t of weight[t] * x[(o * stride + pad - t * dilation) / PHASES], where that is whole. Forward has
    1 phase and negative padding and dilation; dgrad, whose y is dx, has stride 1 and as many phases as the forward
    stride, which are told apart by the second dimension of the grid: pixels of one phase have the same taps, every
    STEP-th.
    """
    c_in, c_out = cin_vectors * VI, cout_vectors * VO
    parts: tl.constexpr = (COUT + BN - 1) // BN
    steps: tl.constexpr = (CIN + BK - 1) // BK
    columns = c_out // COUT * parts
    tile = tl.program_id(0) // columns
    group = tl.program_id(0) % columns // parts
    phase_h, phase_w = tl.program_id(1) // PHASES_W, tl.program_id(1) % PHASES_W
    rows, across = (oh + PHASES_H - 1) // PHASES_H, (ow + PHASES_W - 1) // PHASES_W
    m, n, k = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    position = tile * BM + m
    image = position // (rows * across)
    image0 = tile * BM // (rows * across)
    image -= image0
    row, column = position // across % rows, position % across
    out_row, out_column = row * PHASES_H + phase_h, column * PHASES_W + phase_w
    is_position = position < n_positions
    if PHASES_H * PHASES_W > 1:
        is_position &= (out_row < oh) & (out_column < ow)
    x += image0.to(tl.int64) * h * w * c_in
    first_h, count_h, top = _taps(phase_h + pad_h, dilation_h, kernel_h, PHASES_H, STEP_H)
    first_w, count_w, left = _taps(phase_w + pad_w, dilation_w, kernel_w, PHASES_W, STEP_W)
    top += row * stride_h
    left += column * stride_w
    pixels = (image * h + top) * w + left
    out = tl.program_id(0) % parts * BN + n
    at, out_live = group * COUT + out, out < COUT

    total = tl.zeros((BM, BN), tl.float32)
    for i in range(count_h * count_w * steps):
        tap_h, tap_w, channel = i // steps // count_w, i // steps % count_w, i % steps * BK + k
        down, right = -tap_h * (STEP_H * dilation_h // PHASES_H), -tap_w * (STEP_W * dilation_w // PHASES_W)
        inside = (top + down >= 0) & (top + down < h) & (left + right >= 0) & (left + right < w) & is_position
        place = (pixels + down * w + right)[:, None] * c_in + (group * CIN + channel)[None, :]
        values = tl.load(x + place, inside[:, None] & (channel < CIN)[None, :], other=0.0)
        tap = (first_h + tap_h * STEP_H) * kernel_w + first_w + tap_w * STEP_W
        wanted = (tap * c_out + at)[None, :] * CIN + channel[:, None]
        weights = tl.load(weight + wanted, out_live[None, :] & (channel < CIN)[:, None], other=0.0)
        total = tl.dot(values, weights, total, input_precision="ieee")

    live = is_position[:, None] & out_live[None, :]
    total = affine(total, load_vector(scale, at, out_live), load_vector(shift, at, out_live))
    z = activate(total, ACTIVATION).to(y.dtype.element_ty)
    if PHASES_H * PHASES_W == 1:
        y += tile.to(tl.int64) * BM * c_out
        place = m
    else:
        y += image0.to(tl.int64) * oh * ow * c_out
        place = (image * oh + out_row) * ow + out_column
    tl.store(y + place[:, None] * c_out + at[None, :], z, live)
    if partials is not None:
        counts = tl.sum(live.to(tl.float32), 0)
        mean, m2 = of_values(tl.where(live, z.to(tl.float32), 0.0), live, counts, 0)
        store_partial(partials, tile, c_out, at, out_live, counts, mean, m2)
