// Channels-last convolution with 2^n <= kLanes channels a group, in and out alike.
//
// A vector holds kLanes neighbouring channels, that is kLanes / kGroup whole groups, and so do its outputs.
// Every output channel needs every input channel of its group: kGroup times, the vector's lanes are permuted
// within their groups and multiplied by weights laid out to match, so that no lane is wasted. Permutations
// within four lanes are made on the fly, beside the multiply-adds; those beyond cost more and are made once,
// when a vector enters the ring.
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

  // [kh][kw / taps][permutation][taps][lane]. Lane l of permutation s meets lane l ^ s of the input.
  void pack(int64_t block) const {
    float* to = weights_.data() + block * block_size_;
    for (int64_t i = 0; i < p_.kh; ++i)
      for (int64_t j = 0; j < p_.kw; j += taps_)
        for (int s = 0; s < kGroup; ++s)
          for (int64_t t = j; t < j + taps_; ++t)
            for (int lane = 0; lane < kLanes; ++lane) {
              const int64_t out = first_channel(block) + lane;
              *to++ = w_[p_.weight(out / kGroup, out % kGroup, (lane ^ s) % kGroup, i, t)];
            }
  }

  // A task is a strip of rows, one tile wide and one block of channels deep.
  int64_t tasks() const { return p_.n * ring_.strips * ring_.tiles * blocks_; }
  int64_t scratch_floats() const { return kCopies * ring_.plane + ring_.cells * kLanes; }

  void range(int64_t begin, int64_t end, float* ring) const {
    with_tile_width<kMostPixels>(ring_.pixels, [&](auto pixels) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t next = std::min(task / blocks_ + 1, (end - 1) / blocks_);
        if (p_.stride[1] == 1)
          taps_ == 3 ? convolve<pixels, 1, 3>(task, next, ring) : convolve<pixels, 1, 1>(task, next, ring);
        else
          taps_ == 3 ? convolve<pixels, 2, 3>(task, next, ring) : convolve<pixels, 2, 1>(task, next, ring);
      }
    });
  }

 private:
  // Permutations of one input vector in the ring, and of each of these on the fly. Weights of kAtOnce
  // permutations fit the registers.
  static constexpr int kCopies = kGroup > 4 ? kGroup / 4 : 1;
  static constexpr int kPermutations = kGroup / kCopies;
  static constexpr int kSides = 2;  // of a row, computed in step: neighbouring cells add to the same sums
  static constexpr int kAtOnce = kRegisters == 32 ? kPermutations : 1;
  static constexpr int kMostPixels = kRegisters == 32 ? 14 : 8;

  // The last block ends at the last channel; those it shares with the block before are not stored again.
  int64_t first_channel(int64_t block) const { return std::min(block * kLanes, p_.c_out - kLanes); }

  template <int kPixels, int kStride, int kTaps>
  __attribute__((noinline)) void convolve(int64_t task, int64_t next_tile, float* ring) const {
    const Ring::Place at = ring_.place(p_, task / blocks_), next = ring_.place(p_, next_tile);
    const int64_t block = task % blocks_, channel = first_channel(block);
    const int64_t pixels = std::min<int64_t>(kPixels, p_.ow - at.column);
    const Finish finish(epilogue_, channel, kLanes);
    const int64_t tile = at.y + at.column * p_.y_stride[3] + channel;
    const auto fill = [&](int64_t x, int64_t count, float* cells) RK_INLINE_LAMBDA {
      int64_t step = p_.x_stride[3];
      const float* from = x_.pixels(x, channel, count, kLanes, ring + kCopies * ring_.plane, step);
      for (int64_t q = 0; q < count; ++q) {
        const Vec v = load(from + q * step);
        unroll<kCopies>([&](auto m) RK_INLINE_LAMBDA {
          store(cells + m * ring_.plane + q * kLanes, xor_lanes<m * kPermutations>(v));
        });
      }
    };
    ring_.walk(p_, x_, at, channel, next, block, ring, kCopies, fill,
               [&](int64_t row, int64_t top, RowsPrefetcher rows) RK_INLINE_LAMBDA {
                 const int64_t y = tile + row * p_.y_stride[2];
                 for (int64_t q = 0; q < pixels; ++q)
                   prefetch_for_write(y_.at(y + p_.y_stride[2] + q * p_.y_stride[3]));
                 Vec acc[kPixels] = {};
                 const float* w = weights_.data() + block * block_size_;
                 for (int64_t i = 0; i < p_.kh; ++i, w += p_.kw * kGroup * kLanes) {
                   const int64_t tap_row = top + i * p_.dilation[0];
                   if (tap_row >= 0 && tap_row < p_.h)
                     add_row<kPixels, kStride, kTaps>(ring_.row(ring, tap_row), w, acc, rows);
                 }
                 store_tile(acc, pixels, finish, block * kLanes - channel, kLanes, y_, y, p_.y_stride[3]);
               });
  }

  // Adds one kernel row's taps to a tile.
  template <int kPixels, int kStride, int kTaps>
  RK_INLINE void add_row(const float* cells, const float* w, Vec (&acc)[kPixels],
                         RowsPrefetcher& rows) const {
    for (int64_t j = 0; j < p_.kw; j += kTaps, cells += p_.dilation[1] * kLanes)
      for (int m = 0; m < kCopies; ++m)
        unroll<kPermutations / kAtOnce>([&](auto part) RK_INLINE_LAMBDA {
          constexpr int kFirst = part * kAtOnce;
          const float* plane = cells + m * ring_.plane;
          if (rows.left > 0)
            add_permutations<kFirst, kPixels, kStride, kTaps>(plane, w, acc, rows.next());
          else
            add_permutations<kFirst, kPixels, kStride, kTaps>(plane, w, acc, [] {});
          w += kAtOnce * kTaps * kLanes;
        });
  }

  template <int kFirst, int kPixels, int kStride, int kTaps, class PrefetchNext>
  RK_INLINE void add_permutations(const float* cells, const float* w, Vec (&acc)[kPixels],
                                  PrefetchNext prefetch_next) const {
    forget_loads();
    Vec weight[kAtOnce][kTaps];
    unroll<kAtOnce * kTaps>([&](auto i)
                                RK_INLINE_LAMBDA { weight[i / kTaps][i % kTaps] = load(w + i * kLanes); });
    constexpr int kCells = (kPixels - 1) * kStride + kTaps, kHalf = (kCells + kSides - 1) / kSides;
    unroll<kHalf>([&](auto q) RK_INLINE_LAMBDA {
      Vec x[kSides];
      unroll<kSides>([&](auto side) RK_INLINE_LAMBDA {
        x[side] = load(cells + (q + side * kHalf) * kLanes);
        keep_in_register(x[side]);
        prefetch_next();
      });
      unroll<kAtOnce>([&](auto s) RK_INLINE_LAMBDA {
        unroll<kSides>([&](auto side) RK_INLINE_LAMBDA {
          const Vec permuted = xor_lanes<kFirst + s>(x[side]);
          unroll<kTaps>([&](auto t) RK_INLINE_LAMBDA {
            constexpr int kOffset = q + side * kHalf - t;
            if constexpr (kOffset >= 0 && kOffset % kStride == 0 && kOffset / kStride < kPixels)
              acc[kOffset / kStride] = fma(permuted, weight[s][t], acc[kOffset / kStride]);
          });
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
