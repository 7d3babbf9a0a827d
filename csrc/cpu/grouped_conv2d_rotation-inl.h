// Channels-last convolution with 2^n <= kLanes channels a group, in and out alike.
//
// A vector holds kLanes neighbouring channels, that is kLanes / kGroup whole groups, and so do its outputs.
// Every output channel needs every input channel of its group: kGroup times, the vector's lanes are permuted
// within their groups and multiplied by weights laid out to match, so that no lane is wasted. Shuffles would
// compete with the multiply-adds for a port: each input vector is shuffled once, when it enters the ring, and
// half of the permutations come free with the load from there.
#pragma once
#include "cpu/grouped_conv2d_ring-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

template <int kGroup>
class Rotation {
 public:
  static bool supports(const ConvProblem& p) {
    return p.in_per_group() == kGroup && p.out_per_group() == kGroup && p.c_in >= kLanes &&
           p.x_stride[1] == 1 && p.y_stride[1] == 1 && p.stride[1] <= 2;
  }

  Rotation(const ConvProblem& p, const Input& x, const float* w, void* y, const Epilogue& epilogue)
      : p_(p),
        x_(x),
        w_(w),
        y_(y, p.dtype),
        epilogue_(epilogue),
        ring_(p, tile_width<kMostPixels>(p.ow)),
        blocks_(ceil_div(p.c_out, kLanes)),
        taps_(p.kw == 3 && p.dilation[1] == 1 ? 3 : 1),
        block_size_(p.kh * p.kw * kGroup * kLanes),
        weights_(blocks_ * block_size_) {
    if (!weights_.data()) throw std::bad_alloc();
  }

  int64_t blocks() const { return blocks_; }
  int64_t weights_floats() const { return blocks_ * block_size_; }

  // [kh][kw / taps][permutation][taps][lane]. Lane l of permutation s meets channel l ^ (s & ~1) of its group
  // or, of the pair there, the one that s & 1 names.
  void pack(int64_t block) const {
    float* to = weights_.data() + block * block_size_;
    for (int64_t i = 0; i < p_.kh; ++i)
      for (int64_t j = 0; j < p_.kw; j += taps_)
        for (int s = 0; s < kGroup; ++s)
          for (int64_t t = j; t < j + taps_; ++t)
            for (int lane = 0; lane < kLanes; ++lane) {
              const int64_t out = first_channel(block) + lane;
              const int in = kGroup == 1 ? 0 : (((lane ^ s) % kGroup) & ~1) | (s & 1);
              *to++ = w_[p_.weight(out / kGroup, out % kGroup, in, i, t)];
            }
  }

  // A task is a strip of rows, one tile wide and one block of channels deep.
  int64_t tasks() const { return p_.n * ring_.strips * ring_.tiles * blocks_; }
  int64_t scratch_floats() const { return kCopies * ring_.plane + ring_.cells * kLanes; }

  void range(int64_t begin, int64_t end, float* ring) const {
    with_tile_width<kMostPixels>(ring_.pixels, [&](auto pixels) {
      for (int64_t task = begin; task < end; ++task) {
        if (p_.stride[1] == 1)
          taps_ == 3 ? convolve<pixels, 1, 3>(task, ring) : convolve<pixels, 1, 1>(task, ring);
        else
          taps_ == 3 ? convolve<pixels, 2, 3>(task, ring) : convolve<pixels, 2, 1>(task, ring);
      }
    });
  }

 private:
  static constexpr int kCopies = kGroup > 2 ? kGroup / 2 : 1;  // of an input vector in the ring
  static constexpr int kMostPixels = kRegisters == 32 ? 14 : 8;

  // The last block ends at the last channel; those it shares with the block before are not stored again.
  int64_t first_channel(int64_t block) const { return std::min(block * kLanes, p_.c_out - kLanes); }

  template <int kPixels, int kStride, int kTaps>
  __attribute__((noinline)) void convolve(int64_t task, float* ring) const {
    const int64_t block = task % blocks_, column = task / blocks_ % ring_.tiles * kPixels,
                  strip = task / blocks_ / ring_.tiles % ring_.strips,
                  n = task / blocks_ / ring_.tiles / ring_.strips;
    const int64_t channel = first_channel(block), pixels = std::min<int64_t>(kPixels, p_.ow - column);
    const Finish finish(epilogue_, channel, kLanes);
    const int64_t tile = n * p_.y_stride[0] + column * p_.y_stride[3] + channel;
    const auto fill = [&](int64_t x, int64_t count, float* cells) RK_INLINE_LAMBDA {
      int64_t step = p_.x_stride[3];
      const float* from = x_.pixels(x, channel, count, kLanes, ring + kCopies * ring_.plane, step);
      for (int64_t q = 0; q < count; ++q) {
        const Vec v = load(from + q * step);
        unroll<kCopies>([&](auto m) RK_INLINE_LAMBDA {
          store(cells + m * ring_.plane + q * kLanes, xor_lanes<2 * m>(v));
        });
      }
    };
    ring_.walk(p_, x_, n * p_.x_stride[0] + channel, strip, column, ring, kCopies, fill,
               [&](int64_t row, int64_t top, Prefetcher prefetch_next) RK_INLINE_LAMBDA {
                 const int64_t y = tile + row * p_.y_stride[2];
                 for (int64_t q = 0; q < pixels; ++q) prefetch_for_write(y_.at(y + q * p_.y_stride[3]));
                 Vec acc[kPixels] = {};
                 const float* w = weights_.data() + block * block_size_;
                 for (int64_t i = 0; i < p_.kh; ++i, w += p_.kw * kGroup * kLanes) {
                   const int64_t tap_row = top + i * p_.dilation[0];
                   if (tap_row >= 0 && tap_row < p_.h)
                     add_row<kPixels, kStride, kTaps>(ring_.row(ring, tap_row), w, acc, prefetch_next);
                 }
                 store_tile(acc, pixels, finish, block * kLanes - channel, kLanes, y_, y, p_.y_stride[3]);
               });
  }

  // Adds one kernel row's taps to a tile.
  template <int kPixels, int kStride, int kTaps>
  RK_INLINE void add_row(const float* cells, const float* w, Vec (&acc)[kPixels],
                         Prefetcher& prefetch_next) const {
    // Enough for the input of one row of outputs within the steps of a 3x3 kernel.
    constexpr int kPrefetches = (kMostPixels * kStride * kStride + 2 * kGroup - 1) / (2 * kGroup);
    for (int64_t j = 0; j < p_.kw; j += kTaps, cells += p_.dilation[1] * kLanes)
      for (int m = 0; m < kCopies; ++m)
        unroll<(kGroup == 1 ? 1 : 2)>([&](auto parity) RK_INLINE_LAMBDA {
          forget_loads();
          unroll<kPrefetches>([&](auto) RK_INLINE_LAMBDA { prefetch_next(); });
          Vec weight[kTaps];
          unroll<kTaps>([&](auto t) RK_INLINE_LAMBDA { weight[t] = load(w + t * kLanes); });
          w += kTaps * kLanes;
          unroll<(kPixels - 1) * kStride + kTaps>([&](auto q) RK_INLINE_LAMBDA {
            const float* cell = cells + m * ring_.plane + q * kLanes;
            const Vec x = kGroup == 1 ? load(cell) : load_repeated<parity>(cell);
            unroll<kTaps>([&](auto t) RK_INLINE_LAMBDA {
              constexpr int kOffset = q - t;
              if constexpr (kOffset >= 0 && kOffset % kStride == 0 && kOffset / kStride < kPixels)
                acc[kOffset / kStride] = fma(x, weight[t], acc[kOffset / kStride]);
            });
          });
        });
  }

  const ConvProblem& p_;
  const Input x_;
  const float* const w_;
  const Output y_;
  const Epilogue& epilogue_;
  const Ring ring_;
  const int64_t blocks_, taps_, block_size_;
  const Scratch weights_;
};

}  // namespace
}  // namespace rk::cpu::RK_ISA
