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

template <class T, Around kAround, Width kWidth, bool kPadded>
void run_stride(const ForwardPlan& plan, const ForwardArguments& arguments, int stride, void* stream) {
  if constexpr (kAround != Around::kPrologue)
    if (stride == 2) return run<ForwardTraits<T, kWidth, 2, kPadded, kAround>>(plan, arguments, stream);
  run<ForwardTraits<T, kWidth, 1, kPadded, kAround>>(plan, arguments, stream);
}

template <class T, Around kAround>
void run_width(const ForwardPlan& plan, const ForwardArguments& arguments, int stride, void* stream) {
  const auto run_as = plan.width == Width::kPaired    ? run_stride<T, kAround, Width::kPaired, false>
                      : plan.width == Width::kOneStep ? plan.padded
                                                            ? run_stride<T, kAround, Width::kOneStep, true>
                                                            : run_stride<T, kAround, Width::kOneStep, false>
                      : plan.padded                   ? run_stride<T, kAround, Width::kTwoSteps, true>
                                                      : run_stride<T, kAround, Width::kTwoSteps, false>;
  run_as(plan, arguments, stride, stream);
}

template <class T>
void launch_forward(const ForwardPlan& plan, const ForwardArguments& arguments, int stride, void* stream) {
  const auto run_as = arguments.partials     ? run_width<T, Around::kStats>
                      : arguments.input.bn.z ? run_width<T, Around::kPrologue>
                                             : run_width<T, Around::kNothing>;
  run_as(plan, arguments, stride, stream);
}

}  // namespace rk::cuda
