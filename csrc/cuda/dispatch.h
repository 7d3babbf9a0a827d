#pragma once
#include <type_traits>

#include "platform.h"
#include "problem.h"

// What the host knows at run time as what kernels know when they are compiled.
namespace rk::cuda {

// Calls body(value), a value of the type: float, Half or BFloat16.
template <class Body>
void with_dtype(DType dtype, const Body& body) {
  if (dtype == DType::kFloat16)
    body(Half{});
  else if (dtype == DType::kBFloat16)
    body(BFloat16{});
  else
    body(float{});
}

// Calls body(constant), an integral_constant.
template <class Body>
void with_activation(Activation activation, const Body& body) {
  if (activation == Activation::kRelu)
    body(std::integral_constant<Activation, Activation::kRelu>{});
  else if (activation == Activation::kSilu)
    body(std::integral_constant<Activation, Activation::kSilu>{});
  else
    body(std::integral_constant<Activation, Activation::kIdentity>{});
}

template <class Body>
void with_bool(bool value, const Body& body) {
  if (value)
    body(std::true_type{});
  else
    body(std::false_type{});
}

// Calls body(activation, of_y), constants: whether the slope is of y, which only relu's is, and only where y
// is given.
template <class Body>
void with_slope(Activation activation, const void* y, const Body& body) {
  with_activation(activation, [&](auto constant) {
    if constexpr (decltype(constant)::value == Activation::kRelu)
      with_bool(y, [&](auto of_y) { body(constant, of_y); });
    else
      body(constant, std::false_type{});
  });
}

}  // namespace rk::cuda
