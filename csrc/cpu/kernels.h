#pragma once
#include <vector>

#include "problem.h"

namespace rk::cpu {

// What one ISA's translation unit offers.
struct Kernels {
  const char* isa;
  void (*grouped_conv2d_fwd)(const ConvProblem& p, const void* x, const float* w, void* y,
                             const Epilogue& epilogue, ParallelFor parallel_for);

  // dw, of w's strides, is the gradient of the weights where the output's is dy or, with `bn`, what it makes
  // of dy.
  void (*grouped_conv2d_wgrad)(const ConvProblem& p, const void* dy, const void* x, float* dw,
                               const BnBackward* bn, ParallelFor parallel_for);

  // What one thread reaches in multiply-adds alone: the peak that a report holds kernels against.
  double (*fma_gflops)();
};

// The ISA chosen at load: the widest that this CPU runs, or the one named by RESNEXT_KERNELS_CPU_ISA.
const Kernels& kernels();

// Names of the ISAs in this build, narrowest first.
std::vector<const char*> compiled_isas();

}  // namespace rk::cpu
