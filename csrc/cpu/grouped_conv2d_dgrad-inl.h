// Gradient of the input: for each phase of the stride, the rows and columns of dx that are equal modulo it
// are a convolution of dz, with stride 1, by those taps that meet them, flipped, in and out exchanged.
#pragma once
#include "cpu/grouped_conv2d-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

// One axis of a phase: taps first, first + step, ... meet its rows.
struct PhaseAxis {
  int64_t size, first, step, taps, dilation, padding;

  PhaseAxis(int64_t phase, int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t rate)
      : size(ceil_div(in - phase, stride)), first(0), step(1), taps(0), dilation(1), padding(-out) {
    const auto meets = [&](int64_t tap) { return (phase + pad - tap * rate) % stride == 0; };
    while (first < kernel && !meets(first)) ++first;
    if (first == kernel) return;
    while (first + step < kernel && !meets(first + step)) ++step;
    taps = ceil_div(kernel - first, step);
    dilation = std::max<int64_t>(step * rate / stride, 1);
    padding = (taps - 1) * dilation - (phase + pad - first * rate) / stride;
  }
};

// `dz` has the strides of y, dx those of x.
void dgrad_phase(const ConvProblem& p, int64_t a, int64_t b, const Input& dz, const float* w, void* dx,
                 ParallelFor parallel_for) {
  const PhaseAxis rows(a, p.h, p.oh, p.kh, p.stride[0], p.padding[0], p.dilation[0]);
  const PhaseAxis columns(b, p.w, p.ow, p.kw, p.stride[1], p.padding[1], p.dilation[1]);
  ConvProblem q = p;
  std::swap(q.c_in, q.c_out);
  q.h = p.oh, q.w = p.ow, q.oh = rows.size, q.ow = columns.size;
  if (q.oh <= 0 || q.ow <= 0) return;
  std::copy(p.y_stride, p.y_stride + 4, q.x_stride);
  std::copy(p.x_stride, p.x_stride + 4, q.y_stride);
  for (int i = 0; i < 2; ++i) q.stride[i] = 1, q.y_stride[i + 2] *= p.stride[i];
  q.kh = rows.taps, q.kw = columns.taps;
  q.padding[0] = rows.padding, q.padding[1] = columns.padding;
  q.dilation[0] = rows.dilation, q.dilation[1] = columns.dilation;
  const int64_t w_stride[] = {p.w_stride[0], p.w_stride[2], p.w_stride[1], -rows.step * p.w_stride[3],
                              -columns.step * p.w_stride[4]};
  std::copy(w_stride, w_stride + 5, q.w_stride);
  const float* last_tap = w + (rows.first + (rows.taps - 1) * rows.step) * p.w_stride[3] +
                          (columns.first + (columns.taps - 1) * columns.step) * p.w_stride[4];
  const float zero = 0;
  if (rows.taps == 0 || columns.taps == 0) {  // one tap, of weight zero, that lies outside dz throughout
    q.kh = q.kw = 1;
    q.padding[0] = -p.oh;
    std::fill(q.w_stride, q.w_stride + 5, 0);
    last_tap = &zero;
  }
  void* first = const_cast<char*>(Output(dx, p.dtype).at(a * p.x_stride[2] + b * p.x_stride[3]));
  convolve(q, dz, last_tap, first, Epilogue{nullptr, nullptr, Activation::kIdentity}, parallel_for);
}

void grouped_conv2d_dgrad(const ConvProblem& p, const void* dy, const float* w, void* dx,
                          const BnBackward* bn, ParallelFor parallel_for) {
  const Input dz(dy, p.dtype, bn);
  for (int64_t a = 0; a < p.stride[0]; ++a)
    for (int64_t b = 0; b < p.stride[1]; ++b) dgrad_phase(p, a, b, dz, w, dx, parallel_for);
}

}  // namespace
}  // namespace rk::cpu::RK_ISA
