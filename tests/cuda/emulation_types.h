#pragma once
// The words and types of CUDA C++ that kernels use, and the 16-bit formats, by integers.
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

// Aligned as in CUDA: an access asks for an address that is a multiple of it.
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace rk::cuda {

struct Half {};
struct BFloat16 {};

namespace emulation {

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// What a conversion on the GPU makes of any NaN.
inline constexpr uint16_t kNan16 = 0x7fff;

// Drops the low `count` bits, of 1 to 31, to the nearest, of two the even.
inline uint32_t round_off(uint32_t bits, int count) {
  const uint32_t half = uint32_t{1} << (count - 1), odd = bits >> count & 1;
  return (bits + (half - 1) + odd) >> count;
}

template <class T>
uint16_t to_16_bits(float value);

template <>
inline uint16_t to_16_bits<Half>(float value) {
  const auto bits = bits_as<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return kNan16;
  // From 65520 on the nearest would be 65536.
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  const int exponent = static_cast<int>(magnitude >> 23);
  // A carry out of the mantissa is the next exponent.
  if (exponent >= 113) return static_cast<uint16_t>(sign | round_off(magnitude - (112u << 23), 13));
  // Below 2^-14 a unit is 2^-24; up to 2^-25, half of it, all becomes zero.
  if (magnitude <= 0x33000000) return static_cast<uint16_t>(sign);
  return static_cast<uint16_t>(sign | round_off((magnitude & 0x7fffff) | 0x800000, 126 - exponent));
}

template <>
inline uint16_t to_16_bits<BFloat16>(float value) {
  const auto bits = bits_as<uint32_t>(value);
  return (bits & 0x7fffffff) > 0x7f800000 ? kNan16 : static_cast<uint16_t>(round_off(bits, 16));
}

template <class T>
float from_16_bits(uint32_t bits);

template <>
inline float from_16_bits<Half>(uint32_t bits) {
  const uint32_t sign = (bits & 0x8000) << 16, magnitude = (bits & 0x7fff) << 13;
  if (magnitude >= 0x7c00u << 13) return bits_as<float>(sign | 0x7f800000 | (magnitude & 0x7fffff));
  // As a float the exponent is 112 too low; a product by 2^112 is exact, of subnormals too.
  return bits_as<float>(sign | bits_as<uint32_t>(bits_as<float>(magnitude) * 0x1p112f));
}

template <>
inline float from_16_bits<BFloat16>(uint32_t bits) {
  return bits_as<float>((bits & 0xffff) << 16);
}

}  // namespace emulation

template <class T>
uint32_t pack(float low, float high) {
  return emulation::to_16_bits<T>(low) | uint32_t{emulation::to_16_bits<T>(high)} << 16;
}

template <class T>
float2 unpack(uint32_t bits) {
  return {emulation::from_16_bits<T>(bits), emulation::from_16_bits<T>(bits >> 16)};
}

}  // namespace rk::cuda
