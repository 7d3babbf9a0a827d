#include "grouped_conv2d_fwd_float_plan.h"

#include <algorithm>

#include "plan_arithmetic.h"

namespace rk::cuda {
namespace {

using plan::ceil_div;
using plan::kFewBlocks;
using plan::kManyBlocks;

// Sums of more rows would lose digits.
constexpr int64_t kMostRows = 64;

constexpr int kNarrowLanes = 32, kWideLanes = 16, kNarrowInputs = 8;
// Inputs of a block, in fours, and of a slab.
constexpr int kMostChunks = 16, kSlabChunks = 4;
constexpr int64_t kMostShared = 96 * 1024, kMostResidentShared = 84 * 1024;

int walk_of(const ConvProblem& p, int axis) {
  return p.stride[axis] == 1 ? 1 : p.stride[axis] == 2 && p.dilation[axis] == 1 ? 2 : kApart;
}

FloatAxis axis_of(const ConvProblem& p, int axis, int walk) {
  const int stride = static_cast<int>(p.stride[axis]), dilation = static_cast<int>(p.dilation[axis]);
  const int padding = static_cast<int>(p.padding[axis]);
  return {walk, stride, padding, walk == 1 ? dilation : 1, dilation};
}

// There are kernels for the same walk along both axes and, for wide groups, for one along columns alone.
void choose_walks(const ConvProblem& p, FloatPlan& plan) {
  const int down = walk_of(p, 0), across = walk_of(p, 1);
  const bool same = down == across && plan.slabs == 1;
  plan.down = axis_of(p, 0, same ? down : kApart);
  plan.across = axis_of(p, 1, same || (plan.wide && across == 1) ? across : kApart);
}

void choose_groups(const ConvProblem& p, FloatPlan& plan) {
  plan.true_in = static_cast<int>(p.in_per_group()), plan.true_out = static_cast<int>(p.out_per_group());
  const int pack = plan.true_in == 1 || plan.true_in == 2 ? 4 / plan.true_in : 1;
  plan.pack = p.groups % pack == 0 ? pack : 1;
  plan.group_in = plan.pack * plan.true_in, plan.group_out = plan.pack * plan.true_out;
  plan.group_count = static_cast<int>(p.groups / plan.pack);
  plan.wide = plan.group_in > kNarrowInputs;
  plan.chunks = static_cast<int>(ceil_div(plan.group_in, 4)), plan.slabs = 1;
}

void choose_lanes(FloatPlan& plan) {
  const int most = plan.wide ? kWideLanes : kNarrowLanes;
  plan.all_lanes = static_cast<int>(ceil_div(plan.group_out, float_outputs(plan.wide)));
  plan.splits = static_cast<int>(ceil_div(plan.all_lanes, most));
  plan.group_lanes = static_cast<int>(ceil_div(plan.all_lanes, plan.splits));
  plan.groups = std::max(1, std::min({most / plan.group_lanes, kMostChunks / plan.chunks, plan.group_count}));
  if (plan.splits > 1) plan.groups = 1;
  plan.lanes = plan.groups * plan.group_lanes;
  plan.channel_blocks = static_cast<int>(ceil_div(plan.group_count, plan.groups)) * plan.splits;
}

// How many runs a block has and, at most, their columns of input.
void set_runs(const ConvProblem& p, FloatPlan& plan, int64_t runs) {
  const int64_t all = p.n * plan.across.phases * plan.strip_runs;
  plan.runs = static_cast<int>(std::min(runs, all));
  plan.run_blocks = ceil_div(all, plan.runs);
  const int walk = plan.across.walk;
  const int64_t strips = ceil_div(plan.runs - 1, plan.strip_runs) + 1;
  const int64_t positions = std::min(plan.runs * ceil_div(plan.strip, plan.strip_runs), strips * plan.strip);
  plan.slots = static_cast<int>(walk * positions + strips * (3 - walk));
}

void choose_walks_and_runs(const ConvProblem& p, FloatPlan& plan) {
  choose_walks(p, plan);
  plan.strip = static_cast<int>(ceil_div(p.ow, plan.across.phases));
  plan.strip_runs = static_cast<int>(ceil_div(plan.strip, kRun));
  set_runs(p, plan, kFloatThreads / plan.lanes);
}

// Weights stay in shared memory where that leaves room for two blocks; else the group is cut in slabs.
void choose_slabs(const ConvProblem& p, FloatPlan& plan) {
  choose_walks_and_runs(p, plan);
  if (plan.wide && (plan.chunks > kMostChunks || plan.shared_bytes() > kMostResidentShared)) {
    plan.chunks = kSlabChunks, plan.slabs = static_cast<int>(ceil_div(plan.group_in, 4 * kSlabChunks));
    choose_walks_and_runs(p, plan);
  }
  while (plan.shared_bytes() > kMostShared && plan.runs > 1) set_runs(p, plan, ceil_div(plan.runs, 2));
}

void choose_rows(const ConvProblem& p, FloatPlan& plan) {
  const int64_t rows = ceil_div(p.oh, plan.down.phases);
  const int64_t blocks = plan.run_blocks * plan.channel_blocks * plan.down.phases;
  const auto split = [&](int64_t least_rows, int64_t wanted) {
    const int64_t parts = std::clamp<int64_t>(ceil_div(wanted, blocks), 1, ceil_div(rows, least_rows));
    return std::max(parts, ceil_div(rows, kMostRows));
  };
  const int64_t many = split(8, kManyBlocks);
  const int64_t parts = many * blocks >= kFewBlocks ? many : split(2, kFewBlocks);
  plan.rows = static_cast<int>(ceil_div(rows, parts));
  plan.row_blocks = static_cast<int>(plan.down.phases * ceil_div(rows, plan.rows));
}

}  // namespace

int64_t FloatPlan::shared_bytes() const {
  const int64_t walk = int64_t{float_stages(wide)} * stage_bytes() + resident_bytes() + 8 * slots;
  // At the end, the moments of each thread.
  return std::max<int64_t>(walk, 12 * float_outputs(wide) * kFloatThreads);
}

FloatPlan plan_forward_float(const ConvProblem& p) {
  FloatPlan plan{};
  if (p.n == 0 || p.oh == 0 || p.ow == 0) return plan;
  choose_groups(p, plan);
  choose_lanes(plan);
  choose_slabs(p, plan);
  choose_rows(p, plan);
  return plan;
}

}  // namespace rk::cuda
