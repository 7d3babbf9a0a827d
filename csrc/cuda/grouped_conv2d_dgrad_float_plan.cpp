#include "grouped_conv2d_dgrad_float_plan.h"

#include <algorithm>

#include "plan_arithmetic.h"

namespace rk::cuda {
namespace {

using plan::ceil_div;

// Output o meets pixel o * stride - padding + k * dilation.
DgradTap tap_of(const ConvProblem& p, int axis, int k) {
  const int64_t stride = p.stride[axis], first = k * p.dilation[axis] - p.padding[axis];
  const int64_t of_class = (first % stride + stride) % stride;
  return {static_cast<int>(of_class), static_cast<int>((of_class - first) / stride)};
}

int vector_of(const ConvProblem& p, bool aligned) {
  const int64_t both = p.in_per_group() | p.out_per_group();
  return !aligned ? 1 : both % 4 == 0 ? 4 : both % 2 == 0 ? 2 : 1;
}

}  // namespace

DgradFloatPlan plan_dgrad_float(const ConvProblem& p, bool aligned) {
  DgradFloatPlan plan{};
  if (p.n == 0 || p.h == 0 || p.w == 0) return plan;
  for (int axis = 0; axis < 2; ++axis)
    for (int k = 0; k < 3; ++k) plan.taps[axis][k] = tap_of(p, axis, k);
  plan.rows = static_cast<int>(ceil_div(p.h, p.stride[0]));
  plan.columns = static_cast<int>(ceil_div(p.w, p.stride[1]));
  plan.vector = vector_of(p, aligned);
  plan.lanes = static_cast<int>(std::min<int64_t>(p.c_in, kDgradChannels)) / plan.vector;
  plan.runs = kDgradThreads / plan.lanes;
  plan.channel_blocks = static_cast<int>(ceil_div(p.c_in, plan.lanes * plan.vector));
  plan.chunk = static_cast<int>(std::min<int64_t>(p.out_per_group(), kDgradChunk));
  plan.tiles = ceil_div(p.n * plan.rows * plan.columns, plan.runs * kDgradPlaces);
  return plan;
}

ConvProblem transposed(const ConvProblem& p) {
  ConvProblem t = p;
  t.c_in = p.c_out, t.h = p.oh, t.w = p.ow, t.c_out = p.c_in, t.oh = p.h, t.ow = p.w;
  for (int i = 0; i < 2; ++i) t.padding[i] = 2 * p.dilation[i] - p.padding[i];
  std::swap(t.w_stride[1], t.w_stride[2]);
  for (int i = 3; i < 5; ++i) t.w_stride[i] = -p.w_stride[i];
  return t;
}

}  // namespace rk::cuda
