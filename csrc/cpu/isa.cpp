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

extern const Kernels kKernels;
const Kernels kKernels = {RK_STRING(RK_ISA),    grouped_conv2d_fwd,   bn_stats,
                          affine_act,           bn_act_reduce,        affine_act_backward,
                          grouped_conv2d_dgrad, grouped_conv2d_wgrad, fma_gflops};

}  // namespace rk::cpu::RK_ISA
