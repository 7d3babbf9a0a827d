// Convolution with any number of channels a group, channels last or, where vectors are full, NCHW: a vector
// holds output channels of one group, and every input channel of a pixel is broadcast to it. Lanes past the
// group's end are wasted. Rows of one channel (NCHW) are transposed on the way in and out.
//
// A group's input for a strip of output rows is copied into planes of cells, a vector of channels each, which
// all the group's outputs share.
#pragma once
#include "cpu/grouped_conv2d_common-inl.h"
#include "cpu/lanes-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

template <class Lane>
class Broadcast {
 public:
  static bool supports(const ConvProblem& p) {
    if (p.c_out == 1 || p.stride[1] > 2) return false;
    const bool full = p.in_per_group() % kLanes == 0 && p.out_per_group() % kLanes == 0;
    return (p.y_stride[1] == 1 && p.x_stride[1] == 1) || (Lane::kChannels == 1 && full && p.x_stride[3] == 1);
  }

  Broadcast(const Parts& parts, const Input& x, const Epilogue& epilogue)
      : parts_(parts),
        p_(parts.window),
        x_(x),
        epilogue_(epilogue),
        inputs_(p_.in_per_group()),
        steps_(ceil_div(inputs_, Lane::kChannels)),
        planes_(ceil_div(steps_, kLanes)),
        vectors_(ceil_div(p_.out_per_group(), kLanes)),
        blocks_per_group_(ceil_div(vectors_, kMostVectors)),
        strip_(p_, kFloats / (planes_ * kLanes)),
        plane_(strip_.phases(p_) * strip_.phase_size * kLanes),
        vector_size_(parts.taps() * steps_ * kLanes),
        taps_(tap_offsets(parts, strip_)),
        weights_(weights_floats()) {
    if (!weights_.data()) throw std::bad_alloc();
  }

  // Of weights to pack. Where only one task reads a block, the task packs it, and finds it in cache.
  int64_t blocks() const { return tasks() > all_blocks() ? all_blocks() : 0; }
  int64_t weights_floats() const { return blocks() > 0 ? p_.groups * vectors_ * vector_size_ : 0; }

  void pack(int64_t block) const {
    const Block b(*this, block);
    pack(b, weights(b));
  }

  // A task is a strip of rows and one block of output channels.
  int64_t tasks() const { return p_.n * strip_.strips * all_blocks(); }

  // The planes, what a tile reads past them, a row of pixels to convert, weights.
  int64_t scratch_floats() const { return weights_offset() + kMostVectors * vector_size_; }

  void range(int64_t begin, int64_t end, float* scratch) const {
    for (int64_t task = begin; task < end; ++task) {
      const Block b(*this, task % all_blocks());
      const Strip strip(*this, task / blocks_per_group_);
      if (task == begin || b.first_vector == 0) fill(strip, scratch);
      if (blocks() == 0) pack(b, scratch + weights_offset());
      const float* w = blocks() == 0 ? scratch + weights_offset() : weights(b);
      convolve(b, strip, scratch, w, prefetcher(std::min(task + blocks_per_group_, tasks() - 1)));
    }
  }

 private:
  static constexpr int64_t kFloats = 8 * 1024;  // about one L1 of planes
  static constexpr int64_t kChannels = kLanes * Lane::kChannels;
  // kVectors * kMostPixels accumulators, kVectors weights and one input fit the registers.
  static constexpr int kMostVectors = kLanes == 8 ? 3 : 2;
  template <int kVectors>
  static constexpr int kMostPixels = kRegisters == 32 ? 14
                                     : kVectors == 1  ? 8
                                                      : 12 / kVectors;

  int64_t all_blocks() const { return p_.groups * blocks_per_group_; }
  int64_t weights_offset() const { return planes_ * plane_ + (kMostPixels<1> + strip_.pitch) * kLanes; }

  // Vectors of outputs of one group. Blocks are as even as can be.
  struct Block {
    int64_t group, first_vector, vectors;

    Block(const Broadcast& k, int64_t block)
        : group(block / k.blocks_per_group_),
          first_vector(block % k.blocks_per_group_ * k.vectors_ / k.blocks_per_group_),
          vectors((block % k.blocks_per_group_ + 1) * k.vectors_ / k.blocks_per_group_ - first_vector) {}
  };

  // One group's rows.
  struct Strip {
    int64_t group, strip, n;

    Strip(const Broadcast& k, int64_t index)
        : group(index % k.p_.groups),
          strip(index / k.p_.groups % k.strip_.strips),
          n(index / k.p_.groups / k.strip_.strips) {}
  };

  float* weights(const Block& b) const {
    return weights_.data() + (b.group * vectors_ + b.first_vector) * vector_size_;
  }

  // [part][kh][kw][step][vector][lane], a step being the channels of a lane. Lanes past the group's end do
  // not matter.
  void pack(const Block& b, float* weights) const {
    for (const Parts::Part& part : parts_) {
      pack(b, part.p, part.w, weights);
      weights += part.p.kh * part.p.kw * steps_ * b.vectors * kLanes;
    }
  }

  void pack(const Block& b, const ConvProblem& p, const float* filters, float* weights) const {
    for (int64_t v = 0; v < b.vectors; ++v) {
      const int64_t first = (b.first_vector + v) * kLanes;
      const int64_t count = std::min<int64_t>(kLanes, p.out_per_group() - first);
      float* to = weights + v * kLanes;
      const float* w = filters + p.weight(b.group, first, 0, 0, 0);
      if (count == kLanes && p.w_stride[4] == 1 && p.w_stride[3] == p.kw && p.w_stride[2] == p.kh * p.kw)
        pack_rows(p, w, b.vectors * kLanes, to);
      else
        pack_elements(p, w, count, b.vectors * kLanes, to);
    }
  }

  // Filters that are rows of floats [channel][kh][kw] are transposed, kLanes of them by kLanes floats at a
  // time.
  void pack_rows(const ConvProblem& p, const float* w, int64_t next, float* to) const {
    const int64_t taps = p.kh * p.kw, length = inputs_ * taps, steps = steps_;
    const int64_t next_filter = p.w_stride[1];
    int64_t tap = 0, channel = 0;
    for (int64_t k = 0; k < length; k += kLanes) {
      const int64_t count = std::min<int64_t>(kLanes, length - k);
      Vec rows[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) rows[lane] = load_up_to(w + lane * next_filter + k, count);
      transpose(rows);
      for (int64_t i = 0; i < count; ++i) {
        Lane::pack(to + (tap * steps + channel / Lane::kChannels) * next, rows[i], channel);
        if (++tap == taps) tap = 0, ++channel;
      }
    }
  }

  void pack_elements(const ConvProblem& p, const float* w, int64_t count, int64_t next, float* to) const {
    const int64_t next_output = p.w_stride[1], next_input = p.w_stride[2];
    for (int64_t i = 0; i < p.kh; ++i)
      for (int64_t j = 0; j < p.kw; ++j)
        for (int64_t c = 0; c < inputs_; c += Lane::kChannels, to += next) {
          const float* from = w + i * p.w_stride[3] + j * p.w_stride[4] + c * next_input;
          for (int64_t lane = 0; lane < count; ++lane, from += next_output)
            to[lane] = Lane::pack(from, next_input, inputs_ - c);
        }
  }

  __attribute__((noinline)) void fill(const Strip& s, float* planes) const {
    for (int64_t plane = 0; plane < planes_; ++plane, planes += plane_) {
      const int64_t channel = s.group * inputs_ + plane * kChannels;
      const int64_t channels = std::min<int64_t>(inputs_ - plane * kChannels, kChannels);
      const int64_t image = s.n * p_.x_stride[0] + channel * p_.x_stride[1];
      float* temporary = planes + (planes_ - plane) * plane_ + kMostPixels<1> * kLanes;
      strip_.fill(
          p_, s.strip,
          [&](int64_t cell, int64_t row, int64_t column, int64_t count) RK_INLINE_LAMBDA {
            const int64_t first = image + row * p_.x_stride[2] + column * p_.x_stride[3];
            const int64_t step = p_.stride[1] * p_.x_stride[3];
            float* to = planes + cell * kLanes;
            const auto store_cell = [&](int64_t q, Vec v) RK_INLINE_LAMBDA { store(to + q * kLanes, v); };
            if (p_.x_stride[1] == 1)
              Lane::copy(x_, first, channel, count, step, channels, temporary, store_cell);
            else
              x_.transpose_row(first, channel, channels, p_.x_stride[1], step, count, store_cell);
          },
          [](int64_t, int64_t) {});  // rows outside the image are not read
    }
  }

  // Of the share that a task has in its strip's input, taken to be contiguous from row to row.
  Prefetcher prefetcher(int64_t task) const {
    const Strip s(*this, task / blocks_per_group_);
    const int64_t first_row =
        std::max<int64_t>(s.strip * strip_.output_rows * p_.stride[0] - p_.padding[0], 0);
    const int64_t rows = std::min(strip_.rows * p_.stride[0], p_.h - first_row);
    const int64_t first =
        s.n * p_.x_stride[0] + s.group * inputs_ * p_.x_stride[1] + first_row * p_.x_stride[2];
    const int64_t share = task % blocks_per_group_;
    if (p_.x_stride[1] != 1) {
      const int64_t channels = ceil_div(inputs_, blocks_per_group_);
      return Prefetcher(x_, first + share * channels * p_.x_stride[1], 16,
                        ceil_div(rows * p_.x_stride[2], 16), p_.x_stride[1], channels);
    }
    const int64_t pixels = ceil_div(rows * p_.w, blocks_per_group_);
    return Prefetcher(x_, first + share * pixels * p_.x_stride[3], 16, ceil_div(inputs_, 16), p_.x_stride[3],
                      pixels);
  }

  void convolve(const Block& b, const Strip& s, const float* planes, const float* w,
                Prefetcher prefetch_next) const {
    if constexpr (kMostVectors > 2)
      if (b.vectors == 3) return convolve<3>(b, s, planes, w, prefetch_next);
    b.vectors == 2 ? convolve<2>(b, s, planes, w, prefetch_next)
                   : convolve<1>(b, s, planes, w, prefetch_next);
  }

  template <int kVectors>
  void convolve(const Block& b, const Strip& s, const float* planes, const float* w,
                Prefetcher& prefetch_next) const {
    const int64_t* taps = taps_.get();
    for (const Parts::Part& part : parts_) {
      convolve<kVectors>(part, b, s, planes, w, taps, prefetch_next);
      w += part.p.kh * part.p.kw * steps_ * kVectors * kLanes;
      taps += part.p.kh * part.p.kw;
    }
  }

  // Spreads the pixels of a row evenly over the fewest tiles.
  template <int kVectors>
  void convolve(const Parts::Part& part, const Block& b, const Strip& s, const float* planes, const float* w,
                const int64_t* taps, Prefetcher& prefetch_next) const {
    const ConvProblem& p = part.p;
    const int64_t first_row = s.strip * strip_.output_rows;
    const int64_t rows = std::min(strip_.output_rows, p.oh - first_row);
    const int64_t channel = b.group * p.out_per_group() + b.first_vector * kLanes;
    for (int64_t r = 0; r < rows; ++r) {
      Tile tile{part,
                taps,
                first_row + r,
                0,
                planes + r * strip_.pitch * kLanes,
                channel,
                0,
                s.n * p.y_stride[0] + channel * p.y_stride[1] + (first_row + r) * p.y_stride[2]};
      tile.lanes = std::min<int64_t>(kVectors * kLanes, p.out_per_group() - b.first_vector * kLanes);
      for (int64_t left = p.ow; left > 0; left -= tile.pixels) {
        tile.pixels = ceil_div(left, ceil_div(left, kMostPixels<kVectors>));
        convolve_tile<kVectors, kMostPixels<kVectors>>(tile, w, prefetch_next);
        tile.planes += tile.pixels * kLanes;
        tile.y += tile.pixels * p.y_stride[3];
      }
    }
  }

  // `lanes` outputs from `channel` on of `pixels` pixels of output row `row`.
  struct Tile {
    const Parts::Part& part;
    const int64_t* taps;
    int64_t row, pixels;
    const float* planes;
    int64_t channel, lanes, y;
  };

  template <int kVectors, int kPixels>
  void convolve_tile(const Tile& tile, const float* w, Prefetcher& prefetch_next) const {
    if constexpr (2 * kPixels > kMostPixels<kVectors>)
      if (tile.pixels < kPixels) return convolve_tile<kVectors, kPixels - 1>(tile, w, prefetch_next);
    compute_tile<kVectors, kPixels>(tile, w, prefetch_next);
  }

  template <int kVectors, int kPixels>
  __attribute__((noinline)) void compute_tile(const Tile& tile, const float* w,
                                              Prefetcher& prefetch_next) const {
    const Output y(tile.part.y, p_.dtype);
    const int64_t next_pixel = tile.part.p.y_stride[3], next_channel = tile.part.p.y_stride[1];
    if (next_channel == 1)
      for (int64_t q = 0; q < tile.pixels; ++q) prefetch_for_write(y.at(tile.y + q * next_pixel));
    else
      for (int64_t c = 0; c < tile.lanes; ++c) prefetch_for_write(y.at(tile.y + c * next_channel));
    Vec acc[kVectors][kPixels] = {};
    sum_tile<kVectors, kPixels>(tile, w, acc, prefetch_next);
    unroll<kVectors>([&](auto v) RK_INLINE_LAMBDA {
      const int64_t lanes = std::min<int64_t>(kLanes, tile.lanes - v * kLanes);
      const Finish finish(epilogue_, tile.channel + v * kLanes, lanes);
      const int64_t to = tile.y + v * kLanes * next_channel;
      if (next_channel == 1)
        store_tile(acc[v], tile.pixels, finish, 0, lanes, y, to, next_pixel);
      else
        store_transposed(acc[v], tile.pixels, finish, lanes, y, to, next_channel, next_pixel);
    });
  }

  template <int kVectors, int kPixels>
  RK_INLINE void sum_tile(const Tile& tile, const float* w, Vec (&acc)[kVectors][kPixels],
                          Prefetcher& prefetch_next) const {
    const ConvProblem& p = tile.part.p;
    const int64_t top = tile.row * p.stride[0] - p.padding[0];
    for (int64_t i = 0; i < p.kh; ++i) {
      const int64_t row = top + i * p.dilation[0];
      if (row < 0 || row >= p.h) {
        w += p.kw * steps_ * kVectors * kLanes;
        continue;
      }
      for (int64_t j = 0; j < p.kw; ++j) {
        const float* plane = tile.planes + tile.taps[i * p.kw + j] * kLanes;
        for (int64_t left = steps_; left > 0; left -= kLanes, plane += plane_) {
          prefetch_next();
          const float* end = plane + std::min<int64_t>(kLanes, left);
          for (const float* x = plane; x < end; ++x, w += kVectors * kLanes) {
            Vec weight[kVectors];
            unroll<kVectors>([&](auto v) RK_INLINE_LAMBDA { weight[v] = load(w + v * kLanes); });
            unroll<kPixels>([&](auto q) RK_INLINE_LAMBDA {
              const Vec in = broadcast(x[q * kLanes]);
              unroll<kVectors>(
                  [&](auto v) RK_INLINE_LAMBDA { acc[v][q] = Lane::multiply_add(in, weight[v], acc[v][q]); });
            });
          }
        }
      }
    }
  }

  const Parts& parts_;
  const ConvProblem& p_;  // the window of the parts
  const Input x_;
  const Epilogue& epilogue_;
  const int64_t inputs_, steps_, planes_, vectors_, blocks_per_group_;
  const PaddedStrip strip_;
  const int64_t plane_, vector_size_;
  const std::unique_ptr<int64_t[]> taps_;
  const Scratch weights_;
};

}  // namespace
}  // namespace rk::cpu::RK_ISA
