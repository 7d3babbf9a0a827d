#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#ifdef RESNEXT_KERNELS_EMULATION
#include "emulation_bindings.h"
#endif
#include "grouped_conv2d_dgrad_float_plan.h"
#include "grouped_conv2d_fwd_float_plan.h"
#include "grouped_conv2d_plan.h"
#include "grouped_conv2d_wgrad_float_plan.h"
#include "grouped_conv2d_wgrad_plan.h"
#include "kernels.h"
#include "problem_bindings.h"

namespace py = pybind11;
using namespace pybind11::literals;
using rk::pointer;

namespace {

rk::cuda::Queue queue(int device, uintptr_t stream) { return {device, pointer<void>(stream)}; }

void grouped_conv2d_fwd(const rk::ConvProblem& p, uintptr_t x, uintptr_t w, uintptr_t y, uintptr_t scale,
                        uintptr_t shift, int activation, uintptr_t workspace, int device, uintptr_t stream) {
  const rk::Epilogue epilogue{pointer<const float>(scale), pointer<const float>(shift),
                              static_cast<rk::Activation>(activation)};
  py::gil_scoped_release release;
  rk::cuda::grouped_conv2d_fwd(p, pointer<const void>(x), pointer<const void>(w), pointer<void>(y), epilogue,
                               pointer<void>(workspace), queue(device, stream));
}

void grouped_conv2d_stats(const rk::ConvProblem& p, uintptr_t x, uintptr_t w, uintptr_t z, uintptr_t mean,
                          uintptr_t m2, uintptr_t workspace, int device, uintptr_t stream) {
  const rk::BatchStats stats{pointer<float>(mean), pointer<float>(m2)};
  py::gil_scoped_release release;
  rk::cuda::grouped_conv2d_stats(p, pointer<const void>(x), pointer<const void>(w), pointer<void>(z), stats,
                                 pointer<void>(workspace), queue(device, stream));
}

void grouped_conv2d_dgrad(const rk::ConvProblem& p, uintptr_t dy, uintptr_t w, uintptr_t dx,
                          const py::object& bn, uintptr_t dz, uintptr_t workspace, int device,
                          uintptr_t stream) {
  const rk::BnBackward backward = rk::bn_backward(bn).value_or(rk::BnBackward{});
  py::gil_scoped_release release;
  rk::cuda::grouped_conv2d_dgrad(p, pointer<const void>(dy), pointer<const void>(w), pointer<void>(dx),
                                 backward, pointer<void>(dz), pointer<void>(workspace),
                                 queue(device, stream));
}

void bn_stats(const rk::ImageProblem& p, uintptr_t z, uintptr_t mean, uintptr_t m2, uintptr_t workspace,
              int device, uintptr_t stream) {
  const rk::BatchStats stats{pointer<float>(mean), pointer<float>(m2)};
  py::gil_scoped_release release;
  rk::cuda::bn_stats(p, pointer<const void>(z), stats, pointer<void>(workspace), queue(device, stream));
}

void affine_act(const rk::ImageProblem& p, uintptr_t z, uintptr_t scale, uintptr_t shift, uintptr_t residual,
                uintptr_t y, int activation, int device, uintptr_t stream) {
  py::gil_scoped_release release;
  rk::cuda::affine_act(p, pointer<const void>(z), pointer<const float>(scale), pointer<const float>(shift),
                       pointer<const void>(residual), pointer<void>(y),
                       static_cast<rk::Activation>(activation), queue(device, stream));
}

void grouped_conv2d_wgrad(const rk::ConvProblem& p, uintptr_t x, uintptr_t dz, uintptr_t dw,
                          uintptr_t workspace, int device, uintptr_t stream) {
  py::gil_scoped_release release;
  rk::cuda::grouped_conv2d_wgrad(p, pointer<const void>(x), pointer<const void>(dz), pointer<void>(dw),
                                 pointer<void>(workspace), queue(device, stream));
}

void bn_act_reduce(const rk::ImageProblem& p, uintptr_t dy, uintptr_t z, uintptr_t scale, uintptr_t shift,
                   uintptr_t mean, uintptr_t rstd, uintptr_t y, int activation, uintptr_t sum_g,
                   uintptr_t sum_g_xhat, uintptr_t workspace, int device, uintptr_t stream) {
  const rk::BnReduce reduce{pointer<const void>(dy),     pointer<const void>(z),
                            pointer<const void>(y),      pointer<const float>(scale),
                            pointer<const float>(shift), pointer<const float>(mean),
                            pointer<const float>(rstd),  static_cast<rk::Activation>(activation)};
  const rk::BnGradients gradients{pointer<float>(sum_g), pointer<float>(sum_g_xhat)};
  py::gil_scoped_release release;
  rk::cuda::bn_act_reduce(p, reduce, gradients, pointer<void>(workspace), queue(device, stream));
}

void affine_act_backward(const rk::ImageProblem& p, uintptr_t dy, uintptr_t z, uintptr_t scale,
                         uintptr_t shift, uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t y, int activation,
                         uintptr_t dz, uintptr_t dresidual, int device, uintptr_t stream) {
  const auto bn = rk::bn_backward(z, scale, shift, a, b, c, activation);
  py::gil_scoped_release release;
  rk::cuda::affine_act_backward(p, pointer<const void>(dy), bn, pointer<const void>(y), pointer<void>(dz),
                                pointer<void>(dresidual), queue(device, stream));
}

// The launch of the tensor-core kernel, for tests and for the curious.
py::dict forward_plan(const rk::ConvProblem& p) {
  const auto plan = rk::cuda::plan_forward(p);
  const int stride = static_cast<int>(p.stride[0]);
  py::dict result;
  result["grid"] = py::make_tuple(plan.tiles(), plan.channel_blocks);
  result["threads"] = rk::cuda::kBlockThreads;
  result["shared_bytes"] = rk::cuda::forward_shared_bytes(stride);
  result["stages"] = rk::cuda::staged_rows(stride);
  result["columns"] = rk::cuda::staged_columns(stride);
  result["positions"] = plan.positions;
  result["rows"] = plan.rows;
  result["row_blocks"] = plan.row_blocks;
  result["weight_registers"] = rk::cuda::weight_registers(plan.width);
  result["padded"] = plan.padded;
  result["unit"] = plan.unit;
  result["packed_words"] = plan.packed_words;
  return result;
}

// That of the gradient of the input; at stride 2 its rows and positions are pairs of the input's.
py::dict dgrad_plan(const rk::ConvProblem& p) { return forward_plan(rk::cuda::dgrad_problem(p)); }

py::dict wgrad_plan(const rk::ConvProblem& p) {
  const auto plan = rk::cuda::plan_wgrad(p);
  py::dict result;
  result["grid"] = py::make_tuple(plan.splits(), plan.walk.channel_blocks);
  result["threads"] = rk::cuda::wgrad_threads(plan.walk.width);
  result["shared_bytes"] = rk::cuda::wgrad_shared_bytes(static_cast<int>(p.stride[0]));
  result["positions"] = plan.walk.positions;
  result["rows"] = plan.walk.rows;
  result["row_blocks"] = plan.walk.row_blocks;
  result["tiles"] = plan.walk.tiles();
  result["workspace"] = rk::cuda::grouped_conv2d_wgrad_workspace(p);
  return result;
}

// The launch of the gradient of the input in float.
py::dict dgrad_float_plan(const rk::ConvProblem& p) {
  py::dict result;
  if (p.stride[0] == 1 && p.stride[1] == 1) {
    const auto plan = rk::cuda::plan_forward_float(rk::cuda::transposed(p));
    result["grid"] = py::make_tuple(plan.tiles() * plan.channel_blocks, 1);
    result["shared_bytes"] = plan.shared_bytes();
  } else {
    const auto plan = rk::cuda::plan_dgrad_float(p, true);
    result["grid"] = py::make_tuple(plan.blocks(), 1);
    result["shared_bytes"] = plan.shared_bytes();
  }
  return result;
}

// The first launch of the gradient of the weights in float.
py::dict wgrad_float_plan(const rk::ConvProblem& p) {
  const auto plan = rk::cuda::plan_wgrad_float(p, true);
  py::dict result;
  result["grid"] = py::make_tuple(plan.splits * plan.tile_blocks, 1);
  result["threads"] = rk::cuda::kWgradThreads;
  result["splits"] = plan.splits;
  result["tile"] = py::make_tuple(plan.tile_out, plan.tile_in);
  result["tiles"] = plan.tiles;
  result["columns"] = plan.columns;
  result["units"] = plan.units;
  result["split_units"] = plan.split_units;
  return result;
}

}  // namespace

PYBIND11_MODULE(RK_MODULE, m) {
  m.doc() = "Native CUDA kernels of resnext_kernels; raw pointers, no torch.";
  // Of this module alone: the CPU's module has a class of the same name.
  py::class_<rk::ConvProblem>(m, "ConvProblem", py::module_local())
      .def(py::init(&rk::conv_problem), "sizes"_a, "x_stride"_a, "w_stride"_a, "y_stride"_a, "dtype"_a)
      .def("reasons", &rk::cuda::grouped_conv2d_reasons)
      .def("forward_plan", &forward_plan)
      .def("workspace", &rk::cuda::grouped_conv2d_workspace)
      .def("grouped_conv2d_fwd", &grouped_conv2d_fwd)
      .def("grouped_conv2d_stats", &grouped_conv2d_stats)
      .def("backward_reasons", &rk::cuda::grouped_conv2d_backward_reasons)
      .def("dgrad_workspace", &rk::cuda::grouped_conv2d_dgrad_workspace)
      .def("grouped_conv2d_dgrad", &grouped_conv2d_dgrad)
      .def("dgrad_plan", &dgrad_plan)
      .def("wgrad_plan", &wgrad_plan)
      .def("dgrad_float_plan", &dgrad_float_plan)
      .def("wgrad_float_plan", &wgrad_float_plan)
      .def("wgrad_workspace", &rk::cuda::grouped_conv2d_wgrad_workspace)
      .def("grouped_conv2d_wgrad", &grouped_conv2d_wgrad);
  py::class_<rk::ImageProblem>(m, "ImageProblem", py::module_local())
      .def(py::init(&rk::image_problem), "n"_a, "c"_a, "pixels"_a, "channels_last"_a, "dtype"_a)
      .def("bn_stats_workspace", &rk::cuda::bn_stats_workspace)
      .def("bn_stats", &bn_stats)
      .def("affine_act", &affine_act)
      .def("bn_act_reduce_workspace", &rk::cuda::bn_act_reduce_workspace)
      .def("bn_act_reduce", &bn_act_reduce)
      .def("affine_act_backward", &affine_act_backward);
#ifdef RESNEXT_KERNELS_EMULATION
  rk::cuda::emulation::bind(m);
#else
  m.def("build_info", [] { return py::dict("nvcc"_a = RK_NVCC, "architectures"_a = RK_CUDA_ARCHITECTURES); });
#endif
}
