#include "cpu/batch_norm.h"

#include <cmath>

namespace rk::cpu {

void bn_fold(int64_t c, const float* mean, const float* m2, const float* weight, const float* bias, float eps,
             int64_t count, float* var, float* rstd, float* scale, float* shift) {
  for (int64_t i = 0; i < c; ++i) {
    var[i] = m2[i] / static_cast<float>(count);
    rstd[i] = 1.f / std::sqrt(var[i] + eps);
    scale[i] = weight ? rstd[i] * weight[i] : rstd[i];
    shift[i] = (bias ? bias[i] : 0.f) - mean[i] * scale[i];
  }
}

void bn_coefficients(int64_t c, const float* sum_g, const float* sum_g_xhat, const float* mean,
                     const float* rstd, const float* scale, int64_t count, float* b, float* shift) {
  const float n = static_cast<float>(count);
  for (int64_t i = 0; i < c; ++i) {
    b[i] = -scale[i] * rstd[i] * sum_g_xhat[i] / n;
    shift[i] = -scale[i] * sum_g[i] / n - b[i] * mean[i];
  }
}

void bn_update_running(int64_t c, float* running_mean, float* running_var, const float* mean,
                       const float* var, int64_t count, double momentum) {
  const float kept = static_cast<float>(1 - momentum), of_mean = static_cast<float>(momentum);
  const double values = static_cast<double>(count);
  const float of_var = static_cast<float>(momentum * values / (values - 1));
  for (int64_t i = 0; i < c; ++i) {
    running_mean[i] = kept * running_mean[i] + of_mean * mean[i];
    running_var[i] = kept * running_var[i] + of_var * var[i];
  }
}

}  // namespace rk::cpu
