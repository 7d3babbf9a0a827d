#include "element.h"
#include "grouped_conv2d_wgrad_float.cuh"
#include "grouped_conv2d_wgrad_float.h"
#include "grouped_conv2d_wgrad_merge.h"
#include "plan_arithmetic.h"

namespace rk::cuda {
namespace {

WgradFloatArguments arguments_of(const ConvProblem& p, const WgradFloatPlan& plan) {
  WgradFloatArguments a{};
  const auto narrow = [](int64_t value) { return static_cast<int>(value); };
  a.elements = p.c_out * p.in_per_group() * 9;
  a.row_step = p.dilation[0] * p.w * p.c_in;
  a.h = narrow(p.h), a.w = narrow(p.w), a.c_in = narrow(p.c_in);
  a.oh = narrow(p.oh), a.ow = narrow(p.ow), a.c_out = narrow(p.c_out);
  for (int i = 0; i < 2; ++i)
    a.stride[i] = narrow(p.stride[i]), a.padding[i] = narrow(p.padding[i]),
    a.dilation[i] = narrow(p.dilation[i]);
  a.plan = plan;
  return a;
}

template <int kOut, int kIn, int kWalk>
void run(const WgradFloatArguments& arguments, void* stream) {
  using Traits = WgradFloatTraits<kOut, kIn, kWalk>;
  const auto blocks = static_cast<unsigned>(arguments.plan.splits * arguments.plan.tile_blocks);
  launch<grouped_conv2d_wgrad_float_kernel<Traits>>({blocks, 1, kWgradThreads, Traits::kSharedBytes}, stream,
                                                    arguments);
}

template <int kOut, int kIn>
void run_walk(const WgradFloatArguments& arguments, void* stream) {
  const int walk = arguments.plan.walk;
  const auto run_as = walk == 1 ? run<kOut, kIn, 1> : walk == 2 ? run<kOut, kIn, 2> : run<kOut, kIn, 3>;
  run_as(arguments, stream);
}

}  // namespace

int64_t grouped_conv2d_wgrad_float_workspace(const ConvProblem& p) {
  return plan::aligned(4 * plan_wgrad_float(p, true).splits * p.c_out * p.in_per_group() * 9);
}

void grouped_conv2d_wgrad_float(const ConvProblem& p, const float* x, const float* dy, float* dw,
                                void* workspace, void* stream) {
  const WgradFloatPlan plan = plan_wgrad_float(p, is_aligned(x) && is_aligned(dy));
  auto* const partials = static_cast<float*>(workspace);
  WgradFloatArguments arguments = arguments_of(p, plan);
  arguments.x = x, arguments.dy = dy, arguments.partials = partials;
  const auto run_as = plan.tile_out == 4   ? run_walk<4, 2>
                      : plan.tile_out == 2 ? run_walk<2, 2>
                                           : run_walk<1, 1>;
  run_as(arguments, stream);
  merge_wgrad(p, partials, plan.splits, dw, stream);
}

}  // namespace rk::cuda
