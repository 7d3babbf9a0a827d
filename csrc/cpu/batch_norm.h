#pragma once
#include <cstdint>

// The arithmetic of BatchNorm on vectors of c channels, between the passes over images.
namespace rk::cpu {

// var = m2 / count, and scale * z + shift = (z - mean) / sqrt(var + eps) * weight + bias, for every z. A null
// weight is 1, a null bias is 0.
void bn_fold(int64_t c, const float* mean, const float* m2, const float* weight, const float* bias, float eps,
             int64_t count, float* var, float* rstd, float* scale, float* shift);

// scale * g + b * z + shift = scale * (g - mean of g - xhat * mean of g * xhat), for every g and z.
void bn_coefficients(int64_t c, const float* sum_g, const float* sum_g_xhat, const float* mean,
                     const float* rstd, const float* scale, int64_t count, float* b, float* shift);

// (1 - momentum) * running + momentum * value in place, the variance's being the unbiased.
void bn_update_running(int64_t c, float* running_mean, float* running_var, const float* mean,
                       const float* var, int64_t count, double momentum);

}  // namespace rk::cpu
