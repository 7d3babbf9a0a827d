#include "grouped_conv2d_block.cuh"
#include "grouped_conv2d_fwd_tensor.h"
#include "grouped_conv2d_prepack.h"

namespace rk::cuda {

void grouped_conv2d_fwd_tensor(const ConvProblem& p, const void* x, const void* w, void* y,
                               const Epilogue& epilogue, uint32_t* packed, float2* partials, float* counts,
                               void* stream) {
  const ForwardPlan plan = plan_forward(p);
  if (plan.tiles() == 0) return;
  prepack(p, plan, kForwardTaps, w, packed, stream);
  ForwardArguments arguments{};
  arguments.walk = row_walk(p, plan), arguments.input.x = x, arguments.packed = packed, arguments.y = y;
  arguments.scale = epilogue.scale, arguments.shift = epilogue.shift;
  arguments.activation = epilogue.activation;
  arguments.partials = partials, arguments.counts = counts;
  const auto run_as = p.dtype == DType::kFloat16 ? launch_forward<Half> : launch_forward<BFloat16>;
  run_as(plan, arguments, static_cast<int>(p.stride[0]), stream);
}

}  // namespace rk::cuda
