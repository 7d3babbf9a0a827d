#pragma once
#include <type_traits>

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
  const int lane = static_cast<int>(thread_index()) % 32, warp = static_cast<int>(thread_index()) / 32;
  const int slice = warp / Traits::kHalves * kWarpChannels;  // the first of the block's outputs
  const int first_output = static_cast<int>(block_index_y()) * kBlockChannels + slice;
  const int first_input = warp_first_input(a.groups, first_output, warp_inputs(Traits::kWidth)) +
                          warp % Traits::kHalves * kWarpInputs;
  float sums[3][3][2][4];            // kh, kw, n-tile, fragment
  uint32_t dz[Traits::kOpen][2][4];  // row, 16 positions
  int fragment[2];                   // 16 positions: bytes from a stage to the row that this lane gives
  const int line_place =             // and from a line
      (lane % 8 + lane / 16 * 8) * kPitch + 2 * slice + lane / 8 % 2 * 16;

  __device__ __forceinline__ explicit WgradWarp(const WgradArguments& all) : arguments(all) {
#pragma unroll
    for (int i = 0; i < 72; ++i) sums[i / 24][i / 8 % 3][i / 4 % 2][i % 4] = 0;
  }

  __device__ __forceinline__ void begin_tile(const WgradBlock<Traits>& block) {
#pragma unroll
    for (int step = 0; step < 2; ++step)
      fragment[step] = block.column_beside(16 * step + lane % 16) * kPitch +
                       2 * (first_input - block.first_input) + lane / 16 * 16;
  }

  __device__ __forceinline__ void load_dz(uint32_t (&row)[2][4], const unsigned char* line) const {
#pragma unroll
    for (int step = 0; step < 2; ++step) ldmatrix_x4_trans(row[step], line + line_place + 16 * step * kPitch);
  }

  // Adds what an input row and the row of dz of each tap row kFirst, kFirst + kStride ... make.
  template <int kFirst>
  __device__ __forceinline__ void multiply(const WgradBlock<Traits>& block, int input_row,
                                           const uint32_t (*const (&rows)[3])[2][4]) {
    const unsigned char* const stage = block.stage(input_row);
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      uint32_t x[3][4];
#pragma unroll
      for (int kw = 0; kw < 3; ++kw) ldmatrix_x4_trans(x[kw], stage + fragment[step] + block.tap_offset(kw));
#pragma unroll
      for (int kh = kFirst; kh < 3; kh += kStride) {
        if (!block.meets(input_row, kh)) continue;
#pragma unroll
        for (int i = 0; i < 6; ++i) {
          float (&sum)[4] = sums[kh][i / 2][i % 2];
          mma_m16n8k16<T>(sum, (*rows[kh])[step], x[i / 2][2 * (i % 2)], x[i / 2][2 * (i % 2) + 1], sum);
        }
      }
    }
  }

  template <int kPhase>
  __device__ __forceinline__ void take_row(const WgradBlock<Traits>& block, int input_row) {
    // Tap row kh of this input row belongs to row (input_row - kh) / stride of dz, where that is whole.
    const uint32_t (*rows[3])[2][4] = {};
#pragma unroll
    for (int kh = kPhase % kStride; kh < 3; kh += kStride)
      rows[kh] = &dz[(kPhase - kh + Traits::kPeriod) / kStride % Traits::kOpen];
    if (kPhase % kStride == 0 && input_row / kStride < block.rows)
      load_dz(dz[kPhase / kStride], block.line(input_row / kStride));
    multiply<kPhase % kStride>(block, input_row, rows);
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
    const int first = group_input > first_input ? group_input : first_input;
    const int group_end = group_input + a.true_groups.in, end = first_input + kWarpInputs;
    const int count = 9 * ((group_end < end ? group_end : end) - first);
    float* const to =
        arguments.partials +
        9 * ((int64_t{block_index_x()} * a.c_out + channel) * a.true_groups.in + first - group_input);
    const unsigned char* const from = taps + 4 * 9 * (first - first_input);
    for (int i = lane; i < count; i += 32) store_global(to + i, load_shared<float>(from + 4 * i));
  }

  // Through shared memory, 8 outputs at a time, so that neighbours are written by neighbours.
  __device__ __forceinline__ void write_partials() const {
    constexpr int kOutputBytes = 4 * 9 * kWarpInputs;
    static_assert(Traits::kThreads / 32 * 8 * kOutputBytes <= WgradBlock<Traits>::kSharedBytes);
    unsigned char* const own = shared_memory() + warp * 8 * kOutputBytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sync_threads();
#pragma unroll
      for (int i = 0; i < 36; ++i) {
        const int tap = i / 4, tile = i / 2 % 2, column = i % 2;
        const int input = 8 * tile + 2 * (lane % 4) + column;
        store_shared(own + lane / 4 * kOutputBytes + 4 * (9 * input + tap),
                     sums[tap / 3][tap % 3][tile][2 * half + column]);
      }
      sync_threads();
#pragma unroll 1
      for (int row = 0; row < 8; ++row) write_output(first_output + 8 * half + row, own + row * kOutputBytes);
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
    const auto take = [&](auto phase) {
      constexpr int kPhase = decltype(phase)::value;
      const int row = first + kPhase;
      if (kPhase >= Traits::kPeriod || row >= block.input_rows) return;
      cp_async_wait<Traits::kStages - 2>();
      // Behind it the rows are there for all, and their predecessors' places are free.
      sync_threads();
      block.copy(row + Traits::kStages - 1);
      cp_async_commit();
      warp.template take_row<kPhase % Traits::kPeriod>(block, row);
    };
    take(std::integral_constant<int, 0>{});
    take(std::integral_constant<int, 1>{});
    take(std::integral_constant<int, 2>{});
    take(std::integral_constant<int, 3>{});
  }
}

template <class Traits>
__global__ __launch_bounds__(
    Traits::kThreads,
    Traits::kBlocksPerMultiprocessor) void grouped_conv2d_wgrad_kernel(const WgradArguments arguments) {
  WgradWarp<Traits> warp(arguments);
  const int64_t split = block_index_x();
  const int begin = static_cast<int>(split * arguments.tiles / arguments.splits);
  const int end = static_cast<int>((split + 1) * arguments.tiles / arguments.splits);
  for (int tile = begin; tile < end; ++tile) {
    const WgradBlock<Traits> block(arguments, tile);
    if (tile == begin) block.clear_lines();
    warp.begin_tile(block);
    sync_threads();
    walk_tile(block, warp);
    // The next tile's tables and copies may overwrite what is read until here.
    sync_threads();
  }
  warp.write_partials();
}

}  // namespace rk::cuda
