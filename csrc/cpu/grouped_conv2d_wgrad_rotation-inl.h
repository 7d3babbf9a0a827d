// Weight gradient with 2^n <= kLanes channels a group, in and out alike.
//
// A vector holds kLanes neighbouring channels, that is kLanes / kGroup whole groups. The gradient's lanes are
// permuted within their groups, kGroup times, and each permutation multiplied by the input at every tap: a
// lane then sums the gradient of one weight, and none is wasted. Rows of one channel (NCHW) are transposed to
// cells of neighbouring channels when they are copied.
#pragma once
#include "cpu/grouped_conv2d_wgrad_common-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

template <int kGroup>
class WgradRotation {
 public:
  static bool supports(const ConvProblem& p) {
    return p.in_per_group() == kGroup && p.out_per_group() == kGroup && p.c_in >= kLanes && p.stride[1] <= 2;
  }

  WgradRotation(const ConvProblem& p, const Input& dy, const Input& x, float* dw)
      : p_(p),
        x_(x, p.x_stride),
        dy_(dy, p.y_stride),
        dw_(dw),
        tiles_(p, kLanes, kCopies * kLanes, kFloats),
        taps_(p.kh * p.kw),
        x_floats_(tiles_.x_rows * tiles_.x_columns * kLanes),
        offsets_(new int64_t[taps_]) {
    for (int64_t i = 0; i < p.kh; ++i)
      for (int64_t j = 0; j < p.kw; ++j)
        offsets_[i * p.kw + j] = (i * p.dilation[0] * tiles_.x_columns + j * p.dilation[1]) * kLanes;
  }

  int64_t blocks() const { return ceil_div(p_.c_in, kLanes); }
  int64_t units() const { return p_.n * tiles_.count(); }

  // [permutation][tap][lane]
  int64_t block_floats() const { return kGroup * taps_ * kLanes; }

  int64_t scratch_floats() const {
    return x_floats_ + tiles_.rows * tiles_.columns * kCopies * kLanes +
           Cells::temporary_floats(tiles_.x_columns);
  }

  void add(const Place& at, const Place& next, float* sums, float* scratch) const {
    const Tile tile(p_, tiles_, at.unit);
    const int64_t next_channel = first_channel(next.block);
    TilePrefetcher prefetch_next(p_, tiles_, Tile(p_, tiles_, next.unit), x_, dy_, next_channel, kLanes,
                                 next_channel, kLanes);
    float* dz = scratch + x_floats_;
    fill(tile, first_channel(at.block), scratch, dz, dz + tiles_.rows * tiles_.columns * kCopies * kLanes);
    for (int m = 0; m < kCopies; ++m) {
      for (int64_t tap = 0, left = taps_; left > 0;) {
        const int64_t count = ceil_div(left, ceil_div(left, kMostTaps));
        add_taps<kMostTaps>(count, tile, scratch, offsets_.get() + tap, dz + m * kLanes,
                            sums + (m * kPermutations * taps_ + tap) * kLanes, prefetch_next);
        tap += count;
        left -= count;
      }
    }
  }

  // Lane l of permutation s has input channel l and output l ^ s.
  void write(int64_t block, const float* sums) const {
    const int64_t first = first_channel(block);
    for (int s = 0; s < kGroup; ++s)
      for (int64_t i = 0; i < p_.kh; ++i)
        for (int64_t j = 0; j < p_.kw; ++j, sums += kLanes)
          for (int64_t lane = block * kLanes - first; lane < kLanes; ++lane) {
            const int64_t in = (first + lane) % kGroup;
            dw_[p_.weight((first + lane) / kGroup, (lane ^ s) % kGroup, in, i, j)] = sums[lane];
          }
  }

 private:
  static constexpr int64_t kFloats = 9 * 1024;  // three quarters of L1
  // Permutations of one gradient vector in memory, and of each of these on the fly.
  static constexpr int kCopies = kGroup > 4 ? kGroup / 4 : 1;
  static constexpr int kPermutations = kGroup / kCopies;
  // Taps of one pass: their sums, the inputs and one gradient fit the registers.
  static constexpr int kMostTaps = kPermutations == 1 ? 9 : (kRegisters == 32 ? 24 : 12) / kPermutations;

  // The last block ends at the last channel; those it shares with the block before are not written again.
  int64_t first_channel(int64_t block) const { return std::min(block * kLanes, p_.c_in - kLanes); }

  __attribute__((noinline)) void fill(const Tile& tile, int64_t channel, float* x, float* dz,
                                      float* temporary) const {
    fill_input(p_, tiles_, tile, x_, channel, kLanes, kLanes, x, temporary,
               [](float* cell, Vec v, int64_t) RK_INLINE_LAMBDA { store(cell, v); });
    for (int64_t r = 0; r < tile.rows; ++r)
      dy_.copy(tile.n, tile.row + r, tile.column, tile.columns, channel, kLanes, temporary,
               [&](int64_t, Vec v, int64_t) RK_INLINE_LAMBDA {
                 unroll<kCopies>([&](auto m) RK_INLINE_LAMBDA {
                   store(dz + m * kLanes, xor_lanes<m * kPermutations>(v));
                 });
                 dz += kCopies * kLanes;
               });
  }

  template <int kTaps>
  void add_taps(int64_t count, const Tile& tile, const float* x, const int64_t* offsets, const float* dz,
                float* sums, TilePrefetcher& prefetch_next) const {
    if constexpr (kTaps > 1)
      if (count < kTaps) return add_taps<kTaps - 1>(count, tile, x, offsets, dz, sums, prefetch_next);
    p_.stride[1] == 1 ? add_taps<kTaps, 1>(tile, x, offsets, dz, sums, prefetch_next)
                      : add_taps<kTaps, 2>(tile, x, offsets, dz, sums, prefetch_next);
  }

  template <int kTaps, int kStride>
  __attribute__((noinline)) void add_taps(const Tile& tile, const float* x, const int64_t* offsets,
                                          const float* dz, float* sums, TilePrefetcher& prefetch_next) const {
    int64_t at[kTaps];
    unroll<kTaps>([&](auto t) RK_INLINE_LAMBDA { at[t] = offsets[t]; });
    Vec acc[kPermutations][kTaps] = {};
    for_each_row(tile.rows, prefetch_next, [&](int64_t r, auto prefetch) RK_INLINE_LAMBDA {
      const float* cell = x + r * p_.stride[0] * tiles_.x_columns * kLanes;
      for (int64_t q = 0; q < tile.columns; ++q, cell += kStride * kLanes, dz += kCopies * kLanes) {
        prefetch();
        Vec in[kTaps];
        unroll<kTaps>([&](auto t) RK_INLINE_LAMBDA {
          in[t] = load(cell + at[t]);
          keep_in_register(in[t]);
        });
        Vec grads = load(dz);
        keep_in_register(grads);
        unroll<kPermutations>([&](auto s) RK_INLINE_LAMBDA {
          const Vec grad = xor_lanes<s>(grads);
          unroll<kTaps>([&](auto t) RK_INLINE_LAMBDA { acc[s][t] = fma(grad, in[t], acc[s][t]); });
        });
      }
    });
    unroll<kPermutations>([&](auto s) RK_INLINE_LAMBDA {
      unroll<kTaps>([&](auto t) RK_INLINE_LAMBDA {
        float* sum = sums + (s * taps_ + t) * kLanes;
        store(sum, load(sum) + acc[s][t]);
      });
    });
  }

  const ConvProblem& p_;
  const Cells x_, dy_;
  float* const dw_;
  const Tiles tiles_;
  const int64_t taps_, x_floats_;
  const std::unique_ptr<int64_t[]> offsets_;
};

}  // namespace
}  // namespace rk::cpu::RK_ISA
