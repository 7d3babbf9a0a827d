#pragma once
#include <cstdint>

namespace rk {

enum class Activation : int { kIdentity = 0, kRelu = 1, kSilu = 2 };

// How images are stored; weights are floats, as is all arithmetic.
enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// A grouped 2-D convolution in sizes. Strides of images count elements in the order N, C, H, W, those of
// weights in the order group, output and input of the group, kH, kW. Padding may be negative.
struct ConvProblem {
  int64_t n, c_in, h, w, c_out, kh, kw, oh, ow, groups;
  int64_t stride[2], padding[2], dilation[2];
  int64_t x_stride[4], w_stride[5], y_stride[4];
  DType dtype;

  int64_t in_per_group() const { return c_in / groups; }
  int64_t out_per_group() const { return c_out / groups; }

  // The element of the weights for output `out` and input `in` of a group.
  int64_t weight(int64_t group, int64_t out, int64_t in, int64_t i, int64_t j) const {
    return group * w_stride[0] + out * w_stride[1] + in * w_stride[2] + i * w_stride[3] + j * w_stride[4];
  }
};

// y = act(conv(x, w) * scale + shift) per output channel; a null scale is 1, a null shift is 0.
struct Epilogue {
  const float* scale;
  const float* shift;
  Activation activation;
};

// What a backward pass reads in place of the gradient dy of an activated output: the gradient of z,
// dz = a * g + (b * z + c) with g = dy * act'(z * scale + shift), all vectors per channel. z is stored as dy.
struct BnBackward {
  const void* z;
  const float *scale, *shift, *a, *b, *c;
  Activation activation;
};

// Dense images, [n][c][pixels] or, channels last, [n][pixels][c].
struct ImageProblem {
  int64_t n, c, pixels;
  bool channels_last;
  DType dtype;

  int64_t elements() const { return n * c * pixels; }
};

// Of each channel, over images and pixels: the mean, and m2 = sum (z - mean)^2.
struct BatchStats {
  float *mean, *m2;
};

// What bn_act_reduce reads. y, whose sign is that of z * scale + shift + residual, is null without a
// residual.
struct BnReduce {
  const void *dy, *z, *y;
  const float *scale, *shift, *mean, *rstd;
  Activation activation;
};

// Of each channel, with g = dy * act' and xhat = (z - mean) * rstd.
struct BnGradients {
  float *sum_g, *sum_g_xhat;
};

// Calls body(begin, end, context) over a partition of [begin, end); torch_parallel_for has this form.
using ParallelBody = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, ParallelBody body, void* context);

}  // namespace rk
