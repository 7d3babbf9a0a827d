// Channels-last convolution with 2^n <= kLanes channels a group, in and out alike.
//
// A vector holds kLanes neighbouring channels, that is kLanes / kGroup whole groups, and so do its outputs.
// Every output channel needs every input channel of its group: kGroup times, the vector's lanes are permuted
// within their groups and multiplied by weights laid out to match. No lane is wasted, and x is read in place;
// cells outside the image are read from a vector of zeros.
#pragma once
#include "cpu/grouped_conv2d_common-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

alignas(64) constexpr float kZeros[kLanes] = {};

// The channel within its group that lane `lane` holds after permutation kStep. Duplicating odd or even lanes
// comes free with the load, so only every second step costs a shuffle.
template <int kGroup>
constexpr int permuted_channel(int lane, int step) {
  return kGroup == 1 ? 0 : ((lane & ~1) ^ step) % kGroup & ~1 | (step & 1);
}

template <int kGroup, int kStep>
RK_INLINE Vec load_permuted(const float* p) {
  if constexpr (kGroup == 1) return load(p);
  return xor_lanes<(kStep & ~1)>(repeat_lanes<kStep & 1>(load(p)));
}

template <int kGroup>
class Rotation {
 public:
  static bool supports(const ConvProblem& p) {
    return p.in_per_group() == kGroup && p.out_per_group() == kGroup && p.c_in >= kLanes &&
           p.x_stride[1] == 1 && p.y_stride[1] == 1;
  }

  Rotation(const ConvProblem& p, const float* x, const float* w, float* y, const Epilogue& epilogue)
      : p_(p),
        x_(x),
        y_(y),
        epilogue_(epilogue),
        taps_together_(p.kw % 3 == 0 && p.dilation[1] == 1 && p.stride[1] <= 2 ? 3 : 1),
        blocks_(ceil_div(p.c_out, kLanes)),
        block_size_(p.kh * p.kw * kGroup * kLanes),
        weights_(blocks_ * block_size_) {
    if (!weights_.data()) throw std::bad_alloc();
    for (int64_t b = 0; b < blocks_; ++b)
      pack(w + first_channel(b) * p.w_stride[0], weights_.data() + b * block_size_);
  }

  // A task is one row of one block of channels.
  int64_t tasks() const { return p_.n * p_.oh * blocks_; }
  int64_t scratch_floats() const { return 0; }

  void range(int64_t begin, int64_t end, float*) const {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task % blocks_, row = task / blocks_ % p_.oh, n = task / blocks_ / p_.oh;
      if (taps_together_ == 1)
        convolve_row<1, 1>(n, row, block);
      else if (p_.stride[1] == 1)
        convolve_row<3, 1>(n, row, block);
      else
        convolve_row<3, 2>(n, row, block);
    }
  }

 private:
  static constexpr int kMostPixels = kRegisters == 32 ? 14 : 7;

  // The last block ends at the last channel; those it shares with the block before are not stored again.
  int64_t first_channel(int64_t block) const { return std::min(block * kLanes, p_.c_out - kLanes); }

  // [kh][kw / taps_together][step][taps_together][lane]
  void pack(const float* w, float* to) const {
    for (int64_t i = 0; i < p_.kh; ++i)
      for (int64_t j = 0; j < p_.kw; j += taps_together_)
        for (int step = 0; step < kGroup; ++step)
          for (int64_t t = 0; t < taps_together_; ++t)
            for (int lane = 0; lane < kLanes; ++lane)
              *to++ = w[lane * p_.w_stride[0] + permuted_channel<kGroup>(lane, step) * p_.w_stride[1] +
                        i * p_.w_stride[2] + (j + t) * p_.w_stride[3]];
  }

  template <int kTaps, int kStride>
  void convolve_row(int64_t n, int64_t row, int64_t block) const {
    const Finish finish(epilogue_, first_channel(block), kLanes);
    for (int64_t column = 0; column < p_.ow;) {
      const int64_t left = p_.ow - column;
      if (kMostPixels > 7 && left > 7) {
        convolve_tile<kTaps, kStride, kMostPixels>(n, row, column, block, finish);
        column += kMostPixels;
      } else {
        convolve_tile<kTaps, kStride, 7>(n, row, column, block, finish);
        column += 7;
      }
    }
  }

  template <int kTaps, int kStride, int kPixels>
  void convolve_tile(int64_t n, int64_t row, int64_t column, int64_t block, const Finish& finish) const {
    constexpr int kCells = (kPixels - 1) * kStride + kTaps;
    const int64_t channel = first_channel(block), step = kTaps == 1 ? p_.stride[1] : 1;
    const float* image = x_ + n * p_.x_stride[0] + channel;
    const float* w = weights_.data() + block * block_size_;
    Vec acc[kPixels] = {};
    for (int64_t i = 0; i < p_.kh; ++i) {
      const int64_t y = row * p_.stride[0] + i * p_.dilation[0] - p_.padding[0];
      if (y < 0 || y >= p_.h) {
        w += p_.kw * kGroup * kLanes;
        continue;
      }
      for (int64_t j = 0; j < p_.kw; j += kTaps) {
        const int64_t first = column * p_.stride[1] + j * p_.dilation[1] - p_.padding[1];
        const float* cells[kCells];
        unroll<kCells>([&](auto q) RK_INLINE_LAMBDA {
          const int64_t at = first + q * step;
          cells[q] = at >= 0 && at < p_.w ? image + y * p_.x_stride[2] + at * p_.x_stride[3] : kZeros;
        });
        unroll<kGroup>([&](auto s) RK_INLINE_LAMBDA {
          Vec weight[kTaps];
          unroll<kTaps>([&](auto t) RK_INLINE_LAMBDA { weight[t] = load(w + (s * kTaps + t) * kLanes); });
          unroll<kCells>([&](auto q) RK_INLINE_LAMBDA {
            const Vec in = load_permuted<kGroup, s>(cells[q]);
            unroll<kTaps>([&](auto t) RK_INLINE_LAMBDA {
              constexpr int kOffset = q - t;
              if constexpr (kOffset >= 0 && kOffset % kStride == 0 && kOffset / kStride < kPixels)
                acc[kOffset / kStride] = fma(in, weight[t], acc[kOffset / kStride]);
            });
          });
        });
        w += kGroup * kTaps * kLanes;
      }
    }
    Vec sums[kPixels];
    unroll<kPixels>([&](auto q) RK_INLINE_LAMBDA { store(reinterpret_cast<float*>(&sums[q]), acc[q]); });
    store_tile(sums, std::min<int64_t>(kPixels, p_.ow - column), finish, block * kLanes - channel,
               y_ + n * p_.y_stride[0] + row * p_.y_stride[2] + column * p_.y_stride[3] + channel);
  }

  // Stores all lanes but the first `skip`.
  void store_tile(const Vec* sums, int64_t pixels, const Finish& finish, int64_t skip, float* to) const {
    for (int64_t q = 0; q < pixels; ++q, to += p_.y_stride[3]) {
      const Vec v = finish(sums[q]);
      if (skip == 0)
        store(to, v);
      else
        for (int64_t lane = skip; lane < kLanes; ++lane) to[lane] = v[lane];
    }
  }

  const ConvProblem& p_;
  const float* const x_;
  float* const y_;
  const Epilogue& epilogue_;
  const int64_t taps_together_, blocks_, block_size_;
  const Scratch weights_;
};

}  // namespace
}  // namespace rk::cpu::RK_ISA
