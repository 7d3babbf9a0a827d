#pragma once
#include "activation.cuh"
#include "channel_walk.cuh"
#include "element.h"
#include "images_plan.h"

// dz = a * g + (b * z + c) and dresidual = g per channel, g = dy * act'.
namespace rk::cuda {

// Images at multiples of 16 bytes. z and y are null where nothing reads them, dz and dresidual where nothing
// asks for them.
template <class T>
struct BackwardImages {
  const Storage<T>*dy, *z, *y;
  Storage<T>*dz, *dresidual;
  const float *scale, *shift, *a, *b, *c;
};

// What a thread knows of the channels of a vector.
template <class T, bool kAffine>
struct BackwardVectors {
  static constexpr int kVector = kVectorElements<T>;
  float scale[kVector] = {}, shift[kVector] = {}, a[kVector], b[kVector], c[kVector];

  __device__ __forceinline__ BackwardVectors(const BackwardImages<T>& images, int64_t channel) {
    if constexpr (kAffine) {
      load_elements<float, true>(images.scale + channel, scale);
      load_elements<float, true>(images.shift + channel, shift);
    }
    load_elements<float, true>(images.a + channel, a);
    load_elements<float, true>(images.b + channel, b);
    load_elements<float, true>(images.c + channel, c);
  }
};

// 16 bytes of each image, zeros where they are not loaded.
template <class T, bool kOfY>
struct BackwardTerms {
  Vector<T> dy{}, z{}, y{};

  __device__ __forceinline__ void load(const BackwardImages<T>& images, int64_t element) {
    dy = load_global<Vector<T>>(images.dy + element);
    if (images.z) z = load_global<Vector<T>>(images.z + element);
    if constexpr (kOfY) y = load_global<Vector<T>>(images.y + element);
  }
};

// Rows of whole vectors; the vectors per channel are at multiples of 16 bytes too.
template <class T, Activation kActivation, bool kOfY>
__global__ __launch_bounds__(kImageThreads) void affine_act_backward_rows_kernel(BackwardImages<T> images,
                                                                                 RowTiles tiles) {
  // Four loads in flight or more, as in affine_act_rows_kernel.
  constexpr int kVector = kVectorElements<T>, kBatch = 2;
  const RowThread at = row_thread(tiles, block_index_x(), static_cast<int>(thread_index()));
  if (at.count == 0) return;
  const BackwardVectors<T, kOfAffine<kActivation, kOfY>> vectors(images, at.channel);
  const int64_t first = at.first * tiles.c + at.channel, step = tiles.at_once * tiles.c;
  for (int row = 0; row < at.count; row += kBatch) {
    BackwardTerms<T, kOfY> terms[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      if (row + i < at.count) terms[i].load(images, first + (row + i) * step);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (row + i >= at.count) continue;
      const int64_t element = first + (row + i) * step;
      float g[kVector], z[kVector], y[kVector];
      Element<T>::load(terms[i].dy, g), Element<T>::load(terms[i].z, z), Element<T>::load(terms[i].y, y);
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        g[j] = masked_grad<T, kActivation, kOfY>(g[j], z[j], y[j], vectors.scale[j], vectors.shift[j]);
        z[j] = dz_of(g[j], z[j], vectors.a[j], vectors.b[j], vectors.c[j]);
      }
      if (images.dresidual) store_global(images.dresidual + element, Element<T>::store(g));
      if (images.dz) store_global(images.dz + element, Element<T>::store(z));
    }
  }
}

// Of one element, in place: dy becomes g and z becomes dz.
template <class T, Activation kActivation, bool kOfY>
__device__ __forceinline__ void walk_backward(ChannelWalk<5>& walk, float& dy, float& z, float y) {
  walk.next();
  dy = masked_grad<T, kActivation, kOfY>(dy, z, y, walk.at[0], walk.at[1]);
  z = dz_of(dy, z, walk.at[2], walk.at[3], walk.at[4]);
}

template <class T, Activation kActivation, bool kOfY>
__device__ __forceinline__ void backward_last(const BackwardImages<T>& images, const FlatTiles& tiles,
                                              int64_t element, ChannelWalk<5>& walk) {
  for (int64_t i = element; i < tiles.elements; ++i) {
    float g = load_element<T>(images.dy + i), z = images.z ? load_element<T>(images.z + i) : 0;
    walk_backward<T, kActivation, kOfY>(walk, g, z, kOfY ? load_element<T>(images.y + i) : 0);
    if (images.dresidual) store_element<T>(images.dresidual + i, g);
    if (images.dz) store_element<T>(images.dz + i, z);
  }
}

// Images of any size.
template <class T, Activation kActivation, bool kOfY>
__global__ __launch_bounds__(kImageThreads, 3) void affine_act_backward_flat_kernel(BackwardImages<T> images,
                                                                                    FlatTiles tiles) {
  constexpr int kVector = kVectorElements<T>;
#pragma unroll 1
  for (int turn = 0; turn < kFlatVectors; ++turn) {
    const int64_t element = block_index_x() * tiles.tile_elements +
                            kVector * (turn * kImageThreads + static_cast<int>(thread_index()));
    if (element >= tiles.elements) return;
    ChannelWalk<5> walk(tiles, element, images.scale, images.shift, images.a, images.b, images.c);
    if (element + kVector > tiles.elements)
      return backward_last<T, kActivation, kOfY>(images, tiles, element, walk);
    BackwardTerms<T, kOfY> terms;
    terms.load(images, element);
    float g[kVector], z[kVector], y[kVector];
    Element<T>::load(terms.dy, g), Element<T>::load(terms.z, z), Element<T>::load(terms.y, y);
#pragma unroll
    for (int i = 0; i < kVector; ++i) walk_backward<T, kActivation, kOfY>(walk, g[i], z[i], y[i]);
    if (images.dresidual) store_global(images.dresidual + element, Element<T>::store(g));
    if (images.dz) store_global(images.dz + element, Element<T>::store(z));
  }
}

}  // namespace rk::cuda
