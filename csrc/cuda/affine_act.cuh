#pragma once
#include "activation.cuh"
#include "channel_walk.cuh"
#include "element.h"
#include "images_plan.h"

// y = act(z * scale + shift [+ residual]) per channel.
namespace rk::cuda {

// Images as elements; residual may be null.
template <class T>
struct AffineImages {
  const Storage<T>*z, *residual;
  Storage<T>* y;
  const float *scale, *shift;
};

template <class T, Activation kActivation, bool kResidual>
__device__ __forceinline__ Vector<T> affine_act_vector(const Vector<T>& z, const Vector<T>& residual,
                                                       const float (&scale)[kVectorElements<T>],
                                                       const float (&shift)[kVectorElements<T>]) {
  float values[kVectorElements<T>], added[kVectorElements<T>];
  Element<T>::load(z, values);
  if constexpr (kResidual) Element<T>::load(residual, added);
#pragma unroll
  for (int i = 0; i < kVectorElements<T>; ++i) {
    const float pre = fused(values[i], scale[i], shift[i]);
    values[i] = activate<T, kActivation>(kResidual ? pre + added[i] : pre);
  }
  return Element<T>::store(values);
}

// Rows of whole vectors, all at multiples of 16 bytes.
template <class T, Activation kActivation, bool kResidual>
__global__ __launch_bounds__(kImageThreads) void affine_act_rows_kernel(AffineImages<T> images,
                                                                        RowTiles tiles) {
  // Four loads in flight, which a loop over single rows has not: they would stay behind its stores.
  constexpr int kBatch = kResidual ? 2 : 4;
  const RowThread at = row_thread(tiles, block_index_x(), static_cast<int>(thread_index()));
  if (at.count == 0) return;
  float scale[kVectorElements<T>], shift[kVectorElements<T>];
  load_elements<float, true>(images.scale + at.channel, scale);
  load_elements<float, true>(images.shift + at.channel, shift);
  const int64_t first = at.first * tiles.c + at.channel, step = tiles.at_once * tiles.c;
  for (int row = 0; row < at.count; row += kBatch) {
    Vector<T> z[kBatch], residual[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (row + i >= at.count) continue;
      z[i] = load_global<Vector<T>>(images.z + (first + (row + i) * step));
      if constexpr (kResidual)
        residual[i] = load_global<Vector<T>>(images.residual + (first + (row + i) * step));
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (row + i >= at.count) continue;
      const auto y = affine_act_vector<T, kActivation, kResidual>(z[i], residual[i], scale, shift);
      store_global(images.y + (first + (row + i) * step), y);
    }
  }
}

// Images of any size at any address.
template <class T, Activation kActivation, bool kAligned>
__global__ __launch_bounds__(kImageThreads) void affine_act_flat_kernel(AffineImages<T> images,
                                                                        FlatTiles tiles) {
  constexpr int kVector = kVectorElements<T>;
#pragma unroll 1
  for (int turn = 0; turn < kFlatVectors; ++turn) {
    const int64_t element = block_index_x() * tiles.tile_elements +
                            kVector * (turn * kImageThreads + static_cast<int>(thread_index()));
    if (element >= tiles.elements) return;
    ChannelWalk<2> walk(tiles, element, images.scale, images.shift);
    const auto affine = [&](float z) {
      walk.next();
      return fused(z, walk.at[0], walk.at[1]);
    };
    if (element + kVector > tiles.elements) {
      for (int64_t i = element; i < tiles.elements; ++i) {
        const float pre = affine(load_element<T>(images.z + i));
        const float residual = images.residual ? load_element<T>(images.residual + i) : 0;
        store_element<T>(images.y + i, activate<T, kActivation>(images.residual ? pre + residual : pre));
      }
      return;
    }
    float values[kVector], residual[kVector];
    load_elements<T, kAligned>(images.z + element, values);
    if (images.residual) load_elements<T, kAligned>(images.residual + element, residual);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float pre = affine(values[i]);
      values[i] = activate<T, kActivation>(images.residual ? pre + residual[i] : pre);
    }
    store_elements<T, kAligned>(images.y + element, values);
  }
}

}  // namespace rk::cuda
