#pragma once
#include "grouped_conv2d_rows.cuh"

// What the warps of forward and dgrad share: each owns 16 of the block's output channels and all its
// positions, two m-tiles of 16, and keeps its weights in registers.
namespace rk::cuda {

// Of an m-tile: [n-tile of 8 channels][fragment].
using TileSums = float[2][4];

__device__ __forceinline__ void clear(float (&values)[4]) {
  for (float& value : values) value = 0;
}

template <class Traits>
struct ConvWarp {
  const RowBlock<Traits>& block;
  const RowWalk& a = block.a;
  const int lane = block.thread % 32, first_output = block.first_output + block.thread / 32 * kWarpChannels;
  uint32_t weights[Traits::kWords];
  int fragment[2], pair[2];  // m-tile: bytes from a stage to the row that this lane gives to ldmatrix
  const int line_place =     // and from a line buffer to that which it gives to stmatrix
      lane % 16 * kPitch + 2 * (first_output - block.first_output) + 16 * (lane / 16);

  __device__ __forceinline__ ConvWarp(const RowBlock<Traits>& of, const uint32_t* packed) : block(of) {
    load_weights(packed);
    locate_fragments();
  }

  __device__ __forceinline__ void load_weights(const uint32_t* packed) {
    const bool any = first_output < a.group_count * a.groups.out;
    packed += int64_t{first_output / kWarpChannels} * Traits::kWords * 32 + 2 * lane;
#pragma unroll
    for (int i = 0; i < Traits::kWords; i += 2) {
      const uint2 two = any ? load_global<uint2>(packed + 32 * i) : uint2{0, 0};
      weights[i] = two.x, weights[i + 1] = two.y;
    }
  }

  __device__ __forceinline__ void locate_fragments() {
    const int channel =
        warp_first_input(a.groups, first_output, warp_inputs(Traits::kWidth)) - block.first_input;
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const int position = 16 * tile + lane % 16;
      const int place = (block.is_position(position) ? block.column_of(position) : 0) * kPitch + 2 * channel;
      fragment[tile] = place + 16 * (lane / 16);
      pair[tile] = place + lane / 16 * block.tap_offset(1);
    }
  }
};

}  // namespace rk::cuda
