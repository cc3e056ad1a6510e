// Softmaxes over classes that lie along memory: a group of threads per cell reads its logits once, keeping the last piece of them, and goes
// back over the pieces for the gradient. What is given of the classes is one of three: an index, counts, or those that are not zero.
#pragma once

#include "../math/softmax.h"
#include "softmax_pieces.cuh"

namespace vae_fast {
namespace cuda {

using math::Normaliser;

/// log sum e^ of a cell, and of its counts x the sums of x and of x (logit - shift of the top).
template <typename C>
struct CountedSum {
  LogSum<C> logits;
  double counts, products;

  VF_DEVICE static CountedSum zero() { return {LogSum<C>::zero(), 0.0, 0.0}; }
  /// The products relative to another shift.
  VF_DEVICE double products_from(C shift) const {
    return counts == 0.0 ? products : products + counts * (static_cast<double>(logits.shift()) - static_cast<double>(shift));
  }

  VF_DEVICE void rise_to(C above) {
    if (above > logits.top) {
      products = products_from(LogSum<C>::shift_of(above));
      logits.rise_to(above);
    }
  }

  template <int N>
  VF_DEVICE void add_below(const C (&v)[N], const C (&x)[N]) {
    const C from = logits.shift();
    logits.add_below(v, from);
    C run = C(0), all = C(0);
#pragma unroll
    for (int e = 0; e < N; ++e) {
      run += math::counted(x[e], v[e] - from);
      all += x[e];
    }
    products += static_cast<double>(run);
    counts += static_cast<double>(all);
  }
};

/// The sums of the lanes of a cell, relative to one top.
struct CountedSums {
  double total, counts, products;

  template <typename C>
  VF_DEVICE static CountedSums of(const CountedSum<C>& sum, C top) {
    return {sum.logits.sum_from(top), sum.counts, sum.products_from(LogSum<C>::shift_of(top))};
  }
  VF_DEVICE CountedSums operator+(const CountedSums& b) const { return {total + b.total, counts + b.counts, products + b.products}; }
};
VF_DEVICE CountedSums shift_down(const CountedSums& v, int offset) {
  return {shift_down(v.total, offset), shift_down(v.counts, offset), shift_down(v.products, offset)};
}

/// The same without counts.
struct PlainSums {
  double total;

  template <typename C>
  VF_DEVICE static PlainSums of(const LogSum<C>& sum, C top) {
    return {sum.sum_from(top)};
  }
  VF_DEVICE PlainSums operator+(const PlainSums& b) const { return {total + b.total}; }
};
VF_DEVICE PlainSums shift_down(const PlainSums& v, int offset) { return {shift_down(v.total, offset)}; }

struct Add {
  template <typename T>
  VF_DEVICE T operator()(const T& a, const T& b) const {
    return a + b;
  }
};
/// The larger of two, whichever is a number: one instruction in float.
VF_DEVICE float larger(float a, float b) { return ::fmaxf(a, b); }
VF_DEVICE double larger(double a, double b) { return ::fmax(a, b); }
struct Largest {
  template <typename T>
  VF_DEVICE T operator()(T a, T b) const {
    return larger(a, b);
  }
};

/// Of a cell's counts that are stored: the sums of x and x l, and how many columns are below the one before.
struct StoredSum {
  double counts, products;
  int64_t descents;

  VF_DEVICE StoredSum operator+(const StoredSum& b) const { return {counts + b.counts, products + b.products, descents + b.descents}; }
};
VF_DEVICE StoredSum shift_down(const StoredSum& v, int offset) {
  return {shift_down(v.counts, offset), shift_down(v.products, offset),
          __shfl_down_sync(kFullMask, v.descents, static_cast<unsigned>(offset))};
}

template <typename C>
VF_DEVICE C nothing_known() {
  return math::infinity<C>() - math::infinity<C>();
}

/// The counts of one row that are stored. A row of places that cannot be is one stored NaN.
template <typename C>
struct StoredRow {
  const SparseRows& x;
  int64_t begin, end;
  bool damaged;

  VF_DEVICE StoredRow(const SparseRows& of, int64_t row) : x(of), begin(place(of.offsets, row)), end(place(of.offsets, row + 1)) {
    damaged = begin < 0 || end < begin || end > x.entries;
    if (damaged) begin = end = 0;
  }
  VF_DEVICE int64_t place(const void* of, int64_t i) const {
    return x.wide ? static_cast<const int64_t*>(of)[i] : static_cast<const int32_t*>(of)[i];
  }
  VF_DEVICE int64_t column(int64_t i) const { return place(x.columns, i); }
  VF_DEVICE C count(int64_t i) const {
    C v[1];
    load_any<1>(x.values, x.dtype, i, 0, 0, 1, v);
    return v[0];
  }
};

template <typename C>
VF_DEVICE C logit_at(const SoftmaxArgs& a, const Cell& cell, int64_t k) {
  C v[1];
  load_any<1>(cell.logits, a.logits.dtype, k, 0, 0, 1, v);
  return v[0];
}

template <typename C>
VF_DEVICE void store_at(const Stream& stream, char* to, int64_t k, C v) {
  const C all[1] = {v};
  store_any<1>(to, stream.dtype, k, 0, 0, 1, all);
}

/// What a lane adds up of the stored counts of a cell.
template <typename C>
VF_DEVICE StoredSum sum_stored(const SoftmaxArgs& a, const Cell& cell, const StoredRow<C>& row, const Normaliser<C>& norm, int lane,
                               int lanes) {
  StoredSum sum{0.0, 0.0, 0};
  if (row.damaged) sum.counts = sum.products = static_cast<double>(nothing_known<C>());
  for (int64_t i = row.begin + lane; i < row.end; i += lanes) {
    const int64_t k = row.column(i);
    const bool known = k >= 0 && k < a.k;
    const C x = known ? row.count(i) : nothing_known<C>();
    sum.counts += static_cast<double>(x);
    sum.products += static_cast<double>(known ? math::counted(x, norm.log_share(logit_at<C>(a, cell, k))) : x);
    sum.descents += i > row.begin && k < row.column(i - 1) ? 1 : 0;
  }
  return sum;
}

/// The gradients of the logits that stored counts belong to, into scratch: the logits may be written over before they are needed again.
/// Counts of one column are added in their order, whichever of them asks: they are neighbours, or else the whole row is searched.
template <typename C>
VF_DEVICE void differentiate_stored(const SoftmaxArgs& a, const Cell& cell, const StoredRow<C>& row, const Normaliser<C>& norm, C weight,
                                    C g, bool ascending, int lane, int lanes) {
  for (int64_t i = row.begin + lane; i < row.end; i += lanes) {
    const int64_t k = row.column(i);
    if (k < 0 || k >= a.k) continue;
    C p = weight * norm.share(logit_at<C>(a, cell, k));
    int64_t j = row.begin;
    if (ascending) {
      for (j = i; j > row.begin && row.column(j - 1) == k;) --j;
    }
    for (; j < row.end && (!ascending || row.column(j) == k); ++j) {
      if (row.column(j) == k) p += g * row.count(j);
    }
    static_cast<C*>(a.scratch)[i] = p;
  }
}

template <typename C>
VF_DEVICE void store_stored(const SoftmaxArgs& a, const Cell& cell, const StoredRow<C>& row, int lane, int lanes) {
  char* const grad = cell.grad(a);
  for (int64_t i = row.begin + lane; i < row.end; i += lanes) {
    const int64_t k = row.column(i);
    if (k >= 0 && k < a.k) store_at(a.grad, grad, k, static_cast<const C*>(a.scratch)[i]);
  }
}

/// What the lanes of a cell know once all of it has been read.
template <typename C>
struct Found {
  Normaliser<C> norm;
  C counts;  // sum x
};

/// Gradients of a cell's pieces, from the last, which is held, to the first.
template <class Form>
VF_DEVICE void differentiate(const SoftmaxArgs& a, const Cell& cell, Form& held, int64_t last, const Found<typename Form::C>& found,
                             typename Form::C g, int lane, int lanes) {
  using C = typename Form::C;
  const C weight = -g * found.counts;
  const int64_t step = static_cast<int64_t>(lanes) * Form::kHeld;
  char* const grad = a.grad.data != nullptr ? cell.grad(a) : nullptr;
  char* const grad_x = Form::kCounts && a.grad_x.data != nullptr ? row_start(a.grad_x, cell.row) : nullptr;
  for (int64_t from = last; from >= 0; from -= step) {
    if (from != last) held.load(a, cell, from, lane, lanes);
    held.for_held(a, from, lanes, [&](int s, const C(&v)[Form::kWidth], const C(&x)[Form::kWidth]) {
      C p[Form::kWidth];
      if constexpr (Form::kCounts) {
        if (grad_x != nullptr) {
#pragma unroll
          for (int e = 0; e < Form::kWidth; ++e) p[e] = g == C(0) ? C(0) : g * found.norm.log_share(v[e]);
          Form::store(a, a.grad_x, grad_x, from, lane, lanes, s, p);
        }
        if (grad == nullptr) return;
      }
#pragma unroll
      for (int e = 0; e < Form::kWidth; ++e) {
        p[e] = weight * found.norm.share(v[e]);
        if constexpr (Form::kCounts) p[e] += g * x[e];
      }
      Form::store(a, a.grad, grad, from, lane, lanes, s, p);
    });
  }
}

template <class Form, Target kTarget>
__global__ void __launch_bounds__(kThreads, Form::kBlocks)
    softmax_rows_kernel(const __grid_constant__ SoftmaxArgs args, const __grid_constant__ Groups groups) {
  using C = typename Form::C;
  using Total = std::conditional_t<Form::kCounts, CountedSum<C>, LogSum<C>>;
  using Sums = std::conditional_t<Form::kCounts, CountedSums, PlainSums>;
  __shared__ C tops[2][kWarps], first_top[kWarps];
  __shared__ Sums sums[2][kWarps], first_sums[kWarps];
  __shared__ StoredSum stored_shared[2][kWarps], first_stored[kWarps];
  const Place place(groups);
  int round = 0;
  const int64_t cells = args.outer * args.inner, items = args.rows * cells, units = Form::units(args);
  const int64_t step = static_cast<int64_t>(groups.lanes) * Form::kHeld;
  const int64_t last = units > 0 ? (units - 1) / step * step : 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * groups.rows_per_block;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * groups.rows_per_block; first < items; first += stride) {
    const int64_t item = first + place.group;
    const bool active = place.used && item < items;
    const Cell cell(args, active ? item : first, cells);
    int64_t index = 0;
    C logit = C(0), g = upstream_of<C>(args.row_grad, cell.row);
    if constexpr (kTarget == Target::kIndex) {
      index = args.index[active ? item : first];
      if (index >= 0 && index < args.k) {
        logit = logit_at<C>(args, cell, index);
      } else {
        index = -1;
        logit = g = nothing_known<C>();
      }
    }

    Form held;
    Total total = Total::zero();
    if (active) {
      for (int64_t from = 0; from < units; from += step) {
        held.load(args, cell, from, place.lane, groups.lanes);
        // The largest of the piece first: its sums then rise once.
        C above = -math::infinity<C>();
        held.for_held(args, from, groups.lanes, [&](int, const C(&v)[Form::kWidth], const C(&)[Form::kWidth]) {
#pragma unroll
          for (int e = 0; e < Form::kWidth; ++e) above = larger(above, v[e]);
        });
        total.rise_to(above);
        held.for_held(args, from, groups.lanes, [&](int, const C(&v)[Form::kWidth], const C(&x)[Form::kWidth]) {
          if constexpr (Form::kCounts) {
            total.add_below(v, x);
          } else {
            total.add_below(v, total.shift());
          }
        });
      }
    }
    C top;
    if constexpr (Form::kCounts) {
      top = total.logits.top;
    } else {
      top = total.top;
    }
    // The largest of all lanes first, so that one exponential brings each lane's sums to it.
    top = from_first(combine_group(top, groups, place, tops, round, Largest()), groups, place, first_top);
    Sums all = combine_group(Sums::of(total, top), groups, place, sums, round, Add());
    all = from_first(all, groups, place, first_sums);
    Found<C> found{{LogSum<C>::shift_of(top), math::log(static_cast<C>(all.total))}, C(1)};
    if constexpr (Form::kCounts) found.counts = static_cast<C>(all.counts);

    double value = 0.0;
    if constexpr (kTarget == Target::kIndex) value = static_cast<double>(found.norm.log_share(logit));
    if constexpr (kTarget == Target::kDense) value = all.products - math::counted(all.counts, static_cast<double>(found.norm.log_total));
    if constexpr (kTarget == Target::kSparse) {
      const StoredRow<C> stored(args.sparse, cell.row);
      StoredSum sum{0.0, 0.0, 0};
      if (active) sum = sum_stored(args, cell, stored, found.norm, place.lane, groups.lanes);
      sum = combine_group(sum, groups, place, stored_shared, round, Add());
      value = sum.products;
      if (args.grad.data != nullptr) {
        sum = from_first(sum, groups, place, first_stored);
        found.counts = static_cast<C>(sum.counts);
        if (active) {
          differentiate_stored(args, cell, stored, found.norm, -g * found.counts, g, sum.descents == 0, place.lane, groups.lanes);
        }
        __syncthreads();  // of the block's logits all that others need has been read
        if (active) differentiate(args, cell, held, last, found, g, place.lane, groups.lanes);
        __syncthreads();  // what stored counts belong to is written over
        if (active) store_stored(args, cell, stored, place.lane, groups.lanes);
      }
    }
    if (active && place.lane == 0 && args.value != nullptr) {
      static_cast<C*>(cells == 1 ? args.value : args.scratch)[item] = static_cast<C>(value);
    }
    if constexpr (kTarget != Target::kSparse) {
      if (!active || (args.grad.data == nullptr && args.grad_x.data == nullptr)) continue;
      differentiate(args, cell, held, last, found, g, place.lane, groups.lanes);
      if (kTarget == Target::kIndex && Form::owns(index, place.lane, groups.lanes) && index >= 0) {
        store_at(args.grad, cell.grad(args), index, g - g * found.norm.share(logit));  // the lane that has just written there
      }
    }
  }
}

}  // namespace cuda
}  // namespace vae_fast
