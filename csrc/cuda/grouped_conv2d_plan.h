#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "host_device.h"
#include "problem.h"

namespace rk::cuda {

// How the tensor-core kernel covers a width; a block has 4 warps of 16 output channels, two n-tiles, each.
//
//   width      channels a group  k-steps of a row of taps   weight registers a thread
//   kPaired    1 2 4 8           2 n-tiles x (k16 + k8)     18
//   kOneStep   16                3 taps x k16               36
//   kTwoSteps  32                3 taps x 2 k16             72
//
// kPaired: the 8 outputs of an n-tile read 8 inputs, so that two taps fill one k16 and the third is a k8. The
// others read all inputs of the warp's 16 outputs; a weight between two groups is zero. Groups of other even
// sizes, and all with dilation, are padded: in shared memory and in the weights they begin at multiples of 8,
// 16 or 32 channels, and run as kOneStep or kTwoSteps.
enum class Width : int { kPaired, kOneStep, kTwoSteps };

RK_HOST_DEVICE constexpr int weight_registers(Width width) {
  return width == Width::kPaired ? 18 : width == Width::kOneStep ? 36 : 72;
}
RK_HOST_DEVICE constexpr int warp_inputs(Width width) { return width == Width::kTwoSteps ? 32 : 16; }

inline constexpr int kBlockThreads = 128, kWarpChannels = 16, kBlockChannels = 64;

// Output pixels of a block's row, consecutive over images and columns; the columns of input staged for them,
// in one plane or, at stride 2, one of even and one of odd columns; the rows of input in flight.
inline constexpr int kPositions = 32;
RK_HOST_DEVICE constexpr int staged_columns(int stride) { return stride == 1 ? 48 : 40; }
RK_HOST_DEVICE constexpr int staged_rows(int stride) { return stride == 1 ? 4 : 3; }
// A pixel's 64 channels and 16 bytes more, so that the 8 rows of an ldmatrix lie in different banks.
inline constexpr int kPitch = 2 * kBlockChannels + 16;
RK_HOST_DEVICE constexpr int plane_bytes(int stride) { return staged_columns(stride) * kPitch; }
RK_HOST_DEVICE constexpr int stage_bytes(int stride) { return stride * plane_bytes(stride); }
inline constexpr int kLineBytes = kPositions * kPitch;
RK_HOST_DEVICE constexpr int forward_shared_bytes(int stride) {
  return staged_rows(stride) * stage_bytes(stride) + 2 * kLineBytes +
         4 * (stride * staged_columns(stride) + kPositions);
}

// How many channels a group has where the kernel computes: those of the tensors, or padded.
struct GroupChannels {
  int in, out;

  // The first input, a multiple of 8, that the outputs from `first` on read.
  RK_HOST_DEVICE int first_input(int first) const { return first / out * in / 8 * 8; }
};

// The first input of what a warp reads: its block's staged channels must hold all of it.
RK_HOST_DEVICE inline int warp_first_input(const GroupChannels& groups, int first_output, int inputs) {
  const int block = groups.first_input(first_output / kBlockChannels * kBlockChannels);
  const int first = groups.first_input(first_output), last = block + kBlockChannels - inputs;
  return first < last ? first : last;
}

struct ForwardPlan {
  Width width;
  GroupChannels groups;
  bool padded;
  int unit;       // bytes that one copy moves
  int positions;  // of kPositions, those in use
  int rows;       // output rows of a block
  int column_blocks, row_blocks, channel_blocks;
  int64_t packed_words;  // the weights in the order of the registers

  // Of the statistics.
  int64_t tiles() const { return int64_t{column_blocks} * row_blocks; }
};

// Columns between the last of an image and the first of the next, which the taps of both read.
int64_t frame(const ConvProblem& p);

// Why the tensor-core kernel does not take p; empty where it does.
std::vector<std::string> forward_reasons(const ConvProblem& p);

// At stride 2 dgrad makes dx in pairs of columns, and of rows, the first of which a tap of its own reaches
// and the other the two taps around: where the first pair begins.
RK_HOST_DEVICE constexpr int64_t first_of_pair(int64_t padding) { return padding % 2 == 0 ? -1 : 0; }

// dgrad as a convolution of dy: its forward problem at stride 1, and at stride 2 what it walks, dx in pairs.
ConvProblem dgrad_problem(const ConvProblem& p);

// Why dgrad does not take p.
std::vector<std::string> dgrad_reasons(const ConvProblem& p);

// For a p without reasons. A function of p alone: the tiles of the statistics follow from it.
ForwardPlan plan_forward(const ConvProblem& p);

}  // namespace rk::cuda
