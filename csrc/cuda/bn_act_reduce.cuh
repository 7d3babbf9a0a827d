#pragma once
#include "activation.cuh"
#include "compensated_sum.cuh"
#include "element.h"
#include "images_plan.h"

// The sums of g and of g * z over each channel, from which those of g and g * xhat follow. Results are held
// to two roundings, and where few values pass the activation, roundings do not average out.
namespace rk::cuda {

// All at multiples of 16 bytes; y is null where the slope is not of it.
template <class T>
struct ReduceImages {
  const Storage<T>*dy, *z, *y;
  const float *scale, *shift;
};

// Of a channel; float4 is how memory has them.
struct ReduceSums {
  CompensatedSum g, g_z;

  __device__ __forceinline__ void add(const ReduceSums& other) {
    g.add(other.g);
    g_z.add(other.g_z);
  }
  __device__ __forceinline__ void add(const float4& packed) {
    add({{packed.x, packed.y}, {packed.z, packed.w}});
  }
  __device__ __forceinline__ float4 packed() const { return {g.sum, g.lost, g_z.sum, g_z.lost}; }

  // Those of the lanes whose numbers differ in the bits from kLeast to 16, into each of these.
  template <int kLeast>
  __device__ __forceinline__ void add_lanes() {
#pragma unroll
    for (int mask = kWarpThreads / 2; mask >= kLeast; mask /= 2)
      add(float4{shuffle_xor(g.sum, mask), shuffle_xor(g.lost, mask), shuffle_xor(g_z.sum, mask),
                 shuffle_xor(g_z.lost, mask)});
  }
};

// kCount elements of each image, zeros until they are loaded, which add nothing to the sums.
template <class T, bool kOfY, int kCount>
struct ReduceTerms {
  Raw<T, kCount> dy{}, z{}, y{};

  __device__ __forceinline__ void load(const ReduceImages<T>& images, int64_t element) {
    dy = load_global<Raw<T, kCount>>(images.dy + element);
    z = load_global<Raw<T, kCount>>(images.z + element);
    if constexpr (kOfY) y = load_global<Raw<T, kCount>>(images.y + element);
  }
};

// These as floats.
template <class T, bool kOfY, int kCount>
struct ReduceValues {
  float dy[kCount], z[kCount], y[kCount] = {};

  __device__ __forceinline__ void unpack(const ReduceTerms<T, kOfY, kCount>& terms) {
    unpack_raw<T, kCount>(terms.dy, dy);
    unpack_raw<T, kCount>(terms.z, z);
    if constexpr (kOfY) unpack_raw<T, kCount>(terms.y, y);
  }
};

// What tells the slope of kChannels channels, unless that is of y.
template <class T, bool kAffine, int kChannels>
struct ReduceVectors {
  float scale[kChannels] = {}, shift[kChannels] = {};

  __device__ __forceinline__ ReduceVectors(const ReduceImages<T>& images, int64_t channel) {
    constexpr bool kAligned = kChannels % kVectorElements<float> == 0;
    if constexpr (!kAffine) return;
    load_elements<float, kAligned>(images.scale + channel, scale);
    load_elements<float, kAligned>(images.shift + channel, shift);
  }
};

// So many products are summed in floats: those of bfloat16 have 16 bits, and sums of a few are nearly exact;
// those of float16 have 22, and sums of two are rounded once.
template <class T>
inline constexpr int kBatch = 4;
template <>
inline constexpr int kBatch<Half> = 2;
template <>
inline constexpr int kBatch<float> = 1;

// Values of a channel, onto its sums.
template <class T, int kCount>
__device__ __forceinline__ void add_values(const float (&g)[kCount], const float (&z)[kCount],
                                           ReduceSums& sums) {
#pragma unroll
  for (int first = 0; first < kCount; first += kBatch<T>) {
    float sum = g[first], product = g[first] * z[first];
    if constexpr (kBatch<T> == 1) sums.g_z.lost += fused(g[first], z[first], -product);
#pragma unroll
    for (int i = first + 1; i < first + kBatch<T>; ++i) sum += g[i], product = fused(g[i], z[i], product);
    sums.g.add(sum), sums.g_z.add(product);
  }
}

template <class T, Activation kActivation, bool kOfY, int kVector>
__device__ __forceinline__ void sum_rows(const ReduceImages<T>& images, const RowTiles& tiles,
                                         const RowThread& at, ReduceSums (&sums)[kVector]) {
  constexpr int kRows = 4;
  const ReduceVectors<T, kOfAffine<kActivation, kOfY>, kVector> vectors(images, at.channel);
  const int64_t first = at.first * tiles.c + at.channel, step = tiles.at_once * tiles.c;
  for (int row = 0; row < at.count; row += kRows) {
    ReduceTerms<T, kOfY, kVector> terms[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      if (row + i < at.count) terms[i].load(images, first + (row + i) * step);
    ReduceValues<T, kOfY, kVector> values[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) values[i].unpack(terms[i]);
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      float g[kRows], z[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i)
        z[i] = values[i].z[j], g[i] = masked_grad<T, kActivation, kOfY>(values[i].dy[j], z[i], values[i].y[j],
                                                                        vectors.scale[j], vectors.shift[j]);
      add_values<T>(g, z, sums[j]);
    }
  }
}

// A thread's sums are one float4 further from the next thread's than they are many: neither the stores nor
// the loads, of neighbouring channels, then meet in a bank.
template <int kVector>
inline constexpr int kSumsPitch = kVector == 1 ? 1 : kVector + 1;

inline constexpr unsigned reduce_shared_bytes(int vector) {
  return kImageThreads * sizeof(float4) * (vector == 1 ? 1 : vector + 1);
}

template <class T, Activation kActivation, bool kOfY, int kVector>
__global__ __launch_bounds__(kImageThreads,
                             kVector == 8 ? 2 : 3) void bn_act_reduce_rows_kernel(ReduceImages<T> images,
                                                                                  RowTiles tiles,
                                                                                  float4* partials) {
  const int thread = static_cast<int>(thread_index());
  const RowThread at = row_thread(tiles, block_index_x(), thread);
  ReduceSums sums[kVector];
  if (at.count > 0) sum_rows<T, kActivation, kOfY, kVector>(images, tiles, at, sums);
  auto* const shared = reinterpret_cast<float4*>(shared_memory());
#pragma unroll
  for (int i = 0; i < kVector; ++i)
    store_shared(shared + (thread * kSumsPitch<kVector> + i), sums[i].packed());
  sync_threads();
  // From here on a thread has one channel of the block's.
  const int channels = tiles.columns * kVector;
  const int64_t channel = block_index_x() % tiles.column_blocks * int64_t{channels} + thread;
  if (thread >= channels || channel >= tiles.c) return;
  const float4* const column = shared + (thread / kVector * kSumsPitch<kVector> + thread % kVector);
  ReduceSums total;
  for (int row = 0; row < tiles.at_once; ++row)
    total.add(load_shared<float4>(column + row * tiles.columns * kSumsPitch<kVector>));
  store_global(partials + (at.tile * tiles.c + channel), total.packed());
}

// The window's elements outside the channel become zeros.
template <int kVector>
__device__ __forceinline__ void mask(const PlaneWindow& window, float (&values)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector; ++i)
    if (window.first + i < window.begin || window.first + i >= window.end) values[i] = 0;
}

// A window's values; the last one of the images, if it is not whole, is not in `terms`.
template <class T, bool kOfY, int kVector>
__device__ __forceinline__ void window_values(const ReduceImages<T>& images, int64_t elements,
                                              const PlaneWindow& window,
                                              const ReduceTerms<T, kOfY, kVector>& terms,
                                              ReduceValues<T, kOfY, kVector>& values) {
  values.unpack(terms);
  if (window.first >= window.begin && window.first + kVector <= window.end) return;
  if (window.first + kVector > elements) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (window.first + i >= elements) continue;
      values.dy[i] = load_element<T>(images.dy + (window.first + i));
      values.z[i] = load_element<T>(images.z + (window.first + i));
      if constexpr (kOfY) values.y[i] = load_element<T>(images.y + (window.first + i));
    }
  }
  mask(window, values.dy), mask(window, values.z);
}

template <class T, Activation kActivation, bool kOfY>
__global__ __launch_bounds__(kImageThreads, 2) void bn_act_reduce_planes_kernel(ReduceImages<T> images,
                                                                                PlaneTiles tiles,
                                                                                float4* partials) {
  // Two windows' loads are in flight.
  constexpr int kVector = kVectorElements<T>, kWindows = 2;
  const int thread = static_cast<int>(thread_index()), lane = thread % kWarpThreads;
  const PlaneWarp at = plane_warp(tiles, block_index_x(), thread);
  if (at.images == 0) return;
  const ReduceVectors<T, kOfAffine<kActivation, kOfY>, 1> vectors(images, at.channel);
  const int64_t elements = tiles.n * tiles.c * tiles.pixels;
  const int windows = at.images * tiles.windows;
  ReduceSums sums;
  for (int first = lane; first < windows; first += kWindows * kWarpThreads) {
    PlaneWindow window[kWindows];
    ReduceTerms<T, kOfY, kVector> terms[kWindows];
#pragma unroll
    for (int i = 0; i < kWindows; ++i) {
      window[i] = plane_window<kVector>(tiles, at, first + i * kWarpThreads);
      if (first + i * kWarpThreads < windows && window[i].first + kVector <= elements)
        terms[i].load(images, window[i].first);
    }
#pragma unroll
    for (int i = 0; i < kWindows; ++i) {
      if (first + i * kWarpThreads >= windows) continue;
      ReduceValues<T, kOfY, kVector> values;
      window_values(images, elements, window[i], terms[i], values);
      float g[kVector];
#pragma unroll
      for (int j = 0; j < kVector; ++j)
        g[j] = masked_grad<T, kActivation, kOfY>(values.dy[j], values.z[j], values.y[j], vectors.scale[0],
                                                 vectors.shift[0]);
      add_values<T>(g, values.z, sums);
    }
  }
  sums.template add_lanes<1>();
  if (lane == 0) store_global(partials + (at.tile * tiles.c + at.channel), sums.packed());
}

}  // namespace rk::cuda
