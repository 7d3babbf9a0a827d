// Grouped 2-D convolution forward, fp32: chooses the kernel.
#pragma once
#include "cpu/grouped_conv2d_broadcast-inl.h"
#include "cpu/grouped_conv2d_planes-inl.h"
#include "cpu/grouped_conv2d_rotation-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

// A kernel whose weights are packed first, in parallel where that pays for waking the threads.
template <class Kernel>
void pack_and_run(const Kernel& kernel, ParallelFor parallel_for) {
  struct Packing {
    const Kernel& kernel;
    int64_t tasks() const { return kernel.blocks(); }
    int64_t scratch_floats() const { return 0; }
    void range(int64_t begin, int64_t end, float*) const {
      for (int64_t block = begin; block < end; ++block) kernel.pack(block);
    }
  };
  run(Packing{kernel}, kernel.weights_floats() > 16 * 1024 ? parallel_for : nullptr);
  run(kernel, parallel_for);
}

// Tries kGroup and its halves.
template <int kGroup, class Lane>
bool run_rotation(const Parts& parts, const Input& x, const Epilogue& epilogue, ParallelFor parallel_for) {
  if (Rotation<kGroup, Lane>::supports(parts.window)) {
    pack_and_run(Rotation<kGroup, Lane>(parts, x, epilogue), parallel_for);
    return true;
  }
  if constexpr (kGroup > Lane::kChannels)
    return run_rotation<kGroup / 2, Lane>(parts, x, epilogue, parallel_for);
  return false;
}

template <class Lane>
void convolve(const Parts& parts, const Input& x, const Epilogue& epilogue, ParallelFor parallel_for) {
  if (parts.window.n == 0) return;
  // With more lanes a group the rotation kernel's ring outgrows L1 when the stride is 2.
  if (run_rotation<std::min(kLanes, 8 * Lane::kChannels), Lane>(parts, x, epilogue, parallel_for)) return;
  if (Broadcast<Lane>::supports(parts.window))
    pack_and_run(Broadcast<Lane>(parts, x, epilogue), parallel_for);
  else
    run(Planes(parts, x, epilogue), parallel_for);
}

void grouped_conv2d_fwd(const ConvProblem& p, const void* x, const float* w, void* y,
                        const Epilogue& epilogue, ParallelFor parallel_for) {
  const Parts::Part whole{p, w, y};
  convolve<FloatLanes>({&whole, 1, 1, p}, Input(x, p.dtype), epilogue, parallel_for);
}

#if defined(__AVX512BF16__)
// The same with products of bfloat16, where x and the weights are.
void grouped_conv2d_fwd_bfloat16(const ConvProblem& p, const void* x, const float* w, void* y,
                                 const Epilogue& epilogue, ParallelFor parallel_for) {
  if (p.dtype != DType::kBFloat16 || p.in_per_group() == 1)
    return grouped_conv2d_fwd(p, x, w, y, epilogue, parallel_for);
  const Parts::Part whole{p, w, y};
  convolve<PairLanes>({&whole, 1, 1, p}, Input(x, p.dtype), epilogue, parallel_for);
}
#endif

}  // namespace
}  // namespace rk::cpu::RK_ISA
