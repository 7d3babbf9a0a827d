#include <algorithm>

#include "dispatch.h"
#include "element.h"
#include "grouped_conv2d_wgrad_merge.h"
#include "plan_arithmetic.h"

namespace rk::cuda {
namespace {

constexpr int kThreads = 512, kMostRows = 16;
// Splits that a thread should have before more threads share them, and loads that it has in flight.
constexpr int kFewSplits = 8;

struct MergeArguments {
  const float* partials;
  int64_t splits, elements, w_stride[5];
  int in_per_group, out_per_group;
  int rows;  // threads that share an element's splits
};

// Of the weights, in elements, from an index into a partial gradient.
__device__ __forceinline__ int64_t weight_offset(const MergeArguments& a, int64_t element) {
  const int64_t input = element / 9, output = input / a.in_per_group, group = output / a.out_per_group;
  const int tap = static_cast<int>(element - 9 * input);
  return group * a.w_stride[0] + (output - group * a.out_per_group) * a.w_stride[1] +
         (input - output * a.in_per_group) * a.w_stride[2] + tap / 3 * a.w_stride[3] +
         tap % 3 * a.w_stride[4];
}

// Of the splits first, first + rows ...
__device__ __forceinline__ float sum_of(const MergeArguments& a, int64_t element, int first) {
  float sum = 0;
  for (int64_t split = first; split < a.splits; split += int64_t{kFewSplits} * a.rows) {
    float values[kFewSplits];
#pragma unroll
    for (int i = 0; i < kFewSplits; ++i) {
      const int64_t at = split + int64_t{i} * a.rows;
      values[i] = at < a.splits ? load_global<float>(a.partials + at * a.elements + element) : 0;
    }
#pragma unroll
    for (const float value : values) sum += value;
  }
  return sum;
}

template <class T>
__global__ __launch_bounds__(kThreads) void merge_wgrad_kernel(MergeArguments a, Storage<T>* dw) {
  const int columns = kThreads / a.rows, thread = static_cast<int>(thread_index());
  const int row = thread / columns;
  const int64_t element = int64_t{block_index_x()} * columns + (thread - row * columns);
  float sum = element < a.elements ? sum_of(a, element, row) : 0;
  auto* const shared = reinterpret_cast<float*>(shared_memory());
  for (int rows = a.rows / 2; rows > 0; rows /= 2) {
    if (row >= rows && row < 2 * rows) store_shared(shared + thread, sum);
    sync_threads();
    if (row < rows) sum += load_shared<float>(shared + thread + rows * columns);
  }
  if (row == 0 && element < a.elements) store_element<T>(dw + weight_offset(a, element), sum);
}

}  // namespace

void merge_wgrad(const ConvProblem& p, const float* partials, int64_t splits, void* dw, void* stream) {
  MergeArguments a{};
  a.partials = partials, a.splits = splits;
  a.in_per_group = static_cast<int>(p.in_per_group()), a.out_per_group = static_cast<int>(p.out_per_group());
  a.elements = p.c_out * p.in_per_group() * 9;
  std::copy(p.w_stride, p.w_stride + 5, a.w_stride);
  for (a.rows = 1; a.rows < kMostRows && a.rows * kFewSplits < splits;) a.rows *= 2;
  const Grid grid{static_cast<unsigned>(plan::ceil_div(a.elements, kThreads / a.rows)), 1, kThreads,
                  kThreads * sizeof(float)};
  with_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    launch<merge_wgrad_kernel<T>>(grid, stream, a, static_cast<Storage<T>*>(dw));
  });
}

}  // namespace rk::cuda
