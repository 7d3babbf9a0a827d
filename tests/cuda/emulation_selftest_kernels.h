#pragma once
// Kernels that are right, and the same with one defect each.
#include "platform.h"

namespace rk::cuda {

enum class Defect {
  kNone,
  // Of the pipeline.
  kNoBarrierBehindWait,
  kLaxWait,
  kNoCommit,
  kEarlyPrefetch,
  kNoBarrierBehindLine,
  kPartialLdmatrix,
  kLdmatrixInTwoBranches,
  kMisalignedLdmatrix,
  kLdmatrixBeyondShared,
  kCopyBeyondShared,
  kCopyBeyondGlobal,
  kStoreBeyondGlobal,
  kStoreTwice,
  kPartWithoutBarrier,
  // Of the exchange.
  kNoBarrierBeforeRead,
  kNoBarrierBehindRead,
  kBothWrite,
  kReadBeyondWritten,
  kWarpWithoutBarrier,
  kLanesWithoutBarrier,
  kBarrierInTwoBranches,
  kBarrierOfAnotherLine,
  // Of the copy.
  kNeverCommitted,
  kNeverWaited,
  kReadInFlight,
  kWrittenInFlight,
  kCopiedTwiceInFlight,
  kReadByAnotherLane,
  kBarrierBeforeWait,
  kMisalignedCopy,
  kMisalignedSource,
  // Of the handover.
  kNoBarrierBehindLastRead,
};

inline constexpr int kWarps = 4, kThreads = 32 * kWarps, kTile = 16, kTileBytes = 2 * kTile * kTile;
inline constexpr int kStages = 3, kStageBytes = kWarps * kTileBytes;
inline constexpr unsigned kPipelineBytes = (kStages + 1) * kStageBytes;

// y[block][warp] = sum over steps of x[block][step][warp + 1] * w: tiles of 16 x 16 values of type Half. All
// warps copy each stage, every warp multiplies a tile that others have copied, and stores a tile of others.
struct Pipeline {
  const uint16_t *x, *w;
  uint16_t* y;
  int steps;
};

template <Defect kDefect>
__device__ __forceinline__ void copy_step(const Pipeline& p, int step) {
  const int thread = static_cast<int>(thread_index());
  // One row further down the last threads leave the stage, the last stage the shared memory it was given.
  const int shift =
      kDefect == Defect::kCopyBeyondShared && step % kStages == kStages - 1 ? kStageBytes + 16 : 0;
  const int64_t more = kDefect == Defect::kCopyBeyondGlobal ? 8 : 0;
  const uint16_t* const from = p.x + (int64_t{block_index_x()} * p.steps + step) * kWarps * kTile * kTile;
  cp_async<16>(shared_memory() + step % kStages * kStageBytes + 16 * thread + shift, from + 8 * thread + more,
               true);
}

template <Defect kDefect>
__device__ __forceinline__ void load_tile(uint32_t (&r)[4], const unsigned char* tile, int lane) {
  const unsigned char* const row = tile + lane % 16 * 32 + lane / 16 * 16;
  if constexpr (kDefect == Defect::kPartialLdmatrix) {
    if (lane < 31) ldmatrix_x4(r, row);
  } else if constexpr (kDefect == Defect::kLdmatrixInTwoBranches) {
    if (lane < 16)
      ldmatrix_x4(r, row);
    else
      ldmatrix_x4(r, row);
  } else if constexpr (kDefect == Defect::kMisalignedLdmatrix) {
    ldmatrix_x4(r, row + 8);
  } else if constexpr (kDefect == Defect::kLdmatrixBeyondShared) {
    ldmatrix_x4(r, row + kPipelineBytes);
  } else {
    ldmatrix_x4(r, row);
  }
}

template <Defect kDefect>
__global__ __launch_bounds__(kThreads) void pipeline(const Pipeline p) {
  const int thread = static_cast<int>(thread_index()), lane = thread % 32, warp = thread / 32;
  uint32_t b[2][2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint16_t* const at = p.w + (2 * (lane % 4) + i % 2 * 8) * kTile + i / 2 * 8 + lane / 4;
    b[i / 2][i % 2] = load_global<uint16_t>(at) | uint32_t{load_global<uint16_t>(at + kTile)} << 16;
  }
  float sums[2][4] = {};
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < p.steps) copy_step<kDefect>(p, step);
    if (kDefect != Defect::kNoCommit) cp_async_commit();
  }
  for (int step = 0; step < p.steps; ++step) {
    const int next = step + kStages - 1;
    if (kDefect == Defect::kEarlyPrefetch && next < p.steps) copy_step<kDefect>(p, next);
    cp_async_wait<kDefect == Defect::kLaxWait ? kStages - 1 : kStages - 2>();
    if (kDefect != Defect::kNoBarrierBehindWait) sync_threads();
    if (kDefect != Defect::kEarlyPrefetch && next < p.steps) copy_step<kDefect>(p, next);
    if (kDefect != Defect::kNoCommit) cp_async_commit();
    uint32_t a[4];
    const unsigned char* const stage = shared_memory() + step % kStages * kStageBytes;
    load_tile<kDefect>(a, stage + (warp + 1) % kWarps * kTileBytes, lane);
#pragma unroll
    for (int n = 0; n < 2; ++n) mma_m16n8k16<Half>(sums[n], a, b[n][0], b[n][1], sums[n]);
  }
  unsigned char* const line = shared_memory() + kStages * kStageBytes;
  const uint32_t words[4] = {pack<Half>(sums[0][0], sums[0][1]), pack<Half>(sums[0][2], sums[0][3]),
                             pack<Half>(sums[1][0], sums[1][1]), pack<Half>(sums[1][2], sums[1][3])};
  stmatrix_x4(line + warp * kTileBytes + lane % 16 * 32 + lane / 16 * 16, words);
  if (kDefect == Defect::kPartWithoutBarrier && thread >= 96) return;
  if (kDefect != Defect::kNoBarrierBehindLine) sync_threads();
  // Warps store what others have written.
  const int place = (thread + 32) % kThreads;
  const int64_t more =
      kDefect == Defect::kStoreBeyondGlobal && block_index_x() + 1 == block_count_x() ? 8 : 0;
  uint16_t* const to = p.y + int64_t{block_index_x()} * kWarps * kTile * kTile + 8 * place + more;
  store_global(to, load_shared<uint4>(line + 16 * place));
  if (kDefect == Defect::kStoreTwice && thread == 40) store_global(to + 4, uint2{0, 0});
}

// out[thread] = what a thread of the next warp adds up, by words in shared memory that are used time and
// again.
template <Defect kDefect>
__global__ void exchange(uint32_t* out, int rounds) {
  const unsigned thread = thread_index(), warp = thread / 32, lane = thread % 32;
  unsigned char* const words = shared_memory();
  store_shared(words + 4 * thread, thread);
  sync_threads();
  uint32_t sum = thread;
  for (int round = 0; round < rounds; ++round) {
    const uint32_t other = load_shared<uint32_t>(
        words + 4 * (kDefect == Defect::kReadBeyondWritten ? thread + 32 : (thread + 32) % kThreads));
    if (kDefect == Defect::kWarpWithoutBarrier && warp == 2) return;
    if (kDefect == Defect::kLanesWithoutBarrier && warp == 2 && lane < 7) return;
    if (kDefect == Defect::kBarrierInTwoBranches && lane < 7) {
      sync_threads();
    } else if (kDefect == Defect::kBarrierOfAnotherLine && warp == 2) {
      sync_threads();
    } else {
      if (kDefect != Defect::kNoBarrierBehindRead) sync_threads();
    }
    sum = 3 * sum + other;
    store_shared(words + 4 * (kDefect == Defect::kBothWrite ? lane : thread), sum);
    if (kDefect != Defect::kNoBarrierBeforeRead) sync_threads();
  }
  store_global(out + thread, sum);
}

// out[thread] = in[thread], by a copy that only its own thread reads.
template <Defect kDefect>
__global__ void copy(const uint32_t* in, uint32_t* out) {
  const unsigned thread = thread_index();
  unsigned char* const mine = shared_memory() + 8 * thread;
  if (kDefect == Defect::kMisalignedCopy)
    cp_async<8>(mine + 4, in + 2 * thread, true);
  else if (kDefect == Defect::kMisalignedSource)
    cp_async<4>(mine, reinterpret_cast<const char*>(in + thread) + 2, true);
  else
    cp_async<4>(mine, in + thread, true);
  // Nothing is read there.
  cp_async<4>(mine + 4, nullptr, false);
  if (kDefect == Defect::kCopiedTwiceInFlight) cp_async<4>(mine, in + thread, true);
  if (kDefect == Defect::kWrittenInFlight) store_shared(mine, thread);
  if (kDefect == Defect::kNeverCommitted) return;
  cp_async_commit();
  if (kDefect == Defect::kNeverWaited) return;
  if (kDefect == Defect::kBarrierBeforeWait) sync_threads();
  if (kDefect != Defect::kReadInFlight) cp_async_wait<0>();
  if (kDefect == Defect::kReadByAnotherLane || kDefect == Defect::kBarrierBeforeWait) {
    // All lanes have waited behind it, but it is not a barrier.
    shuffle_xor(0, 1);
    store_global(out + thread, load_shared<uint32_t>(shared_memory() + 8 * (thread ^ 1)));
  } else {
    store_global(out + thread, load_shared<uint32_t>(mine) + load_shared<uint32_t>(mine + 4));
  }
  // Zeros that nothing waits for are no error.
  cp_async<4>(mine, nullptr, false);
  cp_async_commit();
}

// out[thread] = thread, from words that one warp writes, another reads and a third takes over.
template <Defect kDefect>
__global__ void handover(uint32_t* out) {
  const unsigned thread = thread_index(), warp = thread / 32, lane = thread % 32;
  unsigned char* const word = shared_memory() + 4 * lane;
  uint32_t value = thread;
  if (warp == 0) store_shared(word, value);
  sync_threads();
  if (warp == 1) value = load_shared<uint32_t>(word) + 32;
  if (kDefect != Defect::kNoBarrierBehindLastRead) sync_threads();
  // It is the last access: only the read before tells.
  if (warp == 2) value = load_shared<uint32_t>(word) + 64, store_shared(word, value);
  store_global(out + thread, value);
}

}  // namespace rk::cuda
