// What a lane of a channels-last convolution's input and weights holds.
#pragma once
#include "cpu/image-inl.h"
#include "cpu/simd.h"

namespace rk::cpu::RK_ISA {
namespace {

// A channel, as a float.
struct FloatLanes {
  static constexpr int kChannels = 1;
  static RK_INLINE Vec multiply_add(Vec x, Vec w, Vec sum) { return fma(x, w, sum); }

  // The weight of the first of `channels` channels, `next` floats apart.
  static float pack(const float* w, int64_t, int64_t) { return *w; }

  // Adds to the lanes at `to` the weights of input `channel` for kLanes outputs; channels come in order.
  static void pack(float* to, Vec w, int64_t) { store(to, w); }

  // Calls store_cell(q, lanes) for `count` pixels, `step` elements apart, of the channels that a vector has
  // room for, or the first `channels` of them. `temporary` has kLanes floats a pixel.
  template <class StoreCell>
  static RK_INLINE void copy(const Input& x, int64_t offset, int64_t channel, int64_t count, int64_t step,
                             int64_t channels, float* temporary, StoreCell store_cell) {
    const float* from = x.pixels(offset, channel, count, channels, temporary, step);
    if (channels == kLanes)
      for (int64_t q = 0; q < count; ++q) store_cell(q, load(from + q * step));
    else
      for (int64_t q = 0; q < count; ++q) store_cell(q, load_first(from + q * step, channels));
  }

  // Lane l is channel l of the vector: nothing to do.
  template <int kGroup>
  static RK_INLINE Vec spread(Vec cell) {
    return cell;
  }
};

#if defined(__AVX512BF16__)
// Two neighbouring channels in bfloat16, whose products are added to a float in one instruction, the odd
// channel's first. Subnormals count as zero.
struct PairLanes {
  static constexpr int kChannels = 2;
  static RK_INLINE Vec multiply_add(Vec x, Vec w, Vec sum) { return add_dot_bfloat16(x, w, sum); }

  static float pack(const float* w, int64_t next, int64_t channels) {
    uint32_t even, odd = 0;
    std::memcpy(&even, w, sizeof even);
    if (channels > 1) std::memcpy(&odd, w + next, sizeof odd);
    const uint32_t pair = even >> 16 | odd;
    float result;
    std::memcpy(&result, &pair, sizeof result);
    return result;
  }

  static void pack(float* to, Vec w, int64_t channel) {
    store(to, (Vec)(channel % 2 ? (BitsVec)load(to) | (BitsVec)w : (BitsVec)w >> 16));
  }

  template <class StoreCell>
  static RK_INLINE void copy(const Input& x, int64_t offset, int64_t, int64_t count, int64_t step,
                             int64_t channels, float*, StoreCell store_cell) {
    const auto* from = reinterpret_cast<const BFloat16*>(x.at(offset));
    for (int64_t q = 0; q < count; ++q) store_cell(q, load_halves(from + q * step, channels));
  }

  // The pairs of each group, twice: a lane for every output.
  template <int kGroup, int... kLane>
  static RK_INLINE Vec spread(Vec cell, std::integer_sequence<int, kLane...>) {
    return shuffle<(kLane / kGroup * (kGroup / 2) + kLane % (kGroup / 2))...>(cell, cell);
  }
  template <int kGroup>
  static RK_INLINE Vec spread(Vec cell) {
    return spread<kGroup>(cell, Lanes{});
  }
};
#endif

}  // namespace
}  // namespace rk::cpu::RK_ISA
