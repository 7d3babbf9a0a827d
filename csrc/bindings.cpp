#include <pybind11/pybind11.h>

#include <array>

#include "cpu/kernels.h"

namespace py = pybind11;

namespace {

template <size_t kSize>
std::array<int64_t, kSize> ints(const py::tuple& values) {
  if (values.size() != kSize)
    throw py::value_error("expected a tuple of " + std::to_string(kSize) + " integers");
  std::array<int64_t, kSize> result;
  for (size_t i = 0; i < kSize; ++i) result[i] = values[i].cast<int64_t>();
  return result;
}

// sizes: n, c_in, h, w, c_out, kh, kw, oh, ow, groups, stride 2, padding 2, dilation 2.
rk::ConvProblem problem(const py::tuple& sizes, const py::tuple& x_stride, const py::tuple& w_stride,
                        const py::tuple& y_stride, int dtype) {
  const auto s = ints<16>(sizes);
  rk::ConvProblem p{s[0], s[1],           s[2],           s[3],           s[4], s[5], s[6], s[7], s[8],
                    s[9], {s[10], s[11]}, {s[12], s[13]}, {s[14], s[15]}, {},   {},   {},   {}};
  p.dtype = static_cast<rk::DType>(dtype);
  const auto x = ints<4>(x_stride), w = ints<4>(w_stride), y = ints<4>(y_stride);
  for (int i = 0; i < 4; ++i) p.x_stride[i] = x[i], p.w_stride[i] = w[i], p.y_stride[i] = y[i];
  return p;
}

void grouped_conv2d_fwd(const py::tuple& sizes, const py::tuple& x_stride, const py::tuple& w_stride,
                        const py::tuple& y_stride, int dtype, uintptr_t x, uintptr_t w, uintptr_t y,
                        uintptr_t scale, uintptr_t shift, int activation, uintptr_t parallel_for) {
  const rk::ConvProblem p = problem(sizes, x_stride, w_stride, y_stride, dtype);
  const rk::Epilogue epilogue{reinterpret_cast<const float*>(scale), reinterpret_cast<const float*>(shift),
                              static_cast<rk::Activation>(activation)};
  const auto& kernels = rk::cpu::kernels();
  py::gil_scoped_release release;
  kernels.grouped_conv2d_fwd(p, reinterpret_cast<const void*>(x), reinterpret_cast<const float*>(w),
                             reinterpret_cast<void*>(y), epilogue,
                             reinterpret_cast<rk::ParallelFor>(parallel_for));
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
  m.def("grouped_conv2d_fwd", &grouped_conv2d_fwd);
  m.def("fma_gflops", [] { return rk::cpu::kernels().fma_gflops(); });
  m.def("build_info", &build_info);
  m.def("cpu_isa", [] { return rk::cpu::kernels().isa; });
}
