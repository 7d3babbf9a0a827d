#include "grouped_conv2d_wgrad_float_plan.h"

#include <algorithm>

#include "plan_arithmetic.h"

namespace rk::cuda {
namespace {

using plan::ceil_div;
using plan::kFewBlocks;

constexpr int64_t kMostColumns = 64;
// Longer sums would lose digits.
constexpr int64_t kMostTerms = 8192;
// Blocks that the largest devices hold at a time: to have as many, partials may be more than a tenth of what
// the images are. They stay in the cache, and multiprocessors without work would cost more.
constexpr int64_t kFullBlocks = 264;

void choose_tiles(const ConvProblem& p, bool aligned, WgradFloatPlan& plan) {
  plan.group_out = static_cast<int>(p.out_per_group()), plan.group_in = static_cast<int>(p.in_per_group());
  const bool pairs = aligned && plan.group_out % 2 == 0 && plan.group_in % 2 == 0;
  plan.tile_out = !pairs ? 1 : plan.group_out % 4 == 0 ? 4 : 2;
  plan.tile_in = pairs ? 2 : 1;
  plan.out_tiles = plan.group_out / plan.tile_out, plan.in_tiles = plan.group_in / plan.tile_in;
  plan.tiles = p.groups * plan.out_tiles * plan.in_tiles;
  plan.tile_blocks = static_cast<int>(ceil_div(plan.tiles, 32));
}

// What splits go by: blocks that cover a split where all is aligned.
int64_t blocks_of_split(const ConvProblem& p) {
  WgradFloatPlan plan{};
  choose_tiles(p, true, plan);
  return plan.tile_blocks;
}

int64_t choose_splits(const ConvProblem& p, const WgradFloatPlan& plan) {
  const int64_t blocks = blocks_of_split(p), elements = p.c_out * p.in_per_group() * 9;
  const int64_t images = p.n * (p.h * p.w * p.c_in + p.oh * p.ow * p.c_out);
  const int64_t small = std::max(images / 10 / elements, ceil_div(kFullBlocks, blocks));
  const int64_t wanted = std::min(small, ceil_div(kFewBlocks, blocks));
  const int64_t least = ceil_div(plan.units, kWgradWarps * (kMostTerms / plan.columns));
  return std::max(std::min(wanted, ceil_div(plan.units, kWgradWarps)), least);
}

}  // namespace

WgradFloatPlan plan_wgrad_float(const ConvProblem& p, bool aligned) {
  WgradFloatPlan plan{};
  if (p.n == 0) return plan;
  plan.walk = p.dilation[1] == 1 && p.stride[1] <= 2 ? static_cast<int>(p.stride[1]) : 3;
  choose_tiles(p, aligned, plan);
  plan.segments = static_cast<int>(ceil_div(p.ow, kMostColumns));
  plan.columns = static_cast<int>(ceil_div(p.ow, plan.segments));
  plan.units = p.n * p.oh * plan.segments;
  plan.split_units = static_cast<int>(ceil_div(plan.units, choose_splits(p, plan)));
  plan.splits = ceil_div(plan.units, plan.split_units);
  return plan;
}

}  // namespace rk::cuda
