#include "grouped_conv2d_block.cuh"
#include "grouped_conv2d_fwd_tensor.h"
#include "grouped_conv2d_prepack.cuh"

namespace rk::cuda {
namespace {

template <Width kWidth>
void prepack(const ConvProblem& p, const ForwardPlan& plan, const void* w, uint32_t* packed, void* stream) {
  WeightView view{static_cast<const uint16_t*>(w),
                  static_cast<int>(p.in_per_group()),
                  static_cast<int>(p.out_per_group()),
                  {}};
  std::copy(p.w_stride, p.w_stride + 5, view.stride);
  const Grid grid{static_cast<unsigned>((plan.packed_words + kBlockThreads - 1) / kBlockThreads), 1,
                  kBlockThreads, 0};
  const int channels = static_cast<int>(p.groups) * plan.groups.out;
  launch<grouped_conv2d_prepack_kernel<kWidth>>(grid, stream, view, plan.groups, channels, plan.packed_words,
                                                packed);
}

}  // namespace

void grouped_conv2d_fwd_tensor(const ConvProblem& p, const void* x, const void* w, void* y,
                               const Epilogue& epilogue, uint32_t* packed, float2* partials, float* counts,
                               void* stream) {
  const ForwardPlan plan = plan_forward(p);
  if (plan.tiles() == 0) return;
  const auto pack_as = plan.width == Width::kPaired    ? prepack<Width::kPaired>
                       : plan.width == Width::kOneStep ? prepack<Width::kOneStep>
                                                       : prepack<Width::kTwoSteps>;
  pack_as(p, plan, w, packed, stream);
  ForwardArguments arguments{};
  arguments.walk = row_walk(p, plan), arguments.x = x, arguments.packed = packed, arguments.y = y;
  arguments.scale = epilogue.scale, arguments.shift = epilogue.shift;
  arguments.activation = epilogue.activation;
  arguments.partials = partials, arguments.counts = counts;
  const auto run_as = p.dtype == DType::kFloat16 ? launch_forward<Half> : launch_forward<BFloat16>;
  run_as(plan, arguments, static_cast<int>(p.stride[0]), stream);
}

}  // namespace rk::cuda
