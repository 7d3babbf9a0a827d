#pragma once
#include "grouped_conv2d_plan.h"
#include "platform.h"

// What a block of the tensor-core convolution copies, and where it lies.
//
// A block owns 64 output channels of up to 32 positions, output pixels consecutive over images and columns,
// and walks down its output rows. Each input row is copied to shared memory once; between positions of two
// images lie columns that, as all outside an image, are copied as zeros.
namespace rk::cuda {

struct ForwardArguments {
  const void* x;
  const uint32_t* packed;
  void* y;
  const float *scale, *shift;  // null: 1 and 0
  float2* partials;            // of the statistics: (mean, M2) for each tile and channel
  float* counts;               // values that a channel has in each tile
  int n, h, w, c_in, oh, ow, c_out;
  int padding_h, padding_w, dilation_h, dilation_w;
  GroupChannels groups, true_groups;  // as computed, as in the tensors
  int group_count, unit;
  int in_pixel, out_pixel;  // units from a pixel to the next, of x and y
  int positions, rows, row_blocks;
  Activation activation;
};

// Runs the variant that the plan asks for, with statistics where there are partials.
template <class T>
void launch_forward(const ForwardPlan& plan, const ForwardArguments& arguments, int stride, void* stream);

// A variant of the kernel. Padded: groups may lie apart in shared memory, and only then is the dilation read.
template <class T_, Width kWidth_, int kStride_, bool kPadded_, bool kStats_>
struct ForwardTraits {
  using T = T_;
  static constexpr Width kWidth = kWidth_;
  static constexpr int kStride = kStride_;
  static constexpr bool kPadded = kPadded_, kStats = kStats_;

  static constexpr int kWords = weight_registers(kWidth), kSteps = warp_inputs(kWidth) / 16;
  static constexpr int kStages = staged_rows(kStride), kColumns = kStride * staged_columns(kStride);
  // Output rows in flight, and the input rows after which their accumulators have taken all turns.
  static constexpr int kOpen = kStride == 1 ? 3 : 2, kPeriod = kOpen * kStride;
  // What registers allow without spilling.
  static constexpr int kBlocksPerMultiprocessor = kWidth == Width::kPaired                            ? 4
                                                  : kWidth == Width::kTwoSteps && (kPadded || kStats) ? 2
                                                                                                      : 3;
};

// One thread's part in moving pixels: the unit that it moves, of which pixels.
struct UnitCopy {
  int shared, global;  // bytes from the begin of a pixel
  int first, step;     // pixels
  bool any;
};

// Of a block's channels from `first` on; padded, they are groups of `channels`, `padded` apart in shared
// memory.
template <bool kPadded>
__device__ __forceinline__ UnitCopy unit_copy(int first, int padded, int channels, int groups, int unit,
                                              int all) {
  const int thread = thread_index();
  if constexpr (!kPadded) {
    const int offset = thread % 8 * 16;
    return {offset, 2 * first + offset, thread / 8, kBlockThreads / 8, first + offset / 2 < all};
  } else {
    const int units = 2 * channels / unit, in_pixel = groups * units, mine = thread % in_pixel;
    const int offset = mine % units * unit, group = mine / units,
              channel = (first / padded + group) * channels;
    const int pixels = kBlockThreads / in_pixel;  // of a turn; the threads left over rest
    return {2 * padded * group + offset, 2 * channel + offset, thread / in_pixel, pixels,
            thread < pixels * in_pixel && channel < all};
  }
}

template <class Traits>
struct ForwardBlock {
  static constexpr int kStride = Traits::kStride;

  const ForwardArguments& a;
  const int thread = static_cast<int>(thread_index());
  const int first_output = static_cast<int>(block_index_y()) * kBlockChannels;
  const int first_input = a.groups.first_input(first_output);

  // Of the first position: its image and column.
  const int first_position = static_cast<int>(block_index_x()) / a.row_blocks * a.positions;
  const int first_image = first_position / a.ow, first_column = first_position % a.ow;
  // Rows that are dilation_h apart are a problem of their own: a block's rows are of one such phase.
  const int row_block = static_cast<int>(block_index_x()) % a.row_blocks;
  const int row_step = Traits::kPadded ? a.dilation_h : 1;
  const int first_row = row_block % row_step + row_block / row_step * a.rows * row_step;
  const int rows_left = (a.oh - first_row + row_step - 1) / row_step;
  const int rows = rows_left < a.rows ? rows_left : a.rows;
  const int input_rows = rows > 0 ? kStride * (rows - 1) + 3 : 0;

  unsigned char* const stages = shared_memory();
  unsigned char* const lines = stages + Traits::kStages * stage_bytes(kStride);
  // Units from the begin of the tensor to the pixel in the image's row 0; -1: zeros, or no output.
  unsigned char* const column_table = lines + 2 * kLineBytes;
  unsigned char* const position_table = column_table + 4 * Traits::kColumns;
  UnitCopy in, out;
  // Of the first unit that this thread moves: where in a stage and in a line buffer, and in pixel 0.
  int in_place, out_place;
  const char* source;
  char* target;

  __device__ __forceinline__ explicit ForwardBlock(const ForwardArguments& arguments) : a(arguments) {
    const int groups = kBlockChannels / a.groups.out;
    in = unit_copy<Traits::kPadded>(first_input, a.groups.in, a.true_groups.in, groups, a.unit, a.c_in);
    out = unit_copy<Traits::kPadded>(first_output, a.groups.out, a.true_groups.out, groups, a.unit, a.c_out);
    in_place = in.shared + in.first * kPitch, out_place = out.shared + out.first * kPitch;
    source = static_cast<const char*>(a.x) + in.global, target = static_cast<char*>(a.y) + out.global;
    fill_tables();
    clear_stages();
  }

  __device__ __forceinline__ int dilation_w() const { return Traits::kPadded ? a.dilation_w : 1; }
  // Columns between two images, and from the column of an output to that of its last tap.
  __device__ __forceinline__ int frame() const { return kStride == 1 ? 2 * dilation_w() : 1; }

  // Bytes from the column of an output to that of a tap.
  __device__ __forceinline__ int tap_offset(int kw) const {
    return kStride == 1 ? kw * dilation_w() * kPitch : kw % 2 * plane_bytes(kStride) + kw / 2 * kPitch;
  }

  // How many images lie between the first position and the block's column `i`; `i` becomes the column of an
  // output.
  __device__ __forceinline__ int images_before(int& i, int frame) const {
    const int past = i - (a.ow - first_column + frame), width = a.ow + frame;
    i = past < 0 ? i + first_column : past % width;
    return past < 0 ? 0 : 1 + past / width;
  }

  __device__ __forceinline__ bool is_output(int position) const {
    return position < a.positions && first_position + position < a.n * a.ow;
  }

  __device__ __forceinline__ int column_of(int position) const {
    int column = position;
    return position + frame() * images_before(column, 0);
  }

  __device__ __forceinline__ void fill_tables() {
    const int last = column_of(a.positions - 1) + frame();
    for (int i = thread; i < Traits::kColumns; i += kBlockThreads) {
      const int plane = i / staged_columns(kStride), place = i % staged_columns(kStride);
      int column = place;
      const int image = first_image + images_before(column, frame());
      const int iw = kStride * column + plane - a.padding_w;
      const bool inside = place <= last && image < a.n && iw >= 0 && iw < a.w;
      store_shared(column_table + 4 * i, inside ? (image * a.h * a.w + iw) * a.in_pixel : -1);
    }
    if (thread < kPositions) {
      int column = thread;
      const int image = first_image + images_before(column, 0);
      store_shared(position_table + 4 * thread,
                   is_output(thread) ? (image * a.oh * a.ow + column) * a.out_pixel : -1);
    }
  }

  // What nothing is copied to has weights of zero, which must not meet a NaN.
  __device__ __forceinline__ void clear_stages() {
    if (!Traits::kPadded && first_input + kBlockChannels <= a.c_in) return;
    for (int i = 16 * thread; i < Traits::kStages * stage_bytes(kStride); i += 16 * kBlockThreads)
      store_shared(stages + i, uint4{0, 0, 0, 0});
  }

  __device__ __forceinline__ unsigned char* stage(int input_row) const {
    return stages + input_row % Traits::kStages * stage_bytes(kStride);
  }

  __device__ __forceinline__ unsigned char* line(int row) const { return lines + row % 2 * kLineBytes; }

  __device__ __forceinline__ int unit() const { return Traits::kPadded ? a.unit : 16; }

  // body(i) for the pixels of [0, kCount) that this thread moves, counted from its first.
  template <int kCount, class Body>
  __device__ __forceinline__ static void for_pixels(const UnitCopy& copy, const Body& body) {
    if constexpr (Traits::kPadded) {
#pragma unroll 1
      for (int i = 0; copy.first + i < kCount; i += copy.step) body(i);
    } else {
      constexpr int kStep = kBlockThreads / 8;
      static_assert(kCount % kStep == 0);
#pragma unroll
      for (int i = 0; i < kCount; i += kStep) body(i);
    }
  }

  __device__ __forceinline__ void copy_unit(unsigned char* shared, const char* global, bool valid) const {
    if (!Traits::kPadded || a.unit == 16)
      cp_async<16>(shared, global, valid);
    else if (a.unit == 8)
      cp_async<8>(shared, global, valid);
    else
      cp_async<4>(shared, global, valid);
  }

  // Queues this thread's copies of an input row.
  __device__ __forceinline__ void copy_row(int input_row) const {
    if (!in.any) return;
    const int ih = first_row * kStride - a.padding_h + input_row * row_step;
    const bool inside = ih >= 0 && ih < a.h;
    const int before = ih * a.w * a.in_pixel;
    unsigned char* const target = stage(input_row) + in_place;
    for_pixels<Traits::kColumns>(in, [&](int i) {
      const int column = load_shared<int>(column_table + 4 * (in.first + i));
      // Where it is not valid, it is a place that is not read.
      copy_unit(target + i * kPitch, source + int64_t{column + before} * unit(), column >= 0 && inside);
    });
  }

  __device__ __forceinline__ void store_unit(char* global, const unsigned char* shared) const {
    if (!Traits::kPadded || a.unit == 16)
      store_global(global, load_shared<uint4>(shared));
    else if (a.unit == 8)
      store_global(global, load_shared<uint2>(shared));
    else
      store_global(global, load_shared<uint32_t>(shared));
  }

  // Writes an output row from its line buffer.
  __device__ __forceinline__ void store_line(int row) const {
    if (!out.any) return;
    const int before = (first_row + row * row_step) * a.ow * a.out_pixel;
    const unsigned char* const from = line(row) + out_place;
    for_pixels<kPositions>(out, [&](int i) {
      const int position = load_shared<int>(position_table + 4 * (out.first + i));
      if (position >= 0) store_unit(target + int64_t{position + before} * unit(), from + i * kPitch);
    });
  }
};

}  // namespace rk::cuda
