// Compiled once per ISA with RK_ISA naming the namespace.
#include "cpu/grouped_conv2d-inl.h"
#include "cpu/grouped_conv2d_wgrad-inl.h"
#include "cpu/kernels.h"
#include "cpu/peak-inl.h"

#define RK_STRING_(x) #x
#define RK_STRING(x) RK_STRING_(x)

namespace rk::cpu::RK_ISA {

extern const Kernels kKernels;
const Kernels kKernels = {RK_STRING(RK_ISA), grouped_conv2d_fwd, grouped_conv2d_wgrad, fma_gflops};

}  // namespace rk::cpu::RK_ISA
