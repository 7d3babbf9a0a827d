#pragma once
// Runs the threads of a block in turn, and knows what each of them waits for. One launch at a time.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "emulation_fibers.h"
#include "emulation_global.h"
#include "emulation_mode.h"
#include "emulation_shared.h"

namespace rk::cuda::emulation {

struct Copy {
  unsigned char* shared;
  const void* global;  // null: zeros
  int bytes;
  unsigned group;
  Site site;
};

class Machine {
 public:
  // A fiber that is not running still refers to itself, and may not move.
  Machine() { threads_.reserve(kMostThreads); }

  // For the kernel.
  unsigned thread() const { return thread_; }
  unsigned block_x() const { return block_x_; }
  unsigned block_y() const { return block_y_; }
  unsigned blocks_x() const { return grid_.x; }
  unsigned char* shared() const { return shared_.begin(); }
  bool truncates() const { return mode_.truncate; }
  Counters& count() { return counters_; }

  // Checks and records an access.
  void access_shared(const char* name, const void* address, int64_t bytes, size_t alignment, bool write,
                     const Site& site) {
    const int64_t offset = locate_shared(name, address, bytes, alignment, site);
    const Actor actor{thread_ / 32, thread_};
    check(write ? shadow_.write(offset, bytes, actor) : shadow_.read(offset, bytes, actor), write, name,
          thread_, site);
  }

  // Of a collective, for a lane of this warp.
  void access_row(const char* name, int64_t offset, unsigned lane, bool write, const Site& site) {
    const Actor actor{thread_ / 32, kNoThread};
    check(write ? shadow_.write(offset, 16, actor) : shadow_.read(offset, 16, actor), write, name,
          thread_ / 32 * 32 + lane, site);
  }

  int64_t locate_shared(const char* name, const void* address, int64_t bytes, size_t alignment,
                        const Site& site) {
    const int64_t offset = shared_.offset(address);
    if (!shared_.contains(offset, bytes))
      fail(name,
           "is outside shared memory: at byte " + std::to_string(offset) + " of " +
               std::to_string(grid_.shared_bytes),
           thread_, site);
    if (offset % alignment)
      fail(name,
           "is misaligned: at byte " + std::to_string(offset) + " of shared memory, not a multiple of " +
               std::to_string(alignment),
           thread_, site);
    return offset;
  }

  void access_global(const char* name, const void* address, int64_t bytes, size_t alignment, bool store,
                     const Site& site) {
    check_alignment(name, address, alignment, site);
    const std::string error = store ? global_.store(address, bytes) : global_.load(address, bytes);
    if (!error.empty()) fail(name, error, thread_, site);
    if (!store) counters_.bytes_read_first += global_.first_reads(address, bytes);
  }

  void issue_copy(void* shared, const void* global, int bytes, bool valid, const Site& site) {
    constexpr const char* kName = "cp_async";
    const int64_t offset = locate_shared(kName, shared, bytes, bytes, site);
    if (valid)
      access_global(kName, global, bytes, bytes, false, site), counters_.bytes_copied += bytes;
    else
      check_alignment(kName, global, bytes, site);
    check(shadow_.issue_copy(offset, bytes, {thread_ / 32, thread_}), true, kName, thread_, site);
    Thread& mine = threads_[thread_];
    mine.copies.push_back({shared_.begin() + offset, valid ? global : nullptr, bytes, mine.groups, site});
    if (mode_.lazy_copies)
      std::memset(shared, 0xff, bytes);
    else
      perform(mine.copies.back());
  }

  void commit_copies() { ++threads_[thread_].groups; }

  void wait_copies(unsigned pending) {
    Thread& mine = threads_[thread_];
    const unsigned finished = mine.groups > pending ? mine.groups - pending : 0;
    size_t i = 0;
    for (; i < mine.copies.size() && mine.copies[i].group < finished; ++i) {
      const Copy& copy = mine.copies[i];
      if (mode_.lazy_copies) perform(copy);
      shadow_.finish_copy(shared_.offset(copy.shared), copy.bytes);
    }
    mine.copies.erase(mine.copies.begin(), mine.copies.begin() + i);
  }

  void sync(const Site& site) {
    Warp& warp = warps_[thread_ / 32];
    const Meeting barrier{"sync_threads", site};
    if (warp.at_barrier && !(warp.barrier == barrier)) diverge("warp", warp.barrier, barrier, thread_);
    warp.barrier = barrier;
    warp.at_barrier |= bit(thread_);
    wait();
  }

  // Returns once all lanes of the warp have come and the last has called body(the `own` of each lane).
  template <class Own, class Body>
  void meet(const Meeting& meeting, Own& own, const Body& body) {
    Warp& warp = warps_[thread_ / 32];
    if (warp.arrived && !(warp.meeting == meeting)) diverge("warp", warp.meeting, meeting, thread_);
    warp.meeting = meeting;
    warp.own[thread_ % 32] = &own;
    warp.arrived |= bit(thread_);
    if (~warp.arrived) return wait();
    Own* all[32];
    for (int lane = 0; lane < 32; ++lane) all[lane] = static_cast<Own*>(warp.own[lane]);
    body(all);
    warp.arrived = 0, warp.ready = ~uint32_t{0};
  }

  [[noreturn]] void fail(const char* name, const std::string& what, unsigned thread, const Site& site) const {
    const char* const slash = std::strrchr(site.file, '/');
    throw std::runtime_error(std::string(name) + " " + what + " (block " + std::to_string(block_x_) + "," +
                             std::to_string(block_y_) + " thread " + std::to_string(thread) + ", " +
                             (slash ? slash + 1 : site.file) + ":" + std::to_string(site.line) + ")");
  }

  // For the host.
  void configure(const Mode& mode) { mode_ = mode; }
  const Counters& counters() const { return counters_; }
  std::vector<Counters> take_launches() { return std::exchange(launches_, {}); }
  GlobalMemory& global() { return global_; }

  void launch(const Grid& grid, const std::function<void()>& kernel) {
    const std::lock_guard<std::mutex> lock(mutex_);
    check(grid);
    grid_ = grid, kernel_ = &kernel;
    counters_ = {};
    random_.seed(mode_.seed);
    global_.begin_launch();
    shadow_.reset(grid.shared_bytes);
    while (threads_.size() < grid.threads)
      threads_.push_back({Fiber(&Machine::run_threads, static_cast<unsigned>(threads_.size()))});
    std::vector<uint32_t> blocks(size_t{grid.x} * grid.y);
    std::iota(blocks.begin(), blocks.end(), 0);
    arrange(blocks, mode_.block_order);
    for (const uint32_t block : blocks) run_block(block);
    shared_.free();
    launches_.push_back(counters_);
  }

 private:
  struct Thread {
    Fiber fiber;
    std::vector<Copy> copies = {};
    unsigned groups = 0;  // committed
  };

  // Sets of lanes, a bit each: every lane is in one of them, the running one in `ready`.
  struct Warp {
    uint32_t ready = 0, arrived = 0, at_barrier = 0, ended = 0;
    Meeting meeting, barrier;  // of the lanes in `arrived` and in `at_barrier`
    void* own[32];
  };

  struct Cancelled {};

  static constexpr unsigned kMostThreads = 1024;

  static uint32_t bit(unsigned thread) { return uint32_t{1} << thread % 32; }

  static void check(const Grid& grid) {
    if (grid.threads > kMostThreads) throw std::runtime_error("launch: more than 1024 threads a block");
    if (grid.x > 0x7fffffff || grid.y > 0xffff) throw std::runtime_error("launch: a grid too large");
    if (grid.shared_bytes > kMostSharedBytes)
      throw std::runtime_error("launch: " + std::to_string(grid.shared_bytes) +
                               " bytes of shared memory, GPUs of compute capability 8.6 have " +
                               std::to_string(kMostSharedBytes));
  }

  void check_alignment(const char* name, const void* address, size_t alignment, const Site& site) const {
    if (reinterpret_cast<uintptr_t>(address) % alignment)
      fail(name,
           "is misaligned: its address in global memory is not a multiple of " + std::to_string(alignment),
           thread_, site);
  }

  void check(const Hazard& hazard, bool write, const char* name, unsigned thread, const Site& site) const {
    if (hazard.what)
      fail(name,
           std::string(write ? "writes" : "reads") + " byte " + std::to_string(hazard.byte) +
               " of shared memory " + hazard.what +
               (hazard.other < 0 ? "" : " " + std::to_string(hazard.other)),
           thread, site);
  }

  static void perform(const Copy& copy) {
    if (copy.global)
      std::memcpy(copy.shared, copy.global, copy.bytes);
    else
      std::memset(copy.shared, 0, copy.bytes);
  }

  template <class Value>
  void arrange(std::vector<Value>& values, Order order) {
    if (order == Order::kReverse) std::reverse(values.begin(), values.end());
    if (order == Order::kRandom) std::shuffle(values.begin(), values.end(), random_);
  }

  [[noreturn]] void diverge(const char* of, const Meeting& a, const Meeting& b, unsigned thread) const {
    const std::string line = a.name == b.name ? " of line " + std::to_string(a.site.line) : "";
    fail(of, "divergence: " + std::string(a.name) + line + " against " + b.name, thread, b.site);
  }

  // Goes on with the next lane of the warp; where none is ready, with the scheduler.
  void wait() {
    leave();
    if (cancelled_) throw Cancelled{};
  }

  void leave() {
    const unsigned mine = thread_;
    Warp& warp = warps_[mine / 32];
    warp.ready &= ~bit(mine);
    Fiber* next = &scheduler_;
    if (warp.ready) {
      thread_ = mine / 32 * 32 + (descending_ ? 31 - __builtin_clz(warp.ready) : __builtin_ctz(warp.ready));
      next = &threads_[thread_].fiber;
    }
    ++counters_.switches;
    Fiber::switch_to(threads_[mine].fiber, *next);
    thread_ = mine;
  }

  static void run_threads();

  void run_thread() {
    try {
      if (cancelled_) return;
      (*kernel_)();
      check_copies();
    } catch (const Cancelled&) {
    } catch (...) {
      if (!error_) error_ = std::current_exception();
      // The scheduler has to see it next.
      warps_[thread_ / 32].ready = 0;
    }
    warps_[thread_ / 32].ended |= bit(thread_);
  }

  // A copy that nothing waited for has loaded what nothing can have read: a wait is missing, or the copy is
  // one too many. Zeros in flight at the end cost nothing, and a pipeline that runs dry may leave them.
  void check_copies() const {
    const Thread& mine = threads_[thread_];
    for (const Copy& copy : mine.copies) {
      if (copy.group >= mine.groups) fail("cp_async", "was not committed at exit", thread_, copy.site);
      if (copy.global) fail("cp_async", "was not waited for at exit", thread_, copy.site);
    }
  }

  void run_block(uint32_t block) {
    block_x_ = block % grid_.x, block_y_ = block / grid_.x;
    shared_.allocate(grid_.shared_bytes);
    shadow_.begin_block();
    warps_.assign((grid_.threads + 31) / 32, Warp{});
    for (unsigned i = 0; i < grid_.threads; ++i) {
      warps_[i / 32].ready |= bit(i);
      threads_[i].copies.clear(), threads_[i].groups = 0;
    }
    try {
      while (run_to_barrier()) release();
    } catch (...) {
      cancel();
      throw;
    }
  }

  // Whether threads wait at a barrier.
  bool run_to_barrier() {
    order_.resize(warps_.size());
    std::iota(order_.begin(), order_.end(), 0);
    arrange(order_, mode_.warp_order);
    unsigned waiting = 0;
    for (const unsigned i : order_) {
      Warp& warp = warps_[i];
      descending_ =
          mode_.warp_order == Order::kReverse || (mode_.warp_order == Order::kRandom && random_() % 2);
      // A lane that ends a meeting makes the others ready, so that they are left only where all wait.
      while (warp.ready)
        enter(32 * i + (descending_ ? 31 - __builtin_clz(warp.ready) : __builtin_ctz(warp.ready)));
      if (warp.arrived) report_stragglers(i);
      waiting += __builtin_popcount(warp.at_barrier);
    }
    return waiting > 0;
  }

  void enter(unsigned thread) {
    thread_ = thread;
    Fiber::switch_to(scheduler_, threads_[thread].fiber);
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  // Some lanes of the warp wait in a collective, which the others will not reach.
  void report_stragglers(unsigned i) const {
    const Warp& warp = warps_[i];
    const uint32_t others = warp.at_barrier ? warp.at_barrier : ~warp.arrived;
    const unsigned thread = 32 * i + __builtin_ctz(others);
    diverge("warp", warp.meeting, warp.at_barrier ? warp.barrier : Meeting{"exit", warp.meeting.site},
            thread);
  }

  // All threads have to come, to one line: that those that have ended are not waited for, and that other
  // lines count, is more often a mistake than a plan.
  void release() {
    const auto waits = [](const Warp& warp) { return warp.at_barrier != 0; };
    const Meeting barrier = std::find_if(warps_.begin(), warps_.end(), waits)->barrier;
    for (unsigned i = 0; i < warps_.size(); ++i) {
      const Warp& warp = warps_[i];
      if (warp.ended) diverge("barrier", barrier, {"exit", barrier.site}, 32 * i + __builtin_ctz(warp.ended));
      if (!(warp.barrier == barrier)) diverge("barrier", barrier, warp.barrier, 32 * i);
    }
    for (Warp& warp : warps_) warp.ready = std::exchange(warp.at_barrier, 0);
    shadow_.barrier();
    ++counters_.barriers;
  }

  // Unwinds every thread that has not ended, so that its fiber can begin anew.
  void cancel() {
    cancelled_ = true;
    // So that each comes back here.
    for (Warp& warp : warps_) warp.ready = 0;
    for (unsigned i = 0; i < grid_.threads; ++i) {
      if (warps_[i / 32].ended & bit(i)) continue;
      thread_ = i;
      Fiber::switch_to(scheduler_, threads_[i].fiber);
    }
    cancelled_ = false;
    error_ = nullptr;
    shared_.free();
  }

  std::mutex mutex_;
  Mode mode_;
  Counters counters_;
  std::vector<Counters> launches_;
  Grid grid_{};
  const std::function<void()>* kernel_ = nullptr;
  std::mt19937 random_;
  GlobalMemory global_;
  SharedMemory shared_;
  Shadow shadow_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<unsigned> order_;
  Fiber scheduler_;
  unsigned thread_ = 0, block_x_ = 0, block_y_ = 0;
  bool descending_ = false, cancelled_ = false;
  std::exception_ptr error_;
};

inline Machine machine;

// A fiber runs its thread of one block after the other.
inline void Machine::run_threads() {
  Fiber::arrived();
  for (;;) {
    machine.run_thread();
    machine.leave();
  }
}

}  // namespace rk::cuda::emulation
