#include "grouped_conv2d_fwd_launch.cuh"

namespace rk::cuda {

template void launch_forward<BFloat16>(const ForwardPlan&, const ForwardArguments&, int, void*);

}  // namespace rk::cuda
