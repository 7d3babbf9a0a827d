// Grouped 2-D convolution forward, fp32: chooses the kernel.
#pragma once
#include "cpu/grouped_conv2d_planes-inl.h"
#include "cpu/grouped_conv2d_rotation-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

// Tries kGroup and its halves.
template <int kGroup>
bool run_rotation(const ConvProblem& p, const float* x, const float* w, float* y, const Epilogue& epilogue,
                  ParallelFor parallel_for) {
  if (Rotation<kGroup>::supports(p)) {
    run(Rotation<kGroup>(p, x, w, y, epilogue), parallel_for);
    return true;
  }
  if constexpr (kGroup > 1) return run_rotation<kGroup / 2>(p, x, w, y, epilogue, parallel_for);
  return false;
}

void grouped_conv2d_fwd(const ConvProblem& p, const float* x, const float* w, float* y,
                        const Epilogue& epilogue, ParallelFor parallel_for) {
  if (p.n == 0) return;
  if (run_rotation<kLanes>(p, x, w, y, epilogue, parallel_for)) return;
  run(Planes(p, x, w, y, epilogue), parallel_for);
}

}  // namespace
}  // namespace rk::cpu::RK_ISA
