#include "grouped_conv2d_wgrad_tensor.h"
#include "kernels.h"

namespace rk::cuda {

int64_t grouped_conv2d_wgrad_workspace(const ConvProblem& p) {
  return grouped_conv2d_wgrad_tensor_workspace(p);
}

void grouped_conv2d_wgrad(const ConvProblem& p, const void* x, const void* dz, void* dw, void* workspace,
                          const Queue& queue) {
  const DeviceGuard guard(queue.device);
  grouped_conv2d_wgrad_tensor(p, x, dz, dw, workspace, queue.stream);
}

}  // namespace rk::cuda
