#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

namespace rk::cpu {

namespace baseline {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels, kBfloat16Kernels;
}

namespace {

const Kernels& choose() {
  const char* forced = std::getenv("RESNEXT_KERNELS_CPU_ISA");
  const std::string name = forced ? forced : "";
#ifdef RK_HAVE_avx512
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
#ifdef RK_HAVE_avx512_bf16
  if (has_avx512 && __builtin_cpu_supports("avx512bf16") && (name.empty() || name == "avx512_bf16"))
    return avx512::kBfloat16Kernels;
#endif
  if (has_avx512 && (name.empty() || name == "avx512")) return avx512::kKernels;
#endif
#ifdef RK_HAVE_avx2
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (has_avx2 && (name.empty() || name == "avx2")) return avx2::kKernels;
#endif
#ifdef RK_HAVE_baseline
  if (name.empty() || name == "baseline") return baseline::kKernels;
#endif
  throw std::runtime_error(
      "RESNEXT_KERNELS_CPU_ISA: expected baseline, avx2, avx512 or avx512_bf16 as this CPU allows, got " +
      name);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

std::vector<const char*> compiled_isas() {
  return {
#ifdef RK_HAVE_baseline
      "baseline",
#endif
#ifdef RK_HAVE_avx2
      "avx2",
#endif
#ifdef RK_HAVE_avx512
      "avx512",
#endif
#ifdef RK_HAVE_avx512_bf16
      "avx512_bf16",
#endif
  };
}

}  // namespace rk::cpu
