#include <pybind11/pybind11.h>

#include <array>
#include <optional>

#include "cpu/kernels.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

template <size_t kSize>
std::array<int64_t, kSize> ints(const py::tuple& values) {
  if (values.size() != kSize)
    throw py::value_error("expected a tuple of " + std::to_string(kSize) + " integers");
  std::array<int64_t, kSize> result;
  for (size_t i = 0; i < kSize; ++i) result[i] = values[i].cast<int64_t>();
  return result;
}

// sizes: n, c_in, h, w, c_out, kh, kw, oh, ow, groups, stride 2, padding 2, dilation 2; weights as in torch.
rk::ConvProblem problem(const py::tuple& sizes, const py::tuple& x_stride, const py::tuple& w_stride,
                        const py::tuple& y_stride, int dtype) {
  const auto s = ints<16>(sizes);
  rk::ConvProblem p{s[0], s[1],           s[2],           s[3],           s[4], s[5], s[6], s[7], s[8],
                    s[9], {s[10], s[11]}, {s[12], s[13]}, {s[14], s[15]}, {},   {},   {},   {}};
  p.dtype = static_cast<rk::DType>(dtype);
  const auto x = ints<4>(x_stride), w = ints<4>(w_stride), y = ints<4>(y_stride);
  for (int i = 0; i < 4; ++i) p.x_stride[i] = x[i], p.w_stride[i + 1] = w[i], p.y_stride[i] = y[i];
  p.w_stride[0] = p.out_per_group() * w[0];
  return p;
}

// An address as Python has it: Tensor.data_ptr(), or 0 for none.
template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void grouped_conv2d_fwd(const rk::ConvProblem& p, uintptr_t x, uintptr_t w, uintptr_t y, uintptr_t scale,
                        uintptr_t shift, int activation, uintptr_t parallel_for) {
  const rk::Epilogue epilogue{pointer<const float>(scale), pointer<const float>(shift),
                              static_cast<rk::Activation>(activation)};
  const auto& kernels = rk::cpu::kernels();
  py::gil_scoped_release release;
  kernels.grouped_conv2d_fwd(p, pointer<const void>(x), pointer<const float>(w), pointer<void>(y), epilogue,
                             reinterpret_cast<rk::ParallelFor>(parallel_for));
}

// z, scale, shift, a, b, c as addresses and the activation, or None.
std::optional<rk::BnBackward> bn_backward(const py::object& bn) {
  if (bn.is_none()) return std::nullopt;
  const auto values = ints<7>(bn.cast<py::tuple>());
  const auto vector = [&](int i) { return pointer<const float>(values[i]); };
  return rk::BnBackward{
      pointer<const void>(values[0]),        vector(1), vector(2), vector(3), vector(4), vector(5),
      static_cast<rk::Activation>(values[6])};
}

void grouped_conv2d_wgrad(const rk::ConvProblem& p, uintptr_t dy, uintptr_t x, uintptr_t dw,
                          const py::object& bn, uintptr_t parallel_for) {
  const auto backward = bn_backward(bn);
  const auto& kernels = rk::cpu::kernels();
  py::gil_scoped_release release;
  kernels.grouped_conv2d_wgrad(p, pointer<const void>(dy), pointer<const void>(x), pointer<float>(dw),
                               backward ? &*backward : nullptr,
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
  py::class_<rk::ConvProblem>(m, "ConvProblem")
      .def(py::init(&problem), "sizes"_a, "x_stride"_a, "w_stride"_a, "y_stride"_a, "dtype"_a)
      .def("grouped_conv2d_fwd", &grouped_conv2d_fwd)
      .def("grouped_conv2d_wgrad", &grouped_conv2d_wgrad);
  m.def("fma_gflops", [] { return rk::cpu::kernels().fma_gflops(); });
  m.def("build_info", &build_info);
  m.def("cpu_isa", [] { return rk::cpu::kernels().isa; });
}
