#include "channel_stats.cuh"
#include "grouped_conv2d_fwd_tensor.h"
#include "kernels.h"

namespace rk::cuda {
namespace {

int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// The parts of a workspace: packed weights, and the statistics of tiles.
struct Workspace {
  int64_t packed_bytes = 0, tiles = 0, channels;

  explicit Workspace(const ConvProblem& p) : channels(p.c_out) {
    const ForwardPlan plan = plan_forward(p);
    packed_bytes = aligned(4 * plan.packed_words), tiles = plan.tiles();
  }

  int64_t partials_bytes() const { return aligned(8 * tiles * channels); }
  int64_t bytes() const { return packed_bytes + partials_bytes() + aligned(4 * tiles); }
};

}  // namespace

int64_t grouped_conv2d_workspace(const ConvProblem& p) { return Workspace(p).bytes(); }

void grouped_conv2d_fwd(const ConvProblem& p, const void* x, const void* w, void* y, const Epilogue& epilogue,
                        void* workspace, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  grouped_conv2d_fwd_tensor(p, x, w, y, epilogue, static_cast<uint32_t*>(workspace), nullptr, nullptr,
                            queue.stream);
}

void grouped_conv2d_stats(const ConvProblem& p, const void* x, const void* w, void* z,
                          const BatchStats& stats, void* workspace, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  const Workspace parts(p);
  char* const partials = static_cast<char*>(workspace) + parts.packed_bytes;
  auto* const moments = reinterpret_cast<float2*>(partials);
  auto* const counts = reinterpret_cast<float*>(partials + parts.partials_bytes());
  grouped_conv2d_fwd_tensor(p, x, w, z, {nullptr, nullptr, Activation::kIdentity},
                            static_cast<uint32_t*>(workspace), moments, counts, queue.stream);
  merge_stats(moments, counts, parts.tiles, p.c_out, stats, queue.stream);
}

}  // namespace rk::cuda
