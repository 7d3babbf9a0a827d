#pragma once
#include "grouped_conv2d_plan.h"

namespace rk::cuda {

// Which taps of the weights a kernel takes for its own 0, 1, 2.
struct Taps {
  int kh[3], kw[3];
};

inline constexpr Taps kForwardTaps{{0, 1, 2}, {0, 1, 2}};

// Queues what fills packed[plan.packed_words], the weights of 16 bits in the order in which the kernels keep
// them in registers.
void prepack(const ConvProblem& p, const ForwardPlan& plan, const Taps& taps, const void* w, uint32_t* packed,
             void* stream);

}  // namespace rk::cuda
