#pragma once
#include "grouped_conv2d_input.cuh"
#include "grouped_conv2d_prepack.h"

namespace rk::cuda {

// Positions are pairs of columns of dx, and what a block walks are pairs of rows of it.
struct StridedDgradArguments {
  InputArguments input;
  const uint32_t* packed;
  void* dx;
  RowWalk walk;
  int h, w, first_row, first_column;  // of dx, and where its first pairs begin: 0 or -1
};

// The kernel's columns of taps: those of the second column of a pair, at the first and at the next column of
// dy, and that of the first column of a pair, at the first.
inline constexpr Taps kStridedTaps{{0, 1, 2}, {2, 0, 1}};

// Runs the variant that the plan asks for.
template <class T>
void launch_dgrad_strided(const ForwardPlan& plan, const StridedDgradArguments& arguments, void* stream);

}  // namespace rk::cuda
