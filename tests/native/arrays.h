// Tensors for the checks: values in double on this side, and their image in the memory of the implementation under test.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "../../csrc/kernels.h"
#include "../../csrc/math/mixture.h"

namespace native {

using vae_fast::DType;
using vae_fast::Stream;

/// The farthest number that a mixture reads.
inline double farthest(bool is_double) {
  namespace math = vae_fast::generic::math;
  return is_double ? math::mixture_far<double>() : static_cast<double>(math::mixture_far<float>());
}

/// Where an implementation's tensors live.
struct Memory {
  virtual ~Memory() = default;
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* p) = 0;
  virtual void write(void* to, const void* from, size_t bytes) = 0;
  virtual void read(void* to, const void* from, size_t bytes) = 0;
};

/// A block of an implementation's memory, exactly as long as asked for, so that a sanitizer sees any access beyond it.
class Block {
 public:
  Block(Memory& memory, size_t bytes) : memory_(&memory), data_(memory.allocate(bytes > 0 ? bytes : 1)), bytes_(bytes) {}
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() { memory_->release(data_); }
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  void write(const void* from) { memory_->write(data_, from, bytes_); }
  void read(void* to) const { memory_->read(to, data_, bytes_); }

 private:
  Memory* memory_;
  void* data_;
  size_t bytes_;
};

inline size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat:
      return 4;
    case DType::kDouble:
      return 8;
    case DType::kHalf:
    case DType::kBFloat16:
      return 2;
    default:
      return 1;
  }
}

/// v rounded to `bits` bits of precision, subnormal below 2^least (to nearest, ties to even).
inline double round_to(double v, int bits, int least) {
  if (v == 0.0 || !std::isfinite(v)) return v;
  const int exponent = std::max(std::ilogb(v), least);
  const double unit = std::ldexp(1.0, exponent - bits + 1);
  return std::nearbyint(v / unit) * unit;
}

/// The value that `dtype` holds for v; bytes are given as the number a kernel reads.
inline double rounded(double v, DType dtype) {
  switch (dtype) {
    case DType::kDouble:
      return v;
    case DType::kFloat:
      return static_cast<double>(static_cast<float>(v));
    case DType::kHalf:
      return round_to(v, 11, -14);
    case DType::kBFloat16:
      return round_to(v, 8, -126);
    case DType::kUInt8:
      return std::nearbyint(std::min(1.0, std::max(0.0, v)) * 255.0) / 255.0;
    case DType::kBool:
      return v >= 0.5 ? 1.0 : 0.0;
    case DType::kByte:
      return std::nearbyint(std::min(255.0, std::max(0.0, v)));
    default:
      return std::nearbyint(v);
  }
}

/// Whether a result near v may come out as infinity.
inline bool overflows(double v, DType dtype) { return dtype == DType::kHalf && std::fabs(v) > 65000.0; }

/// Writes a value that rounded() returned.
inline void encode(double v, DType dtype, unsigned char* to) {
  if (dtype == DType::kDouble) {
    std::memcpy(to, &v, 8);
  } else if (dtype == DType::kFloat) {
    const float f = static_cast<float>(v);
    std::memcpy(to, &f, 4);
  } else if (dtype == DType::kBFloat16) {
    const float f = static_cast<float>(v);
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    const uint16_t h = static_cast<uint16_t>(bits >> 16 | (std::isnan(v) ? 0x40u : 0u));
    std::memcpy(to, &h, 2);
  } else if (dtype == DType::kHalf) {
    uint16_t h = std::signbit(v) ? 0x8000 : 0;
    const double a = std::fabs(v);
    if (std::isnan(v)) {
      h |= 0x7e00;
    } else if (a >= 65520.0) {
      h |= 0x7c00;
    } else if (a > 0.0) {
      const int exponent = std::max(std::ilogb(a), -14);
      const int significand = static_cast<int>(std::ldexp(a, 10 - exponent));  // with its leading 1, unless subnormal
      h = static_cast<uint16_t>(h | (significand + ((exponent + 14) << 10)));
    }
    std::memcpy(to, &h, 2);
  } else {
    *to = static_cast<unsigned char>(std::nearbyint(dtype == DType::kUInt8 ? v * 255.0 : v));
  }
}

inline double decode(const unsigned char* from, DType dtype) {
  if (dtype == DType::kDouble) {
    double v;
    std::memcpy(&v, from, 8);
    return v;
  }
  if (dtype == DType::kFloat) {
    float v;
    std::memcpy(&v, from, 4);
    return static_cast<double>(v);
  }
  uint16_t h;
  std::memcpy(&h, from, 2);
  if (dtype == DType::kBFloat16) {
    const uint32_t bits = static_cast<uint32_t>(h) << 16;
    float v;
    std::memcpy(&v, &bits, 4);
    return static_cast<double>(v);
  }
  const int exponent = h >> 10 & 31, significand = h & 0x3ff;
  const double sign = (h & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 31) return significand != 0 ? std::nan("") : sign * HUGE_VAL;
  return sign * (exponent == 0 ? std::ldexp(significand, -24) : std::ldexp(1024 + significand, exponent - 25));
}

/// How the rows of a tensor lie.
enum class Layout {
  kDense,
  kPadded,         // rows further apart than they are long, by a number that suits vectors
  kOddPadded,      // ... by one element
  kShifted,        // the first element is not aligned
  kSharedRow,      // every row is the same memory
  kSharedColumns,  // one value per row
  kScalar,         // one value
  kTwoBatchDims,   // rows of a transposed batch
  kBroadcastDim,   // two batch dimensions, one of them broadcast
};
constexpr int kLayouts = 9;

/// rows x columns of data type `dtype` in memory of some layout. value(r, c) is what a kernel reads there.
class Tensor {
 public:
  Tensor(Memory& memory, DType dtype, int64_t rows, int64_t columns, Layout layout = Layout::kDense)
      : dtype_(dtype), rows_(rows), columns_(columns) {
    stream_.dtype = dtype;
    vae_fast::RowIndex& index = stream_.row;
    index.stride[0] = columns;
    int64_t length = rows * columns;
    switch (layout) {
      case Layout::kDense:
        break;
      case Layout::kPadded:
        index.stride[0] = columns + 16;
        length = rows > 0 ? (rows - 1) * (columns + 16) + columns : 0;
        break;
      case Layout::kOddPadded:
        index.stride[0] = columns + 1;
        length = rows > 0 ? (rows - 1) * (columns + 1) + columns : 0;
        break;
      case Layout::kShifted:
        first_ = 1;
        ++length;
        break;
      case Layout::kSharedRow:
        index.stride[0] = 0;
        length = columns;
        break;
      case Layout::kSharedColumns:
        stream_.inner_stride = 0;
        index.stride[0] = 1;
        length = rows;
        break;
      case Layout::kScalar:
        stream_.inner_stride = 0;
        index.stride[0] = 0;
        length = 1;
        break;
      case Layout::kTwoBatchDims:
      case Layout::kBroadcastDim: {
        const int64_t inner = rows % 3 == 0 ? 3 : rows % 2 == 0 ? 2 : 1, outer = inner > 0 ? rows / inner : 0;
        index.dims = 2;
        index.size[0] = outer;
        index.size[1] = inner;
        index.stride[0] = columns;
        index.stride[1] = layout == Layout::kTwoBatchDims ? columns * outer : 0;
        if (layout == Layout::kBroadcastDim) length = outer * columns;
        break;
      }
    }
    image_.assign(static_cast<size_t>(length) * size_of(dtype), 0xff);  // NaN in every floating type
    block_ = std::make_unique<Block>(memory, image_.size());
    stream_.data = static_cast<unsigned char*>(block_->data()) + static_cast<size_t>(first_) * size_of(dtype);
    numbers_.assign(static_cast<size_t>(length), 0.0);
    upload();
  }

  /// Fills it with draw(), rounded to the data type, and uploads it.
  template <class Draw>
  void fill(Draw&& draw) {
    for (size_t i = 0; i < numbers_.size(); ++i) {
      numbers_[i] = rounded(draw(), dtype_);
      encode(numbers_[i], dtype_, &image_[i * size_of(dtype_)]);
    }
    upload();
  }
  void set(int64_t r, int64_t c, double v) {
    const size_t i = static_cast<size_t>(at(r, c));
    numbers_[i] = rounded(v, dtype_);
    encode(numbers_[i], dtype_, &image_[i * size_of(dtype_)]);
  }
  void upload() { block_->write(image_.data()); }
  void download() { block_->read(image_.data()); }

  const Stream& stream() const { return stream_; }
  void* data() const { return stream_.data; }
  DType dtype() const { return dtype_; }
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  double value(int64_t r, int64_t c) const { return numbers_[static_cast<size_t>(at(r, c))]; }
  /// What a kernel wrote, after download().
  double result(int64_t r, int64_t c) const { return decode(&image_[static_cast<size_t>(at(r, c)) * size_of(dtype_)], dtype_); }
  const std::vector<unsigned char>& image() const { return image_; }

 private:
  int64_t at(int64_t r, int64_t c) const { return first_ + stream_.row(r) + c * stream_.inner_stride; }

  DType dtype_;
  int64_t rows_, columns_, first_ = 0;
  Stream stream_;
  std::vector<unsigned char> image_;
  std::vector<double> numbers_;
  std::unique_ptr<Block> block_;
};

/// Random numbers for a check.
struct Random {
  std::mt19937_64 engine;
  explicit Random(uint64_t seed) : engine(seed) {}
  double uniform(double low = 0.0, double high = 1.0) { return std::uniform_real_distribution<double>(low, high)(engine); }
  double normal() { return std::normal_distribution<double>()(engine); }
  int64_t below(int64_t n) { return std::uniform_int_distribution<int64_t>(0, n - 1)(engine); }
  bool coin(double p = 0.5) { return uniform() < p; }
  template <class T>
  T one_of(std::initializer_list<T> list) {
    return *(list.begin() + below(static_cast<int64_t>(list.size())));
  }
};

}  // namespace native
