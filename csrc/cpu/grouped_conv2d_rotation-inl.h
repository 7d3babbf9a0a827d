// Channels-last convolution with 2^n <= kLanes channels a group, in and out alike.
//
// A vector holds kLanes neighbouring channels, that is kLanes / kGroup whole groups, and so do its outputs.
// Every output channel needs every input channel of its group: kGroup times, the vector's lanes are permuted
// within their groups and multiplied by weights laid out to match, so that no lane is wasted. Shuffles would
// compete with the multiply-adds for a port: each input vector is shuffled once, when its row enters a ring
// of the rows that the kernel spans, and half of the permutations come free with the load from there.
#pragma once
#include "cpu/grouped_conv2d_common-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

template <int kGroup>
class Rotation {
 public:
  static bool supports(const ConvProblem& p) {
    return p.in_per_group() == kGroup && p.out_per_group() == kGroup && p.c_in >= kLanes &&
           p.x_stride[1] == 1 && p.y_stride[1] == 1 && p.stride[1] <= 2;
  }

  Rotation(const ConvProblem& p, const float* x, const float* w, float* y, const Epilogue& epilogue)
      : p_(p),
        x_(x),
        y_(y),
        epilogue_(epilogue),
        blocks_(ceil_div(p.c_out, kLanes)),
        block_size_(p.kh * p.kw * kGroup * kLanes),
        pixels_(tile_pixels(p.ow, kRegisters == 32 ? 14 : 8)),
        tiles_(ceil_div(p.ow, pixels_)),
        strips_(ceil_div(p.oh, kStripRows)),
        cells_((pixels_ - 1) * p.stride[1] + (p.kw - 1) * p.dilation[1] + 1),
        ring_rows_(power_of_two((p.kh - 1) * p.dilation[0] + 1)),
        weights_(blocks_ * block_size_) {
    if (!weights_.data()) throw std::bad_alloc();
    for (int64_t b = 0; b < blocks_; ++b)
      pack(w + first_channel(b) * p.w_stride[0], weights_.data() + b * block_size_);
  }

  // A task is a strip of rows, one tile wide and one block of channels deep.
  int64_t tasks() const { return p_.n * strips_ * blocks_ * tiles_; }
  int64_t scratch_floats() const { return ring_rows_ * cells_ * kCell; }

  void range(int64_t begin, int64_t end, float* ring) const {
    with_pixels(pixels_, [&](auto pixels) {
      const bool three = p_.kw == 3 && p_.dilation[1] == 1;
      if (p_.stride[1] == 1)
        three ? convolve<pixels, 1, 3>(begin, end, ring) : convolve<pixels, 1, 1>(begin, end, ring);
      else
        three ? convolve<pixels, 2, 3>(begin, end, ring) : convolve<pixels, 2, 1>(begin, end, ring);
    });
  }

 private:
  static constexpr int kCopies = kGroup > 2 ? kGroup / 2 : 1;  // of an input vector in the ring
  static constexpr int kCell = kCopies * kLanes;
  static constexpr int64_t kStripRows = 14;

  // The last block ends at the last channel; those it shares with the block before are not stored again.
  int64_t first_channel(int64_t block) const { return std::min(block * kLanes, p_.c_out - kLanes); }

  // [kh][kw / 3][permutation][3][lane], or with single taps where they are not used by threes. Lane l of
  // permutation s meets channel l ^ (s & ~1) of its group or, of the pair there, the one that s & 1 names.
  void pack(const float* w, float* to) const {
    const int64_t taps = p_.kw == 3 && p_.dilation[1] == 1 ? 3 : 1;
    for (int64_t i = 0; i < p_.kh; ++i)
      for (int64_t j = 0; j < p_.kw; j += taps)
        for (int s = 0; s < kGroup; ++s)
          for (int64_t t = j; t < j + taps; ++t)
            for (int lane = 0; lane < kLanes; ++lane) {
              const int channel = kGroup == 1 ? 0 : (((lane ^ s) % kGroup) & ~1) | (s & 1);
              *to++ = w[lane * p_.w_stride[0] + channel * p_.w_stride[1] + i * p_.w_stride[2] +
                        t * p_.w_stride[3]];
            }
  }

  template <int kPixels, int kStride, int kTaps>
  void convolve(int64_t begin, int64_t end, float* ring) const {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t tile = task % tiles_, block = task / tiles_ % blocks_,
                    strip = task / tiles_ / blocks_ % strips_, n = task / tiles_ / blocks_ / strips_;
      convolve_strip<kPixels, kStride, kTaps>(n, strip, block, tile * kPixels, ring);
    }
  }

  template <int kPixels, int kStride, int kTaps>
  void convolve_strip(int64_t n, int64_t strip, int64_t block, int64_t column, float* ring) const {
    const int64_t channel = first_channel(block), skip = block * kLanes - channel;
    const int64_t pixels = std::min<int64_t>(kPixels, p_.ow - column);
    const int64_t first_cell = column * kStride - p_.padding[1];
    const int64_t begin = std::clamp(-first_cell, int64_t{0}, cells_);
    const int64_t end = std::clamp(p_.w - first_cell, begin, cells_);
    for (int64_t r = 0; r < ring_rows_; ++r) {
      float* row = ring + r * cells_ * kCell;
      std::memset(row, 0, begin * kCell * sizeof(float));
      std::memset(row + end * kCell, 0, (cells_ - end) * kCell * sizeof(float));
    }
    const Finish finish(epilogue_, channel, kLanes);
    const float* x = x_ + n * p_.x_stride[0] + (first_cell + begin) * p_.x_stride[3] + channel;
    float* y = y_ + n * p_.y_stride[0] + column * p_.y_stride[3] + channel;
    const int64_t span = (p_.kh - 1) * p_.dilation[0] + 1;
    int64_t next = 0;
    for (int64_t row = strip * kStripRows; row < std::min((strip + 1) * kStripRows, p_.oh); ++row) {
      const int64_t top = row * p_.stride[0] - p_.padding[0];
      for (next = std::max(next, top); next < std::min(top + span, p_.h); ++next)
        fill_row(x + next * p_.x_stride[2], end - begin, ring_row(ring, next) + begin * kCell);
      Vec acc[kPixels] = {};
      const float* w = weights_.data() + block * block_size_;
      for (int64_t i = 0; i < p_.kh; ++i, w += p_.kw * kGroup * kLanes) {
        const int64_t tap_row = top + i * p_.dilation[0];
        if (tap_row >= 0 && tap_row < p_.h) add_row<kPixels, kStride, kTaps>(ring_row(ring, tap_row), w, acc);
      }
      store_tile<kPixels>(acc, pixels, finish, skip, y + row * p_.y_stride[2]);
    }
  }

  float* ring_row(float* ring, int64_t row) const { return ring + (row & (ring_rows_ - 1)) * cells_ * kCell; }

  void fill_row(const float* x, int64_t count, float* cells) const {
    const int64_t next_cell = p_.x_stride[3], ahead = p_.stride[0] * p_.x_stride[2];
    for (int64_t q = 0; q < count; ++q, x += next_cell, cells += kCell) {
      const Vec v = load(x);
      prefetch(x + ahead);
      unroll<kCopies>([&](auto m) RK_INLINE_LAMBDA { store(cells + m * kLanes, xor_lanes<2 * m>(v)); });
    }
  }

  // Adds one kernel row's taps to a tile.
  template <int kPixels, int kStride, int kTaps>
  RK_INLINE void add_row(const float* cells, const float* w, Vec (&acc)[kPixels]) const {
    constexpr int kSteps = kGroup == 1 ? 1 : 2;
    for (int64_t j = 0; j < p_.kw; j += kTaps, cells += p_.dilation[1] * kCell)
      for (int m = 0; m < kCopies; ++m)
        unroll<kSteps>([&](auto step) RK_INLINE_LAMBDA {
          forget_loads();
          Vec weight[kTaps];
          unroll<kTaps>([&](auto t) RK_INLINE_LAMBDA { weight[t] = load(w + t * kLanes); });
          w += kTaps * kLanes;
          unroll<(kPixels - 1) * kStride + kTaps>([&](auto q) RK_INLINE_LAMBDA {
            const float* cell = cells + m * kLanes + q * kCell;
            const Vec x = kGroup == 1 ? load(cell) : load_repeated<step>(cell);
            unroll<kTaps>([&](auto t) RK_INLINE_LAMBDA {
              constexpr int kOffset = q - t;
              if constexpr (kOffset >= 0 && kOffset % kStride == 0 && kOffset / kStride < kPixels)
                acc[kOffset / kStride] = fma(x, weight[t], acc[kOffset / kStride]);
            });
          });
        });
  }

  // Stores the first `pixels` and all lanes but the first `skip`.
  template <int kPixels>
  RK_INLINE void store_tile(const Vec (&acc)[kPixels], int64_t pixels, const Finish& finish, int64_t skip,
                            float* to) const {
    const int64_t next_pixel = p_.y_stride[3];
    if (pixels == kPixels && skip == 0 && !finish.silu) {
      unroll<kPixels>([&](auto q) RK_INLINE_LAMBDA { store(to + q * next_pixel, finish.bounded(acc[q])); });
      return;
    }
    Vec sums[kPixels];
    unroll<kPixels>([&](auto q) RK_INLINE_LAMBDA { sums[q] = acc[q]; });
    for (int64_t q = 0; q < pixels; ++q, to += next_pixel) {
      const Vec v = finish(sums[q]);
      for (int64_t lane = skip; lane < kLanes; ++lane) to[lane] = v[lane];
    }
  }

  const ConvProblem& p_;
  const float* const x_;
  float* const y_;
  const Epilogue& epilogue_;
  const int64_t blocks_, block_size_, pixels_, tiles_, strips_, cells_, ring_rows_;
  const Scratch weights_;
};

}  // namespace
}  // namespace rk::cpu::RK_ISA
