#pragma once
#include <cstdint>

// What the plans of all kernels share.
namespace rk::cuda::plan {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Of a part of a workspace, so that the next one begins at a multiple of 256 bytes.
inline int64_t aligned(int64_t bytes) { return ceil_div(bytes, 256) * 256; }

// Blocks that fill the largest devices four times over, and once: constants, as nothing may depend on the
// device.
inline constexpr int64_t kManyBlocks = 2112, kFewBlocks = 528;

}  // namespace rk::cuda::plan
