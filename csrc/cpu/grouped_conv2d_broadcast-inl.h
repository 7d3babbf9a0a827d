// Channels-last convolution with any number of channels a group: a vector holds output channels of one group,
// and every input channel of a pixel is broadcast to it. Lanes past the group's end are wasted.
#pragma once
#include "cpu/grouped_conv2d_ring-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

class Broadcast {
 public:
  static bool supports(const ConvProblem& p) {
    return p.y_stride[1] == 1 && p.x_stride[1] == 1 && p.c_out > 1 && p.stride[1] <= 2;
  }

  Broadcast(const ConvProblem& p, const Input& x, const float* w, void* y, const Epilogue& epilogue)
      : p_(p),
        x_(x),
        w_(w),
        y_(y, p.dtype),
        epilogue_(epilogue),
        vectors_(p.out_per_group() > kLanes ? 2 : 1),
        ring_(p, vectors_ == 2 ? tile_width<kMostPixels<2>>(p.ow) : tile_width<kMostPixels<1>>(p.ow)),
        planes_(ceil_div(p.in_per_group(), kLanes)),
        blocks_per_group_(ceil_div(p.out_per_group(), vectors_ * kLanes)),
        block_size_(p.kh * p.kw * p.in_per_group() * vectors_ * kLanes),
        weights_(blocks() * block_size_) {
    if (!weights_.data()) throw std::bad_alloc();
  }

  int64_t blocks() const { return p_.groups * blocks_per_group_; }
  int64_t weights_floats() const { return blocks() * block_size_; }

  // [kh][kw][channel][vector][lane], zero where the group has ended.
  void pack(int64_t block) const {
    for (int64_t v = 0; v < vectors_; ++v) {
      const int64_t first = first_output(block) + v * kLanes;
      const int64_t count = std::clamp(end_output(block) - first, int64_t{0}, int64_t{kLanes});
      float* to = weights_.data() + block * block_size_ + v * kLanes;
      const int64_t g = block / blocks_per_group_;
      const float* w = w_ + p_.weight(g, first - g * p_.out_per_group(), 0, 0, 0);
      if (count == kLanes && p_.w_stride[4] == 1 && p_.w_stride[3] == p_.kw &&
          p_.w_stride[2] == p_.kh * p_.kw)
        pack_rows(w, to);
      else
        pack_elements(w, count, to);
    }
  }

  // A task is a strip of rows, one tile wide and one block of output channels deep.
  int64_t tasks() const { return p_.n * ring_.strips * ring_.tiles * blocks(); }
  int64_t scratch_floats() const { return planes_ * ring_.plane + ring_.cells * kLanes; }

  void range(int64_t begin, int64_t end, float* ring) const {
    for (int64_t task = begin; task < end; ++task)
      vectors_ == 2 ? convolve<2>(task, ring) : convolve<1>(task, ring);
  }

 private:
  template <int kVectors>
  static constexpr int kMostPixels = kRegisters == 32 ? 14
                                     : kVectors == 2  ? 6
                                                      : 8;

  int64_t first_output(int64_t block) const {
    return block / blocks_per_group_ * p_.out_per_group() + block % blocks_per_group_ * vectors_ * kLanes;
  }
  int64_t end_output(int64_t block) const { return (block / blocks_per_group_ + 1) * p_.out_per_group(); }

  // Filters that are rows of floats [channel][kh][kw] are transposed, kLanes of them by kLanes floats at a
  // time.
  void pack_rows(const float* w, float* to) const {
    const int64_t taps = p_.kh * p_.kw, length = p_.in_per_group() * taps, next = vectors_ * kLanes;
    int64_t tap = 0, channel = 0;
    for (int64_t k = 0; k < length; k += kLanes) {
      const int64_t count = std::min<int64_t>(kLanes, length - k);
      Vec rows[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) rows[lane] = load_first(w + lane * p_.w_stride[1] + k, count);
      transpose(rows);
      for (int64_t i = 0; i < count; ++i) {
        store(to + (tap * p_.in_per_group() + channel) * next, rows[i]);
        if (++tap == taps) tap = 0, ++channel;
      }
    }
  }

  void pack_elements(const float* w, int64_t count, float* to) const {
    for (int64_t i = 0; i < p_.kh; ++i)
      for (int64_t j = 0; j < p_.kw; ++j)
        for (int64_t c = 0; c < p_.in_per_group(); ++c, to += vectors_ * kLanes)
          for (int64_t lane = 0; lane < count; ++lane) to[lane] = w[p_.weight(0, lane, c, i, j)];
  }

  template <int kVectors>
  void convolve(int64_t task, float* ring) const {
    with_tile_width<kMostPixels<kVectors>>(ring_.pixels, [&](auto pixels) {
      p_.stride[1] == 1 ? convolve<kVectors, pixels, 1>(task, ring)
                        : convolve<kVectors, pixels, 2>(task, ring);
    });
  }

  template <int kVectors, int kPixels, int kStride>
  __attribute__((noinline)) void convolve(int64_t task, float* ring) const {
    const int64_t block = task % blocks(), column = task / blocks() % ring_.tiles * kPixels,
                  strip = task / blocks() / ring_.tiles % ring_.strips,
                  n = task / blocks() / ring_.tiles / ring_.strips;
    const int64_t channel = first_output(block), count = end_output(block) - channel;
    const int64_t first_input = block / blocks_per_group_ * p_.in_per_group();
    const int64_t pixels = std::min<int64_t>(kPixels, p_.ow - column);
    const int64_t tile = n * p_.y_stride[0] + column * p_.y_stride[3] + channel;
    const auto fill = [&](int64_t x, int64_t cells, float* to) RK_INLINE_LAMBDA {
      for (int64_t plane = 0; plane < planes_; ++plane) {
        const int64_t lanes = std::min<int64_t>(p_.in_per_group() - plane * kLanes, kLanes);
        int64_t step = p_.x_stride[3];
        const float* from = x_.pixels(x + plane * kLanes, first_input + plane * kLanes, cells, lanes,
                                      ring + planes_ * ring_.plane, step);
        float* cell = to + plane * ring_.plane;
        for (int64_t q = 0; q < cells; ++q, from += step, cell += kLanes)
          store(cell, lanes == kLanes ? load(from) : load_first(from, lanes));
      }
    };
    ring_.walk(p_, x_, n * p_.x_stride[0] + first_input, strip, column, ring, planes_, fill,
               [&](int64_t row, int64_t top, Prefetcher prefetch_next) RK_INLINE_LAMBDA {
                 Vec acc[kVectors][kPixels] = {};
                 sum_tile<kVectors, kPixels, kStride>(top, ring, weights_.data() + block * block_size_, acc,
                                                      prefetch_next);
                 unroll<kVectors>([&](auto v) RK_INLINE_LAMBDA {
                   const int64_t lanes = std::min<int64_t>(kLanes, count - v * kLanes);
                   if (lanes > 0)
                     store_tile(acc[v], pixels, Finish(epilogue_, channel + v * kLanes, lanes), 0, lanes, y_,
                                tile + row * p_.y_stride[2] + v * kLanes, p_.y_stride[3]);
                 });
               });
  }

  template <int kVectors, int kPixels, int kStride>
  RK_INLINE void sum_tile(int64_t top, float* ring, const float* w, Vec (&acc)[kVectors][kPixels],
                          Prefetcher& prefetch_next) const {
    for (int64_t i = 0; i < p_.kh; ++i) {
      const int64_t row = top + i * p_.dilation[0];
      if (row < 0 || row >= p_.h) {
        w += p_.kw * p_.in_per_group() * kVectors * kLanes;
        continue;
      }
      const float* cells = ring_.row(ring, row);
      for (int64_t j = 0; j < p_.kw; ++j, cells += p_.dilation[1] * kLanes)
        for (int64_t plane = 0; plane < planes_; ++plane) {
          unroll<2 * kStride>([&](auto) RK_INLINE_LAMBDA { prefetch_next(); });
          const float* x = cells + plane * ring_.plane;
          const float* end = x + std::min<int64_t>(kLanes, p_.in_per_group() - plane * kLanes);
          for (; x < end; ++x, w += kVectors * kLanes) {
            Vec weight[kVectors];
            unroll<kVectors>([&](auto v) RK_INLINE_LAMBDA { weight[v] = load(w + v * kLanes); });
            unroll<kPixels>([&](auto q) RK_INLINE_LAMBDA {
              const Vec in = broadcast(x[q * kStride * kLanes]);
              unroll<kVectors>([&](auto v) RK_INLINE_LAMBDA { acc[v][q] = fma(in, weight[v], acc[v][q]); });
            });
          }
        }
    }
  }

  const ConvProblem& p_;
  const Input x_;
  const float* const w_;
  const Output y_;
  const Epilogue& epilogue_;
  const int64_t vectors_;
  const Ring ring_;
  const int64_t planes_, blocks_per_group_, block_size_;
  const Scratch weights_;
};

}  // namespace
}  // namespace rk::cpu::RK_ISA
