// Any weight gradient; fastest where rows are contiguous (NCHW) and channels a group few.
//
// A strip of a group's input is copied into padded planes as in the forward kernel, and its gradient into
// planes of the same pitch, zero between the rows. The strip is then one flat vector per channel, and a
// weight's gradient the dot product of two of them: dw[o][c][tap] = sum over i dz[o][i] * plane[c][i + tap].
#pragma once
#include "cpu/grouped_conv2d_wgrad_common-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

class WgradPlanes {
 public:
  WgradPlanes(const ConvProblem& p, const Input& dy, const Input& x, float* dw)
      : p_(p),
        x_(x),
        dy_(dy),
        dw_(dw),
        output_blocks_(ceil_div(p.out_per_group(), kMostOutputs)),
        outputs_(ceil_div(p.out_per_group(), output_blocks_)),
        strip_(p, kFloats / (p.in_per_group() + outputs_)),
        taps_(p.kh * p.kw),
        rows_(p.in_per_group() * taps_),
        plane_(strip_.phases(p) * strip_.phase_size),
        flat_(ceil_div(strip_.output_rows * strip_.pitch, kLanes) * kLanes),
        x_floats_(ceil_div(p.in_per_group() * plane_ + strip_.pitch, kLanes) * kLanes + kLanes),
        offsets_(new int64_t[rows_]) {
    for (int64_t c = 0; c < p.in_per_group(); ++c)
      for (int64_t i = 0; i < p.kh; ++i)
        for (int64_t j = 0; j < p.kw; ++j)
          offsets_[(c * p.kh + i) * p.kw + j] =
              c * plane_ + strip_.tap(p, i * p.dilation[0], j * p.dilation[1]);
  }

  int64_t blocks() const { return p_.groups * output_blocks_; }
  int64_t units() const { return p_.n * strip_.strips; }

  // [output][input][kh][kw]
  int64_t block_floats() const { return outputs_ * rows_; }
  int64_t scratch_floats() const { return x_floats_ + outputs_ * flat_ + 2 * strip_.pitch; }

  void add(const Place& at, const Place&, float* sums, float* scratch) const {
    const auto [block, unit] = at;
    const int64_t n = unit / strip_.strips, strip = unit % strip_.strips, group = block / output_blocks_;
    const int64_t first = first_output(block), outputs = end_output(block) - first;
    const int64_t rows = std::min(strip_.output_rows, p_.oh - strip * strip_.output_rows);
    float *dz = scratch + x_floats_, *temporary = dz + outputs_ * flat_;
    for (int64_t c = 0; c < p_.in_per_group(); ++c)
      fill_plane(p_, strip_, strip, x_, n, group * p_.in_per_group() + c, scratch + c * plane_, temporary);
    for (int64_t o = 0; o < outputs; ++o)
      fill_gradient(n, group * p_.out_per_group() + first + o, strip, rows, dz + o * flat_, temporary);
    const int64_t vectors = ceil_div(rows * strip_.pitch, kLanes);
    for (int64_t o = 0; o < outputs;) {
      const int64_t count = outputs - o >= 4 ? 4 : outputs - o >= 2 ? 2 : 1;
      const float* from = dz + o * flat_;
      if (count == 4)
        add_outputs<4>(vectors, scratch, from, sums);
      else if (count == 2)
        add_outputs<2>(vectors, scratch, from, sums);
      else
        add_outputs<1>(vectors, scratch, from, sums);
      sums += count * rows_;
      o += count;
    }
  }

  void write(int64_t block, const float* sums) const {
    for (int64_t o = first_output(block); o < end_output(block); ++o)
      for (int64_t c = 0; c < p_.in_per_group(); ++c)
        for (int64_t i = 0; i < p_.kh; ++i)
          for (int64_t j = 0; j < p_.kw; ++j) dw_[p_.weight(block / output_blocks_, o, c, i, j)] = *sums++;
  }

 private:
  static constexpr int64_t kFloats = 6 * 1024;  // three quarters of L1
  static constexpr int64_t kMostOutputs = 16;

  int64_t first_output(int64_t block) const { return block % output_blocks_ * outputs_; }
  int64_t end_output(int64_t block) const {
    return std::min(first_output(block) + outputs_, p_.out_per_group());
  }

  // The gaps between rows were zero and stay so.
  void fill_gradient(int64_t n, int64_t channel, int64_t strip, int64_t rows, float* to,
                     float* temporary) const {
    int64_t from =
        n * p_.y_stride[0] + channel * p_.y_stride[1] + strip * strip_.output_rows * p_.y_stride[2];
    for (int64_t r = 0; r < rows; ++r, from += p_.y_stride[2]) {
      int64_t step = p_.y_stride[3];
      const float* row = dy_.row(from, channel, p_.ow, temporary, step);
      copy_row(row, step, p_.ow, to + r * strip_.pitch);
    }
    std::memset(to + rows * strip_.pitch, 0, (flat_ - rows * strip_.pitch) * sizeof(float));
  }

  template <int kOutputs>
  void add_outputs(int64_t vectors, const float* x, const float* dz, float* sums) const {
    constexpr int kMost = std::min(9, (kRegisters == 32 ? 24 : 12) / kOutputs);
    for (int64_t row = 0; row < rows_;) {
      const int64_t count = ceil_div(rows_ - row, ceil_div(rows_ - row, kMost));
      add_rows<kOutputs, kMost>(count, vectors, x, offsets_.get() + row, dz, sums + row);
      row += count;
    }
  }

  template <int kOutputs, int kCount>
  void add_rows(int64_t count, int64_t vectors, const float* x, const int64_t* offsets, const float* dz,
                float* sums) const {
    if constexpr (kCount > 1)
      if (count < kCount) return add_rows<kOutputs, kCount - 1>(count, vectors, x, offsets, dz, sums);
    add_rows<kOutputs, kCount>(vectors, x, offsets, dz, sums);
  }

  template <int kOutputs, int kCount>
  __attribute__((noinline)) void add_rows(int64_t vectors, const float* x, const int64_t* offsets,
                                          const float* dz, float* sums) const {
    const float* at[kCount];
    unroll<kCount>([&](auto t) RK_INLINE_LAMBDA { at[t] = x + offsets[t]; });
    constexpr int kSums = kOutputs * kCount, kVectors = (kSums + kLanes - 1) / kLanes;
    Vec acc[kVectors * kLanes] = {};
    for (int64_t i = 0; i < vectors * kLanes; i += kLanes) {
      const auto input = [&](int t) RK_INLINE_LAMBDA { return load(at[t] + i); };
      const auto gradient = [&](int o) RK_INLINE_LAMBDA { return load(dz + o * flat_ + i); };
      // The fewer are loaded first.
      if constexpr (kOutputs < kCount)
        add_products<kOutputs, kCount, kCount, 1>(gradient, input, acc);
      else
        add_products<kCount, kOutputs, 1, kCount>(input, gradient, acc);
    }
    float total[kVectors * kLanes];
    unroll<kVectors>([&](auto v)
                         RK_INLINE_LAMBDA { store(total + v * kLanes, sum_lanes(acc + v * kLanes)); });
    unroll<kOutputs>([&](auto o) RK_INLINE_LAMBDA {
      unroll<kCount>([&](auto t) RK_INLINE_LAMBDA { sums[o * rows_ + t] += total[o * kCount + t]; });
    });
  }

  // acc[i * kNextI + j * kNextJ] += a(i) * b(j)
  template <int kCountI, int kCountJ, int kNextI, int kNextJ, class A, class B>
  static RK_INLINE void add_products(A a, B b, Vec* acc) {
    Vec kept[kCountI];
    unroll<kCountI>([&](auto i) RK_INLINE_LAMBDA {
      kept[i] = a(i);
      keep_in_register(kept[i]);
    });
    unroll<kCountJ>([&](auto j) RK_INLINE_LAMBDA {
      Vec factor = b(j);
      keep_in_register(factor);
      unroll<kCountI>([&](auto i) RK_INLINE_LAMBDA {
        Vec& sum = acc[i * kNextI + j * kNextJ];
        sum = fma(kept[i], factor, sum);
      });
    });
  }

  const ConvProblem& p_;
  const Input x_, dy_;
  float* const dw_;
  const int64_t output_blocks_, outputs_;
  const PaddedStrip strip_;
  const int64_t taps_, rows_, plane_, flat_, x_floats_;
  const std::unique_ptr<int64_t[]> offsets_;
};

}  // namespace
}  // namespace rk::cpu::RK_ISA
