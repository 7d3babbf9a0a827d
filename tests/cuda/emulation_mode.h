#pragma once
// What a test sets and reads, and how the parts of the emulation name things to each other.
#include <cstdint>
#include <cstring>

namespace rk::cuda {

struct Grid {
  unsigned x, y, threads, shared_bytes;
};

namespace emulation {

enum class Order { kForward, kReverse, kRandom };

struct Mode {
  // When copies arrive: at their issue, or at the wait for them and until then their target holds NaN.
  bool lazy_copies = false;
  // Reverse: lanes too. Random: anew after each barrier.
  Order warp_order = Order::kForward, block_order = Order::kForward;
  // An mma rounds to nearest, or toward zero as tensor cores do.
  bool truncate = false;
  uint32_t seed = 0;
};

struct Counters {
  int64_t bytes_loaded = 0, bytes_copied = 0, bytes_stored = 0;  // of global memory; copied: by cp.async
  int64_t bytes_read_first = 0;    // of those loaded and copied each once, where regions are named
  int64_t barriers = 0, mmas = 0;  // of blocks, of warps
  // What ldmatrix and stmatrix need where no rows meet in a bank, and what they take.
  int64_t matrix_phases = 0, matrix_cycles = 0;
  int64_t switches = 0;
};

// A line of a kernel: as a default argument, that of the call.
struct Site {
  const char* file = "";
  int line = 0;

  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  bool operator==(const Site& other) const {
    return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
  }
};

// What threads meet at. Its lanes must come from one line: the hardware asks for the same instruction.
struct Meeting {
  const char* name = nullptr;
  Site site;

  bool operator==(const Meeting& other) const {
    return site == other.site && (name == other.name || std::strcmp(name, other.name) == 0);
  }
};

}  // namespace emulation
}  // namespace rk::cuda
