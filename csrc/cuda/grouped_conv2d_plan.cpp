#include "grouped_conv2d_plan.h"

#include <utility>

#include "plan_arithmetic.h"

namespace rk::cuda {
namespace {

using plan::ceil_div;
using plan::kFewBlocks;
using plan::kManyBlocks;

constexpr int64_t kMostChannelBlocks = 65535, kMostDilation = 4;

// With dilation too, so that one variant has the arithmetic of both.
bool is_padded(const ConvProblem& p) {
  const int64_t in = p.in_per_group();
  const bool dense =
      (in == 1 || in == 2 || in == 4 || in == 8 || in == 16 || in == 32) && p.out_per_group() >= in;
  return !dense || p.dilation[0] != 1 || p.dilation[1] != 1;
}

int padded_channels(int64_t channels) { return channels <= 8 ? 8 : channels <= 16 ? 16 : 32; }

GroupChannels group_channels(const ConvProblem& p) {
  const int in = static_cast<int>(p.in_per_group()), out = static_cast<int>(p.out_per_group());
  if (!is_padded(p)) return {in, out};
  // No more inputs than outputs, so that a block's outputs read no more channels than are staged.
  return {padded_channels(in), padded_channels(std::max(in, out))};
}

Width width_of(const GroupChannels& groups, bool padded) {
  if (!padded && groups.in <= 8 && groups.in == groups.out) return Width::kPaired;
  // A group has as many outputs as inputs or a multiple: of 16 inputs or fewer, 16 outputs read 16 at most.
  return groups.in <= 16 ? Width::kOneStep : Width::kTwoSteps;
}

// How many consecutive outputs of a row need no more columns than are staged, whatever images they cross.
int most_positions(const ConvProblem& p) {
  const int64_t ow = std::max<int64_t>(p.ow, 1), columns = staged_columns(static_cast<int>(p.stride[1]));
  int64_t positions = kPositions;
  while (positions + frame(p) * (1 + ceil_div(positions - 1, ow)) > columns) --positions;
  return static_cast<int>(positions);
}

// Bytes that one copy moves: the most, 16, 8 or 4, that divide a group's.
int unit_of(const ConvProblem& p) {
  if (!is_padded(p)) return 16;
  const int64_t fewest = std::min(p.in_per_group(), p.out_per_group());
  return fewest % 8 == 0 ? 16 : fewest % 4 == 0 ? 8 : 4;
}

int rows_of(int64_t rows, int64_t blocks_of_a_row) {
  const auto split = [&](int64_t least_rows, int64_t blocks) {
    const int64_t parts =
        std::clamp<int64_t>(ceil_div(blocks, blocks_of_a_row), 1, ceil_div(rows, least_rows));
    return ceil_div(rows, parts);
  };
  const int64_t many = split(8, kManyBlocks);
  return static_cast<int>(ceil_div(rows, many) * blocks_of_a_row >= kFewBlocks ? many : split(4, kFewBlocks));
}

// Sizes of dgrad's walk in one dimension: positions, each a pair of columns (or rows) of dx at stride 2, and
// the padding before the first input that they read.
struct DgradWalk {
  int64_t positions, padding;

  DgradWalk(int64_t size, int64_t stride, int64_t padding, int64_t dilation)
      : positions(stride == 1 ? size : (size - first_of_pair(padding) + 1) / 2),
        padding(stride == 1 ? 2 * dilation - padding : (1 - first_of_pair(padding) - padding) / 2) {}
};

}  // namespace

int64_t frame(const ConvProblem& p) { return p.stride[1] == 1 ? 2 * p.dilation[1] : 1; }

ConvProblem dgrad_problem(const ConvProblem& p) {
  ConvProblem q = p;
  const DgradWalk down(p.h, p.stride[0], p.padding[0], p.dilation[0]);
  const DgradWalk across(p.w, p.stride[1], p.padding[1], p.dilation[1]);
  q.c_in = p.c_out, q.c_out = p.c_in;
  q.h = p.oh, q.w = p.ow, q.oh = down.positions, q.ow = across.positions;
  q.padding[0] = down.padding, q.padding[1] = across.padding;
  q.stride[0] = q.stride[1] = 1;
  std::swap(q.w_stride[1], q.w_stride[2]);
  return q;
}

std::vector<std::string> dgrad_reasons(const ConvProblem& p) {
  std::vector<std::string> reasons = forward_reasons(p);
  if (!reasons.empty()) return reasons;
  if (p.padding[0] > 2 * p.dilation[0] || p.padding[1] > 2 * p.dilation[1])
    return {"takes padding of up to 2 * dilation"};
  return forward_reasons(dgrad_problem(p));
}

std::vector<std::string> forward_reasons(const ConvProblem& p) {
  std::vector<std::string> reasons;
  const auto refuse_unless = [&](bool condition, const char* reason) {
    if (!condition) reasons.push_back(reason);
  };
  const int64_t in = p.in_per_group(), out = p.out_per_group();
  refuse_unless(p.kh == 3 && p.kw == 3, "takes 3x3 kernels");
  refuse_unless(p.stride[0] == p.stride[1] && (p.stride[0] == 1 || p.stride[0] == 2), "takes stride 1 and 2");
  refuse_unless(p.dilation[0] <= kMostDilation && p.dilation[1] <= kMostDilation, "takes dilation up to 4");
  refuse_unless(p.stride[0] == 1 || (p.dilation[0] == 1 && p.dilation[1] == 1), "takes dilation at stride 1");
  refuse_unless(in <= 32, "takes up to 32 channels a group");
  refuse_unless(out % in == 0 || in % out == 0, "takes C_out that are a multiple of C_in, or C_in of C_out");
  if (is_padded(p))
    refuse_unless(in % 2 == 0 && out % 2 == 0 && out <= 32,
                  "takes 1, 2, 4, 8, 16, 32 channels a group, or, as with dilation, even numbers up to 32");
  else
    refuse_unless(p.c_in % 8 == 0, "takes channels in multiples of 8 (16 bytes)");
  if (!reasons.empty()) return reasons;
  // Places in the tensors are counted in units, of at least 4 bytes.
  const int64_t most_units = 2 * std::max(p.n * p.h * p.w * p.c_in, p.n * p.oh * p.ow * p.c_out) / unit_of(p);
  refuse_unless(most_units <= INT32_MAX,
                "takes tensors of up to 2^31 units of 16 bytes, 8 or 4 where padded");
  const GroupChannels groups = group_channels(p);
  refuse_unless(ceil_div(p.groups * groups.out, kBlockChannels) <= kMostChannelBlocks,
                "takes fewer channels");
  return reasons;
}

ForwardPlan plan_forward(const ConvProblem& p) {
  ForwardPlan plan{};
  plan.padded = is_padded(p);
  plan.groups = group_channels(p);
  plan.width = width_of(plan.groups, plan.padded);
  plan.unit = unit_of(p);
  plan.positions = most_positions(p);
  const int64_t channels = p.groups * plan.groups.out;
  plan.channel_blocks = static_cast<int>(ceil_div(channels, kBlockChannels));
  plan.packed_words = ceil_div(channels, kWarpChannels) * weight_registers(plan.width) * 32;
  if (p.n == 0 || p.oh == 0 || p.ow == 0) return plan;
  plan.column_blocks = static_cast<int>(ceil_div(p.n * p.ow, plan.positions));
  // Rows that are `dilation` apart make a problem of their own, without dilation.
  const int64_t phases = p.dilation[0], rows = ceil_div(p.oh, phases);
  plan.rows = rows_of(rows, int64_t{plan.column_blocks} * plan.channel_blocks * phases);
  plan.row_blocks = static_cast<int>(phases * ceil_div(rows, plan.rows));
  return plan;
}

}  // namespace rk::cuda
