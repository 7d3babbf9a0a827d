#pragma once
#include "element.h"
#include "images_plan.h"

namespace rk::cuda {

// The values of kVectors vectors per channel for the elements of FlatTiles, from one on, at most 16 bytes of
// them.
template <int kVectors>
struct ChannelWalk {
  const float* vectors[kVectors];
  int64_t c, channel;
  int inner, left;  // of the channel's elements, as far as a walk may go
  float at[kVectors];

  template <class... Pointers>
  __device__ __forceinline__ ChannelWalk(const FlatTiles& tiles, int64_t element, Pointers... vectors)
      : vectors{vectors...}, c(tiles.c) {
    const int64_t plane = element / tiles.inner, rest = tiles.inner - (element - plane * tiles.inner);
    channel = plane % c;
    inner = tiles.inner < kMost ? static_cast<int>(tiles.inner) : kMost;
    left = rest < kMost ? static_cast<int>(rest) : kMost;
    load();
  }

  // Before each element: `at` becomes its channel's.
  __device__ __forceinline__ void next() {
    if (left == 0) {
      channel = channel + 1 < c ? channel + 1 : 0, left = inner;
      load();
    }
    --left;
  }

 private:
  static constexpr int kMost = 8;

  __device__ __forceinline__ void load() {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) at[i] = load_global<float>(vectors[i] + channel);
  }
};

}  // namespace rk::cuda
