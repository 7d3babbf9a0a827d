#include <algorithm>

#include "dispatch.h"
#include "element.h"
#include "grouped_conv2d_wgrad_merge.h"

namespace rk::cuda {
namespace {

template <class T>
struct Merge {
  const float* partials;
  int64_t splits, count;
  int in, out;  // channels of a group
  Storage<T>* dw;
  int64_t stride[5];
};

template <class T>
__global__ void wgrad_merge_kernel(const Merge<T> a) {
  const int64_t i = int64_t{block_index_x()} * 128 + thread_index();
  if (i >= a.count) return;
  float sum = 0;
  for (int64_t split = 0; split < a.splits; ++split)
    sum += load_global<float>(a.partials + split * a.count + i);
  const int64_t tap = i % 9, input = i / 9 % a.in, output = i / 9 / a.in;
  const int64_t place = output / a.out * a.stride[0] + output % a.out * a.stride[1] + input * a.stride[2] +
                        tap / 3 * a.stride[3] + tap % 3 * a.stride[4];
  store_element<T>(a.dw + place, sum);
}

}  // namespace

void merge_wgrad(const ConvProblem& p, const float* partials, int64_t splits, void* dw, void* stream) {
  with_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    Merge<T> a{partials,
               splits,
               9 * p.c_out * p.in_per_group(),
               static_cast<int>(p.in_per_group()),
               static_cast<int>(p.out_per_group()),
               static_cast<Storage<T>*>(dw),
               {}};
    std::copy(p.w_stride, p.w_stride + 5, a.stride);
    launch<wgrad_merge_kernel<T>>({static_cast<unsigned>((a.count + 127) / 128), 1, 128, 0}, stream, a);
  });
}

}  // namespace rk::cuda
