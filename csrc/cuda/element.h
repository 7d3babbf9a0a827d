#pragma once
#include <type_traits>

#include "platform.h"

// Values in memory as the floats that kernels compute with. T: float, Half or BFloat16.
namespace rk::cuda {

template <class T>
struct Element {
  using Storage = uint16_t;
  using Vector = uint4;
  static constexpr int kVector = 8;

  static __device__ __forceinline__ float load(uint16_t bits) { return unpack<T>(bits).x; }
  static __device__ __forceinline__ uint16_t store(float value) {
    return static_cast<uint16_t>(pack<T>(value, 0));
  }
  static __device__ __forceinline__ void load(const uint4& vector, float (&values)[kVector]) {
    const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = unpack<T>(words[i]);
      values[2 * i] = pair.x, values[2 * i + 1] = pair.y;
    }
  }
  static __device__ __forceinline__ uint4 store(const float (&values)[kVector]) {
    return {pack<T>(values[0], values[1]), pack<T>(values[2], values[3]), pack<T>(values[4], values[5]),
            pack<T>(values[6], values[7])};
  }
};

template <>
struct Element<float> {
  using Storage = float;
  using Vector = float4;
  static constexpr int kVector = 4;

  static __device__ __forceinline__ float load(float value) { return value; }
  static __device__ __forceinline__ float store(float value) { return value; }
  static __device__ __forceinline__ void load(const float4& vector, float (&values)[kVector]) {
    values[0] = vector.x, values[1] = vector.y, values[2] = vector.z, values[3] = vector.w;
  }
  static __device__ __forceinline__ float4 store(const float (&values)[kVector]) {
    return {values[0], values[1], values[2], values[3]};
  }
};

template <class T>
using Storage = typename Element<T>::Storage;

// 16 bytes of memory, and how many elements those are.
template <class T>
using Vector = typename Element<T>::Vector;
template <class T>
inline constexpr int kVectorElements = Element<T>::kVector;

template <class T>
__device__ __forceinline__ float load_element(const Storage<T>* from) {
  return Element<T>::load(load_global<Storage<T>>(from));
}

template <class T>
__device__ __forceinline__ void store_element(Storage<T>* to, float value) {
  store_global(to, Element<T>::store(value));
}

// kCount elements as they are in memory, 1 or those of 16 bytes; and as floats.
template <class T, int kCount>
using Raw = std::conditional_t<kCount == 1, Storage<T>, Vector<T>>;

template <class T, int kCount>
__device__ __forceinline__ void unpack_raw(const Raw<T, kCount>& raw, float (&values)[kCount]) {
  if constexpr (kCount == 1)
    values[0] = Element<T>::load(raw);
  else
    Element<T>::load(raw, values);
}

// Consecutive elements: vectors of them if they begin at a multiple of 16 bytes, as kAligned says.
template <class T, bool kAligned, int kCount>
__device__ __forceinline__ void load_elements(const Storage<T>* from, float (&values)[kCount]) {
  constexpr int kVector = kVectorElements<T>;
  if constexpr (kAligned) {
    static_assert(kCount % kVector == 0);
#pragma unroll
    for (int i = 0; i < kCount; i += kVector) {
      float few[kVector];
      Element<T>::load(load_global<Vector<T>>(from + i), few);
#pragma unroll
      for (int j = 0; j < kVector; ++j) values[i + j] = few[j];
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = load_element<T>(from + i);
  }
}

template <class T, bool kAligned>
__device__ __forceinline__ void store_elements(Storage<T>* to, const float (&values)[kVectorElements<T>]) {
  if constexpr (kAligned) {
    store_global(to, Element<T>::store(values));
  } else {
#pragma unroll
    for (int i = 0; i < kVectorElements<T>; ++i) store_element<T>(to + i, values[i]);
  }
}

// Of host code, for kAligned; null is.
inline bool is_aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

}  // namespace rk::cuda
