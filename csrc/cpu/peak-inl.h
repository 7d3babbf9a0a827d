// The rate of multiply-adds that depend on nothing but themselves.
#pragma once
#include <algorithm>
#include <chrono>

#include "cpu/simd.h"

namespace rk::cpu::RK_ISA {
namespace {

constexpr int kChains = kRegisters == 32 ? 24 : 12;

__attribute__((noinline)) Vec multiply_add(int steps, Vec start) {
  const Vec factor = broadcast(0.5f);
  Vec chains[kChains];
  unroll<kChains>([&](auto i) RK_INLINE_LAMBDA { chains[i] = start + float(i); });
  for (int step = 0; step < steps; ++step)
    unroll<kChains>([&](auto i) RK_INLINE_LAMBDA { chains[i] = fma(chains[i], factor, factor); });
  Vec sum = {};
  unroll<kChains>([&](auto i) RK_INLINE_LAMBDA { sum += chains[i]; });
  return sum;
}

double fma_gflops() {
  constexpr int kSteps = 1 << 16;
  // Volatile, so that the work is done, each time anew, and between the two looks at the clock.
  volatile float seed = 0;
  double best = 0;
  for (int repeat = 0; repeat < 50; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    seed = multiply_add(kSteps, broadcast(seed))[0];
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::max(best, 2e-9 * kChains * kLanes * kSteps / took.count());
  }
  return best;
}

}  // namespace
}  // namespace rk::cpu::RK_ISA
