#include "grouped_conv2d_wgrad_block.cuh"
#include "grouped_conv2d_wgrad_merge.h"
#include "grouped_conv2d_wgrad_tensor.h"

namespace rk::cuda {

int64_t grouped_conv2d_wgrad_tensor_workspace(const ConvProblem& p) {
  return 4 * plan_wgrad(p).splits() * WgradPlan::partials(p);
}

void grouped_conv2d_wgrad_tensor(const ConvProblem& p, const void* x, const void* dz, void* dw,
                                 void* workspace, void* stream) {
  const WgradPlan plan = plan_wgrad(p);
  auto* const partials = static_cast<float*>(workspace);
  const WgradArguments arguments{
      x, dz, partials, row_walk(p, plan.walk), static_cast<int>(plan.walk.tiles()), plan.block_tiles};
  const auto run_as = p.dtype == DType::kFloat16 ? launch_wgrad<Half> : launch_wgrad<BFloat16>;
  run_as(plan, arguments, static_cast<int>(p.stride[0]), stream);
  merge_wgrad(p, partials, plan.splits(), dw, stream);
}

}  // namespace rk::cuda
