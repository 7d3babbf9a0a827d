#include "channel_stats.cuh"
#include "grouped_conv2d_fwd_float.h"
#include "grouped_conv2d_fwd_tensor.h"
#include "kernels.h"
#include "plan_arithmetic.h"

namespace rk::cuda {
namespace {

using plan::aligned;

// The parts of a workspace: packed weights, and the statistics of tiles.
struct Workspace {
  int64_t packed_bytes = 0, tiles = 0, channels;

  explicit Workspace(const ConvProblem& p) : channels(p.c_out) {
    if (p.dtype == DType::kFloat32) {
      tiles = grouped_conv2d_fwd_float_tiles(p);
    } else {
      const ForwardPlan plan = plan_forward(p);
      packed_bytes = aligned(4 * plan.packed_words), tiles = plan.tiles();
    }
  }

  int64_t partials_bytes() const { return aligned(8 * tiles * channels); }
  int64_t bytes() const { return packed_bytes + partials_bytes() + aligned(4 * tiles); }
};

void run(const ConvProblem& p, const void* x, const void* w, void* y, const Epilogue& epilogue, void* packed,
         float2* partials, float* counts, void* stream) {
  if (p.dtype == DType::kFloat32)
    grouped_conv2d_fwd_float(p, static_cast<const float*>(x), static_cast<const float*>(w),
                             static_cast<float*>(y), epilogue, partials, counts, stream);
  else
    grouped_conv2d_fwd_tensor(p, x, w, y, epilogue, static_cast<uint32_t*>(packed), partials, counts, stream);
}

}  // namespace

std::vector<std::string> grouped_conv2d_reasons(const ConvProblem& p) {
  if (p.dtype != DType::kFloat32) return forward_reasons(p);
  return p.kh == 3 && p.kw == 3 ? std::vector<std::string>{} : std::vector<std::string>{"takes 3x3 kernels"};
}

int64_t grouped_conv2d_workspace(const ConvProblem& p) { return Workspace(p).bytes(); }

void grouped_conv2d_fwd(const ConvProblem& p, const void* x, const void* w, void* y, const Epilogue& epilogue,
                        void* workspace, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  run(p, x, w, y, epilogue, workspace, nullptr, nullptr, queue.stream);
}

void grouped_conv2d_stats(const ConvProblem& p, const void* x, const void* w, void* z,
                          const BatchStats& stats, void* workspace, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  const Workspace parts(p);
  char* const partials = static_cast<char*>(workspace) + parts.packed_bytes;
  auto* const moments = reinterpret_cast<float2*>(partials);
  auto* const counts = reinterpret_cast<float*>(partials + parts.partials_bytes());
  run(p, x, w, z, {nullptr, nullptr, Activation::kIdentity}, workspace, moments, counts, queue.stream);
  merge_stats(moments, counts, parts.tiles, p.c_out, stats, queue.stream);
}

}  // namespace rk::cuda
