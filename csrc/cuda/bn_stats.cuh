#pragma once
#include "channel_stats.cuh"
#include "element.h"
#include "images_plan.h"

// Batch statistics of images. Each thread sums z - shift and its square; block or warp merge those to the
// moments of a tile, whose means are less an origin of the channel.
namespace rk::cuda {

struct TileStats {
  float2* partials;
  float *counts, *origins;
};

// Exact where all are the same.
__device__ __forceinline__ float average(float a, float b) { return fused(0.5f, a, 0.5f * b); }

// Joins all values into values[0], in pairs.
template <int kCount, class Join>
__device__ __forceinline__ float joined(float (&values)[kCount], const Join& join) {
#pragma unroll
  for (int step = kCount / 2; step > 0; step /= 2)
#pragma unroll
    for (int i = 0; i < step; ++i) values[i] = join(values[i], values[i + step]);
  return values[0];
}

// What a thread knows of kVector channels, in rows.
template <class T, int kVector, bool kAligned>
struct RowSums {
  // Loads in flight, as far as registers go.
  static constexpr int kUnroll = kVector == 1 ? 8 : kAligned ? 4 : 2;

  float shift[kVector], sum[kVector] = {}, squares[kVector] = {};

  static __device__ __forceinline__ void load(const Storage<T>* from, float (&values)[kVector]) {
    load_elements<T, kAligned>(from, values);
  }

  // The mean of the first four rows, where there are as many.
  __device__ __forceinline__ void choose_shift(const Storage<T>* from, int64_t step, int count) {
    load(from, shift);
    if (count < 4) return;
    float others[3][kVector];
#pragma unroll
    for (int row = 0; row < 3; ++row) load(from + (row + 1) * step, others[row]);
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      shift[i] = average(average(shift[i], others[0][i]), average(others[1][i], others[2][i]));
  }

  __device__ __forceinline__ void add(const Storage<T>* from) {
    float values[kVector];
    load(from, values);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float d = values[i] - shift[i];
      sum[i] += d;
      squares[i] = fused(d, d, squares[i]);
    }
  }
};

template <class T, int kVector, bool kAligned>
__device__ __forceinline__ void load_origin(const Storage<T>* z, const RowTiles& tiles, int64_t channel,
                                            float (&origin)[kVector]) {
  float rows[3][kVector];
#pragma unroll
  for (int i = 0; i < 3; ++i)
    load_elements<T, kAligned>(z + (sample(i, tiles.rows) * tiles.c + channel), rows[i]);
#pragma unroll
  for (int i = 0; i < kVector; ++i) origin[i] = median(rows[0][i], rows[1][i], rows[2][i]);
}

// Moments of some channels, of which all have n values.
template <int kVector>
struct RowMoments {
  float n, mean[kVector], m2[kVector];
};

// Merges the moments of the same channels, for the threads of row 0.
template <int kVector>
__device__ __forceinline__ void merge_rows(RowMoments<kVector>& moments, const RowTiles& tiles, int row) {
  auto* const shared = reinterpret_cast<float2*>(shared_memory());
  auto* const counts = reinterpret_cast<float*>(shared + kVector * kImageThreads);
  const int thread = static_cast<int>(thread_index());
  int rows = 1;
  while (rows < tiles.at_once) rows *= 2;
  for (rows /= 2; rows > 0; rows /= 2) {
    if (row >= rows && row < 2 * rows) {
      store_shared(counts + thread, moments.n);
#pragma unroll
      for (int i = 0; i < kVector; ++i)
        store_shared(shared + i * kImageThreads + thread, float2{moments.mean[i], moments.m2[i]});
    }
    sync_threads();
    if (row >= rows || row + rows >= tiles.at_once) continue;
    const int other = thread + rows * tiles.columns;
    const float ours = moments.n, theirs = load_shared<float>(counts + other);
    moments.n = ours + theirs;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float2 of = load_shared<float2>(shared + i * kImageThreads + other);
      const Moments merged = merge({ours, moments.mean[i], moments.m2[i]}, {theirs, of.x, of.y});
      moments.mean[i] = merged.mean, moments.m2[i] = merged.m2;
    }
  }
}

inline constexpr unsigned row_stats_shared_bytes(int vector) { return kImageThreads * (8 * vector + 4); }

template <class T, int kVector, bool kAligned>
__global__ __launch_bounds__(kImageThreads) void bn_stats_rows_kernel(const Storage<T>* z, RowTiles tiles,
                                                                      TileStats out) {
  const RowThread at = row_thread(tiles, block_index_x(), static_cast<int>(thread_index()));
  RowSums<T, kVector, kAligned> sums;
  RowMoments<kVector> moments{};
  float origin[kVector];
  if (at.count > 0) {
    const Storage<T>* const from = z + (at.first * tiles.c + at.channel);
    const int64_t step = tiles.at_once * tiles.c;
    sums.choose_shift(from, step, at.count);
#pragma unroll(decltype(sums)::kUnroll)
    for (int i = 0; i < at.count; ++i) sums.add(from + i * step);
    load_origin<T, kVector, kAligned>(z, tiles, at.channel, origin);
    moments.n = static_cast<float>(at.count);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const Moments of = from_shifted(moments.n, sums.shift[i] - origin[i], sums.sum[i], sums.squares[i]);
      moments.mean[i] = of.mean, moments.m2[i] = of.m2;
    }
  }
  merge_rows(moments, tiles, at.row);
  if (!at.valid || at.row > 0) return;
  if (at.channel == 0) store_global(out.counts + at.tile, moments.n);
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const int64_t channel = at.channel + i;
    store_global(out.partials + (at.tile * tiles.c + channel), float2{moments.mean[i], moments.m2[i]});
    if (at.tile == 0) store_global(out.origins + channel, origin[i]);
  }
}

// What a lane knows of a channel, in planes.
template <class T, bool kAligned>
struct PlaneSums {
  static constexpr int kVector = kVectorElements<T>;
  float shift, n = 0, sum = 0, squares = 0;

  // The shift is the mean of the first window or, where that is not whole, the origin.
  __device__ __forceinline__ explicit PlaneSums(float origin) : shift(origin) {}

  __device__ __forceinline__ void add_window(const Storage<T>* from) {
    float d[kVector], square[kVector];
    load_elements<T, kAligned>(from, d);
    if (n == 0) {
      float first[kVector];
#pragma unroll
      for (int i = 0; i < kVector; ++i) first[i] = d[i];
      shift = joined(first, [](float a, float b) { return average(a, b); });
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) d[i] -= shift, square[i] = d[i] * d[i];
    const auto plus = [](float a, float b) { return a + b; };
    n += kVector;
    sum += joined(d, plus);
    squares += joined(square, plus);
  }

  __device__ __forceinline__ void add(const Storage<T>* from) {
    const float d = load_element<T>(from) - shift;
    n += 1;
    sum += d;
    squares = fused(d, d, squares);
  }

  __device__ __forceinline__ void add(const Storage<T>* z, const PlaneWindow& window) {
    const auto [first, begin, end] = window;
    if (begin <= first && first + kVector <= end) return add_window(z + first);
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      if (first + i >= begin && first + i < end) add(z + (first + i));
  }
};

template <class T>
__device__ __forceinline__ float plane_origin(const Storage<T>* z, const PlaneTiles& tiles, int64_t channel) {
  float values[3];
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const int64_t value = sample(i, tiles.n * tiles.pixels), image = value / tiles.pixels;
    values[i] = load_element<T>(z + ((image * tiles.c + channel - image) * tiles.pixels + value));
  }
  return median(values[0], values[1], values[2]);
}

template <class T, bool kAligned>
__global__ __launch_bounds__(kImageThreads) void bn_stats_planes_kernel(const Storage<T>* z, PlaneTiles tiles,
                                                                        TileStats out) {
  const int thread = static_cast<int>(thread_index()), lane = thread % kWarpThreads;
  const PlaneWarp at = plane_warp(tiles, block_index_x(), thread);
  if (at.images == 0) return;
  const float origin = plane_origin<T>(z, tiles, at.channel);
  PlaneSums<T, kAligned> sums(origin);
  for (int i = lane; i < at.images * tiles.windows; i += kWarpThreads)
    sums.add(z, plane_window<kVectorElements<T>>(tiles, at, i));
  Moments moments = from_shifted(sums.n, sums.shift - origin, sums.sum, sums.squares);
#pragma unroll
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2)
    moments = merge(moments, {shuffle_xor(moments.n, mask), shuffle_xor(moments.mean, mask),
                              shuffle_xor(moments.m2, mask)});
  if (lane > 0) return;
  store_global(out.partials + (at.tile * tiles.c + at.channel), float2{moments.mean, moments.m2});
  if (at.channel == 0) store_global(out.counts + at.tile, moments.n);
  if (at.tile == 0) store_global(out.origins + at.channel, origin);
}

}  // namespace rk::cuda
