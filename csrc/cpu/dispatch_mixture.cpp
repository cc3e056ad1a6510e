// Mixtures: chunks of rows on threads, and the sums over rows in a number of pieces that the shape alone decides, added in order.
#include <vector>

#include "../math/mixture.h"
#include "parallel.h"
#include "table.h"

namespace vae_fast {
namespace cpu {

/// mixture_parameters.cpp
void mixture_finish(const MixtureArgs& m, const MixtureFinishArgs& f, const double* counts, const double* first, const double* second);

namespace {

constexpr int64_t kMostPieces = 64, kLeastPieces = 4;
constexpr int64_t kChunksPerPiece = 4;             // at least
constexpr int64_t kSumsBytes = int64_t{32} << 20;  // of all pieces' sums, unless kLeastPieces need more

/// The parameters of a mixture in padded rows, what is too far bounded, and their largest sizes.
template <typename T>
struct Parameters {
  Aligned means, scale;
  MixtureParameters view;

  Parameters(const MixtureArgs& a, int64_t stride)
      : means(a.components * stride * static_cast<int64_t>(sizeof(T))),
        scale(a.full ? 1 : a.components * stride * static_cast<int64_t>(sizeof(T))) {
    view.means = means.data.get();
    view.farthest_mean = pad(a.means, a.components, a.dims, stride, true, means.data.get());
    view.scale = a.full ? a.scale : scale.data.get();
    if (a.full) {
      const int64_t factors = a.factor_stride == 0 ? 1 : a.components;
      view.largest_scale = pad(a.scale, factors * a.dims, a.dims, 0, false, nullptr);
    } else {
      view.largest_scale = pad(a.scale, a.components, a.dims, stride, false, scale.data.get());
      view.smallest_scale = smallest(static_cast<const T*>(a.scale), a.components * a.dims);
    }
  }

  /// Rows of `columns` values into rows of `stride`, if `to` is not null; returns the largest absolute value, infinity for NaN.
  static double pad(const void* from, int64_t rows, int64_t columns, int64_t stride, bool bound, void* to) {
    const T* in = static_cast<const T*>(from);
    T* out = static_cast<T*>(to);
    T top = T(0);
    for (int64_t r = 0; r < rows; ++r, in += columns) {
      for (int64_t c = 0; c < columns; ++c) {
        const T v = bound ? generic::math::bounded(in[c]) : in[c], size = v < T(0) ? -v : v;
        top = size <= top ? top : size;
        if (out != nullptr) out[c] = v;
      }
      if (out == nullptr) continue;
      for (int64_t c = columns; c < stride; ++c) out[c] = T(0);
      out += stride;
    }
    return static_cast<double>(top);
  }

  static double smallest(const T* of, int64_t count) {
    T least = generic::math::infinity<T>();
    for (int64_t i = 0; i < count; ++i) least = of[i] < least ? of[i] : least;
    return static_cast<double>(least);
  }
};

/// Calls f(r0, r1, scratch) for runs of whole chunks.
template <class F>
void for_chunks(int64_t rows, int64_t rows_per_chunk, int64_t elements_per_row, int64_t scratch_bytes, const F& f) {
  for_blocks(ceil_div(rows, rows_per_chunk), rows_per_chunk * elements_per_row, [&](int64_t begin, int64_t end) {
    const Aligned scratch(scratch_bytes);
    f(begin * rows_per_chunk, end * rows_per_chunk < rows ? end * rows_per_chunk : rows, scratch.data.get());
  });
}

int64_t work_per_row(const MixtureArgs& a) { return a.components * (a.dims + 4) * (a.full ? a.dims : 1); }

template <typename T>
void run_forward(const MixtureForwardArgs& f) {
  const MixtureArgs& a = f.mixture;
  const MixturePlan plan = table().mixture_plan[a.is_double](a);
  const Parameters<T> parameters(a, plan.stride);
  const auto kernel = table().mixture_rows[a.is_double];
  for_chunks(a.rows, plan.rows, work_per_row(a), plan.scratch_bytes,
             [&](int64_t r0, int64_t r1, void* scratch) { kernel(f, plan, parameters.view, r0, r1, scratch); });
}

/// The sums of every piece, and of them all.
class Pieces {
 public:
  Pieces(const MixtureBackwardArgs& b, const MixturePlan& plan) : args_(b), stride_(plan.stride) {
    const MixtureArgs& a = b.mixture;
    factors_ = a.full && a.factor_stride == 0 ? 1 : a.components;
    const bool second = b.second != nullptr || !a.full;
    second_size_ = !second ? 0 : factors_ * (a.full ? a.dims : 1) * stride_;
    size_ = a.components + a.components * stride_ + second_size_;
    // A power of two, which any usual number of threads shares evenly; of enough rows that filling and adding up the sums costs little.
    const int64_t chunks = ceil_div(a.rows, plan.rows);
    while (count_ < kMostPieces && 2 * count_ * kChunksPerPiece <= chunks && (count_ < kLeastPieces || 16 * count_ * size_ <= kSumsBytes)) {
      count_ *= 2;
    }
    if (chunks == 0) count_ = 0;
    all_.assign(static_cast<size_t>(count_ * size_), 0.0);
  }

  int64_t count() const { return count_; }

  MixtureSums of(int64_t piece) {
    MixtureSums s;
    s.counts = all_.data() + piece * size_;
    s.first = s.counts + args_.mixture.components;
    s.second = second_size_ == 0 ? nullptr : s.first + args_.mixture.components * stride_;
    s.second_stride = args_.mixture.factor_stride == 0 ? 0 : args_.mixture.dims * stride_;
    return s;
  }

  /// Adds the pieces up, in their order, into the caller's dense arrays.
  void finish() {
    const MixtureArgs& a = args_.mixture;
    for (int64_t p = 1; p < count_; ++p) {
      const double* from = all_.data() + p * size_;
      for (int64_t i = 0; i < size_; ++i) all_[static_cast<size_t>(i)] += from[i];
    }
    all_.resize(static_cast<size_t>(size_), 0.0);  // no rows: zeros
    const double* from = all_.data();
    copy(from, a.components, 1, 1, args_.counts);
    copy(from + a.components, a.components, a.dims, stride_, args_.first);
    if (args_.second != nullptr) copy(from + a.components * (1 + stride_), factors_ * (a.full ? a.dims : 1), a.dims, stride_, args_.second);
  }

 private:
  static void copy(const double* from, int64_t rows, int64_t columns, int64_t stride, double* to) {
    for (int64_t r = 0; r < rows; ++r, from += stride, to += columns) {
      for (int64_t c = 0; c < columns; ++c) to[c] = from[c];
    }
  }

  const MixtureBackwardArgs& args_;
  int64_t stride_, factors_ = 0, second_size_ = 0, size_ = 0, count_ = 1;
  std::vector<double> all_;
};

template <typename T>
void run_backward(const MixtureBackwardArgs& b) {
  const MixtureArgs& a = b.mixture;
  const MixturePlan plan = table().mixture_plan[a.is_double](a);
  const Parameters<T> parameters(a, plan.stride);
  const auto kernel = table().mixture_backward_rows[a.is_double];
  if (b.counts == nullptr) {
    for_chunks(a.rows, plan.rows, 2 * work_per_row(a), plan.scratch_bytes,
               [&](int64_t r0, int64_t r1, void* scratch) { kernel(b, plan, parameters.view, r0, r1, MixtureSums{}, scratch); });
    return;
  }
  Pieces pieces(b, plan);
  const int64_t chunks = ceil_div(a.rows, plan.rows), count = pieces.count();
  for_blocks(count, count > 0 ? ceil_div(a.rows, count) * 2 * work_per_row(a) : 0, [&](int64_t begin, int64_t end) {
    const Aligned scratch(plan.scratch_bytes);
    for (int64_t p = begin; p < end; ++p) {
      const int64_t r0 = p * chunks / count * plan.rows, r1 = (p + 1) * chunks / count * plan.rows;
      kernel(b, plan, parameters.view, r0, r1 < a.rows ? r1 : a.rows, pieces.of(p), scratch.data.get());
    }
  });
  pieces.finish();
}

constexpr int64_t kMdnRows = 256;

}  // namespace

void mixture(const MixtureForwardArgs& f) { f.mixture.is_double ? run_forward<double>(f) : run_forward<float>(f); }

void mixture_backward(const MixtureBackwardArgs& b) {
  MixtureBackwardArgs run = b;
  const int64_t k = b.mixture.components, pairs = k * b.mixture.dims;
  const bool second = b.finish != nullptr && b.finish->grad_log_std != nullptr;
  std::vector<double> sums(b.finish == nullptr ? 0 : static_cast<size_t>(k + pairs + (second ? pairs : 0)));
  if (b.finish != nullptr) {
    run.counts = sums.data(), run.first = run.counts + k;
    if (second) run.second = run.first + pairs;
  }
  b.mixture.is_double ? run_backward<double>(run) : run_backward<float>(run);
  if (b.finish != nullptr) mixture_finish(b.mixture, *b.finish, run.counts, run.first, run.second);
}

void mdn(const MdnArgs& a) {
  const auto kernel = table().mdn_rows[a.is_double];
  for_chunks(a.rows, kMdnRows, a.components * (a.dims + 1), table().mdn_scratch_bytes[a.is_double](a),
             [&](int64_t r0, int64_t r1, void* scratch) { kernel(a, r0, r1, scratch); });
}

void mdn_backward(const MdnBackwardArgs& b) {
  const MdnArgs& a = b.forward;
  const auto kernel = table().mdn_backward_rows[a.is_double];
  for_chunks(a.rows, kMdnRows, 2 * a.components * (a.dims + 1), table().mdn_scratch_bytes[a.is_double](a),
             [&](int64_t r0, int64_t r1, void* scratch) { kernel(b, r0, r1, scratch); });
}

}  // namespace cpu
}  // namespace vae_fast
