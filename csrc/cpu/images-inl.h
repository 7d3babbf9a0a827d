// Dense images seen as one run of elements.
#pragma once
#include <algorithm>

#include "cpu/simd.h"
#include "cpu/tasks-inl.h"
#include "problem.h"

namespace rk::cpu::RK_ISA {
namespace {

// Tells which channels the vectors of a run of elements hold. With channels last, lanes hold the same
// channels again after a period: whole pixels in whole vectors, so that no pixel needs a tail of its own.
// Else, lanes are of one.
class ChannelLanes {
 public:
  explicit ChannelLanes(const ImageProblem& p)
      : c(p.c), pixels(p.pixels), elements(p.elements()), last(p.channels_last || p.pixels == 1) {
    int64_t pixels_of_period = 1;
    while (c * pixels_of_period % kLanes || c * pixels_of_period < kShortest) pixels_of_period *= 2;
    period = c * pixels_of_period;
  }

  // Per-channel values for a period: themselves, or repeated in `scratch`, which then moves on by a period.
  const float* repeated(const float* values, float*& scratch) const {
    if (!last || period == c) return values;
    for (int64_t i = 0; i < period; i += c) std::memcpy(scratch + i, values, c * sizeof(float));
    scratch += period;
    return scratch - period;
  }

  // Calls body(vectors, i, count) for elements [i, i + count) until all of [begin, end) are done, `vectors`
  // being make(channel, lanes), as channel_vector has them; with channels last, begin is a multiple of the
  // period.
  template <class Make, class Body>
  RK_INLINE void for_each(int64_t begin, int64_t end, Make make, Body body) const {
    if (last)
      for_each_pixel(begin, end, make, body);
    else
      for_each_plane(begin, end, make, body);
  }

  int64_t c, pixels, elements;
  bool last;
  int64_t period;

 private:
  // Below this the loop over a period is all overhead.
  static constexpr int64_t kShortest = 64;

  template <class Make, class Body>
  RK_INLINE void for_each_pixel(int64_t begin, int64_t end, Make make, Body body) const {
    for (int64_t row = begin; row < end; row += period) {
      const int64_t size = std::min(period, end - row);
      int64_t j = 0;
      for (; j + kLanes <= size; j += kLanes) body(make(j, kLanes), row + j, kLanes);
      if (j < size) body(make(j, kLanes), row + j, size - j);
    }
  }

  template <class Make, class Body>
  RK_INLINE void for_each_plane(int64_t begin, int64_t end, Make make, Body body) const {
    for (int64_t i = begin; i < end;) {
      const int64_t plane = i / pixels, stop = std::min((plane + 1) * pixels, end);
      const auto vectors = make(plane % c, 0);
      for (; i + kLanes <= stop; i += kLanes) body(vectors, i, kLanes);
      if (i < stop) body(vectors, i, stop - i);
      i = stop;
    }
  }
};

// The tasks of an elementwise op: runs of elements.
class ImageTiles {
 public:
  explicit ImageTiles(const ChannelLanes& lanes)
      : elements_(lanes.elements),
        size_(lanes.last ? ceil_div(kElements, lanes.period) * lanes.period : kElements) {}

  int64_t count() const { return ceil_div(elements_, size_); }
  int64_t first(int64_t tile) const { return std::min(tile * size_, elements_); }

 private:
  static constexpr int64_t kElements = 16 * 1024;

  int64_t elements_, size_;
};

}  // namespace
}  // namespace rk::cpu::RK_ISA
