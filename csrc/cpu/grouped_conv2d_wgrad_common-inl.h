// What the kernels of the weight gradient share: sums in chunks, tiles of outputs, images copied as cells.
//
// A kernel splits the weights into blocks, and the sum over outputs into units: tiles of the images. `add`
// adds one unit to a block's sums, `write` stores the sums where the gradient has them.
#pragma once
#include "cpu/grouped_conv2d_common-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

// Sums the units of every block. Where blocks are few or units many, units are split into chunks, whose sums
// are added in order. Chunks depend on the problem alone, and so do the results' bits.
template <class Kernel>
class ChunkedSum {
 public:
  explicit ChunkedSum(const Kernel& kernel)
      : kernel_(kernel),
        chunks_(std::clamp<int64_t>(
            std::max(ceil_div(kTasks, kernel.blocks()), ceil_div(kernel.units(), kMostUnits)), 1,
            std::max<int64_t>(kernel.units(), 1))),
        size_(ceil_div(kernel.block_floats(), kLanes) * kLanes),
        partials_(chunks_ > 1 ? new float[chunks_ * kernel.blocks() * size_] : nullptr) {}

  int64_t chunks() const { return chunks_; }
  int64_t tasks() const { return chunks_ * kernel_.blocks(); }
  int64_t scratch_floats() const { return size_ + kernel_.scratch_floats(); }

  void range(int64_t begin, int64_t end, float* scratch) const {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task % kernel_.blocks(), chunk = task / kernel_.blocks();
      float* sums = partials_ ? partial(block, chunk) : scratch;
      std::memset(sums, 0, size_ * sizeof(float));
      for (int64_t unit = first_unit(chunk); unit < first_unit(chunk + 1); ++unit)
        kernel_.add(block, unit, sums, scratch + size_);
      if (!partials_) kernel_.write(block, sums);
    }
  }

  void add_chunks(int64_t block) const {
    float* sums = partial(block, 0);
    for (int64_t chunk = 1; chunk < chunks_; ++chunk) {
      const float* more = partial(block, chunk);
      for (int64_t i = 0; i < size_; i += kLanes) store(sums + i, load(sums + i) + load(more + i));
    }
    kernel_.write(block, sums);
  }

 private:
  // Enough for some threads to share, and a limit to what is added to one float.
  static constexpr int64_t kTasks = 32, kMostUnits = 1024;

  int64_t first_unit(int64_t chunk) const { return chunk * kernel_.units() / chunks_; }
  float* partial(int64_t block, int64_t chunk) const {
    return partials_.get() + (chunk * kernel_.blocks() + block) * size_;
  }

  const Kernel& kernel_;
  const int64_t chunks_, size_;
  const std::unique_ptr<float[]> partials_;
};

template <class Kernel>
void sum_in_chunks(const Kernel& kernel, ParallelFor parallel_for) {
  struct AddChunks {
    const ChunkedSum<Kernel>& sum;
    const int64_t blocks;
    int64_t tasks() const { return blocks; }
    int64_t scratch_floats() const { return 0; }
    void range(int64_t begin, int64_t end, float*) const {
      for (int64_t block = begin; block < end; ++block) sum.add_chunks(block);
    }
  };
  const ChunkedSum<Kernel> sum(kernel);
  run(sum, parallel_for);
  const bool large = sum.tasks() * kernel.block_floats() > 16 * 1024;
  if (sum.chunks() > 1) run(AddChunks{sum, kernel.blocks()}, large ? parallel_for : nullptr);
}

// Tiles of outputs. With the padded input that its taps span, a tile takes about `most_floats`.
struct Tiles {
  int64_t rows, columns, x_columns, x_rows, down, across;

  Tiles(const ConvProblem& p, int64_t x_cell, int64_t y_cell, int64_t most_floats) {
    across = ceil_div(p.ow, kMostColumns);
    columns = ceil_div(p.ow, across);
    x_columns = (columns - 1) * p.stride[1] + (p.kw - 1) * p.dilation[1] + 1;
    const int64_t halo = (p.kh - 1) * p.dilation[0] + 1 - p.stride[0];
    const int64_t row = p.stride[0] * x_columns * x_cell + columns * y_cell;
    down = ceil_div(p.oh, std::clamp((most_floats - halo * x_columns * x_cell) / row, int64_t{1}, p.oh));
    rows = ceil_div(p.oh, down);
    x_rows = rows * p.stride[0] + halo;
  }

  int64_t count() const { return down * across; }

 private:
  static constexpr int64_t kMostColumns = 64;
};

// One tile of one image: its first output and its size.
struct Tile {
  int64_t n, row, column, rows, columns;

  Tile(const ConvProblem& p, const Tiles& tiles, int64_t unit)
      : n(unit / tiles.count()),
        row(unit / tiles.across % tiles.down * tiles.rows),
        column(unit % tiles.across * tiles.columns),
        rows(std::min(tiles.rows, p.oh - row)),
        columns(std::min(tiles.columns, p.ow - column)) {}
};

// An image whose pixels are copied as cells of neighbouring channels, whatever its layout.
class Cells {
 public:
  Cells(const Input& image, const int64_t* stride) : image_(image), stride_(stride) {}

  static int64_t temporary_floats(int64_t most_pixels) { return kLanes * row_floats(most_pixels); }

  // Calls store_cell(q, vector, v) for the vectors of `channels` channels of `count` pixels of a row. Lanes
  // past the last channel are zero.
  template <class StoreCell>
  RK_INLINE void copy(int64_t n, int64_t y, int64_t x, int64_t count, int64_t channel, int64_t channels,
                      float* temporary, StoreCell store_cell) const {
    const int64_t first = n * stride_[0] + y * stride_[2] + x * stride_[3];
    for (int64_t v = 0; v < channels; v += kLanes) {
      const int64_t lanes = std::min<int64_t>(channels - v, kLanes);
      const int64_t offset = first + (channel + v) * stride_[1];
      if (stride_[1] == 1)
        copy_pixels(offset, channel + v, count, lanes, temporary,
                    [&](int64_t q, Vec cell) RK_INLINE_LAMBDA { store_cell(q, cell, v); });
      else
        transpose_rows(offset, channel + v, count, lanes, temporary,
                       [&](int64_t q, Vec cell) RK_INLINE_LAMBDA { store_cell(q, cell, v); });
    }
  }

 private:
  static int64_t row_floats(int64_t pixels) { return ceil_div(2 * pixels, kLanes) * kLanes; }

  template <class StoreCell>
  RK_INLINE void copy_pixels(int64_t offset, int64_t channel, int64_t count, int64_t lanes, float* temporary,
                             StoreCell store_cell) const {
    int64_t step = stride_[3];
    const float* from = image_.pixels(offset, channel, count, lanes, temporary, step);
    if (lanes == kLanes)
      for (int64_t q = 0; q < count; ++q) store_cell(q, load(from + q * step));
    else
      for (int64_t q = 0; q < count; ++q) store_cell(q, load_first(from + q * step, lanes));
  }

  template <class StoreCell>
  RK_INLINE void transpose_rows(int64_t offset, int64_t channel, int64_t count, int64_t lanes,
                                float* temporary, StoreCell store_cell) const {
    const float* rows[kLanes];
    for (int64_t lane = 0; lane < lanes; ++lane, temporary += row_floats(count)) {
      int64_t step = stride_[3];
      rows[lane] = image_.row(offset + lane * stride_[1], channel + lane, count, temporary, step);
      if (step == 1) continue;
      copy_row(rows[lane], step, count, temporary);
      rows[lane] = temporary;
    }
    for (int64_t q = 0; q < count; q += kLanes) {
      const int64_t pixels = std::min<int64_t>(count - q, kLanes);
      Vec cells[kLanes] = {};
      for (int64_t lane = 0; lane < lanes; ++lane)
        cells[lane] = pixels == kLanes ? load(rows[lane] + q) : load_first(rows[lane] + q, pixels);
      transpose(cells);
      for (int64_t i = 0; i < pixels; ++i) store_cell(q + i, cells[i]);
    }
  }

  const Input image_;
  const int64_t* const stride_;
};

// Copies the input that a tile's taps span to rows of x_columns cells, zero outside the image.
template <class StoreCell>
RK_INLINE void fill_input(const ConvProblem& p, const Tiles& tiles, const Tile& tile, const Cells& image,
                          int64_t channel, int64_t channels, int64_t cell, float* to, float* temporary,
                          StoreCell store_cell) {
  const int64_t left = tile.column * p.stride[1] - p.padding[1];
  const int64_t begin = std::clamp(-left, int64_t{0}, tiles.x_columns);
  const int64_t end = std::clamp(p.w - left, begin, tiles.x_columns);
  const int64_t rows = tiles.x_rows - (tiles.rows - tile.rows) * p.stride[0];
  for (int64_t r = 0; r < rows; ++r, to += tiles.x_columns * cell) {
    const int64_t y = tile.row * p.stride[0] - p.padding[0] + r;
    const bool inside = y >= 0 && y < p.h;
    std::memset(to, 0, (inside ? begin : tiles.x_columns) * cell * sizeof(float));
    if (!inside) continue;
    float* first = to + begin * cell;
    image.copy(tile.n, y, left + begin, end - begin, channel, channels, temporary,
               [&](int64_t q, Vec v, int64_t c) RK_INLINE_LAMBDA { store_cell(first + q * cell, v, c); });
    std::memset(to + end * cell, 0, (tiles.x_columns - end) * cell * sizeof(float));
  }
}

}  // namespace
}  // namespace rk::cpu::RK_ISA
