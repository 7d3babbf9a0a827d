#pragma once
// What the parts of the self-test share.
#include <cstdio>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>

#include "platform.h"

namespace rk::cuda {

using emulation::Mode;
using emulation::Order;

inline int checks = 0, wrong = 0;
inline std::mt19937 generator(1);

inline void expect(bool holds, const std::string& what) {
  ++checks;
  if (holds) return;
  ++wrong;
  std::printf("WRONG: %s\n", what.c_str());
}

// What launch throws, empty for nothing.
inline std::string error_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return {};
}

}  // namespace rk::cuda
