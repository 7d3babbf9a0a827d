// Any grouped convolution; fastest where rows are contiguous (NCHW).
//
// A task is one group, image and strip of output rows. The group's input is copied into padded planes, and
// the strip is then one flat vector per output channel: sum[o][i] = sum over taps w[o][tap] * plane[i + tap].
// Lanes between the rows are computed and dropped. Weights are read where they lie, one scalar a tap.
#pragma once
#include "cpu/grouped_conv2d_common-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

// Outputs computed at once, and the vectors of each: their sums, the inputs and one weight fit the registers.
// Inputs are unaligned, so that the more outputs share one the better.
constexpr int kPlaneOutputs = 6;
template <int kOutputs>
constexpr int kPlaneVectors = std::min(8, (kRegisters - (kLanes == 4 ? 2 : 1)) / (kOutputs + 1));

class Planes {
 public:
  Planes(const ConvProblem& p, const Input& x, const float* w, void* y, const Epilogue& epilogue)
      : p_(p),
        x_(x),
        y_(y, p.dtype),
        epilogue_(epilogue),
        strip_(p, kFloats / p.in_per_group()),
        taps_(p.kh * p.kw),
        plane_(strip_.phases(p) * strip_.phase_size),
        flat_(ceil_div(strip_.output_rows * strip_.pitch, kLanes) * kLanes),
        offsets_(new int64_t[taps_]),
        copy_(contiguous(p) ? nullptr : new float[p.c_out * p.in_per_group() * taps_]),
        weights_(copy_ ? copy_.get() : w),
        weights_per_output_(copy_ ? p.in_per_group() * taps_ : p.w_stride[1]) {
    for (int64_t i = 0; i < p.kh; ++i)
      for (int64_t j = 0; j < p.kw; ++j) offsets_[i * p.kw + j] = strip_.tap(p, i, j);
    if (copy_) copy_weights(w);
  }

  int64_t tasks() const { return p_.groups * p_.n * strip_.strips; }

  // The planes, what a tile reads past the last of them, the sums of one block of outputs, a row of input.
  int64_t scratch_floats() const { return planes_floats() + kPlaneOutputs * flat_ + 2 * strip_.pitch; }

  void range(int64_t begin, int64_t end, float* scratch) const {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t strip = task % strip_.strips, n = task / strip_.strips % p_.n,
                    g = task / strip_.strips / p_.n;
      fill(n, g, strip, scratch, scratch + planes_floats() + kPlaneOutputs * flat_);
      convolve(n, g, strip, scratch, scratch + planes_floats(), prefetcher(std::min(task + 1, end - 1)));
    }
  }

 private:
  static constexpr int64_t kFloats = 8 * 1024;  // about one L1 of planes

  // Whether a filter's taps are one run of floats, and filters evenly spaced.
  static bool contiguous(const ConvProblem& p) {
    return (p.w_stride[4] == 1 || p.kw == 1) && (p.w_stride[3] == p.kw || p.kh == 1) &&
           (p.w_stride[2] == p.kh * p.kw || p.in_per_group() == 1) &&
           (p.w_stride[0] == p.out_per_group() * p.w_stride[1] || p.groups == 1);
  }

  void copy_weights(const float* w) {
    float* to = copy_.get();
    for (int64_t o = 0; o < p_.c_out; ++o)
      for (int64_t c = 0; c < p_.in_per_group(); ++c)
        for (int64_t i = 0; i < p_.kh; ++i)
          for (int64_t j = 0; j < p_.kw; ++j)
            *to++ = w[p_.weight(o / p_.out_per_group(), o % p_.out_per_group(), c, i, j)];
  }

  int64_t planes_floats() const {
    return ceil_div(p_.in_per_group() * plane_ + strip_.pitch, kLanes) * kLanes + kLanes;
  }

  void fill(int64_t n, int64_t g, int64_t strip, float* planes, float* temporary) const {
    for (int64_t c = 0; c < p_.in_per_group(); ++c)
      fill_plane(p_, strip_, strip, x_, n, g * p_.in_per_group() + c, planes + c * plane_, temporary);
  }

  // Of a task's input, taken to be contiguous from row to row.
  Prefetcher prefetcher(int64_t task) const {
    const int64_t strip = task % strip_.strips, n = task / strip_.strips % p_.n,
                  g = task / strip_.strips / p_.n;
    const int64_t first_row = std::max<int64_t>(strip * strip_.output_rows * p_.stride[0] - p_.padding[0], 0);
    const int64_t first =
        n * p_.x_stride[0] + g * p_.in_per_group() * p_.x_stride[1] + first_row * p_.x_stride[2];
    const int64_t rows = std::min(strip_.rows * p_.stride[0], p_.h - first_row);
    return Prefetcher(x_, first, 16, ceil_div(rows * p_.x_stride[2], 16), p_.x_stride[1], p_.in_per_group());
  }

  void convolve(int64_t n, int64_t g, int64_t strip, const float* planes, float* sums,
                Prefetcher prefetch_next) const {
    const int64_t first_row = strip * strip_.output_rows;
    const int64_t rows = std::min(strip_.output_rows, p_.oh - first_row);
    const int64_t end = (g + 1) * p_.out_per_group();
    for (int64_t o = end - p_.out_per_group(); o < end;) {
      const int64_t count = ceil_div(end - o, ceil_div(end - o, kPlaneOutputs));
      const int64_t y = n * p_.y_stride[0] + o * p_.y_stride[1] + first_row * p_.y_stride[2];
      sum<kPlaneOutputs>(count, rows, planes, weights_ + o * weights_per_output_, sums, prefetch_next);
      for (int64_t i = 0; i < count; ++i)
        store_rows(sums + i * flat_, rows, Finish(epilogue_, o + i), y + i * p_.y_stride[1]);
      o += count;
    }
  }

  // Spreads the strip's vectors evenly over the fewest tiles.
  template <int kOutputs>
  void sum(int64_t outputs, int64_t rows, const float* planes, const float* w, float* sums,
           Prefetcher& prefetch_next) const {
    if constexpr (kOutputs > 1)
      if (outputs < kOutputs) return sum<kOutputs - 1>(outputs, rows, planes, w, sums, prefetch_next);
    constexpr int kVectors = kPlaneVectors<kOutputs>;
    int64_t vectors = ceil_div(rows * strip_.pitch, kLanes);
    for (int64_t tiles = ceil_div(vectors, kVectors); tiles > 0; --tiles) {
      const int64_t width = ceil_div(vectors, tiles);
      sum_tile<kOutputs, kVectors>(width, planes, w, sums, prefetch_next);
      vectors -= width;
      planes += width * kLanes;
      sums += width * kLanes;
    }
  }

  // Not inlined: in a larger function, GCC spills what the loop needs.
  template <int kOutputs, int kVectors>
  __attribute__((noinline)) void sum_tile(int64_t width, const float* planes, const float* w, float* sums,
                                          Prefetcher& prefetch_next) const {
    if constexpr (kVectors > 1)
      if (width < kVectors) return sum_tile<kOutputs, kVectors - 1>(width, planes, w, sums, prefetch_next);
    Vec acc[kOutputs][kVectors] = {};
    for (int64_t c = 0; c < p_.in_per_group(); ++c, planes += plane_)
      for (int64_t t = 0; t < taps_; ++t, ++w) {
        const float* at = planes + offsets_[t];
        prefetch_next();
        Vec in[kVectors];
        unroll<kVectors>([&](auto v) RK_INLINE_LAMBDA {
          in[v] = load(at + v * kLanes);
          keep_in_register(in[v]);
        });
        unroll<kOutputs>([&](auto o) RK_INLINE_LAMBDA {
          const Vec weight = broadcast(w[o * weights_per_output_]);
          unroll<kVectors>([&](auto v) RK_INLINE_LAMBDA { acc[o][v] = fma(weight, in[v], acc[o][v]); });
        });
      }
    unroll<kOutputs>([&](auto o) RK_INLINE_LAMBDA {
      unroll<kVectors>([&](auto v) RK_INLINE_LAMBDA { store(sums + o * flat_ + v * kLanes, acc[o][v]); });
    });
  }

  void store_rows(const float* sums, int64_t rows, const Finish& finish, int64_t to) const {
    for (int64_t r = 0; r < rows; ++r, sums += strip_.pitch, to += p_.y_stride[2])
      for (int64_t i = 0; i < p_.ow; i += kLanes) {
        const int64_t count = std::min(p_.ow - i, int64_t{kLanes});
        const Vec v = finish(load_first(sums + i, count));
        y_.store_lanes(to + i * p_.y_stride[3], v, 0, count, p_.y_stride[3]);
      }
  }

  const ConvProblem& p_;
  const Input x_;
  const Output y_;
  const Epilogue& epilogue_;
  const PaddedStrip strip_;
  const int64_t taps_, plane_, flat_;
  const std::unique_ptr<int64_t[]> offsets_;
  const std::unique_ptr<float[]> copy_;
  const float* const weights_;
  const int64_t weights_per_output_;
};

}  // namespace
}  // namespace rk::cpu::RK_ISA
