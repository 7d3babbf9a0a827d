#include "grouped_conv2d_wgrad_plan.h"

#include "plan_arithmetic.h"

namespace rk::cuda {
namespace {

using plan::ceil_div;
using plan::kFewBlocks;

// Products that an accumulator sums, as its error grows with them.
constexpr int64_t kMostChain = 8192;

// Two blocks on each multiprocessor of the largest devices, which keep its memory busy.
constexpr int64_t kBusyBlocks = kFewBlocks / 2;

// What it costs a block to begin a tile, in rows of x or dz.
constexpr int64_t kTileStart = 4;

constexpr int64_t kLeastRows = 4;

// A place of no position is multiplied too, by zeros that may meet no NaN: it reads columns that are staged
// as zeros, behind all others.
int positions_beside_zeros(const ConvProblem& p, int positions) {
  const int64_t columns = staged_columns(static_cast<int>(p.stride[1])), ow = std::max<int64_t>(p.ow, 1);
  const auto used = [&] { return positions + frame(p) * (1 + ceil_div(positions - 1, ow)); };
  while (positions < kPositions && used() + frame(p) + 1 > columns) --positions;
  return positions;
}

// How long the walk takes, modelled: a block moves a row of a tile, x or dz, in a unit of time, and
// kBusyBlocks of them as much as the device can.
class Model {
 public:
  Model(const ConvProblem& p, const ForwardPlan& walk)
      : stride_(p.stride[0]),
        blocks_(walk.channel_blocks),
        columns_(int64_t{walk.column_blocks} * p.dilation[0]),
        partial_bytes_(4 * WgradPlan::partials(p)),
        tensor_bytes_(2 * (p.n * p.h * p.w * p.c_in + p.n * p.oh * p.ow * p.c_out)) {}

  // Partial sums take up to a tenth of the tensors' bytes; where that leaves multiprocessors without a block,
  // as many as give each of them one.
  int64_t most_splits() const {
    return std::max<int64_t>({1, tensor_bytes_ / 10 / partial_bytes_, kBusyBlocks / 2 / blocks_});
  }

  double time(int64_t rows, int64_t parts, int64_t block_tiles) const {
    const int64_t tiles = columns_ * parts, tile = (stride_ + 1) * rows + 2 + kTileStart;
    const double longest = static_cast<double>(block_tiles * tile);
    const double all = static_cast<double>(tiles * blocks_ * tile) / kBusyBlocks;
    // They are written and read.
    const double partials =
        2.0 * ceil_div(tiles, block_tiles) * partial_bytes_ / (2 * kPositions * kBlockChannels * kBusyBlocks);
    return std::max(longest, all) + partials;
  }

 private:
  int64_t stride_, blocks_, columns_, partial_bytes_, tensor_bytes_;
};

}  // namespace

WgradPlan plan_wgrad(const ConvProblem& p) {
  WgradPlan plan{plan_forward(p), 0};
  ForwardPlan& walk = plan.walk;
  if (walk.tiles() == 0) return plan;
  walk.positions = positions_beside_zeros(p, walk.positions);
  walk.column_blocks = static_cast<int>(ceil_div(p.n * p.ow, walk.positions));
  const Model model(p, walk);
  const int64_t phases = p.dilation[0], all_rows = ceil_div(p.oh, phases);
  const int64_t most_rows = kMostChain / walk.positions, fewest_parts = ceil_div(all_rows, most_rows);
  // The bound of the sums' length comes before that of the partials, and that before the time.
  std::pair<int64_t, double> best;
  for (int64_t parts = fewest_parts; parts <= std::max(fewest_parts, ceil_div(all_rows, kLeastRows));
       ++parts) {
    const int64_t rows = ceil_div(all_rows, parts), tiles = walk.column_blocks * phases * parts;
    if (ceil_div(all_rows, rows) != parts) continue;
    for (int64_t block_tiles = 1; block_tiles <= most_rows / rows; block_tiles *= 2) {
      const int64_t splits = ceil_div(tiles, block_tiles);
      const std::pair cost(std::max(splits, model.most_splits()), model.time(rows, parts, block_tiles));
      if (plan.block_tiles && cost >= best) continue;
      best = cost, plan.block_tiles = static_cast<int>(block_tiles);
      walk.rows = static_cast<int>(rows), walk.row_blocks = static_cast<int>(phases * parts);
    }
  }
  return plan;
}

}  // namespace rk::cuda
