#pragma once
#include "platform.h"

namespace rk::cuda {

// A sum of floats and, of its roundings, the sum of what they lost: together nearly twice as many digits.
struct CompensatedSum {
  float sum = 0, lost = 0;

  // Of any order of magnitude (Knuth).
  __device__ __forceinline__ void add(float value) {
    const float total = sum + value, part = total - sum;
    lost += (sum - (total - part)) + (value - part);
    sum = total;
  }

  __device__ __forceinline__ void add(const CompensatedSum& other) {
    add(other.sum);
    lost += other.lost;
  }

  // factor * other.
  __device__ __forceinline__ void add(float factor, const CompensatedSum& other) {
    const float product = factor * other.sum;
    add(product);
    lost += fused(factor, other.sum, -product) + factor * other.lost;
  }

  // Rounded once. What an infinite sum lost is not a number.
  __device__ __forceinline__ float times(float factor) const {
    return lost == lost ? fused(sum, factor, lost * factor) : sum * factor;
  }
};

}  // namespace rk::cuda
