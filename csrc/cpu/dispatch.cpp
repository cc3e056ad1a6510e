// Picks the instruction set, splits the work among threads; partial sums are added in a fixed order.
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "../math/half.h"
#include "../math/term.h"
#include "parallel.h"
#include "table.h"

namespace vae_fast {
namespace cpu {
namespace {

constexpr int64_t kLongRowPiece = 32768;  // columns of a part of a row beyond kLongRow

void store_value(void* to, bool is_double, int64_t at, double v) {
  if (is_double) {
    static_cast<double*>(to)[at] = v;
  } else {
    static_cast<float*>(to)[at] = static_cast<float>(v);
  }
}

/// The table of an instruction set; of "", the best this processor runs.
const KernelTable& named(const std::string& name) {
  const char* const* available = isa_available();
  std::string names;
  for (int i = 0; available[i] != nullptr; ++i) {
    names += (i > 0 ? ", " : "") + std::string(available[i]);
    if (!name.empty() && name != available[i]) continue;
#if defined(__x86_64__)
    if (std::string(available[i]) == "avx512") return table_avx512();
    if (std::string(available[i]) == "avx2") return table_avx2();
#endif
    return table_baseline();
  }
  throw std::runtime_error("VAE_FAST_ISA=" + name + ": expected one of " + names + " on this processor");
}

std::atomic<const KernelTable*>& in_use() {
  static std::atomic<const KernelTable*> chosen = [] {
    const char* wanted = std::getenv("VAE_FAST_ISA");
    return &named(wanted == nullptr ? "" : wanted);
  }();
  return chosen;
}

}  // namespace

const char* const* isa_available() {
  static const char* names[4] = {};
  static const bool filled = [] {
    int n = 0;
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq")) {
      names[n++] = "avx512";
    }
    if (avx2) names[n++] = "avx2";
#endif
    names[n++] = "baseline";
    return true;
  }();
  (void)filled;
  return names;
}

const KernelTable& table() { return *in_use().load(std::memory_order_relaxed); }

void use_isa(const char* name) { in_use().store(&named(name), std::memory_order_relaxed); }

namespace {
/// A term with the numbers that its pointers hold.
void read_numbers(TermArgs& term) {
  if (term.param_at != nullptr) term.param[0] = *term.param_at;
  if (term.scale_at != nullptr) {
    term.coefficient *= *term.scale_at;
    term.row_grad.constant *= *term.scale_at;
  }
}

bool sums_gradients(const RowTermsArgs& a) {
  bool found = false;
  for (int t = 0; t < a.terms_used; ++t) {
    for (const Stream& s : a.term[t].grad) found |= s.summed;
  }
  return found;
}

bool is_power_of_two(const void* at, bool is_double) {
  using generic::math::is_power_of_two;
  return is_double ? is_power_of_two(*static_cast<const double*>(at)) : is_power_of_two(*static_cast<const float*>(at));
}
}  // namespace

void row_terms(const RowTermsArgs& given) {
  if (given.unless_power_of_two != nullptr && is_power_of_two(given.unless_power_of_two, given.is_double)) return;
  RowTermsArgs a = given;
  for (int t = 0; t < a.terms_used; ++t) read_numbers(a.term[t]);
  if (a.terms_used == 1 && a.term[0].columns == 1 && a.loss == nullptr) {  // nothing is summed
    const auto term_elements = table().term_elements[a.is_double];
    for_rows(a.rows, 1, [&](int64_t r0, int64_t r1) { term_elements(a.term[0], a.value, r0, r1); });
    return;
  }
  const auto term_rows = table().term_rows[a.is_double];
  int64_t columns = 0, longest = 0;
  for (int t = 0; t < a.terms_used; ++t) {
    columns += a.term[t].columns;
    longest = a.term[t].columns > longest ? a.term[t].columns : longest;
  }
  const bool sums = a.value != nullptr || a.loss != nullptr;
  // What becomes of the sums of a row's terms: its value, which is returned.
  const auto take = [&](int64_t row, const double (&sum)[2]) {
    double value = 0.0;
    for (int t = 0; t < a.terms_used; ++t) {
      value += generic::math::weighed(a.term[t].coefficient, sum[t]);
      if (a.part_value[t] != nullptr) store_value(a.part_value[t], a.is_double, row, sum[t]);
    }
    if (a.value != nullptr) store_value(a.value, a.is_double, row, value);
    return value;
  };
  struct Totals {
    double loss = 0.0, part[2] = {};
    void add(double value, const double (&sum)[2]) { loss += value, part[0] += sum[0], part[1] += sum[1]; }
  } totals;

  if (longest >= kLongRow) {
    std::vector<double> value[2];
    for (int t = 0; t < 2; ++t) value[t].assign(static_cast<size_t>(a.rows), 0.0);
    for (int t = 0; t < a.terms_used; ++t) {
      const TermArgs& term = a.term[t];
      const int64_t pieces = ceil_div(term.columns, kLongRowPiece);
      std::vector<double> partial(static_cast<size_t>(a.rows * pieces), 0.0);
      for_blocks(a.rows * pieces, kLongRowPiece, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t row = i / pieces, c0 = i % pieces * kLongRowPiece;
          const int64_t c1 = c0 + kLongRowPiece < term.columns ? c0 + kLongRowPiece : term.columns;
          term_rows(term, row, row + 1, c0, c1, &partial[static_cast<size_t>(i)]);
        }
      });
      for (size_t i = 0; i < partial.size(); ++i) value[t][i / static_cast<size_t>(pieces)] += partial[i];
    }
    for (int64_t r = 0; sums && r < a.rows; ++r) {
      const double sum[2] = {value[0][static_cast<size_t>(r)], value[1][static_cast<size_t>(r)]};
      totals.add(take(r, sum), sum);
    }
  } else {
    const RowBlocks cut(a.rows, columns);
    const int64_t step = cut.step, together = sums_gradients(a) ? cut.together : 1;
    std::vector<Totals> partial(a.loss != nullptr ? static_cast<size_t>(cut.blocks) : 0);
    for_blocks(ceil_div(cut.blocks, together), together * step * columns, [&](int64_t begin, int64_t end) {
      double acc[2][RowBlocks::kMaxStep];
      const int64_t last = end * together < cut.blocks ? end * together : cut.blocks;
      for (int64_t b = begin * together; b < last; ++b) {
        const int64_t r0 = b * step, r1 = r0 + step < a.rows ? r0 + step : a.rows;
        for (int t = 0; t < 2; ++t) {
          for (int64_t r = r0; r < r1; ++r) acc[t][r - r0] = 0.0;
        }
        for (int t = 0; t < a.terms_used; ++t) term_rows(a.term[t], r0, r1, 0, a.term[t].columns, sums ? acc[t] : nullptr);
        Totals total;
        for (int64_t r = r0; sums && r < r1; ++r) {
          const double sum[2] = {acc[0][r - r0], acc[1][r - r0]};
          total.add(take(r, sum), sum);
        }
        if (a.loss != nullptr) partial[static_cast<size_t>(b)] = total;
      }
    });
    for (const Totals& p : partial) totals.add(p.loss, p.part);
  }
  if (a.loss != nullptr) store_value(a.loss, a.is_double, 0, totals.loss * a.loss_scale);
  for (int t = 0; t < a.terms_used; ++t) {
    if (a.part_loss[t] != nullptr) store_value(a.part_loss[t], a.is_double, 0, totals.part[t] * a.part_scale);
  }
}

namespace {
/// (seed, offset) as the kernels take them.
void read_seed(const PhiloxSeed& p, uint64_t& seed, uint64_t& offset) {
  seed = p.seed_at != nullptr ? static_cast<uint64_t>(*p.seed_at) : p.seed;
  offset = p.offset + (p.offset_at != nullptr ? static_cast<uint64_t>(*p.offset_at) : 0);
}
}  // namespace

void sample(const SampleArgs& a) {
  uint64_t seed, offset;
  read_seed(a.philox, seed, offset);
  if (a.rng_state != nullptr) {
    a.rng_state[0] = static_cast<int64_t>(seed);
    a.rng_state[1] = static_cast<int64_t>(offset);
  }
  const auto sample_rows = table().sample_rows[a.is_double];
  for_rows(a.rows, a.columns * a.samples, [&](int64_t r0, int64_t r1) {
    constexpr int64_t kPiece = 512;
    double acc[kPiece];
    for (int64_t r = r0; r < r1; r += kPiece) {
      const int64_t end = r + kPiece < r1 ? r + kPiece : r1;
      for (int64_t i = 0; i < end - r; ++i) acc[i] = 0.0;
      sample_rows(a, seed, offset, r, end, acc);
      for (int64_t i = r; a.with_kl && i < end; ++i) store_value(a.kl_value, a.is_double, i, acc[i - r]);
    }
  });
}

void sample_backward(const SampleBackwardArgs& a) {
  uint64_t seed, offset;
  read_seed(a.philox, seed, offset);
  const auto rows = table().sample_backward_rows[a.is_double];
  for_rows(a.rows, a.columns * a.samples, [&](int64_t r0, int64_t r1) { rows(a, seed, offset, r0, r1); });
}

namespace {
/// Outer rows where inner is 1, else columns of every outer row.
template <class F>
void for_sums(const LogSumExpArgs& a, const F& f) {
  if (a.inner == 1) {
    for_rows(a.outer, a.k, [&](int64_t o0, int64_t o1) { f(o0, o1, int64_t{0}, int64_t{1}); });
    return;
  }
  constexpr int64_t kColumns = 512;
  const int64_t pieces = ceil_div(a.inner, kColumns);
  for_blocks(a.outer * pieces, kColumns * a.k, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t o = b / pieces, i0 = b % pieces * kColumns;
      f(o, o + 1, i0, i0 + kColumns < a.inner ? i0 + kColumns : a.inner);
    }
  });
}
}  // namespace

void logsumexp(const LogSumExpArgs& a) {
  const auto kernel = table().logsumexp[a.is_double];
  for_sums(a, [&](int64_t o0, int64_t o1, int64_t i0, int64_t i1) { kernel(a, o0, o1, i0, i1); });
}

void logsumexp_backward(const LogSumExpBackwardArgs& b) {
  const auto kernel = table().logsumexp_backward[b.forward.is_double];
  for_sums(b.forward, [&](int64_t o0, int64_t o1, int64_t i0, int64_t i1) { kernel(b, o0, o1, i0, i1); });
}

void sum(const SumArgs& a) {
  constexpr int64_t kPiece = 65536;  // values of one partial sum
  const auto add_rows = table().add_rows[a.is_double];
  const int64_t inner = a.inner > 0 ? a.inner : 1, step = inner < kPiece ? kPiece / inner : 1, pieces = a.k > 0 ? ceil_div(a.k, step) : 1;
  const int64_t bytes = a.is_double ? 8 : 4;
  std::vector<double> partial(static_cast<size_t>(a.outer * pieces * a.inner), 0.0);
  for_blocks(a.outer * pieces, step * inner, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t o = b / pieces, r0 = b % pieces * step, r1 = r0 + step < a.k ? r0 + step : a.k;
      add_rows(static_cast<const char*>(a.a) + (o * a.k + r0) * a.inner * bytes, r1 - r0, a.inner, partial.data() + b * a.inner);
    }
  });
  for_blocks(a.outer * a.inner, pieces, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      const double* first = partial.data() + at / a.inner * pieces * a.inner + at % a.inner;
      double total = 0.0;
      for (int64_t p = 0; p < pieces; ++p) total += first[p * a.inner];
      store_value(a.out, a.out_is_double, at, total * a.scale);
    }
  });
}

double fma_probe(int64_t iterations, float* sink) {
  const int threads = at::get_num_threads();
  std::vector<float> sinks(static_cast<size_t>(threads), 0.0f);
  std::vector<double> flops(static_cast<size_t>(threads), 0.0);
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) flops[static_cast<size_t>(i)] = table().fma_probe(iterations, &sinks[static_cast<size_t>(i)]);
  });
  double total = 0.0;
  for (size_t i = 0; i < flops.size(); ++i) {
    total += flops[i];
    *sink += sinks[i];
  }
  return total;
}

void scale(void* data, DType dtype, int64_t count, double by) {
  const auto kernel = table().scale;
  constexpr int64_t kPiece = 8192;
  for_blocks(ceil_div(count, kPiece), kPiece,
             [&](int64_t begin, int64_t end) { kernel(data, dtype, begin * kPiece, end * kPiece < count ? end * kPiece : count, by); });
}

namespace {
template <typename T>
T factor(const RowGrad& by, const T* factors, int64_t row) {
  return static_cast<T>(by.constant) * (factors == nullptr ? T(1) : factors[row * by.stride]);
}

template <typename T>
void scale_rows_of(T* data, int64_t rows, int64_t columns, const RowGrad& by, const T* factors) {
  for_rows(rows, columns, [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r) {
      const T f = factor(by, factors, r);
      T* const row = data + r * columns;
#pragma omp simd
      for (int64_t i = 0; i < columns; ++i) row[i] = f == T(0) ? T(0) : row[i] * f;
    }
  });
}

/// The same of rows of one number each.
template <typename T>
void scale_elements(T* data, int64_t rows, const RowGrad& by, const T* factors) {
  const T constant = static_cast<T>(by.constant);
  for_rows(rows, 1, [&](int64_t r0, int64_t r1) {
#pragma omp simd
    for (int64_t r = r0; r < r1; ++r) {
      const T f = constant * factors[r];
      data[r] = f == T(0) ? T(0) : data[r] * f;
    }
  });
}
}  // namespace

bool is_uniform(const RowGrad& by, int64_t rows, bool is_double) {
  if (by.data == nullptr || by.stride == 0) return true;
  int64_t others = 0;
  const auto count = [&](const auto* g) {
    for (int64_t r = 0; r < rows && others == 0; ++r) others += g[r * by.stride] != g[0] ? 1 : 0;
  };
  is_double ? count(static_cast<const double*>(by.data)) : count(static_cast<const float*>(by.data));
  return others == 0;
}

void scale_rows(void* data, DType dtype, int64_t rows, int64_t columns, const RowGrad& by) {
  const bool is_double = dtype == DType::kDouble;
  const auto rows_of = [&](auto* to, const auto* factors) {
    if (is_uniform(by, rows, is_double)) {
      const double f = rows > 0 ? static_cast<double>(factor(by, factors, 0)) : 1.0;
      if (f == 0.0) return scale_rows_of(to, 1, rows * columns, by, factors);
      return f == 1.0 ? void() : scale(to, dtype, rows * columns, f);
    }
    return columns == 1 && by.stride == 1 ? scale_elements(to, rows, by, factors) : scale_rows_of(to, rows, columns, by, factors);
  };
  is_double ? rows_of(static_cast<double*>(data), static_cast<const double*>(by.data))
            : rows_of(static_cast<float*>(data), static_cast<const float*>(by.data));
}

}  // namespace cpu
}  // namespace vae_fast
