#pragma once
#include "grouped_conv2d_wgrad_tensor.cuh"

// The choice of a variant. A translation unit for each type instantiates it, as each takes long to compile.
namespace rk::cuda {

template <class Traits>
void run(const WgradPlan& plan, const WgradArguments& arguments, void* stream) {
  const Grid grid{static_cast<unsigned>(plan.splits()), static_cast<unsigned>(plan.walk.channel_blocks),
                  Traits::kThreads, WgradBlock<Traits>::kSharedBytes};
  launch<grouped_conv2d_wgrad_kernel<Traits>>(grid, stream, arguments);
}

template <class T, Width kWidth>
void run_width(const WgradPlan& plan, const WgradArguments& arguments, int stride, void* stream) {
  const auto run_as = plan.walk.padded ? stride == 2 ? run<WgradTraits<T, kWidth, 2, true>>
                                                     : run<WgradTraits<T, kWidth, 1, true>>
                      : stride == 2    ? run<WgradTraits<T, kWidth, 2, false>>
                                       : run<WgradTraits<T, kWidth, 1, false>>;
  run_as(plan, arguments, stream);
}

// All that read up to 16 inputs run as one width.
template <class T>
void launch_wgrad(const WgradPlan& plan, const WgradArguments& arguments, int stride, void* stream) {
  const auto run_as =
      plan.walk.width == Width::kTwoSteps ? run_width<T, Width::kTwoSteps> : run_width<T, Width::kOneStep>;
  run_as(plan, arguments, stride, stream);
}

}  // namespace rk::cuda
