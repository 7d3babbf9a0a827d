// Activations and their derivatives; NaN passes, as in eager PyTorch.
#pragma once
#include <type_traits>

#include "cpu/simd.h"
#include "problem.h"

namespace rk::cpu::RK_ISA {
namespace {

// e^v to about one unit in the last place; NaN stays NaN.
inline Vec exp(Vec v) {
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vec x = v < -87.3f ? broadcast(-87.3f) : v > 88.7f ? broadcast(88.7f) : v;
  const Vec shifted = fma(x, broadcast(1.44269504f), broadcast(kRound));
  const Vec n = shifted - kRound;
  Vec r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  Vec sum = broadcast(1.9875691500e-4f);
  for (const float c :
       {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f, 1.f, 1.f})
    sum = fma(sum, r, broadcast(c));
  const IntVec exponent = (IntVec)shifted << 23;
  const Vec result = (Vec)((IntVec)sum + exponent);
  return v > 88.7f ? broadcast(__builtin_inff()) : result;
}

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

// Calls body(activation) with the activation as a constant.
template <class Body>
RK_INLINE void with_activation(Activation activation, Body body) {
  if (activation == Activation::kRelu)
    body(std::integral_constant<Activation, Activation::kRelu>{});
  else if (activation == Activation::kSilu)
    body(std::integral_constant<Activation, Activation::kSilu>{});
  else
    body(std::integral_constant<Activation, Activation::kIdentity>{});
}

// A per-channel vector for lanes of `count` neighbouring channels or, with 0, of one.
RK_INLINE Vec channel_vector(const float* values, int64_t channel, int64_t count) {
  return count ? load_up_to(values + channel, count) : broadcast(values[channel]);
}

// z * scale + shift, channels as in channel_vector.
struct AffineVectors {
  Vec scale, shift;

  RK_INLINE AffineVectors(const float* scale, const float* shift, int64_t channel, int64_t count)
      : scale(channel_vector(scale, channel, count)), shift(channel_vector(shift, channel, count)) {}

  RK_INLINE Vec operator()(Vec z) const { return fma(z, scale, shift); }
};

// BnBackward's formula, channels as in channel_vector.
struct BnBackwardVectors {
  AffineVectors pre;
  Vec a, b, c;
  Activation activation;

  RK_INLINE BnBackwardVectors(const BnBackward& bn, int64_t channel, int64_t count)
      : pre(bn.scale, bn.shift, channel, count),
        a(channel_vector(bn.a, channel, count)),
        b(channel_vector(bn.b, channel, count)),
        c(channel_vector(bn.c, channel, count)),
        activation(bn.activation) {}

  RK_INLINE Vec operator()(Vec dy, Vec z) const { return dz(activation_grad(dy, pre(z), activation), z); }
  RK_INLINE Vec dz(Vec g, Vec z) const { return fma(a, g, fma(b, z, c)); }
};

}  // namespace
}  // namespace rk::cpu::RK_ISA
