#pragma once
#include <cstdint>

#include "problem.h"

namespace rk::cuda {

inline constexpr int kDgradThreads = 256;
// A thread's places, one after the other, and floats that a block's lanes have of a pixel.
inline constexpr int kDgradPlaces = 4, kDgradChannels = 32;
// Outputs of a group whose weights are in shared memory at a time.
inline constexpr int kDgradChunk = 32;

// The one class of pixels along an axis that a tap meets, and which output, from the pixel's position in its
// class on.
struct DgradTap {
  int of_class, offset;
};

// At strides above 1.
struct DgradFloatPlan {
  DgradTap taps[2][3];
  int rows, columns;  // of the largest class in an image
  // Channels that are loaded at once; a block's lanes, so many vectors, times its runs of places.
  int vector, lanes, runs, channel_blocks;
  int chunk;
  int64_t tiles;

  int64_t blocks() const { return tiles * channel_blocks; }
  int shared_bytes() const { return 9 * 4 * vector * lanes * chunk; }
};

// For 3x3 kernels; `aligned`: whether images begin at a multiple of 16 bytes.
DgradFloatPlan plan_dgrad_float(const ConvProblem& p, bool aligned);

// The convolution of dy that the gradient of the input is at stride 1: weights have their taps turned around,
// inputs and outputs change places. The first weight is that of the last tap.
ConvProblem transposed(const ConvProblem& p);

}  // namespace rk::cuda
