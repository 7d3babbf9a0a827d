#pragma once
// csrc/cuda/platform.h on the CPU, for tests: kernels compile with g++ as they stand, and each launch runs
// its blocks one after the other, the threads of a block as fibers.
//
// Beyond running them it reports, as std::runtime_error out of launch: divergence at collectives and
// barriers; accesses to shared memory that no barrier or wait orders, in whatever order the threads happened
// to run; reads of shared memory that nothing wrote; accesses out of range, misaligned, or outside the
// regions of global memory that the test has named; bytes of global memory stored twice, or loaded after a
// store.
//
// It cannot report: order between lanes of a warp without a collective; races between blocks but for those on
// global memory that it says above; what the memory model allows beyond barriers; registers and speed.
#include <cmath>
#include <utility>

#include "emulation_machine.h"
#include "emulation_types.h"

namespace rk::cuda {

namespace emulation {

// Of the launches that follow.
inline void configure(const Mode& mode = {}) { machine.configure(mode); }

// Of the last launch.
inline const Counters& counters() { return machine.counters(); }

// Of all launches since the last call.
inline std::vector<Counters> take_launches() { return machine.take_launches(); }

// With any region, kernels may touch no other memory.
inline void add_region(const void* begin, int64_t bytes, bool writable) {
  machine.global().add_region(begin, bytes, writable);
}
inline void clear_regions() { machine.global().clear_regions(); }

// The 8 columns of a row of b or of the accumulators.
typedef double Row __attribute__((vector_size(64)));

// To 24 bits: to nearest, or toward zero.
inline float round_sum(double sum, bool truncate) {
  const auto nearest = static_cast<float>(sum);
  return truncate && std::fabs(nearest) > std::fabs(sum) ? std::nextafter(nearest, 0.0f) : nearest;
}

// One lane's fragments.
struct MmaLane {
  float* d;
  const uint32_t *a, *b;
  const float* c;
};

// d = a * b + c for 16 x kDepth times kDepth x 8. A product of 16-bit values is exact in double, and so is
// all but the widest sum; hardware sums otherwise, to fewer bits.
template <class T, int kDepth>
void multiply(MmaLane* const (&lanes)[32]) {
  static double a[16][kDepth];
  static Row b[kDepth];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, q = lane % 4;
    for (int i = 0; i < kDepth / 4; ++i) {
      const float2 two = unpack<T>(lanes[lane]->a[i]);
      double* const to = &a[g + 8 * (i % 2)][2 * q + 8 * (i / 2)];
      to[0] = two.x, to[1] = two.y;
    }
    for (int i = 0; i < kDepth / 8; ++i) {
      const float2 two = unpack<T>(lanes[lane]->b[i]);
      b[2 * q + 8 * i][g] = two.x, b[2 * q + 8 * i + 1][g] = two.y;
    }
  }
  for (int row = 0; row < 16; ++row) {
    const int first = row % 8 * 4, half = row / 8 * 2;
    Row sum;
    for (int q = 0; q < 4; ++q)
      for (int i = 0; i < 2; ++i) sum[2 * q + i] = lanes[first + q]->c[half + i];
    for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[k];
    for (int q = 0; q < 4; ++q)
      for (int i = 0; i < 2; ++i)
        lanes[first + q]->d[half + i] = round_sum(sum[2 * q + i], machine.truncates());
  }
  ++machine.count().mmas;
}

// One lane's row address and words.
struct MatrixLane {
  unsigned char* row;
  int64_t offset;
  uint32_t words[4];
};

// Visits (matrix, row of it, word of the row, lane and register that hold the word).
inline void move_matrices(const char* name, MatrixLane* const (&lanes)[32], bool store, const Site& site) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    int64_t offsets[8];
    for (int row = 0; row < 8; ++row) {
      MatrixLane& giver = *lanes[8 * matrix + row];
      offsets[row] = giver.offset;
      machine.access_row(name, giver.offset, 8 * matrix + row, store, site);
      for (int word = 0; word < 4; ++word) {
        uint32_t& value = lanes[4 * row + word]->words[matrix];
        if (store)
          std::memcpy(giver.row + 4 * word, &value, 4);
        else
          std::memcpy(&value, giver.row + 4 * word, 4);
      }
    }
    ++machine.count().matrix_phases;
    machine.count().matrix_cycles += bank_passes(offsets);
  }
}

// As a load of move_matrices, but by value: of a row, value i goes to lane 4 * i + row / 2.
inline void load_transposed(const char* name, MatrixLane* const (&lanes)[32], const Site& site) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    int64_t offsets[8];
    for (int row = 0; row < 8; ++row) {
      const MatrixLane& giver = *lanes[8 * matrix + row];
      offsets[row] = giver.offset;
      machine.access_row(name, giver.offset, 8 * matrix + row, false, site);
      for (int i = 0; i < 8; ++i) {
        uint16_t value;
        std::memcpy(&value, giver.row + 2 * i, 2);
        lanes[4 * i + row / 2]->words[matrix] |= uint32_t{value} << 16 * (row % 2);
      }
    }
    ++machine.count().matrix_phases;
    machine.count().matrix_cycles += bank_passes(offsets);
  }
}

template <class T>
struct MmaNames;
template <>
struct MmaNames<Half> {
  static constexpr const char *k16 = "mma_m16n8k16<Half>", *k8 = "mma_m16n8k8<Half>";
};
template <>
struct MmaNames<BFloat16> {
  static constexpr const char *k16 = "mma_m16n8k16<BFloat16>", *k8 = "mma_m16n8k8<BFloat16>";
};

}  // namespace emulation

using emulation::Site;

inline unsigned thread_index() { return emulation::machine.thread(); }
inline unsigned block_index_x() { return emulation::machine.block_x(); }
inline unsigned block_index_y() { return emulation::machine.block_y(); }
inline unsigned block_count_x() { return emulation::machine.blocks_x(); }
inline unsigned char* shared_memory() { return emulation::machine.shared(); }

template <class V>
V load_shared(const void* shared, Site site = Site::here()) {
  emulation::machine.access_shared("load_shared", shared, sizeof(V), alignof(V), false, site);
  V value;
  std::memcpy(&value, shared, sizeof value);
  return value;
}

template <class V>
void store_shared(void* shared, V value, Site site = Site::here()) {
  emulation::machine.access_shared("store_shared", shared, sizeof(V), alignof(V), true, site);
  std::memcpy(shared, &value, sizeof value);
}

template <class V>
V load_global(const void* global, Site site = Site::here()) {
  emulation::machine.access_global("load_global", global, sizeof(V), alignof(V), false, site);
  emulation::machine.count().bytes_loaded += sizeof(V);
  V value;
  std::memcpy(&value, global, sizeof value);
  return value;
}

template <class V>
void store_global(void* global, V value, Site site = Site::here()) {
  emulation::machine.access_global("store_global", global, sizeof(V), alignof(V), true, site);
  emulation::machine.count().bytes_stored += sizeof(V);
  std::memcpy(global, &value, sizeof value);
}

template <int kBytes>
void cp_async(void* shared, const void* global, bool valid, Site site = Site::here()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emulation::machine.issue_copy(shared, global, kBytes, valid, site);
}

inline void cp_async_commit() { emulation::machine.commit_copies(); }

template <int kPending>
void cp_async_wait() {
  static_assert(kPending >= 0);
  emulation::machine.wait_copies(kPending);
}

inline void sync_threads(Site site = Site::here()) { emulation::machine.sync(site); }

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, Site site = Site::here()) {
  constexpr const char* kName = "ldmatrix_x4";
  auto* const address = static_cast<unsigned char*>(const_cast<void*>(row));
  emulation::MatrixLane own{address, emulation::machine.locate_shared(kName, row, 16, 16, site), {}};
  emulation::machine.meet({kName, site}, own,
                          [&](auto& lanes) { emulation::move_matrices(kName, lanes, false, site); });
  std::memcpy(r, own.words, sizeof r);
}

inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, Site site = Site::here()) {
  constexpr const char* kName = "ldmatrix_x4_trans";
  auto* const address = static_cast<unsigned char*>(const_cast<void*>(row));
  emulation::MatrixLane own{address, emulation::machine.locate_shared(kName, row, 16, 16, site), {}};
  emulation::machine.meet({kName, site}, own,
                          [&](auto& lanes) { emulation::load_transposed(kName, lanes, site); });
  std::memcpy(r, own.words, sizeof r);
}

inline void stmatrix_x4(void* row, const uint32_t (&r)[4], Site site = Site::here()) {
  constexpr const char* kName = "stmatrix_x4";
  emulation::MatrixLane own{static_cast<unsigned char*>(row),
                            emulation::machine.locate_shared(kName, row, 16, 16, site),
                            {r[0], r[1], r[2], r[3]}};
  emulation::machine.meet({kName, site}, own,
                          [&](auto& lanes) { emulation::move_matrices(kName, lanes, true, site); });
}

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4],
                  Site site = Site::here()) {
  const uint32_t b[2] = {b0, b1};
  emulation::MmaLane own{d, a, b, c};
  emulation::machine.meet({emulation::MmaNames<T>::k16, site}, own, emulation::multiply<T, 16>);
}

template <class T>
void mma_m16n8k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b, const float (&c)[4],
                 Site site = Site::here()) {
  const uint32_t a[2] = {a0, a1};
  emulation::MmaLane own{d, a, &b, c};
  emulation::machine.meet({emulation::MmaNames<T>::k8, site}, own, emulation::multiply<T, 8>);
}

inline float shuffle_xor(float value, int mask, Site site = Site::here()) {
  struct Lane {
    float given, taken;
    int mask;
  } own{value, 0, mask};
  emulation::machine.meet({"shuffle_xor", site}, own, [](auto& lanes) {
    for (int lane = 0; lane < 32; ++lane) lanes[lane]->taken = lanes[(lane ^ lanes[lane]->mask) & 31]->given;
  });
  return own.taken;
}

inline float fused(float a, float b, float c) { return std::fma(a, b, c); }

// Of two zeros, +0 is the greater.
inline float maximum(float a, float b) {
  if (a == b) return std::signbit(a) ? b : a;
  return a != a || a > b ? a : b;
}

inline float exponential(float x) { return std::exp(x); }

// Off by so much that results of 32 bits show it.
inline float quick_sigmoid(float x) { return 1 / (1 + (1 + 0x1p-18f) * std::exp2(x * -1.44269504f)); }

// There is one device.
struct DeviceGuard {
  explicit DeviceGuard(int) {}
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
};

// Returns when the kernel has run.
template <auto kKernel, class... Arguments>
void launch(const Grid& grid, void* /*stream*/, const Arguments&... arguments) {
  if (grid.x == 0 || grid.y == 0) return;
  emulation::machine.launch(grid, [&] { kKernel(arguments...); });
}

}  // namespace rk::cuda
