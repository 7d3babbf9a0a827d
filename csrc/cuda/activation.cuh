#pragma once
#include "element.h"
#include "problem.h"

// Activations of values stored as T, their derivatives, and what BatchNorm's backward makes of these; NaN
// passes, as in eager PyTorch.
namespace rk::cuda {

template <class T, Activation kActivation>
__device__ __forceinline__ float activate(float pre) {
  if constexpr (kActivation == Activation::kRelu) return pre <= 0 ? 0 : pre;
  if constexpr (kActivation == Activation::kIdentity) return pre;
  return sizeof(Storage<T>) == 2 ? pre * quick_sigmoid(pre) : pre / (1 + exponential(-pre));
}

// grad * act'(pre).
template <class T, Activation kActivation>
__device__ __forceinline__ float activation_grad(float grad, float pre) {
  if constexpr (kActivation == Activation::kRelu) return pre <= 0 ? 0 : grad;
  if constexpr (kActivation == Activation::kIdentity) return grad;
  const float sigmoid = sizeof(Storage<T>) == 2 ? quick_sigmoid(pre) : 1 / (1 + exponential(-pre));
  return grad * sigmoid * fused(pre, 1 - sigmoid, 1.f);
}

// What tells the slope: nothing, the affine output z * scale + shift, or y, of the same sign.
template <Activation kActivation, bool kOfY>
inline constexpr bool kOfAffine = kActivation != Activation::kIdentity && !kOfY;

// dy * act', y being read where the slope is of it alone.
template <class T, Activation kActivation, bool kOfY>
__device__ __forceinline__ float masked_grad(float dy, float z, float y, float scale, float shift) {
  return activation_grad<T, kActivation>(dy, kOfAffine<kActivation, kOfY> ? fused(z, scale, shift) : y);
}

// The gradient of z for g = dy * act'.
__device__ __forceinline__ float dz_of(float g, float z, float a, float b, float c) {
  return fused(a, g, fused(b, z, c));
}

}  // namespace rk::cuda
