#pragma once
#include "float_vector.cuh"
#include "grouped_conv2d_wgrad_float_plan.h"
#include "platform.h"

// Gradient of the weights of the grouped 3x3 convolution in float, channels last: a thread owns a tile of
// outputs times inputs with all nine taps, a warp walks along output rows. The warps of a block have rows
// next to each other, which meet in the cache, and add up at the end.
namespace rk::cuda {

struct WgradFloatArguments {
  const float *x, *dy;
  float* partials;             // [splits][c_out][c_in / groups][3][3]
  int64_t elements, row_step;  // row_step: from a tap's row of x to the next one's
  int h, w, c_in, oh, ow, c_out;
  int stride[2], padding[2], dilation[2];
  WgradFloatPlan plan;
};

// kWalk: columns of input from one output to the next, where its three are adjacent; else 3.
template <int kOut_, int kIn_, int kWalk_>
struct WgradFloatTraits {
  static constexpr int kOut = kOut_, kIn = kIn_, kWalk = kWalk_;
  // Output columns that are loaded before any is used, as far as registers go, and their columns of input.
  static constexpr int kBatch = kWalk == 3   ? 1
                                : kOut == 1  ? 4
                                : kWalk == 1 ? (kOut == 2 ? 4 : 2)
                                : kOut == 2  ? 3
                                             : 1;
  static constexpr int kTaken = kWalk * (kBatch - 1) + 3, kKept = 3 - kWalk;
  // In shared memory: an output of a tile, odd, as lanes are so far apart; a warp's tiles; half of the warps.
  static constexpr int kTerms = 9 * kIn, kRow = kTerms | 1, kPlaces = 32 * kOut;
  static constexpr int kSharedWarps = kWgradWarps / 2;
  static constexpr unsigned kSharedBytes = 4 * kSharedWarps * kPlaces * kRow;
};

template <class Traits>
struct WgradFloatThread {
  static constexpr int kOut = Traits::kOut, kIn = Traits::kIn, kWalk = Traits::kWalk;

  const WgradFloatArguments& a;
  const int thread = static_cast<int>(thread_index()), warp = thread / 32, lane = thread % 32;
  const unsigned split = block_index_x() / a.plan.tile_blocks;
  const unsigned tile_block = block_index_x() - split * a.plan.tile_blocks;
  const WgradTile tile = tile_of(lane);
  float sums[kOut][kIn][9];
  float x[3][Traits::kTaken][kIn], dy[Traits::kBatch][kOut];

  __device__ __forceinline__ explicit WgradFloatThread(const WgradFloatArguments& arguments) : a(arguments) {
#pragma unroll
    for (auto& of_out : sums)
#pragma unroll
      for (auto& of_in : of_out)
#pragma unroll
        for (float& sum : of_in) sum = 0;
  }

  __device__ __forceinline__ WgradTile tile_of(int of_lane) const {
    return a.plan.tile(int64_t{tile_block} * 32 + of_lane);
  }

  // From the first column of input of a batch.
  __device__ __forceinline__ int offset(int column) const {
    return kWalk == 3 ? column * a.dilation[1] : column;
  }

  static __device__ __forceinline__ bool is_inside(int at, int size) { return at >= 0 && at < size; }

  // Columns [kFrom, kTo) of a batch whose first column of input is iw; `from` points there in the first row.
  template <int kFrom, int kTo>
  __device__ __forceinline__ void load_columns(const float* from, int ih, int iw) {
#pragma unroll
    for (int column = kFrom; column < kTo; ++column) {
      const int step = offset(column);
      const bool any = is_inside(iw + step, a.w);
#pragma unroll
      for (int kh = 0; kh < 3; ++kh)
        load_if(any && is_inside(ih + kh * a.dilation[0], a.h),
                from + (kh * a.row_step + int64_t{step} * a.c_in), x[kh][column]);
    }
  }

  __device__ __forceinline__ void add(int column) {
#pragma unroll
    for (int kh = 0; kh < 3; ++kh)
#pragma unroll
      for (int kw = 0; kw < 3; ++kw)
#pragma unroll
        for (int out = 0; out < kOut; ++out)
#pragma unroll
          for (int in = 0; in < kIn; ++in) {
            float& sum = sums[out][in][3 * kh + kw];
            sum = fused(dy[column][out], x[kh][kWalk * column + kw][in], sum);
          }
  }

  __device__ __forceinline__ void keep_columns() {
#pragma unroll
    for (int kh = 0; kh < 3; ++kh)
#pragma unroll
      for (int column = 0; column < Traits::kKept; ++column)
#pragma unroll
        for (int in = 0; in < kIn; ++in)
          x[kh][column][in] = x[kh][Traits::kTaken - Traits::kKept + column][in];
  }

  __device__ __forceinline__ void add_segment(int64_t unit) {
    const int64_t row = unit / a.plan.segments, image = row / a.oh;
    const int begin = static_cast<int>(unit - row * a.plan.segments) * a.plan.columns;
    const int end = begin + a.plan.columns < a.ow ? begin + a.plan.columns : a.ow;
    const int ih = static_cast<int>(row - image * a.oh) * a.stride[0] - a.padding[0];
    const int first = begin * a.stride[1] - a.padding[1];
    const float* from = a.x + (((image * a.h + ih) * a.w + first) * a.c_in + tile.in);
    const float* of_dy = a.dy + ((row * a.ow + begin) * a.c_out + tile.out);
    load_columns<0, Traits::kKept>(from, ih, first);
#pragma unroll 1
    for (int ow = begin; ow < end; ow += Traits::kBatch) {
      load_columns<Traits::kKept, Traits::kTaken>(from, ih, ow * a.stride[1] - a.padding[1]);
#pragma unroll
      for (int column = 0; column < Traits::kBatch; ++column)
        load_if(ow + column < end, of_dy + int64_t{column} * a.c_out, dy[column]);
#pragma unroll
      for (int column = 0; column < Traits::kBatch; ++column) {
        if (ow + column >= end) break;
        add(column);
      }
      keep_columns();
      from += int64_t{Traits::kBatch} * a.stride[1] * a.c_in, of_dy += int64_t{Traits::kBatch} * a.c_out;
    }
  }

  __device__ __forceinline__ void add_all() {
    if (tile.out < 0) return;
    const int64_t first = int64_t{split} * a.plan.split_units, left = a.plan.units - first;
    const int count = left < a.plan.split_units ? static_cast<int>(left) : a.plan.split_units;
#pragma unroll 1
    for (int unit = warp; unit < count; unit += kWgradWarps) add_segment(first + unit);
  }

  // Calls body(sum, its place in shared memory) for each sum of this thread, as warp `of_warp`.
  template <class Body>
  __device__ __forceinline__ void for_each_sum(int of_warp, const Body& body) {
    auto* const shared = reinterpret_cast<float*>(shared_memory()) + of_warp * Traits::kPlaces * Traits::kRow;
#pragma unroll
    for (int out = 0; out < kOut; ++out)
#pragma unroll
      for (int in = 0; in < kIn; ++in)
#pragma unroll
        for (int tap = 0; tap < 9; ++tap)
          body(sums[out][in][tap], shared + (out * 32 + lane) * Traits::kRow + in * 9 + tap);
  }

  // Adds the warps in a fixed order; a thread then writes what is next to its neighbours'.
  __device__ __forceinline__ void write() {
    constexpr int kHalf = Traits::kSharedWarps;
    const auto put = [](float sum, float* place) { store_shared(place, sum); };
    if (warp >= kHalf) for_each_sum(warp - kHalf, put);
    sync_threads();
    // Each place is read and written by the same thread.
    if (warp < kHalf) {
      for_each_sum(warp, [](float& sum, const float* place) { sum += load_shared<float>(place); });
      for_each_sum(warp, put);
    }
    sync_threads();
#pragma unroll 1
    for (int i = thread; i < Traits::kPlaces * Traits::kTerms; i += kWgradThreads) {
      const int place = i / Traits::kTerms, term = i - place * Traits::kTerms;
      const WgradTile to = tile_of(place % 32);
      if (to.out < 0) continue;
      const auto* from = reinterpret_cast<const float*>(shared_memory()) + place * Traits::kRow + term;
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kHalf; ++j) sum += load_shared<float>(from + j * Traits::kPlaces * Traits::kRow);
      const int64_t row = int64_t{to.out + place / 32} * a.plan.group_in + to.in_group;
      store_global(a.partials + (int64_t{split} * a.elements + row * 9 + term), sum);
    }
  }
};

template <class Traits>
__global__ __launch_bounds__(kWgradThreads, 2) void grouped_conv2d_wgrad_float_kernel(WgradFloatArguments a) {
  WgradFloatThread<Traits> thread(a);
  thread.add_all();
  thread.write();
}

}  // namespace rk::cuda
