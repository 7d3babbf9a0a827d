// Weight gradient of the grouped 2-D convolution: chooses the kernel.
#pragma once
#include "cpu/grouped_conv2d_wgrad_broadcast-inl.h"
#include "cpu/grouped_conv2d_wgrad_planes-inl.h"
#include "cpu/grouped_conv2d_wgrad_rotation-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

// Tries kGroup and its halves.
template <int kGroup>
bool run_wgrad_rotation(const ConvProblem& p, const Input& dy, const Input& x, float* dw,
                        ParallelFor parallel_for) {
  if (WgradRotation<kGroup>::supports(p)) {
    sum_in_chunks(WgradRotation<kGroup>(p, dy, x, dw), parallel_for);
    return true;
  }
  if constexpr (kGroup > 1) return run_wgrad_rotation<kGroup / 2>(p, dy, x, dw, parallel_for);
  return false;
}

void grouped_conv2d_wgrad(const ConvProblem& p, const void* dy, const void* x, float* dw,
                          const BnBackward* bn, ParallelFor parallel_for) {
  const Input gradient(dy, p.dtype, bn), input(x, p.dtype);
  if (run_wgrad_rotation<std::min(kLanes, 8)>(p, gradient, input, dw, parallel_for)) return;
  if (WgradBroadcast::supports(p)) return sum_in_chunks(WgradBroadcast(p, gradient, input, dw), parallel_for);
  sum_in_chunks(WgradPlanes(p, gradient, input, dw), parallel_for);
}

}  // namespace
}  // namespace rk::cpu::RK_ISA
