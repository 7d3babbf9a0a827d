// The gradients of BatchNorm's bias and weight.
#pragma once
#include "cpu/channel_sums-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

// The sums of g and of g * (z - mean), in doubles: few values may pass the activation, and then the roundings
// of floats do not average out. A record holds each sum in two floats.
template <class T, class ActivationConstant>
class ReduceTerms {
 public:
  struct Vectors {
    AffineVectors pre;
    Vec mean, rstd;
  };
  using Element = double;
  using Sum = Doubles;
  struct Record {
    Vec sum_g[2], sum_g_xhat[2];
  };
  static constexpr int kVectors = 4;

  explicit ReduceTerms(const BnReduce& reduce) : reduce_(reduce) {}

  ReduceTerms of_pixels(const ChannelLanes& lanes, int64_t, int64_t, float* scratch) const {
    BnReduce reduce = reduce_;
    for (const float** vector : {&reduce.scale, &reduce.shift, &reduce.mean, &reduce.rstd})
      *vector = lanes.repeated(*vector, scratch);
    return ReduceTerms(reduce);
  }

  Vectors of_channel(int64_t channel, int64_t, int64_t, int64_t, int64_t) const {
    return vectors(channel, 0);
  }
  RK_INLINE Vectors at(int64_t j) const { return vectors(j, kLanes); }

  RK_INLINE void add(const Vectors& vectors, int64_t i, int64_t count, Doubles& a, Doubles& b) const {
    const auto load_from = [&](const void* image) RK_INLINE_LAMBDA {
      return load_up_to(static_cast<const T*>(image) + i, count);
    };
    const Vec z = load_from(reduce_.z), pre = reduce_.y ? load_from(reduce_.y) : vectors.pre(z);
    const Doubles g = to_doubles(activation_grad(load_from(reduce_.dy), pre, ActivationConstant{}));
    a += g;
    b += g * (to_doubles(z) - to_doubles(vectors.mean));
  }

  RK_INLINE void prefetch(int64_t i) const {
    RK_ISA::prefetch(static_cast<const T*>(reduce_.z) + i);
    RK_ISA::prefetch(static_cast<const T*>(reduce_.dy) + i);
    if (reduce_.y) RK_ISA::prefetch(static_cast<const T*>(reduce_.y) + i);
  }

  static Record record(const Vectors& vectors, int64_t, Doubles a, Doubles b) {
    Record record;
    split(a, record.sum_g);
    split(b * to_doubles(vectors.rstd), record.sum_g_xhat);
    return record;
  }

  static void merge(int64_t, Record& record, int64_t, const Record& other) {
    split(whole(record.sum_g) + whole(other.sum_g), record.sum_g);
    split(whole(record.sum_g_xhat) + whole(other.sum_g_xhat), record.sum_g_xhat);
  }

  static std::pair<Vec, Vec> result(const Record& record) { return {record.sum_g[0], record.sum_g_xhat[0]}; }

 private:
  static void split(Doubles sum, Vec (&parts)[2]) {
    parts[0] = to_floats(sum);
    parts[1] = to_floats(sum - to_doubles(parts[0]));
  }
  static Doubles whole(const Vec (&parts)[2]) { return to_doubles(parts[0]) + to_doubles(parts[1]); }

  RK_INLINE Vectors vectors(int64_t channel, int64_t count) const {
    return {AffineVectors(reduce_.scale, reduce_.shift, channel, count),
            channel_vector(reduce_.mean, channel, count), channel_vector(reduce_.rstd, channel, count)};
  }

  BnReduce reduce_;
};

void bn_act_reduce(const ImageProblem& p, const BnReduce& reduce, const BnGradients& gradients,
                   ParallelFor parallel_for) {
  with_dtype(p.dtype, [&](auto type) {
    with_activation(reduce.activation, [&](auto activation) {
      sum_channels(p, ReduceTerms<decltype(type), decltype(activation)>(reduce), gradients.sum_g,
                   gradients.sum_g_xhat, parallel_for);
    });
  });
}

}  // namespace
}  // namespace rk::cpu::RK_ISA
