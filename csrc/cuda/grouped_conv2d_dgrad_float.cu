#include <algorithm>

#include "element.h"
#include "grouped_conv2d_dgrad_float.cuh"
#include "grouped_conv2d_dgrad_float.h"
#include "grouped_conv2d_fwd_float.h"

namespace rk::cuda {
namespace {

DgradFloatArguments arguments_of(const ConvProblem& p, const DgradFloatPlan& plan) {
  DgradFloatArguments a{};
  const auto narrow = [](int64_t value) { return static_cast<int>(value); };
  std::copy(p.w_stride, p.w_stride + 5, a.w_stride);
  a.n = p.n, a.h = narrow(p.h), a.w_in = narrow(p.w), a.c_in = narrow(p.c_in);
  a.oh = narrow(p.oh), a.ow = narrow(p.ow), a.c_out = narrow(p.c_out);
  a.group_in = narrow(p.in_per_group()), a.group_out = narrow(p.out_per_group());
  a.stride[0] = narrow(p.stride[0]), a.stride[1] = narrow(p.stride[1]);
  a.plan = plan;
  return a;
}

template <int kVector>
void run(const DgradFloatArguments& arguments, void* stream) {
  const Grid grid{static_cast<unsigned>(arguments.plan.blocks()), 1, kDgradThreads,
                  static_cast<unsigned>(arguments.plan.shared_bytes())};
  launch<grouped_conv2d_dgrad_float_kernel<kVector>>(grid, stream, arguments);
}

}  // namespace

void grouped_conv2d_dgrad_float(const ConvProblem& p, const float* dy, const float* w, float* dx,
                                void* stream) {
  if (p.stride[0] == 1 && p.stride[1] == 1) {
    const float* const last_tap = w + 2 * (p.w_stride[3] + p.w_stride[4]);
    return grouped_conv2d_fwd_float(transposed(p), dy, last_tap, dx,
                                    {nullptr, nullptr, Activation::kIdentity}, nullptr, nullptr, stream);
  }
  DgradFloatArguments arguments = arguments_of(p, plan_dgrad_float(p, is_aligned(dy) && is_aligned(dx)));
  arguments.dy = dy, arguments.w = w, arguments.dx = dx;
  const int vector = arguments.plan.vector;
  const auto run_as = vector == 4 ? run<4> : vector == 2 ? run<2> : run<1>;
  run_as(arguments, stream);
}

}  // namespace rk::cuda
