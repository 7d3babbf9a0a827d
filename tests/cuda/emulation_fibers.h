#pragma once
// Stacks of their own for CUDA threads, switched without the operating system.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

#ifndef __x86_64__
#error "The emulation of CUDA switches stacks with x86-64 instructions: run these tests on such a machine."
#endif

#if defined(__SANITIZE_ADDRESS__)
#define RK_EMULATION_ADDRESS_SANITIZER
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define RK_EMULATION_ADDRESS_SANITIZER
#endif
#endif
#ifdef RK_EMULATION_ADDRESS_SANITIZER
#include <sanitizer/common_interface_defs.h>
#endif

// A compiler that looks into the function would believe that registers and memory outlive the call.
#ifdef __clang__
#define RK_EMULATION_OPAQUE naked, noinline
#else
#define RK_EMULATION_OPAQUE naked, noipa
#endif

namespace rk::cuda::emulation {

// Keeps on this stack what a call preserves and its top in *from; goes on where the stack `to` was left.
__attribute__((RK_EMULATION_OPAQUE)) inline void switch_stack(void** /*from*/, void* /*to*/) {
  asm("pushq %rbp\n\t"
      "pushq %rbx\n\t"
      "pushq %r12\n\t"
      "pushq %r13\n\t"
      "pushq %r14\n\t"
      "pushq %r15\n\t"
      "movq %rsp, (%rdi)\n\t"
      "movq %rsi, %rsp\n\t"
      "popq %r15\n\t"
      "popq %r14\n\t"
      "popq %r13\n\t"
      "popq %r12\n\t"
      "popq %rbx\n\t"
      "popq %rbp\n\t"
      "ret");
}

// A stack and the point where it was left. Without an entry it stands for the stack of the caller of launch.
class Fiber {
 public:
  Fiber() = default;

  // `entry` must begin with arrived(), and never return.
  Fiber(void (*entry)(), unsigned index) : size_(kBytes) {
    void* const memory = mmap(nullptr, guard_bytes() + kBytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<unsigned char*>(memory);
    // An overrun of the stack faults here.
    mprotect(memory_, guard_bytes(), PROT_NONE);
    bottom_ = memory_ + guard_bytes();
    // Stacks that all began at the same place in a page would share a few sets of the cache.
    auto** const top = reinterpret_cast<void**>(memory_ + guard_bytes() + kBytes - index % 64 * 320 - 64);
    // A function finds its return address at 8 below a multiple of 16.
    top[-2] = reinterpret_cast<void*>(entry);
    for (int i = 3; i <= 8; ++i) top[-i] = nullptr;
    position_ = top - 8;
  }

  Fiber(Fiber&& other) noexcept { *this = std::move(other); }
  Fiber& operator=(Fiber&& other) noexcept {
    std::swap(memory_, other.memory_), std::swap(position_, other.position_);
    std::swap(bottom_, other.bottom_), std::swap(size_, other.size_);
    std::swap(fake_stack_, other.fake_stack_);
    return *this;
  }
  ~Fiber() {
    if (memory_) munmap(memory_, guard_bytes() + kBytes);
  }

  // Leaves `from`, the present one, and returns when something switches back to it.
  static void switch_to(Fiber& from, Fiber& to) {
    left() = &from;
#ifdef RK_EMULATION_ADDRESS_SANITIZER
    __sanitizer_start_switch_fiber(&from.fake_stack_, to.bottom_, to.size_);
#endif
    switch_stack(&from.position_, to.position_);
    arrived(from.fake_stack_);
  }

  // What has to follow a switch, on the stack switched to.
  static void arrived([[maybe_unused]] void* fake_stack = nullptr) {
#ifdef RK_EMULATION_ADDRESS_SANITIZER
    const void* bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(fake_stack, &bottom, &size);
    // Of the stack of launch's caller nothing else is known.
    if (!left()->memory_) left()->bottom_ = bottom, left()->size_ = size;
#endif
  }

 private:
  static constexpr size_t kBytes = 256 * 1024;

  static size_t guard_bytes() {
    static const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return bytes;
  }
  static Fiber*& left() {
    static Fiber* fiber = nullptr;
    return fiber;
  }

  unsigned char* memory_ = nullptr;
  void* position_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  void* fake_stack_ = nullptr;
};

}  // namespace rk::cuda::emulation
