#pragma once
#include "activation.cuh"
#include "grouped_conv2d_rows.cuh"

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

// dz of g = dy * act'(z * scale + shift), rounded to T; zero outside the image.
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
  // Without an activation nothing is masked.
  const float greatest_masked = a.bn.activation == Activation::kRelu ? 0 : -INFINITY;
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
        store_shared(vectors + v * kVectorBytes + vector_place(i),
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
    if (a.bn.activation == Activation::kSilu)
      finish_as<true>(row);
    else
      finish_as<false>(row);
  }

  template <bool kSilu>
  __device__ __forceinline__ void finish_as(int row) const {
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
      make_unit<kSilu>(block.stage(row) + place, z_stage(row) + place);
      if (target && is_mine)
        block.store_unit(target + int64_t{column + before} * block.unit(), block.stage(row) + place);
    });
  }

  // Where a vector's value of a channel lies: the quarters of 32 channels that a warp's threads read at once,
  // four each, lie in a row.
  __device__ __forceinline__ static int vector_place(int channel) {
    return (channel % 8 / 4 * 8 + channel / 8) * 16 + channel % 4 * 4;
  }

  // V: the values of two or four channels.
  template <class V>
  __device__ __forceinline__ void load_vectors(int channel, V (&values)[kVectors]) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
      values[i] = load_shared<V>(vectors + i * kVectorBytes + vector_place(channel));
  }

  template <bool kSilu>
  __device__ __forceinline__ void make_unit(unsigned char* dy, const unsigned char* z) const {
    const int channel = block.in.shared / 2;
    if (!Traits::kPadded || block.a.unit == 16) {
      const uint4 g = load_shared<uint4>(dy), of = load_shared<uint4>(z);
      float4 v[kVectors];
      load_vectors(channel, v);
      const uint32_t x = make<kSilu>(g.x, of.x, v, &float4::x, &float4::y);
      const uint32_t y = make<kSilu>(g.y, of.y, v, &float4::z, &float4::w);
      load_vectors(channel + 4, v);
      store_shared(dy, uint4{x, y, make<kSilu>(g.z, of.z, v, &float4::x, &float4::y),
                             make<kSilu>(g.w, of.w, v, &float4::z, &float4::w)});
    } else {
      for (int i = 0; i < block.a.unit / 4; ++i) {
        float2 v[kVectors];
        load_vectors(channel + 2 * i, v);
        const auto g = load_shared<uint32_t>(dy + 4 * i), of = load_shared<uint32_t>(z + 4 * i);
        store_shared(dy + 4 * i, make<kSilu>(g, of, v, &float2::x, &float2::y));
      }
    }
  }

  // Of the two channels of a word, whose values are members of V.
  template <bool kSilu, class V>
  __device__ __forceinline__ uint32_t make(uint32_t dy, uint32_t z_bits, const V (&v)[kVectors],
                                           float V::* low, float V::* high) const {
    const float2 g = unpack<T>(dy), z = unpack<T>(z_bits);
    return pack<T>(dz<kSilu>(g.x, z.x, v[0].*low, v[1].*low, v[2].*low, v[3].*low, v[4].*low),
                   dz<kSilu>(g.y, z.y, v[0].*high, v[1].*high, v[2].*high, v[3].*high, v[4].*high));
  }

  template <bool kSilu>
  __device__ __forceinline__ float dz(float g, float z, float scale, float shift, float of_g, float of_z,
                                      float c) const {
    const float pre = fused(z, scale, shift);
    if (kSilu)
      g = activation_grad<T, Activation::kSilu>(g, pre);
    else
      g = pre <= greatest_masked ? 0 : g;
    return dz_of(g, z, of_g, of_z, c);
  }

 private:
  static constexpr int kMiddle = (Traits::kTaps - 1) / 2;
};

}  // namespace rk::cuda
