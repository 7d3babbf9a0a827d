#pragma once
#include <type_traits>

#include "grouped_conv2d_input.cuh"

// What a block of the tensor-core forward, or of its like, dgrad at stride 1, copies, and where it lies.
namespace rk::cuda {

struct ForwardArguments {
  InputArguments input;
  const uint32_t* packed;
  void* y;
  const float *scale, *shift;  // null: 1 and 0
  float2* partials;            // of the statistics: (mean, M2) for each tile and channel
  float* counts;               // values that a channel has in each tile
  RowWalk walk;
  Activation activation;
};

// Runs the variant that the plan asks for: with statistics where there are partials, with a prologue where
// the input has one, not with both.
template <class T>
void launch_forward(const ForwardPlan& plan, const ForwardArguments& arguments, int stride, void* stream);

// A variant of the kernel.
enum class Around : int { kNothing, kStats, kPrologue };

template <class T_, Width kWidth_, int kStride_, bool kPadded_, Around kAround>
struct ForwardTraits {
  using T = T_;
  static constexpr Width kWidth = kWidth_;
  static constexpr int kStride = kStride_, kTaps = 3, kThreads = kBlockThreads;
  static constexpr bool kPadded = kPadded_, kStats = kAround == Around::kStats,
                        kPrologue = kAround == Around::kPrologue, kHasEpilogue = kAround == Around::kNothing;

  static constexpr int kWords = weight_registers(kWidth), kSteps = warp_inputs(kWidth) / 16;
  static constexpr int kStages = staged_rows(kStride);
  // Output rows in flight, and the input rows after which their accumulators have taken all turns.
  static constexpr int kOpen = kStride == 1 ? 3 : 2, kPeriod = kOpen * kStride;
  // What registers allow without spilling.
  static constexpr int kBlocksPerMultiprocessor = kAround == Around::kPrologue
                                                      ? kWidth == Width::kTwoSteps ? 2 : 3
                                                  : kWidth == Width::kPaired                          ? 4
                                                  : kWidth == Width::kTwoSteps && (kPadded || kStats) ? 2
                                                                                                      : 3;
};

template <class Traits>
struct ForwardBlock : RowBlock<Traits> {
  using Rows = RowBlock<Traits>;
  using Input = std::conditional_t<Traits::kPrologue, PrologueInput<Traits>, PlainInput<Traits>>;
  using Rows::a, Rows::first_output, Rows::first_row, Rows::row_step, Rows::stages;
  static constexpr int kInputPlace = forward_shared_bytes(Traits::kStride);
  static_assert(kInputPlace == Rows::kRowsBytes + 2 * kLineBytes + 4 * kPositions);
  static constexpr int kSharedBytes = kInputPlace + Input::kSharedBytes;

  unsigned char* const lines = stages + Rows::kRowsBytes;
  unsigned char* const position_table = lines + 2 * kLineBytes;
  UnitCopy out;

  __device__ __forceinline__ explicit ForwardBlock(const RowWalk& walk)
      : Rows(walk, static_cast<int>(block_index_x())) {
    out = unit_copy<Traits::kThreads, Traits::kPadded>(first_output, a.groups.out, a.true_groups.out,
                                                       kBlockChannels / a.groups.out, a.unit, a.c_out);
    this->fill_position_table(position_table, a.oh, a.out_pixel);
  }

  __device__ __forceinline__ unsigned char* line(int row) const { return lines + row % 2 * kLineBytes; }

  // Writes an output row from its line buffer.
  __device__ __forceinline__ void store_line(void* y, int row) const {
    if (!out.any) return;
    const int before = (first_row + row * row_step) * a.ow * a.out_pixel;
    const unsigned char* const from = line(row) + out.shared + out.first * kPitch;
    char* const target = static_cast<char*>(y) + out.global;
    this->template for_pixels<kPositions>(out, [&](int i) {
      const int position = load_shared<int>(position_table + 4 * (out.first + i));
      if (position >= 0)
        this->store_unit(target + int64_t{position + before} * this->unit(), from + i * kPitch);
    });
  }
};

}  // namespace rk::cuda
