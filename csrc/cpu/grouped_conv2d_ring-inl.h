// What the channels-last kernels share: tiles of pixels walk down a strip of rows, and the input rows that
// the kernel spans are kept in a small ring, zero-padded, one vector a cell. Neighbouring pixels then lie a
// fixed distance apart and edges need no test, whatever the strides of x.
#pragma once
#include "cpu/grouped_conv2d_common-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

// Widths of tiles in pixels; each is a copy of the code. Usual images are multiples of 7 wide.
template <int kMost>
constexpr bool is_tile_width(int64_t pixels) {
  return pixels <= kMost && (pixels == 4 || pixels == 7 || pixels == kMost);
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
  int64_t pixels, tiles, cells, strips, strip_rows, rows, span, plane;

  Ring(const ConvProblem& p, int64_t pixels)
      : pixels(pixels),
        tiles(ceil_div(p.ow, pixels)),
        cells((pixels - 1) * p.stride[1] + (p.kw - 1) * p.dilation[1] + 1),
        strips(ceil_div(p.oh, std::clamp<int64_t>(kFloats / (p.c_in * cells * p.stride[0]), 4, 14))),
        strip_rows(ceil_div(p.oh, strips)),
        rows(power_of_two((p.kh - 1) * p.dilation[0] + 1)),
        span((p.kh - 1) * p.dilation[0] + 1),
        plane(rows * cells * kLanes) {}

  float* row(float* ring, int64_t y) const { return ring + (y & (rows - 1)) * cells * kLanes; }

  // Where a tile's strip of rows lies: in the image whose first elements are x and y.
  struct Place {
    int64_t x, y, strip, column;
  };

  Place place(const ConvProblem& p, int64_t tile) const {
    const int64_t n = tile / tiles / strips;
    return {n * p.x_stride[0], n * p.y_stride[0], tile / tiles % strips, tile % tiles * pixels};
  }

  // For each output row of a strip: fill(x, count, cells) takes in the input rows that are new, and
  // finish_row(output row, rows to prefetch) computes it. Meanwhile the strip at `next` is
  // prefetched, each block of channels taking an equal share of every row, so that memory is read in order.
  template <class Fill, class FinishRow>
  RK_INLINE void walk(const ConvProblem& p, const Input& image, const Place& at, int64_t channel,
                      const Place& next, int64_t block, float* ring, int64_t planes, Fill fill,
                      FinishRow finish_row) const {
    const Columns columns(*this, p, at.column);
    for (int64_t r = 0; r < rows * planes; ++r) {
      float* row = ring + r * cells * kLanes;
      std::memset(row, 0, columns.begin * kLanes * sizeof(float));
      std::memset(row + columns.end * kLanes, 0, (cells - columns.end) * kLanes * sizeof(float));
    }
    const int64_t x = at.x + channel + columns.first * p.x_stride[3];
    const int64_t begin = at.strip * strip_rows, end = std::min(begin + strip_rows, p.oh);
    const RowsOf next_rows(*this, p, next.strip);
    const int64_t next_x =
        next.x + Columns(*this, p, next.column).first * p.x_stride[3] + block * cells * kLanes;
    int64_t filled = 0;
    for (int64_t y = begin; y < end; ++y) {
      const int64_t top = y * p.stride[0] - p.padding[0], bottom = std::min(top + span, p.h);
      for (filled = std::max(filled, top); filled < bottom; ++filled)
        fill(x + filled * p.x_stride[2], columns.count(), row(ring, filled) + columns.begin * kLanes);
      const int64_t first = next_rows.first + (y - begin) * next_rows.count / (end - begin);
      const int64_t last = next_rows.first + (y - begin + 1) * next_rows.count / (end - begin);
      finish_row(y, RowsPrefetcher{image.at(next_x + first * p.x_stride[2]), kLanes * image.element_size(),
                                   p.x_stride[2] * image.element_size(), last - first, image.has_z() ? 2 : 1,
                                   image.to_z()});
    }
  }

  // The input rows of a strip that lie inside the image.
  struct RowsOf {
    int64_t first, count;

    RowsOf(const Ring& ring, const ConvProblem& p, int64_t strip) {
      const int64_t top = strip * ring.strip_rows * p.stride[0] - p.padding[0];
      const int64_t last = std::min((strip + 1) * ring.strip_rows, p.oh) - 1;
      first = std::max<int64_t>(top, 0);
      count = std::max<int64_t>(std::min(last * p.stride[0] - p.padding[0] + ring.span, p.h) - first, 0);
    }
  };

  // The cells of a tile that lie inside the image, and the column of the first of them.
  struct Columns {
    int64_t begin, end, first;

    Columns(const Ring& ring, const ConvProblem& p, int64_t column) {
      const int64_t left = column * p.stride[1] - p.padding[1];
      begin = std::clamp(-left, int64_t{0}, ring.cells);
      end = std::clamp(p.w - left, begin, ring.cells);
      first = left + begin;
    }
    int64_t count() const { return end - begin; }
  };

  // About a quarter of L2: the strip at work and the next are there at the same time.
  static constexpr int64_t kFloats = 64 * 1024;
};

}  // namespace
}  // namespace rk::cpu::RK_ISA
