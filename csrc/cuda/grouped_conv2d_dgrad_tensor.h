#pragma once
#include "grouped_conv2d_plan.h"

namespace rk::cuda {

// For a p without dgrad_reasons, of 16 bits. `packed` has room for the words of
// plan_forward(dgrad_problem(p)). With bn.z, dy is the gradient of the activated output and what it makes of
// dy and z goes to dz, if not null.
void grouped_conv2d_dgrad_tensor(const ConvProblem& p, const void* dy, const void* w, void* dx,
                                 const BnBackward& bn, void* dz, uint32_t* packed, void* stream);

}  // namespace rk::cuda
