#pragma once
#include <type_traits>

#include "grouped_conv2d_dgrad_strided.h"
#include "grouped_conv2d_warp.cuh"

// dgrad of the grouped 3x3 convolution at stride 2 on tensor cores, channels last, without zeros between the
// pixels of dy. A row of dy is read once and all nine taps are used once: tap row 0 finishes the second row
// of the pair before, 1 makes the first row of its own pair, 2 begins the second.
namespace rk::cuda {

template <class T_, Width kWidth_, bool kPadded_, bool kPrologue>
struct StridedDgradTraits {
  using T = T_;
  static constexpr Width kWidth = kWidth_;
  static constexpr int kStride = 1, kTaps = 2, kThreads = kBlockThreads;
  static constexpr bool kPadded = kPadded_;
  // One fewer than in forward: a row makes four of dx.
  static constexpr int kStages = 3;
  static constexpr int kWords = weight_registers(kWidth), kSteps = warp_inputs(kWidth) / 16;
  // What registers allow without spilling.
  static constexpr int kBlocksPerMultiprocessor = kWidth == Width::kTwoSteps ? 2 : 3;

  using Input =
      std::conditional_t<kPrologue, PrologueInput<StridedDgradTraits>, PlainInput<StridedDgradTraits>>;
};

// A line holds a row of dx: the first columns of all pairs, then the second.
inline constexpr int kPairLineBytes = 2 * kLineBytes;

template <class Traits>
struct StridedDgradBlock : RowBlock<Traits> {
  using Rows = RowBlock<Traits>;
  using Rows::a, Rows::first_image, Rows::first_output, Rows::first_row, Rows::stages, Rows::thread;
  static constexpr int kInputPlace = Rows::kRowsBytes + 2 * kPairLineBytes + 8 * kPositions;
  static constexpr int kSharedBytes = kInputPlace + Traits::Input::kSharedBytes;

  const StridedDgradArguments& arguments;
  unsigned char* const lines = stages + Rows::kRowsBytes;
  // Units from the begin of dx to the pixel in its image's row 0, or -1: none.
  unsigned char* const pixel_table = lines + 2 * kPairLineBytes;
  UnitCopy out;

  __device__ __forceinline__ explicit StridedDgradBlock(const StridedDgradArguments& all)
      : Rows(all.walk, static_cast<int>(block_index_x())), arguments(all) {
    out = unit_copy<Traits::kThreads, Traits::kPadded>(first_output, a.groups.out, a.true_groups.out,
                                                       kBlockChannels / a.groups.out, a.unit, a.c_out);
    fill_pixel_table();
  }

  __device__ __forceinline__ void fill_pixel_table() const {
    if (thread >= 2 * kPositions) return;
    const int position = thread % kPositions;
    int pair = position;
    const int image = first_image + this->images_before(pair, 0);
    const int column = 2 * pair + arguments.first_column + thread / kPositions;
    const bool inside = this->is_position(position) && column >= 0 && column < arguments.w;
    store_shared(pixel_table + 4 * thread,
                 inside ? (image * arguments.h * arguments.w + column) * a.out_pixel : -1);
  }

  __device__ __forceinline__ unsigned char* line(int parity) const { return lines + parity * kPairLineBytes; }

  // Writes the first (0) or second (1) row of a pair from its line.
  __device__ __forceinline__ void store_line(int pair, int parity) const {
    const int row = 2 * (first_row + pair) + arguments.first_row + parity;
    if (!out.any || pair < 0 || pair >= this->rows || row < 0 || row >= arguments.h) return;
    const int before = row * arguments.w * a.out_pixel;
    const unsigned char* const from = line(parity) + out.shared + out.first * kPitch;
    char* const target = static_cast<char*>(arguments.dx) + out.global;
    this->template for_pixels<2 * kPositions>(out, [&](int i) {
      const int pixel = load_shared<int>(pixel_table + 4 * (out.first + i));
      if (pixel >= 0) this->store_unit(target + int64_t{pixel + before} * this->unit(), from + i * kPitch);
    });
  }
};

template <class Traits>
struct StridedDgradWarp : ConvWarp<Traits> {
  using T = typename Traits::T;
  using Warp = ConvWarp<Traits>;
  using Warp::block, Warp::fragment, Warp::line_place, Warp::pair, Warp::weights;
  static constexpr bool kIsPaired = Traits::kWidth == Width::kPaired;

  // What the products of an m-tile take of a staged row: with kPaired both columns of each n-tile's 8 inputs,
  // else the inputs at each column; then, with kPaired, all inputs at the first.
  struct Operands {
    uint32_t two[2][Traits::kSteps][4], first[4];
  };
  // Of an m-tile of a row: of the first and the second column of each pair.
  using Columns = TileSums[2];

  __device__ __forceinline__ StridedDgradWarp(const RowBlock<Traits>& of, const uint32_t* packed)
      : Warp(of, packed) {}

  __device__ __forceinline__ void load(const unsigned char* stage, int tile, Operands& of) const {
    if constexpr (kIsPaired) {
      ldmatrix_x4(of.two[0][0], stage + pair[tile]);
      ldmatrix_x4(of.two[1][0], stage + pair[tile] + 16);
      ldmatrix_x4(of.first, stage + fragment[tile]);
    } else {
#pragma unroll
      for (int i = 0; i < 2 * Traits::kSteps; ++i) {
        const int column = i / Traits::kSteps, step = i % Traits::kSteps;
        ldmatrix_x4(of.two[column][step], stage + fragment[tile] + block.tap_offset(column) + 32 * step);
      }
    }
  }

  // Adds what tap row kh makes.
  __device__ __forceinline__ void multiply(int kh, const Operands& of, Columns& sums) const {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      if constexpr (kIsPaired) {
        const uint32_t* const w = weights + 6 * kh;
        mma_m16n8k8<T>(sums[0][n], of.first[2 * n], of.first[2 * n + 1], w[4 + n], sums[0][n]);
        mma_m16n8k16<T>(sums[1][n], of.two[n][0], w[2 * n], w[2 * n + 1], sums[1][n]);
      } else {
#pragma unroll
        for (int i = 0; i < 3 * Traits::kSteps; ++i) {
          const int tap = i / Traits::kSteps, step = i % Traits::kSteps;
          const uint32_t* const w = weights + 4 * (3 * Traits::kSteps * kh + i) + 2 * n;
          float (&sum)[4] = sums[tap == 2 ? 0 : 1][n];
          mma_m16n8k16<T>(sum, of.two[tap % 2][step], w[0], w[1], sum);
        }
      }
    }
  }

  __device__ __forceinline__ static void clear(Columns& sums) {
#pragma unroll
    for (int i = 0; i < 4; ++i) cuda::clear(sums[i / 2][i % 2]);
  }

  // Rounds an m-tile of a row into its line.
  __device__ __forceinline__ void write(unsigned char* line, int tile, const Columns& sums) const {
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const sum = sums[column][i / 2] + 2 * (i % 2);
        words[i] = pack<T>(sum[0], sum[1]);
      }
      stmatrix_x4(line + line_place + (column * kPositions + 16 * tile) * kPitch, words);
    }
  }
};

template <class Traits>
__global__ __launch_bounds__(
    Traits::kThreads,
    Traits::kBlocksPerMultiprocessor) void grouped_conv2d_dgrad_strided_kernel(const StridedDgradArguments
                                                                                   arguments) {
  using Block = StridedDgradBlock<Traits>;
  using Warp = StridedDgradWarp<Traits>;
  const Block block(arguments);
  const typename Traits::Input input(block, arguments.input, shared_memory() + Block::kInputPlace);
  const Warp warp(block, arguments.packed);
  typename Warp::Columns open[2];  // of the second row of the pair that a row begins, by m-tile
  Warp::clear(open[0]), Warp::clear(open[1]);
  sync_threads();
#pragma unroll
  for (int row = 0; row < Traits::kStages - 1; ++row) {
    if (row < block.input_rows) input.copy(row);
    cp_async_commit();
  }
  for (int row = 0; row < block.input_rows; ++row) {
    cp_async_wait<Traits::kStages - 2>();
    input.finish(row);
    // Behind it the row is there for all, its predecessor's stage is free, and the lines are written.
    sync_threads();
    if (row + Traits::kStages - 1 < block.input_rows) input.copy(row + Traits::kStages - 1);
    cp_async_commit();
    block.store_line(row - 2, 1), block.store_line(row - 1, 0);
    sync_threads();
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      typename Warp::Operands operands;
      warp.load(block.stage(row), tile, operands);
      warp.multiply(0, operands, open[tile]);
      warp.write(block.line(1), tile, open[tile]);
      typename Warp::Columns first;
      Warp::clear(first);
      warp.multiply(1, operands, first);
      warp.write(block.line(0), tile, first);
      Warp::clear(open[tile]);
      warp.multiply(2, operands, open[tile]);
    }
  }
  sync_threads();
  block.store_line(block.rows - 1, 1);
}

template <class T, Width kWidth, bool kPadded, bool kPrologue>
void run(const ForwardPlan& plan, const StridedDgradArguments& arguments, void* stream) {
  using Traits = StridedDgradTraits<T, kWidth, kPadded, kPrologue>;
  const Grid grid{static_cast<unsigned>(plan.tiles()), static_cast<unsigned>(plan.channel_blocks),
                  Traits::kThreads, StridedDgradBlock<Traits>::kSharedBytes};
  launch<grouped_conv2d_dgrad_strided_kernel<Traits>>(grid, stream, arguments);
}

template <class T, bool kPrologue>
void run_width(const ForwardPlan& plan, const StridedDgradArguments& arguments, void* stream) {
  const auto run_as =
      plan.width == Width::kPaired ? run<T, Width::kPaired, false, kPrologue>
      : plan.width == Width::kOneStep
          ? plan.padded ? run<T, Width::kOneStep, true, kPrologue> : run<T, Width::kOneStep, false, kPrologue>
      : plan.padded ? run<T, Width::kTwoSteps, true, kPrologue>
                    : run<T, Width::kTwoSteps, false, kPrologue>;
  run_as(plan, arguments, stream);
}

template <class T>
void launch_dgrad_strided(const ForwardPlan& plan, const StridedDgradArguments& arguments, void* stream) {
  const auto run_as = arguments.input.bn.z ? run_width<T, true> : run_width<T, false>;
  run_as(plan, arguments, stream);
}

}  // namespace rk::cuda
