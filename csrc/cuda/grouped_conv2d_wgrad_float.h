#pragma once
#include "problem.h"

namespace rk::cuda {

// The gradient of the weights in float, 3x3 kernels, of any sizes, strides and dilations.

// Bytes that it wants at `workspace`; a function of p alone.
int64_t grouped_conv2d_wgrad_float_workspace(const ConvProblem& p);

// dw has the strides of p's weights.
void grouped_conv2d_wgrad_float(const ConvProblem& p, const float* x, const float* dy, float* dw,
                                void* workspace, void* stream);

}  // namespace rk::cuda
