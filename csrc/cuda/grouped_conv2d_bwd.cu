#include "grouped_conv2d_dgrad_float.h"
#include "grouped_conv2d_wgrad_float.h"
#include "kernels.h"
#include "platform.h"

namespace rk::cuda {

std::vector<std::string> grouped_conv2d_backward_reasons(const ConvProblem& p) {
  std::vector<std::string> reasons;
  if (p.dtype != DType::kFloat32) reasons.push_back("takes float32");
  if (p.kh != 3 || p.kw != 3) reasons.push_back("takes 3x3 kernels");
  return reasons;
}

int64_t grouped_conv2d_backward_workspace(const ConvProblem& p) {
  return grouped_conv2d_wgrad_float_workspace(p);
}

void grouped_conv2d_dgrad(const ConvProblem& p, const void* dy, const void* w, void* dx, void* /*workspace*/,
                          const Queue& queue) {
  const DeviceGuard guard(queue.device);
  grouped_conv2d_dgrad_float(p, static_cast<const float*>(dy), static_cast<const float*>(w),
                             static_cast<float*>(dx), queue.stream);
}

void grouped_conv2d_wgrad(const ConvProblem& p, const void* x, const void* dy, void* dw, void* workspace,
                          const Queue& queue) {
  const DeviceGuard guard(queue.device);
  grouped_conv2d_wgrad_float(p, static_cast<const float*>(x), static_cast<const float*>(dy),
                             static_cast<float*>(dw), workspace, queue.stream);
}

}  // namespace rk::cuda
