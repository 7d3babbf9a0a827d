#pragma once
// The 16-bit formats, the lanes of fragments, the rounding of an mma.
//
// The lanes are stated here a second time, from the other end: which lane and register hold an element. Until
// values recorded on a GPU take its place, this, after the tables of the PTX ISA, is the reference.
#include <algorithm>
#include <cmath>

#include "emulation_selftest.h"

namespace rk::cuda {
namespace {

struct Format {
  int digits, least_exponent;  // digits behind the point, of the normal numbers
  double limit;                // from here on values overflow
};

template <class T>
constexpr Format kFormat = {};
template <>
constexpr Format kFormat<Half> = {10, -14, 0x1p16};
template <>
constexpr Format kFormat<BFloat16> = {7, -126, 0x1p127 * 2};

template <class T>
double value_of(unsigned bits) {
  const auto [digits, least, limit] = kFormat<T>;
  const unsigned fraction = bits & ((1u << digits) - 1), exponent = (bits & 0x7fff) >> digits;
  double value = exponent == 0 ? std::ldexp(fraction, least - digits)
                               : std::ldexp(fraction + std::ldexp(1, digits), least - digits + exponent - 1);
  if (value >= limit) value = fraction ? NAN : INFINITY;
  return bits & 0x8000 ? -value : value;
}

// To the nearest multiple of the unit of x's binade.
template <class T>
double rounded(float x) {
  const auto [digits, least, limit] = kFormat<T>;
  if (x == 0 || !std::isfinite(x)) return x;
  const double unit = std::ldexp(1, std::max(std::ilogb(x), least) - digits);
  const double nearest = std::nearbyint(x / unit) * unit;
  return std::fabs(nearest) >= limit ? std::copysign(INFINITY, nearest) : nearest;
}

bool same(double a, double b) {
  return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b);
}

template <class T>
void check_format(const std::string& format) {
  bool reads = true, writes = true, rounds = true;
  const auto check_rounding = [&](float x) {
    const uint32_t bits = pack<T>(x, 0);
    rounds = rounds && same(value_of<T>(bits), rounded<T>(x)) && (!std::isnan(x) || bits == 0x7fff);
  };
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    const float2 both = unpack<T>(bits | 0x10000u * (bits ^ 0x5555));
    reads = reads && same(both.x, value_of<T>(bits)) && same(both.y, value_of<T>(bits ^ 0x5555));
    if (std::isnan(both.x)) continue;
    writes = writes && pack<T>(both.x, 1) << 16 == bits << 16 && pack<T>(1, both.x) >> 16 == bits;
    // Half way to the next one, and beside it.
    const auto middle = static_cast<float>((value_of<T>(bits) + value_of<T>(bits + 1)) / 2);
    for (const float x : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, INFINITY)})
      check_rounding(x);
  }
  for (int i = 0; i < 200000; ++i)
    check_rounding(emulation::bits_as<float>(static_cast<uint32_t>(generator())));
  for (const float x : {65519.99f, 65520.0f, -65520.0f, INFINITY, -INFINITY, NAN, 3.4028235e38f, 3.3961e38f,
                        0.0f, -0.0f, 1e-45f, -1e-45f})
    check_rounding(x);
  expect(reads, format + ": every value is read");
  expect(writes, format + ": every value is written, low and high");
  expect(rounds, format + ": to nearest even");
}

struct Place {
  int lane, element;  // of two in each register
};

// Of the element (row, column) of each operand.
Place place_of_a(int row, int column) {
  return {row % 8 * 4 + column % 8 / 2, column / 8 * 4 + row / 8 * 2 + column % 2};
}
Place place_of_b(int row, int column) { return {column * 4 + row % 8 / 2, row / 8 * 2 + row % 2}; }
Place place_of_c(int row, int column) { return {row % 8 * 4 + column / 2, row / 8 * 2 + column % 2}; }

struct Fragments {
  uint16_t a[32][8], b[32][4];
  float c[32][4], d[32][4];
};

template <class T, int kDepth>
__global__ void multiply(const Fragments* in, Fragments* out) {
  const unsigned lane = thread_index();
  uint32_t a[4], b[2];
  float c[4], d[4];
  for (int i = 0; i < 4; ++i)
    a[i] = load_global<uint32_t>(&in->a[lane][2 * i]), c[i] = load_global<float>(&in->c[lane][i]);
  for (int i = 0; i < 2; ++i) b[i] = load_global<uint32_t>(&in->b[lane][2 * i]);
  if constexpr (kDepth == 16)
    mma_m16n8k16<T>(d, a, b[0], b[1], c);
  else
    mma_m16n8k8<T>(d, a[0], a[1], b[0], c);
  for (int i = 0; i < 4; ++i) store_global(&out->d[lane][i], d[i]);
}

template <class T>
uint16_t bits_of(double value) {
  return static_cast<uint16_t>(pack<T>(static_cast<float>(value), 0));
}

template <class T, int kDepth>
void check_mma(const std::string& what) {
  double a[16][kDepth], b[kDepth][8], c[16][8];
  const auto integer = [] { return static_cast<int>(generator() % 17) - 8; };
  Fragments in{}, out{};
  for (int k = 0; k < kDepth; ++k) {
    for (int row = 0; row < 16; ++row) {
      const Place at = place_of_a(row, k);
      in.a[at.lane][at.element] = bits_of<T>(a[row][k] = integer());
    }
    for (int column = 0; column < 8; ++column) {
      const Place at = place_of_b(k, column);
      in.b[at.lane][at.element] = bits_of<T>(b[k][column] = integer());
    }
  }
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      const Place at = place_of_c(row, column);
      in.c[at.lane][at.element] = static_cast<float>(c[row][column] = 1000 * integer());
    }
  launch<multiply<T, kDepth>>({1, 1, 32, 0}, nullptr, &in, &out);
  bool right = true;
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      double sum = c[row][column];
      for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[k][column];
      const Place at = place_of_c(row, column);
      right = right && out.d[at.lane][at.element] == sum;
    }
  expect(right && emulation::counters().mmas == 1, what);
}

// One sum: c + terms * 2^-12 * 2^-12 * factor.
float sum_of(float c, int terms, float factor) {
  Fragments in{}, out{};
  for (int k = 0; k < terms; ++k) {
    const Place a = place_of_a(3, k), b = place_of_b(k, 5);
    in.a[a.lane][a.element] = bits_of<Half>(0x1p-12),
    in.b[b.lane][b.element] = bits_of<Half>(0x1p-12 * factor);
  }
  const Place at = place_of_c(3, 5);
  in.c[at.lane][at.element] = c;
  launch<multiply<Half, 16>>({1, 1, 32, 0}, nullptr, &in, &out);
  return out.d[at.lane][at.element];
}

void check_rounding() {
  Mode mode;
  for (const float sign : {1.0f, -1.0f}) {
    emulation::configure(mode);
    expect(sum_of(sign, 1, 1.5f * sign) == sign * (1 + 0x1p-23f), "an mma rounds to nearest");
    expect(sum_of(sign, 16, sign) == sign * (1 + 0x1p-20f), "an mma rounds once");
    mode.truncate = true;
    emulation::configure(mode);
    expect(sum_of(sign, 1, 1.5f * sign) == sign, "an mma rounds toward zero");
    expect(sum_of(sign, 16, sign) == sign * (1 + 0x1p-20f), "products are summed before they are cut off");
    expect(sum_of(0, 16, sign) == sign * 0x1p-20f, "what is exact stays");
    mode.truncate = false;
  }
  emulation::configure();
}

// Rows of 16 bytes, `pitch` apart: lane l gives row (5 * l) % 32, so that no order is taken for another.
template <bool kTransposed>
__global__ void load_matrices(uint32_t* out, int pitch) {
  const unsigned lane = thread_index();
  unsigned char* const row = shared_memory() + lane * 5 % 32 * pitch;
  uint4 words;
  uint32_t* const word = &words.x;
  for (unsigned i = 0; i < 4; ++i) word[i] = (8 * lane + 2 * i) | (8 * lane + 2 * i + 1) << 16;
  store_shared(row, words);
  uint32_t r[4];
  if constexpr (kTransposed)
    ldmatrix_x4_trans(r, row);
  else
    ldmatrix_x4(r, row);
  for (int i = 0; i < 4; ++i) store_global(out + 4 * lane + i, r[i]);
}

__global__ void store_matrices(const uint32_t* in, uint4* out) {
  const unsigned lane = thread_index();
  uint32_t r[4];
  for (int i = 0; i < 4; ++i) r[i] = load_global<uint32_t>(in + 4 * lane + i);
  unsigned char* const row = shared_memory() + lane * 5 % 32 * 16;
  stmatrix_x4(row, r);
  store_global(out + lane, load_shared<uint4>(row));
}

__global__ void shuffle(float* out, int mask) {
  store_global(out + thread_index(), shuffle_xor(static_cast<float>(thread_index()), mask));
}

// Each lane asks for what the b of an mma is: two rows of a column.
void check_transposed_matrices() {
  uint32_t fragments[32][4];
  for (const int pitch : {16, 144}) {
    launch<load_matrices<true>>({1, 1, 32, static_cast<unsigned>(31 * pitch + 16)}, nullptr, &fragments[0][0],
                                pitch);
    bool right = true;
    for (unsigned lane = 0; lane < 32; ++lane)
      for (unsigned i = 0; i < 8; ++i) {
        const unsigned matrix = i / 2, row = lane % 4 * 2 + i % 2, column = lane / 4;
        const uint32_t word = fragments[lane][matrix];
        right = right && (i % 2 ? word >> 16 : word & 0xffff) == 64 * matrix + 8 * row + column;
      }
    expect(right, "ldmatrix_x4_trans at a pitch of " + std::to_string(pitch));
    expect(emulation::counters().matrix_phases == 4 && emulation::counters().matrix_cycles == 4,
           "phases of ldmatrix_x4_trans");
  }
}

void check_matrices() {
  uint32_t fragments[32][4];
  uint4 rows[32];
  const auto phases = [] { return emulation::counters().matrix_phases; };
  for (const int pitch : {16, 144, 128, 32}) {
    launch<load_matrices<false>>({1, 1, 32, static_cast<unsigned>(31 * pitch + 16)}, nullptr,
                                 &fragments[0][0], pitch);
    bool right = true;
    for (unsigned matrix = 0; matrix < 4; ++matrix)
      for (unsigned row = 0; row < 8; ++row)
        for (unsigned column = 0; column < 8; ++column) {
          // Values were numbered by the lane that gave the row.
          const uint32_t word = fragments[4 * row + column / 2][matrix];
          right = right && (column % 2 ? word >> 16 : word & 0xffff) == 64 * matrix + 8 * row + column;
        }
    const int64_t cycles = emulation::counters().matrix_cycles;
    expect(right, "ldmatrix_x4 at a pitch of " + std::to_string(pitch));
    expect(phases() == 4 && cycles == 4 * (pitch == 128  ? 8
                                           : pitch == 32 ? 2
                                                         : 1),
           "bank conflicts at a pitch of " + std::to_string(pitch) + ": " + std::to_string(cycles));
  }
  check_transposed_matrices();
  launch<load_matrices<false>>({1, 1, 32, 512}, nullptr, &fragments[0][0], 16);
  launch<store_matrices>({1, 1, 32, 512}, nullptr, &fragments[0][0], &rows[0]);
  bool right = true;
  for (unsigned lane = 0; lane < 32; ++lane) {
    const uint32_t words[4] = {rows[lane].x, rows[lane].y, rows[lane].z, rows[lane].w};
    for (unsigned i = 0; i < 4; ++i)
      right = right && words[i] == ((8 * lane + 2 * i) | (8 * lane + 2 * i + 1) << 16);
  }
  expect(right, "stmatrix_x4 undoes ldmatrix_x4");
  float shuffled[64];
  for (const int mask : {1, 2, 4, 8, 16, 31}) {
    launch<shuffle>({1, 1, 64, 0}, nullptr, &shuffled[0], mask);
    right = true;
    for (int i = 0; i < 64; ++i) right = right && shuffled[i] == (i ^ mask);
    expect(right, "shuffle_xor by " + std::to_string(mask));
  }
}

}  // namespace
}  // namespace rk::cuda
