// Compiled once per ISA with RK_ISA naming the namespace.
#include "cpu/affine_act-inl.h"
#include "cpu/bn_act_reduce-inl.h"
#include "cpu/bn_stats-inl.h"
#include "cpu/grouped_conv2d-inl.h"
#include "cpu/grouped_conv2d_dgrad-inl.h"
#include "cpu/grouped_conv2d_wgrad-inl.h"
#include "cpu/kernels.h"
#include "cpu/peak-inl.h"

#define RK_STRING_(x) #x
#define RK_STRING(x) RK_STRING_(x)

namespace rk::cpu::RK_ISA {

namespace {

constexpr Kernels with_forward(const char* isa, decltype(Kernels::grouped_conv2d_fwd) forward) {
  return {isa,
          forward,
          bn_stats,
          affine_act,
          bn_act_reduce,
          affine_act_backward,
          grouped_conv2d_dgrad,
          grouped_conv2d_wgrad,
          fma_gflops};
}

}  // namespace

// Constants of the compiler: code that runs at load would use instructions the CPU may lack.
extern const Kernels kKernels;
constexpr Kernels kKernels = with_forward(RK_STRING(RK_ISA), grouped_conv2d_fwd);

#if defined(__AVX512BF16__)
extern const Kernels kBfloat16Kernels;
constexpr Kernels kBfloat16Kernels = with_forward("avx512_bf16", grouped_conv2d_fwd_bfloat16);
#endif

}  // namespace rk::cpu::RK_ISA
