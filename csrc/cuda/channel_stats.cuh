#pragma once
#include "platform.h"
#include "problem.h"

// Statistics of channels as (n, mean, M2), M2 = sum (z - mean)^2: kernels leave those of a tile of the
// images, merge_stats merges the tiles.
namespace rk::cuda {

struct Moments {
  float n, mean, m2;
};

// Of the values of both (Chan, Golub and LeVeque). Seen from the one with fewer, the way to the common mean
// would be nearly all of the difference, and its rounding could be more than that mean.
__device__ __forceinline__ Moments merge(Moments a, Moments b) {
  const bool fewer = a.n < b.n;
  const Moments most = fewer ? b : a, rest = fewer ? a : b;
  if (rest.n == 0) return most;
  const float n = most.n + rest.n, share = rest.n / n, d = rest.mean - most.mean;
  return {n, fused(d, share, most.mean), fused(d * d, most.n * share, most.m2 + rest.m2)};
}

// Sums of z - shift and its square over values of a channel.
struct ShiftedSums {
  float shift, sum, squares;

  __device__ __forceinline__ void add(float z) {
    const float d = z - shift;
    sum += d;
    squares = fused(d, d, squares);
  }
};

// From the sums of z - shift and of its square over n values, of which the shift is one or a mean of a few:
// then n * (mean - shift)^2 cannot swallow M2. With n = 0 nothing else is read.
__device__ __forceinline__ Moments from_shifted(float n, float shift, float sum, float sum_squares) {
  if (n == 0) return {0, 0, 0};
  const float offset = sum / n, m2 = fused(-sum, offset, sum_squares);
  return {n, shift + offset, m2 < 0 ? 0 : m2};
}

// What values are taken less of, lest differences of means far from zero be inexact, is the median of three
// of them: near their mean, and one far off does not set it. They are spread, as the first is of a corner.
__device__ __forceinline__ int64_t sample(int i, int64_t values) { return (2 * i + 1) * values / 6; }

__device__ __forceinline__ float median(float a, float b, float c) {
  const float low = a < b ? a : b, high = a < b ? b : a;
  return c < low ? low : c > high ? high : c;
}

// Queues what makes `stats` of partials[tiles][c] of (mean, M2) and counts[tiles], how many values of each
// channel a tile has; no tiles make zeros. The means are those of z - origins[channel] where origins is not
// null. The same bits for the same (tiles, c).
void merge_stats(const float2* partials, const float* counts, int64_t tiles, int64_t c,
                 const BatchStats& stats, void* stream, const float* origins = nullptr);

}  // namespace rk::cuda
