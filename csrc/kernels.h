// The kernels, by device: csrc/cpu and csrc/cuda implement the same functions over the same plain arguments. Sizes and strides count
// elements and are 64-bit throughout. Nothing here allocates.
#pragma once

#include "sparse_rows.h"
#include "term_args.h"

#if defined(__CUDACC__) || defined(VF_WITH_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace vae_fast {

/// value[r] = sum over terms of coefficient * sum over columns of f(inputs); loss = loss_scale * sum over r of value[r]; the gradient
/// streams that are not null receive row_grad * df/dinput. One pass over every input; a gradient may lie over its own input. On request
/// the sums of each of two terms are written beside them, without its coefficient.
struct RowTermsArgs {
  int32_t terms_used = 1;  // 1, or 2: a likelihood and a KL of the same rows
  TermArgs term[2];
  int64_t rows = 0;
  bool is_double = false;  // compute and result type: double, else float
  void* value = nullptr;   // (rows,), may be null
  void* loss = nullptr;    // (), may be null
  double loss_scale = 1.0;
  // Of each of two terms, before its coefficient, both or neither: (rows,) beside value; () beside loss, times part_scale; may be null.
  void* part_value[2] = {};
  void* part_loss[2] = {};
  double part_scale = 1.0;
  // CUDA only, with loss: row_terms_partials of them, and a counter that is 0 and is left at 0.
  double* partials = nullptr;
  uint32_t* counter = nullptr;
  // A number in the compute type, read when the kernel runs: if it is a power of two, nothing is done (see scale_unless_one). May be null.
  const void* unless_power_of_two = nullptr;
};

/// (seed, offset) by value, or added to what the pointers hold at run time (a CUDA graph's or a saved state).
struct PhiloxSeed {
  uint64_t seed = 0, offset = 0;
  const int64_t* seed_at = nullptr;
  const int64_t* offset_at = nullptr;
};

/// z = mu + std * noise; element i of z, in its logical order (sample, row, column), takes noise i.
struct SampleArgs {
  int64_t samples = 1, rows = 0, columns = 0;
  bool is_double = false;
  int32_t form = 0;  // ScaleForm of `scale`
  Stream mu, scale;  // rows x columns
  Bound bound;       // of scale; that of `kl` is not read
  Stream noise;      // (samples * rows) x columns; data null: Philox
  PhiloxSeed philox;
  int64_t* rng_state = nullptr;  // (2,): receives (seed, offset); may be null
  float* drawn = nullptr;        // CPU only: receives the noise drawn, dense, for a backward pass that reads it; may be null
  Stream z;                      // (samples * rows) x columns, dense
  bool with_kl = false;
  TermArgs kl;               // its inputs 0 and 1 are mu and scale, its rows and columns these
  void* kl_value = nullptr;  // (rows,)
};

/// grad_mu = sum over samples of grad_z; grad_scale = dstd/dscale * sum over samples of grad_z * noise; plus kl's own gradients.
struct SampleBackwardArgs {
  int64_t samples = 1, rows = 0, columns = 0;
  bool is_double = false;
  int32_t form = 0;
  Stream mu, scale, noise;
  Bound bound;  // of scale; that of `kl` is not read
  PhiloxSeed philox;
  Stream grad_z;               // data null: no gradient reached z
  Stream grad_mu, grad_scale;  // may be null
  bool with_kl = false;
  TermArgs kl;  // row_grad: upstream gradient of kl; its grad[0], grad[1] are null (they are summed into grad_mu, grad_scale)
};

/// out[o, i] = log sum_k w[o, k, i] exp(a[o, k, i]); a is dense (outer, k, inner).
struct LogSumExpArgs {
  int64_t outer = 0, k = 0, inner = 0;
  bool is_double = false;
  const void* a = nullptr;
  DType dtype = DType::kFloat;
  const void* w = nullptr;  // compute type; null: all ones
  int64_t w_stride[3] = {0, 0, 0};
  void* out = nullptr;  // compute type, dense (outer, inner): written forward, read backward
};

/// grad_a = g w e^(a - out), grad_w = g e^(a - out), both dense (outer, k, inner), either may be null.
struct LogSumExpBackwardArgs {
  LogSumExpArgs forward;
  const void* grad_out = nullptr;  // compute type
  int64_t grad_out_stride[2] = {0, 0};
  void* grad_a = nullptr;  // dtype of a
  void* grad_w = nullptr;  // compute type
};

/// A mixture of Gaussians over rows of `dims` values. With t = x - mean_k and u = t * scale_k (diagonal: element by element; full: the row
/// vector t times the upper triangular factor),
///
///   l_k = constant_k + constant_low_k + e_k,    e_k = -sum_d (u_d^2 - 1) / 2,    log p(x) = baseline + log sum_k e^{l_k}
///
/// u^2 - 1 sums to little for a row that component k explains: its float sum then loses nothing to the sum's own size, however many
/// dimensions there are. The constants are relative to a baseline for the same reason, and in two parts, since those of a narrow and of a
/// wide component are far apart in many dimensions: l_k - shift is ((constant_k - shift) + constant_low_k) + e_k (math/mixture.h). What is
/// finite in x and the means but beyond mixture_far is read as that, so that no difference overflows.
struct MixtureArgs {
  int64_t rows = 0, components = 0, dims = 0;
  bool is_double = false;
  bool full = false;                   // scale holds factors, else reciprocal standard deviations
  bool products = false;               // diagonal floats with a centre, CUDA: the quadratic multiplied out about it, on tensor cores
  Stream x;                            // rows x dims
  const void* constant = nullptr;      // (components,), compute type; -inf for a weight of zero
  const void* constant_low = nullptr;  // (components,), compute type: what the rounding of `constant` left; null: nothing
  const void* means = nullptr;         // (components, dims), compute type
  const void* scale = nullptr;         // (components, dims), or (components or 1, dims, dims) row-major with zeros below the diagonal
  const void* transposed = nullptr;    // full, gradients of x only: the factors transposed
  int64_t factor_stride = 0;           // full: elements from one factor to the next; 0: all share one (tied)
  const double* baseline = nullptr;    // ()
  const void* x_scale = nullptr;       // (dims,), compute type, powers of two: what x is multiplied by when read and grad_x when written
  // (dims,), near most rows; diagonal floats, CUDA only: means near it take an operation less. Null: none is known.
  const float* centre = nullptr;
  // (rows, components), dense, compute type: log weights of each row, added to its l_k. Null: none.
  const void* row_weights = nullptr;
  // (components, dims), compute type, diagonal only: log2 of w_k / sigma_kd relative to `dim_baseline`'s share of the dimension, for
  //   sum_d log p(x_d) = dim_baseline + sum_d log sum_k 2^{l_kd},    l_kd = dim_constant_kd + (row weight_k - u_d^2 / 2) log2(e).
  // Null: it is not wanted.
  const void* dim_constant = nullptr;
  const double* dim_baseline = nullptr;  // ()
};

/// The parameters of a diagonal mixture as the kernels read them, from its logits and log standard deviations: log w = log softmax(logits)
/// and what MixtureArgs says of scale, constant, constant_low, baseline and centre. All of (components, dims) or (components,), dense.
struct MixtureParametersArgs {
  int64_t components = 0, dims = 0;
  bool is_double = false;
  bool spherical = false;         // log_std is (components,)
  const void* logits = nullptr;   // compute type, as all that is not double; null: every log weight is 0
  const void* log_std = nullptr;  // (components, dims) or (components,)
  const void* means = nullptr;    // for centre alone
  double* log_weights = nullptr;  // written, as what follows
  double* log_det = nullptr;      // -sum_d log_std
  void* scale = nullptr;          // (components, dims)
  void* constant = nullptr;
  void* constant_low = nullptr;
  double* baseline = nullptr;   // ()
  float* centre = nullptr;      // (dims,): sum_k w_k mean_k; null: not wanted
  uint32_t* counter = nullptr;  // CUDA only: 0, and left at 0
};

/// The gradients of a diagonal mixture's parameters, from the sums of MixtureBackwardArgs: counts_k - w_k sum_j counts_j of the logits,
/// first scale of the means, second - counts of the log standard deviations. Compute type; null: not wanted.
struct MixtureFinishArgs {
  bool spherical = false;               // grad_log_std is (components,), summed over dims
  bool centred = true;                  // false: counts are in second already
  const double* log_weights = nullptr;  // null: grad_logits is counts
  void* grad_logits = nullptr;          // (components,)
  void* grad_means = nullptr;           // (components, dims)
  void* grad_log_std = nullptr;         // (components, dims) or (components,)
  uint32_t* counter = nullptr;          // CUDA only: 0, and left at 0
};

/// Any output may be null. shift, which is max_k l_k to rounding, and total = sum_k e^{l_k - shift} are what the backward pass needs of a
/// row: with them the responsibilities it recomputes sum to one, whatever the size of log p.
struct MixtureForwardArgs {
  MixtureArgs mixture;
  void* log_prob = nullptr;          // (rows,), compute type, as all of these
  void* shift = nullptr;             // (rows,)
  void* total = nullptr;             // (rows,)
  void* responsibilities = nullptr;  // (rows, components): e^{l_k - shift} / total, 0 where no component explains the row
  void* factorized = nullptr;        // (rows,): sum_d log p(x_d); with it dim_normaliser
  void* dim_normaliser = nullptr;    // (2, dims, rows), on CUDA (2, rows, dims): shift and total of every dimension
};

/// With weights q_nk = grad_n e^{l_nk - shift_n} / total_n, or those given:
///   grad_x_n = -sum_k q_nk (du/dx)^T u      counts_k = sum_n q_nk
///   first_k  = sum_n q_nk u_nk              second_k = sum_n q_nk u_nk^2           (diagonal)
///   first_k  = sum_n q_nk t_nk              second_k = sum_n q_nk t_nk t_nk^T      (full: its upper triangle; one for all if tied)
/// The sums over rows are in a fixed order. In units of the standard deviation, the diagonal ones neither over- nor
/// underflow where a variance would. With dim_normaliser q_nk becomes q_nkd = q_nk + factorized_grad_n 2^{l_nkd - shift_nd} / total_nd, of
/// which counts_k has the sum over dimensions (q_nk counted once) and second_kd is sum_n q_nkd (u^2 - 1).
struct MixtureBackwardArgs {
  MixtureArgs mixture;
  const void* weights = nullptr;  // (rows, components), dense, compute type; null: from the four below
  const void* shift = nullptr;
  const void* total = nullptr;
  RowGrad grad;
  Stream grad_x;                              // dense rows; data null: not wanted
  double* counts = nullptr;                   // (components,); null: no sums are wanted
  double* first = nullptr;                    // (components, dims)
  double* second = nullptr;                   // (components, dims), or (components or 1, dims, dims); null: not wanted
  const MixtureFinishArgs* finish = nullptr;  // diagonal only: what the sums are for; counts, first and second are then null
  const void* dim_normaliser = nullptr;       // with it no weights are given
  RowGrad factorized_grad;
  // CUDA only: mixture_scratch_bytes, and (rows, components), dense, compute type: the gradient of the logits of each row's weights,
  // q_nk - w_nk sum_j q_nj, where q_nk has what counts_k sums over rows. Null: not wanted.
  void* scratch = nullptr;
  void* grad_row_logits = nullptr;
  // CPU only
  double* row_counts = nullptr;  // (rows, components), dense: what counts_k sums over rows; null: not wanted
  void* log_prob = nullptr;      // (rows,), compute type: written, and `shift` and `total` are not read but found in the same pass
};

/// A mixture whose parameters come with each row (a mixture density network's): log sum_k w_k N(y; mean_k, diag sigma_k^2) with
/// w = softmax(logits) and log sigma = max(scale, floor).
struct MdnArgs {
  int64_t rows = 0, components = 0, dims = 0;
  bool is_double = false;
  bool shared_scale = false;  // one scale per component, else one per component and dimension
  double floor = 0.0;         // least log sigma; -infinity for none
  Stream y;                   // rows x dims
  Stream logits;              // rows x components
  Stream means;               // rows x (components * dims)
  Stream scale;               // rows x (components * dims), or rows x components
  void* log_prob = nullptr;   // (rows,), compute type: written forward, may be read backward
};

/// Gradient streams are dense; data null: not wanted. That of a scale at or below the floor is zero.
struct MdnBackwardArgs {
  MdnArgs forward;
  RowGrad grad;
  Stream grad_y, grad_logits, grad_means, grad_scale;
};

/// Mixtures over cells. A row has outer x inner cells; its parameters lie (outer, parameters, inner), where parameter j of component k is
/// number j * components + k, and its data (outer, data, inner). value[r] = the sum over the cells of row r of
///
///   log sum_k w_k e^{f(data; parameters of k)},    w = softmax of parameters 0 .. components - 1
///
/// with f the term's; the gradients receive row_grad times the derivative. Everything in one pass.
struct GroupArgs {
  int32_t term = 0;  // its place in group_table.h
  int64_t rows = 0, outer = 1, inner = 1, components = 0;
  bool is_double = false;
  double number[kMaxGroupNumbers] = {};  // as the term's struct names them
  Stream x;                              // rows x (outer * data * inner)
  Stream params;                         // rows x (outer * parameters * inner), dense
  void* value = nullptr;                 // (rows,), compute type; may be null
  Stream grad;                           // of the parameters; data null: not wanted
  RowGrad row_grad;
  double* partials = nullptr;  // CUDA only, with value: group_terms_partials of them
};

/// What is given of the classes: the index of one, a count of each, the counts that are not zero (CSR).
enum class Target : int32_t { kIndex, kDense, kSparse };

/// A softmax over the k classes of each cell. A row has outer x inner cells; its logits lie (outer, k, inner). With l = logits - log sum
/// e^,
///
///   value[r] = the sum over the cells of row r of l[x] (kIndex), or of sum_k x_k l_k, 0 times anything being 0 (kDense, kSparse: one cell)
///
/// The gradient of the logits is row_grad times x_k - (sum x) e^{l_k}, that of dense data row_grad times l_k.
struct SoftmaxArgs {
  Target target = Target::kIndex;
  int64_t rows = 0, outer = 1, inner = 1, k = 0;
  bool is_double = false;
  Stream logits;                   // rows x (outer * k * inner), dense
  const int64_t* index = nullptr;  // kIndex: rows x (outer * inner), dense, each in [0, k); on CUDA another one makes its cell NaN
  Stream x;                        // kDense: rows x k
  SparseRows sparse;               // kSparse: rows x k
  void* value = nullptr;           // (rows,), compute type; may be null
  Stream grad, grad_x;             // data null: not wanted; grad_x of kDense alone; grad may lie over logits
  RowGrad row_grad;
  void* scratch = nullptr;  // CUDA only: softmax_scratch of them, in the compute type
};

/// out[o, i] = scale * the sum over k of a[o, k, i], dense; summed in double, in an order that the shape alone decides.
struct SumArgs {
  int64_t outer = 0, k = 0, inner = 0;
  bool is_double = false;  // a holds double, else float
  const void* a = nullptr;
  bool out_is_double = false;
  void* out = nullptr;
  double scale = 1.0;
};

namespace cpu {
void row_terms(const RowTermsArgs& args);
void sample(const SampleArgs& args);
void sample_backward(const SampleBackwardArgs& args);
void logsumexp(const LogSumExpArgs& args);
void logsumexp_backward(const LogSumExpBackwardArgs& args);
void mixture_parameters(const MixtureParametersArgs& args);
void mixture(const MixtureForwardArgs& args);
void mixture_backward(const MixtureBackwardArgs& args);
void mdn(const MdnArgs& args);
void mdn_backward(const MdnBackwardArgs& args);
/// Floating-point operations of a loop of multiply-adds on every thread, `iterations` rounds each; *sink is written.
double fma_probe(int64_t iterations, float* sink);
void group_terms(const GroupArgs& args);
void softmax_terms(const SoftmaxArgs& args);
void sum(const SumArgs& args);
/// data *= scale (in double)
void scale(void* data, DType dtype, int64_t count, double scale);
/// Row r of a dense float (double: dtype) matrix times by[r], where 0 leaves nothing, not of what is out of range either.
void scale_rows(void* data, DType dtype, int64_t rows, int64_t columns, const RowGrad& by);
/// Whether all rows have the same upstream gradient.
bool is_uniform(const RowGrad& by, int64_t rows, bool is_double);
}  // namespace cpu

#if defined(__CUDACC__) || defined(VF_WITH_CUDA)
namespace cuda {
/// What the host chooses for kernels, held at other values to compare them; 0 leaves the choice to the host.
struct Tuning {
  int32_t lanes = 0;                 // of rows that take several passes: 8, 16, 32, 64, 128 or 256
  int32_t blocks_per_processor = 0;  // the most, of a grid
  int64_t chunk_bytes = 0;           // of a mixture's responsibilities at once
};
/// For all calls from now on; not while another thread makes one.
cudaError_t set_tuning(const Tuning& to);
/// Partial sums that row_terms needs: one per thread block of the loss, and of each of its parts.
int64_t row_terms_partials(const RowTermsArgs& args);
cudaError_t row_terms(const RowTermsArgs& args, cudaStream_t stream);
/// Counters of the current device, in its static memory and 0 before the first kernel: what runs at the same time takes different ones.
constexpr int kLossCounters = 1024;
cudaError_t loss_counter(int which, uint32_t** counter);
cudaError_t sample(const SampleArgs& args, cudaStream_t stream);
cudaError_t sample_backward(const SampleBackwardArgs& args, cudaStream_t stream);
cudaError_t logsumexp(const LogSumExpArgs& args, cudaStream_t stream);
cudaError_t logsumexp_backward(const LogSumExpBackwardArgs& args, cudaStream_t stream);
cudaError_t mixture_parameters(const MixtureParametersArgs& args, cudaStream_t stream);
cudaError_t mixture(const MixtureForwardArgs& args, cudaStream_t stream);
/// Bytes of scratch that mixture_backward needs for the sums (0: none).
int64_t mixture_scratch_bytes(const MixtureBackwardArgs& args);
cudaError_t mixture_backward(const MixtureBackwardArgs& args, cudaStream_t stream);
cudaError_t mdn(const MdnArgs& args, cudaStream_t stream);
cudaError_t mdn_backward(const MdnBackwardArgs& args, cudaStream_t stream);
/// Numbers of scratch that softmax_terms needs (0: none).
int64_t softmax_scratch(const SoftmaxArgs& args);
cudaError_t softmax_terms(const SoftmaxArgs& args, cudaStream_t stream);
/// Partial sums that group_terms needs: one per tile of a row's cells.
int64_t group_terms_partials(const GroupArgs& args);
cudaError_t group_terms(const GroupArgs& args, cudaStream_t stream);
/// As on the CPU; *flops is known at once.
cudaError_t fma_probe(int64_t iterations, float* sink, double* flops, cudaStream_t stream);
/// data *= *scale unless *scale is 1, or, with `only_exactly`, is no power of two, so that products of 16-bit data would be rounded: the
/// decision is made on the device, *scale is float (double if is_double).
cudaError_t scale_unless_one(void* data, DType dtype, int64_t count, const void* scale, bool is_double, bool only_exactly,
                             cudaStream_t stream);
}  // namespace cuda
#endif

}  // namespace vae_fast
