// Grouped 2-D convolution forward, fp32, any kernel size, stride, dilation, channels per group and tensor
// strides.
//
// A task is one image, group and strip of output rows. The group's input rows are copied into zero-padded
// planes, one per stride phase, all of one pitch. A kernel tap is then a fixed offset into a plane, and the
// strip is one flat vector: out[o][i] = sum over taps w[o][tap] * plane[i + offset(tap)]. Lanes past a row's
// end are computed and dropped.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/simd.h"
#include "problem.h"

namespace rk::cpu::RK_ISA {
namespace {

constexpr int kVectors = kLanes == 4 ? 2 : 6;  // 4 outputs x 6 vectors = 24 accumulators of 32 registers
constexpr int kOutputs = 4;
constexpr int kTile = kVectors * kLanes;
constexpr int64_t kScratchFloats = 12 * 1024;  // a strip's planes and results; 48 KiB, within every L2

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How the problem is cut: the scratch geometry and the offsets of the taps.
struct Plan {
  int64_t pitch, phase_rows, phase_size, channel_size, strip_rows, strips, flat;
  std::vector<int64_t> taps;

  explicit Plan(const ConvProblem& p) {
    pitch = p.ow + (p.dilation[1] * (p.kw - 1)) / p.stride[1];
    const int64_t halo = (p.dilation[0] * (p.kh - 1)) / p.stride[0];
    const int64_t phases = p.stride[0] * p.stride[1];
    const int64_t floats_per_row = pitch * (p.in_per_group() * phases + p.out_per_group());
    strip_rows = std::clamp(kScratchFloats / floats_per_row - halo, int64_t{4}, std::max(p.oh, int64_t{4}));
    strips = ceil_div(p.oh, strip_rows);
    strip_rows = ceil_div(p.oh, strips);
    flat = ceil_div(strip_rows * pitch, kTile) * kTile;
    phase_rows = strip_rows + halo;
    phase_size = flat + (halo + 1) * pitch;
    channel_size = phases * phase_size;
    for (int64_t i = 0; i < p.kh; ++i)
      for (int64_t j = 0; j < p.kw; ++j) {
        const int64_t y = i * p.dilation[0], x = j * p.dilation[1];
        const int64_t phase = (y % p.stride[0]) * p.stride[1] + x % p.stride[1];
        taps.push_back(phase * phase_size + (y / p.stride[0]) * pitch + x / p.stride[1]);
      }
  }
};

// Weights as [group][block of kOutputs][ci][tap][kOutputs], zero where a block passes the group's end.
std::vector<float> pack_weights(const ConvProblem& p, const float* w) {
  const int64_t in = p.in_per_group(), out = p.out_per_group(), blocks = ceil_div(out, kOutputs);
  std::vector<float> packed(p.groups * blocks * in * p.kh * p.kw * kOutputs, 0.f);
  for (int64_t g = 0; g < p.groups; ++g)
    for (int64_t o = 0; o < out; ++o) {
      float* to = packed.data() + ((g * blocks + o / kOutputs) * in * p.kh * p.kw) * kOutputs + o % kOutputs;
      const float* from = w + (g * out + o) * p.w_stride[0];
      for (int64_t c = 0; c < in; ++c)
        for (int64_t i = 0; i < p.kh; ++i)
          for (int64_t j = 0; j < p.kw; ++j, to += kOutputs)
            *to = from[c * p.w_stride[1] + i * p.w_stride[2] + j * p.w_stride[3]];
    }
  return packed;
}

// One row of one phase plane: plane[i] = x[row][first + i * stride], zero outside the image.
void pack_row(const float* row, int64_t width, int64_t x_stride, int64_t first, int64_t step, float* plane,
              int64_t pitch) {
  const int64_t begin = std::min(pitch, first < 0 ? ceil_div(-first, step) : 0);
  const int64_t end = first < width ? std::clamp(ceil_div(width - first, step), begin, pitch) : begin;
  std::fill(plane, plane + begin, 0.f);
  const float* from = row + first * x_stride;
  const int64_t stride = step * x_stride;
  if (stride == 1)
    std::copy(from + begin, from + end, plane + begin);
  else
    for (int64_t i = begin; i < end; ++i) plane[i] = from[i * stride];
  std::fill(plane + end, plane + pitch, 0.f);
}

void pack_planes(const ConvProblem& p, const Plan& plan, const float* x, int64_t n, int64_t g,
                 int64_t first_row, float* planes) {
  for (int64_t c = 0; c < p.in_per_group(); ++c) {
    const float* image = x + n * p.x_stride[0] + (g * p.in_per_group() + c) * p.x_stride[1];
    for (int64_t a = 0; a < p.stride[0]; ++a)
      for (int64_t b = 0; b < p.stride[1]; ++b) {
        float* plane = planes + c * plan.channel_size + (a * p.stride[1] + b) * plan.phase_size;
        for (int64_t r = 0; r < plan.phase_rows; ++r) {
          const int64_t row = (first_row + r) * p.stride[0] + a - p.padding[0];
          if (row < 0 || row >= p.h)
            std::fill(plane + r * plan.pitch, plane + (r + 1) * plan.pitch, 0.f);
          else
            pack_row(image + row * p.x_stride[2], p.w, p.x_stride[3], b - p.padding[1], p.stride[1],
                     plane + r * plan.pitch, plan.pitch);
        }
        std::fill(plane + plan.phase_rows * plan.pitch, plane + plan.phase_size, 0.f);
      }
  }
}

// kOutputs x kTile results from all channels and taps of one group.
void micro_kernel(const Plan& plan, int64_t channels, const float* planes, const float* weights, float* out,
                  int64_t out_pitch) {
  Vec acc[kOutputs][kVectors] = {};
  for (int64_t c = 0; c < channels; ++c, planes += plan.channel_size)
    for (const int64_t tap : plan.taps) {
      Vec x[kVectors];
      for (int v = 0; v < kVectors; ++v) x[v] = load(planes + tap + v * kLanes);
      for (int o = 0; o < kOutputs; ++o)
        for (int v = 0; v < kVectors; ++v) acc[o][v] = fma(weights[o], x[v], acc[o][v]);
      weights += kOutputs;
    }
  for (int o = 0; o < kOutputs; ++o)
    for (int v = 0; v < kVectors; ++v) store(out + o * out_pitch + v * kLanes, acc[o][v]);
}

// !(v <= 0) keeps NaN, as eager ReLU does.
inline float activate(float v, Activation activation) {
  if (activation == Activation::kRelu) return v <= 0.f ? 0.f : v;
  if (activation == Activation::kSilu) return v / (1.f + std::exp(-v));
  return v;
}

template <Activation kActivation>
void store_row(const float* from, int64_t count, float scale, float shift, float* to, int64_t stride) {
  if (stride == 1)
    for (int64_t i = 0; i < count; ++i) to[i] = activate(__builtin_fmaf(from[i], scale, shift), kActivation);
  else
    for (int64_t i = 0; i < count; ++i)
      to[i * stride] = activate(__builtin_fmaf(from[i], scale, shift), kActivation);
}

template <Activation kActivation>
void store_strip(const ConvProblem& p, const Plan& plan, const Epilogue& epilogue, int64_t first_channel,
                 int64_t channels, int64_t first_row, const float* results, float* image) {
  const int64_t rows = std::min(plan.strip_rows, p.oh - first_row);
  for (int64_t o = 0; o < channels; ++o) {
    const int64_t channel = first_channel + o;
    const float scale = epilogue.scale ? epilogue.scale[channel] : 1.f;
    const float shift = epilogue.shift ? epilogue.shift[channel] : 0.f;
    for (int64_t r = 0; r < rows; ++r)
      store_row<kActivation>(results + o * plan.flat + r * plan.pitch, p.ow, scale, shift,
                             image + channel * p.y_stride[1] + (first_row + r) * p.y_stride[2],
                             p.y_stride[3]);
  }
}

struct Forward {
  const ConvProblem& p;
  const Plan plan;
  const std::vector<float> weights;
  const float* x;
  float* y;
  const Epilogue& epilogue;

  void task(int64_t index, float* planes, float* results) const {
    const int64_t strip = index % plan.strips, g = index / plan.strips % p.groups,
                  n = index / plan.strips / p.groups;
    const int64_t first_row = strip * plan.strip_rows, out = p.out_per_group(),
                  blocks = ceil_div(out, kOutputs);
    const int64_t block_size = p.in_per_group() * p.kh * p.kw * kOutputs;
    pack_planes(p, plan, x, n, g, first_row, planes);
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t i = 0; i < plan.flat; i += kTile)
        micro_kernel(plan, p.in_per_group(), planes + i, weights.data() + (g * blocks + b) * block_size,
                     results + b * kOutputs * plan.flat + i, plan.flat);
    float* image = y + n * p.y_stride[0];
    switch (epilogue.activation) {
      case Activation::kRelu:
        return store_strip<Activation::kRelu>(p, plan, epilogue, g * out, out, first_row, results, image);
      case Activation::kSilu:
        return store_strip<Activation::kSilu>(p, plan, epilogue, g * out, out, first_row, results, image);
      case Activation::kIdentity:
        return store_strip<Activation::kIdentity>(p, plan, epilogue, g * out, out, first_row, results, image);
    }
  }

  static void range(int64_t begin, int64_t end, void* context) {
    const auto& self = *static_cast<const Forward*>(context);
    const int64_t outputs = ceil_div(self.p.out_per_group(), kOutputs) * kOutputs;
    const std::unique_ptr<float[]> planes(new float[self.p.in_per_group() * self.plan.channel_size]);
    const std::unique_ptr<float[]> results(new float[outputs * self.plan.flat]);
    for (int64_t i = begin; i < end; ++i) self.task(i, planes.get(), results.get());
  }
};

void grouped_conv2d_fwd(const ConvProblem& p, const float* x, const float* w, float* y,
                        const Epilogue& epilogue, ParallelFor parallel_for) {
  if (p.n == 0) return;
  Forward forward{p, Plan(p), pack_weights(p, w), x, y, epilogue};
  const int64_t tasks = p.n * p.groups * forward.plan.strips;
  if (parallel_for)
    parallel_for(0, tasks, 1, &Forward::range, &forward);
  else
    Forward::range(0, tasks, &forward);
}

}  // namespace
}  // namespace rk::cpu::RK_ISA
