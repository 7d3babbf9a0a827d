#pragma once
#include "grouped_conv2d_plan.h"
#include "host_device.h"

namespace rk::cuda {

// Which taps of the weights, along an axis, a kernel takes for its own 0, 1, 2. An array of them, indexed
// when it runs, would be local memory.
class AxisTaps {
 public:
  AxisTaps() = default;
  RK_HOST_DEVICE constexpr AxisTaps(unsigned first, unsigned second, unsigned third)
      : bits_(first | second << 2 | third << 4) {}
  RK_HOST_DEVICE constexpr int operator[](int i) const { return static_cast<int>(bits_ >> 2 * i & 3); }

 private:
  unsigned bits_;
};

struct Taps {
  AxisTaps kh, kw;
};

inline constexpr Taps kForwardTaps{{0, 1, 2}, {0, 1, 2}};

// Queues what fills packed[plan.packed_words], the weights of 16 bits in the order in which the kernels keep
// them in registers.
void prepack(const ConvProblem& p, const ForwardPlan& plan, const Taps& taps, const void* w, uint32_t* packed,
             void* stream);

}  // namespace rk::cuda
