#pragma once
#include <vector>

#include "problem.h"

namespace rk::cpu {

// What one ISA's translation unit offers.
struct Kernels {
  const char* isa;
  void (*grouped_conv2d_fwd)(const ConvProblem& p, const void* x, const float* w, void* y,
                             const Epilogue& epilogue, ParallelFor parallel_for);

  // What one thread reaches in multiply-adds alone: the peak that a report holds kernels against.
  double (*fma_gflops)();
};

// The ISA chosen at load: the widest that this CPU runs, or the one named by RESNEXT_KERNELS_CPU_ISA.
const Kernels& kernels();

// Names of the ISAs in this build, narrowest first.
std::vector<const char*> compiled_isas();

}  // namespace rk::cpu
