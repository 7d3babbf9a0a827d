#pragma once
// The shared memory of a block and, for each of its bytes, who touched it: hazards are errors in any
// schedule.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

namespace rk::cuda::emulation {

// Kernels keep to what every GPU of compute capability 8.0 and above gives a block.
inline constexpr unsigned kMostSharedBytes = 99 * 1024;

// Memory of exactly so many bytes, so that AddressSanitizer sees an access beyond it.
class SharedMemory {
 public:
  void allocate(unsigned bytes) {
    memory_.reset(static_cast<unsigned char*>(::operator new(bytes, kAlignment)));
    bytes_ = bytes;
    std::memset(memory_.get(), 0xff, bytes);
  }
  void free() { memory_.reset(), bytes_ = 0; }

  unsigned char* begin() const { return memory_.get(); }
  // Where `address` lies; out of range if beyond bytes().
  int64_t offset(const void* address) const {
    return static_cast<int64_t>(reinterpret_cast<uintptr_t>(address) -
                                reinterpret_cast<uintptr_t>(memory_.get()));
  }
  bool contains(int64_t offset, int64_t bytes) const { return offset >= 0 && offset + bytes <= bytes_; }

 private:
  static constexpr std::align_val_t kAlignment{128};
  struct Delete {
    void operator()(unsigned char* memory) const { ::operator delete(memory, kAlignment); }
  };
  std::unique_ptr<unsigned char, Delete> memory_;
  unsigned bytes_ = 0;
};

// Who accesses. A collective reads and writes as a warp, not as one of its threads.
inline constexpr unsigned kNoThread = 0xffff;
struct Actor {
  unsigned warp, thread;
};

// What an access to the byte lacks, null for nothing; `other` is the warp or thread that the text ends with,
// or -1.
struct Hazard {
  const char* what = nullptr;
  int64_t byte = 0;
  int other = -1;
};

// Between two barriers, an interval, a byte is written by one warp alone or only read; a copy writes from its
// issue to its wait. Lanes of one warp are not held against each other but for copies.
class Shadow {
 public:
  // For a launch; intervals count from 1 on, over all of its blocks.
  void reset(unsigned bytes) {
    bytes_.assign(bytes, Byte{});
    interval_ = 0;
  }
  void begin_block() { first_ = ++interval_; }
  void barrier() { ++interval_; }

  Hazard read(int64_t offset, int64_t count, Actor actor) {
    for (int64_t i = offset; i < offset + count; ++i) {
      Byte& byte = bytes_[i];
      if (byte.written < first_) return {"that nothing has written", i};
      if (byte.written == interval_ || byte.in_flight)
        if (const Hazard hazard = unseen(byte, i, actor); hazard.what) return hazard;
      if (byte.read != interval_) byte.read = interval_, byte.readers = 0;
      byte.readers |= uint32_t{1} << actor.warp;
    }
    return {};
  }

  Hazard write(int64_t offset, int64_t count, Actor actor) {
    for (int64_t i = offset; i < offset + count; ++i) {
      if (const Hazard hazard = occupied(bytes_[i], i, actor); hazard.what) return hazard;
      take(bytes_[i], actor, false);
    }
    return {};
  }

  Hazard issue_copy(int64_t offset, int64_t count, Actor actor) {
    for (int64_t i = offset; i < offset + count; ++i) {
      if (const Hazard hazard = occupied(bytes_[i], i, actor); hazard.what) return hazard;
      take(bytes_[i], actor, true);
    }
    return {};
  }

  // Its thread has waited: it sees the bytes now, others behind the next barrier.
  void finish_copy(int64_t offset, int64_t count) {
    for (int64_t i = offset; i < offset + count; ++i) bytes_[i].written = interval_, bytes_[i].in_flight = 0;
  }

 private:
  struct Byte {
    uint32_t written = 0, read = 0;  // the last interval of each, 0: none
    uint32_t readers = 0;            // warps, in that interval
    uint16_t copier = kNoThread;     // the thread whose copy wrote it
    uint8_t writer = 0;              // warp
    uint8_t in_flight = 0;
  };

  // Whether what was written is on its way, or no barrier lies between.
  Hazard unseen(const Byte& byte, int64_t i, Actor actor) const {
    if (byte.in_flight) return {"before the wait for its copy, by thread", i, byte.copier};
    if (byte.written != interval_) return {};
    if (byte.copier != kNoThread && byte.copier != actor.thread)
      return {"without a barrier behind the wait for its copy, by thread", i, byte.copier};
    if (byte.writer == actor.warp) return {};
    return {"without a barrier behind its write, by warp", i, byte.writer};
  }

  Hazard occupied(const Byte& byte, int64_t i, Actor actor) const {
    if (byte.written >= first_)
      if (const Hazard hazard = unseen(byte, i, actor); hazard.what) return hazard;
    const uint32_t others = byte.readers & ~(uint32_t{1} << actor.warp);
    if (byte.read == interval_ && others)
      return {"without a barrier behind its read, by warp", i, __builtin_ctz(others)};
    return {};
  }

  void take(Byte& byte, Actor actor, bool copy) const {
    byte.written = interval_;
    byte.writer = static_cast<uint8_t>(actor.warp);
    byte.copier = static_cast<uint16_t>(copy ? actor.thread : kNoThread);
    byte.in_flight = copy;
  }

  std::vector<Byte> bytes_;
  uint32_t interval_ = 0, first_ = 0;
};

// How many passes over the 32 banks of 4 bytes eight rows of 16 bytes take; one is the least.
inline int bank_passes(const int64_t (&offsets)[8]) {
  unsigned groups = 0;
  for (const int64_t offset : offsets) groups |= 1u << offset / 16 % 8;
  if (groups == 0xff) return 1;
  int most = 1, rows[8] = {};
  for (int i = 0; i < 8; ++i) {
    bool is_new = true;
    for (int j = 0; j < i; ++j) is_new = is_new && offsets[j] != offsets[i];
    if (is_new) most = std::max(most, ++rows[offsets[i] / 16 % 8]);
  }
  return most;
}

}  // namespace rk::cuda::emulation
