#pragma once
#include "float_vector.cuh"
#include "grouped_conv2d_dgrad_float_plan.h"
#include "platform.h"

// Gradient of the input of the grouped 3x3 convolution in float at strides above 1, channels last. Pixels of
// the input whose coordinates are the same modulo the strides are a class: all meet the same taps, from one
// to nine, or none, and to neighbours in a class belong neighbours in dy. A block has some places of all
// classes and computes one class after the other, so that dy comes from the cache after the first.
namespace rk::cuda {

struct DgradFloatArguments {
  const float *dy, *w;
  float* dx;
  int64_t w_stride[5], n;
  int h, w_in, c_in, oh, ow, c_out, group_in, group_out;
  int stride[2];
  DgradFloatPlan plan;
};

// A pixel of each class, by its position there. Beyond the last image the row is far above it.
struct DgradPlace {
  int image;  // from the thread's first
  int row, column;
};
inline constexpr int kDgradNowhere = -(1 << 30);

template <int kVector>
struct DgradFloatThread {
  using Vector = typename FloatVector<kVector>::Type;

  const DgradFloatArguments& a;
  const int thread = static_cast<int>(thread_index()), lane = thread % a.plan.lanes,
            run = thread / a.plan.lanes;
  const unsigned tile = block_index_x() / a.plan.channel_blocks;
  const int first_channel =
      static_cast<int>(block_index_x() - tile * a.plan.channel_blocks) * a.plan.lanes * kVector;
  const int channel = first_channel + lane * kVector, first_output = channel / a.group_in * a.group_out;
  int64_t first_image;
  DgradPlace places[kDgradPlaces];
  float sums[kDgradPlaces][kVector];

  __device__ __forceinline__ explicit DgradFloatThread(const DgradFloatArguments& arguments) : a(arguments) {
    const int64_t first = (int64_t{tile} * a.plan.runs + run) * kDgradPlaces, row = first / a.plan.columns;
    first_image = row / a.plan.rows;
    places[0] = {0, static_cast<int>(row - first_image * a.plan.rows),
                 static_cast<int>(first - row * a.plan.columns)};
#pragma unroll
    for (int i = 1; i < kDgradPlaces; ++i) {
      DgradPlace next = places[i - 1];
      if (++next.column == a.plan.columns) next.column = 0, ++next.row;
      if (next.row == a.plan.rows) next.row = 0, ++next.image;
      places[i] = next;
    }
#pragma unroll
    for (DgradPlace& place : places)
      if (first_image + place.image >= a.n) place.row = kDgradNowhere;
  }

  __device__ __forceinline__ bool has_work() const { return run < a.plan.runs && channel < a.c_in; }

  // Queues copies of the weights of outputs [first, first + count) of each lane's group for the tap:
  // [output][lane][kVector].
  __device__ __forceinline__ void copy_tap(int kh, int kw, int first, int count) const {
    unsigned char* const target = shared_memory() + (3 * kh + kw) * tap_bytes();
    const int width = a.plan.lanes * kVector;
    for (int i = thread; i < count * width; i += kDgradThreads) {
      const int output = i / width, input = first_channel + i - output * width, group = input / a.group_in;
      const bool any = input < a.c_in;
      const int64_t from = group * a.w_stride[0] + (first + output) * a.w_stride[1] +
                           (input - group * a.group_in) * a.w_stride[2] + kh * a.w_stride[3] +
                           kw * a.w_stride[4];
      cp_async<4>(target + 4 * i, a.w + (any ? from : 0), any);
    }
  }

  __device__ __forceinline__ int tap_bytes() const { return 4 * kVector * a.plan.lanes * a.plan.chunk; }

  // Calls body(kh, kw) for the taps that meet a class.
  template <class Body>
  __device__ __forceinline__ void for_each_tap(int class_row, int class_column, const Body& body) const {
#pragma unroll 1
    for (int kh = 0; kh < 3; ++kh) {
      if (a.plan.taps[0][kh].of_class != class_row) continue;
#pragma unroll 1
      for (int kw = 0; kw < 3; ++kw)
        if (a.plan.taps[1][kw].of_class == class_column) body(kh, kw);
    }
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (auto& of_place : sums)
#pragma unroll
      for (float& sum : of_place) sum = 0;
  }

  // Adds what kVector outputs of the places' pixels of dy are through a tap.
  __device__ __forceinline__ void add(const unsigned char* weights,
                                      const float (&dy)[kDgradPlaces][kVector]) {
#pragma unroll
    for (int output = 0; output < kVector; ++output) {
      float w[kVector];
      FloatVector<kVector>::unpack(load_shared<Vector>(weights + output * 4 * kVector * a.plan.lanes), w);
#pragma unroll
      for (int i = 0; i < kDgradPlaces; ++i)
#pragma unroll
        for (int input = 0; input < kVector; ++input)
          sums[i][input] = fused(dy[i][output], w[input], sums[i][input]);
    }
  }

  __device__ __forceinline__ void add_tap(int kh, int kw, int first, int count) {
    const int down = a.plan.taps[0][kh].offset, across = a.plan.taps[1][kw].offset;
    const float* const base = a.dy + (first_image * a.oh * a.ow * a.c_out + first_output + first);
    const float* from[kDgradPlaces];
    bool any[kDgradPlaces];
#pragma unroll
    for (int i = 0; i < kDgradPlaces; ++i) {
      const int row = places[i].row + down, column = places[i].column + across;
      any[i] = row >= 0 && row < a.oh && column >= 0 && column < a.ow;
      const int pixel = any[i] ? (places[i].image * a.oh + row) * a.ow + column : 0;
      from[i] = base + int64_t{pixel} * a.c_out;
    }
    const unsigned char* weights = shared_memory() + (3 * kh + kw) * tap_bytes() + 4 * kVector * lane;
#pragma unroll 2
    for (int output = 0; output < count; output += kVector) {
      float dy[kDgradPlaces][kVector];
#pragma unroll
      for (int i = 0; i < kDgradPlaces; ++i) load_if(any[i], from[i] + output, dy[i]);
      add(weights + output * 4 * kVector * a.plan.lanes, dy);
    }
  }

  __device__ __forceinline__ void store(int class_row, int class_column) const {
#pragma unroll
    for (int i = 0; i < kDgradPlaces; ++i) {
      if (places[i].row < 0) continue;
      const int row = class_row + places[i].row * a.stride[0];
      const int column = class_column + places[i].column * a.stride[1];
      const int64_t image_row = (first_image + places[i].image) * a.h + row;
      if (row < a.h && column < a.w_in)
        store_global(a.dx + ((image_row * a.w_in + column) * a.c_in + channel),
                     FloatVector<kVector>::pack(sums[i]));
    }
  }

  // Waits for the copies of all threads.
  static __device__ __forceinline__ void wait() {
    cp_async_commit();
    cp_async_wait<0>();
    sync_threads();
  }

  __device__ __forceinline__ void compute(int class_row, int class_column) {
    clear();
#pragma unroll 1
    for (int first = 0; first < a.group_out; first += a.plan.chunk) {
      const int left = a.group_out - first, count = left < a.plan.chunk ? left : a.plan.chunk;
      if (a.plan.chunk < a.group_out) {
        sync_threads();
        for_each_tap(class_row, class_column, [&](int kh, int kw) { copy_tap(kh, kw, first, count); });
        wait();
      }
      if (has_work())
        for_each_tap(class_row, class_column, [&](int kh, int kw) { add_tap(kh, kw, first, count); });
    }
    if (has_work()) store(class_row, class_column);
  }
};

template <int kVector>
__global__ __launch_bounds__(kDgradThreads, 2) void grouped_conv2d_dgrad_float_kernel(DgradFloatArguments a) {
  DgradFloatThread<kVector> thread(a);
  if (a.plan.chunk == a.group_out) {
#pragma unroll 1
    for (int i = 0; i < 9; ++i) thread.copy_tap(i / 3, i % 3, 0, a.plan.chunk);
    thread.wait();
  }
#pragma unroll 1
  for (int row = 0; row < a.stride[0]; ++row)
#pragma unroll 1
    for (int column = 0; column < a.stride[1]; ++column) thread.compute(row, column);
}

}  // namespace rk::cuda
