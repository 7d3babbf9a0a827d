#include "grouped_conv2d_wgrad_launch.cuh"

namespace rk::cuda {

template void launch_wgrad<BFloat16>(const WgradPlan&, const WgradArguments&, int, void*);

}  // namespace rk::cuda
