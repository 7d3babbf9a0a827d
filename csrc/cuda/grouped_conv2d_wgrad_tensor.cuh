#pragma once
#include "grouped_conv2d_wgrad_block.cuh"

// Gradient of the weights of the grouped 3x3 convolution on tensor cores, channels last: a product's rows are
// 16 output channels, its columns 8 input channels, and it sums over 16 positions. A row of dz stays in
// registers for the three input rows that its taps read, and all sums until the block's last tile is done.
namespace rk::cuda {

template <class Traits>
struct WgradWarp {
  using T = typename Traits::T;
  static constexpr int kStride = Traits::kStride;

  const WgradArguments& arguments;
  const RowWalk& a = arguments.walk;
  float sums[3][3][2][4];            // kh, kw, n-tile, fragment
  uint32_t dz[Traits::kOpen][2][4];  // row, 16 positions
  int fragment[2];                   // 16 positions: bytes from a stage to the row that this lane gives

  __device__ __forceinline__ explicit WgradWarp(const WgradArguments& all) : arguments(all) {
#pragma unroll
    for (int i = 0; i < 72; ++i) sums[i / 24][i / 8 % 3][i / 4 % 2][i % 4] = 0;
  }

  // Computed where they are used, as no registers are left to keep them.
  static __device__ __forceinline__ int lane() { return static_cast<int>(thread_index()) % 32; }
  static __device__ __forceinline__ int warp() { return static_cast<int>(thread_index()) / 32; }
  // The first of the block's outputs, of all outputs and of all inputs that the warp has.
  static __device__ __forceinline__ int slice() { return warp() / Traits::kHalves * kWarpChannels; }
  static __device__ __forceinline__ int first_output() {
    return static_cast<int>(block_index_y()) * kBlockChannels + slice();
  }
  __device__ __forceinline__ int first_input() const {
    return warp_first_input(a.groups, first_output(), warp_inputs(Traits::kWidth)) +
           warp() % Traits::kHalves * kWarpInputs;
  }

  // Behind the barrier that the block's tables need.
  __device__ __forceinline__ void begin_tile(const WgradBlock<Traits>& block) {
#pragma unroll
    for (int step = 0; step < 2; ++step)
      fragment[step] = load_shared<int>(block.beside_table + 4 * (16 * step + lane() % 16)) +
                       2 * (first_input() - block.first_input) + lane() / 16 * 16;
  }

  __device__ __forceinline__ void load_dz(uint32_t (&row)[2][4], const unsigned char* line) const {
    const int pixel = lane() % 8 + lane() / 16 * 8, channel = slice() + lane() / 8 % 2 * 8;
#pragma unroll
    for (int step = 0; step < 2; ++step)
      ldmatrix_x4_trans(row[step], line + (16 * step + pixel) * kPitch + 2 * channel);
  }

  // Adds what an input row and the row of dz of each tap row kFirst, kFirst + kStride ... make.
  template <int kFirst>
  __device__ __forceinline__ void multiply(const WgradBlock<Traits>& block, int input_row,
                                           const uint32_t (*const (&rows)[3])[2][4]) {
    const unsigned char* const stage = block.stage(input_row);
    bool meets[3];
#pragma unroll
    for (int kh = kFirst; kh < 3; kh += kStride) meets[kh] = block.meets(input_row, kh);
#pragma unroll
    for (int i = 0; i < 6; ++i) {
      const int step = i / 3, kw = i % 3;
      uint32_t x[4];
      ldmatrix_x4_trans(x, stage + fragment[step] + block.tap_offset(kw));
#pragma unroll
      for (int kh = kFirst; kh < 3; kh += kStride) {
        if (!meets[kh]) continue;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          float (&sum)[4] = sums[kh][kw][n];
          mma_m16n8k16<T>(sum, (*rows[kh])[step], x[2 * n], x[2 * n + 1], sum);
        }
      }
    }
  }

  // `phase`: of the rows of dz in registers, where they have all taken turns.
  __device__ __forceinline__ void take_row(const WgradBlock<Traits>& block, int input_row, int phase) {
    if (phase % kStride == 0 && block.begins_line(input_row))
      load_dz(dz[phase / kStride], block.line(input_row / kStride));
    // Tap row kh of this input row belongs to row (input_row - kh) / stride of dz, where that is whole.
    const uint32_t (*rows[3])[2][4] = {};
#pragma unroll
    for (int kh = phase % kStride; kh < 3; kh += kStride)
      rows[kh] = &dz[(phase - kh + Traits::kPeriod) / kStride % Traits::kOpen];
    if (phase % kStride == 0)
      multiply<0>(block, input_row, rows);
    else
      multiply<kStride - 1>(block, input_row, rows);
  }

  // The channel of the tensor that is an output, or -1.
  __device__ __forceinline__ int channel_of(int output) const {
    if (!Traits::kPadded) return output < a.c_out ? output : -1;
    const int group = output / a.groups.out, channel = output % a.groups.out;
    return channel < a.true_groups.out && group < a.group_count ? group * a.true_groups.out + channel : -1;
  }

  // Writes the taps of an output and those of its inputs that this warp has, which lie at `taps`.
  __device__ __forceinline__ void write_output(int output, const unsigned char* taps) const {
    const int channel = channel_of(output), group_input = output / a.groups.out * a.groups.in;
    if (channel < 0) return;
    const int begin = first_input(), first = group_input > begin ? group_input : begin;
    const int group_end = group_input + a.true_groups.in, end = begin + kWarpInputs;
    const int count = 9 * ((group_end < end ? group_end : end) - first);
    float* const to =
        arguments.partials +
        9 * ((int64_t{block_index_x()} * a.c_out + channel) * a.true_groups.in + first - group_input);
    const unsigned char* const from = taps + 4 * 9 * (first - begin);
    for (int i = lane(); i < count; i += 32) store_global(to + i, load_shared<float>(from + 4 * i));
  }

  // Behind a barrier. Through shared memory, 8 outputs at a time, so that neighbours are written by
  // neighbours.
  __device__ __forceinline__ void write_partials() const {
    constexpr int kOutputBytes = 4 * 9 * kWarpInputs;
    static_assert(Traits::kThreads / 32 * 8 * kOutputBytes <= WgradBlock<Traits>::kSharedBytes);
    unsigned char* const own = shared_memory() + warp() * 8 * kOutputBytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (half > 0) sync_threads();
#pragma unroll
      for (int i = 0; i < 36; ++i) {
        const int tap = i / 4, tile = i / 2 % 2, column = i % 2;
        const int input = 8 * tile + 2 * (lane() % 4) + column;
        store_shared(own + lane() / 4 * kOutputBytes + 4 * (9 * input + tap),
                     sums[tap / 3][tap % 3][tile][2 * half + column]);
      }
      sync_threads();
#pragma unroll 1
      for (int row = 0; row < 8; ++row)
        write_output(first_output() + 8 * half + row, own + row * kOutputBytes);
    }
  }
};

// Adds a tile to the sums of a block's warps.
template <class Traits>
__device__ __forceinline__ void walk_tile(const WgradBlock<Traits>& block, WgradWarp<Traits>& warp) {
#pragma unroll
  for (int row = 0; row < Traits::kStages - 1; ++row) {
    block.copy(row);
    cp_async_commit();
  }
  for (int first = 0; first < block.input_rows; first += Traits::kPeriod) {
#pragma unroll
    for (int phase = 0; phase < Traits::kPeriod; ++phase) {
      const int row = first + phase;
      if (row >= block.input_rows) break;
      cp_async_wait<Traits::kStages - 2>();
      // Behind it the rows are there for all, and their predecessors' places are free.
      sync_threads();
      block.copy(row + Traits::kStages - 1);
      cp_async_commit();
      warp.take_row(block, row, phase);
    }
  }
}

template <class Traits>
__global__ __launch_bounds__(
    Traits::kThreads,
    Traits::kBlocksPerMultiprocessor) void grouped_conv2d_wgrad_kernel(const WgradArguments arguments) {
  WgradWarp<Traits> warp(arguments);
  const int begin = static_cast<int>(block_index_x()) * arguments.block_tiles;
  for (int tile = begin; tile < begin + arguments.block_tiles && tile < arguments.tiles; ++tile) {
    const WgradBlock<Traits> block(arguments, tile);
    sync_threads();
    warp.begin_tile(block);
    walk_tile(block, warp);
    // The next tile's tables and copies may overwrite what is read until here.
    sync_threads();
  }
  warp.write_partials();
}

}  // namespace rk::cuda
