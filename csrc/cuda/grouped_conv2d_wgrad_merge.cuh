#pragma once
#include <cstdint>

#include "problem.h"

namespace rk::cuda {

// Queues dw = the sum of `splits` partial gradients, in float, each [c_out][c_in / groups][3][3]; no splits
// make zeros. dw has p's dtype and weight strides. The same bits for the same (p, splits).
void merge_wgrad(const ConvProblem& p, const float* partials, int64_t splits, void* dw, void* stream);

}  // namespace rk::cuda
