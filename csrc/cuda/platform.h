#pragma once
// Everything that kernels ask of the hardware, and the only place with PTX. The tests compile kernels with
// g++ against tests/cuda/emulation.h, which defines the same names.
//
// Rules that both rest on: shared memory is read and written by the functions below alone; results go to
// global memory by store_global; a warp's collectives are reached by all of its 32 lanes.
#ifdef RESNEXT_KERNELS_EMULATION
#include "emulation.h"
#else
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace rk::cuda {

// The 16-bit types are tags; their values are bits.
struct Half {};
struct BFloat16 {};

__device__ __forceinline__ unsigned thread_index() { return threadIdx.x; }
__device__ __forceinline__ unsigned block_index_x() { return blockIdx.x; }
__device__ __forceinline__ unsigned block_index_y() { return blockIdx.y; }
__device__ __forceinline__ unsigned block_count_x() { return gridDim.x; }

// The block's dynamic shared memory, aligned to 128 bytes.
__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char rk_shared[];
  return rk_shared;
}

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

template <class V>
__device__ __forceinline__ V load_shared(const void* shared) {
  return *static_cast<const V*>(shared);
}

template <class V>
__device__ __forceinline__ void store_shared(void* shared, V value) {
  *static_cast<V*>(shared) = value;
}

// Global memory that nothing writes while the kernel runs.
template <class V>
__device__ __forceinline__ V load_global(const void* global) {
  return __ldg(static_cast<const V*>(global));
}

// Every byte of a result is written once.
template <class V>
__device__ __forceinline__ void store_global(void* global, V value) {
  *static_cast<V*>(global) = value;
}

// kBytes, 4, 8 or 16, both addresses aligned to them; where not `valid`, zeros, and `global` is not touched.
template <int kBytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, bool valid) {
  const int from = valid ? kBytes : 0;
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global),
                 "r"(from)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(shared_address(shared)), "l"(global),
                 "n"(kBytes), "r"(from)
                 : "memory");
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits for this thread's copies, but those of its newest kPending groups.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// All threads of the block; what they wrote to shared memory before is visible after.
__device__ __forceinline__ void sync_threads() { __syncthreads(); }

// Four 8x8 matrices of 16-bit values: lanes 8i to 8i+7 give the 16-byte rows of matrix i, and lane l gets
// values 2(l%4) and 2(l%4)+1 of row l/4 of each.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// As ldmatrix_x4, of each matrix transposed: lane l gets values l/4 of rows 2(l%4) and 2(l%4)+1.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// The inverse of ldmatrix_x4.
__device__ __forceinline__ void stmatrix_x4(void* row, const uint32_t (&r)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(shared_address(row)),
      "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
      : "memory");
#else
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const auto target = __shfl_sync(0xffffffffu, reinterpret_cast<unsigned long long>(row), 8 * i + lane / 4);
    *(reinterpret_cast<uint32_t*>(target) + lane % 4) = r[i];
  }
#endif
}

// d = a * b + c, 16x16 times 16x8. With g = lane / 4 and q = lane % 4: a holds rows g, g+8, g, g+8 at columns
// 2q, 2q, 2q+8, 2q+8 and the next; b rows 2q, 2q+8 and the next at column g; c and d rows g, g, g+8, g+8 at
// columns 2q, 2q+1.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                             const float (&c)[4]);
template <>
__device__ __forceinline__ void mma_m16n8k16<Half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                   uint32_t b1, const float (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};\n"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]),
        "f"(c[3]));
}
template <>
__device__ __forceinline__ void mma_m16n8k16<BFloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                       uint32_t b1, const float (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};\n"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]),
        "f"(c[3]));
}

// d = a * b + c, 16x8 times 8x8: a holds rows g, g+8 at columns 2q and the next, b rows 2q and the next at
// column g.
template <class T>
__device__ __forceinline__ void mma_m16n8k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b,
                                            const float (&c)[4]);
template <>
__device__ __forceinline__ void mma_m16n8k8<Half>(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b,
                                                  const float (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, "
      "%10};\n"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a0), "r"(a1), "r"(b), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
template <>
__device__ __forceinline__ void mma_m16n8k8<BFloat16>(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b,
                                                      const float (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, "
      "%10};\n"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a0), "r"(a1), "r"(b), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// The value of the lane whose index differs by `mask`.
__device__ __forceinline__ float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// One rounding: a * b + c.
__device__ __forceinline__ float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }

// The greater; NaN where either is.
__device__ __forceinline__ float maximum(float a, float b) {
  float greater;
  asm("max.NaN.f32 %0, %1, %2;\n" : "=f"(greater) : "f"(a), "f"(b));
  return greater;
}

__device__ __forceinline__ float exponential(float x) { return expf(x); }

// 1 / (1 + exp(-x)) to about 1e-5 relative: for results of 16 bits.
__device__ __forceinline__ float quick_sigmoid(float x) {
  float power, inverse;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(power) : "f"(x * -1.44269504f));
  asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(inverse) : "f"(1 + power));
  return inverse;
}

// Two values in one word, `low` in the lower half, each rounded to nearest even.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack<Half>(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
template <>
__device__ __forceinline__ uint32_t pack<BFloat16>(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

// The inverse of pack, exact.
template <class T>
__device__ __forceinline__ float2 unpack(uint32_t bits);
template <>
__device__ __forceinline__ float2 unpack<Half>(uint32_t bits) {
  float2 values;
  asm("{.reg .f16 low, high;\n mov.b32 {low, high}, %2;\n cvt.f32.f16 %0, low;\n cvt.f32.f16 %1, high;}\n"
      : "=f"(values.x), "=f"(values.y)
      : "r"(bits));
  return values;
}
template <>
__device__ __forceinline__ float2 unpack<BFloat16>(uint32_t bits) {
  return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
}

struct Grid {
  unsigned x, y, threads, shared_bytes;
};

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// Within it, `device` is the current one.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_));
    if (before_ != device) check(cudaSetDevice(device)), changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Above 48 KiB a kernel must be allowed its shared memory, once on each device.
inline constexpr unsigned kFreeSharedBytes = 48 * 1024;
inline constexpr int kMostDevices = 64;

// Queues kKernel on `stream` of the current device; neither waits nor allocates. A grid without blocks is
// nothing.
template <auto kKernel, class... Arguments>
void launch(const Grid& grid, void* stream, const Arguments&... arguments) {
  if (grid.x == 0 || grid.y == 0) return;
  if (grid.shared_bytes > kFreeSharedBytes) {
    static std::atomic<unsigned> allowed[kMostDevices];
    int device = 0;
    check(cudaGetDevice(&device));
    auto& bytes = allowed[device % kMostDevices];
    if (device >= kMostDevices || bytes.load() < grid.shared_bytes) {
      check(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, grid.shared_bytes));
      bytes.store(grid.shared_bytes);
    }
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid.x, grid.y), config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = grid.shared_bytes, config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kKernel, arguments...));
}

}  // namespace rk::cuda
#endif
