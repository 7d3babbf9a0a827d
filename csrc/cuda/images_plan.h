#pragma once
#include <algorithm>
#include <cstdint>

#include "host_device.h"
#include "plan_arithmetic.h"
#include "problem.h"

// How the kernels over whole images cut these up: functions of the problem alone, so that statistics have the
// same bits on any device and at any address.
namespace rk::cuda {

inline constexpr int kImageThreads = 256, kWarpThreads = 32;

namespace plan {

// The elements of 16 bytes.
inline int vector_elements(DType dtype) { return dtype == DType::kFloat32 ? 4 : 8; }

}  // namespace plan

// Rows of c values in tiles. A block takes `at_once` rows of its columns at a time, a thread `vector`
// channels of one.
struct RowTiles {
  int64_t rows, c;
  int vector, columns, column_blocks, at_once;
  int64_t tile_rows, tiles;

  unsigned blocks() const { return static_cast<unsigned>(tiles * column_blocks); }
};

// A thread's rows: `count`, from `first` on, tiles.at_once apart; all of them if `valid`, else it has none.
struct RowThread {
  int64_t tile, first, channel;
  int row, count;
  bool valid;
};

RK_HOST_DEVICE inline RowThread row_thread(const RowTiles& tiles, unsigned block, int thread) {
  RowThread at{};
  const int column = static_cast<int>(block % tiles.column_blocks) * tiles.columns + thread % tiles.columns;
  at.row = thread / tiles.columns;
  at.tile = block / tiles.column_blocks;
  at.first = at.tile * tiles.tile_rows + at.row;
  at.channel = int64_t{column} * tiles.vector;
  at.valid = at.row < tiles.at_once && at.channel < tiles.c;
  const int64_t end = (at.tile + 1) * tiles.tile_rows, stop = end < tiles.rows ? end : tiles.rows;
  if (at.valid && at.first < stop)
    at.count = static_cast<int>((stop - at.first + tiles.at_once - 1) / tiles.at_once);
  return at;
}

// A thread has `least` to `most` rows of a tile, if there are enough.
inline RowTiles row_tiles(int64_t rows, int64_t c, DType dtype, int least, int most) {
  // A block's columns are 512 bytes of a row, or less.
  const int vector = plan::vector_elements(dtype), most_columns = 32 * vector;
  RowTiles tiles{};
  tiles.rows = rows, tiles.c = c;
  tiles.vector = c % vector == 0 ? vector : 1;
  const int64_t columns = c / tiles.vector;
  tiles.column_blocks = static_cast<int>(plan::ceil_div(columns, most_columns / tiles.vector));
  if (rows == 0 || c == 0) return tiles;
  tiles.columns = static_cast<int>(plan::ceil_div(columns, tiles.column_blocks));
  tiles.at_once = kImageThreads / tiles.columns;
  const int64_t wanted = plan::ceil_div(plan::kManyBlocks, tiles.column_blocks);
  tiles.tile_rows =
      tiles.at_once * std::clamp<int64_t>(plan::ceil_div(rows, tiles.at_once * wanted), least, most);
  tiles.tiles = plan::ceil_div(rows, tiles.tile_rows);
  return tiles;
}

// Planes [n][c][pixels] in tiles, each a run of pixels of some images. A warp takes a channel of a tile, a
// lane a window of 16 bytes at a time, counted from the element 0 of all.
struct PlaneTiles {
  int64_t n, c, pixels;
  int images, run, windows;  // of a tile: windows of an image
  int64_t runs, tiles;       // runs of a plane

  unsigned blocks() const {
    return static_cast<unsigned>(plan::ceil_div(tiles * c, kImageThreads / kWarpThreads));
  }
};

inline PlaneTiles plane_tiles(int64_t n, int64_t c, int64_t pixels, DType dtype) {
  constexpr int64_t kLeastValues = 512, kMostValues = 4096;
  PlaneTiles tiles{};
  tiles.n = n, tiles.c = c, tiles.pixels = pixels;
  if (n == 0 || c == 0 || pixels == 0) return tiles;
  const int vector = plan::vector_elements(dtype);
  const int64_t wanted = plan::ceil_div(plan::kManyBlocks * (kImageThreads / kWarpThreads), c);
  const int64_t values = std::clamp<int64_t>(plan::ceil_div(n * pixels, wanted), kLeastValues, kMostValues);
  const int64_t run = plan::ceil_div(pixels, plan::ceil_div(pixels, values));
  tiles.run = static_cast<int>(run == pixels ? run : plan::ceil_div(run, vector) * vector);
  tiles.runs = plan::ceil_div(pixels, tiles.run);
  tiles.images = static_cast<int>(std::clamp<int64_t>(values / pixels, 1, n));
  tiles.windows = static_cast<int>(pixels % vector == 0 ? plan::ceil_div(tiles.run, vector)
                                                        : plan::ceil_div(tiles.run - 1, vector) + 1);
  tiles.tiles = plan::ceil_div(n, tiles.images) * tiles.runs;
  return tiles;
}

// A warp's channel of a tile: `pixels` elements from `first` on, of as many `images` a `step` apart; none if
// it has no tile.
struct PlaneWarp {
  int64_t tile, channel, first, step;
  int images, pixels;
};

RK_HOST_DEVICE inline PlaneWarp plane_warp(const PlaneTiles& tiles, unsigned block, int thread) {
  const int64_t unit = int64_t{block} * (kImageThreads / kWarpThreads) + thread / kWarpThreads;
  PlaneWarp at{};
  at.tile = unit / tiles.c, at.channel = unit % tiles.c;
  if (at.tile >= tiles.tiles) return at;
  const int64_t image = at.tile / tiles.runs * tiles.images, pixel = at.tile % tiles.runs * tiles.run;
  at.images = tiles.n - image < tiles.images ? static_cast<int>(tiles.n - image) : tiles.images;
  at.pixels = tiles.pixels - pixel < tiles.run ? static_cast<int>(tiles.pixels - pixel) : tiles.run;
  at.first = (image * tiles.c + at.channel) * tiles.pixels + pixel, at.step = tiles.c * tiles.pixels;
  return at;
}

// 16 bytes from `first` on, of whose elements those in [begin, end) are the channel's.
struct PlaneWindow {
  int64_t first, begin, end;
};

template <int kVector>
RK_HOST_DEVICE inline PlaneWindow plane_window(const PlaneTiles& tiles, const PlaneWarp& at, int window) {
  const int64_t begin = at.first + window / tiles.windows * at.step;
  return {(begin / kVector + window % tiles.windows) * kVector, begin, begin + at.pixels};
}

// Of what sums over each channel; either `rows` or `planes` has tiles.
struct ImageTiles {
  bool by_rows;
  RowTiles rows;
  PlaneTiles planes;
  int64_t tiles;
};

// So many rows a thread make up for what a tile costs beside them; with more, sums would lose digits.
inline constexpr int kLeastSummedRows = 8, kMostSummedRows = 64;

inline ImageTiles image_tiles(const ImageProblem& p) {
  ImageTiles tiles{};
  // One channel is a plane, and pixels of one-pixel images are rows, whatever the layout.
  tiles.by_rows = p.c != 1 && (p.channels_last || p.pixels == 1);
  if (tiles.by_rows)
    tiles.rows = row_tiles(p.n * p.pixels, p.c, p.dtype, kLeastSummedRows, kMostSummedRows);
  else if (p.c == 1)
    tiles.planes = plane_tiles(1, 1, p.n * p.pixels, p.dtype);
  else
    tiles.planes = plane_tiles(p.n, p.c, p.pixels, p.dtype);
  tiles.tiles = tiles.by_rows ? tiles.rows.tiles : tiles.planes.tiles;
  return tiles;
}

// Of bn_stats. Offsets of the workspace's parts are in bytes.
struct StatsPlan : ImageTiles {
  int64_t counts, origins, bytes;
};

inline StatsPlan plan_stats(const ImageProblem& p) {
  StatsPlan stats{image_tiles(p), 0, 0, 0};
  stats.counts = plan::aligned(8 * stats.tiles * p.c);
  stats.origins = stats.counts + plan::aligned(4 * stats.tiles);
  stats.bytes = stats.origins + plan::aligned(4 * p.c);
  return stats;
}

// Of affine_act and its backward where rows are whole vectors: a thread keeps what it knows of its channels
// for all its rows.
inline RowTiles plan_affine_rows(const ImageProblem& p) {
  constexpr int kLeastRows = 4, kMostRows = 16;
  return row_tiles(p.n * p.pixels, p.c, p.dtype, kLeastRows, kMostRows);
}

// Of these elsewhere: all images are one run of elements, of which a channel has `inner` before the next
// has its own. A thread takes kFlatVectors vectors of 16 bytes, kImageThreads apart.
struct FlatTiles {
  int64_t elements, inner, c;
  int64_t tile_elements;

  unsigned blocks() const { return static_cast<unsigned>(plan::ceil_div(elements, tile_elements)); }
};

inline constexpr int kFlatVectors = 4;

inline FlatTiles plan_affine_flat(const ImageProblem& p) {
  return {p.elements(), p.channels_last ? 1 : p.pixels, p.c,
          int64_t{kImageThreads} * kFlatVectors * plan::vector_elements(p.dtype)};
}

}  // namespace rk::cuda
