#pragma once
#include "affine_act.cuh"
#include "channel_stats.cuh"
#include "grouped_conv2d_fwd_float_block.cuh"

// Forward of the grouped 3x3 convolution in float, channels last: a lane is an output channel, a thread
// slides over the columns of its run, and an input row feeds all output rows that its taps belong to.
namespace rk::cuda {

template <class Traits>
struct FloatThread {
  static constexpr int kHeld = Traits::kWide ? 1 : Traits::kChunks, kOutputs = Traits::kOutputs;

  const FloatBlock<Traits>& block;
  const FloatArguments& a = block.a;
  const FloatPlan& plan = block.plan;
  int count = 0;      // positions of the run
  int inputs = 0;     // bytes from a stage to the run's first column
  int64_t place = 0;  // floats to output 0 at the first position of the first row
  int outputs = 0;
  float weights[kHeld][3][3][kOutputs][4];
  float open[Traits::kOpen][kOutputs][kRun];  // output rows, the newest first
  float scale[kOutputs], shift[kOutputs];
  ShiftedSums sums[kOutputs];

  __device__ __forceinline__ explicit FloatThread(const FloatBlock<Traits>& of) : block(of) {
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      const FloatOutput out = block.output_of(block.lane, i);
      if (out.channel >= 0) ++outputs;
      if (!Traits::kWide) load_weights(out, i);
      scale[i] = a.scale && out.channel >= 0 ? load_global<float>(a.scale + out.channel) : 1;
      shift[i] = a.shift && out.channel >= 0 ? load_global<float>(a.shift + out.channel) : 0;
      sums[i] = {0, 0, 0};
    }
    locate_run();
#pragma unroll
    for (auto& row : open) clear(row);
  }

  __device__ __forceinline__ static void clear(float (&row)[kOutputs][kRun]) {
#pragma unroll
    for (auto& sums_of_output : row)
#pragma unroll
      for (float& sum : sums_of_output) sum = 0;
  }

  __device__ __forceinline__ void locate_run() {
    const int number = block.first_of_strip + block.run, local = number / plan.strip_runs;
    const FloatStrip strip = block.strip(local);
    if (outputs == 0 || block.run >= plan.runs || strip.image >= a.n) return;
    const int begin = plan.run_begin(number - local * plan.strip_runs);
    const int end = plan.run_begin(number - local * plan.strip_runs + 1);
    const int width = (a.ow - strip.phase + plan.across.phases - 1) / plan.across.phases;
    if (begin >= width) return;
    count = (end < width ? end : width) - begin;
    const int slot = local * block.strip_slots() + Traits::kColumns * (begin - block.first_position);
    inputs = slot * plan.slot_bytes() + block.lane / plan.group_lanes * 16 * plan.chunks;
    place = ((strip.image * a.oh + block.rows.first) * a.ow + strip.phase + begin * plan.across.phases) *
                a.c_out +
            block.output_of(block.lane, 0).channel;
  }

  __device__ __forceinline__ void load_weights(const FloatOutput& out, int i) {
    const float* of_input = a.w + out.weights;
#pragma unroll
    for (int input = 0; input < 4 * kHeld; ++input, of_input += a.w_stride[2]) {
      const bool any = out.reads(input, plan.true_in);
      const float* of_row = of_input;
#pragma unroll
      for (int kh = 0; kh < 3; ++kh, of_row += a.w_stride[3])
#pragma unroll
        for (int kw = 0; kw < 3; ++kw)
          weights[input / 4][kh][kw][i][input % 4] =
              any ? load_global<float>(of_row + kw * a.w_stride[4]) : 0;
    }
  }

  // Whether row kh of the taps meets the input rows of a phase of the walk.
  static __device__ constexpr bool meets(int kh, int phase) { return kh % Traits::kRows == phase; }

  // Of one chunk of inputs; where taps come by rows, that of the phase alone is there.
  __device__ __forceinline__ void read_weights(const unsigned char* taps, int chunk, int phase) {
#pragma unroll
    for (int kh = 0; kh < 3; ++kh) {
      if (!meets(kh, phase)) continue;
      const unsigned char* const row = taps + (Traits::kSlabs ? 0 : kh * plan.taps_bytes());
#pragma unroll
      for (int kw = 0; kw < 3; ++kw)
#pragma unroll
        for (int i = 0; i < kOutputs; ++i) {
          const float4 w =
              load_shared<float4>(row + (((chunk * 3 + kw) * kOutputs + i) * plan.lanes + block.lane) * 16);
          float (&to)[4] = weights[0][kh][kw][i];
          to[0] = w.x, to[1] = w.y, to[2] = w.z, to[3] = w.w;
        }
    }
  }

  // Adds what four inputs of column `column` of the run are to its outputs.
  __device__ __forceinline__ void add_column(const float4& inputs_of_column, int held, int column,
                                             int phase) {
    const float x[4] = {inputs_of_column.x, inputs_of_column.y, inputs_of_column.z, inputs_of_column.w};
#pragma unroll
    for (int input = 0; input < 4; ++input)
#pragma unroll
      for (int kh = 0; kh < 3; ++kh) {
        if (!meets(kh, phase)) continue;
#pragma unroll
        for (int kw = 0; kw < 3; ++kw) {
          const int from = column - kw;
          if (from < 0 || from % Traits::kColumns || from / Traits::kColumns >= kRun) continue;
#pragma unroll
          for (int i = 0; i < kOutputs; ++i) {
            float& sum = open[kh / Traits::kRows][i][from / Traits::kColumns];
            sum = fused(x[input], weights[held][kh][kw][i][input], sum);
          }
        }
      }
  }

  // Adds the kHeld chunks of inputs from `at` on.
  __device__ __forceinline__ void add_row(const unsigned char* at, int phase) {
#pragma unroll
    for (int column = 0; column < Traits::kTaken; ++column) {
      // The last column of position i - 1 was the last of all, where i is the count.
      const int i = (column - 3) / Traits::kColumns + 1;
      if (column >= 3 && (column - 3) % Traits::kColumns == 0 && i >= count) break;
#pragma unroll
      for (int held = 0; held < kHeld; ++held)
        add_column(load_shared<float4>(at + column * plan.slot_bytes() + 16 * held), held, column, phase);
    }
  }

  __device__ __forceinline__ void multiply(const unsigned char* stage, const unsigned char* taps, int phase) {
    if (count == 0) return;
    if constexpr (Traits::kWide) {
#pragma unroll 1
      for (int chunk = 0; chunk < plan.chunks; ++chunk) {
        read_weights(taps, chunk, phase);
        add_row(stage + inputs + 16 * chunk, phase);
      }
    } else {
      add_row(stage + inputs, phase);
    }
  }

  __device__ __forceinline__ void begin_row() {
#pragma unroll
    for (int i = Traits::kOpen - 1; i > 0; --i)
#pragma unroll
      for (int j = 0; j < kOutputs; ++j)
#pragma unroll
        for (int k = 0; k < kRun; ++k) open[i][j][k] = open[i - 1][j][k];
    clear(open[0]);
  }

  template <Activation kActivation>
  __device__ __forceinline__ void store(float* to, const float (&values)[kRun], int i) {
    const int64_t step = int64_t{plan.across.phases} * a.c_out;
    const bool affine = a.scale || a.shift;
#pragma unroll
    for (int k = 0; k < kRun; ++k) {
      if (k >= count) break;
      float z = values[k];
      if constexpr (Traits::kStats)
        sums[i].add(z);
      else
        z = activate<float, kActivation>(affine ? fused(z, scale[i], shift[i]) : z);
      store_global(to + k * step, z);
    }
  }

  __device__ __forceinline__ float mean(const float (&values)[kRun]) const {
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kRun; ++k) sum += k < count ? values[k] : 0;
    return sum / static_cast<float>(count);
  }

  // The oldest open row, finished.
  __device__ __forceinline__ void store_row(int row) {
    const int64_t rows = int64_t{row} * plan.down.phases;
    float* const first = a.y + (place + rows * a.ow * a.c_out);
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      if (i >= outputs) break;
      const auto& values = open[Traits::kOpen - 1][i];
      // The mean of the first row: a single value may lie far off.
      if (Traits::kStats && row == 0) sums[i].shift = mean(values);
      if (Traits::kStats || a.activation == Activation::kIdentity)
        store<Activation::kIdentity>(first + i * plan.all_lanes, values, i);
      else if (a.activation == Activation::kRelu)
        store<Activation::kRelu>(first + i * plan.all_lanes, values, i);
      else
        store<Activation::kSilu>(first + i * plan.all_lanes, values, i);
    }
  }

  // Merges the runs, in their order.
  __device__ __forceinline__ void write_statistics() const {
    auto* const shared = reinterpret_cast<Moments*>(shared_memory());
    sync_threads();
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      const float n = static_cast<float>(count * block.rows.count);
      store_shared(shared + i * kFloatThreads + block.thread,
                   from_shifted(n, sums[i].shift, sums[i].sum, sums[i].squares));
    }
    sync_threads();
    if (block.run > 0) return;
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      Moments merged{0, 0, 0};
      for (int run = 0; run < plan.runs; ++run)
        merged =
            merge(merged, load_shared<Moments>(shared + i * kFloatThreads + run * plan.lanes + block.lane));
      const int channel = block.output_of(block.lane, i).channel;
      if (channel < 0) continue;
      store_global(a.partials + (int64_t{block.tile} * a.c_out + channel), float2{merged.mean, merged.m2});
      if (channel == 0) store_global(a.counts + block.tile, merged.n);
    }
  }
};

template <class Traits>
__global__ __launch_bounds__(kFloatThreads,
                             Traits::kBlocks) void grouped_conv2d_fwd_float_kernel(FloatArguments a) {
  const FloatBlock<Traits> block(a);
  FloatThread<Traits> thread(block);
  const int steps = block.steps(), last_slab = block.plan.slabs - 1;
  sync_threads();
  if (Traits::kWide && block.plan.slabs == 1 && steps > 0)
#pragma unroll
    for (int kh = 0; kh < 3; ++kh) block.copy_taps(block.taps + kh * block.plan.taps_bytes(), 0, kh);
#pragma unroll
  for (int step = 0; step < Traits::kStages - 1; ++step) {
    if (step < steps) block.copy_step(step);
    cp_async_commit();
  }
#pragma unroll 1
  for (int first = 0; first < steps; first += Traits::kRows) {
#pragma unroll
    for (int phase = 0; phase < Traits::kRows; ++phase) {
      const int step = first + phase;
      if (step >= steps) break;
      cp_async_wait<Traits::kStages - 2>();
      // Behind it the row is there for all, and the stage of the last one is free.
      sync_threads();
      if (step + Traits::kStages - 1 < steps) block.copy_step(step + Traits::kStages - 1);
      cp_async_commit();
      const int slab = block.slab_of(step);
      if (phase == 0 && slab == 0) thread.begin_row();
      if (block.is_inside(step)) thread.multiply(block.stage(step), block.taps_of(step), phase);
      if (phase == 2 % Traits::kRows && slab == last_slab && step >= 2)
        thread.store_row(block.output_row(step));
    }
  }
  if constexpr (Traits::kStats) thread.write_statistics();
}

}  // namespace rk::cuda
