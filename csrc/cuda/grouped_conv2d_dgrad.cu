#include "grouped_conv2d_dgrad_tensor.h"
#include "kernels.h"

namespace rk::cuda {

std::vector<std::string> grouped_conv2d_dgrad_reasons(const ConvProblem& p) { return dgrad_reasons(p); }

int64_t grouped_conv2d_dgrad_workspace(const ConvProblem& p) {
  return 4 * plan_forward(dgrad_problem(p)).packed_words;
}

void grouped_conv2d_dgrad(const ConvProblem& p, const void* dy, const void* w, void* dx, const BnBackward& bn,
                          void* dz, void* workspace, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  grouped_conv2d_dgrad_tensor(p, dy, w, dx, bn, dz, static_cast<uint32_t*>(workspace), queue.stream);
}

}  // namespace rk::cuda
