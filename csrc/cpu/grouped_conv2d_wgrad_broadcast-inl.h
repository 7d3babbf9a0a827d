// Weight gradient with any number of channels a group: a vector holds the gradients of output channels of one
// group, and the input channels of a pixel are broadcast to it. Lanes past the group's end are wasted. Tiles
// of input and gradient are copied as cells of neighbouring channels; rows of one channel are transposed to
// that.
#pragma once
#include "cpu/grouped_conv2d_wgrad_common-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

class WgradBroadcast {
 public:
  static bool supports(const ConvProblem& p) {
    const bool channels_last = p.y_stride[1] == 1 && p.x_stride[1] == 1 && p.c_out > 1;
    const bool whole_vectors = p.out_per_group() % kLanes == 0 && p.in_per_group() % kLanes == 0;
    return p.stride[1] <= 2 && (channels_last || whole_vectors);
  }

  WgradBroadcast(const ConvProblem& p, const Input& dy, const Input& x, float* dw)
      : p_(p),
        x_(x, p.x_stride),
        dy_(dy, p.y_stride),
        dw_(dw),
        vectors_(p.out_per_group() > kLanes ? 2 : 1),
        output_blocks_(ceil_div(p.out_per_group(), vectors_ * kLanes)),
        input_blocks_(ceil_div(p.in_per_group(), kMostInputs)),
        inputs_(ceil_div(p.in_per_group(), input_blocks_)),
        cell_(ceil_div(inputs_, kLanes) * kLanes),
        tiles_(p, cell_, vectors_ * kLanes, kFloats),
        x_floats_(tiles_.x_rows * tiles_.x_columns * cell_),
        dz_floats_(tiles_.rows * tiles_.columns * vectors_ * kLanes) {}

  int64_t blocks() const { return p_.groups * output_blocks_ * input_blocks_; }
  int64_t units() const { return p_.n * tiles_.count(); }

  // [kh][kw][input][vector][lane]
  int64_t block_floats() const { return p_.kh * p_.kw * inputs_ * vectors_ * kLanes; }
  int64_t scratch_floats() const {
    return x_floats_ + dz_floats_ + Cells::temporary_floats(tiles_.x_columns);
  }

  void add(const Place& at, const Place& next, float* sums, float* scratch) const {
    const Block b(*this, at.block), c(*this, next.block);
    const Tile tile(p_, tiles_, at.unit);
    TilePrefetcher prefetch_next(p_, tiles_, Tile(p_, tiles_, next.unit), x_, dy_, c.input(p_), c.inputs,
                                 c.output(p_), c.outputs);
    float* dz = scratch + x_floats_;
    fill(tile, b, scratch, dz, dz + dz_floats_);
    for (int64_t i = 0; i < p_.kh; ++i)
      for (int64_t j = 0; j < p_.kw; ++j, sums += inputs_ * vectors_ * kLanes) {
        const float* x = scratch + (i * p_.dilation[0] * tiles_.x_columns + j * p_.dilation[1]) * cell_;
        vectors_ == 2 ? add_tap<2>(b.inputs, tile, x, dz, sums, prefetch_next)
                      : add_tap<1>(b.inputs, tile, x, dz, sums, prefetch_next);
      }
  }

  void write(int64_t block, const float* sums) const {
    const Block b(*this, block);
    for (int64_t i = 0; i < p_.kh; ++i)
      for (int64_t j = 0; j < p_.kw; ++j, sums += inputs_ * vectors_ * kLanes)
        for (int64_t c = 0; c < b.inputs; ++c)
          for (int64_t o = 0; o < b.outputs; ++o)
            dw_[p_.weight(b.group, b.first_output + o, b.first_input + c, i, j)] =
                sums[c * vectors_ * kLanes + o];
  }

 private:
  static constexpr int64_t kFloats = 6 * 1024;  // three quarters of L1
  static constexpr int64_t kMostInputs = 32;
  // Of one pass; their accumulators, the gradients and one input fit the registers.
  template <int kVectors>
  static constexpr int kInputs = (kRegisters == 32 ? 24 : 12) / kVectors;

  // Outputs and inputs of one group, counted from its first.
  struct Block {
    int64_t group, first_output, outputs, first_input, inputs;

    Block(const WgradBroadcast& k, int64_t block)
        : group(block / k.input_blocks_ / k.output_blocks_),
          first_output(block / k.input_blocks_ % k.output_blocks_ * k.vectors_ * kLanes),
          outputs(std::min(k.vectors_ * kLanes, k.p_.out_per_group() - first_output)),
          first_input(block % k.input_blocks_ * k.inputs_),
          inputs(std::min(k.inputs_, k.p_.in_per_group() - first_input)) {}

    // The first channels.
    int64_t input(const ConvProblem& p) const { return group * p.in_per_group() + first_input; }
    int64_t output(const ConvProblem& p) const { return group * p.out_per_group() + first_output; }
  };

  __attribute__((noinline)) void fill(const Tile& tile, const Block& b, float* x, float* dz,
                                      float* temporary) const {
    fill_input(p_, tiles_, tile, x_, b.input(p_), b.inputs, cell_, x, temporary,
               [](float* cell, Vec v, int64_t c) RK_INLINE_LAMBDA { store(cell + c, v); });
    for (int64_t r = 0; r < tile.rows; ++r, dz += tile.columns * vectors_ * kLanes)
      dy_.copy(tile.n, tile.row + r, tile.column, tile.columns, b.output(p_), b.outputs, temporary,
               [&](int64_t q, Vec v, int64_t o)
                   RK_INLINE_LAMBDA { store(dz + q * vectors_ * kLanes + o, v); });
  }

  // Spreads the inputs evenly over the fewest passes.
  template <int kVectors>
  void add_tap(int64_t inputs, const Tile& tile, const float* x, const float* dz, float* sums,
               TilePrefetcher& prefetch_next) const {
    for (int64_t left = inputs; left > 0;) {
      const int64_t count = ceil_div(left, ceil_div(left, kInputs<kVectors>));
      add_inputs<kVectors, kInputs<kVectors>>(count, tile, x, dz, sums, prefetch_next);
      x += count;
      sums += count * kVectors * kLanes;
      left -= count;
    }
  }

  template <int kVectors, int kCount>
  void add_inputs(int64_t count, const Tile& tile, const float* x, const float* dz, float* sums,
                  TilePrefetcher& prefetch_next) const {
    if constexpr (kCount > 1)
      if (count < kCount) return add_inputs<kVectors, kCount - 1>(count, tile, x, dz, sums, prefetch_next);
    add_inputs<kVectors, kCount>(tile, x, dz, sums, prefetch_next);
  }

  template <int kVectors, int kCount>
  __attribute__((noinline)) void add_inputs(const Tile& tile, const float* x, const float* dz, float* sums,
                                            TilePrefetcher& prefetch_next) const {
    const int64_t next = p_.stride[1] * cell_;
    Vec acc[kCount][kVectors] = {};
    for_each_row(tile.rows, prefetch_next, [&](int64_t r, auto prefetch) RK_INLINE_LAMBDA {
      const float* in = x + r * p_.stride[0] * tiles_.x_columns * cell_;
      for (int64_t q = 0; q < tile.columns; ++q, in += next, dz += kVectors * kLanes) {
        prefetch();
        Vec grad[kVectors];
        unroll<kVectors>([&](auto v) RK_INLINE_LAMBDA { grad[v] = load(dz + v * kLanes); });
        unroll<kCount>([&](auto c) RK_INLINE_LAMBDA {
          const Vec value = broadcast(in[c]);
          unroll<kVectors>([&](auto v) RK_INLINE_LAMBDA { acc[c][v] = fma(value, grad[v], acc[c][v]); });
        });
      }
    });
    unroll<kCount>([&](auto c) RK_INLINE_LAMBDA {
      unroll<kVectors>([&](auto v) RK_INLINE_LAMBDA {
        float* sum = sums + (c * kVectors + v) * kLanes;
        store(sum, load(sum) + acc[c][v]);
      });
    });
  }

  const ConvProblem& p_;
  const Cells x_, dy_;
  float* const dw_;
  const int64_t vectors_, output_blocks_, input_blocks_, inputs_, cell_;
  const Tiles tiles_;
  const int64_t x_floats_, dz_floats_;
};

}  // namespace
}  // namespace rk::cpu::RK_ISA
