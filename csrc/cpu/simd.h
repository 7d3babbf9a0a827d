#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "problem.h"

// The native vector of the ISA this file is compiled for; the enclosing namespace keeps the copies apart.
namespace rk::cpu::RK_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t IntVec __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef uint32_t BitsVec __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef uint16_t HalfVec __attribute__((vector_size(kLanes * sizeof(uint16_t))));

// Storage of two bytes.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

#define RK_INLINE inline __attribute__((always_inline))
#define RK_INLINE_LAMBDA __attribute__((always_inline))

RK_INLINE Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

RK_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

RK_INLINE Vec broadcast(float value) { return value - Vec{}; }

#if defined(__AVX2__) && !defined(__AVX512F__)
RK_INLINE __m256i first_lanes(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif

// The first count lanes; nothing past them is touched. Lanes not loaded are zero.
RK_INLINE Vec load_first(const float* p, int64_t count) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
#elif defined(__AVX2__)
  return (Vec)_mm256_maskload_ps(p, first_lanes(count));
#else
  Vec v = {};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
#endif
}

// Lanes [begin, end), lane i to p[i]; nothing else is touched.
RK_INLINE void store_lanes(float* p, Vec v, int64_t begin, int64_t end) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << end) - (1u << begin)), (__m512)v);
#elif defined(__AVX2__)
  _mm256_maskstore_ps(p, _mm256_andnot_si256(first_lanes(begin), first_lanes(end)), (__m256)v);
#else
  for (int64_t i = begin; i < end; ++i) p[i] = v[i];
#endif
}

// a * b + c, fused where the ISA can. Intrinsics, because contraction is off.
RK_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

#if defined(__AVX512BF16__)
// sum + the products of the two bfloat16 values in each lane of a and b.
RK_INLINE Vec add_dot_bfloat16(Vec a, Vec b, Vec sum) {
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

// The first count of twice as many values as there are lanes, two a lane; the others are zero.
RK_INLINE Vec load_halves(const BFloat16* p, int64_t count) {
  return (Vec)_mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << count) - 1), p);
}
#endif

// Keeps a loaded vector in a register. GCC otherwise repeats the load as a memory operand of every
// instruction that uses the vector, and unaligned loads are what a convolution along rows has too many of.
RK_INLINE void keep_in_register(Vec& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#else
  (void)v;
#endif
}

// Makes the compiler load again what it has loaded, rather than keep it in registers that it lacks.
RK_INLINE void forget_loads() { asm volatile("" : : : "memory"); }

RK_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }
RK_INLINE void prefetch_for_write(const void* p) { __builtin_prefetch(p, 1, 3); }

// Lane i of the result is lane kIndex[i] of a followed by b.
template <int... kIndex>
RK_INLINE Vec shuffle(Vec a, Vec b) {
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, kIndex...);
#else
  return __builtin_shuffle(a, b, IntVec{kIndex...});
#endif
}

// GCC 12 converts vectors of another length in halves.
RK_INLINE BitsVec widen_bits(HalfVec v) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return (BitsVec)_mm256_cvtepu16_epi32((__m128i)v);
#else
  return __builtin_convertvector(v, BitsVec);
#endif
}

// All lanes are below 2^16.
RK_INLINE HalfVec narrow_bits(BitsVec v) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i packed = _mm256_packus_epi32((__m256i)v, (__m256i)v);
  return (HalfVec)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
#else
  return __builtin_convertvector(v, HalfVec);
#endif
}

RK_INLINE Vec widen(HalfVec v, BFloat16) { return (Vec)(widen_bits(v) << 16); }

RK_INLINE Vec widen(HalfVec v, Float16) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps((__m256i)v);
#elif defined(__F16C__)
  return (Vec)_mm256_cvtph_ps((__m128i)v);
#else
  const BitsVec bits = __builtin_convertvector(v, BitsVec), magnitude = bits & 0x7fff;
  // The product moves the exponent's bias, of subnormals too.
  const BitsVec finite = (BitsVec)((Vec)(magnitude << 13) * 0x1p112f);
  return (Vec)((magnitude >= 0x7c00 ? magnitude << 13 | 0x7f800000 : finite) | (bits & 0x8000) << 16);
#endif
}

// To nearest, ties to even; NaN stays NaN.
RK_INLINE HalfVec narrow(Vec v, BFloat16) {
  const BitsVec bits = (BitsVec)v;
  const BitsVec rounded = bits + 0x7fff + (bits >> 16 & 1);
  return narrow_bits((v != v ? bits | 0x400000 : rounded) >> 16);
}

RK_INLINE HalfVec narrow(Vec v, Float16) {
#if defined(__AVX512F__)
  return (HalfVec)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
  return (HalfVec)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const BitsVec sign = (BitsVec)v >> 31 << 15, bits = (BitsVec)v & 0x7fffffff;
  const Vec magnitude = (Vec)bits;
  // 0.5 has the spacing of binary16's subnormals: the sum is rounded to it.
  const BitsVec subnormal = (BitsVec)(magnitude + 0.5f) - 0x3f000000;
  const BitsVec normal = (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13;
  const BitsVec finite = magnitude < 0x1p-14f ? subnormal : normal;
  const BitsVec infinite = magnitude != magnitude ? BitsVec{} + 0x7e00 : BitsVec{} + 0x7c00;
  return __builtin_convertvector((magnitude < 65520.f ? finite : infinite) | sign, HalfVec);
#endif
}

template <class Half>
RK_INLINE Vec load(const Half* p) {
  HalfVec v;
  std::memcpy(&v, p, sizeof v);
  return widen(v, Half{});
}

template <class Half>
RK_INLINE Vec load_first(const Half* p, int64_t count) {
  HalfVec v = {};
  std::memcpy(&v, p, count * sizeof(Half));
  return widen(v, Half{});
}

// The first count lanes, of which all is the common case.
template <class T>
RK_INLINE Vec load_up_to(const T* p, int64_t count) {
  return count == kLanes ? load(p) : load_first(p, count);
}

template <class Half>
RK_INLINE void store(Half* p, Vec v) {
  const HalfVec half = narrow(v, Half{});
  std::memcpy(p, &half, sizeof half);
}

template <class Half>
RK_INLINE void store_lanes(Half* p, Vec v, int64_t begin, int64_t end) {
  uint16_t half[kLanes];
  store(reinterpret_cast<Half*>(half), v);
  std::memcpy(p + begin, half + begin, (end - begin) * sizeof(Half));
}

template <class T>
RK_INLINE void store_first(T* p, Vec v, int64_t count) {
  store_lanes(p, v, 0, count);
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// In pieces: some CPUs take tens of cycles for a masked store.
RK_INLINE void store_first(float* p, Vec v, int64_t count) {
  __m128 part = _mm256_castps256_ps128((__m256)v);
  if (count & 8) return store(p, v);
  if (count & 4) {
    _mm_storeu_ps(p, part);
    part = _mm256_extractf128_ps((__m256)v, 1), p += 4;
  }
  if (count & 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(p), part);
    part = _mm_movehl_ps(part, part), p += 2;
  }
  if (count & 1) _mm_store_ss(p, part);
}
#endif

// Lanes [begin, end), lane i to p[i * step].
template <class T>
RK_INLINE void store_apart(T* p, Vec v, int64_t begin, int64_t end, int64_t step) {
  T lanes[kLanes];
  store(lanes, v);
  for (int64_t i = begin; i < end; ++i) p[i * step] = lanes[i];
}

// The first count lanes, lane i from p[i * step]; the others are zero.
template <class T>
RK_INLINE Vec load_apart(const T* p, int64_t count, int64_t step) {
  T lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i * step];
  return load(lanes);
}

template <class T>
RK_INLINE void store_up_to(T* p, Vec v, int64_t count) {
  count == kLanes ? store(p, v) : store_first(p, v, count);
}

// Calls body(T{}) with the storage type that dtype names.
template <class Body>
RK_INLINE void with_dtype(DType dtype, Body body) {
  if (dtype == DType::kFloat32)
    body(float{});
  else if (dtype == DType::kBFloat16)
    body(BFloat16{});
  else
    body(Float16{});
}

using Lanes = std::make_integer_sequence<int, kLanes>;

template <int kMask, int... kLane>
RK_INLINE Vec xor_lanes(Vec v, std::integer_sequence<int, kLane...>) {
  return shuffle<(kLane ^ kMask)...>(v, v);
}

template <int... kLane>
RK_INLINE Vec even_lanes(Vec a, Vec b, std::integer_sequence<int, kLane...>) {
  return shuffle<(2 * kLane)...>(a, b);
}

// The first count lanes, lane i from p[2 * i]; nothing past p[2 * (count - 1)] is touched.
template <class T>
RK_INLINE Vec load_even(const T* p, int64_t count) {
  const int64_t span = 2 * count - 1;
  const Vec first = load_up_to(p, span < kLanes ? span : kLanes);
  const Vec second = span > kLanes ? load_first(p + kLanes, span - kLanes) : Vec{};
  return even_lanes(first, second, Lanes{});
}

// Lanes of a and b in turns, from kFirst on.
template <int kFirst, int... kLane>
RK_INLINE Vec zip_lanes(Vec a, Vec b, std::integer_sequence<int, kLane...>) {
  return shuffle<(kFirst + kLane / 2 + kLane % 2 * kLanes)...>(a, b);
}

// One butterfly of a transpose: swaps the kBit-set lanes of a with the kBit-clear lanes of b.
template <int kBit, int... kLane>
RK_INLINE void exchange(Vec& a, Vec& b, std::integer_sequence<int, kLane...>) {
  const Vec low = shuffle<(kLane & kBit ? kLanes + (kLane ^ kBit) : kLane)...>(a, b);
  b = shuffle<(kLane & kBit ? kLanes + kLane : kLane ^ kBit)...>(a, b);
  a = low;
}

// Lane i of v lands at lane i ^ kMask.
template <int kMask>
RK_INLINE Vec xor_lanes(Vec v) {
  return xor_lanes<kMask>(v, Lanes{});
}

// The sum of all lanes, in every lane.
template <int kBit = 1>
RK_INLINE Vec sum_lanes(Vec v) {
  if constexpr (kBit < kLanes) return sum_lanes<2 * kBit>(v + xor_lanes<kBit>(v));
  return v;
}

template <int... kLane>
RK_INLINE Vec first_lanes_of(Vec v, int64_t count, std::integer_sequence<int, kLane...>) {
  return IntVec{kLane...} < static_cast<int32_t>(count) ? v : Vec{};
}

// Calls body(integral_constant<int, i>) for i in [0, kCount): loops whose arrays must stay in registers.
template <class Body, int... kIndex>
RK_INLINE void unroll(Body&& body, std::integer_sequence<int, kIndex...>) {
  (body(std::integral_constant<int, kIndex>{}), ...);
}

template <int kCount, class Body>
RK_INLINE void unroll(Body&& body) {
  unroll(body, std::make_integer_sequence<int, kCount>{});
}

// v with zeros after its first count lanes.
RK_INLINE Vec first_lanes_of(Vec v, int64_t count) { return first_lanes_of(v, count, Lanes{}); }

// The even lanes of a followed by b.
RK_INLINE Vec even_lanes(Vec a, Vec b) { return even_lanes(a, b, Lanes{}); }

// The first and the second kLanes of the lanes of a and b in turns.
RK_INLINE Vec zip_first(Vec a, Vec b) { return zip_lanes<0>(a, b, Lanes{}); }
RK_INLINE Vec zip_second(Vec a, Vec b) { return zip_lanes<kLanes / 2>(a, b, Lanes{}); }

template <int kBit = 1>
RK_INLINE void transpose(Vec (&rows)[kLanes]) {
  if constexpr (kBit < kLanes) {
    unroll<kLanes>([&](auto i) RK_INLINE_LAMBDA {
      if constexpr (!(i & kBit)) exchange<kBit>(rows[i], rows[i | kBit], Lanes{});
    });
    transpose<2 * kBit>(rows);
  }
}

// Lane i of the result is the sum of the lanes of rows[i], kLanes of them, which are used up.
template <int kBit = 1>
RK_INLINE Vec sum_lanes(Vec* rows) {
  if constexpr (kBit < kLanes) {
    unroll<kLanes / (2 * kBit)>([&](auto pair) RK_INLINE_LAMBDA {
      constexpr int i = 2 * kBit * pair;
      exchange<kBit>(rows[i], rows[i + kBit], Lanes{});
      rows[i] += rows[i + kBit];
    });
    return sum_lanes<2 * kBit>(rows);
  }
  return rows[0];
}

}  // namespace
}  // namespace rk::cpu::RK_ISA
