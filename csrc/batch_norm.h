#pragma once
#include <cmath>
#include <cstdint>

namespace rk {

// BatchNorm in evaluation: per channel, float32; weight and bias may be null.
struct BatchNorm {
  const float *weight, *bias, *mean, *var;
  float eps;

  // scale * z + shift = (z - mean) / sqrt(var + eps) * weight + bias
  void fold(int64_t channels, float* scale, float* shift) const {
    for (int64_t c = 0; c < channels; ++c) {
      const float rstd = 1.f / std::sqrt(var[c] + eps);
      scale[c] = weight ? rstd * weight[c] : rstd;
      shift[c] = (bias ? bias[c] : 0.f) - mean[c] * scale[c];
    }
  }
};

}  // namespace rk
