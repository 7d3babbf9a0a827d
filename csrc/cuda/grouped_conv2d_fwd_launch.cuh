#pragma once
#include "grouped_conv2d_fwd_tensor.cuh"

// The choice of a variant. A translation unit for each type instantiates it, as each takes long to compile.
namespace rk::cuda {

template <class Traits>
void run(const ForwardPlan& plan, const ForwardArguments& arguments, void* stream) {
  const Grid grid{static_cast<unsigned>(plan.tiles()), static_cast<unsigned>(plan.channel_blocks),
                  Traits::kThreads, ForwardBlock<Traits>::kSharedBytes};
  launch<grouped_conv2d_fwd_kernel<Traits>>(grid, stream, arguments);
}

template <class T, bool kStats, Width kWidth, bool kPadded>
void run_stride(const ForwardPlan& plan, const ForwardArguments& arguments, int stride, void* stream) {
  const auto run_as = stride == 2 ? run<ForwardTraits<T, kWidth, 2, kPadded, kStats>>
                                  : run<ForwardTraits<T, kWidth, 1, kPadded, kStats>>;
  run_as(plan, arguments, stream);
}

template <class T, bool kStats>
void run_width(const ForwardPlan& plan, const ForwardArguments& arguments, int stride, void* stream) {
  const auto run_as = plan.width == Width::kPaired    ? run_stride<T, kStats, Width::kPaired, false>
                      : plan.width == Width::kOneStep ? plan.padded
                                                            ? run_stride<T, kStats, Width::kOneStep, true>
                                                            : run_stride<T, kStats, Width::kOneStep, false>
                      : plan.padded                   ? run_stride<T, kStats, Width::kTwoSteps, true>
                                                      : run_stride<T, kStats, Width::kTwoSteps, false>;
  run_as(plan, arguments, stride, stream);
}

template <class T>
void launch_forward(const ForwardPlan& plan, const ForwardArguments& arguments, int stride, void* stream) {
  const auto run_as = arguments.partials ? run_width<T, true> : run_width<T, false>;
  run_as(plan, arguments, stride, stream);
}

}  // namespace rk::cuda
