#pragma once
#include "grouped_conv2d_prepack.h"
#include "platform.h"

namespace rk::cuda {

// Weights of 16 bits, with strides in elements for group, output and input of a group, kH, kW.
struct WeightView {
  const uint16_t* data;
  int in, out;  // channels of a group
  int64_t stride[5];
  Taps taps;
};

// Word `word` of a lane's B fragments: the tap and, of the warp's inputs, the first of the two that it holds;
// a word of kTwoTaps holds nothing else.
struct FragmentWord {
  int kh, kw, tile, input;
};

// The order in which the kernel uses them. Lane / 4 is the output of the n-tile, 2 * (lane % 4) the input of
// the k8.
template <Width kWidth>
__device__ inline FragmentWord fragment_word(int word, int lane) {
  const int q = 2 * (lane % 4);
  if constexpr (kWidth == Width::kPaired) {
    // A row of taps: both taps of the k16 of tile 0, of tile 1, then the k8 of each.
    const int kh = word / 6, i = word % 6;
    const int kw = i < 4 ? i % 2 : 2, tile = i < 4 ? i / 2 : i - 4;
    return {kh, kw, tile, 8 * tile + q};
  } else {
    constexpr int kSteps = kWidth == Width::kOneStep ? 1 : 2;
    const int half = word % 2, tile = word / 2 % 2, step = word / 4 % kSteps, tap = word / (4 * kSteps);
    return {tap / 3, tap % 3, tile, 16 * step + 8 * half + q};
  }
}

// The weight between an output and an input of the (padded) image; zero between groups and in the padding.
__device__ inline uint32_t weight_bits(const WeightView& w, const GroupChannels& groups, int channels,
                                       int output, int input, int kh, int kw) {
  const int group = output / groups.out, out = output % groups.out, in = input - group * groups.in;
  if (output >= channels || out >= w.out || in < 0 || in >= w.in) return 0;
  return load_global<uint16_t>(w.data + group * w.stride[0] + out * w.stride[1] + in * w.stride[2] +
                               w.taps.kh[kh] * w.stride[3] + w.taps.kw[kw] * w.stride[4]);
}

// packed[warp's channels][pair of words][lane][2]: what each lane of the forward kernel keeps in registers.
// `channels`: groups times groups.out.
template <Width kWidth>
__global__ void grouped_conv2d_prepack_kernel(WeightView w, GroupChannels groups, int channels, int64_t words,
                                              uint32_t* packed) {
  constexpr int kWords = weight_registers(kWidth);
  const int64_t i = int64_t{block_index_x()} * kBlockThreads + thread_index();
  if (i >= words) return;
  const int lane = static_cast<int>(i / 2 % 32), warp = static_cast<int>(i / (32 * kWords));
  const int word = static_cast<int>(i / 64 * 2 % kWords + i % 2);
  const FragmentWord f = fragment_word<kWidth>(word, lane);
  const int first = warp * kWarpChannels, output = first + 8 * f.tile + lane / 4;
  const int input = warp_first_input(groups, first, warp_inputs(kWidth)) + f.input;
  const uint32_t low = weight_bits(w, groups, channels, output, input, f.kh, f.kw);
  const uint32_t high = weight_bits(w, groups, channels, output, input + 1, f.kh, f.kw);
  store_global(packed + i, low | high << 16);
}

}  // namespace rk::cuda
