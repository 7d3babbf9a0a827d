#include "grouped_conv2d_dgrad_strided.cuh"

namespace rk::cuda {

template void launch_dgrad_strided<Half>(const ForwardPlan&, const StridedDgradArguments&, void*);

}  // namespace rk::cuda
