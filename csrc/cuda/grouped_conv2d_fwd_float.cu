#include <algorithm>

#include "dispatch.h"
#include "grouped_conv2d_fwd_float.cuh"
#include "grouped_conv2d_fwd_float.h"

namespace rk::cuda {
namespace {

FloatArguments arguments_of(const ConvProblem& p, const FloatPlan& plan) {
  FloatArguments a{};
  const auto narrow = [](int64_t value) { return static_cast<int>(value); };
  std::copy(p.w_stride, p.w_stride + 5, a.w_stride);
  a.n = p.n, a.h = narrow(p.h), a.w_in = narrow(p.w), a.c_in = narrow(p.c_in);
  a.oh = narrow(p.oh), a.ow = narrow(p.ow), a.c_out = narrow(p.c_out);
  a.plan = plan;
  return a;
}

template <int kChunks, int kRows, int kColumns>
void run(const FloatArguments& arguments, void* stream) {
  const FloatPlan& plan = arguments.plan;
  const Grid grid{static_cast<unsigned>(plan.tiles() * plan.channel_blocks), 1, kFloatThreads,
                  static_cast<unsigned>(plan.shared_bytes())};
  with_bool(arguments.partials != nullptr, [&](auto stats) {
    launch<grouped_conv2d_fwd_float_kernel<FloatTraits<kChunks, kRows, kColumns, stats.value>>>(grid, stream,
                                                                                                arguments);
  });
}

template <int kChunks>
void run_walk(const FloatArguments& arguments, void* stream) {
  const auto run_as = arguments.plan.down.walk == 1                            ? run<kChunks, 1, 1>
                      : arguments.plan.down.walk == 2                          ? run<kChunks, 2, 2>
                      : arguments.plan.wide && arguments.plan.across.walk == 1 ? run<0, kApart, 1>
                                                                               : run<kChunks, kApart, kApart>;
  run_as(arguments, stream);
}

}  // namespace

int64_t grouped_conv2d_fwd_float_tiles(const ConvProblem& p) { return plan_forward_float(p).tiles(); }

void grouped_conv2d_fwd_float(const ConvProblem& p, const float* x, const float* w, float* y,
                              const Epilogue& epilogue, float2* partials, float* counts, void* stream) {
  const FloatPlan plan = plan_forward_float(p);
  if (plan.tiles() == 0) return;
  FloatArguments arguments = arguments_of(p, plan);
  arguments.x = x, arguments.w = w, arguments.y = y;
  arguments.scale = epilogue.scale, arguments.shift = epilogue.shift;
  arguments.activation = epilogue.activation;
  arguments.partials = partials, arguments.counts = counts;
  const bool vectors = p.c_in % 4 == 0 && plan.group_in % 4 == 0 && is_aligned(x);
  arguments.unit = vectors ? 4 : 1;
  const auto run_as = plan.wide ? run_walk<0> : plan.chunks == 1 ? run_walk<1> : run_walk<2>;
  run_as(arguments, stream);
}

}  // namespace rk::cuda
