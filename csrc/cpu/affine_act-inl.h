// y = act(z * scale + shift [+ residual]), and its derivative through BatchNorm.
#pragma once
#include "cpu/activation-inl.h"
#include "cpu/images-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

template <class T, class ActivationConstant>
class AffineAct {
 public:
  AffineAct(const ImageProblem& p, const T* z, const float* scale, const float* shift, const T* residual,
            T* y)
      : lanes_(p), tiles_(lanes_), z_(z), residual_(residual), y_(y), scale_(scale), shift_(shift) {}

  int64_t tasks() const { return tiles_.count(); }
  int64_t scratch_floats() const { return 2 * lanes_.period; }

  void range(int64_t begin, int64_t end, float* scratch) const {
    const float* scale = lanes_.repeated(scale_, scratch);
    const float* shift = lanes_.repeated(shift_, scratch);
    lanes_.for_each(
        tiles_.first(begin), tiles_.first(end),
        [&](int64_t channel, int64_t count)
            RK_INLINE_LAMBDA { return AffineVectors(scale, shift, channel, count); },
        [&](const AffineVectors& affine, int64_t i, int64_t count) RK_INLINE_LAMBDA {
          Vec pre = affine(load_up_to(z_ + i, count));
          if (residual_) pre += load_up_to(residual_ + i, count);
          store_up_to(y_ + i, activate(pre, ActivationConstant{}), count);
        });
  }

 private:
  const ChannelLanes lanes_;
  const ImageTiles tiles_;
  const T* const z_;
  const T* const residual_;
  T* const y_;
  const float *const scale_, *const shift_;
};

// dz = a * g + (b * z + c) and the gradient g of the residual, each where it is not null. y as in BnReduce.
template <class T, class ActivationConstant>
class AffineActBackward {
 public:
  AffineActBackward(const ImageProblem& p, const T* dy, const BnBackward& bn, const T* y, T* dz, T* dresidual)
      : lanes_(p),
        tiles_(lanes_),
        dy_(dy),
        z_(static_cast<const T*>(bn.z)),
        y_(y),
        dz_(dz),
        dresidual_(dresidual),
        bn_(bn) {}

  int64_t tasks() const { return tiles_.count(); }
  int64_t scratch_floats() const { return 5 * lanes_.period; }

  void range(int64_t begin, int64_t end, float* scratch) const {
    BnBackward bn = bn_;
    for (const float** vector : {&bn.scale, &bn.shift, &bn.a, &bn.b, &bn.c})
      *vector = lanes_.repeated(*vector, scratch);
    lanes_.for_each(
        tiles_.first(begin), tiles_.first(end),
        [&](int64_t channel, int64_t count)
            RK_INLINE_LAMBDA { return BnBackwardVectors(bn, channel, count); },
        [&](const BnBackwardVectors& vectors, int64_t i, int64_t count) RK_INLINE_LAMBDA {
          const Vec z = load_up_to(z_ + i, count);
          const Vec pre = y_ ? load_up_to(y_ + i, count) : vectors.pre(z);
          const Vec g = activation_grad(load_up_to(dy_ + i, count), pre, ActivationConstant{});
          if (dz_) store_up_to(dz_ + i, vectors.dz(g, z), count);
          if (dresidual_) store_up_to(dresidual_ + i, g, count);
        });
  }

 private:
  const ChannelLanes lanes_;
  const ImageTiles tiles_;
  const T* const dy_;
  const T* const z_;
  const T* const y_;
  T* const dz_;
  T* const dresidual_;
  const BnBackward bn_;
};

void affine_act(const ImageProblem& p, const void* z, const float* scale, const float* shift,
                const void* residual, void* y, Activation activation, ParallelFor parallel_for) {
  with_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    with_activation(activation, [&](auto constant) {
      run(AffineAct<T, decltype(constant)>(p, static_cast<const T*>(z), scale, shift,
                                           static_cast<const T*>(residual), static_cast<T*>(y)),
          parallel_for);
    });
  });
}

void affine_act_backward(const ImageProblem& p, const void* dy, const BnBackward& bn, const void* y, void* dz,
                         void* dresidual, ParallelFor parallel_for) {
  with_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    with_activation(bn.activation, [&](auto constant) {
      run(AffineActBackward<T, decltype(constant)>(p, static_cast<const T*>(dy), bn, static_cast<const T*>(y),
                                                   static_cast<T*>(dz), static_cast<T*>(dresidual)),
          parallel_for);
    });
  });
}

}  // namespace
}  // namespace rk::cpu::RK_ISA
