#include "grouped_conv2d_wgrad_float.h"
#include "grouped_conv2d_wgrad_tensor.h"
#include "kernels.h"
#include "platform.h"

namespace rk::cuda {

int64_t grouped_conv2d_wgrad_workspace(const ConvProblem& p) {
  return p.dtype == DType::kFloat32 ? grouped_conv2d_wgrad_float_workspace(p)
                                    : grouped_conv2d_wgrad_tensor_workspace(p);
}

void grouped_conv2d_wgrad(const ConvProblem& p, const void* x, const void* dz, void* dw, void* workspace,
                          const Queue& queue) {
  const DeviceGuard guard(queue.device);
  if (p.dtype == DType::kFloat32)
    grouped_conv2d_wgrad_float(p, static_cast<const float*>(x), static_cast<const float*>(dz),
                               static_cast<float*>(dw), workspace, queue.stream);
  else
    grouped_conv2d_wgrad_tensor(p, x, dz, dw, workspace, queue.stream);
}

}  // namespace rk::cuda
