#include "affine_act.cuh"
#include "dispatch.h"
#include "kernels.h"

namespace rk::cuda {
namespace {

template <class T, Activation kActivation>
void run_rows(const ImageProblem& p, const AffineImages<T>& images, void* stream) {
  const RowTiles tiles = plan_affine_rows(p);
  const Grid grid{tiles.blocks(), 1, kImageThreads, 0};
  with_bool(images.residual, [&](auto residual) {
    launch<affine_act_rows_kernel<T, kActivation, residual.value>>(grid, stream, images, tiles);
  });
}

template <class T, Activation kActivation>
void run_flat(const ImageProblem& p, const AffineImages<T>& images, bool aligned, void* stream) {
  const FlatTiles tiles = plan_affine_flat(p);
  const Grid grid{tiles.blocks(), 1, kImageThreads, 0};
  with_bool(aligned, [&](auto constant) {
    launch<affine_act_flat_kernel<T, kActivation, constant.value>>(grid, stream, images, tiles);
  });
}

template <class T, Activation kActivation>
void run(const ImageProblem& p, const AffineImages<T>& images, void* stream) {
  const bool aligned = is_aligned(images.z) && is_aligned(images.residual) && is_aligned(images.y);
  const bool rows = (p.channels_last || p.pixels == 1) && p.c % kVectorElements<T> == 0;
  if (aligned && rows && is_aligned(images.scale) && is_aligned(images.shift))
    run_rows<T, kActivation>(p, images, stream);
  else
    run_flat<T, kActivation>(p, images, aligned, stream);
}

}  // namespace

void affine_act(const ImageProblem& p, const void* z, const float* scale, const float* shift,
                const void* residual, void* y, Activation activation, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  with_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    const AffineImages<T> images{static_cast<const Storage<T>*>(z), static_cast<const Storage<T>*>(residual),
                                 static_cast<Storage<T>*>(y), scale, shift};
    with_activation(activation, [&](auto constant) { run<T, constant.value>(p, images, queue.stream); });
  });
}

}  // namespace rk::cuda
