// Every native op over a sweep of shapes, layouts and dtypes, against loops in double: built with sanitizers
// (CMake option RESNEXT_KERNELS_SANITIZE), which see what no result shows. Images lie in allocations that end
// with their last element; what is between their rows is NaN. Values are integers whose sums are exact.
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cpu/kernels.h"

namespace {

using rk::Activation;
using rk::ConvProblem;
using rk::DType;

int64_t failures = 0, checks = 0;

// As torch_parallel_for: the range in parts, each on a thread of its own.
int32_t parallel_for(int64_t begin, int64_t end, int64_t, rk::ParallelBody body, void* context) {
  constexpr int64_t kThreads = 3;
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < kThreads; ++t) {
    const int64_t first = begin + (end - begin) * t / kThreads,
                  last = begin + (end - begin) * (t + 1) / kThreads;
    if (first < last) threads.emplace_back(body, first, last, context);
  }
  for (std::thread& thread : threads) thread.join();
  return 0;
}

// xorshift: small integers, a quarter of them not zero.
class Random {
 public:
  int64_t next(int64_t below) {
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return static_cast<int64_t>(state_ % static_cast<uint64_t>(below));
  }
  double value() { return next(4) ? 0 : next(5) - 2; }

 private:
  uint64_t state_ = 88172645463325252;
};

Random random_values;

double rounded(double value, DType dtype) {
  const float f = static_cast<float>(value);
  if (dtype == DType::kFloat16) return static_cast<_Float16>(f);
  if (dtype == DType::kFloat32) return f;
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16 << 16;
  float result;
  std::memcpy(&result, &bits, sizeof bits);
  return result;
}

// Elements of a dtype in an allocation that ends with the last of them.
class Storage {
 public:
  Storage(int64_t elements, DType dtype) : dtype_(dtype), bytes_(new unsigned char[elements * size()]) {
    for (int64_t i = 0; i < elements; ++i) set(i, std::numeric_limits<double>::quiet_NaN());
  }

  int64_t size() const { return dtype_ == DType::kFloat32 ? 4 : 2; }
  void* at(int64_t i) const { return bytes_.get() + i * size(); }

  double get(int64_t i) const {
    if (dtype_ == DType::kFloat32) return read<float>(i);
    if (dtype_ == DType::kFloat16) return static_cast<float>(read<_Float16>(i));
    const uint32_t bits = static_cast<uint32_t>(read<uint16_t>(i)) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

  void set(int64_t i, double value) {
    const float f = static_cast<float>(value);
    if (dtype_ == DType::kFloat32) return write(i, f);
    if (dtype_ == DType::kFloat16) return write(i, static_cast<_Float16>(f));
    uint32_t bits;
    std::memcpy(&bits, &f, sizeof bits);
    write(i, static_cast<uint16_t>(bits >> 16));
  }

 private:
  template <class T>
  T read(int64_t i) const {
    T value;
    std::memcpy(&value, at(i), sizeof value);
    return value;
  }
  template <class T>
  void write(int64_t i, T value) {
    std::memcpy(at(i), &value, sizeof value);
  }

  DType dtype_;
  std::unique_ptr<unsigned char[]> bytes_;
};

enum class Layout { kNchw, kNhwc, kNchwView, kNhwcView };

// N x C x H x W; views have NaN between their rows, planes and pixels, and begin at an odd element.
struct Image {
  int64_t n, c, h, w, stride[4], first;
  DType dtype;
  Storage storage;

  Image(int64_t n, int64_t c, int64_t h, int64_t w, Layout layout, DType dtype)
      : n(n), c(c), h(h), w(w), dtype(dtype), storage(set_strides(layout), dtype) {}

  void fill() {
    for_each([&](int64_t i) { storage.set(i, random_values.value()); });
  }
  void* data() const { return storage.at(first); }
  int64_t index(int64_t b, int64_t k, int64_t y, int64_t x) const {
    return first + b * stride[0] + k * stride[1] + y * stride[2] + x * stride[3];
  }
  double operator()(int64_t b, int64_t k, int64_t y, int64_t x) const {
    return storage.get(index(b, k, y, x));
  }

  template <class Body>
  void for_each(Body body) const {
    for (int64_t b = 0; b < n; ++b)
      for (int64_t k = 0; k < c; ++k)
        for (int64_t y = 0; y < h; ++y)
          for (int64_t x = 0; x < w; ++x) body(index(b, k, y, x));
  }

 private:
  // Returns how many elements the storage has.
  int64_t set_strides(Layout layout) {
    const int64_t gap = layout == Layout::kNchwView || layout == Layout::kNhwcView ? 3 : 0;
    first = gap ? 1 : 0;
    if (layout == Layout::kNchw || layout == Layout::kNchwView)
      stride[3] = 1, stride[2] = w + gap, stride[1] = h * stride[2] + gap, stride[0] = c * stride[1] + gap;
    else
      stride[1] = 1, stride[3] = c + gap, stride[2] = w * stride[3] + gap, stride[0] = h * stride[2] + gap;
    if (n * c * h * w == 0) return first;
    return index(n - 1, c - 1, h - 1, w - 1) + 1;
  }
};

std::vector<float> vector_of(int64_t c, const std::function<float()>& value) {
  std::vector<float> result(c);
  for (float& v : result) v = value();
  return result;
}

void compare(const std::string& what, double got, double expected) {
  ++checks;
  if (got == expected) return;
  if (++failures < 20) std::printf("%s: expected %.9g, got %.9g\n", what.c_str(), expected, got);
}

struct Shape {
  int64_t n, in, out, groups, h, w, kh, kw, stride, padding, dilation;
};

ConvProblem problem_of(const Shape& s, const Image& x, const Image& y, DType dtype) {
  ConvProblem p{s.n,
                s.in * s.groups,
                s.h,
                s.w,
                s.out * s.groups,
                s.kh,
                s.kw,
                y.h,
                y.w,
                s.groups,
                {s.stride, s.stride},
                {s.padding, s.padding},
                {s.dilation, s.dilation},
                {},
                {},
                {},
                dtype};
  std::memcpy(p.x_stride, x.stride, sizeof x.stride);
  std::memcpy(p.y_stride, y.stride, sizeof y.stride);
  const int64_t taps = s.kh * s.kw, w_stride[] = {s.out * s.in * taps, s.in * taps, taps, s.kw, 1};
  std::memcpy(p.w_stride, w_stride, sizeof w_stride);
  return p;
}

// Calls body(x index, weight index, y index) for every product of a convolution.
template <class Body>
void for_each_product(const ConvProblem& p, const Image& x, const Image& y, Body body) {
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t o = 0; o < p.c_out; ++o)
      for (int64_t c = 0; c < p.in_per_group(); ++c)
        for (int64_t i = 0; i < p.kh; ++i)
          for (int64_t j = 0; j < p.kw; ++j)
            for (int64_t r = 0; r < p.oh; ++r)
              for (int64_t q = 0; q < p.ow; ++q) {
                const int64_t row = r * p.stride[0] - p.padding[0] + i * p.dilation[0];
                const int64_t column = q * p.stride[1] - p.padding[1] + j * p.dilation[1];
                if (row < 0 || row >= p.h || column < 0 || column >= p.w) continue;
                const int64_t group = o / p.out_per_group();
                body(x.index(n, group * p.in_per_group() + c, row, column),
                     p.weight(group, o % p.out_per_group(), c, i, j), y.index(n, o, r, q));
              }
}

double activated(double pre, Activation activation) {
  return activation == Activation::kRelu ? std::fmax(pre, 0.) : pre;
}
double slope(double pre, Activation activation) { return activation == Activation::kRelu ? pre > 0 : 1; }

// What BnBackward points to.
struct BatchNorm {
  std::vector<float> scale, shift, a, b, c;
  Activation activation;

  BatchNorm(int64_t channels, Activation activation)
      : scale(vector_of(channels, [] { return random_values.next(2) + 1.f; })),
        shift(vector_of(channels, [] { return random_values.next(3) - 1.f; })),
        a(scale),
        b(shift),
        c(vector_of(channels, [] { return random_values.next(3) - 1.f; })),
        activation(activation) {}

  rk::BnBackward of(const Image& z) const {
    return {z.data(), scale.data(), shift.data(), a.data(), b.data(), c.data(), activation};
  }
  double pre(int64_t k, double z) const { return z * scale[k] + shift[k]; }
  double dz(int64_t k, double dy, double z) const {
    return a[k] * dy * slope(pre(k, z), activation) + b[k] * z + c[k];
  }
};

// The values of an image by element, and what a BatchNorm makes of them.
std::vector<double> values_of(const Image& dy, const Image* z, const BatchNorm* bn) {
  std::vector<double> result(dy.n * dy.c * dy.h * dy.w ? dy.index(dy.n - 1, dy.c - 1, dy.h - 1, dy.w - 1) + 1
                                                       : 1);
  for (int64_t n = 0; n < dy.n; ++n)
    for (int64_t k = 0; k < dy.c; ++k)
      for (int64_t y = 0; y < dy.h; ++y)
        for (int64_t x = 0; x < dy.w; ++x)
          result[dy.index(n, k, y, x)] = bn ? bn->dz(k, dy(n, k, y, x), (*z)(n, k, y, x)) : dy(n, k, y, x);
  return result;
}

void check_convolution(const Shape& s, Layout layout, DType dtype, const std::string& name) {
  const auto out = [&](int64_t size, int64_t kernel) {
    return (size + 2 * s.padding - s.dilation * (kernel - 1) - 1) / s.stride + 1;
  };
  const auto& kernels = rk::cpu::kernels();
  Image x(s.n, s.in * s.groups, s.h, s.w, layout, dtype);
  Image y(s.n, s.out * s.groups, out(s.h, s.kh), out(s.w, s.kw), layout, dtype);
  Image dx(x.n, x.c, x.h, x.w, layout, dtype), dy(y.n, y.c, y.h, y.w, layout, dtype);
  Image z(y.n, y.c, y.h, y.w, layout, dtype);
  const ConvProblem p = problem_of(s, x, y, dtype);
  x.fill(), dy.fill(), z.fill();
  const int64_t weights = p.c_out * p.in_per_group() * p.kh * p.kw;
  const auto w = vector_of(weights, [] { return random_values.next(3) - 1.f; });
  const BatchNorm bn(p.c_out, Activation::kRelu);

  for (const bool affine : {false, true}) {
    const rk::Epilogue epilogue{affine ? bn.scale.data() : nullptr, affine ? bn.shift.data() : nullptr,
                                affine ? Activation::kRelu : Activation::kIdentity};
    kernels.grouped_conv2d_fwd(p, x.data(), w.data(), y.data(), epilogue, parallel_for);
    std::vector<double> sums(values_of(dy, nullptr, nullptr).size());
    for_each_product(p, x, y, [&](int64_t i, int64_t k, int64_t o) { sums[o] += x.storage.get(i) * w[k]; });
    for (int64_t k = 0; k < y.c; ++k)
      for (int64_t n = 0; n < y.n; ++n)
        for (int64_t r = 0; r < y.h; ++r)
          for (int64_t q = 0; q < y.w; ++q) {
            const double sum = sums[y.index(n, k, r, q)];
            const double value = affine ? activated(bn.pre(k, sum), Activation::kRelu) : sum;
            compare("forward " + name, y(n, k, r, q), rounded(value, dtype));
          }
  }
  for (const bool prologue : {false, true}) {
    const rk::BnBackward backward = bn.of(z);
    const auto dz = values_of(dy, &z, prologue ? &bn : nullptr);
    kernels.grouped_conv2d_dgrad(p, dy.data(), w.data(), dx.data(), prologue ? &backward : nullptr,
                                 parallel_for);
    std::vector<double> sums(values_of(x, nullptr, nullptr).size());
    for_each_product(p, x, y, [&](int64_t i, int64_t k, int64_t o) { sums[i] += dz[o] * w[k]; });
    dx.for_each([&](int64_t i) { compare("dgrad " + name, dx.storage.get(i), rounded(sums[i], dtype)); });

    std::vector<float> dw(weights, std::nanf(""));
    kernels.grouped_conv2d_wgrad(p, dy.data(), x.data(), dw.data(), prologue ? &backward : nullptr,
                                 parallel_for);
    std::vector<double> expected(weights);
    for_each_product(p, x, y,
                     [&](int64_t i, int64_t k, int64_t o) { expected[k] += dz[o] * x.storage.get(i); });
    for (int64_t k = 0; k < weights; ++k) compare("wgrad " + name, dw[k], expected[k]);
  }
}

// The ops on dense images.
void check_images(int64_t n, int64_t c, int64_t h, int64_t w, Layout layout, DType dtype,
                  const std::string& name) {
  const auto& kernels = rk::cpu::kernels();
  Image z(n, c, h, w, layout, dtype), residual(n, c, h, w, layout, dtype), y(n, c, h, w, layout, dtype);
  Image dy(n, c, h, w, layout, dtype), dz(n, c, h, w, layout, dtype), dresidual(n, c, h, w, layout, dtype);
  z.fill(), residual.fill(), dy.fill();
  const rk::ImageProblem p{n, c, h * w, layout == Layout::kNhwc, dtype};
  const BatchNorm bn(c, Activation::kRelu);
  kernels.affine_act(p, z.data(), bn.scale.data(), bn.shift.data(), residual.data(), y.data(), bn.activation,
                     parallel_for);
  kernels.affine_act_backward(p, dy.data(), bn.of(z), y.data(), dz.data(), dresidual.data(), parallel_for);
  std::vector<float> sum_g(c), sum_g_xhat(c), mean(c), m2(c);
  const rk::BnReduce reduce{dy.data(),       z.data(),    y.data(),    bn.scale.data(),
                            bn.shift.data(), bn.c.data(), bn.a.data(), bn.activation};
  kernels.bn_act_reduce(p, reduce, {sum_g.data(), sum_g_xhat.data()}, parallel_for);
  kernels.bn_stats(p, z.data(), {mean.data(), m2.data()}, parallel_for);
  for (int64_t k = 0; k < c; ++k) {
    double g_sum = 0, g_xhat_sum = 0, sum = 0, squares = 0;
    for (int64_t b = 0; b < n; ++b)
      for (int64_t r = 0; r < h; ++r)
        for (int64_t q = 0; q < w; ++q) {
          const double value = z(b, k, r, q), pre = bn.pre(k, value) + residual(b, k, r, q);
          const double g = dy(b, k, r, q) * slope(pre, bn.activation);
          compare("affine_act " + name, y(b, k, r, q), rounded(activated(pre, bn.activation), dtype));
          compare("dz " + name, dz(b, k, r, q), rounded(bn.a[k] * g + bn.b[k] * value + bn.c[k], dtype));
          compare("dresidual " + name, dresidual(b, k, r, q), rounded(g, dtype));
          g_sum += g, g_xhat_sum += g * (value - bn.c[k]) * bn.a[k], sum += value, squares += value * value;
        }
    const double count = static_cast<double>(n * h * w), exact_m2 = squares - sum * sum / count;
    compare("sum of g " + name, sum_g[k], g_sum);
    compare("sum of g * xhat " + name, sum_g_xhat[k], g_xhat_sum);
    // A mean is not an integer: to a few units in the last place.
    compare("mean " + name, std::abs(mean[k] - sum / count) < 1e-6 * (1 + std::abs(sum / count)), 1);
    compare("m2 " + name, std::abs(m2[k] - exact_m2) < 1e-5 * (1 + exact_m2), 1);
  }
}

const Shape kShapes[] = {
    {2, 1, 1, 16, 9, 17, 3, 3, 1, 1, 1},  {1, 1, 1, 24, 8, 7, 3, 3, 2, 1, 1},
    {1, 2, 2, 12, 7, 15, 3, 3, 1, 1, 1},  {2, 4, 4, 12, 9, 31, 3, 3, 1, 1, 1},
    {1, 4, 4, 6, 13, 29, 3, 3, 2, 1, 1},  {1, 4, 4, 8, 9, 9, 3, 3, 1, 2, 2},
    {1, 8, 8, 3, 15, 30, 3, 3, 1, 1, 1},  {2, 8, 8, 4, 14, 15, 3, 3, 2, 1, 1},
    {1, 8, 8, 2, 5, 5, 3, 3, 1, 4, 4},    {1, 3, 5, 3, 6, 9, 3, 3, 1, 1, 1},
    {1, 5, 3, 3, 9, 8, 3, 3, 2, 2, 2},    {1, 14, 14, 2, 7, 16, 3, 3, 1, 1, 1},
    {2, 16, 16, 2, 9, 14, 3, 3, 1, 1, 1}, {1, 16, 16, 2, 9, 15, 3, 3, 2, 1, 1},
    {1, 32, 16, 2, 7, 7, 3, 3, 1, 1, 1},  {1, 24, 40, 1, 6, 9, 3, 3, 2, 1, 1},
    {1, 4, 8, 4, 1, 1, 3, 3, 1, 1, 1},    {1, 8, 8, 2, 1, 40, 3, 3, 1, 1, 1},
    {1, 4, 4, 4, 40, 1, 3, 3, 2, 1, 1},   {1, 4, 4, 4, 9, 10, 1, 1, 2, 0, 1},
    {1, 6, 4, 2, 8, 9, 2, 3, 3, 2, 1},    {0, 4, 4, 4, 5, 5, 3, 3, 1, 1, 1},
};

}  // namespace

int main() {
  const char* dtypes[] = {"float32", "bfloat16", "float16"};
  const char* layouts[] = {"nchw", "nhwc", "nchw view", "nhwc view"};
  for (int dtype = 0; dtype < 3; ++dtype)
    for (int layout = 0; layout < 4; ++layout) {
      const std::string form = std::string(dtypes[dtype]) + " " + layouts[layout] + " shape ";
      int number = 0;
      for (const Shape& shape : kShapes)
        check_convolution(shape, static_cast<Layout>(layout), static_cast<DType>(dtype),
                          form + std::to_string(number++));
      if (layout > 1) continue;  // these ops take dense images
      for (const auto& [n, c, h, w] :
           {std::array<int64_t, 4>{2, 16, 7, 9}, {1, 3, 5, 11}, {3, 40, 1, 1}, {1, 130, 33, 8}})
        check_images(n, c, h, w, static_cast<Layout>(layout), static_cast<DType>(dtype),
                     form + std::to_string(c));
    }
  std::printf("%s: %lld values, %lld wrong\n", rk::cpu::kernels().isa, static_cast<long long>(checks),
              static_cast<long long>(failures));
  return failures > 0;
}
