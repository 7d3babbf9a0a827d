// That the emulation runs kernels as it says and reports what it promises to.
#include "emulation_selftest.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "emulation_selftest_arithmetic.h"
#include "emulation_selftest_kernels.h"

namespace rk::cuda {
namespace {

std::vector<std::pair<unsigned, unsigned>> visits;  // block, thread

__global__ void visit() {
  for (int i = 0; i < 2; ++i) {
    visits.push_back({block_index_y() * block_count_x() + block_index_x(), thread_index()});
    sync_threads();
  }
}

std::vector<std::pair<unsigned, unsigned>> visits_of(const Mode& mode) {
  emulation::configure(mode);
  visits.clear();
  launch<visit>({3, 2, 256, 0}, nullptr);
  emulation::configure();
  return visits;
}

void check_orders() {
  const auto forward = visits_of({}), reverse = visits_of({false, Order::kReverse, Order::kReverse});
  bool ascending = true, descending = true;
  for (unsigned i = 0; i < forward.size(); ++i) {
    ascending = ascending && forward[i] == std::pair{i / 512, i % 256};
    descending = descending && reverse[i] == std::pair{5 - i / 512, 255 - i % 256};
  }
  expect(ascending && forward.size() == 3072, "forward order");
  expect(descending && reverse.size() == 3072, "reverse order");
  const Mode random{false, Order::kRandom, Order::kRandom};
  Mode other = random;
  other.seed = 7;
  const auto once = visits_of(random);
  expect(once == visits_of(random), "a seed gives one order");
  expect(once != visits_of(other), "another seed gives another");
  bool anew = false, all = true, up = false, down = false;
  std::vector<int> counts(6 * 256);
  for (unsigned i = 0; i < once.size(); ++i) {
    ++counts[once[i].first * 256 + once[i].second];
    if (i % 512 < 256) anew = anew || once[i].second != once[i + 256].second;
    if (i % 32 == 0) (once[i].second < once[i + 1].second ? up : down) = true;
  }
  for (const int count : counts) all = all && count == 2;
  expect(anew, "warps are shuffled anew after a barrier");
  expect(up && down, "lanes run in both orders");
  expect(all, "every thread runs, in random order");
}

// What a copy leaves in its target before the wait, which kernels cannot see.
__global__ void peek(const uint32_t* in, uint32_t* seen) {
  unsigned char* const mine = shared_memory() + 4 * thread_index();
  std::memcpy(seen + thread_index(), mine, 4);
  cp_async<4>(mine, in + thread_index(), true);
  std::memcpy(seen + 32 + thread_index(), mine, 4);
  cp_async_commit();
  cp_async_wait<1>();
  std::memcpy(seen + 64 + thread_index(), mine, 4);
  cp_async_wait<0>();
  std::memcpy(seen + 96 + thread_index(), mine, 4);
}

void check_copies() {
  uint32_t in[32], seen[128];
  for (unsigned i = 0; i < 32; ++i) in[i] = i;
  for (const bool lazy : {false, true}) {
    Mode mode;
    mode.lazy_copies = lazy;
    emulation::configure(mode);
    launch<peek>({1, 1, 32, 128}, nullptr, &in[0], &seen[0]);
    bool right = true;
    for (unsigned i = 0; i < 32; ++i)
      right = right && seen[i] == ~0u && seen[32 + i] == (lazy ? ~0u : i) &&
              seen[64 + i] == (lazy ? ~0u : i) && seen[96 + i] == i;
    expect(right, lazy ? "lazy copies" : "eager copies");
    const auto& counters = emulation::counters();
    expect(counters.bytes_copied == 128 && counters.bytes_loaded == 0, "bytes of copies");
  }
  emulation::configure();
}

std::string name(const Mode& mode) {
  const char* const orders[] = {"forward", "reverse", "random"};
  return std::string(mode.lazy_copies ? "lazy " : "eager ") + orders[static_cast<int>(mode.warp_order)] +
         " " + orders[static_cast<int>(mode.block_order)] + " " + std::to_string(mode.seed);
}

std::vector<Mode> all_modes() {
  std::vector<Mode> modes;
  for (const bool lazy : {false, true})
    for (const Order warps : {Order::kForward, Order::kReverse, Order::kRandom})
      for (const Order blocks : {Order::kForward, Order::kReverse, Order::kRandom})
        for (const uint32_t seed : {0u, 1u})
          if (seed == 0 || warps == Order::kRandom) modes.push_back({lazy, warps, blocks, false, seed});
  return modes;
}

struct PipelineData {
  static constexpr int kSteps = 7, kBlocks = 3, kValues = kTile * kTile;
  std::vector<uint16_t> x = random(kBlocks * kSteps * kWarps * kValues), w = random(kValues);
  std::vector<uint16_t> y = std::vector<uint16_t>(kBlocks * kWarps * kValues, 0xffff);

  static std::vector<uint16_t> random(int count) {
    std::vector<uint16_t> values(count);
    for (uint16_t& value : values) value = bits_of<Half>(static_cast<int>(generator() % 5) - 2);
    return values;
  }

  bool right() const {
    const auto at = [](const std::vector<uint16_t>& values, int i) { return value_of<Half>(values[i]); };
    for (int i = 0; i < kBlocks * kWarps * kValues; ++i) {
      const int block = i / (kWarps * kValues), tile = (i / kValues + 1) % kWarps, row = i / kTile % kTile;
      double sum = 0;
      for (int step = 0; step < kSteps; ++step)
        for (int k = 0; k < kTile; ++k)
          sum += at(x, (((block * kSteps + step) * kWarps + tile) * kTile + row) * kTile + k) *
                 at(w, k * kTile + i % kTile);
      if (value_of<Half>(y[i]) != sum) return false;
    }
    return true;
  }
};

template <Defect kDefect>
bool run_pipeline() {
  PipelineData data;
  emulation::clear_regions();
  emulation::add_region(data.x.data(), 2 * data.x.size(), false);
  emulation::add_region(data.w.data(), 2 * data.w.size(), false);
  emulation::add_region(data.y.data(), 2 * data.y.size(), true);
  const Pipeline p{data.x.data(), data.w.data(), data.y.data(), PipelineData::kSteps};
  launch<pipeline<kDefect>>({PipelineData::kBlocks, 1, kThreads, kPipelineBytes}, nullptr, p);
  return data.right();
}

template <Defect kDefect>
bool run_exchange() {
  uint32_t out[kThreads], expected[kThreads], before[kThreads];
  emulation::clear_regions();
  launch<exchange<kDefect>>({1, 1, kThreads, 4 * kThreads + 128}, nullptr, &out[0], 3);
  for (uint32_t i = 0; i < kThreads; ++i) expected[i] = i;
  for (int round = 0; round < 3; ++round) {
    std::copy(expected, expected + kThreads, before);
    for (int i = 0; i < kThreads; ++i) expected[i] = 3 * before[i] + before[(i + 32) % kThreads];
  }
  return std::equal(out, out + kThreads, expected);
}

template <Defect kDefect>
bool run_copy() {
  alignas(8) uint32_t in[2 * kThreads], out[kThreads];
  for (uint32_t i = 0; i < 2 * kThreads; ++i) in[i] = 7 * i;
  emulation::clear_regions();
  launch<copy<kDefect>>({1, 1, kThreads, 8 * kThreads + 8}, nullptr, &in[0], &out[0]);
  return std::equal(out, out + kThreads, in);
}

template <Defect kDefect>
bool run_handover() {
  uint32_t out[kThreads];
  emulation::clear_regions();
  launch<handover<kDefect>>({1, 1, kThreads, 128}, nullptr, &out[0]);
  bool right = true;
  for (uint32_t i = 0; i < kThreads; ++i) right = right && out[i] == i;
  return right;
}

// Only the block that runs first writes what all read.
__global__ void read_from_before() {
  if (visits.empty()) visits.push_back({}), store_shared(shared_memory(), 1.0f);
  load_shared<float>(shared_memory());
}

void run_read_from_before() {
  visits.clear();
  launch<read_from_before>({2, 1, 32, 4}, nullptr);
}

__global__ void touch(float* memory, int kind) {
  if (thread_index() != 5) return;
  if (kind == 0) store_global(memory, 1.0f);
  if (kind == 1) load_global<float>(memory - 1);
  if (kind == 2) load_global<float4>(memory + 1);
  if (kind == 3) store_global(memory + 1, 2.0f), load_global<float>(memory + 1);
  if (kind == 4) cp_async<16>(shared_memory(), memory + 6, true);
  if (kind == 5) store_shared(shared_memory() - 4, 1.0f);
  if (kind == 6) load_shared<uint4>(shared_memory() + 8);
}

void run_touch(int kind, bool writable) {
  alignas(16) float memory[12] = {};
  emulation::clear_regions();
  emulation::add_region(memory + 2, 32, writable);
  launch<touch>({1, 1, 32, 32}, nullptr, &memory[2], kind);
}

struct Case {
  const char* name;
  std::function<void()> run;
  std::vector<std::string> says;  // one of them, whichever the order of threads makes the first
};

// What a race between warps may show as.
const std::vector<std::string> kRace = {"without a barrier behind its", "without a barrier behind the wait"};

std::vector<Case> defective() {
  const auto all = [](auto run) { return [run] { run(); }; };
  const std::vector<std::string> flight = {"before the wait for its copy"};
  return {
      {"no barrier behind a wait",
       all(run_pipeline<Defect::kNoBarrierBehindWait>),
       {"without a barrier behind the wait for its copy", "before the wait for its copy",
        "that nothing has written"}},
      {"waiting for one group too few", all(run_pipeline<Defect::kLaxWait>), flight},
      {"no commit", all(run_pipeline<Defect::kNoCommit>), flight},
      {"prefetch before the barrier",
       all(run_pipeline<Defect::kEarlyPrefetch>),
       {"without a barrier behind its read", "before the wait for its copy"}},
      {"no barrier behind the line",
       all(run_pipeline<Defect::kNoBarrierBehindLine>),
       {"without a barrier behind its write", "that nothing has written"}},
      {"ldmatrix of 31 lanes",
       all(run_pipeline<Defect::kPartialLdmatrix>),
       {"warp divergence: ldmatrix_x4 against mma",
        "warp divergence: mma_m16n8k16<Half> against ldmatrix_x4"}},
      {"ldmatrix in two branches",
       all(run_pipeline<Defect::kLdmatrixInTwoBranches>),
       {"warp divergence: ldmatrix_x4 of line"}},
      {"misaligned ldmatrix", all(run_pipeline<Defect::kMisalignedLdmatrix>), {"ldmatrix_x4 is misaligned"}},
      {"ldmatrix beyond shared memory",
       all(run_pipeline<Defect::kLdmatrixBeyondShared>),
       {"ldmatrix_x4 is outside shared memory"}},
      {"copy beyond shared memory",
       all(run_pipeline<Defect::kCopyBeyondShared>),
       {"cp_async is outside shared memory"}},
      {"copy beyond global memory",
       all(run_pipeline<Defect::kCopyBeyondGlobal>),
       {"cp_async is outside all regions"}},
      {"store beyond global memory",
       all(run_pipeline<Defect::kStoreBeyondGlobal>),
       {"store_global is outside all regions", "stores bytes a second time"}},
      {"stored twice", all(run_pipeline<Defect::kStoreTwice>), {"stores bytes a second time"}},
      {"a part of the block ends before a barrier",
       all(run_pipeline<Defect::kPartWithoutBarrier>),
       {"barrier divergence: sync_threads against exit"}},
      {"no barrier before a read", all(run_exchange<Defect::kNoBarrierBeforeRead>), kRace},
      {"no barrier behind a read", all(run_exchange<Defect::kNoBarrierBehindRead>), kRace},
      {"no barrier behind the last read", all(run_handover<Defect::kNoBarrierBehindLastRead>), kRace},
      {"two warps write", all(run_exchange<Defect::kBothWrite>), kRace},
      {"never written", all(run_exchange<Defect::kReadBeyondWritten>), {"that nothing has written"}},
      {"written by another block", run_read_from_before, {"that nothing has written"}},
      {"a warp without a barrier",
       all(run_exchange<Defect::kWarpWithoutBarrier>),
       {"barrier divergence: sync_threads against exit"}},
      {"lanes without a barrier",
       all(run_exchange<Defect::kLanesWithoutBarrier>),
       {"barrier divergence: sync_threads against exit"}},
      {"barrier in two branches",
       all(run_exchange<Defect::kBarrierInTwoBranches>),
       {"warp divergence: sync_threads of line"}},
      {"barrier of another line",
       all(run_exchange<Defect::kBarrierOfAnotherLine>),
       {"barrier divergence: sync_threads of line"}},
      {"never committed", all(run_copy<Defect::kNeverCommitted>), {"cp_async was not committed at exit"}},
      {"never waited for", all(run_copy<Defect::kNeverWaited>), {"cp_async was not waited for at exit"}},
      {"read in flight", all(run_copy<Defect::kReadInFlight>), flight},
      {"written in flight", all(run_copy<Defect::kWrittenInFlight>), flight},
      {"copied twice in flight", all(run_copy<Defect::kCopiedTwiceInFlight>), flight},
      {"read by another lane",
       all(run_copy<Defect::kReadByAnotherLane>),
       {"without a barrier behind the wait for its copy"}},
      {"the barrier before the wait",
       all(run_copy<Defect::kBarrierBeforeWait>),
       {"without a barrier behind the wait for its copy"}},
      {"misaligned copy", all(run_copy<Defect::kMisalignedCopy>), {"cp_async is misaligned"}},
      {"misaligned source", all(run_copy<Defect::kMisalignedSource>), {"its address in global memory"}},
      {"store to what is read only",
       [] { run_touch(0, false); },
       {"read-only region 0 of 32 bytes at offset 0"}},
      {"load before a region",
       [] { run_touch(1, true); },
       {"at offset -4 of region 0 of 32 bytes (block 0,0 thread 5"}},
      {"misaligned load", [] { run_touch(2, true); }, {"load_global is misaligned"}},
      {"load of a result", [] { run_touch(3, true); }, {"reads bytes that this launch has stored"}},
      {"copy past a region",
       [] { run_touch(4, true); },
       {"cp_async is outside all regions: at offset 24 of region 0"}},
      {"store before shared memory",
       [] { run_touch(5, true); },
       {"store_shared is outside shared memory: at byte -4"}},
      {"misaligned read of shared memory", [] { run_touch(6, true); }, {"load_shared is misaligned"}},
  };
}

void check_defects() {
  const std::vector<Case> cases = defective();
  for (const Mode& mode : all_modes()) {
    emulation::configure(mode);
    const auto check_twins = [&](const std::string& after) {
      bool right = false;
      const std::string error = error_of([&] {
        right = run_pipeline<Defect::kNone>() && run_exchange<Defect::kNone>() && run_copy<Defect::kNone>() &&
                run_handover<Defect::kNone>();
      });
      expect(right, "no defect" + after + ", " + name(mode) + ": " + error);
    };
    check_twins("");
    for (const Case& each : cases) {
      const std::string error = error_of(each.run);
      bool found = false;
      for (const std::string& text : each.says) found = found || error.find(text) != std::string::npos;
      found =
          found && error.find("(block ") != std::string::npos && error.find(" thread ") != std::string::npos;
      expect(found, std::string(each.name) + ", " + name(mode) + ": " + (error.empty() ? "no error" : error));
    }
    // Whatever was left in the midst of a kernel does not disturb the next.
    check_twins(" behind defects");
  }
  emulation::configure();
  emulation::clear_regions();
}

void check_launches() {
  run_pipeline<Defect::kNone>();
  const auto& counters = emulation::counters();
  using Data = PipelineData;
  expect(counters.bytes_copied == Data::kBlocks * Data::kSteps * kStageBytes, "bytes copied");
  expect(counters.bytes_stored == Data::kBlocks * kStageBytes, "bytes stored");
  expect(counters.bytes_loaded == Data::kBlocks * kThreads * 16, "bytes loaded");
  expect(counters.barriers == Data::kBlocks * (Data::kSteps + 1), "barriers");
  expect(counters.mmas == Data::kBlocks * kWarps * Data::kSteps * 2, "mmas");
  emulation::clear_regions();
  visits.clear();
  launch<visit>({0, 5, 32, 0}, nullptr);
  expect(visits.empty(), "a grid without blocks runs nothing");
  for (const Grid& grid : {Grid{1, 1, 1056, 0}, Grid{1, 70000, 32, 0}, Grid{1, 1, 32, 120000}})
    expect(error_of([&] { launch<visit>(grid, nullptr); }).find("launch: ") == 0,
           "a launch that no GPU takes");
  expect(fused(1 + 0x1p-12f, 1 + 0x1p-12f, -1) == 0x1p-11f + 0x1p-24f, "fused rounds once");
  expect(maximum(1, -2) == 1 && maximum(-2, 1) == 1 && std::isnan(maximum(NAN, 1)) &&
             std::isnan(maximum(1, NAN)),
         "maximum");
  expect(!std::signbit(maximum(0.0f, -0.0f)) && !std::signbit(maximum(-0.0f, 0.0f)), "maximum of zeros");
  for (float x = -20; x < 20; x += 0.37f)
    expect(std::fabs(quick_sigmoid(x) * (1 + std::exp(-double{x})) - 1) < 1e-5, "quick_sigmoid");
  expect(quick_sigmoid(-200) == 0 && quick_sigmoid(200) == 1 && std::isnan(quick_sigmoid(NAN)),
         "quick_sigmoid's ends");
}

}  // namespace
}  // namespace rk::cuda

int main() {
  using namespace rk::cuda;
  check_format<Half>("fp16");
  check_format<BFloat16>("bf16");
  for (int i = 0; i < 5; ++i) {
    check_mma<Half, 16>("mma_m16n8k16<Half>");
    check_mma<BFloat16, 16>("mma_m16n8k16<BFloat16>");
    check_mma<Half, 8>("mma_m16n8k8<Half>");
    check_mma<BFloat16, 8>("mma_m16n8k8<BFloat16>");
  }
  check_rounding();
  check_matrices();
  check_orders();
  check_copies();
  check_launches();
  check_defects();
  std::printf("%d checks, %d wrong\n", checks, wrong);
  return wrong != 0;
}
