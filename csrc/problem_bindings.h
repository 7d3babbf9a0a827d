#pragma once
#include <pybind11/pybind11.h>

#include <array>
#include <optional>
#include <string>

#include "problem.h"

// Problems and pointers as Python gives them, for the modules of all devices.
namespace rk {

template <size_t kSize>
std::array<int64_t, kSize> ints(const pybind11::tuple& values) {
  if (values.size() != kSize)
    throw pybind11::value_error("expected a tuple of " + std::to_string(kSize) + " integers");
  std::array<int64_t, kSize> result;
  for (size_t i = 0; i < kSize; ++i) result[i] = values[i].cast<int64_t>();
  return result;
}

// sizes: n, c_in, h, w, c_out, kh, kw, oh, ow, groups, stride 2, padding 2, dilation 2; weights as in torch.
inline ConvProblem conv_problem(const pybind11::tuple& sizes, const pybind11::tuple& x_stride,
                                const pybind11::tuple& w_stride, const pybind11::tuple& y_stride, int dtype) {
  const auto s = ints<16>(sizes);
  ConvProblem p{s[0], s[1],           s[2],           s[3],           s[4], s[5], s[6], s[7], s[8],
                s[9], {s[10], s[11]}, {s[12], s[13]}, {s[14], s[15]}, {},   {},   {},   {}};
  p.dtype = static_cast<DType>(dtype);
  const auto x = ints<4>(x_stride), w = ints<4>(w_stride), y = ints<4>(y_stride);
  for (int i = 0; i < 4; ++i) p.x_stride[i] = x[i], p.w_stride[i + 1] = w[i], p.y_stride[i] = y[i];
  p.w_stride[0] = p.out_per_group() * w[0];
  return p;
}

inline ImageProblem image_problem(int64_t n, int64_t c, int64_t pixels, bool channels_last, int dtype) {
  return {n, c, pixels, channels_last, static_cast<DType>(dtype)};
}

// An address as Python has it: Tensor.data_ptr(), or 0 for none.
template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline BnBackward bn_backward(uintptr_t z, uintptr_t scale, uintptr_t shift, uintptr_t a, uintptr_t b,
                              uintptr_t c, int activation) {
  return {pointer<const void>(z),
          pointer<const float>(scale),
          pointer<const float>(shift),
          pointer<const float>(a),
          pointer<const float>(b),
          pointer<const float>(c),
          static_cast<Activation>(activation)};
}

// The same of a tuple of them, or None.
inline std::optional<BnBackward> bn_backward(const pybind11::object& bn) {
  if (bn.is_none()) return std::nullopt;
  const auto v = ints<7>(bn.cast<pybind11::tuple>());
  return bn_backward(v[0], v[1], v[2], v[3], v[4], v[5], static_cast<int>(v[6]));
}

}  // namespace rk
