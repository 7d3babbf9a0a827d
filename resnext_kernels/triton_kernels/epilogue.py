"""What follows a convolution's sum: scale, shift and activation; statistics of the values that are stored."""

import triton
import triton.language as tl


@triton.jit
def activate(v, ACTIVATION: tl.constexpr):
    """NaN passes, as in PyTorch."""
    if ACTIVATION == "relu":
        v = tl.where(v <= 0, 0.0, v)
    elif ACTIVATION == "silu":
        v = v / (1 + tl.exp(-v))
    return v


@triton.jit
def load_vector(vector, at, live):
    """A vector of one value a channel, or None, by the channels `at`."""
    # Without an else: triton 3.6 cannot return None where it is said.
    if vector is not None:
        return tl.load(vector + at, live, other=0.0)


@triton.jit
def affine(v, scale, shift):
    """scale * v + shift; each of the two may be None."""
    if scale is not None and shift is not None:
        v = tl.fma(v, scale, shift)
    elif shift is not None:
        v += shift
    return v


@triton.jit
def merged(n, mean, m2, AXIS: tl.constexpr):
    """(n, mean, M2) of all parts along an axis: the parts' own M2 and that of their means."""
    count = tl.sum(n, AXIS)
    total = tl.sum(n * mean, AXIS) / tl.maximum(count, 1.0)
    away = mean - tl.expand_dims(total, AXIS)
    return count, total, tl.sum(m2 + n * away * away, AXIS)


@triton.jit
def of_values(z, live, counts, AXIS: tl.constexpr):
    """(mean, M2) along an axis of the values that are live, of which there are `counts`; z is 0 where it is not."""
    mean = tl.sum(z, AXIS) / tl.maximum(counts, 1.0)
    away = tl.where(live, z - tl.expand_dims(mean, AXIS), 0.0)
    return mean, tl.sum(away * away, AXIS)


@triton.jit
def with_row(mean, m2, row_mean, row_m2, counts, rows, is_row):
    """The statistics of `rows` rows of `counts` values each and, where `is_row`, of one row more."""
    away = row_mean - mean
    part = tl.where(is_row, 1.0 / (rows + 1), 0.0)
    return mean + away * part, m2 + tl.where(is_row, row_m2, 0.0) + away * away * counts * (rows * part)


@triton.jit
def store_partial(partials, tile, channels, at, live, n, mean, m2):
    """One tile's (n, mean, M2) for bn_stats.merge_kernel, of `channels` in all those `at`."""
    place = partials + tile.to(tl.int64) * 3 * channels + at
    tl.store(place, n, live)
    tl.store(place + channels, mean, live)
    tl.store(place + 2 * channels, m2, live)


@triton.jit
def masked_grad(grad, pre, ACTIVATION: tl.constexpr):
    """grad * act'(pre); for relu pre may be y, whose sign is the same. NaN passes, as in PyTorch."""
    if ACTIVATION == "relu":
        grad = tl.where(pre <= 0, 0.0, grad)
    elif ACTIVATION == "silu":
        sigmoid = 1 / (1 + tl.exp(-pre))
        grad = grad * sigmoid * (1 + pre * (1 - sigmoid))
    return grad


@triton.jit
def bn_backward(g, z, a, b, c):
    """a * g + b * z + c: the gradient of BatchNorm's input z."""
    return tl.fma(g, a, tl.fma(z, b, c))


@triton.jit
def ordered_sum(first, tiles, stride, live, TILES: tl.constexpr, BLOCK: tl.constexpr):
    """Over `tiles` tiles, `stride` elements apart: every TILES-th one after the other, then these together."""
    total = tl.zeros((TILES, BLOCK), tl.float32)
    for start in range(0, tiles, TILES):
        tile = start + tl.arange(0, TILES)
        place = first[None, :] + tile.to(tl.int64)[:, None] * stride
        total += tl.load(place, (tile < tiles)[:, None] & live[None, :], other=0.0)
    return tl.sum(total, 0)
