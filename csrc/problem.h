#pragma once
#include <cstdint>

namespace rk {

enum class Activation : int { kIdentity = 0, kRelu = 1, kSilu = 2 };

// How images are stored; weights are floats, as is all arithmetic.
enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// A grouped 2-D convolution in sizes; strides of tensors count elements in the order N, C, H, W.
struct ConvProblem {
  int64_t n, c_in, h, w, c_out, kh, kw, oh, ow, groups;
  int64_t stride[2], padding[2], dilation[2];
  int64_t x_stride[4], w_stride[4], y_stride[4];
  DType dtype;

  int64_t in_per_group() const { return c_in / groups; }
  int64_t out_per_group() const { return c_out / groups; }
};

// y = act(conv(x, w) * scale + shift) per output channel; a null scale is 1, a null shift is 0.
struct Epilogue {
  const float* scale;
  const float* shift;
  Activation activation;
};

// Calls body(begin, end, context) over a partition of [begin, end); torch_parallel_for has this form.
using ParallelBody = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, ParallelBody body, void* context);

}  // namespace rk
