// Channels-last convolution with 2^n <= kLanes channels a group, in and out alike.
//
// Written for floats: a vector holds kLanes neighbouring channels, that is kLanes / kGroup whole groups, and
// so do its outputs. Every output channel needs every input channel of its group: kGroup times, the vector's
// lanes are permuted within their groups and multiplied by weights laid out to match, so that no lane is
// wasted. Permutations within four lanes are made on the fly, beside the multiply-adds; those beyond cost
// more and are made once, when a vector enters the ring.
#pragma once
#include "cpu/grouped_conv2d_ring-inl.h"
#include "cpu/lanes-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

template <int kGroup, class Lane>
class Rotation {
 public:
  static bool supports(const ConvProblem& p) {
    return p.in_per_group() == kGroup && p.out_per_group() == kGroup && p.c_in >= kLanes &&
           p.x_stride[1] == 1 && p.y_stride[1] == 1 && p.stride[1] <= 2;
  }

  Rotation(const Parts& parts, const Input& x, const Epilogue& epilogue)
      : parts_(parts),
        p_(parts.window),
        x_(x),
        epilogue_(epilogue),
        ring_(p_, tile_width<kMostPixels>(p_.ow)),
        blocks_(ceil_div(p_.c_out, kLanes)),
        block_size_(parts.taps() * kSteps * kLanes),
        weights_(blocks_ * block_size_) {
    if (!weights_.data()) throw std::bad_alloc();
  }

  int64_t blocks() const { return blocks_; }
  int64_t weights_floats() const { return blocks_ * block_size_; }

  // [part][kh][kw / taps][permutation][taps][lane]. Lane l of permutation s meets lane l ^ s of the input.
  void pack(int64_t block) const {
    float* to = weights_.data() + block * block_size_;
    for (const Parts::Part& part : parts_) {
      int64_t filters[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        const int64_t out = first_channel(block) + lane;
        filters[lane] = part.p.weight(out / kGroup, out % kGroup, 0, 0, 0);
      }
      const int64_t taps = taps_at_once(part.p);
      for (int64_t i = 0; i < part.p.kh; ++i)
        for (int64_t j = 0; j < part.p.kw; j += taps)
          for (int s = 0; s < kSteps; ++s)
            for (int64_t t = j; t < j + taps; ++t, to += kLanes)
              pack_lanes(part.w + i * part.p.w_stride[3] + t * part.p.w_stride[4], filters, s,
                         part.p.w_stride[2], to);
    }
  }

  // A task is a strip of rows, one tile wide and one block of channels deep.
  int64_t tasks() const { return p_.n * ring_.strips * ring_.tiles * blocks_; }
  int64_t scratch_floats() const { return kCopies * ring_.plane + ring_.cells * kLanes; }

  void range(int64_t begin, int64_t end, float* ring) const {
    with_tile_width<kMostPixels>(ring_.pixels, [&](auto pixels) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t next = std::min(task / blocks_ + 1, (end - 1) / blocks_);
        p_.stride[1] == 1 ? convolve<pixels, 1>(task, next, ring) : convolve<pixels, 2>(task, next, ring);
      }
    });
  }

 private:
  // Permutations of one input vector in the ring, and of each of these on the fly. Weights of kAtOnce
  // permutations fit the registers.
  static constexpr int kSteps = kGroup / Lane::kChannels;
  static constexpr int kCopies = kSteps > 4 ? kSteps / 4 : 1;
  static constexpr int kPermutations = kSteps / kCopies;
  static constexpr int kSides = 2;  // of a row, computed in step: neighbouring cells add to the same sums
  static constexpr int kAtOnce = kRegisters == 32 ? kPermutations : 1;
  static constexpr int kMostPixels = kRegisters == 32 ? 14 : 8;

  // The weights of one tap that permutation s meets.
  static void pack_lanes(const float* w, const int64_t* filters, int s, int64_t next_input, float* to) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t input = (lane ^ s) % kSteps * Lane::kChannels;
      to[lane] = Lane::pack(w + filters[lane] + input * next_input, next_input, Lane::kChannels);
    }
  }

  // The last block ends at the last channel; those it shares with the block before are not stored again.
  int64_t first_channel(int64_t block) const { return std::min(block * kLanes, p_.c_out - kLanes); }

  // Neighbouring taps whose products share a load.
  static int64_t taps_at_once(const ConvProblem& part) {
    if (part.dilation[1] > 1) return 1;
    return part.kw == 3 || (part.kw == 2 && part.stride[1] == 1) ? part.kw : 1;
  }

  template <int kPixels, int kStride>
  __attribute__((noinline)) void convolve(int64_t task, int64_t next_tile, float* ring) const {
    const Ring::Place at = ring_.place(p_, task / blocks_), next = ring_.place(p_, next_tile);
    const int64_t block = task % blocks_, channel = first_channel(block);
    const auto fill = [&](int64_t x, int64_t count, float* cells) RK_INLINE_LAMBDA {
      Lane::copy(x_, x, channel, count, p_.x_stride[3], kLanes, ring + kCopies * ring_.plane,
                 [&](int64_t q, Vec cell) RK_INLINE_LAMBDA {
                   const Vec v = Lane::template spread<kGroup>(cell);
                   unroll<kCopies>([&](auto m) RK_INLINE_LAMBDA {
                     store(cells + m * ring_.plane + q * kLanes, xor_lanes<m * kPermutations>(v));
                   });
                 });
    };
    ring_.walk(p_, x_, at, channel, next, block, ring, kCopies, fill,
               [&](int64_t row, RowsPrefetcher rows) RK_INLINE_LAMBDA {
                 const float* w = weights_.data() + block * block_size_;
                 for (const Parts::Part& part : parts_) {
                   const int64_t pixels = std::min<int64_t>(kPixels, part.p.ow - at.column);
                   if (row < part.p.oh && pixels > 0)
                     compute_row<kPixels, kStride>({part, block, row, at.column, pixels, at.y}, ring, w,
                                                   rows);
                   w += part.p.kh * part.p.kw * kSteps * kLanes;
                 }
               });
  }

  // A part's outputs in one row of a tile.
  struct Row {
    const Parts::Part& part;
    int64_t block, row, column, pixels, image;
  };

  template <int kPixels, int kStride>
  RK_INLINE void compute_row(const Row& at, float* ring, const float* w, RowsPrefetcher& rows) const {
    switch (taps_at_once(at.part.p)) {
      case 3:
        return compute_row<kPixels, kStride, 3>(at, ring, w, rows);
      case 2:
        if constexpr (kStride == 1) return compute_row<kPixels, kStride, 2>(at, ring, w, rows);
      default:
        return compute_row<kPixels, kStride, 1>(at, ring, w, rows);
    }
  }

  template <int kPixels, int kStride, int kTaps>
  __attribute__((noinline)) void compute_row(const Row& at, float* ring, const float* w,
                                             RowsPrefetcher& rows) const {
    const ConvProblem& p = at.part.p;
    const Output out(at.part.y, p.dtype);
    const int64_t channel = first_channel(at.block);
    const int64_t y = at.image + at.row * p.y_stride[2] + at.column * p.y_stride[3] + channel;
    for (int64_t q = 0; q < at.pixels; ++q) prefetch_for_write(out.at(y + p.y_stride[2] + q * p.y_stride[3]));
    Vec acc[kPixels] = {};
    for (int64_t i = 0; i < p.kh; ++i, w += p.kw * kSteps * kLanes) {
      const int64_t row = at.row * p.stride[0] - p.padding[0] + i * p.dilation[0];
      if (row >= 0 && row < p.h)
        add_row<kPixels, kStride, kTaps>(p, ring_.row(ring, row) + parts_.across(p) * kLanes, w, acc, rows);
    }
    store_tile(acc, at.pixels, Finish(epilogue_, channel, kLanes), at.block * kLanes - channel, kLanes, out,
               y, p.y_stride[3]);
  }

  // Adds one kernel row's taps to a tile.
  template <int kPixels, int kStride, int kTaps>
  RK_INLINE void add_row(const ConvProblem& p, const float* cells, const float* w, Vec (&acc)[kPixels],
                         RowsPrefetcher& rows) const {
    for (int64_t j = 0; j < p.kw; j += kTaps, cells += p.dilation[1] * kLanes)
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
              acc[kOffset / kStride] = Lane::multiply_add(permuted, weight[s][t], acc[kOffset / kStride]);
          });
        });
      });
    });
  }

  const Parts& parts_;
  const ConvProblem& p_;  // the window of the parts
  const Input x_;
  const Epilogue& epilogue_;
  const Ring ring_;
  const int64_t blocks_, block_size_;
  const Scratch weights_;
};

}  // namespace
}  // namespace rk::cpu::RK_ISA
