#pragma once
#include "problem.h"

namespace rk::cuda {

// The gradient of the input in float, 3x3 kernels, of any sizes, strides and dilations.
void grouped_conv2d_dgrad_float(const ConvProblem& p, const float* dy, const float* w, float* dx,
                                void* stream);

}  // namespace rk::cuda
