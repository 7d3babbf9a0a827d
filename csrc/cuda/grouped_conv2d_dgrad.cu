#include "grouped_conv2d_dgrad_float.h"
#include "grouped_conv2d_dgrad_tensor.h"
#include "kernels.h"
#include "platform.h"

namespace rk::cuda {

std::vector<std::string> grouped_conv2d_backward_reasons(const ConvProblem& p) {
  return p.dtype == DType::kFloat32 ? grouped_conv2d_reasons(p) : dgrad_reasons(p);
}

int64_t grouped_conv2d_dgrad_workspace(const ConvProblem& p) {
  return p.dtype == DType::kFloat32 ? 0 : 4 * plan_forward(dgrad_problem(p)).packed_words;
}

void grouped_conv2d_dgrad(const ConvProblem& p, const void* dy, const void* w, void* dx, const BnBackward& bn,
                          void* dz, void* workspace, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  if (p.dtype == DType::kFloat32)
    grouped_conv2d_dgrad_float(p, static_cast<const float*>(dy), static_cast<const float*>(w),
                               static_cast<float*>(dx), queue.stream);
  else
    grouped_conv2d_dgrad_tensor(p, dy, w, dx, bn, dz, static_cast<uint32_t*>(workspace), queue.stream);
}

}  // namespace rk::cuda
