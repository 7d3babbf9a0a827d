#pragma once
#include <cstdint>

#include "host_device.h"
#include "problem.h"

namespace rk::cuda {

inline constexpr int kFloatThreads = 128;

// A thread computes as many positions of an output row, or fewer: rows of 56, 28, 14 and 7 are whole runs.
inline constexpr int kRun = 7;

// How inputs along an axis feed outputs: those at stride 1 and 2 share taps' inputs; else every output has
// three inputs of its own.
inline constexpr int kApart = 3;

// Output channels of a thread, all of one group, and rows of input in flight.
RK_HOST_DEVICE constexpr int float_outputs(bool wide) { return wide ? 2 : 1; }
RK_HOST_DEVICE constexpr int float_stages(bool wide) { return wide ? 3 : 4; }

// An axis of the images. At stride 1, positions that are the dilation apart are a phase: a problem of its
// own, without dilation. Inputs are counted as the walk goes.
struct FloatAxis {
  int walk, stride, padding, phases;
  int tap;  // from the input of a tap to that of the next

  // From the input 0 of a phase to its input i.
  template <int kWalk>
  RK_HOST_DEVICE int offset(int i) const {
    return kWalk == kApart ? i / 3 * stride + i % 3 * tap : i * tap;
  }
};

struct FloatPlan {
  FloatAxis down, across;

  // Groups as computed: `pack` true groups are one, with zeros between them.
  int pack, true_in, true_out, group_in, group_out, group_count;
  // Groups of more than 8 inputs: their weights are read from shared memory.
  bool wide;
  // Inputs of a group in fours; wider groups are cut in slabs of so many.
  int chunks, slabs;

  // A block's lanes: group_lanes of each of its groups, or of one group's all_lanes, split over blocks.
  int lanes, group_lanes, all_lanes, groups, splits, channel_blocks;

  // A strip is a row of a phase of an image; it is cut in runs, as even as can be, of which a block has
  // `runs`.
  int strip, strip_runs, runs, slots;
  int64_t run_blocks;
  // A block's output rows, of one phase.
  int rows, row_blocks;

  int64_t tiles() const { return run_blocks * row_blocks; }
  RK_HOST_DEVICE int run_begin(int run) const {
    const int longer = strip % strip_runs;
    return strip / strip_runs * run + (run < longer ? run : longer);
  }
  RK_HOST_DEVICE int copied_inputs() const { return slabs > 1 ? 4 * chunks : group_in; }

  // In shared memory: what a column, a row of them, and a row of a slab's taps take.
  RK_HOST_DEVICE int slot_bytes() const { return 16 * chunks * groups; }
  RK_HOST_DEVICE int inputs_bytes() const { return slots * slot_bytes(); }
  RK_HOST_DEVICE int taps_bytes() const { return wide ? 3 * 16 * chunks * float_outputs(wide) * lanes : 0; }
  RK_HOST_DEVICE int stage_bytes() const { return inputs_bytes() + (slabs > 1 ? taps_bytes() : 0); }
  RK_HOST_DEVICE int resident_bytes() const { return slabs > 1 ? 0 : 3 * taps_bytes(); }
  int64_t shared_bytes() const;
};

// For 3x3 kernels.
FloatPlan plan_forward_float(const ConvProblem& p);

}  // namespace rk::cuda
