#pragma once
// What Python tests ask of the emulation.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "emulation.h"

namespace rk::cuda::emulation {

inline Order order_of(const std::string& name) {
  if (name == "forward") return Order::kForward;
  if (name == "reverse") return Order::kReverse;
  if (name == "random") return Order::kRandom;
  throw std::invalid_argument("order: expected forward, reverse or random, got " + name);
}

inline pybind11::dict counters_dict(const Counters& c) {
  using namespace pybind11::literals;
  return pybind11::dict("bytes_loaded"_a = c.bytes_loaded, "bytes_copied"_a = c.bytes_copied,
                        "bytes_stored"_a = c.bytes_stored, "barriers"_a = c.barriers, "mmas"_a = c.mmas,
                        "matrix_phases"_a = c.matrix_phases, "matrix_cycles"_a = c.matrix_cycles,
                        "switches"_a = c.switches);
}

inline void bind(pybind11::module_& m) {
  using namespace pybind11::literals;
  m.def(
      "configure",
      [](bool lazy_copies, const std::string& warp_order, const std::string& block_order, bool truncate,
         uint32_t seed) {
        configure({lazy_copies, order_of(warp_order), order_of(block_order), truncate, seed});
      },
      "lazy_copies"_a = false, "warp_order"_a = "forward", "block_order"_a = "forward", "truncate"_a = false,
      "seed"_a = 0);
  m.def("counters", [] { return counters_dict(counters()); });
  m.def("counters_before", [] { return counters_dict(counters_before()); });
  m.def(
      "add_region",
      [](uintptr_t begin, int64_t bytes, bool writable) {
        add_region(reinterpret_cast<const void*>(begin), bytes, writable);
      },
      "begin"_a, "bytes"_a, "writable"_a);
  m.def("clear_regions", &clear_regions);
}

}  // namespace rk::cuda::emulation
