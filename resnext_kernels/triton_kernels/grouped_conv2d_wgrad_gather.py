"""wgrad of any grouped convolution, NHWC: for each group and tap a product over positions of dz and gathered pixels.

For what grouped_conv2d_wgrad.py is not made for, as grouped_conv2d_gather.py.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n_positions", "h", "w", "oh", "ow", "cin_vectors", "cout_vectors", "stride_h",
                               "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w", "kernel_w", "taps",
                               "steps"])  # fmt: skip
def wgrad_gather_kernel(
    x, dz, partials, n_positions, h, w, oh, ow, cin_vectors, cout_vectors, stride_h, stride_w, pad_h, pad_w,
    dilation_h, dilation_w, kernel_w, taps, steps,
    VI: tl.constexpr, VO: tl.constexpr, CIN: tl.constexpr, COUT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """partials (split, tap, C_out, C_in/groups), of `steps` blocks of BM positions a split."""
    c_in, c_out = cin_vectors * VI, cout_vectors * VO
    of_n: tl.constexpr = (COUT + BN - 1) // BN
    of_k: tl.constexpr = (CIN + BK - 1) // BK
    tap, split = tl.program_id(1) % taps, tl.program_id(1) // taps
    group = tl.program_id(0) // (of_n * of_k)
    n = tl.program_id(0) // of_k % of_n * BN + tl.arange(0, BN)
    k = tl.program_id(0) % of_k * BK + tl.arange(0, BK)
    down, right = tap // kernel_w * dilation_h - pad_h, tap % kernel_w * dilation_w - pad_w
    image0 = split * steps * BM // (oh * ow)
    x += image0.to(tl.int64) * h * w * c_in + group * CIN
    dz += (split * steps).to(tl.int64) * BM * c_out + group * COUT

    total = tl.zeros((BN, BK), tl.float32)
    for step in range(steps):
        m = step * BM + tl.arange(0, BM)
        position = split * steps * BM + m
        is_position = position < n_positions
        image, row, column = position // (oh * ow) - image0, position // ow % oh, position % ow
        top, left = row * stride_h + down, column * stride_w + right
        inside = is_position & (top >= 0) & (top < h) & (left >= 0) & (left < w)
        place = ((image * h + top) * w + left)[:, None] * c_in + k[None, :]
        values = tl.load(x + place, inside[:, None] & (k < CIN)[None, :], other=0.0)
        grads = tl.load(dz + m[None, :] * c_out + n[:, None], is_position[None, :] & (n < COUT)[:, None], other=0.0)
        total = tl.dot(grads, values, total, input_precision="ieee")
    each = c_out * CIN
    place = (split * taps + tap).to(tl.int64) * each + (group * COUT + n)[:, None] * CIN + k[None, :]
    tl.store(partials + place, total, (n < COUT)[:, None] & (k < CIN)[None, :])
