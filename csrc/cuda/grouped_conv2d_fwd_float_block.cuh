#pragma once
#include "grouped_conv2d_fwd_float_plan.h"
#include "platform.h"

// What a block of the convolution in float copies, and where it lies.
//
// A block owns the output channels of its lanes and some runs of up to kRun positions of an output row, and
// walks down its output rows. Each input row is copied to shared memory once, in slots: the columns of the
// runs, side by side where runs of the same image meet.
namespace rk::cuda {

// Threads that copy the taps of one output.
inline constexpr int kTapThreads = 8;

struct FloatArguments {
  const float *x, *w;
  float* y;
  const float *scale, *shift;  // null: 1 and 0
  float2* partials;            // of the statistics: (mean, M2) for each tile and channel
  float* counts;               // values that a channel has in each tile
  int64_t w_stride[5], n;
  int h, w_in, c_in, oh, ow, c_out;
  FloatPlan plan;
  int unit;  // floats that one copy moves, 4 or 1
  Activation activation;
};

// A variant of the kernel: kRows and kColumns are the walk along each axis, kChunks is how many times 4
// inputs a group has, or 0: any number, with the weights in shared memory.
template <int kChunks_, int kRows_, int kColumns_, bool kStats_>
struct FloatTraits {
  static constexpr int kChunks = kChunks_, kRows = kRows_, kColumns = kColumns_;
  static constexpr bool kStats = kStats_, kWide = kChunks == 0;
  // A wide group may be cut into slabs of inputs, whose weights then come with each row.
  static constexpr bool kSlabs = kWide && kRows == kApart;
  static constexpr int kOutputs = float_outputs(kWide), kStages = float_stages(kWide);
  // Blocks of a multiprocessor, as far as registers go without spilling.
  static constexpr int kBlocks = kWide ? 3 : kChunks == 1 ? 5 - kStats : kStats || kRows > 1 ? 3 : 4;
  // Output rows in flight, and the columns of a run.
  static constexpr int kOpen = 2 / kRows + 1, kTaken = kColumns * (kRun - 1) + 3;
};

// An output channel of a group as computed.
struct FloatOutput {
  int channel;      // -1: none
  int first_input;  // of those that it reads
  int64_t weights;  // its weight at input 0 of the group and tap 0, if there is one

  __device__ __forceinline__ bool reads(int input, int true_in) const {
    return channel >= 0 && input >= first_input && input < first_input + true_in;
  }
};

// One thread's part in copying rows of inputs: some channels, of every `step`th slot.
struct FloatCopy {
  int shared, global;  // bytes from the begin of a slot, floats from that of a pixel
  int input;           // the first of them in the group
  int slot, step;
};

// Which output rows a block has, in the order of its walk.
struct FloatRows {
  int first, count;
};

// Strip `local` of a block, counted from that of its first run.
struct FloatStrip {
  int64_t image;
  int phase;
};

template <class Traits>
struct FloatBlock {
  const FloatArguments& a;
  const FloatPlan& plan = a.plan;
  const int thread = static_cast<int>(thread_index());
  const int lane = thread % plan.lanes, run = thread / plan.lanes;
  const int channel_block = static_cast<int>(block_index_x() % plan.channel_blocks);
  const unsigned tile = block_index_x() / plan.channel_blocks;
  const int first_group = channel_block / plan.splits * plan.groups;
  const int first_lane = channel_block % plan.splits * plan.group_lanes;
  // Of the first run: its strip, its number and its first position there.
  const int64_t first_run = int64_t{tile / plan.row_blocks} * plan.runs,
                first_strip = first_run / plan.strip_runs;
  const int first_of_strip = static_cast<int>(first_run - first_strip * plan.strip_runs);
  const int first_position = plan.run_begin(first_of_strip);
  const FloatStrip first = {first_strip / plan.across.phases,
                            static_cast<int>(first_strip % plan.across.phases)};
  const FloatRows rows = rows_of(static_cast<int>(tile % plan.row_blocks));
  const int64_t row_pitch = int64_t{a.w_in} * a.c_in;  // of the input, in floats

  unsigned char* const stages = shared_memory();
  unsigned char* const taps = stages + Traits::kStages * plan.stage_bytes();  // where they stay
  unsigned char* const slot_table =
      taps + plan.resident_bytes();  // floats to the slot's column in row 0, or -1

  FloatCopy copy;
  FloatOutput tap_outputs[2];  // whose taps this thread copies

  __device__ __forceinline__ explicit FloatBlock(const FloatArguments& arguments) : a(arguments) {
    fill_table();
    choose_copy();
    // What no copy reaches, columns outside of images and inputs beyond a group, stays zero.
    for (int i = 16 * thread; i < Traits::kStages * plan.stage_bytes(); i += 16 * kFloatThreads)
      store_shared(stages + i, float4{0, 0, 0, 0});
  }

  __device__ __forceinline__ FloatRows rows_of(int block) const {
    const int phases = plan.down.phases, first = block % phases + block / phases * plan.rows * phases;
    const int left = (a.oh - first + phases - 1) / phases;
    return {first, left < 0 ? 0 : left < plan.rows ? left : plan.rows};
  }

  // How many steps the walk has: input rows, one for each slab.
  __device__ __forceinline__ int steps() const {
    return rows.count == 0           ? 0
           : Traits::kRows == kApart ? 3 * plan.slabs * rows.count
                                     : Traits::kRows * (rows.count - 1) + 3;
  }
  __device__ __forceinline__ int slab_of(int step) const {
    return Traits::kSlabs ? step / 3 % plan.slabs : 0;
  }
  __device__ __forceinline__ int output_row(int step) const {
    if constexpr (Traits::kRows == kApart) return Traits::kSlabs ? step / 3 / plan.slabs : step / 3;
    return (step - 2) / Traits::kRows;
  }
  __device__ __forceinline__ int input_row(int step) const {
    const int row = Traits::kSlabs ? 3 * output_row(step) + step % 3 : step;
    return rows.first * plan.down.stride - plan.down.padding + plan.down.offset<Traits::kRows>(row);
  }
  // No row of zeros is copied or multiplied.
  __device__ __forceinline__ bool is_inside(int step) const {
    const int row = input_row(step);
    return row >= 0 && row < a.h;
  }

  __device__ __forceinline__ unsigned char* stage(int step) const {
    return stages + step % Traits::kStages * plan.stage_bytes();
  }
  // The weights that go with a step: one row of taps where they come with it, else all.
  __device__ __forceinline__ const unsigned char* taps_of(int step) const {
    return Traits::kSlabs && plan.slabs > 1 ? stage(step) + plan.inputs_bytes()
                                            : taps + (Traits::kSlabs ? step % 3 * plan.taps_bytes() : 0);
  }

  __device__ __forceinline__ FloatStrip strip(int local) const {
    const int phase = first.phase + local, images = phase / plan.across.phases;
    return {first.image + images, phase - images * plan.across.phases};
  }

  // Slots of a whole strip.
  __device__ __forceinline__ int strip_slots() const {
    return Traits::kColumns * plan.strip + 3 - Traits::kColumns;
  }

  __device__ __forceinline__ void fill_table() const {
    for (int i = thread; i < plan.slots; i += kFloatThreads) {
      const int slot = Traits::kColumns * first_position + i, local = slot / strip_slots();
      const FloatStrip at = strip(local);
      const int iw =
          at.phase - plan.across.padding + plan.across.offset<Traits::kColumns>(slot - local * strip_slots());
      const bool inside = at.image < a.n && iw >= 0 && iw < a.w_in;
      store_shared(slot_table + 8 * i, inside ? (at.image * a.h * a.w_in + iw) * a.c_in : int64_t{-1});
    }
  }

  __device__ __forceinline__ void choose_copy() {
    const int of_group = plan.copied_inputs() / a.unit, units = of_group * plan.groups;
    const int mine = thread % units, group = mine / of_group;
    copy.input = mine % of_group * a.unit;
    copy.shared = 16 * plan.chunks * group + 4 * copy.input;
    copy.global = (first_group + group) * plan.group_in + copy.input;
    copy.slot = thread / units, copy.step = kFloatThreads / units;
    // The threads left over, and those of groups past the last, rest.
    if (copy.slot >= copy.step || first_group + group >= plan.group_count) copy.slot = plan.slots;
    if constexpr (Traits::kWide) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int place = thread / kTapThreads + i * (kFloatThreads / kTapThreads);
        tap_outputs[i] = output_of(place % plan.lanes, place / plan.lanes);
      }
    }
  }

  // Output `i` of a lane.
  __device__ __forceinline__ FloatOutput output_of(int of_lane, int i) const {
    const int in_block = of_lane / plan.group_lanes, group = first_group + in_block;
    const int in_group = first_lane + of_lane - in_block * plan.group_lanes,
              output = in_group + i * plan.all_lanes;
    const int packed = output / plan.true_out, first_input = packed * plan.true_in;
    const bool any = i < Traits::kOutputs && group < plan.group_count && in_group < plan.all_lanes &&
                     output < plan.group_out;
    return {any ? group * plan.group_out + output : -1, first_input,
            (int64_t{group} * plan.pack + packed) * a.w_stride[0] +
                (output - packed * plan.true_out) * a.w_stride[1] - first_input * a.w_stride[2]};
  }

  // Queues copies of a row of taps for a slab of inputs: [chunk][kw][output][lane][4].
  __device__ __forceinline__ void copy_taps(unsigned char* target, int slab, int kh) const {
    const int inputs = 4 * plan.chunks, places = Traits::kOutputs * plan.lanes;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int place = thread / kTapThreads + i * (kFloatThreads / kTapThreads);
      if (place >= places) return;
      const FloatOutput& out = tap_outputs[i];
      const int64_t row = out.weights + slab * inputs * a.w_stride[2] + kh * a.w_stride[3];
#pragma unroll 1
      for (int j = thread % kTapThreads; j < 3 * inputs; j += kTapThreads) {
        const int input = j / 3, kw = j % 3;
        const bool any = out.reads(slab * inputs + input, plan.true_in);
        const int64_t from = any ? row + input * a.w_stride[2] + kw * a.w_stride[4] : 0;
        const int to = ((input / 4 * 3 + kw) * places + place) * 16 + input % 4 * 4;
        cp_async<4>(target + to, a.w + from, any);
      }
    }
  }

  // Queues this thread's copies for a step.
  __device__ __forceinline__ void copy_step(int step) const {
    if (!is_inside(step)) return;
    const int slab = slab_of(step), first_input = slab * 4 * plan.chunks;
    unsigned char* const target = stage(step);
    if (Traits::kSlabs && plan.slabs > 1) copy_taps(target + plan.inputs_bytes(), slab, step % 3);
    const bool any = !Traits::kSlabs || first_input + copy.input < plan.group_in;
    const float* const source = a.x + input_row(step) * row_pitch + copy.global + (any ? first_input : 0);
    for (int slot = copy.slot; slot < plan.slots; slot += copy.step) {
      const int64_t offset = load_shared<int64_t>(slot_table + 8 * slot);
      if (offset < 0) continue;
      unsigned char* const to = target + copy.shared + slot * plan.slot_bytes();
      if (a.unit == 4)
        cp_async<16>(to, source + offset, any);
      else
        cp_async<4>(to, source + offset, any);
    }
  }
};

}  // namespace rk::cuda
