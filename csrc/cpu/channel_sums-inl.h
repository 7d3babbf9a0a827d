// Two sums of each channel over images and pixels, in an order that is a function of the problem alone:
// chunks of the images are summed each by itself, then merged pair by pair.
//
// Terms says what is summed:
//   Vectors, the per-channel vectors that it needs, each kLanes neighbouring channels or kLanes times one
//   Element and Sum, what sums are kept in: floats in a Vec or Doubles
//   kVectors, how many periods of scratch of_pixels needs
//   of_pixels(lanes, begin, end, scratch): the Terms for these elements, channels last; its at(j) are the
//       Vectors of element j of a period
//   of_channel(channel, begin, end, images, pitch): the Vectors for these elements of a channel and those of
//       further images, `pitch` elements apart
//   add(vectors, i, count, a, b): adds the terms of elements [i, i + count)
//   prefetch(i): of element i, which may be past the end
//   record(vectors, n, a, b): the Record, a struct of Vecs, that a chunk's sums over n values a channel make
//   merge(n, record, other_n, other): adds another chunk's to a record
//   result(record): the two vectors asked for
#pragma once
#include "cpu/activation-inl.h"
#include "cpu/doubles-inl.h"
#include "cpu/images-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

// A chunk is a run of pixels of some images, all images being one with channels last; a task is a chunk of
// some channels.
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

// What is known of each chunk: Record, a struct of Vecs, for every kLanes channels.
template <class Record>
class Records {
 public:
  Records(int64_t chunks, int64_t c) : vectors_(ceil_div(c, kLanes)), floats_(chunks * vectors_ * kFloats) {
    if (!floats_.data()) throw std::bad_alloc();
  }

  // Of channels [c, c + kLanes), c a multiple of kLanes.
  Record load(int64_t chunk, int64_t c) const {
    Record record;
    std::memcpy(&record, at(chunk, c), sizeof record);
    return record;
  }
  void store(int64_t chunk, int64_t c, const Record& record) const {
    std::memcpy(at(chunk, c), &record, sizeof record);
  }

  // Of a channel, which is in all lanes.
  void store_channel(int64_t chunk, int64_t c, const Record& record) const {
    float lanes[kFloats];
    std::memcpy(lanes, &record, sizeof record);
    for (int64_t i = c % kLanes; i < kFloats; i += kLanes) at(chunk, c)[i] = lanes[i];
  }

 private:
  static constexpr int64_t kFloats = sizeof(Record) / sizeof(float);

  float* at(int64_t chunk, int64_t c) const {
    return floats_.data() + (chunk * vectors_ + c / kLanes) * kFloats;
  }

  int64_t vectors_;
  Scratch floats_;
};

template <class Terms>
class SumChunks {
 public:
  using Element = typename Terms::Element;
  using Sum = typename Terms::Sum;

  SumChunks(const ChannelLanes& lanes, const Chunks& chunks, const Terms& terms,
            const Records<typename Terms::Record>& records)
      : lanes_(lanes), chunks_(chunks), terms_(terms), records_(records) {}

  int64_t tasks() const { return chunks_.tasks(); }
  int64_t scratch_floats() const { return (2 * kWidth + Terms::kVectors) * lanes_.period; }

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
    Element *a = reinterpret_cast<Element*>(scratch), *b = a + period;
    const Terms terms = terms_.of_pixels(lanes_, i, end, scratch + 2 * kWidth * period);
    std::memset(a, 0, 2 * period * sizeof(Element));
    for (; i < end; i += kPeriods * period)
      for (int64_t j = 0; j < period; j += kLanes) {
        Sum sum_a = {}, sum_b = {};
        add_column(terms, i + j, std::min(i + kPeriods * period, end), std::min<int64_t>(period - j, kLanes),
                   terms.at(j), sum_a, sum_b);
        put(a + j, get(a + j) + sum_a);
        put(b + j, get(b + j) + sum_b);
      }
    for (int64_t j = lanes_.c; j < period; ++j) a[j % lanes_.c] += a[j], b[j % lanes_.c] += b[j];
    for (int64_t j = 0; j < lanes_.c; j += kLanes)
      records_.store(chunk, j, terms.record(terms.at(j), chunks_.values(chunk), get(a + j), get(b + j)));
  }

  static RK_INLINE Sum get(const Element* sums) {
    Sum sum;
    std::memcpy(&sum, sums, sizeof sum);
    return sum;
  }
  static RK_INLINE void put(Element* sums, const Sum& sum) { std::memcpy(sums, &sum, sizeof sum); }

  // The same lanes of every period from element i on: their sums stay in registers. Those of the next periods
  // are prefetched: with nothing but loads to do, the hardware alone falls behind.
  RK_INLINE void add_column(const Terms& terms, int64_t i, int64_t end, int64_t lanes,
                            const typename Terms::Vectors& vectors, Sum& a, Sum& b) const {
    for (; i < end; i += lanes_.period) {
      terms.prefetch(i + kPeriods * lanes_.period);
      add(terms, vectors, i, std::min(lanes, end - i), a, b);
    }
  }

  // The terms of `count` lanes.
  static RK_INLINE void add(const Terms& terms, const typename Terms::Vectors& vectors, int64_t i,
                            int64_t count, Sum& a, Sum& b) {
    if (count == kLanes) return terms.add(vectors, i, kLanes, a, b);
    Sum sum_a = {}, sum_b = {};
    terms.add(vectors, i, count, sum_a, sum_b);
    a += first_lanes_of(sum_a, count);
    b += first_lanes_of(sum_b, count);
  }

  void sum_channel(int64_t chunk, int64_t channel) const {
    const int64_t plane = channel * lanes_.pixels, pitch = lanes_.c * lanes_.pixels;
    const int64_t first = chunks_.first_image(chunk) * pitch + plane + chunks_.first_pixel(chunk);
    const int64_t pixels = chunks_.end_pixel(chunk) - chunks_.first_pixel(chunk);
    const int64_t images = chunks_.end_image(chunk) - chunks_.first_image(chunk);
    const auto vectors = terms_.of_channel(channel, first, first + pixels, images, pitch);
    Sum a = {}, b = {};
    for (int64_t image = first; image < first + images * pitch; image += pitch)
      for (int64_t i = image; i < image + pixels; i += kRun)
        add_run(vectors, i, std::min(i + kRun, image + pixels), a, b);
    records_.store_channel(chunk, channel,
                           terms_.record(vectors, chunks_.values(chunk), sum_lanes(a), sum_lanes(b)));
  }

  RK_INLINE void add_run(const typename Terms::Vectors& vectors, int64_t i, int64_t end, Sum& a,
                         Sum& b) const {
    Sum sum_a[kSums] = {}, sum_b[kSums] = {};
    for (; i + kSums * kLanes <= end; i += kSums * kLanes)
      unroll<kSums>(
          [&](auto k) RK_INLINE_LAMBDA { terms_.add(vectors, i + k * kLanes, kLanes, sum_a[k], sum_b[k]); });
    for (; i + kLanes <= end; i += kLanes) terms_.add(vectors, i, kLanes, sum_a[0], sum_b[0]);
    if (i < end) add(terms_, vectors, i, end - i, sum_a[1], sum_b[1]);
    a += (sum_a[0] + sum_a[1]) + (sum_a[2] + sum_a[3]);
    b += (sum_b[0] + sum_b[1]) + (sum_b[2] + sum_b[3]);
  }

  static constexpr int64_t kWidth = sizeof(Element) / sizeof(float);
  // How often a lane is added to before its sum goes to another: long chains of float additions lose digits.
  static constexpr int64_t kPeriods = 8;
  static constexpr int kSums = 4;
  static constexpr int64_t kRun = 16 * kSums * kLanes;

  const ChannelLanes& lanes_;
  const Chunks& chunks_;
  const Terms& terms_;
  const Records<typename Terms::Record>& records_;
};

template <class Terms>
class MergeChunks {
 public:
  MergeChunks(int64_t c, const Chunks& chunks, const Records<typename Terms::Record>& records, float* a,
              float* b)
      : c_(c), chunks_(chunks), records_(records), a_(a), b_(b) {}

  int64_t tasks() const { return ceil_div(c_, kChannels); }
  int64_t scratch_floats() const { return 0; }

  void range(int64_t begin, int64_t end, float*) const {
    for (int64_t c = begin * kChannels; c < std::min(end * kChannels, c_); c += kLanes) {
      typename Terms::Record record;
      merge(0, chunks_.count(), c, record);
      const auto [a, b] = Terms::result(record);
      const int64_t count = std::min<int64_t>(c_ - c, kLanes);
      store_up_to(a_ + c, a, count);
      store_up_to(b_ + c, b, count);
    }
  }

 private:
  static constexpr int64_t kChannels = 256;

  // Of chunks [first, last). Returns how many values a channel those have.
  int64_t merge(int64_t first, int64_t last, int64_t c, typename Terms::Record& record) const {
    if (last - first == 1) {
      record = records_.load(first, c);
      return chunks_.values(first);
    }
    const int64_t middle = first + power_of_two(last - first) / 2;
    typename Terms::Record other;
    const int64_t n = merge(first, middle, c, record), other_n = merge(middle, last, c, other);
    Terms::merge(n, record, other_n, other);
    return n + other_n;
  }

  int64_t c_;
  const Chunks& chunks_;
  const Records<typename Terms::Record>& records_;
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
  const Records<typename Terms::Record> records(chunks.count(), p.c);
  run(SumChunks<Terms>(lanes, chunks, terms, records), parallel_for);
  run(MergeChunks<Terms>(p.c, chunks, records, a, b), parallel_for);
}

}  // namespace
}  // namespace rk::cpu::RK_ISA
