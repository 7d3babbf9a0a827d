// Two sums of each channel over images and pixels, in an order that is a function of the problem alone:
// chunks of the images are summed each by itself, then merged pair by pair.
//
// Terms says what is summed:
//   Vectors, the per-channel vectors that it needs, each kLanes neighbouring channels or kLanes times one
//   kVectors, how many periods of scratch of_pixels needs
//   of_pixels(lanes, begin, end, scratch): the Terms for these elements, channels last, with at(j), the
//   Vectors
//       of element j of a period
//   of_channel(channel, begin, end, images, pitch): the Vectors for these elements of a channel and those of
//       further images, `pitch` elements apart
//   add(vectors, i, count, a, b): adds the terms of elements [i, i + count)
//   finish(vectors, n, a, b): makes of the sums of a chunk, n values a channel, what is merged
//   merge(n, a, b, other_n, other_a, other_b): adds another chunk's
#pragma once
#include "cpu/activation-inl.h"
#include "cpu/images-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

// A chunk is a run of pixels of some images, all images being one with channels last; a task is a chunk of
// some channels. No lane adds up more than kMostPixels / kLanes values one by one, or kElements / a period.
class Chunks {
 public:
  Chunks(const ChannelLanes& lanes, int64_t n)
      : c_(lanes.c), n_(lanes.last ? 1 : n), pixels_(lanes.last ? n * lanes.pixels : lanes.pixels) {
    if (lanes.last) {
      run_ = std::max(ceil_div(kElements, lanes.period), kFewestRows) * lanes.period / c_;
      channels_ = c_;
    } else {
      run_ = ceil_div(pixels_, ceil_div(pixels_, kMostPixels));
      images_ = std::clamp<int64_t>(kMostPixels / 4 / pixels_, 1, kMostImages);
      channels_ = std::clamp<int64_t>(kElements / (images_ * run_), 1, c_);
    }
    runs_ = ceil_div(pixels_, run_);
  }

  int64_t count() const { return ceil_div(n_, images_) * runs_; }
  int64_t values(int64_t chunk) const {
    return (end_image(chunk) - first_image(chunk)) * (end_pixel(chunk) - first_pixel(chunk));
  }
  int64_t first_image(int64_t chunk) const { return chunk / runs_ * images_; }
  int64_t end_image(int64_t chunk) const { return std::min(first_image(chunk) + images_, n_); }
  int64_t first_pixel(int64_t chunk) const { return chunk % runs_ * run_; }
  int64_t end_pixel(int64_t chunk) const { return std::min(first_pixel(chunk) + run_, pixels_); }

  int64_t tasks() const { return count() * tasks_of_chunk(); }
  int64_t chunk(int64_t task) const { return task / tasks_of_chunk(); }
  int64_t first_channel(int64_t task) const { return task % tasks_of_chunk() * channels_; }
  int64_t end_channel(int64_t task) const { return std::min(first_channel(task) + channels_, c_); }

 private:
  static constexpr int64_t kElements = 32 * 1024, kFewestRows = 16, kMostPixels = 4096, kMostImages = 8;

  int64_t tasks_of_chunk() const { return ceil_div(c_, channels_); }

  int64_t c_, n_, pixels_, run_, runs_, channels_, images_ = 1;
};

// What is known of each channel of each chunk, a vector of channels at a time.
class ChunkRecords {
 public:
  ChunkRecords(int64_t chunks, int64_t c)
      : pitch_(ceil_div(c, kLanes) * kLanes), floats_(2 * chunks * pitch_) {
    if (!floats_.data()) throw std::bad_alloc();
  }
  float* a(int64_t chunk) const { return floats_.data() + 2 * chunk * pitch_; }
  float* b(int64_t chunk) const { return a(chunk) + pitch_; }

 private:
  int64_t pitch_;
  Scratch floats_;
};

template <class Terms>
class SumChunks {
 public:
  SumChunks(const ChannelLanes& lanes, const Chunks& chunks, const Terms& terms, const ChunkRecords& records)
      : lanes_(lanes), chunks_(chunks), terms_(terms), records_(records) {}

  int64_t tasks() const { return chunks_.tasks(); }
  int64_t scratch_floats() const { return (2 + Terms::kVectors) * lanes_.period; }

  void range(int64_t begin, int64_t end, float* scratch) const {
    for (int64_t task = begin; task < end; ++task) {
      if (lanes_.last) {
        sum_pixels(chunks_.chunk(task), scratch);
        continue;
      }
      for (int64_t c = chunks_.first_channel(task); c < chunks_.end_channel(task); ++c)
        sum_channel(chunks_.chunk(task), c);
    }
  }

 private:
  void sum_pixels(int64_t chunk, float* scratch) const {
    const int64_t period = lanes_.period, end = chunks_.end_pixel(chunk) * lanes_.c;
    int64_t i = chunks_.first_pixel(chunk) * lanes_.c;
    float *a = scratch, *b = a + period;
    std::memset(a, 0, 2 * period * sizeof(float));
    const Terms terms = terms_.of_pixels(lanes_, i, end, b + period);
    for (; i + 4 * period <= end; i += 4 * period) add_periods<4>(terms, i, a, b);
    for (; i + period <= end; i += period) add_periods<1>(terms, i, a, b);
    for (int64_t j = 0; i < end; i += kLanes, j += kLanes) {
      Vec sum_a = load(a + j), sum_b = load(b + j);
      add_first(terms, terms.at(j), i, std::min<int64_t>(end - i, kLanes), sum_a, sum_b);
      store(a + j, sum_a);
      store(b + j, sum_b);
    }
    for (int64_t j = lanes_.c; j < period; ++j) a[j % lanes_.c] += a[j], b[j % lanes_.c] += b[j];
    for (int64_t j = 0; j < lanes_.c; j += kLanes) {
      Vec sum_a = load(a + j), sum_b = load(b + j);
      terms.finish(terms.at(j), chunks_.values(chunk), sum_a, sum_b);
      store(records_.a(chunk) + j, sum_a);
      store(records_.b(chunk) + j, sum_b);
    }
  }

  // Of count elements, whose lanes alone have terms.
  static RK_INLINE void add_first(const Terms& terms, const typename Terms::Vectors& vectors, int64_t i,
                                  int64_t count, Vec& a, Vec& b) {
    Vec sum_a = {}, sum_b = {};
    terms.add(vectors, i, count, sum_a, sum_b);
    a += first_lanes_of(sum_a, count);
    b += first_lanes_of(sum_b, count);
  }

  template <int kCount>
  RK_INLINE void add_periods(const Terms& terms, int64_t i, float* a, float* b) const {
    const int64_t period = lanes_.period;
    for (int64_t j = 0; j < period; j += kLanes) {
      const auto vectors = terms.at(j);
      Vec sum_a = {}, sum_b = {};
      unroll<kCount>([&](auto k)
                         RK_INLINE_LAMBDA { terms.add(vectors, i + j + k * period, kLanes, sum_a, sum_b); });
      store(a + j, load(a + j) + sum_a);
      store(b + j, load(b + j) + sum_b);
    }
  }

  void sum_channel(int64_t chunk, int64_t channel) const {
    const int64_t plane = channel * lanes_.pixels, pitch = lanes_.c * lanes_.pixels;
    const int64_t first = chunks_.first_image(chunk) * pitch + plane + chunks_.first_pixel(chunk);
    const int64_t pixels = chunks_.end_pixel(chunk) - chunks_.first_pixel(chunk);
    const int64_t images = chunks_.end_image(chunk) - chunks_.first_image(chunk);
    const auto vectors = terms_.of_channel(channel, first, first + pixels, images, pitch);
    Vec a = {}, b = {};
    for (int64_t image = first; image < first + images * pitch; image += pitch)
      for (int64_t i = image; i < image + pixels; i += kBlock)
        add_run(vectors, i, std::min(i + kBlock, image + pixels), a, b);
    a = sum_lanes(a);
    b = sum_lanes(b);
    terms_.finish(vectors, chunks_.values(chunk), a, b);
    records_.a(chunk)[channel] = a[0];
    records_.b(chunk)[channel] = b[0];
  }

  RK_INLINE void add_run(const typename Terms::Vectors& vectors, int64_t i, int64_t end, Vec& a,
                         Vec& b) const {
    Vec sum_a[kSums] = {}, sum_b[kSums] = {};
    for (; i + kSums * kLanes <= end; i += kSums * kLanes)
      unroll<kSums>(
          [&](auto k) RK_INLINE_LAMBDA { terms_.add(vectors, i + k * kLanes, kLanes, sum_a[k], sum_b[k]); });
    for (; i + kLanes <= end; i += kLanes) terms_.add(vectors, i, kLanes, sum_a[0], sum_b[0]);
    if (i < end) add_first(terms_, vectors, i, end - i, sum_a[1], sum_b[1]);
    a += (sum_a[0] + sum_a[1]) + (sum_a[2] + sum_a[3]);
    b += (sum_b[0] + sum_b[1]) + (sum_b[2] + sum_b[3]);
  }

  // Accumulators side by side, and how many elements they take before they are added up: long chains of float
  // additions lose digits.
  static constexpr int kSums = 4;
  static constexpr int64_t kBlock = 16 * kSums * kLanes;

  const ChannelLanes& lanes_;
  const Chunks& chunks_;
  const Terms& terms_;
  const ChunkRecords& records_;
};

template <class Terms>
class MergeChunks {
 public:
  MergeChunks(int64_t c, const Chunks& chunks, const ChunkRecords& records, float* a, float* b)
      : c_(c), chunks_(chunks), records_(records), a_(a), b_(b) {}

  int64_t tasks() const { return ceil_div(c_, kChannels); }
  int64_t scratch_floats() const { return 0; }

  void range(int64_t begin, int64_t end, float*) const {
    for (int64_t c = begin * kChannels; c < std::min(end * kChannels, c_); c += kLanes) {
      Vec a, b;
      merge(0, chunks_.count(), c, a, b);
      store_up_to(a_ + c, a, std::min<int64_t>(c_ - c, kLanes));
      store_up_to(b_ + c, b, std::min<int64_t>(c_ - c, kLanes));
    }
  }

 private:
  static constexpr int64_t kChannels = 256;

  // Returns how many values a channel there are in chunks [first, last).
  int64_t merge(int64_t first, int64_t last, int64_t c, Vec& a, Vec& b) const {
    if (last - first == 1) {
      a = load(records_.a(first) + c);
      b = load(records_.b(first) + c);
      return chunks_.values(first);
    }
    const int64_t middle = first + power_of_two(last - first) / 2;
    Vec other_a, other_b;
    const int64_t n = merge(first, middle, c, a, b), other_n = merge(middle, last, c, other_a, other_b);
    Terms::merge(n, a, b, other_n, other_a, other_b);
    return n + other_n;
  }

  int64_t c_;
  const Chunks& chunks_;
  const ChunkRecords& records_;
  float *const a_, *const b_;
};

template <class Terms>
void sum_channels(const ImageProblem& p, const Terms& terms, float* a, float* b, ParallelFor parallel_for) {
  if (p.elements() == 0) {
    std::memset(a, 0, p.c * sizeof(float));
    std::memset(b, 0, p.c * sizeof(float));
    return;
  }
  const ChannelLanes lanes(p);
  const Chunks chunks(lanes, p.n);
  const ChunkRecords records(chunks.count(), p.c);
  run(SumChunks<Terms>(lanes, chunks, terms, records), parallel_for);
  run(MergeChunks<Terms>(p.c, chunks, records, a, b), parallel_for);
}

}  // namespace
}  // namespace rk::cpu::RK_ISA
