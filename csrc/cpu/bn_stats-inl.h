// Batch statistics: each chunk's are of values less one near their mean, lest their squares swallow the
// variance.
#pragma once
#include "cpu/channel_sums-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

// The sums of z - origin and of its square. Records are merged by Chan's formula.
template <class T>
class StatsTerms {
 public:
  using Vectors = Vec;
  // The mean is origin + offset: in one float, differences of means far from zero would be inexact.
  struct Record {
    Vec origin, offset, m2;
  };
  using Element = float;
  using Sum = Vec;
  static constexpr int kVectors = 2;

  explicit StatsTerms(const T* z, const float* origin = nullptr) : z_(z), origin_(origin) {}

  // The origin is the mean of a few values of a channel, a power of two of them: exact where all are the
  // same.
  StatsTerms of_pixels(const ChannelLanes& lanes, int64_t begin, int64_t end, float* scratch) const {
    float *origin = scratch, *repeated = origin + lanes.period;
    const int64_t all = (end - begin) / lanes.c;
    const int64_t pixels = power_of_two_within(std::clamp<int64_t>(all / 4, std::min<int64_t>(all, 4), 16));
    for (int64_t j = 0; j < lanes.c; j += kLanes) {
      Vec sum = {};
      for (int64_t i = begin + j; i < begin + j + pixels * lanes.c; i += lanes.c)
        sum += load_up_to(z_ + i, std::min<int64_t>(lanes.c - j, kLanes)) / static_cast<float>(pixels);
      store(origin + j, stored(sum));
    }
    return StatsTerms(z_, lanes.repeated(origin, repeated));
  }

  Vectors of_channel(int64_t, int64_t begin, int64_t end, int64_t images, int64_t pitch) const {
    const int64_t values = power_of_two_within(std::min<int64_t>(end - begin, 32));
    images = power_of_two_within(images);
    Vec sum = {};
    for (int64_t i = begin; i < begin + images * pitch; i += pitch)
      for (int64_t j = 0; j < values; j += kLanes)
        sum +=
            load_up_to(z_ + i + j, std::min<int64_t>(values, kLanes)) / static_cast<float>(images * values);
    return stored(sum_lanes(sum));
  }

  RK_INLINE Vectors at(int64_t j) const { return load(origin_ + j); }

  RK_INLINE void add(const Vectors& origin, int64_t i, int64_t count, Vec& a, Vec& b) const {
    const Vec d = load_up_to(z_ + i, count) - origin;
    a += d;
    b = fma(d, d, b);
  }

  RK_INLINE void prefetch(int64_t i) const { RK_ISA::prefetch(z_ + i); }

  static Record record(const Vectors& origin, int64_t n, Vec a, Vec b) {
    const Vec offset = a / static_cast<float>(n), m2 = b - a * offset;
    return {origin, offset, m2 < 0.f ? Vec{} : m2};
  }

  static void merge(int64_t n, Record& record, int64_t other_n, const Record& other) {
    const float share = static_cast<float>(other_n) / static_cast<float>(n + other_n);
    const Vec delta = (other.origin - record.origin) + (other.offset - record.offset);
    record.offset = fma(delta, broadcast(share), record.offset);
    record.m2 = fma(delta * delta, broadcast(share * static_cast<float>(n)), record.m2 + other.m2);
  }

  static std::pair<Vec, Vec> result(const Record& record) {
    return {record.origin + record.offset, record.m2};
  }

 private:
  // Rounded as z is, so that differences to it are exact rather than all wrong by the same.
  static Vec stored(Vec origin) {
    T values[kLanes];
    store(values, origin);
    return load(values);
  }

  const T* z_;
  const float* origin_;
};

void bn_stats(const ImageProblem& p, const void* z, const BatchStats& stats, ParallelFor parallel_for) {
  with_dtype(p.dtype, [&](auto type) {
    sum_channels(p, StatsTerms<decltype(type)>(static_cast<const decltype(type)*>(z)), stats.mean, stats.m2,
                 parallel_for);
  });
}

}  // namespace
}  // namespace rk::cpu::RK_ISA
