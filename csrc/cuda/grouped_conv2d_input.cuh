#pragma once
#include "grouped_conv2d_rows.cuh"
#include "problem.h"

// What a convolution on tensor cores reads: x as it is, or the gradient of a convolution's output z, made of
// dy and z where they were staged.
namespace rk::cuda {

struct InputArguments {
  const void* x;  // with bn.z: dy
  BnBackward bn;  // z null: x is read as it is
  void* dz;       // null, or where what is made goes to, every element by one block
};

template <class Traits>
struct PlainInput {
  static constexpr int kSharedBytes = 0;

  const RowBlock<Traits>& block;
  const InputArguments& a;

  __device__ __forceinline__ PlainInput(const RowBlock<Traits>& of, const InputArguments& arguments,
                                        unsigned char*)
      : block(of), a(arguments) {}

  // Queues this thread's copies of a row.
  __device__ __forceinline__ void copy(int row) const { block.copy_row(a.x, row, block.stage(row)); }

  // To call when this thread's copies of the row have arrived, before others read them.
  __device__ __forceinline__ void finish(int) const {}
};

// dz = a * g + (b * z + c) with g = dy * act'(scale * z + shift), rounded to T; zero outside the image.
template <class Traits>
struct PrologueInput {
  using T = typename Traits::T;
  using Rows = RowBlock<Traits>;
  // Of each channel: scale, shift, a, b, c.
  static constexpr int kVectors = 5, kVectorBytes = 4 * kBlockChannels;
  static constexpr int kSharedBytes = Rows::kStagesBytes + kVectors * kVectorBytes;

  const Rows& block;
  const InputArguments& a;
  unsigned char *const z_stages, *const vectors;
  unsigned owned = 0;  // bit i: whether this block writes the dz of the column that is this thread's i-th

  __device__ __forceinline__ PrologueInput(const Rows& of, const InputArguments& arguments,
                                           unsigned char* shared)
      : block(of), a(arguments), z_stages(shared), vectors(shared + Rows::kStagesBytes) {
    fill_vectors();
    if (!a.dz) return;
    int bit = 0;
    block.template for_pixels<Rows::kColumns>(
        block.in, [&](int i) { owned |= unsigned{owns_column(block.in.first + i)} << bit++; });
  }

  __device__ __forceinline__ void fill_vectors() const {
    const float* const from[kVectors] = {a.bn.scale, a.bn.shift, a.bn.a, a.bn.b, a.bn.c};
    for (int i = block.thread; i < kBlockChannels; i += Traits::kThreads) {
      const int channel = channel_of(block.first_input + i);
#pragma unroll
      for (int v = 0; v < kVectors; ++v)
        store_shared(vectors + v * kVectorBytes + 4 * i,
                     channel >= 0 ? load_global<float>(from[v] + channel) : 0);
    }
  }

  // The channel of the tensor, or -1.
  __device__ __forceinline__ int channel_of(int input) const {
    const RowWalk& walk = block.a;
    if (!Traits::kPadded) return input < walk.c_in ? input : -1;
    const int group = input / walk.groups.in, channel = input % walk.groups.in;
    return channel < walk.true_groups.in && group < walk.group_count ? group * walk.true_groups.in + channel
                                                                     : -1;
  }

  // Every column inside the image is that of the middle tap of one position, or lies before the first or
  // behind the last and is theirs.
  __device__ __forceinline__ bool owns_column(int place) const {
    const RowWalk& walk = block.a;
    int column = place;
    const int image = block.images_before(column, block.frame());
    column -= kMiddle * block.dilation_w();
    column = column < 0 ? 0 : column < walk.ow ? column : walk.ow - 1;
    const int position = image * walk.ow + column - block.first_column;
    return position >= 0 && block.is_position(position);
  }

  // The same of rows.
  __device__ __forceinline__ bool owns_row(int row) const {
    const bool is_first = block.first_row < block.row_step;
    const bool is_last = block.rows_left <= block.a.rows;
    return (row >= kMiddle || is_first) && (row < kMiddle + block.rows || is_last);
  }

  __device__ __forceinline__ unsigned char* z_stage(int row) const {
    return z_stages + (block.stage(row) - block.stages);
  }

  __device__ __forceinline__ void copy(int row) const {
    block.copy_row(a.x, row, block.stage(row));
    block.copy_row(a.bn.z, row, z_stage(row));
  }

  __device__ __forceinline__ void finish(int row) const {
    const int ih = block.image_row(row);
    if (!block.in.any || ih < 0 || ih >= block.a.h) return;
    const int before = ih * block.a.w * block.a.in_pixel;
    char* const target = a.dz && owns_row(row) ? static_cast<char*>(a.dz) + block.in.global : nullptr;
    unsigned mine = owned;
    block.template for_pixels<Rows::kColumns>(block.in, [&](int i) {
      const int column = load_shared<int>(block.column_table + 4 * (block.in.first + i));
      const bool is_mine = mine & 1;
      mine >>= 1;
      if (column < 0) return;
      const int place = block.in_place + i * kPitch;
      make_unit(block.stage(row) + place, z_stage(row) + place);
      if (target && is_mine)
        block.store_unit(target + int64_t{column + before} * block.unit(), block.stage(row) + place);
    });
  }

  __device__ __forceinline__ void make_unit(unsigned char* dy, const unsigned char* z) const {
    if (!Traits::kPadded || block.a.unit == 16) {
      const uint4 g = load_shared<uint4>(dy), of = load_shared<uint4>(z);
      store_shared(dy, uint4{make(g.x, of.x, 0), make(g.y, of.y, 1), make(g.z, of.z, 2), make(g.w, of.w, 3)});
    } else {
      for (int i = 0; i < block.a.unit / 4; ++i)
        store_shared(dy + 4 * i,
                     make(load_shared<uint32_t>(dy + 4 * i), load_shared<uint32_t>(z + 4 * i), i));
    }
  }

  // Of the two channels in word `i` of this thread's unit.
  __device__ __forceinline__ uint32_t make(uint32_t dy, uint32_t z_bits, int i) const {
    float2 v[kVectors];
#pragma unroll
    for (int k = 0; k < kVectors; ++k)
      v[k] = load_shared<float2>(vectors + k * kVectorBytes + 2 * block.in.shared + 8 * i);
    const float2 g = unpack<T>(dy), z = unpack<T>(z_bits);
    return pack<T>(dz(g.x, z.x, v[0].x, v[1].x, v[2].x, v[3].x, v[4].x),
                   dz(g.y, z.y, v[0].y, v[1].y, v[2].y, v[3].y, v[4].y));
  }

  __device__ __forceinline__ float dz(float g, float z, float scale, float shift, float by, float b,
                                      float c) const {
    const float pre = fused(scale, z, shift);
    if (a.bn.activation == Activation::kSilu) {
      const float sigmoid = quick_sigmoid(pre);
      g *= sigmoid * fused(pre, 1 - sigmoid, 1);
    } else if (a.bn.activation == Activation::kRelu) {
      g = pre <= 0 ? 0 : g;
    }
    return fused(by, g, fused(b, z, c));
  }

 private:
  static constexpr int kMiddle = (Traits::kTaps - 1) / 2;
};

}  // namespace rk::cuda
