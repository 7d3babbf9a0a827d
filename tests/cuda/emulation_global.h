#pragma once
// Global memory: what a launch may touch, and what it has stored.
#include <array>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

namespace rk::cuda::emulation {

class ByteSet {
 public:
  void clear() { pages_.clear(); }

  // How many of the bytes are in it; `add` adds the rest.
  int64_t count(uintptr_t address, int64_t bytes, bool add) {
    int64_t known = 0;
    while (bytes > 0) {
      const auto bit = address % 64;
      const int64_t here = bytes < static_cast<int64_t>(64 - bit) ? bytes : static_cast<int64_t>(64 - bit);
      const uint64_t mask = (here == 64 ? ~uint64_t{0} : (uint64_t{1} << here) - 1) << bit;
      const auto page = add ? pages_.try_emplace(address / kPage).first : pages_.find(address / kPage);
      if (page != pages_.end()) {
        uint64_t& word = page->second[address % kPage / 64];
        known += __builtin_popcountll(word & mask);
        if (add) word |= mask;
      }
      address += here, bytes -= here;
    }
    return known;
  }

 private:
  static constexpr uintptr_t kPage = 4096;
  using Page = std::array<uint64_t, kPage / 64>;  // a bit for each byte

  std::unordered_map<uintptr_t, Page> pages_;
};

class GlobalMemory {
 public:
  void add_region(const void* begin, int64_t bytes, bool writable) {
    regions_.push_back({reinterpret_cast<uintptr_t>(begin), bytes, writable});
  }
  void clear_regions() { regions_.clear(); }

  void begin_launch() { stored_.clear(), read_.clear(), lowest_ = UINTPTR_MAX, highest_ = 0; }

  // What is wrong with it, or nothing.
  std::string load(const void* global, int64_t bytes) {
    const auto address = reinterpret_cast<uintptr_t>(global);
    if (std::string error = misplaced(address, bytes, false); !error.empty()) return error;
    if (address + bytes <= lowest_ || address > highest_) return {};
    return stored_.count(address, bytes, false) ? "reads bytes that this launch has stored" : std::string();
  }

  // How many of the bytes no load of this launch has read before; where no regions are named, it keeps no
  // book.
  int64_t first_reads(const void* global, int64_t bytes) {
    return regions_.empty() ? 0 : bytes - read_.count(reinterpret_cast<uintptr_t>(global), bytes, true);
  }

  std::string store(const void* global, int64_t bytes) {
    const auto address = reinterpret_cast<uintptr_t>(global);
    if (std::string error = misplaced(address, bytes, true); !error.empty()) return error;
    const uintptr_t last = address + bytes - 1;
    lowest_ = address < lowest_ ? address : lowest_, highest_ = last > highest_ ? last : highest_;
    return stored_.count(address, bytes, true) ? "stores bytes a second time" : std::string();
  }

 private:
  struct Region {
    uintptr_t begin;
    int64_t bytes;
    bool writable;
  };

  std::string misplaced(uintptr_t address, int64_t bytes, bool store) const {
    if (regions_.empty()) return {};
    for (const Region& region : regions_) {
      const auto offset = static_cast<int64_t>(address - region.begin);
      if (offset < 0 || offset + bytes > region.bytes) continue;
      if (store && !region.writable)
        return "stores to the read-only region " + name(region) + " at offset " + std::to_string(offset);
      return {};
    }
    const Region* nearest = &regions_[0];
    for (const Region& region : regions_)
      if (distance(region, address) < distance(*nearest, address)) nearest = &region;
    return "is outside all regions: at offset " +
           std::to_string(static_cast<int64_t>(address - nearest->begin)) + " of region " + name(*nearest);
  }

  std::string name(const Region& region) const {
    return std::to_string(&region - regions_.data()) + " of " + std::to_string(region.bytes) + " bytes";
  }

  static uintptr_t distance(const Region& region, uintptr_t address) {
    const uintptr_t end = region.begin + region.bytes;
    return address < region.begin ? region.begin - address : address > end ? address - end : 0;
  }

  std::vector<Region> regions_;
  ByteSet stored_, read_;
  uintptr_t lowest_ = UINTPTR_MAX, highest_ = 0;
};

}  // namespace rk::cuda::emulation
