// Scratch memory, and running tasks on threads.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "problem.h"

namespace rk::cpu::RK_ISA {
namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The least power of two that is no less than n.
inline int64_t power_of_two(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

// The greatest power of two that is no more than n.
inline int64_t power_of_two_within(int64_t n) { return power_of_two(n / 2 + 1); }

// Zeroed floats on a cache line, null when memory ran out: a thread's body must not throw. Not std::vector,
// whose inline code the linker could take from another ISA's object.
class Scratch {
 public:
  explicit Scratch(int64_t floats) {
    const size_t bytes = ceil_div(floats + 1, 16) * 64;  // never 0, which may give null
    data_ = static_cast<float*>(std::aligned_alloc(64, bytes));
    if (data_) std::memset(data_, 0, bytes);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }
  float* data() const { return data_; }

 private:
  float* data_;
};

// Runs kernel.range over its tasks, each thread with scratch of its own.
template <class Kernel>
void run(const Kernel& kernel, ParallelFor parallel_for) {
  struct Context {
    const Kernel& kernel;
    std::atomic<bool> out_of_memory;

    static void body(int64_t begin, int64_t end, void* context) {
      auto& self = *static_cast<Context*>(context);
      const Scratch scratch(self.kernel.scratch_floats());
      if (scratch.data())
        self.kernel.range(begin, end, scratch.data());
      else
        self.out_of_memory = true;
    }
  } context{kernel, {false}};
  if (parallel_for)
    parallel_for(0, kernel.tasks(), 1, &Context::body, &context);
  else
    Context::body(0, kernel.tasks(), &context);
  if (context.out_of_memory) throw std::bad_alloc();
}

}  // namespace
}  // namespace rk::cpu::RK_ISA
