#pragma once
#include "problem.h"

namespace rk::cuda {

// dw, in p's dtype and with the strides of its weights, is the sum of
// partials[splits][c_out][c_in / groups][3][3], always in the same order.
void merge_wgrad(const ConvProblem& p, const float* partials, int64_t splits, void* dw, void* stream);

}  // namespace rk::cuda
