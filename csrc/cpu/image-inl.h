// Images of any storage dtype, seen as floats.
#pragma once
#include <algorithm>

#include "cpu/activation-inl.h"
#include "cpu/simd.h"
#include "problem.h"

namespace rk::cpu::RK_ISA {
namespace {

// An image or, with a BnBackward, the dz that it makes of an image dy.
class Input {
 public:
  Input(const void* data, DType dtype, const BnBackward* bn = nullptr)
      : data_(static_cast<const char*>(data)), dtype_(dtype), bn_(bn) {}

  int64_t element_size() const { return dtype_ == DType::kFloat32 ? 4 : 2; }
  const char* at(int64_t offset) const { return data_ + offset * element_size(); }

  // The z of the BnBackward, stored as the image is.
  bool has_z() const { return bn_; }
  const char* z_at(int64_t offset) const {
    return static_cast<const char*>(bn_->z) + offset * element_size();
  }

  // Bytes from an element to that of z.
  int64_t to_z() const { return has_z() ? static_cast<const char*>(bn_->z) - data_ : 0; }

  // Whether there are floats to be read where they are.
  bool in_place() const { return dtype_ == DType::kFloat32 && !bn_; }

  // `count` pixels, `step` elements apart, of the `lanes` channels from `channel` on, neighbours in memory
  // from element `offset` on. Returns the first as floats and sets `step` to the distance between two. Floats
  // are read where they are, others by way of `temporary`, kLanes floats a pixel.
  RK_INLINE const float* pixels(int64_t offset, int64_t channel, int64_t count, int64_t lanes,
                                float* temporary, int64_t& step) const {
    if (in_place()) return reinterpret_cast<const float*>(at(offset));
    copy_pixels(offset, channel, count, lanes, temporary, step);
    step = kLanes;
    return temporary;
  }

  // `count` elements of a row of `channel`, `step` apart, in the same way; `temporary` has 2 * count floats.
  // Where they lie close, those between are copied too: a vector at a time is faster than to pick.
  const float* row(int64_t offset, int64_t channel, int64_t count, float* temporary, int64_t& step) const {
    if (in_place()) return reinterpret_cast<const float*>(at(offset));
    const bool close = step == 1 || step == 2;
    with_loader(offset, channel, 0, [&](auto load_at) RK_INLINE_LAMBDA {
      if (!close) {
        for (int64_t i = 0; i < count; ++i) temporary[i] = load_at(i * step, 1)[0];
        return;
      }
      const int64_t total = (count - 1) * step + 1;
      int64_t i = 0;
      for (; i + kLanes <= total; i += kLanes) store(temporary + i, load_at(i, kLanes));
      if (i < total) store_first(temporary + i, load_at(i, total - i), total - i);
    });
    step = close ? step : 1;
    return temporary;
  }

  // Calls body(transposed) where transposed(i, count, cells) makes cells of the pixels i to i + count, at
  // most kLanes, of a row from element `offset` on, whose pixels are `step` and whose `lanes` channels from
  // `channel` on are `pitch` elements apart.
  template <class Body>
  RK_INLINE void with_transposer(int64_t offset, int64_t channel, int64_t lanes, int64_t pitch, int64_t step,
                                 Body body) const {
    with_dtype(dtype_, [&](auto type) {
      using T = decltype(type);
      const T* from = reinterpret_cast<const T*>(at(offset));
      const auto cells_of = [&](const T* row, int64_t i, int64_t count, Vec(&cells)[kLanes])
                                RK_INLINE_LAMBDA {
                                  load_rows(row + i * step, lanes, pitch, step, count, cells);
                                  transpose(cells);
                                };
      if (!bn_)
        return body([&](int64_t i, int64_t count, Vec(&cells)[kLanes])
                        RK_INLINE_LAMBDA { cells_of(from, i, count, cells); });
      const BnBackwardVectors dz(*bn_, channel, lanes);
      const T* z = static_cast<const T*>(bn_->z) + offset;
      body([&](int64_t i, int64_t count, Vec(&cells)[kLanes]) RK_INLINE_LAMBDA {
        Vec z_cells[kLanes];
        cells_of(from, i, count, cells);
        cells_of(z, i, count, z_cells);
        unroll<kLanes>([&](auto k) RK_INLINE_LAMBDA { cells[k] = dz(cells[k], z_cells[k]); });
      });
    });
  }

  // Calls store_cell(q, cell) for `count` pixels, as above.
  template <class StoreCell>
  RK_INLINE void transpose_row(int64_t offset, int64_t channel, int64_t lanes, int64_t pitch, int64_t step,
                               int64_t count, StoreCell store_cell) const {
    with_transposer(offset, channel, lanes, pitch, step, [&](auto transposed) {
      for (int64_t q = 0; q < count; q += kLanes) {
        const int64_t pixels = std::min<int64_t>(count - q, kLanes);
        Vec cells[kLanes];
        transposed(q, pixels, cells);
        unroll<kLanes>([&](auto i) RK_INLINE_LAMBDA {
          if (i < pixels) store_cell(q + i, cells[i]);
        });
      }
    });
  }

 private:
  // `count` elements of each of `lanes` rows; the others are zero.
  template <class T>
  static RK_INLINE void load_rows(const T* from, int64_t lanes, int64_t pitch, int64_t step, int64_t count,
                                  Vec (&rows)[kLanes]) {
    if (step != 1)
      unroll<kLanes>([&](auto lane) RK_INLINE_LAMBDA {
        const T* row = from + lane * pitch;
        rows[lane] = lane >= lanes ? Vec{} : step == 2 ? load_even(row, count) : load_apart(row, count, step);
      });
    else if (lanes == kLanes && count == kLanes)
      unroll<kLanes>([&](auto lane) RK_INLINE_LAMBDA { rows[lane] = load(from + lane * pitch); });
    else
      unroll<kLanes>([&](auto lane) RK_INLINE_LAMBDA {
        rows[lane] = lane < lanes ? load_first(from + lane * pitch, count) : Vec{};
      });
  }

  __attribute__((noinline)) void copy_pixels(int64_t offset, int64_t channel, int64_t count, int64_t lanes,
                                             float* temporary, int64_t step) const {
    with_loader(offset, channel, lanes, [&](auto load_at) {
      if (lanes == kLanes)
        for (int64_t q = 0; q < count; ++q) store(temporary + q * kLanes, load_at(q * step, kLanes));
      else
        for (int64_t q = 0; q < count; ++q) store(temporary + q * kLanes, load_at(q * step, lanes));
    });
  }

  // Calls body(load_at), load_at(i, count) being the first `count` elements from offset + i on. Lanes are
  // `channels` neighbouring channels or, with 0, all of `channel`.
  template <class Body>
  RK_INLINE void with_loader(int64_t offset, int64_t channel, int64_t channels, Body body) const {
    with_dtype(dtype_, [&](auto type) {
      using T = decltype(type);
      const T* from = reinterpret_cast<const T*>(at(offset));
      if (!bn_)
        return body([&](int64_t i, int64_t count) RK_INLINE_LAMBDA { return load_up_to(from + i, count); });
      const BnBackwardVectors dz(*bn_, channel, channels);
      const T* z = static_cast<const T*>(bn_->z) + offset;
      body([&](int64_t i, int64_t count)
               RK_INLINE_LAMBDA { return dz(load_up_to(from + i, count), load_up_to(z + i, count)); });
    });
  }

  const char* data_;
  DType dtype_;
  const BnBackward* bn_;
};

// Every step-th of `count` floats, packed.
inline void copy_row(const float* from, int64_t step, int64_t count, float* to) {
  int64_t i = 0;
  if (step == 1) {
    for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
    if (i < count) store_first(to + i, load_first(from + i, count - i), count - i);
    return;
  }
  if (step == 2) {
    for (; i < count; i += kLanes) {
      const int64_t lanes = std::min<int64_t>(count - i, kLanes);
      store_up_to(to + i, load_even(from + 2 * i, lanes), lanes);
    }
    return;
  }
  for (; i < count; ++i) to[i] = from[i * step];
}

class Output {
 public:
  Output(void* data, DType dtype) : data_(static_cast<char*>(data)), dtype_(dtype) {}

  bool is_float() const { return dtype_ == DType::kFloat32; }
  float* floats(int64_t offset) const { return reinterpret_cast<float*>(data_) + offset; }
  const char* at(int64_t offset) const { return data_ + offset * (is_float() ? 4 : 2); }

  // Lanes [begin, end), lane i to element offset + i * step.
  RK_INLINE void store_lanes(int64_t offset, Vec v, int64_t begin, int64_t end, int64_t step = 1) const {
    with_dtype(dtype_, [&](auto type) RK_INLINE_LAMBDA {
      using T = decltype(type);
      T* to = reinterpret_cast<T*>(data_) + offset;
      if (step != 1) return store_apart(to, v, begin, end, step);
      if (begin == 0) return store_up_to(to, v, end);
      RK_ISA::store_lanes(to, v, begin, end);
    });
  }

 private:
  char* data_;
  DType dtype_;
};

}  // namespace
}  // namespace rk::cpu::RK_ISA
