"""Forward of any grouped convolution, NHWC: a matrix product of gathered pixels for each group, tap by tap.

For what grouped_conv2d.py is not made for: more than 32 channels a group, where the product is worth more than the
loads, and other kernels, strides and dilations.
"""

import triton
import triton.language as tl

from .epilogue import activate, affine, load_vector, of_values, store_partial


@triton.jit(do_not_specialize=["n_positions", "h", "w", "oh", "ow", "cin_vectors", "cout_vectors", "stride_h",
                               "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w", "kernel_w",
                               "taps"])  # fmt: skip
def gather_kernel(
    x, weight, scale, shift, y, partials, n_positions, h, w, oh, ow, cin_vectors, cout_vectors, stride_h, stride_w,
    pad_h, pad_w, dilation_h, dilation_w, kernel_w, taps,
    VI: tl.constexpr, VO: tl.constexpr, CIN: tl.constexpr, COUT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """y = act(scale * conv(x) + shift), weight being (tap, C_out, C_in/groups); with `partials`, statistics of y."""
    c_in, c_out = cin_vectors * VI, cout_vectors * VO
    parts: tl.constexpr = (COUT + BN - 1) // BN
    steps: tl.constexpr = (CIN + BK - 1) // BK
    columns = c_out // COUT * parts
    tile = tl.program_id(0) // columns
    group = tl.program_id(0) % columns // parts
    m, n, k = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    position = tile * BM + m
    is_position = position < n_positions
    image = position // (oh * ow)
    image0 = tile * BM // (oh * ow)
    x += image0.to(tl.int64) * h * w * c_in
    y += tile.to(tl.int64) * BM * c_out
    top = position // ow % oh * stride_h - pad_h
    left = position % ow * stride_w - pad_w
    pixels = ((image - image0) * h + top) * w + left
    out = tl.program_id(0) % parts * BN + n
    at, out_live = group * COUT + out, out < COUT

    total = tl.zeros((BM, BN), tl.float32)
    for i in range(taps * steps):
        tap, channel = i // steps, i % steps * BK + k
        down, right = tap // kernel_w * dilation_h, tap % kernel_w * dilation_w
        inside = (top + down >= 0) & (top + down < h) & (left + right >= 0) & (left + right < w) & is_position
        place = (pixels + down * w + right)[:, None] * c_in + (group * CIN + channel)[None, :]
        values = tl.load(x + place, inside[:, None] & (channel < CIN)[None, :], other=0.0)
        row = (tap * c_out + at)[None, :] * CIN + channel[:, None]
        weights = tl.load(weight + row, out_live[None, :] & (channel < CIN)[:, None], other=0.0)
        total = tl.dot(values, weights, total, input_precision="ieee")

    live = is_position[:, None] & out_live[None, :]
    total = affine(total, load_vector(scale, at, out_live), load_vector(shift, at, out_live))
    z = activate(total, ACTIVATION).to(y.dtype.element_ty)
    tl.store(y + m[:, None] * c_out + at[None, :], z, live)
    if partials is not None:
        counts = tl.sum(live.to(tl.float32), 0)
        mean, m2 = of_values(tl.where(live, z.to(tl.float32), 0.0), live, counts, 0)
        store_partial(partials, tile, c_out, at, out_live, counts, mean, m2)
