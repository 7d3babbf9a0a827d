#pragma once
#include <cstdint>

#include "host_device.h"
#include "problem.h"

namespace rk::cuda {

inline constexpr int kWgradWarps = 8, kWgradThreads = 32 * kWgradWarps;

// A group's tiles are numbered in bands of so many tiles of inputs, so that those of a warp share what they
// load.
inline constexpr int kBandTiles = 4;

// Where a thread's tile of the gradient begins; out is -1 beyond the last one.
struct WgradTile {
  int out, in, in_group;
};

struct WgradFloatPlan {
  // As FloatAxis::walk, of the columns.
  int walk;
  // Channels of a tile, tiles of a group, and blocks that cover all tiles.
  int tile_out, tile_in, out_tiles, in_tiles, group_out, group_in;
  int64_t tiles;
  int tile_blocks;
  // An output row is cut in segments of as many columns, or fewer.
  int segments, columns;
  // Segments of all rows, of a split, and splits.
  int64_t units;
  int split_units;
  int64_t splits;

  RK_HOST_DEVICE WgradTile tile(int64_t number) const {
    if (number >= tiles) return {-1, 0, 0};
    const int of_group = out_tiles * in_tiles, group = static_cast<int>(number / of_group);
    const int in_tile = static_cast<int>(number - int64_t{group} * of_group);
    const int band = in_tile / (out_tiles * kBandTiles), left = in_tiles - band * kBandTiles;
    const int width = left < kBandTiles ? left : kBandTiles,
              of_band = in_tile - band * out_tiles * kBandTiles;
    const int out = of_band / width, in = (band * kBandTiles + of_band - out * width) * tile_in;
    return {group * group_out + out * tile_out, group * group_in + in, in};
  }
};

// For 3x3 kernels; `aligned`: whether images begin at a multiple of 16 bytes. Splits do not go by it.
WgradFloatPlan plan_wgrad_float(const ConvProblem& p, bool aligned);

}  // namespace rk::cuda
