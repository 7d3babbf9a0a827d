#pragma once
#include "grouped_conv2d_wgrad_plan.h"

namespace rk::cuda {

// Bytes that grouped_conv2d_wgrad_tensor wants at `workspace`.
int64_t grouped_conv2d_wgrad_tensor_workspace(const ConvProblem& p);

// dw, with the strides of p's weights, for a p without forward_reasons, of 16 bits.
void grouped_conv2d_wgrad_tensor(const ConvProblem& p, const void* x, const void* dz, void* dw,
                                 void* workspace, void* stream);

}  // namespace rk::cuda
