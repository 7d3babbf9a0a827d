#pragma once
#include "grouped_conv2d_plan.h"
#include "platform.h"

// How the tensor-core convolutions walk down images, and how the rows that they read come to shared memory.
//
// A block owns 64 output channels of up to 32 positions, pixels of a row consecutive over images and columns,
// and walks down its rows. Each input row is copied to shared memory once; between positions of two images
// lie columns that, as all outside an image, are copied as zeros.
namespace rk::cuda {

struct RowWalk {
  int n, h, w, c_in;  // of the input
  int oh, ow, c_out;  // rows and columns of positions, channels of the output
  int padding_h, padding_w, dilation_h, dilation_w;
  GroupChannels groups, true_groups;  // as computed, as in the tensors
  int group_count, unit;
  int in_pixel, out_pixel;  // units from a pixel to the next, of input and output
  int positions, rows, row_blocks;
};

inline RowWalk row_walk(const ConvProblem& p, const ForwardPlan& plan) {
  const auto narrow = [](int64_t value) { return static_cast<int>(value); };
  RowWalk a{};
  a.n = narrow(p.n), a.h = narrow(p.h), a.w = narrow(p.w), a.c_in = narrow(p.c_in);
  a.oh = narrow(p.oh), a.ow = narrow(p.ow), a.c_out = narrow(p.c_out);
  a.padding_h = narrow(p.padding[0]), a.padding_w = narrow(p.padding[1]);
  a.dilation_h = narrow(p.dilation[0]), a.dilation_w = narrow(p.dilation[1]);
  a.groups = plan.groups, a.true_groups = {narrow(p.in_per_group()), narrow(p.out_per_group())};
  a.group_count = narrow(p.groups), a.unit = plan.unit;
  a.in_pixel = narrow(2 * p.c_in / plan.unit), a.out_pixel = narrow(2 * p.c_out / plan.unit);
  a.positions = plan.positions, a.rows = plan.rows, a.row_blocks = plan.row_blocks;
  return a;
}

// One thread's part in moving pixels: the unit that it moves, of which pixels.
struct UnitCopy {
  int shared, global;  // bytes from the begin of a pixel
  int first, step;     // pixels
  bool any;
};

// Of a block's channels from `first` on; padded, they are groups of `channels`, `padded` apart in shared
// memory.
template <int kThreads, bool kPadded>
__device__ __forceinline__ UnitCopy unit_copy(int first, int padded, int channels, int groups, int unit,
                                              int all) {
  const int thread = thread_index();
  if constexpr (!kPadded) {
    const int offset = thread % 8 * 16;
    return {offset, 2 * first + offset, thread / 8, kThreads / 8, first + offset / 2 < all};
  } else {
    const int units = 2 * channels / unit, in_pixel = groups * units, mine = thread % in_pixel;
    const int offset = mine % units * unit, group = mine / units,
              channel = (first / padded + group) * channels;
    const int pixels = kThreads / in_pixel;  // of a turn; the threads left over rest
    return {2 * padded * group + offset, 2 * channel + offset, thread / in_pixel, pixels,
            thread < pixels * in_pixel && channel < all};
  }
}

// Traits: kTaps, columns (at stride 1, dilated) that a position reads; kStride from a position's to the next;
// kPadded: groups may lie apart in shared memory, and only then is the dilation read; kStages; kThreads.
template <class Traits>
struct RowBlock {
  static constexpr int kStride = Traits::kStride, kThreads = Traits::kThreads;
  static constexpr int kColumns = kStride * staged_columns(kStride);
  static constexpr int kStagesBytes = Traits::kStages * stage_bytes(kStride);
  // The stages, then the column table: units from the begin of the tensor to the pixel in its image's row 0,
  // or -1: zeros.
  static constexpr int kRowsBytes = kStagesBytes + 4 * kColumns;

  const RowWalk& a;
  const int thread = static_cast<int>(thread_index());
  const int first_output = static_cast<int>(block_index_y()) * kBlockChannels;
  const int first_input = a.groups.first_input(first_output);

  // Of the first position: its image and column.
  const int first_position, first_image = first_position / a.ow, first_column = first_position % a.ow;
  // Rows that are dilation_h apart are a problem of their own: a block's rows are of one such phase.
  const int row_step = Traits::kPadded ? a.dilation_h : 1;
  const int first_row;
  const int rows_left = (a.oh - first_row + row_step - 1) / row_step;
  const int rows = rows_left < a.rows ? rows_left : a.rows;
  const int input_rows = rows > 0 ? kStride * (rows - 1) + Traits::kTaps : 0;

  unsigned char* const stages = shared_memory();
  unsigned char* const column_table = stages + kStagesBytes;
  UnitCopy in;
  int in_place;  // bytes from a stage to the first unit that this thread moves

  // The threads must meet at a barrier before the first copy_row.
  __device__ __forceinline__ RowBlock(const RowWalk& walk, int tile)
      : a(walk),
        first_position(tile / walk.row_blocks * walk.positions),
        first_row(tile % walk.row_blocks % row_step +
                  tile % walk.row_blocks / row_step * walk.rows * row_step) {
    in = unit_copy<kThreads, Traits::kPadded>(first_input, a.groups.in, a.true_groups.in,
                                              kBlockChannels / a.groups.out, a.unit, a.c_in);
    in_place = in.shared + in.first * kPitch;
    fill_column_table();
    if (Traits::kPadded || first_input + kBlockChannels > a.c_in) clear(stages, kStagesBytes);
  }

  // What nothing is copied to has weights of zero, which must not meet a NaN.
  __device__ __forceinline__ void clear(unsigned char* shared, int bytes) const {
    for (int i = 16 * thread; i < bytes; i += 16 * kThreads) store_shared(shared + i, uint4{0, 0, 0, 0});
  }

  __device__ __forceinline__ int dilation_w() const { return Traits::kPadded ? a.dilation_w : 1; }
  // Columns between two images, and from the first column that a position reads to the last, in a plane.
  __device__ __forceinline__ int frame() const {
    return kStride == 1 ? (Traits::kTaps - 1) * dilation_w() : 1;
  }

  // Bytes from the column of a position to that of a tap.
  __device__ __forceinline__ int tap_offset(int kw) const {
    return kStride == 1 ? kw * dilation_w() * kPitch : kw % 2 * plane_bytes(kStride) + kw / 2 * kPitch;
  }

  // How many images lie between the first position and the block's column `i`; `i` becomes the column of a
  // position.
  __device__ __forceinline__ int images_before(int& i, int frame) const {
    const int past = i - (a.ow - first_column + frame), width = a.ow + frame;
    i = past < 0 ? i + first_column : past % width;
    return past < 0 ? 0 : 1 + past / width;
  }

  __device__ __forceinline__ bool is_position(int position) const {
    return position < a.positions && first_position + position < a.n * a.ow;
  }

  __device__ __forceinline__ int column_of(int position) const {
    int column = position;
    return position + frame() * images_before(column, 0);
  }

  __device__ __forceinline__ void fill_column_table() const {
    const int last = column_of(a.positions - 1) + frame();
    const auto fill = [&](int i) {
      const int plane = i / staged_columns(kStride), place = i % staged_columns(kStride);
      int column = place;
      const int image = first_image + images_before(column, frame());
      const int iw = kStride * column + plane - a.padding_w;
      const bool inside = place <= last && image < a.n && iw >= 0 && iw < a.w;
      store_shared(column_table + 4 * i, inside ? (image * a.h * a.w + iw) * a.in_pixel : -1);
    };
    // A block that walks several tiles would keep registers for what a loop may need again.
    if constexpr (kThreads > kBlockThreads) {
      if (thread < kColumns) fill(thread);
    } else {
      for (int i = thread; i < kColumns; i += kThreads) fill(i);
    }
  }

  // pixels[i]: units from the begin of an image of height x width to its pixel of position i in row 0; -1:
  // none.
  __device__ __forceinline__ void fill_position_table(unsigned char* pixels, int height, int pixel) const {
    if (thread >= kPositions) return;
    int column = thread;
    const int image = first_image + images_before(column, 0);
    store_shared(pixels + 4 * thread, is_position(thread) ? (image * height * a.ow + column) * pixel : -1);
  }

  __device__ __forceinline__ unsigned char* stage(int input_row) const {
    return stages + input_row % Traits::kStages * stage_bytes(kStride);
  }

  __device__ __forceinline__ int unit() const { return Traits::kPadded ? a.unit : 16; }

  // body(i) for the pixels of [0, kCount) that this thread moves, counted from its first.
  template <int kCount, class Body>
  __device__ __forceinline__ static void for_pixels(const UnitCopy& copy, const Body& body) {
    if constexpr (Traits::kPadded) {
#pragma unroll 1
      for (int i = 0; copy.first + i < kCount; i += copy.step) body(i);
    } else {
      constexpr int kStep = kThreads / 8;
#pragma unroll
      for (int i = 0; i < kCount; i += kStep)
        if (i + kStep <= kCount || copy.first + i < kCount) body(i);
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

  __device__ __forceinline__ void store_unit(char* global, const unsigned char* shared) const {
    if (!Traits::kPadded || a.unit == 16)
      store_global(global, load_shared<uint4>(shared));
    else if (a.unit == 8)
      store_global(global, load_shared<uint2>(shared));
    else
      store_global(global, load_shared<uint32_t>(shared));
  }

  // The image's row that is the block's input row, which may lie outside.
  __device__ __forceinline__ int image_row(int input_row) const {
    return first_row * kStride - a.padding_h + input_row * row_step;
  }

  // Queues this thread's copies of an input row of x to a stage.
  __device__ __forceinline__ void copy_row(const void* x, int input_row, unsigned char* stage) const {
    if (!in.any) return;
    const char* const source = static_cast<const char*>(x) + in.global;
    const int ih = image_row(input_row);
    const bool inside = ih >= 0 && ih < a.h;
    const int before = ih * a.w * a.in_pixel;
    for_pixels<kColumns>(in, [&](int i) {
      const int column = load_shared<int>(column_table + 4 * (in.first + i));
      // Where it is not valid, it is a place that is not read.
      copy_unit(stage + in_place + i * kPitch, source + int64_t{column + before} * unit(),
                column >= 0 && inside);
    });
  }
};

}  // namespace rk::cuda
