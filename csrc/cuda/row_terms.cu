// Host side of the row sums: which kernel takes a call, and how its threads share the rows.
#include <atomic>
#include <utility>

#include "row_plan.cuh"

namespace vae_fast {
namespace cuda {

int processors() {
  constexpr int kMaxDevices = 64;
  static std::atomic<int> known[kMaxDevices] = {};
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device < 0 || device >= kMaxDevices) return 1;
  int count = known[device].load(std::memory_order_relaxed);
  if (count == 0) {
    if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess || count < 1) return 1;
    known[device].store(count, std::memory_order_relaxed);
  }
  return count;
}

namespace {
Tuning chosen;
}

const Tuning& tuning() { return chosen; }

cudaError_t set_tuning(const Tuning& to) {
  const bool power_of_two = (to.lanes & (to.lanes - 1)) == 0;
  if (to.lanes != 0 && (to.lanes < kWarp / 4 || to.lanes > kThreads || !power_of_two)) return cudaErrorInvalidValue;
  if (to.blocks_per_processor < 0 || to.blocks_per_processor > 1024 || to.chunk_bytes < 0) return cudaErrorInvalidValue;
  chosen = to;
  return cudaSuccess;
}

namespace {

/// Whether the first term can go through the kernel of A.
template <typename A>
bool fits_vectors(const TermArgs& term) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(A));
  if (term.columns % kVector != 0 || term.columns / kVector > (1 << 30)) return false;
  const int inputs = AllTerms::inputs(term.term);
  for (int i = 0; i < inputs; ++i) {
    const Stream &in = term.in[i], &grad = term.grad[i];
    const bool data = i == 0 && !is_kl(term.term), floats = data && vector_access<float, kVector>(in);
    if (!floats && !(data && vector_access<Byte, kVector>(in)) && !vector_access<A, kVector>(in)) return false;
    if (grad.data == nullptr) continue;
    if (!(floats ? vector_access<float, kVector>(grad) : vector_access<A, kVector>(grad)) || grad.inner_stride == 0) return false;
  }
  return true;
}

/// Calls f(A()) with the type of the kernel that takes the call.
template <typename F>
auto with_kernel(const RowTermsArgs& args, F&& f) {
  if (args.is_double) return f(Any<double>());
  const TermArgs& term = args.term[0];
  const DType model = term.in[1].dtype;
#define VF_TRY(A) \
  if (holds<A>(model) && fits_vectors<A>(term)) return f(A());
  VF_TRY(float)
  VF_TRY(BFloat16)
  VF_TRY(Half)
#undef VF_TRY
  return f(Any<float>());
}

template <typename A>
RowPlan<Compute<A>> plan_of(const RowTermsArgs& args) {
  using C = Compute<A>;
  RowPlan<C> plan;
  int64_t units = args.term[0].columns;
  int per_lane = 4;
  if constexpr (!kIsAny<A>) {
    constexpr int kVector = 16 / static_cast<int>(sizeof(A));
    units /= kVector;
    plan.units = static_cast<int32_t>(units);
    per_lane = vectors_at_once<A>(AllTerms::inputs(args.term[0].term));
  }
  // Where the KL is the longer term, it decides: its lanes take 4 elements each.
  const int64_t second = args.terms_used > 1 ? ceil_div(args.term[1].columns, 4) : 0;
  plan.groups = Groups::choose(args.rows, units > second ? units : second, per_lane);
  plan.first_lane = static_cast<int32_t>(units % plan.groups.lanes);
  for (int t = 0; t < args.terms_used; ++t) {
    plan.term[t].params = AllTerms::params<C>(args.term[t]);
    plan.term[t].inputs = AllTerms::inputs(args.term[t].term);
  }
  plan.sums = args.value != nullptr || args.loss != nullptr;
  plan.parts = args.part_value[0] != nullptr || args.part_loss[0] != nullptr;
  return plan;
}

unsigned grid_of(const RowTermsArgs& args, const Groups& groups) {
  const unsigned grid = capped_grid(ceil_div(args.rows, groups.rows_per_block));
  return grid == 0 && args.loss != nullptr ? 1 : grid;  // the sum over no rows is still to be written
}

}  // namespace

int64_t row_terms_partials(const RowTermsArgs& args) {
  return with_kernel(args, [&](auto a) {
    const auto plan = plan_of<decltype(a)>(args);
    return static_cast<int64_t>(grid_of(args, plan.groups)) * (plan.parts ? 3 : 1);
  });
}

namespace {
__device__ uint32_t loss_counters[kLossCounters];
}

cudaError_t loss_counter(int which, uint32_t** counter) {
  if (which < 0 || which >= kLossCounters) return cudaErrorInvalidValue;
  void* first = nullptr;
  if (const cudaError_t error = cudaGetSymbolAddress(&first, loss_counters); error != cudaSuccess) return error;
  *counter = static_cast<uint32_t*>(first) + which;
  return cudaSuccess;
}

cudaError_t row_terms(const RowTermsArgs& args, cudaStream_t stream) {
  if (args.rows < 0 || args.terms_used < 1 || args.terms_used > 2) return cudaErrorInvalidValue;
  if (args.loss != nullptr && (args.partials == nullptr || args.counter == nullptr)) return cudaErrorInvalidValue;
  for (const auto& [parts, whole] : {std::pair(args.part_value, args.value), std::pair(args.part_loss, args.loss)}) {
    if ((parts[0] == nullptr) != (parts[1] == nullptr)) return cudaErrorInvalidValue;
    if (parts[0] != nullptr && (whole == nullptr || args.terms_used != 2)) return cudaErrorInvalidValue;
  }
  bool grad = false;
  for (int t = 0; t < args.terms_used; ++t) {
    if (args.term[t].term < 0 || args.term[t].term >= AllTerms::kCount || (t == 1 && !is_kl(args.term[t].term)))
      return cudaErrorInvalidValue;
    for (const Stream& s : args.term[t].grad) grad = grad || s.data != nullptr;
    for (const Stream& s : args.term[t].in) {
      if (s.dtype == DType::kInt16 || s.dtype == DType::kInt32 || s.dtype == DType::kInt64) return cudaErrorInvalidValue;
    }
  }
  return with_kernel(args, [&](auto a) {
    using A = decltype(a);
    const RowPlan<Compute<A>> plan = plan_of<A>(args);
    const unsigned grid = grid_of(args, plan.groups);
    if (grid == 0 || (!grad && !plan.sums)) return cudaSuccess;
    return launch_row_terms<A>(args, plan, grid, grad, stream);
  });
}

}  // namespace cuda
}  // namespace vae_fast
