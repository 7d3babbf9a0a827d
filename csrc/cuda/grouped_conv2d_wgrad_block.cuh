#pragma once
#include "grouped_conv2d_rows.cuh"
#include "grouped_conv2d_wgrad_plan.h"

// What a block of the weights' gradient on tensor cores copies, and where it lies.
namespace rk::cuda {

struct WgradArguments {
  const void *x, *dz;
  float* partials;  // [split][output][input of the group][3][3]
  RowWalk walk;
  int tiles, block_tiles;
};

// Runs the variant that the plan asks for.
template <class T>
void launch_wgrad(const WgradPlan& plan, const WgradArguments& arguments, int stride, void* stream);

// A variant of the kernel.
template <class T_, Width kWidth_, int kStride_, bool kPadded_>
struct WgradTraits {
  using T = T_;
  static constexpr Width kWidth = kWidth_;
  static constexpr int kStride = kStride_, kTaps = 3, kThreads = wgrad_threads(kWidth);
  static constexpr bool kPadded = kPadded_;
  static constexpr int kHalves = warp_inputs(kWidth) / kWarpInputs;  // warps of a slice of outputs

  static constexpr int kStages = staged_rows(kStride), kLines = wgrad_lines(kStride);
  // Rows of dz in registers, and the rows of x after which these have taken all turns.
  static constexpr int kOpen = kStride == 1 ? 3 : 2, kPeriod = kOpen * kStride;
  // What registers allow without spilling.
  static constexpr int kBlocksPerMultiprocessor = kHalves == 1 ? 3 : kPadded ? 1 : 2;
};

template <class Traits>
struct WgradBlock : RowBlock<Traits> {
  using Rows = RowBlock<Traits>;
  using Rows::a, Rows::first_output, Rows::first_row, Rows::row_step, Rows::stages;
  static constexpr int kStride = Traits::kStride;
  static constexpr int kSharedBytes = Rows::kRowsBytes + Traits::kLines * kLineBytes + 2 * 4 * kPositions;

  static_assert(kSharedBytes == wgrad_shared_bytes(kStride));

  const WgradArguments& arguments;
  unsigned char* const lines = stages + Rows::kRowsBytes;
  unsigned char* const position_table = lines + Traits::kLines * kLineBytes;
  unsigned char* const beside_table = position_table + 4 * kPositions;
  UnitCopy out;
  int out_place;  // bytes from a line to the first unit that this thread moves

  __device__ __forceinline__ WgradBlock(const WgradArguments& all, int tile)
      : Rows(all.walk, tile), arguments(all) {
    out = unit_copy<Traits::kThreads, Traits::kPadded>(first_output, a.groups.out, a.true_groups.out,
                                                       kBlockChannels / a.groups.out, a.unit, a.c_out);
    out_place = out.shared + out.first * kPitch;
    this->fill_position_table(position_table, a.oh, a.out_pixel);
    fill_beside_table();
    // What nothing is copied to is read, for results that are not written.
    if (Traits::kPadded || first_output + kBlockChannels > a.c_out)
      this->clear(lines, Traits::kLines * kLineBytes);
  }

  __device__ __forceinline__ unsigned char* line(int row) const {
    return lines + row % Traits::kLines * kLineBytes;
  }

  // Queues this thread's copies of a row of dz to its line.
  __device__ __forceinline__ void copy_line(int row) const {
    if (!out.any) return;
    const int before = (first_row + row * row_step) * a.ow * a.out_pixel;
    const char* const source = static_cast<const char*>(arguments.dz) + out.global;
    unsigned char* const to = line(row) + out_place;
    this->template for_pixels<kPositions>(out, [&](int i) {
      const int position = load_shared<int>(position_table + 4 * (out.first + i));
      this->copy_unit(to + i * kPitch, source + int64_t{position + before} * this->unit(), position >= 0);
    });
  }

  // Whether the row of dz that meets an input row in tap row 0 is one of the tile. That its number is below
  // `rows` would ask for another register.
  __device__ __forceinline__ bool begins_line(int input_row) const {
    return input_row < this->input_rows + kStride - 3;
  }

  // Queues this thread's copies of an input row and of the row of dz that it is the first to meet.
  __device__ __forceinline__ void copy(int input_row) const {
    if (input_row >= this->input_rows) return;
    this->copy_row(arguments.x, input_row, this->stage(input_row));
    if (input_row % kStride == 0 && begins_line(input_row)) copy_line(input_row / kStride);
  }

  // Bytes from a stage to the column that a place of dz meets: its own, or zeros where it is none. Of a
  // position behind the last image its own is staged as zeros too.
  __device__ __forceinline__ void fill_beside_table() const {
    const int position = this->thread, last = a.positions - 1;
    if (position >= kPositions) return;
    const int column =
        position <= last ? this->column_of(position) : this->column_of(last) + this->frame() + 1;
    store_shared(beside_table + 4 * position, column * kPitch);
  }

  // Whether tap row kh of an input row meets a row of dz. A product with a row that is none, or of padding,
  // is left out: zero times what is not finite would be NaN.
  __device__ __forceinline__ bool meets(int input_row, int kh) const {
    const int ih = this->image_row(input_row);
    return input_row >= kh && begins_line(input_row - kh) && ih >= 0 && ih < a.h;
  }
};

}  // namespace rk::cuda
