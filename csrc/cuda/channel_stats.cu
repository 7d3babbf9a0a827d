#include "channel_stats.cuh"

namespace rk::cuda {
namespace {

// A block merges all tiles of a few channels, one sector of memory in each.
constexpr int kChannels = 4, kRows = 256, kThreads = kChannels * kRows;

__device__ __forceinline__ float origin_of(const float2* partials, int64_t tiles, int64_t c) {
  const auto mean = [&](int i) { return load_global<float2>(partials + sample(i, tiles) * c).x; };
  return median(mean(0), mean(1), mean(2));
}

// So many tiles are summed with one shift, the mean of the first: if that is far off, more would cost digits.
constexpr int kRun = 8;

// Of tiles first, first + kRows ..., up to kRun of them, less the origin.
__device__ __forceinline__ Moments merge_run(const float2* partials, const float* counts, int64_t first,
                                             int64_t tiles, int64_t c, float origin) {
  float n = 0, shift = 0, sum = 0, squares = 0, m2 = 0;
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    const int64_t tile = first + i * kRows;
    const bool any = tile < tiles;
    const float2 moments = any ? load_global<float2>(partials + tile * c) : float2{0, 0};
    const float count = any ? load_global<float>(counts + tile) : 0;
    if (n == 0) shift = moments.x;
    const float d = count == 0 ? 0 : moments.x - shift;
    n += count;
    sum = fused(count, d, sum);
    squares = fused(count * d, d, squares);
    m2 += moments.y;
  }
  Moments merged = from_shifted(n, shift - origin, sum, squares);
  merged.m2 += m2;
  return merged;
}

__global__ __launch_bounds__(kThreads) void merge_stats_kernel(const float2* partials, const float* counts,
                                                               int64_t tiles, int64_t c, const float* origins,
                                                               float* mean, float* m2) {
  const int thread = static_cast<int>(thread_index()), row = thread / kChannels;
  const int64_t channel = int64_t{block_index_x()} * kChannels + thread % kChannels;
  float origin = 0;
  Moments merged{0, 0, 0};
  if (channel < c && tiles > 0) {
    origin = origin_of(partials + channel, tiles, c);
    for (int64_t first = row; first < tiles; first += kRun * kRows)
      merged = merge(merged, merge_run(partials + channel, counts, first, tiles, c, origin));
  }
  auto* const shared = reinterpret_cast<Moments*>(shared_memory());
  for (int rows = kRows / 2; rows > 0; rows /= 2) {
    if (row >= rows && row < 2 * rows) store_shared(shared + thread, merged);
    sync_threads();
    if (row < rows) merged = merge(merged, load_shared<Moments>(shared + thread + rows * kChannels));
  }
  if (row > 0 || channel >= c) return;
  const float relative = origin + merged.mean;
  store_global(mean + channel, origins ? load_global<float>(origins + channel) + relative : relative);
  store_global(m2 + channel, merged.m2);
}

}  // namespace

void merge_stats(const float2* partials, const float* counts, int64_t tiles, int64_t c,
                 const BatchStats& stats, void* stream, const float* origins) {
  const Grid grid{static_cast<unsigned>((c + kChannels - 1) / kChannels), 1, kThreads,
                  kThreads * sizeof(Moments)};
  launch<merge_stats_kernel>(grid, stream, partials, counts, tiles, c, origins, stats.mean, stats.m2);
}

}  // namespace rk::cuda
