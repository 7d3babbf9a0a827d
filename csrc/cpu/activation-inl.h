// Activations and their derivatives; NaN passes, as in eager PyTorch.
#pragma once
#include "cpu/simd.h"
#include "problem.h"

namespace rk::cpu::RK_ISA {
namespace {

RK_INLINE Vec silu(Vec pre) { return pre / (1.f + exp(-pre)); }

RK_INLINE Vec activate(Vec pre, Activation activation) {
  if (activation == Activation::kRelu) return pre <= 0.f ? Vec{} : pre;
  return activation == Activation::kSilu ? silu(pre) : pre;
}

// grad * act'(pre).
RK_INLINE Vec activation_grad(Vec grad, Vec pre, Activation activation) {
  if (activation == Activation::kRelu) return pre <= 0.f ? Vec{} : grad;
  if (activation == Activation::kIdentity) return grad;
  const Vec sigmoid = 1.f / (1.f + exp(-pre));
  return grad * sigmoid * fma(pre, 1.f - sigmoid, broadcast(1.f));
}

// BnBackward's formula for lanes of neighbouring channels or, with count 0, of one.
struct BnBackwardVectors {
  Vec scale, shift, a, b, c;
  Activation activation;

  BnBackwardVectors(const BnBackward& bn, int64_t channel, int64_t count)
      : scale(vector(bn.scale, channel, count)),
        shift(vector(bn.shift, channel, count)),
        a(vector(bn.a, channel, count)),
        b(vector(bn.b, channel, count)),
        c(vector(bn.c, channel, count)),
        activation(bn.activation) {}

  RK_INLINE Vec operator()(Vec dy, Vec z) const {
    const Vec g = activation_grad(dy, fma(z, scale, shift), activation);
    return fma(a, g, fma(b, z, c));
  }

 private:
  static Vec vector(const float* values, int64_t channel, int64_t count) {
    return count ? load_first(values + channel, count) : broadcast(values[channel]);
  }
};

}  // namespace
}  // namespace rk::cpu::RK_ISA
