#pragma once
#include "grouped_conv2d_plan.h"
#include "platform.h"

namespace rk::cuda {

// For a p without forward_reasons, of 16 bits. `packed` has room for the plan's words; partials[tiles][c_out]
// of (mean, M2) and counts[tiles], null without statistics, take the plan's tiles.
void grouped_conv2d_fwd_tensor(const ConvProblem& p, const void* x, const void* w, void* y,
                               const Epilogue& epilogue, uint32_t* packed, float2* partials, float* counts,
                               void* stream);

}  // namespace rk::cuda
