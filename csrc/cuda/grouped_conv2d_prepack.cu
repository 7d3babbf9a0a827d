#include <algorithm>

#include "grouped_conv2d_prepack.cuh"

namespace rk::cuda {

void prepack(const ConvProblem& p, const ForwardPlan& plan, const Taps& taps, const void* w, uint32_t* packed,
             void* stream) {
  WeightView view{static_cast<const uint16_t*>(w),
                  static_cast<int>(p.in_per_group()),
                  static_cast<int>(p.out_per_group()),
                  {},
                  taps};
  std::copy(p.w_stride, p.w_stride + 5, view.stride);
  const Grid grid{static_cast<unsigned>((plan.packed_words + kBlockThreads - 1) / kBlockThreads), 1,
                  kBlockThreads, 0};
  const int channels = static_cast<int>(p.groups) * plan.groups.out;
  const auto run = [&](auto launch_as) {
    launch_as(grid, stream, view, plan.groups, channels, plan.packed_words, packed);
  };
  if (plan.width == Width::kPaired)
    run([](auto... a) { launch<grouped_conv2d_prepack_kernel<Width::kPaired>>(a...); });
  else if (plan.width == Width::kOneStep)
    run([](auto... a) { launch<grouped_conv2d_prepack_kernel<Width::kOneStep>>(a...); });
  else
    run([](auto... a) { launch<grouped_conv2d_prepack_kernel<Width::kTwoSteps>>(a...); });
}

}  // namespace rk::cuda
