#pragma once
#include "platform.h"

// One, two or four floats that memory moves at once, aligned to as many.
namespace rk::cuda {

template <int kCount>
struct FloatVector;
template <>
struct FloatVector<1> {
  using Type = float;
  static __device__ __forceinline__ void unpack(float v, float (&values)[1]) { values[0] = v; }
  static __device__ __forceinline__ float pack(const float (&values)[1]) { return values[0]; }
};
template <>
struct FloatVector<2> {
  using Type = float2;
  static __device__ __forceinline__ void unpack(const float2& v, float (&values)[2]) {
    values[0] = v.x, values[1] = v.y;
  }
  static __device__ __forceinline__ float2 pack(const float (&values)[2]) { return {values[0], values[1]}; }
};
template <>
struct FloatVector<4> {
  using Type = float4;
  static __device__ __forceinline__ void unpack(const float4& v, float (&values)[4]) {
    values[0] = v.x, values[1] = v.y, values[2] = v.z, values[3] = v.w;
  }
  static __device__ __forceinline__ float4 pack(const float (&values)[4]) {
    return {values[0], values[1], values[2], values[3]};
  }
};

// Of global memory; zeros where not `any`.
template <int kCount>
__device__ __forceinline__ void load_if(bool any, const float* from, float (&values)[kCount]) {
#pragma unroll
  for (float& value : values) value = 0;
  if (any) FloatVector<kCount>::unpack(load_global<typename FloatVector<kCount>::Type>(from), values);
}

}  // namespace rk::cuda
