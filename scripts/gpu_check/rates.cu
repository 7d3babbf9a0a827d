// What the memory, the L2 cache, shared memory and the tensor cores of this GPU give, each in a plain kernel.
#include "platform.h"

namespace rk::cuda {
namespace {

constexpr unsigned kThreads = 256, kWarps = kThreads / 32;
// Of a copying block and, a thread, of a reading one.
constexpr unsigned kVectors = 4 * kThreads, kStages = 4;
// Independent mma and ldmatrix of a warp.
constexpr int kChains = 8;

#ifdef RESNEXT_KERNELS_EMULATION
inline long long cycles() { return 0; }
#else
__device__ __forceinline__ long long cycles() { return clock64(); }
#endif

__global__ void copy_kernel(const uint4* in, uint4* out) {
  const int64_t first = int64_t{block_index_x()} * kVectors + thread_index();
  uint4 values[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) values[i] = load_global<uint4>(in + first + i * kThreads);
#pragma unroll
  for (int i = 0; i < 4; ++i) store_global(out + first + i * kThreads, values[i]);
}

// Every block reads `vectors`, in steps of the block's size, around the buffer from a place of its own.
__global__ void read_kernel(const uint4* in, uint32_t* out, unsigned vectors, unsigned steps) {
  const unsigned start = static_cast<unsigned>(int64_t{block_index_x()} * vectors / block_count_x());
  unsigned at = (start / kThreads * kThreads + thread_index()) % vectors;
  unsigned char* const slots = shared_memory() + 16 * thread_index();
  for (unsigned i = 0; i < steps + kStages - 1; ++i) {
    if (i < steps) cp_async<16>(slots + i % kStages * kThreads * 16, in + at, true);
    cp_async_commit();
    at = at + kThreads < vectors ? at + kThreads : at + kThreads - vectors;
    cp_async_wait<kStages - 1>();
  }
  cp_async_wait<0>();
  store_global(out + block_index_x() * kThreads + thread_index(), load_shared<uint4>(slots).x);
}

// Of each block the cycles that `iterations` of kChains mma took every warp.
template <class T, int kDepth>
__global__ void mma_kernel(float* sums, long long* elapsed, unsigned iterations) {
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = pack<T>(1.0f + thread_index() % 5, 0.5f + i);
  for (int i = 0; i < 2; ++i) b[i] = pack<T>(0.25f, -1.0f - thread_index() % 3);
  float d[kChains][4] = {};
  sync_threads();
  const long long start = cycles();
  for (unsigned i = 0; i < iterations; ++i) {
#pragma unroll
    for (int chain = 0; chain < kChains; ++chain) {
      if constexpr (kDepth == 16)
        mma_m16n8k16<T>(d[chain], a, b[0], b[1], d[chain]);
      else
        mma_m16n8k8<T>(d[chain], a[0], a[1], b[0], d[chain]);
    }
  }
  float sum = 0;
  for (int chain = 0; chain < kChains; ++chain) sum += d[chain][0] + d[chain][1] + d[chain][2] + d[chain][3];
  sync_threads();
  if (thread_index() == 0) store_global(elapsed + block_index_x(), cycles() - start);
  store_global(sums + block_index_x() * kThreads + thread_index(), sum);
}

// The same of ldmatrix_x4, whose rows lie side by side: no two of a matrix meet in a bank.
__global__ void ldmatrix_kernel(float* sums, long long* elapsed, unsigned iterations) {
  unsigned char* const shared = shared_memory();
  for (int i = 0; i < kChains; ++i)
    store_shared(shared + 16 * (i * kThreads + thread_index()), uint4{thread_index(), 1, 2, 3});
  sync_threads();
  const unsigned char* const own = shared + thread_index() / 32 * kChains * 512 + thread_index() % 32 * 16;
  uint32_t sum = 0;
  const long long start = cycles();
  for (unsigned i = 0; i < iterations; ++i) {
    uint32_t words[kChains][4];
#pragma unroll
    for (int chain = 0; chain < kChains; ++chain) ldmatrix_x4(words[chain], own + 512 * chain);
#pragma unroll
    for (int chain = 0; chain < kChains; ++chain)
      sum ^= words[chain][0] ^ words[chain][1] ^ words[chain][2] ^ words[chain][3];
  }
  sync_threads();
  if (thread_index() == 0) store_global(elapsed + block_index_x(), cycles() - start);
  store_global(sums + block_index_x() * kThreads + thread_index(), static_cast<float>(sum));
}

template <class T>
T* pointer(int64_t address) {
  return reinterpret_cast<T*>(address);
}

template <class Function>
const char* reported(Function function) {
  static std::string error;
  try {
    function();
  } catch (const std::exception& problem) {
    error = problem.what();
    return error.c_str();
  }
  return nullptr;
}

}  // namespace
}  // namespace rk::cuda

extern "C" {

// bytes: a multiple of 16 KiB.
const char* rates_copy(int64_t in, int64_t out, int64_t bytes, int64_t stream) {
  using namespace rk::cuda;
  return reported([&] {
    launch<copy_kernel>({static_cast<unsigned>(bytes / (16 * kVectors)), 1, kThreads, 0},
                        pointer<void>(stream), pointer<const uint4>(in), pointer<uint4>(out));
  });
}

// bytes: a multiple of 4 KiB, of which each of `blocks` reads 4 KiB in a step.
const char* rates_read(int64_t in, int64_t out, int64_t bytes, int64_t steps, int64_t blocks,
                       int64_t stream) {
  using namespace rk::cuda;
  return reported([&] {
    launch<read_kernel>({static_cast<unsigned>(blocks), 1, kThreads, kStages * kThreads * 16},
                        pointer<void>(stream), pointer<const uint4>(in), pointer<uint32_t>(out),
                        static_cast<unsigned>(bytes / 16), static_cast<unsigned>(steps));
  });
}

// what: 0 and 1 are m16n8k16 of Half and BFloat16, 2 and 3 m16n8k8, 4 is ldmatrix_x4. 8 of it a warp and
// iteration, 8 warps a block.
const char* rates_cycles(int64_t what, int64_t sums, int64_t elapsed, int64_t iterations, int64_t blocks,
                         int64_t stream) {
  using namespace rk::cuda;
  return reported([&] {
    const Grid grid{static_cast<unsigned>(blocks), 1, kThreads, what == 4 ? kWarps * kChains * 512 : 0};
    const auto run = [&](auto launcher) {
      launcher(grid, pointer<void>(stream), pointer<float>(sums), pointer<long long>(elapsed),
               static_cast<unsigned>(iterations));
    };
    if (what == 0) run([](auto... a) { launch<mma_kernel<Half, 16>>(a...); });
    if (what == 1) run([](auto... a) { launch<mma_kernel<BFloat16, 16>>(a...); });
    if (what == 2) run([](auto... a) { launch<mma_kernel<Half, 8>>(a...); });
    if (what == 3) run([](auto... a) { launch<mma_kernel<BFloat16, 8>>(a...); });
    if (what == 4) run([](auto... a) { launch<ldmatrix_kernel>(a...); });
  });
}
}
