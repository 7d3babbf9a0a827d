#pragma once
#include "grouped_conv2d_plan.h"

namespace rk::cuda {

// A block has 64 output channels in slices of 16, and a warp 16 inputs of a slice: where 16 outputs read 32
// inputs, a slice has two warps.
inline constexpr int kWarpInputs = 16;
RK_HOST_DEVICE constexpr int wgrad_threads(Width width) {
  return warp_inputs(width) / kWarpInputs * kBlockThreads;
}

// Rows of dz that are staged: at stride 2 every other row of x begins one.
RK_HOST_DEVICE constexpr int wgrad_lines(int stride) { return stride == 1 ? staged_rows(stride) : 2; }
RK_HOST_DEVICE constexpr int wgrad_shared_bytes(int stride) {
  return staged_rows(stride) * stage_bytes(stride) + wgrad_lines(stride) * kLineBytes +
         4 * (stride * staged_columns(stride) + 2 * kPositions);
}

struct WgradPlan {
  ForwardPlan walk;  // its rows and positions are those of a tile
  // A block sums consecutive tiles, which go down a column of them after the other.
  int block_tiles;

  int splits() const {
    return walk.tiles() ? static_cast<int>((walk.tiles() + block_tiles - 1) / block_tiles) : 0;
  }

  // Floats: [split][output][input of the group][3][3].
  static int64_t partials(const ConvProblem& p) { return 9 * p.c_out * p.in_per_group(); }
};

// For a p without forward_reasons. A function of p alone: the order of the sums follows from it.
WgradPlan plan_wgrad(const ConvProblem& p);

}  // namespace rk::cuda
