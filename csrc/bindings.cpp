#include <pybind11/pybind11.h>

#include <memory>
#include <optional>

#include "cpu/batch_norm.h"
#include "cpu/kernels.h"
#include "problem_bindings.h"

namespace py = pybind11;
using namespace pybind11::literals;
using rk::pointer;

namespace {

void grouped_conv2d_fwd(const rk::ConvProblem& p, uintptr_t x, uintptr_t w, uintptr_t y, uintptr_t scale,
                        uintptr_t shift, int activation, uintptr_t parallel_for) {
  const rk::Epilogue epilogue{pointer<const float>(scale), pointer<const float>(shift),
                              static_cast<rk::Activation>(activation)};
  const auto& kernels = rk::cpu::kernels();
  py::gil_scoped_release release;
  kernels.grouped_conv2d_fwd(p, pointer<const void>(x), pointer<const float>(w), pointer<void>(y), epilogue,
                             reinterpret_cast<rk::ParallelFor>(parallel_for));
}

// The per-channel vectors of a BatchNorm in evaluation.
struct FoldedNorm {
  std::unique_ptr<float[]> vectors;
  const float *scale, *shift;

  FoldedNorm(int64_t c, uintptr_t weight, uintptr_t bias, uintptr_t mean, uintptr_t var, float eps)
      : vectors(new float[4 * c]) {
    float *const var_used = vectors.get(), *const rstd = var_used + c, *const scales = rstd + c,
                 *const shifts = scales + c;
    rk::cpu::bn_fold(c, pointer<const float>(mean), pointer<const float>(var), pointer<const float>(weight),
                     pointer<const float>(bias), eps, 1, var_used, rstd, scales, shifts);
    scale = scales, shift = shifts;
  }
};

// Convolution, BatchNorm in evaluation and activation.
void grouped_conv2d_bn_act(const rk::ConvProblem& p, uintptr_t x, uintptr_t w, uintptr_t y,
                           uintptr_t bn_weight, uintptr_t bn_bias, uintptr_t mean, uintptr_t var, float eps,
                           int activation, uintptr_t parallel_for) {
  const FoldedNorm norm(p.c_out, bn_weight, bn_bias, mean, var, eps);
  const rk::Epilogue epilogue{norm.scale, norm.shift, static_cast<rk::Activation>(activation)};
  const auto& kernels = rk::cpu::kernels();
  py::gil_scoped_release release;
  kernels.grouped_conv2d_fwd(p, pointer<const void>(x), pointer<const float>(w), pointer<void>(y), epilogue,
                             reinterpret_cast<rk::ParallelFor>(parallel_for));
}

void grouped_conv2d_wgrad(const rk::ConvProblem& p, uintptr_t dy, uintptr_t x, uintptr_t dw,
                          const py::object& bn, uintptr_t parallel_for) {
  const auto backward = rk::bn_backward(bn);
  const auto& kernels = rk::cpu::kernels();
  py::gil_scoped_release release;
  kernels.grouped_conv2d_wgrad(p, pointer<const void>(dy), pointer<const void>(x), pointer<float>(dw),
                               backward ? &*backward : nullptr,
                               reinterpret_cast<rk::ParallelFor>(parallel_for));
}

void grouped_conv2d_dgrad(const rk::ConvProblem& p, uintptr_t dy, uintptr_t w, uintptr_t dx,
                          const py::object& bn, uintptr_t parallel_for) {
  const auto backward = rk::bn_backward(bn);
  const auto& kernels = rk::cpu::kernels();
  py::gil_scoped_release release;
  kernels.grouped_conv2d_dgrad(p, pointer<const void>(dy), pointer<const float>(w), pointer<void>(dx),
                               backward ? &*backward : nullptr,
                               reinterpret_cast<rk::ParallelFor>(parallel_for));
}

void bn_stats(const rk::ImageProblem& p, uintptr_t z, uintptr_t mean, uintptr_t m2, uintptr_t parallel_for) {
  const rk::BatchStats stats{pointer<float>(mean), pointer<float>(m2)};
  const auto& kernels = rk::cpu::kernels();
  py::gil_scoped_release release;
  kernels.bn_stats(p, pointer<const void>(z), stats, reinterpret_cast<rk::ParallelFor>(parallel_for));
}

void affine_act(const rk::ImageProblem& p, uintptr_t z, uintptr_t scale, uintptr_t shift, uintptr_t residual,
                uintptr_t y, int activation, uintptr_t parallel_for) {
  const auto& kernels = rk::cpu::kernels();
  py::gil_scoped_release release;
  kernels.affine_act(p, pointer<const void>(z), pointer<const float>(scale), pointer<const float>(shift),
                     pointer<const void>(residual), pointer<void>(y), static_cast<rk::Activation>(activation),
                     reinterpret_cast<rk::ParallelFor>(parallel_for));
}

// BatchNorm in evaluation, the residual and the activation.
void bn_act(const rk::ImageProblem& p, uintptr_t z, uintptr_t residual, uintptr_t y, uintptr_t bn_weight,
            uintptr_t bn_bias, uintptr_t mean, uintptr_t var, float eps, int activation,
            uintptr_t parallel_for) {
  const FoldedNorm norm(p.c, bn_weight, bn_bias, mean, var, eps);
  const auto& kernels = rk::cpu::kernels();
  py::gil_scoped_release release;
  kernels.affine_act(p, pointer<const void>(z), norm.scale, norm.shift, pointer<const void>(residual),
                     pointer<void>(y), static_cast<rk::Activation>(activation),
                     reinterpret_cast<rk::ParallelFor>(parallel_for));
}

void bn_act_reduce(const rk::ImageProblem& p, uintptr_t dy, uintptr_t z, uintptr_t scale, uintptr_t shift,
                   uintptr_t mean, uintptr_t rstd, uintptr_t y, int activation, uintptr_t sum_g,
                   uintptr_t sum_g_xhat, uintptr_t parallel_for) {
  const rk::BnReduce reduce{pointer<const void>(dy),     pointer<const void>(z),
                            pointer<const void>(y),      pointer<const float>(scale),
                            pointer<const float>(shift), pointer<const float>(mean),
                            pointer<const float>(rstd),  static_cast<rk::Activation>(activation)};
  const rk::BnGradients gradients{pointer<float>(sum_g), pointer<float>(sum_g_xhat)};
  const auto& kernels = rk::cpu::kernels();
  py::gil_scoped_release release;
  kernels.bn_act_reduce(p, reduce, gradients, reinterpret_cast<rk::ParallelFor>(parallel_for));
}

void affine_act_backward(const rk::ImageProblem& p, uintptr_t dy, uintptr_t z, uintptr_t scale,
                         uintptr_t shift, uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t y, int activation,
                         uintptr_t dz, uintptr_t dresidual, uintptr_t parallel_for) {
  const auto bn = rk::bn_backward(z, scale, shift, a, b, c, activation);
  const auto& kernels = rk::cpu::kernels();
  py::gil_scoped_release release;
  kernels.affine_act_backward(p, pointer<const void>(dy), bn, pointer<const void>(y), pointer<void>(dz),
                              pointer<void>(dresidual), reinterpret_cast<rk::ParallelFor>(parallel_for));
}

void bn_fold(int64_t c, uintptr_t mean, uintptr_t m2, uintptr_t weight, uintptr_t bias, float eps,
             int64_t count, uintptr_t var, uintptr_t rstd, uintptr_t scale, uintptr_t shift) {
  rk::cpu::bn_fold(c, pointer<const float>(mean), pointer<const float>(m2), pointer<const float>(weight),
                   pointer<const float>(bias), eps, count, pointer<float>(var), pointer<float>(rstd),
                   pointer<float>(scale), pointer<float>(shift));
}

void bn_coefficients(int64_t c, uintptr_t sum_g, uintptr_t sum_g_xhat, uintptr_t mean, uintptr_t rstd,
                     uintptr_t scale, int64_t count, uintptr_t b, uintptr_t shift) {
  rk::cpu::bn_coefficients(c, pointer<const float>(sum_g), pointer<const float>(sum_g_xhat),
                           pointer<const float>(mean), pointer<const float>(rstd),
                           pointer<const float>(scale), count, pointer<float>(b), pointer<float>(shift));
}

void bn_update_running(int64_t c, uintptr_t running_mean, uintptr_t running_var, uintptr_t mean,
                       uintptr_t var, int64_t count, double momentum) {
  rk::cpu::bn_update_running(c, pointer<float>(running_mean), pointer<float>(running_var),
                             pointer<const float>(mean), pointer<const float>(var), count, momentum);
}

// What this build holds: its native modules, the instruction sets compiled in, the compiler.
py::dict build_info() {
  py::list isas;
  for (const char* isa : rk::cpu::compiled_isas()) isas.append(isa);
  py::dict info;
  info["modules"] = py::make_tuple("_C");
  info["isas"] = isas;
  info["compiler"] = RK_COMPILER;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native CPU kernels of resnext_kernels; raw pointers, no torch.";
  py::class_<rk::ConvProblem>(m, "ConvProblem")
      .def(py::init(&rk::conv_problem), "sizes"_a, "x_stride"_a, "w_stride"_a, "y_stride"_a, "dtype"_a)
      .def("grouped_conv2d_fwd", &grouped_conv2d_fwd)
      .def("grouped_conv2d_bn_act", &grouped_conv2d_bn_act)
      .def("grouped_conv2d_dgrad", &grouped_conv2d_dgrad)
      .def("grouped_conv2d_wgrad", &grouped_conv2d_wgrad);
  py::class_<rk::ImageProblem>(m, "ImageProblem")
      .def(py::init(&rk::image_problem), "n"_a, "c"_a, "pixels"_a, "channels_last"_a, "dtype"_a)
      .def("bn_stats", &bn_stats)
      .def("affine_act", &affine_act)
      .def("bn_act", &bn_act)
      .def("bn_act_reduce", &bn_act_reduce)
      .def("affine_act_backward", &affine_act_backward);
  m.def("bn_fold", &bn_fold);
  m.def("bn_coefficients", &bn_coefficients);
  m.def("bn_update_running", &bn_update_running);
  m.def("fma_gflops", [] { return rk::cpu::kernels().fma_gflops(); });
  m.def("build_info", &build_info);
  m.def("cpu_isa", [] { return rk::cpu::kernels().isa; });
}
