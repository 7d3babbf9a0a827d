// What the kernels of the weight gradient share: sums in chunks, tiles of outputs, images copied as cells.
//
// A kernel splits the weights into blocks, and the sum over outputs into units: tiles of the images. `add`
// adds one unit to a block's sums and prefetches for the next, `write` stores the sums where the gradient has
// them.
#pragma once
#include "cpu/grouped_conv2d_common-inl.h"

namespace rk::cpu::RK_ISA {
namespace {

// A block of weights at a unit of the sum.
struct Place {
  int64_t block, unit;
};

// Sums the units of every block. Where the sums of all blocks fit a cache, all go through a unit together, so
// that it is read from memory once. Units are split into chunks, whose sums are added in order. Both depend
// on the problem alone, and so do the results' bits.
template <class Kernel>
class ChunkedSum {
 public:
  explicit ChunkedSum(const Kernel& kernel)
      : kernel_(kernel),
        size_(ceil_div(kernel.block_floats(), kLanes) * kLanes),
        together_(kernel.blocks() * size_ <= kFloats ? kernel.blocks() : 1),
        groups_(ceil_div(kernel.blocks(), together_)),
        chunks_(std::clamp<int64_t>(std::max(ceil_div(kTasks, groups_), ceil_div(kernel.units(), kMostUnits)),
                                    1, std::max<int64_t>(kernel.units(), 1))),
        partials_(chunks_ > 1 ? new float[chunks_ * kernel.blocks() * size_] : nullptr) {}

  int64_t chunks() const { return chunks_; }
  int64_t tasks() const { return chunks_ * groups_; }
  int64_t scratch_floats() const { return together_ * size_ + kernel_.scratch_floats(); }

  void range(int64_t begin, int64_t end, float* scratch) const {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % groups_ * together_, chunk = task / groups_;
      const int64_t last = std::min(first + together_, kernel_.blocks());
      float* sums = partials_ ? partial(first, chunk) : scratch;
      std::memset(sums, 0, (last - first) * size_ * sizeof(float));
      const int64_t units = first_unit(chunk + 1);
      for (int64_t unit = first_unit(chunk); unit < units; ++unit)
        for (int64_t block = first; block < last; ++block) {
          const bool wraps = block + 1 == last;
          const Place next{wraps ? first : block + 1, wraps ? std::min(unit + 1, units - 1) : unit};
          kernel_.add({block, unit}, next, sums + (block - first) * size_, scratch + together_ * size_);
        }
      if (!partials_)
        for (int64_t block = first; block < last; ++block)
          kernel_.write(block, sums + (block - first) * size_);
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
  static constexpr int64_t kFloats = 32 * 1024;  // of sums: an eighth of L2

  int64_t first_unit(int64_t chunk) const { return chunk * kernel_.units() / chunks_; }
  float* partial(int64_t block, int64_t chunk) const {
    return partials_.get() + (chunk * kernel_.blocks() + block) * size_;
  }

  const Kernel& kernel_;
  const int64_t size_, together_, groups_, chunks_;
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
  const bool large = sum.chunks() * kernel.blocks() * kernel.block_floats() > 16 * 1024;
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
  static constexpr int64_t kMostColumns = 16;
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

  // Of what copy() will read of `rows` rows of `count` pixels, at most `most` at a time; with `of_z`, of z
  // instead.
  RowsPrefetcher prefetcher(int64_t n, int64_t y, int64_t x, int64_t rows, int64_t count, int64_t most,
                            int64_t channel, int64_t channels, bool of_z = false) const {
    const int64_t size = image_.element_size(), line = 64 / size;
    const int64_t first = n * stride_[0] + std::max<int64_t>(y, 0) * stride_[2] +
                          std::max<int64_t>(x, 0) * stride_[3] + channel * stride_[1];
    const char* at = of_z ? image_.z_at(first) : image_.at(first);
    if (stride_[1] == 1) {
      const int64_t pixel = stride_[3] * size;
      if (channels > line) return {at, pixel, stride_[2] * size, rows, ceil_div(channels, line), 64};
      return {at, pixel, stride_[2] * size, rows, ceil_div(count, most), most * pixel};
    }
    // Rows' ends: where they begin was part of the tile before.
    const int64_t row = stride_[2] * size;
    at += (count - 1) * stride_[3] * size;
    return {at, row, stride_[1] * size, channels, ceil_div(rows, most), most * row};
  }

  bool has_z() const { return image_.has_z(); }

  static int64_t temporary_floats(int64_t most_pixels) { return kLanes * most_pixels; }

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
        image_.transpose_row(offset, channel + v, lanes, stride_[1], stride_[3], count,
                             [&](int64_t q, Vec cell) RK_INLINE_LAMBDA { store_cell(q, cell, v); });
    }
  }

 private:
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

  const Input image_;
  const int64_t* const stride_;
};

// Prefetches what a tile reads of the input, the gradient and its z.
class TilePrefetcher {
 public:
  TilePrefetcher(const ConvProblem& p, const Tiles& tiles, const Tile& tile, const Cells& x, const Cells& dy,
                 int64_t input, int64_t inputs, int64_t output, int64_t outputs)
      : parts_{x.prefetcher(tile.n, tile.row * p.stride[0] - p.padding[0],
                            tile.column * p.stride[1] - p.padding[1], tiles.x_rows, tiles.x_columns,
                            tiles.columns, input, inputs),
               dy.prefetcher(tile.n, tile.row, tile.column, tile.rows, tile.columns, tiles.columns, output,
                             outputs),
               dy.prefetcher(tile.n, tile.row, tile.column, tile.rows, tile.columns, tiles.columns, output,
                             outputs, dy.has_z())},
        count_(dy.has_z() ? 3 : 2) {}

  bool has_more() const { return part_ < count_; }

  RowPrefetcher next() {
    const RowPrefetcher row = parts_[part_].next();
    part_ += parts_[part_].left == 0;
    return row;
  }

 private:
  RowsPrefetcher parts_[3];
  int part_ = 0, count_;
};

// Calls add_row(row, prefetch) for the rows of a tile, prefetch() being for every pixel.
template <class AddRow>
RK_INLINE void for_each_row(int64_t rows, TilePrefetcher& prefetcher, AddRow add_row) {
  for (int64_t r = 0; r < rows; ++r) {
    if (!prefetcher.has_more()) {
      add_row(r, [] {});
      continue;
    }
    RowPrefetcher one = prefetcher.next(), other = prefetcher.has_more() ? prefetcher.next() : one;
    add_row(r, [&]() RK_INLINE_LAMBDA { one(), other(); });
  }
}

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
