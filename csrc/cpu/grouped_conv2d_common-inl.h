// What the grouped convolution kernels share: the epilogue, prefetching, padded strips of input.
#pragma once
#include <algorithm>
#include <memory>

#include "cpu/activation-inl.h"
#include "cpu/image-inl.h"
#include "cpu/simd.h"
#include "cpu/tasks-inl.h"
#include "problem.h"

namespace rk::cpu::RK_ISA {
namespace {

// Convolutions of one image that are computed together: the forward pass is one, the gradient of the input
// one for each phase of the stride. A part without taps (kh = kw = 0) is zero.
struct Parts {
  struct Part {
    ConvProblem p;
    const float* w;
    void* y;
  };

  const Part* parts;
  int64_t count, columns;  // so many neighbouring parts make the same rows, their columns taking turns
  ConvProblem window;      // a convolution that reads what those of all parts read

  const Part* begin() const { return parts; }
  const Part* end() const { return parts + count; }

  // How far within the window the first tap of a part lies.
  int64_t down(const ConvProblem& part) const { return window.padding[0] - part.padding[0]; }
  int64_t across(const ConvProblem& part) const { return window.padding[1] - part.padding[1]; }

  int64_t taps() const {
    int64_t sum = 0;
    for (const Part& part : *this) sum += part.p.kh * part.p.kw;
    return sum;
  }
};

// act(sum * scale + shift).
struct Finish {
  Vec scale, shift, floor;
  bool silu;

  // Lanes are channels.
  Finish(const Epilogue& epilogue, int64_t first_channel, int64_t count)
      : Finish(epilogue, epilogue.scale ? load_first(epilogue.scale + first_channel, count) : broadcast(1.f),
               epilogue.shift ? load_first(epilogue.shift + first_channel, count) : Vec{}) {}

  // All lanes are one channel.
  Finish(const Epilogue& epilogue, int64_t channel)
      : Finish(epilogue, broadcast(epilogue.scale ? epilogue.scale[channel] : 1.f),
               broadcast(epilogue.shift ? epilogue.shift[channel] : 0.f)) {}

  Finish(const Epilogue& epilogue, Vec scale, Vec shift)
      : scale(scale),
        shift(shift),
        floor(broadcast(epilogue.activation == Activation::kRelu ? 0.f : -__builtin_inff())),
        silu(epilogue.activation == Activation::kSilu) {}

  // All but SiLU, without a branch. Not max: NaN passes, as in eager.
  RK_INLINE Vec bounded(Vec sum) const {
    const Vec v = fma(sum, scale, shift);
    return v <= floor ? floor : v;
  }

  RK_INLINE Vec operator()(Vec sum) const {
    const Vec v = bounded(sum);
    return silu ? RK_ISA::silu(v) : v;
  }
};

// Stores lanes [begin, end) of a tile's first `pixels`.
template <int kPixels>
RK_INLINE void store_tile(const Vec (&acc)[kPixels], int64_t pixels, const Finish& finish, int64_t begin,
                          int64_t end, const Output& y, int64_t to, int64_t next_pixel) {
  if (pixels == kPixels && end - begin == kLanes && !finish.silu && y.is_float()) {
    float* floats = y.floats(to);
    unroll<kPixels>([&](auto q) RK_INLINE_LAMBDA { store(floats + q * next_pixel, finish.bounded(acc[q])); });
    return;
  }
  Vec sums[kPixels];
  unroll<kPixels>([&](auto q) RK_INLINE_LAMBDA { sums[q] = acc[q]; });
  for (int64_t q = 0; q < pixels; ++q, to += next_pixel) y.store_lanes(to, finish(sums[q]), begin, end);
}

// Stores the first `lanes` lanes of a tile's `pixels`, lanes a distance apart.
__attribute__((noinline)) inline void store_transposed(const Vec* acc, int64_t pixels, const Finish& finish,
                                                       int64_t lanes, const Output& y, int64_t to,
                                                       int64_t next_lane, int64_t next_pixel) {
  for (; pixels > 0; pixels -= kLanes, acc += kLanes, to += kLanes * next_pixel) {
    const int64_t count = std::min<int64_t>(pixels, kLanes);
    Vec rows[kLanes];
    unroll<kLanes>([&](auto q) RK_INLINE_LAMBDA { rows[q] = q < count ? finish(acc[q]) : Vec{}; });
    transpose(rows);
    for (int64_t lane = 0; lane < lanes; ++lane)
      y.store_lanes(to + lane * next_lane, rows[lane], 0, count, next_pixel);
  }
}

// Prefetches `runs` runs of cells one at a time, between multiply-adds: requests in a burst would wait for
// each other. Then it stays on the last cell.
struct Prefetcher {
  const char* at;
  int64_t next_cell, next_run, cells, runs, left, to_z;

  // From element `first` of the image, and of its z; distances count elements.
  Prefetcher(const Input& image, int64_t first, int64_t next_cell, int64_t cells, int64_t next_run,
             int64_t runs)
      : at(image.at(first)),
        next_cell(next_cell * image.element_size()),
        next_run((next_run - (cells - 1) * next_cell) * image.element_size()),
        cells(cells),
        runs(runs),
        left(cells),
        to_z(image.to_z()) {}

  RK_INLINE void operator()() {
    prefetch(at);
    if (to_z) prefetch(at + to_z);
    if (--left > 0) {
      at += next_cell;
    } else if (--runs > 0) {
      at += next_run;
      left = cells;
    } else {
      next_cell = 0;
    }
  }
};

// Prefetches a pixel at a time, as above without a test.
struct RowPrefetcher {
  const char* at;
  int64_t step;

  RK_INLINE void operator()() {
    prefetch(at);
    at += step;
  }
};

// Rows that are left to prefetch, each in so many pieces a distance apart: vectors of a pixel, or the image
// and the z that goes with it.
struct RowsPrefetcher {
  const char* at;
  int64_t pixel, row, left;
  int64_t pieces = 1, piece = 0, done = 0;

  RK_INLINE RowPrefetcher next() {
    const RowPrefetcher result{at + done * piece, pixel};
    if (++done == pieces) done = 0, at += row, --left;
    return result;
  }
};

// One group's input rows for a strip of output rows, zero-padded and split by stride phase, so that a kernel
// tap is a fixed offset and neighbouring outputs read neighbouring cells. A cell is a float or a vector.
struct PaddedStrip {
  int64_t pitch, rows, phase_size, output_rows, strips;

  PaddedStrip(const ConvProblem& p, int64_t most_cells) {
    pitch = p.ow + p.dilation[1] * (p.kw - 1) / p.stride[1];
    const int64_t halo = p.dilation[0] * (p.kh - 1) / p.stride[0], phases = p.stride[0] * p.stride[1];
    output_rows = std::clamp(most_cells / (pitch * phases) - halo, std::min(p.oh, int64_t{4}), p.oh);
    strips = ceil_div(p.oh, output_rows);
    output_rows = ceil_div(p.oh, strips);
    rows = output_rows + halo;
    phase_size = rows * pitch;
  }

  int64_t phases(const ConvProblem& p) const { return p.stride[0] * p.stride[1]; }

  // The cell of an input y rows below and x columns beside that of the first tap.
  int64_t tap(const ConvProblem& p, int64_t y, int64_t x) const {
    const int64_t phase = y % p.stride[0] * p.stride[1] + x % p.stride[1];
    return phase * phase_size + y / p.stride[0] * pitch + x / p.stride[1];
  }

  // Calls copy(cell, row, column, count) for the cells inside the image, whose columns step by the stride,
  // and clear(cell, count) for rows outside it. Columns outside are never written and stay zero.
  template <class Copy, class Clear>
  RK_INLINE void fill(const ConvProblem& p, int64_t strip, Copy copy, Clear clear) const {
    for (int64_t b = 0; b < p.stride[1]; ++b) {
      const int64_t first = b - p.padding[1], step = p.stride[1];
      const int64_t begin = std::min(pitch, first < 0 ? ceil_div(-first, step) : 0);
      const int64_t end = first < p.w ? std::clamp(ceil_div(p.w - first, step), begin, pitch) : begin;
      for (int64_t a = 0; a < p.stride[0]; ++a)
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t row = (strip * output_rows + r) * p.stride[0] + a - p.padding[0];
          const int64_t cell = (a * p.stride[1] + b) * phase_size + r * pitch + begin;
          if (row < 0 || row >= p.h)
            clear(cell, end - begin);
          else
            copy(cell, row, first + begin * step, end - begin);
        }
    }
  }
};

// The cells of all parts' taps, from that of the window's first.
inline std::unique_ptr<int64_t[]> tap_offsets(const Parts& parts, const PaddedStrip& strip) {
  std::unique_ptr<int64_t[]> offsets(new int64_t[parts.taps()]);
  int64_t* to = offsets.get();
  for (const Parts::Part& part : parts)
    for (int64_t i = 0; i < part.p.kh; ++i)
      for (int64_t j = 0; j < part.p.kw; ++j)
        *to++ = strip.tap(parts.window, parts.down(part.p) + i * part.p.dilation[0],
                          parts.across(part.p) + j * part.p.dilation[1]);
  return offsets;
}

// Copies what strip number `strip` needs of one channel; `temporary` has two rows of floats.
inline void fill_plane(const ConvProblem& p, const PaddedStrip& shape, int64_t strip, const Input& x,
                       int64_t n, int64_t channel, float* plane, float* temporary) {
  const int64_t image = n * p.x_stride[0] + channel * p.x_stride[1];
  shape.fill(
      p, strip,
      [&](int64_t cell, int64_t row, int64_t column, int64_t count) {
        int64_t step = p.stride[1] * p.x_stride[3];
        const int64_t first = image + row * p.x_stride[2] + column * p.x_stride[3];
        const float* from = x.row(first, channel, count, temporary, step);
        copy_row(from, step, count, plane + cell);
      },
      [&](int64_t cell, int64_t count) { std::memset(plane + cell, 0, count * sizeof(float)); });
}

}  // namespace
}  // namespace rk::cpu::RK_ISA
