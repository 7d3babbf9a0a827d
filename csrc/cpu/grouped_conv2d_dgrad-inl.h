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
Parts::Part dgrad_phase(const ConvProblem& p, int64_t a, int64_t b, const float* w, void* dx) {
  const PhaseAxis rows(a, p.h, p.oh, p.kh, p.stride[0], p.padding[0], p.dilation[0]);
  const PhaseAxis columns(b, p.w, p.ow, p.kw, p.stride[1], p.padding[1], p.dilation[1]);
  ConvProblem q = p;
  std::swap(q.c_in, q.c_out);
  q.h = p.oh, q.w = p.ow, q.oh = rows.size, q.ow = columns.size;
  std::copy(p.y_stride, p.y_stride + 4, q.x_stride);
  std::copy(p.x_stride, p.x_stride + 4, q.y_stride);
  for (int i = 0; i < 2; ++i) q.stride[i] = 1, q.y_stride[i + 2] *= p.stride[i];
  q.kh = columns.taps ? rows.taps : 0, q.kw = rows.taps ? columns.taps : 0;
  q.padding[0] = rows.padding, q.padding[1] = columns.padding;
  q.dilation[0] = rows.dilation, q.dilation[1] = columns.dilation;
  const int64_t w_stride[] = {p.w_stride[0], p.w_stride[2], p.w_stride[1], -rows.step * p.w_stride[3],
                              -columns.step * p.w_stride[4]};
  std::copy(w_stride, w_stride + 5, q.w_stride);
  const float* last_tap = w + (rows.first + (rows.taps - 1) * rows.step) * p.w_stride[3] +
                          (columns.first + (columns.taps - 1) * columns.step) * p.w_stride[4];
  const char* first = Output(dx, p.dtype).at(a * p.x_stride[2] + b * p.x_stride[3]);
  return {q, last_tap, const_cast<char*>(first)};
}

// The convolution that reads what those of the parts do.
ConvProblem window_of(const Parts::Part* parts, int64_t count) {
  if (count == 1) return parts[0].p;
  ConvProblem window = parts[0].p;
  int64_t begin[2] = {INT64_MAX, INT64_MAX}, end[2] = {0, 0};
  for (int64_t i = 0; i < count; ++i) {
    const ConvProblem& q = parts[i].p;
    window.oh = std::max(window.oh, q.oh), window.ow = std::max(window.ow, q.ow);
    const int64_t taps[] = {q.kh, q.kw};
    for (int axis = 0; axis < 2 && q.kh; ++axis) {
      begin[axis] = std::min(begin[axis], -q.padding[axis]);
      end[axis] = std::max(end[axis], -q.padding[axis] + (taps[axis] - 1) * q.dilation[axis] + 1);
    }
  }
  window.kh = end[0] - begin[0], window.kw = end[1] - begin[1];
  for (int axis = 0; axis < 2; ++axis) window.padding[axis] = -begin[axis], window.dilation[axis] = 1;
  return window;
}

void grouped_conv2d_dgrad(const ConvProblem& p, const void* dy, const float* w, void* dx,
                          const BnBackward* bn, ParallelFor parallel_for) {
  if (p.h == 0 || p.w == 0) return;
  const std::unique_ptr<Parts::Part[]> parts(new Parts::Part[p.stride[0] * p.stride[1]]);
  const int64_t columns = std::min(p.stride[1], p.w);
  int64_t count = 0;
  for (int64_t a = 0; a < std::min(p.stride[0], p.h); ++a)
    for (int64_t b = 0; b < columns; ++b) parts[count++] = dgrad_phase(p, a, b, w, dx);
  convolve<FloatLanes>({parts.get(), count, columns, window_of(parts.get(), count)}, Input(dy, p.dtype, bn),
                       {nullptr, nullptr, Activation::kIdentity}, parallel_for);
}

}  // namespace
}  // namespace rk::cpu::RK_ISA
