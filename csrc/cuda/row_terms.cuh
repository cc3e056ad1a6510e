// Row sums of terms and their gradients, in one pass over every input. A group of threads takes a row: its likelihood, then its KL.
//
// A kernel is compiled for one data type A of the model's tensors and moves the rows of its first term 16 bytes at a time; the term is
// chosen at run time, once a row, and what the data are (as the model's tensors, floats, bytes) once a vector: a kernel for each would
// compile every term again. Rows that cannot be moved so, hold other data types or are double take the kernel of Any, an element at a
// time, and so does a second term, which is small beside the first (a KL of 20 latents beside 784 pixels).
#pragma once

#include "row_plan.cuh"

namespace vae_fast {
namespace cuda {

/// A thread's share of a first term's row: vectors of 16 bytes, one or two at once. Three or four inputs of eight halves would not fit the
/// registers, nor four inputs of a long term: their vectors are half as long.
template <typename A, typename Term>
struct RowShape {
  static constexpr bool kLong = kIsLong<Term>;
  static constexpr int kFull = 16 / static_cast<int>(sizeof(A));
  static constexpr bool kHalved = sizeof(A) == 2 ? Term::kInputs > 2 : Term::kInputs > 3;
  static constexpr int kVector = kHalved ? kFull / 2 : kFull;
  static constexpr int kSteps = kLong ? 1 : vectors_at_once<A>(Term::kInputs);
  static constexpr int kPart = kLong ? kVector : 4;  // elements worked on at once: eight halves do not take the registers of eight floats
};

/// Where a thread works: its place in the row's group, where the row begins in every stream, and its upstream gradient.
template <typename C>
struct RowShare {
  int lane, lanes;
  C g;
  const char* in[kMaxTermInputs];
  char* grad[kMaxTermInputs];
};

VF_DEVICE double coefficient_of(const TermArgs& term) {
  return term.scale_at == nullptr ? term.coefficient : term.coefficient * *term.scale_at;
}

/// The term's parameters, with the one that lies on the device, if one does.
template <typename C>
VF_DEVICE math::TermParams<C> params_of(const TermArgs& term, const TermPlan<C>& plan) {
  math::TermParams<C> params = plan.params;
  if (term.param_at != nullptr) params.at[0] = static_cast<C>(*term.param_at);
  return params;
}

/// Vector `at` of a row, or the one value that is broadcast over it.
template <typename T, int kVector>
VF_DEVICE void load_or_splat(const char* row, bool broadcast, int at, Packed<T, kVector>& to) {
  const T* const p = reinterpret_cast<const T*>(row);
  if (broadcast) {
    splat(p, to);
  } else {
    load(p + static_cast<int64_t>(at) * kVector, to);
  }
}

/// The vectors at[0], at[1], ... of a row of data that holds T.
template <typename T, typename C, int kSteps, int kVector>
VF_DEVICE void load_data_as(const Stream& s, const char* row, const int (&at)[kSteps], C (&v)[kSteps][kVector]) {
  const ByteScale<C> scale(sizeof(T) == 1 ? s.dtype : DType::kBool);
  Packed<T, kVector> raw[kSteps];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) load_or_splat(row, s.inner_stride == 0, at[step], raw[step]);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int e = 0; e < kVector; ++e) v[step][e] = unpack(raw[step], e, scale);
  }
}

/// The same of data that may be bytes, floats or A.
template <typename A, typename C, int kSteps, int kVector>
VF_DEVICE void load_data(const Stream& s, const char* row, const int (&at)[kSteps], C (&v)[kSteps][kVector]) {
  if (size_of(s.dtype) == 1) {
    load_data_as<Byte>(s, row, at, v);
  } else if (sizeof(A) == 2 && s.dtype == DType::kFloat) {
    load_data_as<float>(s, row, at, v);
  } else {
    load_data_as<A>(s, row, at, v);
  }
}

/// Writes elements from `column` on as data of A or floats.
template <typename A, typename C, int N>
VF_DEVICE void store_data(const Stream& s, char* row, int64_t column, const C (&v)[N]) {
  if (sizeof(A) == 2 && s.dtype == DType::kFloat) {
    store(reinterpret_cast<float*>(row) + column, v);
  } else {
    store(reinterpret_cast<A*>(row) + column, v);
  }
}

/// Sum over this thread's share of a row, and the gradients there, 16 bytes at a time.
template <typename Term, typename A, bool kGrad, typename C>
VF_DEVICE double vector_row(const TermArgs& term, const TermPlan<C>& plan, int full_units, const RowShare<C>& share) {
  constexpr bool kIsKl = AllTerms::kIsKl<Term>;
  constexpr int kInputs = Term::kInputs, kVector = RowShape<A, Term>::kVector, kSteps = RowShape<A, Term>::kSteps,
                kPart = RowShape<A, Term>::kPart;
  const math::TermParams<C> params = kIsKl ? params_of(term, plan) : plan.params;  // only a KL's may lie there

  const int units = full_units * (RowShape<A, Term>::kFull / kVector);
  double sum = 0.0;
  for (int u = share.lane; u < units; u += share.lanes * kSteps) {
    // All loads first, so that several are in flight at once; those of the data last, whose type is a branch.
    Packed<A, kVector> raw[kInputs][kSteps];
    int at[kSteps];
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      at[s] = u + s * share.lanes < units ? u + s * share.lanes : units - 1;  // no branch, or the compiler would wait for the loads here
#pragma unroll
      for (int i = kIsKl ? 0 : 1; i < kInputs; ++i) load_or_splat(share.in[i], term.in[i].inner_stride == 0, at[s], raw[i][s]);
    }
    C data[kSteps][kVector];
    if constexpr (!kIsKl) load_data<A>(term.in[0], share.in[0], at, data);
    C run = C(0);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (s > 0 && u + s * share.lanes >= units) continue;
      const int64_t column = static_cast<int64_t>(at[s]) * kVector;
      Packed<A, kVector> grad[kInputs] = {};
#pragma unroll
      for (int part = 0; part < kVector; part += kPart) {
        C v[kInputs][kPart];
#pragma unroll
        for (int e = 0; e < kPart; ++e) {
          if constexpr (!kIsKl) v[0][e] = data[s][part + e];
#pragma unroll
          for (int i = kIsKl ? 0 : 1; i < kInputs; ++i) v[i][e] = unpack<C>(raw[i][s], part + e);
        }
        run += evaluate<Term, kGrad>(params, share.g, 0, kPart, v);
        if constexpr (kGrad) {
          if constexpr (!kIsKl) {
            if (term.grad[0].data != nullptr) store_data<A>(term.grad[0], share.grad[0], column + part, v[0]);
          }
#pragma unroll
          for (int e = 0; e < kPart; e += 2) {
#pragma unroll
            for (int i = kIsKl ? 0 : 1; i < kInputs; ++i) pack(grad[i], part + e, v[i][e], v[i][e + 1]);
          }
        }
      }
      if constexpr (kGrad) {
#pragma unroll
        for (int i = kIsKl ? 0 : 1; i < kInputs; ++i) {
          if (term.grad[i].data != nullptr) store(reinterpret_cast<A*>(share.grad[i]) + column, grad[i]);
        }
      }
    }
    sum += static_cast<double>(run);
  }
  return sum;
}

/// The same for any data types and any layout, an element at a time.
template <typename Terms, int kElements, bool kGrad, typename C>
VF_DEVICE double scalar_row(const TermArgs& term, const TermPlan<C>& plan, const RowShare<C>& share) {
  double sum = 0.0;
  const int64_t step = share.lanes;
  const math::TermParams<C> params = params_of(term, plan);
  for (int64_t c = share.lane; c < term.columns; c += step * kElements) {
    int valid = 1;
#pragma unroll
    for (int e = 1; e < kElements; ++e) valid += c + e * step < term.columns ? 1 : 0;
    C v[kMaxTermInputs][kElements];
#pragma unroll
    for (int i = 0; i < kMaxTermInputs; ++i) {
      if (i >= plan.inputs) continue;
      const int64_t stride = term.in[i].inner_stride;
      load_any<kElements>(share.in[i], term.in[i].dtype, c * stride, step * stride, 0, valid, v[i]);
    }
    sum += static_cast<double>(Terms::call(
        term.term, [&](auto which) { return evaluate<typename decltype(which)::type, kGrad, true>(params, share.g, 0, valid, v); }));
    if constexpr (kGrad) {
#pragma unroll
      for (int i = 0; i < kMaxTermInputs; ++i) {
        if (term.grad[i].data != nullptr) store_any<kElements>(share.grad[i], term.grad[i].dtype, c, step, 0, valid, v[i]);
      }
    }
  }
  return sum;
}

/// This thread's share of a row of `term`.
template <bool kGrad, typename C>
VF_DEVICE RowShare<C> share_of(const TermArgs& term, int inputs, int64_t row, int lane, int lanes) {
  RowShare<C> share;
  share.lane = lane;
  share.lanes = lanes;
  share.g = static_cast<C>(term.row_grad.constant);
  if (kGrad && term.row_grad.data != nullptr) share.g *= static_cast<const C*>(term.row_grad.data)[row * term.row_grad.stride];
  if (kGrad && term.scale_at != nullptr) share.g *= static_cast<C>(*term.scale_at);
#pragma unroll
  for (int i = 0; i < kMaxTermInputs; ++i) {
    share.in[i] = i < inputs ? row_start(term.in[i], row) : nullptr;
    share.grad[i] = kGrad && term.grad[i].data != nullptr ? row_start(term.grad[i], row) : nullptr;
  }
  return share;
}

/// Blocks that shall fit on a multiprocessor, as many as the registers allow without spilling.
template <typename A, bool kGrad>
constexpr int resident() {
  if (sizeof(Compute<A>) == 8) return 1;
  return kGrad && (kIsAny<A> || sizeof(A) == 2) ? 2 : 3;
}

template <typename A, bool kGrad>
__global__ void __launch_bounds__(kThreads, resident<A, kGrad>())
    row_terms_kernel(const __grid_constant__ RowTermsArgs args, const __grid_constant__ RowPlan<Compute<A>> plan) {
  using C = Compute<A>;
  if (args.unless_power_of_two != nullptr && math::is_power_of_two(*static_cast<const C*>(args.unless_power_of_two))) return;
  __shared__ double shared[2][kWarps];
  __shared__ bool last;
  const Place place(plan.groups);
  const int lanes = plan.groups.lanes;
  int round = 0;
  double total = 0.0;                         // of the values of this thread's rows
  __shared__ double part_total[2][kThreads];  // and of their terms: no registers for what is seldom wanted
  if (plan.parts) part_total[0][threadIdx.x] = part_total[1][threadIdx.x] = 0.0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * plan.groups.rows_per_block;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * plan.groups.rows_per_block; first < args.rows; first += stride) {
    const int64_t row = first + place.group;
    const bool active = place.used && row < args.rows;
    double sum = 0.0, second = 0.0;  // of the terms
    if (active) {
      {
        const TermArgs& term = args.term[0];
        const RowShare<C> share = share_of<kGrad, C>(term, plan.term[0].inputs, row, place.lane, lanes);
        if constexpr (kIsAny<A>) {
          sum = scalar_row<AllTerms, sizeof(C) == 8 ? 2 : 4, kGrad>(term, plan.term[0], share);
        } else {
          sum = AllTerms::call(term.term, [&](auto which) {
            return vector_row<typename decltype(which)::type, A, kGrad>(term, plan.term[0], plan.units, share);
          });
        }
      }
      if (args.terms_used > 1) {
        const TermArgs& term = args.term[1];
        const int lane = place.lane - plan.first_lane + (place.lane < plan.first_lane ? lanes : 0);
        const RowShare<C> share = share_of<kGrad, C>(term, plan.term[1].inputs, row, lane, lanes);
        second = scalar_row<KlTerms, 2, kGrad>(term, plan.term[1], share);
      }
    }
    if (!plan.sums) continue;
    if (plan.parts) {  // each by itself over the group first
      sum = combine_group(sum, plan.groups, place, shared, round, Sum());
      second = combine_group(second, plan.groups, place, shared, round, Sum());
      if (active && place.lane == 0) {
        if (args.part_value[0] != nullptr) {
          static_cast<C*>(args.part_value[0])[row] = static_cast<C>(sum);
          static_cast<C*>(args.part_value[1])[row] = static_cast<C>(second);
        }
        part_total[0][threadIdx.x] += sum;
        part_total[1][threadIdx.x] += second;
      }
    }
    double value = coefficient_of(args.term[0]) * sum;
    if (args.terms_used > 1) value += math::weighed(coefficient_of(args.term[1]), second);
    if (!plan.parts) value = combine_group(value, plan.groups, place, shared, round, Sum());
    if (active && place.lane == 0) {
      if (args.value != nullptr) static_cast<C*>(args.value)[row] = static_cast<C>(value);
      total += value;
    }
  }
  if (args.loss == nullptr) return;
  __syncthreads();
  double all[3] = {total, plan.parts ? part_total[0][threadIdx.x] : 0.0, plan.parts ? part_total[1][threadIdx.x] : 0.0};
  sum_grid(all, plan.parts ? 3 : 1, args.partials, args.counter, shared[0], &last);
  if (!last || threadIdx.x != 0) return;
  *static_cast<C*>(args.loss) = static_cast<C>(args.loss_scale * all[0]);
  if (args.part_loss[0] == nullptr) return;
  *static_cast<C*>(args.part_loss[0]) = static_cast<C>(args.part_scale * all[1]);
  *static_cast<C*>(args.part_loss[1]) = static_cast<C>(args.part_scale * all[2]);
}

template <typename A>
cudaError_t launch_row_terms(const RowTermsArgs& args, const RowPlan<Compute<A>>& plan, unsigned grid, bool grad, cudaStream_t stream) {
  if (grad) {
    VF_START((row_terms_kernel<A, true>), grid, kThreads, stream, args, plan);
  } else {
    VF_START((row_terms_kernel<A, false>), grid, kThreads, stream, args, plan);
  }
  return cudaGetLastError();
}

#define VF_INSTANTIATE_ROW_TERMS(A) \
  template cudaError_t launch_row_terms<A>(const RowTermsArgs&, const RowPlan<Compute<A>>&, unsigned, bool, cudaStream_t);

}  // namespace cuda
}  // namespace vae_fast
