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
  Planes(const Parts& parts, const Input& x, const Epilogue& epilogue)
      : parts_(parts),
        p_(parts.window),
        x_(x),
        epilogue_(epilogue),
        strip_(p_, kFloats / p_.in_per_group()),
        plane_(strip_.phases(p_) * strip_.phase_size),
        flat_(ceil_div(strip_.output_rows * strip_.pitch, kLanes) * kLanes),
        part_floats_(kPlaneOutputs * flat_),
        offsets_(tap_offsets(parts, strip_)),
        copy_(parts.count == 1 && contiguous(parts.parts[0].p) ? nullptr : copy_weights(parts)) {}

  int64_t tasks() const { return p_.groups * p_.n * strip_.strips; }

  // The planes, what a tile reads past the last of them, the sums of a block of outputs, a row of input.
  int64_t scratch_floats() const { return sums_end() + 2 * strip_.pitch; }

  void range(int64_t begin, int64_t end, float* scratch) const {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t strip = task % strip_.strips, n = task / strip_.strips % p_.n,
                    g = task / strip_.strips / p_.n;
      fill(n, g, strip, scratch, scratch + sums_end());
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

  // [part][output][channel][kh][kw]
  static std::unique_ptr<float[]> copy_weights(const Parts& parts) {
    const ConvProblem& window = parts.window;
    std::unique_ptr<float[]> copy(new float[window.c_out * window.in_per_group() * parts.taps()]);
    float* to = copy.get();
    for (const auto& [p, w, y] : parts)
      for (int64_t o = 0; o < p.c_out; ++o)
        for (int64_t c = 0; c < p.in_per_group(); ++c)
          for (int64_t i = 0; i < p.kh; ++i)
            for (int64_t j = 0; j < p.kw; ++j)
              *to++ = w[p.weight(o / p.out_per_group(), o % p.out_per_group(), c, i, j)];
    return copy;
  }

  int64_t planes_floats() const {
    return ceil_div(p_.in_per_group() * plane_ + strip_.pitch, kLanes) * kLanes + kLanes;
  }

  int64_t sums_end() const { return planes_floats() + parts_.count * part_floats_; }

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

  // A part's weights and the offsets of its taps, the first of which is number `tap` of all.
  struct Filters {
    const float* w;
    const int64_t* offsets;
    int64_t taps, next_output;

    Filters(const Planes& k, const Parts::Part& part, int64_t tap)
        : w(k.copy_ ? k.copy_.get() + k.p_.c_out * k.p_.in_per_group() * tap : part.w),
          offsets(k.offsets_.get() + tap),
          taps(part.p.kh * part.p.kw),
          next_output(k.copy_ ? k.p_.in_per_group() * taps : part.p.w_stride[1]) {}
  };

  void convolve(int64_t n, int64_t g, int64_t strip, const float* planes, float* sums,
                Prefetcher prefetch_next) const {
    const int64_t first_row = strip * strip_.output_rows, end = (g + 1) * p_.out_per_group();
    for (int64_t o = end - p_.out_per_group(); o < end;) {
      const int64_t count = ceil_div(end - o, ceil_div(end - o, kPlaneOutputs));
      int64_t tap = 0;
      for (int64_t part = 0; part < parts_.count; ++part) {
        Filters filters(*this, parts_.parts[part], tap);
        tap += filters.taps;
        filters.w += o * filters.next_output;
        const int64_t rows = std::min(strip_.output_rows, parts_.parts[part].p.oh - first_row);
        sum<kPlaneOutputs>(count, rows, planes, filters, sums + part * part_floats_, prefetch_next);
      }
      for (int64_t i = 0; i < count; ++i) store_rows(n, o + i, first_row, sums + i * flat_);
      o += count;
    }
  }

  // Spreads the strip's vectors evenly over the fewest tiles.
  template <int kOutputs>
  void sum(int64_t outputs, int64_t rows, const float* planes, const Filters& filters, float* sums,
           Prefetcher& prefetch_next) const {
    if constexpr (kOutputs > 1)
      if (outputs < kOutputs) return sum<kOutputs - 1>(outputs, rows, planes, filters, sums, prefetch_next);
    constexpr int kVectors = kPlaneVectors<kOutputs>;
    int64_t vectors = ceil_div(rows * strip_.pitch, kLanes);
    for (int64_t tiles = ceil_div(vectors, kVectors); tiles > 0; --tiles) {
      const int64_t width = ceil_div(vectors, tiles);
      sum_tile<kOutputs, kVectors>(width, planes, filters, sums, prefetch_next);
      vectors -= width;
      planes += width * kLanes;
      sums += width * kLanes;
    }
  }

  // Not inlined: in a larger function, GCC spills what the loop needs.
  template <int kOutputs, int kVectors>
  __attribute__((noinline)) void sum_tile(int64_t width, const float* planes, const Filters& filters,
                                          float* sums, Prefetcher& prefetch_next) const {
    if constexpr (kVectors > 1)
      if (width < kVectors)
        return sum_tile<kOutputs, kVectors - 1>(width, planes, filters, sums, prefetch_next);
    const auto [first, offsets, taps, next_output] = filters;
    const float* w = first;
    Vec acc[kOutputs][kVectors] = {};
    for (int64_t c = 0; c < p_.in_per_group(); ++c, planes += plane_)
      for (int64_t t = 0; t < taps; ++t, ++w) {
        const float* at = planes + offsets[t];
        prefetch_next();
        Vec in[kVectors];
        unroll<kVectors>([&](auto v) RK_INLINE_LAMBDA {
          in[v] = load(at + v * kLanes);
          keep_in_register(in[v]);
        });
        add_tap<kOutputs, kVectors>(w, next_output, in, acc);
      }
    unroll<kOutputs>([&](auto o) RK_INLINE_LAMBDA {
      unroll<kVectors>([&](auto v) RK_INLINE_LAMBDA { store(sums + o * flat_ + v * kLanes, acc[o][v]); });
    });
  }

  template <int kOutputs, int kVectors>
  static RK_INLINE void add_tap(const float* w, int64_t next_output, const Vec (&in)[kVectors],
                                Vec (&acc)[kOutputs][kVectors]) {
    unroll<kOutputs>([&](auto o) RK_INLINE_LAMBDA {
      const Vec weight = broadcast(w[o * next_output]);
      unroll<kVectors>([&](auto v) RK_INLINE_LAMBDA { acc[o][v] = fma(weight, in[v], acc[o][v]); });
    });
  }

  // Of one channel, the rows of all parts in turns, so that memory is written in order.
  void store_rows(int64_t n, int64_t channel, int64_t first_row, const float* sums) const {
    const Finish finish(epilogue_, channel);
    const int64_t end = std::min(first_row + strip_.output_rows, p_.oh);
    for (int64_t row = first_row; row < end; ++row, sums += strip_.pitch)
      for (int64_t first = 0; first < parts_.count; first += parts_.columns) {
        const Parts::Part* part = parts_.parts + first;
        if (row < part->p.oh)
          store_columns(part, sums + first * part_floats_, finish,
                        n * part->p.y_stride[0] + channel * part->p.y_stride[1] + row * part->p.y_stride[2]);
      }
  }

  // A row of the parts whose columns take turns, from element `to` of each.
  void store_columns(const Parts::Part* part, const float* sums, const Finish& finish, int64_t to) const {
    if (parts_.columns == 2 && part->p.y_stride[3] == 2) return store_zipped(part, sums, finish, to);
    for (int64_t column = 0; column < parts_.columns; ++column)
      store_row(part[column], sums + column * part_floats_, finish, to);
  }

  void store_row(const Parts::Part& part, const float* sums, const Finish& finish, int64_t to) const {
    const int64_t step = part.p.y_stride[3];
    for (int64_t i = 0; i < part.p.ow; i += kLanes) {
      const int64_t count = std::min(part.p.ow - i, int64_t{kLanes});
      Output(part.y, p_.dtype)
          .store_lanes(to + i * step, finish(load_first(sums + i, count)), 0, count, step);
    }
  }

  // The even columns and the odd ones.
  void store_zipped(const Parts::Part* part, const float* sums, const Finish& finish, int64_t to) const {
    const Output y(part->y, p_.dtype);
    for (int64_t i = 0; i < part[0].p.ow; i += kLanes) {
      const auto lanes = [&](int64_t column) {
        return std::clamp<int64_t>(part[column].p.ow - i, 0, kLanes);
      };
      const Vec even = finish(load_first(sums + i, lanes(0)));
      const Vec odd = finish(load_first(sums + part_floats_ + i, lanes(1)));
      const int64_t count = lanes(0) + lanes(1);
      y.store_lanes(to + 2 * i, zip_first(even, odd), 0, std::min<int64_t>(count, kLanes));
      if (count > kLanes) y.store_lanes(to + 2 * i + kLanes, zip_second(even, odd), 0, count - kLanes);
    }
  }

  const Parts& parts_;
  const ConvProblem& p_;  // the window of the parts
  const Input x_;
  const Epilogue& epilogue_;
  const PaddedStrip strip_;
  const int64_t plane_, flat_, part_floats_;
  const std::unique_ptr<int64_t[]> offsets_;
  const std::unique_ptr<float[]> copy_;
};

}  // namespace
}  // namespace rk::cpu::RK_ISA
