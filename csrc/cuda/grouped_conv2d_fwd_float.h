#pragma once
#include "platform.h"
#include "problem.h"

namespace rk::cuda {

// 3x3 kernels in float, of any sizes, strides and dilations.

// Of the statistics; a function of p alone.
int64_t grouped_conv2d_fwd_float_tiles(const ConvProblem& p);

// partials[tiles][c_out] of (mean, M2) and counts[tiles] are null without statistics; with them the epilogue
// is not applied.
void grouped_conv2d_fwd_float(const ConvProblem& p, const float* x, const float* w, float* y,
                              const Epilogue& epilogue, float2* partials, float* counts, void* stream);

}  // namespace rk::cuda
