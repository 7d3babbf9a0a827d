#pragma once
#include "channel_stats.cuh"
#include "grouped_conv2d_block.cuh"
#include "grouped_conv2d_warp.cuh"

// Forward of the grouped 3x3 convolution on tensor cores, channels last, and dgrad at stride 1: an input row
// feeds the output rows that its taps belong to, in accumulators that take turns, and the third input row
// finishes an output row.
namespace rk::cuda {

// Of an output row and a warp, by m-tile.
using Accumulators = TileSums[2];

template <class Traits>
struct ForwardWarp : ConvWarp<Traits> {
  using T = typename Traits::T;
  using Warp = ConvWarp<Traits>;
  using Warp::a, Warp::block, Warp::first_output, Warp::fragment, Warp::lane, Warp::line_place, Warp::pair,
      Warp::weights;

  const ForwardArguments& arguments;
  float scale[2][2], shift[2][2];  // n-tile, column of the fragment
  const float least = arguments.activation == Activation::kRelu ? 0 : -INFINITY;
  ShiftedSums sums[2][2];  // n-tile, column
  int count = 0;           // values in each of the sums
  unsigned valid = 0;      // bit 2 * m-tile + half: whether that position is an output

  __device__ __forceinline__ ForwardWarp(const ForwardBlock<Traits>& of, const ForwardArguments& all)
      : Warp(of, all.packed), arguments(all) {
    if (Traits::kHasEpilogue) load_epilogue();
#pragma unroll
    for (int i = 0; i < 4; ++i) valid |= unsigned{block.is_position(8 * i + lane / 4)} << i;
  }

  // The channel of the tensor in column `i` of this lane's fragments of an n-tile, or -1.
  __device__ __forceinline__ int channel_of(int tile, int i) const {
    const int output = first_output + 8 * tile + 2 * (lane % 4) + i;
    if (!Traits::kPadded) return output < a.c_out ? output : -1;
    const int group = output / a.groups.out, channel = output % a.groups.out;
    return channel < a.true_groups.out && group < a.group_count ? group * a.true_groups.out + channel : -1;
  }

  __device__ __forceinline__ void load_epilogue() {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int channel = channel_of(i / 2, i % 2);
      scale[i / 2][i % 2] =
          arguments.scale && channel >= 0 ? load_global<float>(arguments.scale + channel) : 1;
      shift[i / 2][i % 2] =
          arguments.shift && channel >= 0 ? load_global<float>(arguments.shift + channel) : 0;
    }
  }

  // Adds what rows kFirst, kFirst + kStride ... of the taps make of the staged input row; kh 0 begins an
  // output row.
  template <int kFirst>
  __device__ __forceinline__ void multiply_pairs(const unsigned char* stage, int tile,
                                                 Accumulators* const (&rows)[3]) {
    uint32_t two[2][4], last[4];
    ldmatrix_x4(two[0], stage + pair[tile]);
    ldmatrix_x4(two[1], stage + pair[tile] + 16);
    ldmatrix_x4(last, stage + fragment[tile] + block.tap_offset(2));
#pragma unroll
    for (int kh = kFirst; kh < 3; kh += Traits::kStride) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        float (&sum)[4] = (*rows[kh])[tile][n];
        const uint32_t* const w = weights + 6 * kh;
        if (kh == 0) clear(sum);
        mma_m16n8k16<T>(sum, two[n], w[2 * n], w[2 * n + 1], sum);
        mma_m16n8k8<T>(sum, last[2 * n], last[2 * n + 1], w[4 + n], sum);
      }
    }
  }

  template <int kFirst>
  __device__ __forceinline__ void multiply_steps(const unsigned char* stage, int tile,
                                                 Accumulators* const (&rows)[3]) {
#pragma unroll
    for (int i = 0; i < 3 * Traits::kSteps; ++i) {
      const int kw = i / Traits::kSteps, step = i % Traits::kSteps;
      uint32_t inputs[4];
      ldmatrix_x4(inputs, stage + fragment[tile] + block.tap_offset(kw) + 32 * step);
#pragma unroll
      for (int kh = kFirst; kh < 3; kh += Traits::kStride) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          float (&sum)[4] = (*rows[kh])[tile][n];
          const uint32_t* const w = weights + 4 * (3 * Traits::kSteps * kh + i) + 2 * n;
          if (kh == 0 && i == 0) clear(sum);
          mma_m16n8k16<T>(sum, inputs, w[0], w[1], sum);
        }
      }
    }
  }

  template <int kFirst>
  __device__ __forceinline__ void multiply(const unsigned char* stage, Accumulators* const (&rows)[3]) {
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      if constexpr (Traits::kWidth == Width::kPaired)
        multiply_pairs<kFirst>(stage, tile, rows);
      else
        multiply_steps<kFirst>(stage, tile, rows);
    }
  }

  // [2 * n-tile + half] of an m-tile's sums, each as finish(sum, n-tile, column) makes it.
  template <class Finish>
  __device__ __forceinline__ void round(const TileSums& sums, uint32_t (&words)[4],
                                        const Finish& finish) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* const sum = sums[i / 2] + 2 * (i % 2);
      words[i] = pack<T>(finish(sum[0], i / 2, 0), finish(sum[1], i / 2, 1));
    }
  }

  __device__ __forceinline__ void finish(const TileSums& sums, uint32_t (&words)[4]) const {
    const auto affine = [&](float sum, int tile, int i) {
      return fused(sum, scale[tile][i], shift[tile][i]);
    };
    if constexpr (!Traits::kHasEpilogue) {
      round(sums, words, [](float sum, int, int) { return sum; });
    } else if (arguments.activation == Activation::kSilu) {
      round(sums, words, [&](float sum, int tile, int i) {
        const float pre = affine(sum, tile, i);
        return pre * quick_sigmoid(pre);
      });
    } else {
      round(sums, words, [&](float sum, int tile, int i) { return maximum(affine(sum, tile, i), least); });
    }
  }

  // Rounds a finished output row into its line buffer.
  __device__ __forceinline__ void write_line(unsigned char* line, const Accumulators& sums_of_row) {
    uint32_t words[2][4];
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      finish(sums_of_row[tile], words[tile]);
      stmatrix_x4(line + line_place + 16 * tile * kPitch, words[tile]);
    }
    if constexpr (Traits::kStats) count_in(words);
  }

  // body(the words of both n-tiles) for each of this lane's positions that is an output.
  template <class Body>
  __device__ __forceinline__ void for_outputs(const uint32_t (&words)[2][4], const Body& body) const {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (valid >> i & 1) {
        const uint32_t both[2] = {words[i / 2][i % 2], words[i / 2][2 + i % 2]};
        body(both);
      }
  }

  // The statistics are of what is stored. The shift is the mean of the first row: a single value may lie far
  // off.
  __device__ __forceinline__ void count_in(const uint32_t (&words)[2][4]) {
    if (count == 0) {
      float share = 0;
      for_outputs(words, [&](const uint32_t (&)[2]) { share += 1; });
      share = share > 0 ? 1 / share : 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i / 2][i % 2] = {0, 0, 0};
      for_outputs(words, [&](const uint32_t (&both)[2]) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const float2 z = unpack<T>(both[n]);
          sums[n][0].shift = fused(share, z.x, sums[n][0].shift);
          sums[n][1].shift = fused(share, z.y, sums[n][1].shift);
        }
      });
    }
    for_outputs(words, [&](const uint32_t (&both)[2]) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float2 z = unpack<T>(both[n]);
        sums[n][0].add(z.x), sums[n][1].add(z.y);
      }
      ++count;
    });
  }

  __device__ __forceinline__ void write_statistics() const {
    const int64_t tile = block_index_x();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const ShiftedSums& s = sums[i / 2][i % 2];
      Moments moments = from_shifted(static_cast<float>(count), s.shift, s.sum, s.squares);
      // Lanes with the same remainder by 4 hold the same channels.
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2)
        moments = merge(moments, {shuffle_xor(moments.n, mask), shuffle_xor(moments.mean, mask),
                                  shuffle_xor(moments.m2, mask)});
      const int channel = channel_of(i / 2, i % 2);
      if (lane < 4 && channel >= 0)
        store_global(arguments.partials + (tile * a.c_out + channel), float2{moments.mean, moments.m2});
      if (i == 0 && block.thread == 0 && block_index_y() == 0)
        store_global(arguments.counts + tile, moments.n);
    }
  }
};

template <class Traits>
__global__ __launch_bounds__(
    Traits::kThreads,
    Traits::kBlocksPerMultiprocessor) void grouped_conv2d_fwd_kernel(const ForwardArguments arguments) {
  using Block = ForwardBlock<Traits>;
  const Block block(arguments.walk);
  const typename Block::Input input(block, arguments.input, shared_memory() + Block::kInputPlace);
  ForwardWarp<Traits> warp(block, arguments);
  Accumulators open[Traits::kOpen];
  sync_threads();
#pragma unroll
  for (int row = 0; row < Traits::kStages - 1; ++row) {
    if (row < block.input_rows) input.copy(row);
    cp_async_commit();
  }
  int finished = -1;  // the output row in a line buffer that is not stored yet
  for (int first = 0; first < block.input_rows; first += Traits::kPeriod) {
#pragma unroll
    for (int phase = 0; phase < Traits::kPeriod; ++phase) {
      const int row = first + phase;
      if (row >= block.input_rows) break;
      cp_async_wait<Traits::kStages - 2>();
      input.finish(row);
      // Behind it the row is there for all, its predecessor's stage is free, and the last line is written.
      sync_threads();
      if (row + Traits::kStages - 1 < block.input_rows) input.copy(row + Traits::kStages - 1);
      cp_async_commit();
      if (finished >= 0) block.store_line(arguments.y, finished);
      // Tap row kh of this input row belongs to output row (row - kh) / stride, where that is whole.
      Accumulators* rows[3] = {};
#pragma unroll
      for (int kh = phase % Traits::kStride; kh < 3; kh += Traits::kStride)
        rows[kh] = &open[(phase - kh + Traits::kPeriod) / Traits::kStride % Traits::kOpen];
      if (phase % Traits::kStride == 0)
        warp.template multiply<0>(block.stage(row), rows);
      else
        warp.template multiply<Traits::kStride - 1>(block.stage(row), rows);
      finished = row >= 2 && rows[2] ? (row - 2) / Traits::kStride : -1;
      if (finished >= 0) warp.write_line(block.line(finished), *rows[2]);
    }
  }
  sync_threads();
  if (finished >= 0) block.store_line(arguments.y, finished);
  if constexpr (Traits::kStats) warp.write_statistics();
}

}  // namespace rk::cuda
