"""wgrad of any grouped convolution, NHWC: for each group and tap a product of dz with gathered pixels of x.

For what grouped_conv2d_wgrad.py is not made for: more than 32 channels a group, other kernels, strides and dilations.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n_positions", "h", "w", "oh", "ow", "cin_vectors", "cout_vectors", "stride_h",
                               "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w", "kernel_h", "kernel_w",
                               "steps"])  # fmt: skip
def wgrad_gather_kernel(
    x, dz, partials, n_positions, h, w, oh, ow, cin_vectors, cout_vectors, stride_h, stride_w, pad_h, pad_w,
    dilation_h, dilation_w, kernel_h, kernel_w, steps,
    VI: tl.constexpr, VO: tl.constexpr, CIN: tl.constexpr, COUT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """partials (split, tap, C_out, C_in/groups): BN output times BK input channels, over steps * BM positions.

    Programs that read the same pixels are neighbours in the grid.
    """
    c_in, c_out = cin_vectors * VI, cout_vectors * VO
    outs: tl.constexpr = (COUT + BN - 1) // BN
    inners: tl.constexpr = (CIN + BK - 1) // BK
    taps = kernel_h * kernel_w
    tap, block = tl.program_id(0) % taps, tl.program_id(0) // taps
    group = block // (outs * inners)
    m = tl.arange(0, BM)
    out = block // inners % outs * BN + tl.arange(0, BN)
    inner = block % inners * BK + tl.arange(0, BK)
    at = group * COUT + out
    down, right = tap // kernel_w * dilation_h - pad_h, tap % kernel_w * dilation_w - pad_w

    total = tl.zeros((BN, BK), tl.float32)
    for i in range(steps):
        first = (tl.program_id(1) * steps + i) * BM
        position = first + m
        image0 = first // (oh * ow)
        image = position // (oh * ow) - image0
        row, column = position // ow % oh * stride_h + down, position % ow * stride_w + right
        is_position = position < n_positions
        inside = is_position & (row >= 0) & (row < h) & (column >= 0) & (column < w)
        pixels = (image * h + row) * w + column
        place = image0.to(tl.int64) * h * w * c_in + (pixels[:, None] * c_in + (group * CIN + inner)[None, :])
        values = tl.load(x + place, inside[:, None] & (inner < CIN)[None, :], other=0.0)
        place = first.to(tl.int64) * c_out + (m[None, :] * c_out + at[:, None])
        grads = tl.load(dz + place, is_position[None, :] & (out < COUT)[:, None], other=0.0)
        total = tl.dot(grads, values, total, input_precision="ieee")

    slice_ = tl.program_id(1).to(tl.int64) * taps + tap
    place = slice_ * c_out * CIN + (at[:, None] * CIN + inner[None, :])
    tl.store(partials + place, total, (out < COUT)[:, None] & (inner < CIN)[None, :])
