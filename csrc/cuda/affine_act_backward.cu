#include "affine_act_backward.cuh"
#include "dispatch.h"
#include "kernels.h"

namespace rk::cuda {
namespace {

template <class T, Activation kActivation, bool kOfY>
void run(const ImageProblem& p, BackwardImages<T> images, void* stream) {
  if (!images.dz && !kOfAffine<kActivation, kOfY>) images.z = nullptr;
  if ((p.channels_last || p.pixels == 1) && p.c % kVectorElements<T> == 0) {
    const RowTiles tiles = plan_affine_rows(p);
    launch<affine_act_backward_rows_kernel<T, kActivation, kOfY>>(Grid{tiles.blocks(), 1, kImageThreads, 0},
                                                                  stream, images, tiles);
  } else {
    const FlatTiles tiles = plan_affine_flat(p);
    launch<affine_act_backward_flat_kernel<T, kActivation, kOfY>>(Grid{tiles.blocks(), 1, kImageThreads, 0},
                                                                  stream, images, tiles);
  }
}

}  // namespace

void affine_act_backward(const ImageProblem& p, const void* dy, const BnBackward& bn, const void* y, void* dz,
                         void* dresidual, const Queue& queue) {
  if (!dz && !dresidual) return;
  const DeviceGuard guard(queue.device);
  with_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    const auto image = [](auto* of) { return static_cast<const Storage<T>*>(of); };
    const BackwardImages<T> images{image(dy),
                                   image(bn.z),
                                   image(y),
                                   static_cast<Storage<T>*>(dz),
                                   static_cast<Storage<T>*>(dresidual),
                                   bn.scale,
                                   bn.shift,
                                   bn.a,
                                   bn.b,
                                   bn.c};
    with_slope(bn.activation, y, [&](auto activation, auto of_y) {
      run<T, activation.value, of_y.value>(p, images, queue.stream);
    });
  });
}

}  // namespace rk::cuda
