// Every wrapper of csrc/cuda/platform.h that hides PTX, each in a kernel of its own, on words of any bits.
#include <cstring>

#include "platform.h"

namespace rk::cuda {
namespace {

constexpr unsigned kLanes = 32, kLaneBytes = 32, kSharedBytes = kLanes * kLaneBytes;

template <class To, class From>
__device__ __forceinline__ To as(From from) {
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

__device__ __forceinline__ unsigned char* own_shared() {
  return shared_memory() + thread_index() * kLaneBytes;
}

// A wrapper has kIn and kOut, its words a lane, and apply, which is given them and where the former lie.

// The last word says whether to copy.
template <int kBytes>
struct Copy {
  static constexpr int kIn = 5, kOut = kBytes / 4;
  static __device__ void apply(const uint32_t* global, const uint32_t (&in)[kIn], uint32_t (&out)[kOut]) {
    cp_async<kBytes>(own_shared(), global, in[4] % 2 != 0);
    cp_async_commit();
    cp_async_wait<0>();
    for (int i = 0; i < kOut; ++i) out[i] = load_shared<uint32_t>(own_shared() + 4 * i);
  }
};

// The older of two groups.
struct PendingCopy {
  static constexpr int kIn = 8, kOut = 8;
  static __device__ void apply(const uint32_t* global, const uint32_t (&)[kIn], uint32_t (&out)[kOut]) {
    cp_async<16>(own_shared(), global, true);
    cp_async_commit();
    cp_async<16>(own_shared() + 16, global + 4, true);
    cp_async_commit();
    cp_async_wait<1>();
    for (int i = 0; i < 4; ++i) out[i] = load_shared<uint32_t>(own_shared() + 4 * i);
    cp_async_wait<0>();
    for (int i = 4; i < 8; ++i) out[i] = load_shared<uint32_t>(own_shared() + 4 * i);
  }
};

// Rows are given in an order of their own.
template <bool kTransposed>
struct LoadMatrices {
  static constexpr int kIn = 4, kOut = 4;
  static __device__ void apply(const uint32_t*, const uint32_t (&in)[kIn], uint32_t (&out)[kOut]) {
    for (int i = 0; i < 4; ++i) store_shared(own_shared() + 4 * i, in[i]);
    sync_threads();
    const unsigned char* const row = shared_memory() + (5 * thread_index() + 3) % kLanes * kLaneBytes;
    if constexpr (kTransposed)
      ldmatrix_x4_trans(out, row);
    else
      ldmatrix_x4(out, row);
  }
};

struct StoreMatrices {
  static constexpr int kIn = 4, kOut = 4;
  static __device__ void apply(const uint32_t*, const uint32_t (&in)[kIn], uint32_t (&out)[kOut]) {
    stmatrix_x4(shared_memory() + (5 * thread_index() + 3) % kLanes * kLaneBytes, in);
    sync_threads();
    for (int i = 0; i < 4; ++i) out[i] = load_shared<uint32_t>(own_shared() + 4 * i);
  }
};

template <class T, int kA, int kB>
struct Multiply {
  static constexpr int kIn = kA + kB + 4, kOut = 4;
  static __device__ void apply(const uint32_t*, const uint32_t (&in)[kIn], uint32_t (&out)[kOut]) {
    float c[4], d[4];
    for (int i = 0; i < 4; ++i) c[i] = as<float>(in[kA + kB + i]);
    if constexpr (kA == 4) {
      const uint32_t a[4] = {in[0], in[1], in[2], in[3]};
      mma_m16n8k16<T>(d, a, in[4], in[5], c);
    } else {
      mma_m16n8k8<T>(d, in[0], in[1], in[2], c);
    }
    for (int i = 0; i < 4; ++i) out[i] = as<uint32_t>(d[i]);
  }
};

struct Shuffle {
  static constexpr int kIn = 1, kOut = 5;
  static __device__ void apply(const uint32_t*, const uint32_t (&in)[kIn], uint32_t (&out)[kOut]) {
    for (int i = 0; i < kOut; ++i) out[i] = as<uint32_t>(shuffle_xor(as<float>(in[0]), 1 << i));
  }
};

struct Fused {
  static constexpr int kIn = 3, kOut = 1;
  static __device__ void apply(const uint32_t*, const uint32_t (&in)[kIn], uint32_t (&out)[kOut]) {
    out[0] = as<uint32_t>(fused(as<float>(in[0]), as<float>(in[1]), as<float>(in[2])));
  }
};

struct Maximum {
  static constexpr int kIn = 2, kOut = 1;
  static __device__ void apply(const uint32_t*, const uint32_t (&in)[kIn], uint32_t (&out)[kOut]) {
    out[0] = as<uint32_t>(maximum(as<float>(in[0]), as<float>(in[1])));
  }
};

struct Exponential {
  static constexpr int kIn = 1, kOut = 1;
  static __device__ void apply(const uint32_t*, const uint32_t (&in)[kIn], uint32_t (&out)[kOut]) {
    out[0] = as<uint32_t>(exponential(as<float>(in[0])));
  }
};

struct QuickSigmoid {
  static constexpr int kIn = 1, kOut = 1;
  static __device__ void apply(const uint32_t*, const uint32_t (&in)[kIn], uint32_t (&out)[kOut]) {
    out[0] = as<uint32_t>(quick_sigmoid(as<float>(in[0])));
  }
};

template <class T>
struct Pack {
  static constexpr int kIn = 2, kOut = 1;
  static __device__ void apply(const uint32_t*, const uint32_t (&in)[kIn], uint32_t (&out)[kOut]) {
    out[0] = pack<T>(as<float>(in[0]), as<float>(in[1]));
  }
};

template <class T>
struct Unpack {
  static constexpr int kIn = 1, kOut = 2;
  static __device__ void apply(const uint32_t*, const uint32_t (&in)[kIn], uint32_t (&out)[kOut]) {
    const float2 values = unpack<T>(in[0]);
    out[0] = as<uint32_t>(values.x), out[1] = as<uint32_t>(values.y);
  }
};

template <class Wrapper>
__global__ void vectors_kernel(const uint32_t* in, uint32_t* out) {
  // A multiple of 16 bytes a lane, as copies ask for.
  constexpr int kStride = (Wrapper::kIn + 3) / 4 * 4;
  const unsigned lane = block_index_x() * kLanes + thread_index();
  const uint32_t* const global = in + lane * kStride;
  uint32_t words[Wrapper::kIn], results[Wrapper::kOut];
  for (int i = 0; i < Wrapper::kIn; ++i) words[i] = load_global<uint32_t>(global + i);
  Wrapper::apply(global, words, results);
  for (int i = 0; i < Wrapper::kOut; ++i) store_global(out + lane * Wrapper::kOut + i, results[i]);
}

template <class Wrapper>
void run(const uint32_t* in, uint32_t* out, unsigned blocks, void* stream) {
  launch<vectors_kernel<Wrapper>>({blocks, 1, kLanes, kSharedBytes}, stream, in, out);
}

struct Entry {
  const char* name;
  int in, out;
  void (*run)(const uint32_t*, uint32_t*, unsigned, void*);
};

template <class Wrapper>
constexpr Entry entry(const char* name) {
  return {name, Wrapper::kIn, Wrapper::kOut, run<Wrapper>};
}

constexpr Entry kEntries[] = {
    entry<Copy<4>>("cp_async<4>"),
    entry<Copy<8>>("cp_async<8>"),
    entry<Copy<16>>("cp_async<16>"),
    entry<PendingCopy>("cp_async_wait<1>"),
    entry<LoadMatrices<false>>("ldmatrix_x4"),
    entry<LoadMatrices<true>>("ldmatrix_x4_trans"),
    entry<StoreMatrices>("stmatrix_x4"),
    entry<Multiply<Half, 4, 2>>("mma_m16n8k16<Half>"),
    entry<Multiply<BFloat16, 4, 2>>("mma_m16n8k16<BFloat16>"),
    entry<Multiply<Half, 2, 1>>("mma_m16n8k8<Half>"),
    entry<Multiply<BFloat16, 2, 1>>("mma_m16n8k8<BFloat16>"),
    entry<Shuffle>("shuffle_xor"),
    entry<Fused>("fused"),
    entry<Maximum>("maximum"),
    entry<Exponential>("exponential"),
    entry<QuickSigmoid>("quick_sigmoid"),
    entry<Pack<Half>>("pack<Half>"),
    entry<Pack<BFloat16>>("pack<BFloat16>"),
    entry<Unpack<Half>>("unpack<Half>"),
    entry<Unpack<BFloat16>>("unpack<BFloat16>"),
};
constexpr int64_t kEntryCount = sizeof kEntries / sizeof *kEntries;

}  // namespace
}  // namespace rk::cuda

extern "C" {

const char* vectors_name(int64_t entry) {
  return entry < rk::cuda::kEntryCount ? rk::cuda::kEntries[entry].name : nullptr;
}
int vectors_in(int entry) { return rk::cuda::kEntries[entry].in; }
int vectors_out(int entry) { return rk::cuda::kEntries[entry].out; }

const char* vectors_run(int64_t entry, int64_t in, int64_t out, int64_t blocks, int64_t stream) {
  static std::string error;
  try {
    rk::cuda::kEntries[entry].run(reinterpret_cast<const uint32_t*>(in), reinterpret_cast<uint32_t*>(out),
                                  static_cast<unsigned>(blocks), reinterpret_cast<void*>(stream));
  } catch (const std::exception& problem) {
    error = problem.what();
    return error.c_str();
  }
  return nullptr;
}
}
