// What the channels-last kernels share: tiles of pixels walk down a strip of rows, and the input rows that
// the kernel spans are kept in a small ring, zero-padded, one vector a cell. Neighbouring pixels then lie a
// fixed distance apart and edges need no test, whatever the strides of x.
#pragma once
#include "cpu/grouped_conv2d_common-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

// Widths of tiles in pixels; each is a copy of the code.
template <int kMost>
constexpr bool is_tile_width(int64_t pixels) {
  return pixels <= kMost && (pixels == 4 || pixels == 7 || pixels == 8 || pixels == kMost);
}

// The width of tiles that covers a row of outputs with the least work.
template <int kMost>
int64_t tile_width(int64_t row) {
  int64_t best = kMost;
  const auto work = [&](int64_t pixels) { return ceil_div(row, pixels) * (pixels + 1); };
  for (int64_t pixels = kMost; pixels > 0; --pixels)
    if (is_tile_width<kMost>(pixels) && work(pixels) < work(best)) best = pixels;
  return best;
}

// Calls body(integral_constant<int, pixels>) for a width that tile_width<kMost> gave.
template <int kMost, class Body>
void with_tile_width(int64_t pixels, Body body) {
  unroll<kMost + 1>([&](auto candidate) {
    if constexpr (is_tile_width<kMost>(candidate))
      if (candidate == pixels) body(candidate);
  });
}

struct Ring {
  int64_t pixels, tiles, strips, cells, rows, span, plane;

  Ring(const ConvProblem& p, int64_t pixels)
      : pixels(pixels),
        tiles(ceil_div(p.ow, pixels)),
        strips(ceil_div(p.oh, kStripRows)),
        cells((pixels - 1) * p.stride[1] + (p.kw - 1) * p.dilation[1] + 1),
        rows(power_of_two((p.kh - 1) * p.dilation[0] + 1)),
        span((p.kh - 1) * p.dilation[0] + 1),
        plane(rows * cells * kLanes) {}

  float* row(float* ring, int64_t y) const { return ring + (y & (rows - 1)) * cells * kLanes; }

  // For each output row of a strip: fill(x, count, cells) takes in the input rows that are new, and
  // finish_row(output row, top input row, prefetch_next) computes it. x is the element of `image` where the
  // first channel wanted begins.
  template <class Fill, class FinishRow>
  RK_INLINE void walk(const ConvProblem& p, const Input& image, int64_t x, int64_t strip, int64_t column,
                      float* ring, int64_t planes, Fill fill, FinishRow finish_row) const {
    const int64_t first = column * p.stride[1] - p.padding[1];
    const int64_t begin = std::clamp(-first, int64_t{0}, cells), end = std::clamp(p.w - first, begin, cells);
    for (int64_t r = 0; r < rows * planes; ++r) {
      float* row = ring + r * cells * kLanes;
      std::memset(row, 0, begin * kLanes * sizeof(float));
      std::memset(row + end * kLanes, 0, (cells - end) * kLanes * sizeof(float));
    }
    x += (first + begin) * p.x_stride[3];
    int64_t next = 0;
    for (int64_t y = strip * kStripRows; y < std::min((strip + 1) * kStripRows, p.oh); ++y) {
      const int64_t top = y * p.stride[0] - p.padding[0];
      for (next = std::max(next, top); next < std::min(top + span, p.h); ++next)
        fill(x + next * p.x_stride[2], end - begin, row(ring, next) + begin * kLanes);
      finish_row(y, top,
                 Prefetcher(image, x + next * p.x_stride[2], p.x_stride[3], end - begin, p.x_stride[2],
                            p.stride[0]));
    }
  }

  static constexpr int64_t kStripRows = 14;
};

}  // namespace
}  // namespace rk::cpu::RK_ISA
