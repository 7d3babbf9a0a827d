#include "bn_act_reduce.cuh"
#include "dispatch.h"
#include "kernels.h"

namespace rk::cuda {
namespace {

// A block merges all tiles of a few channels, two sectors of memory in each; a warp has eight at a time.
constexpr int kChannels = 4, kWarps = 32, kThreads = kWarps * kWarpThreads, kRows = kThreads / kChannels;

__global__ __launch_bounds__(kThreads) void merge_sums_kernel(const float4* partials, int64_t tiles,
                                                              int64_t c, const float* mean, const float* rstd,
                                                              BnGradients gradients) {
  const int thread = static_cast<int>(thread_index()), row = thread / kChannels;
  const int64_t channel = int64_t{block_index_x()} * kChannels + thread % kChannels;
  ReduceSums sums;
  if (channel < c) {
#pragma unroll 4
    for (int64_t tile = row; tile < tiles; tile += kRows)
      sums.add(load_global<float4>(partials + (tile * c + channel)));
  }
  sums.add_lanes<kChannels>();
  const int warp = thread / kWarpThreads, lane = thread % kWarpThreads;
  auto* const shared = reinterpret_cast<float4*>(shared_memory());
  if (lane < kChannels) store_shared(shared + (warp * kChannels + lane), sums.packed());
  sync_threads();
  if (warp > 0) return;
  ReduceSums total;
#pragma unroll
  for (int i = lane; i < kWarps * kChannels; i += kWarpThreads) total.add(load_shared<float4>(shared + i));
  total.add_lanes<kChannels>();
  if (row > 0 || channel >= c) return;
  store_global(gradients.sum_g + channel, total.g.times(1));
  total.g_z.add(-load_global<float>(mean + channel), total.g);
  store_global(gradients.sum_g_xhat + channel, total.g_z.times(load_global<float>(rstd + channel)));
}

template <class T, Activation kActivation, bool kOfY>
void run_tiles(const ImageTiles& tiles, const ReduceImages<T>& images, float4* partials, void* stream) {
  if (!tiles.by_rows) {
    const Grid grid{tiles.planes.blocks(), 1, kImageThreads, 0};
    return launch<bn_act_reduce_planes_kernel<T, kActivation, kOfY>>(grid, stream, images, tiles.planes,
                                                                     partials);
  }
  const auto run = [&](auto vector) {
    const Grid grid{tiles.rows.blocks(), 1, kImageThreads, reduce_shared_bytes(vector.value)};
    launch<bn_act_reduce_rows_kernel<T, kActivation, kOfY, vector.value>>(grid, stream, images, tiles.rows,
                                                                          partials);
  };
  if (tiles.rows.vector == 1)
    run(std::integral_constant<int, 1>{});
  else
    run(std::integral_constant<int, kVectorElements<T>>{});
}

}  // namespace

int64_t bn_act_reduce_workspace(const ImageProblem& p) { return sizeof(float4) * image_tiles(p).tiles * p.c; }

void bn_act_reduce(const ImageProblem& p, const BnReduce& reduce, const BnGradients& gradients,
                   void* workspace, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  const ImageTiles tiles = image_tiles(p);
  auto* const partials = static_cast<float4*>(workspace);
  with_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    const auto image = [](const void* of) { return static_cast<const Storage<T>*>(of); };
    const ReduceImages<T> images{image(reduce.dy), image(reduce.z), image(reduce.y), reduce.scale,
                                 reduce.shift};
    with_slope(reduce.activation, reduce.y, [&](auto activation, auto of_y) {
      run_tiles<T, activation.value, of_y.value>(tiles, images, partials, queue.stream);
    });
  });
  const Grid grid{static_cast<unsigned>(plan::ceil_div(p.c, kChannels)), 1, kThreads,
                  kWarps * kChannels * sizeof(float4)};
  launch<merge_sums_kernel>(grid, queue.stream, partials, tiles.tiles, p.c, reduce.mean, reduce.rstd,
                            gradients);
}

}  // namespace rk::cuda
