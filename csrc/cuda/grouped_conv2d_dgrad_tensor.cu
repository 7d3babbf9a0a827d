#include "grouped_conv2d_block.cuh"
#include "grouped_conv2d_dgrad_strided.h"
#include "grouped_conv2d_dgrad_tensor.h"
#include "grouped_conv2d_prepack.h"

namespace rk::cuda {
namespace {

// At stride 1 dx is the convolution of dy with the weights turned round.
constexpr Taps kTurnedTaps{{2, 1, 0}, {2, 1, 0}};

void run(const ConvProblem& walked, const ForwardPlan& plan, const InputArguments& input,
         const uint32_t* packed, void* dx, void* stream) {
  ForwardArguments arguments{};
  arguments.walk = row_walk(walked, plan), arguments.input = input;
  arguments.packed = packed, arguments.y = dx;
  const auto run_as = walked.dtype == DType::kFloat16 ? launch_forward<Half> : launch_forward<BFloat16>;
  run_as(plan, arguments, 1, stream);
}

void run_strided(const ConvProblem& p, const ConvProblem& walked, const ForwardPlan& plan,
                 const InputArguments& input, const uint32_t* packed, void* dx, void* stream) {
  StridedDgradArguments arguments{};
  arguments.walk = row_walk(walked, plan), arguments.input = input;
  arguments.packed = packed, arguments.dx = dx;
  arguments.h = static_cast<int>(p.h), arguments.w = static_cast<int>(p.w);
  arguments.first_row = static_cast<int>(first_of_pair(p.padding[0]));
  arguments.first_column = static_cast<int>(first_of_pair(p.padding[1]));
  const auto run_as =
      p.dtype == DType::kFloat16 ? launch_dgrad_strided<Half> : launch_dgrad_strided<BFloat16>;
  run_as(plan, arguments, stream);
}

}  // namespace

void grouped_conv2d_dgrad_tensor(const ConvProblem& p, const void* dy, const void* w, void* dx,
                                 const BnBackward& bn, void* dz, uint32_t* packed, void* stream) {
  const ConvProblem walked = dgrad_problem(p);
  const ForwardPlan plan = plan_forward(walked);
  if (plan.tiles() == 0) return;
  const bool strided = p.stride[0] == 2;
  prepack(walked, plan, strided ? kStridedTaps : kTurnedTaps, w, packed, stream);
  const InputArguments input{dy, bn, dz};
  if (strided)
    run_strided(p, walked, plan, input, packed, dx, stream);
  else
    run(walked, plan, input, packed, dx, stream);
}

}  // namespace rk::cuda
