#include "bn_stats.cuh"
#include "dispatch.h"
#include "kernels.h"

namespace rk::cuda {
namespace {

template <class T, int kVector, bool kAligned>
void run_rows(const Storage<T>* z, const RowTiles& tiles, const TileStats& out, void* stream) {
  const Grid grid{tiles.blocks(), 1, kImageThreads, row_stats_shared_bytes(kVector)};
  launch<bn_stats_rows_kernel<T, kVector, kAligned>>(grid, stream, z, tiles, out);
}

template <class T>
void run_tiles(const StatsPlan& plan, const Storage<T>* z, const TileStats& out, void* stream) {
  if (plan.by_rows && plan.rows.vector == 1) return run_rows<T, 1, false>(z, plan.rows, out, stream);
  with_bool(is_aligned(z), [&](auto aligned) {
    if (plan.by_rows) return run_rows<T, kVectorElements<T>, aligned.value>(z, plan.rows, out, stream);
    const Grid grid{plan.planes.blocks(), 1, kImageThreads, 0};
    launch<bn_stats_planes_kernel<T, aligned.value>>(grid, stream, z, plan.planes, out);
  });
}

}  // namespace

int64_t bn_stats_workspace(const ImageProblem& p) { return plan_stats(p).bytes; }

void bn_stats(const ImageProblem& p, const void* z, const BatchStats& stats, void* workspace,
              const Queue& queue) {
  const DeviceGuard guard(queue.device);
  const StatsPlan plan = plan_stats(p);
  auto* const bytes = static_cast<unsigned char*>(workspace);
  const TileStats tiles{reinterpret_cast<float2*>(bytes), reinterpret_cast<float*>(bytes + plan.counts),
                        reinterpret_cast<float*>(bytes + plan.origins)};
  if (plan.tiles == 0) return merge_stats(tiles.partials, tiles.counts, 0, p.c, stats, queue.stream);
  with_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    run_tiles<T>(plan, static_cast<const Storage<T>*>(z), tiles, queue.stream);
  });
  merge_stats(tiles.partials, tiles.counts, plan.tiles, p.c, stats, queue.stream, tiles.origins);
}

}  // namespace rk::cuda
