#pragma once
#include <vector>

#include "problem.h"

namespace rk::cpu {

// What one ISA's translation unit offers.
struct Kernels {
  const char* isa;
  void (*grouped_conv2d_fwd)(const ConvProblem& p, const void* x, const float* w, void* y,
                             const Epilogue& epilogue, ParallelFor parallel_for);

  void (*bn_stats)(const ImageProblem& p, const void* z, const BatchStats& stats, ParallelFor parallel_for);

  // residual may be null.
  void (*affine_act)(const ImageProblem& p, const void* z, const float* scale, const float* shift,
                     const void* residual, void* y, Activation activation, ParallelFor parallel_for);

  void (*bn_act_reduce)(const ImageProblem& p, const BnReduce& reduce, const BnGradients& gradients,
                        ParallelFor parallel_for);

  // dz and the gradient of the residual, each where it is not null; y as in BnReduce.
  void (*affine_act_backward)(const ImageProblem& p, const void* dy, const BnBackward& bn, const void* y,
                              void* dz, void* dresidual, ParallelFor parallel_for);

  // dx, of x's strides, is the gradient of the input where the output's is dy or, with `bn`, what it makes of
  // dy.
  void (*grouped_conv2d_dgrad)(const ConvProblem& p, const void* dy, const float* w, void* dx,
                               const BnBackward* bn, ParallelFor parallel_for);

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
