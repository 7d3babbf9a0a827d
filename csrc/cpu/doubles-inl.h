// Vectors of doubles, for sums that roundings of floats would spoil.
#pragma once
#include "cpu/simd.h"

namespace rk::cpu::RK_ISA {
namespace {

// kLanes doubles, those of the first lanes before those of the others.
struct Doubles {
  typedef double Half __attribute__((vector_size(kLanes / 2 * sizeof(double))));
  Half first, last;
};

RK_INLINE Doubles operator+(Doubles a, Doubles b) { return {a.first + b.first, a.last + b.last}; }
RK_INLINE Doubles operator-(Doubles a, Doubles b) { return {a.first - b.first, a.last - b.last}; }
RK_INLINE Doubles operator*(Doubles a, Doubles b) { return {a.first * b.first, a.last * b.last}; }
RK_INLINE Doubles& operator+=(Doubles& a, Doubles b) { return a = a + b; }

RK_INLINE Doubles to_doubles(Vec v) {
#if defined(__AVX512F__)
  return {(Doubles::Half)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v)),
          (Doubles::Half)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1))};
#elif defined(__AVX2__)
  return {(Doubles::Half)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v)),
          (Doubles::Half)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1))};
#else
  Doubles result;
  for (int i = 0; i < kLanes / 2; ++i) result.first[i] = v[i], result.last[i] = v[i + kLanes / 2];
  return result;
#endif
}

// Rounded to nearest.
RK_INLINE Vec to_floats(Doubles v) {
  Vec result;
  for (int i = 0; i < kLanes / 2; ++i) {
    result[i] = static_cast<float>(v.first[i]);
    result[i + kLanes / 2] = static_cast<float>(v.last[i]);
  }
  return result;
}

RK_INLINE Doubles sum_lanes(Doubles v) {
  double sum = 0;
  for (int i = 0; i < kLanes / 2; ++i) sum += v.first[i] + v.last[i];
  return {sum - Doubles::Half{}, sum - Doubles::Half{}};
}

RK_INLINE Doubles first_lanes_of(Doubles v, int64_t count) {
  for (int64_t i = count; i < kLanes; ++i) (i < kLanes / 2 ? v.first[i] : v.last[i - kLanes / 2]) = 0;
  return v;
}

}  // namespace
}  // namespace rk::cpu::RK_ISA
