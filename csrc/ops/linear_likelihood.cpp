// The last layer of a decoder and its Bernoulli or multinomial likelihood, some rows at a time: neither the logits nor their gradient are
// ever whole.
#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>

#include <algorithm>

#include "autograd.h"
#include "csr.h"
#include "device.h"
#include "layout.h"
#include "product.h"
#include "softmax.h"

namespace vae_fast {
namespace ops {
namespace {

/// What the logits of one chunk may take. On the CPU they stay in the cache between the product, the likelihood and the gradient's
/// products; on a GPU a chunk is large enough to keep every multiprocessor busy.
constexpr int64_t kChunkBytes[2] = {int64_t{4} << 20, int64_t{32} << 20};
/// Of long rows a chunk holds more: it reads the weight twice, and reads and writes the weight's gradient, which 64 rows of 20,000 logits
/// do not pay for. From 32 MiB on malloc takes the pages of every chunk from the system (benchmarks/NOTES.md).
constexpr int64_t kLeastRows = 64, kWantedRows = 256, kMostBytes = int64_t{32} << 20;

/// The arguments as plain rows: `outer` times `inner` rows of h, and `inner` rows of x, which every repetition shares.
struct LinearProblem {
  Tensor x, h, weight, bias;  // x (inner, columns), undefined if it is CSR; h (outer * inner, features)
  at::DimVector batch;
  int64_t outer = 1, inner = 1, columns, chunk;
  bool multinomial;
  int32_t term = 0;  // of the Bernoulli likelihoods
  ParamList params;
  bool is_double;
  SoftmaxArgs counts;  // of the multinomial one: where CSR data lie
  std::vector<Tensor> keep;

  /// `x_grad`: x gets a gradient, of its own shape: rows that its owner has expanded are not one row then.
  LinearProblem(const Tensor& given_x, const Tensor& given_h, const Tensor& w, const OptionalTensor& b, string_view name,
                Numbers given_params, bool x_grad = false)
      : weight(w),
        columns(w.size(0)),
        multinomial(name == "multinomial"),
        params(given_params),
        is_double(given_h.scalar_type() == at::kDouble) {
    TORCH_CHECK_VALUE(multinomial || name.substr(0, 16) == "bernoulli_logits", "term='", name,
                      "': expected 'multinomial' or one over Bernoulli logits");
    if (!multinomial) term = term_index(name);
    TORCH_CHECK_VALUE(given_x.device() == given_h.device() && w.device() == given_h.device(), "tensors on ", given_x.device(), ", ",
                      given_h.device(), " and ", w.device(), ": expected one device");
    if (b) bias = *b;
    batch = at::infer_size_dimvector(batch_of(given_x.sizes(), 1), batch_of(given_h.sizes(), 1));
    const auto full = [&](const Tensor& t) {
      at::DimVector shape(batch);
      shape.push_back(t.size(-1));
      return t.expand(shape);
    };
    const int64_t rows = c10::multiply_integers(batch);
    h = full(given_h).reshape({rows, given_h.size(-1)});
    if (given_x.layout() == at::kSparseCsr) {
      read_csr(given_x);
      return;
    }
    x = full(given_x);
    const auto shared = [&] {                       // the first of the dimensions of x that are left
      const int64_t own = given_x.dim() - x.dim();  // its place in given_x
      return x_grad ? own < 0 || given_x.size(own) == 1 : x.stride(0) == 0 || x.size(0) == 1;
    };
    while (x.dim() > 2 && x.size(0) > 0 && shared()) {
      outer *= x.size(0);
      x = x.select(0, 0);
    }
    inner = c10::multiply_integers(x.sizes().slice(0, x.dim() - 1));
    x = x.reshape({inner, columns});
    cut();
  }

  int64_t rows() const { return outer * inner; }

 private:
  /// Rows of a CSR matrix, which every row of h before the last batch dimension shares.
  void read_csr(const Tensor& csr) {
    TORCH_CHECK_VALUE(multinomial && !batch.empty() && batch.back() == csr.size(0), "x is sparse with ", csr.size(0),
                      " rows, h has batch shape ", at::IntArrayRef(batch),
                      ": expected counts of a multinomial, with as many rows as the last batch dimension");
    inner = csr.size(0);
    outer = inner > 0 ? h.size(0) / inner : 1;
    counts.target = Target::kSparse;
    counts.sparse = sparse_rows(csr.values().to(compute_type(is_double)), csr.crow_indices(), csr.col_indices(), inner, columns, keep);
    cut();
  }

  void cut() {
    const int64_t row_bytes = std::max<int64_t>(1, columns) * static_cast<int64_t>(h.element_size());
    // Of one size, but for a row: the last as well.
    const int64_t wanted = std::clamp(kMostBytes / row_bytes, kLeastRows, kWantedRows);
    const int64_t most = std::max(wanted, kChunkBytes[h.is_cuda() ? 1 : 0] / row_bytes);
    const int64_t chunks = std::max<int64_t>(1, (inner + most - 1) / most);
    chunk = std::max<int64_t>(1, (inner + chunks - 1) / chunks);
  }
};

/// Gradients, whole, and which are wanted. That of the weight begins with the first chunk, where it has its dtype.
struct Gradients {
  Tensor x, h, weight, bias;  // of the problem's rows; x, weight and bias in the compute type
  bool of_x = false, of_h = false, of_weight = false, of_bias = false;

  Gradients(const LinearProblem& p, const Mask& mask)
      : of_x(mask[0]), of_h(mask[1]), of_weight(mask[2]), of_bias(mask.size() > 3 && mask[3]) {
    const auto options = p.h.options().dtype(compute_type(p.is_double));
    if (of_x) x = at::zeros(p.x.sizes(), options);
    if (of_h) h = at::empty(p.h.sizes(), p.h.options());
    if (of_weight && (p.rows() == 0 || p.h.scalar_type() != compute_type(p.is_double))) weight = at::zeros(p.weight.sizes(), options);
    if (of_bias) bias = at::zeros({p.columns}, options);
  }
  explicit Gradients() = default;

  bool any() const { return of_x || of_h || of_weight || of_bias; }
};

/// What the likelihood of a chunk writes, beside its gradient over the logits themselves.
struct ChunkResults {
  void* value;    // may be null
  Tensor x_grad;  // undefined: not wanted
  bool with_grad;
  RowGrad upstream;
};

void bernoulli_chunk(const LinearProblem& p, const Tensor& x, const Tensor& logits, const ChunkResults& results) {
  const Layout layout(logits.sizes(), 1, logits, false);
  const Tensor inputs[2] = {x, logits};
  Term term = prepare_term(inputs, p.term, layout, p.is_double, p.params);
  if (results.with_grad) term.args.grad[1] = dense_stream(logits, p.columns);
  if (results.x_grad.defined()) term.args.grad[0] = dense_stream(results.x_grad, p.columns);
  term.args.row_grad = results.upstream;
  RowTermsArgs args;
  args.term[0] = term.args;
  args.rows = logits.size(0);
  args.is_double = p.is_double;
  args.value = results.value;
  launch_row_terms(logits, args);
}

void multinomial_chunk(const LinearProblem& p, int64_t x_begin, const Tensor& x, const Tensor& logits, const ChunkResults& results) {
  SoftmaxArgs args = p.counts;
  std::vector<Tensor> keep;
  if (x.defined()) {
    args.target = Target::kDense;
    args.x = stream_of(x, Layout(logits.sizes(), 1, logits, true), p.is_double, keep);
  } else {
    args.sparse.offsets = static_cast<const char*>(args.sparse.offsets) + x_begin * (args.sparse.wide ? 8 : 4);
  }
  args.rows = logits.size(0);
  args.k = p.columns;
  args.is_double = p.is_double;
  args.logits = dense_stream(logits, p.columns);
  if (results.with_grad) args.grad = args.logits;
  if (results.x_grad.defined()) args.grad_x = dense_stream(results.x_grad, p.columns);
  args.row_grad = results.upstream;
  args.value = results.value;
  launch_softmax(logits, args);
}

/// Rows [begin, begin + n) of h beside rows [x_begin, x_begin + n) of x: their values, if wanted, and their share of the gradients.
void run_chunk(const LinearProblem& p, int64_t x_begin, int64_t begin, int64_t n, const RowGrad& upstream, Tensor& value,
               Gradients& grads) {
  const Tensor h = p.h.narrow(0, begin, n);
  Tensor x = p.x.defined() ? p.x.narrow(0, x_begin, n) : Tensor();
  if (x.defined() && (p.multinomial ? x.scalar_type() != compute_type(p.is_double) : x.scalar_type() == at::kDouble && !p.is_double)) {
    x = x.to(compute_type(p.is_double));  // counts are the numbers that they are
  }
  const OptionalTensor bias = p.bias.defined() ? OptionalTensor(p.bias) : std::nullopt;
  // Their rounding is far below what it moves the likelihood and its gradient by; but for the gradient of x, which is the logits
  // themselves.
  Tensor logits = linear_product(h, p.weight, bias, grads.of_x ? 0 : std::numeric_limits<int64_t>::max()).contiguous();

  Tensor values = value.defined() ? value.narrow(0, begin, n) : Tensor();
  Tensor x_grad = grads.of_x ? at::empty(logits.sizes(), grads.x.options()) : Tensor();
  ChunkResults results{value.defined() ? values.data_ptr() : nullptr, x_grad, grads.any(), RowGrad()};
  if (grads.any()) {
    results.upstream = upstream;
    if (upstream.data != nullptr) {
      results.upstream.data = static_cast<const char*>(upstream.data) + begin * upstream.stride * (p.is_double ? 8 : 4);
    }
  }
  if (p.multinomial) {
    multinomial_chunk(p, x_begin, x, logits, results);
  } else {
    bernoulli_chunk(p, x, logits, results);
  }

  if (grads.of_x) grads.x.narrow(0, x_begin, n).add_(x_grad);
  if (grads.of_h) linear_product(logits, p.weight.t(), std::nullopt, kLongestSum, grads.h.narrow(0, begin, n));
  if (grads.of_weight) add_outer_product(grads.weight, logits, h);
  if (grads.of_bias) grads.bias.add_(ordered_sum_to(logits.to(grads.bias.scalar_type()), grads.bias.sizes()));
}

void run(const LinearProblem& p, const RowGrad& upstream, Tensor value, Gradients& grads) {
  for (int64_t o = 0; o < p.outer; ++o) {
    for (int64_t begin = 0; begin < p.inner; begin += p.chunk) {
      run_chunk(p, begin, o * p.inner + begin, std::min(p.chunk, p.inner - begin), upstream, value, grads);
    }
  }
}

/// In the shapes and dtypes of the arguments, those that the mask marks.
Tensors finished(const LinearProblem& p, Gradients grads, const Tensor& x, const Tensor& h, const OptionalTensor& bias) {
  Tensors some;
  if (grads.of_x) {
    at::DimVector shape(p.batch);
    const int64_t dims = static_cast<int64_t>(shape.size());
    int64_t left = p.outer;
    for (int64_t d = 0; d < dims && left > 1; ++d) left /= shape[d], shape[d] = 1;
    shape.push_back(p.columns);
    some.push_back(to_input(grads.x.view(shape), x));
  }
  if (grads.of_h) {
    at::DimVector shape(p.batch);
    shape.push_back(h.size(-1));
    some.push_back(to_input(grads.h.view(shape), h));
  }
  if (grads.of_weight) some.push_back(grads.weight.to(p.weight.scalar_type()));
  if (grads.of_bias) some.push_back(grads.bias.to(bias->scalar_type()));
  return some;
}

Tensor empty_values(const LinearProblem& p) { return at::empty({p.rows()}, p.h.options().dtype(compute_type(p.is_double))); }

struct LinearLikelihoodState {
  std::string term;
  ParamList params;
  bool mean;
  Mask mask;
  Tensors grads;  // of a sum: what its forward pass has already written
};

OptionalTensor bias_of(TensorList inputs) { return inputs.size() > 3 ? OptionalTensor(inputs[3]) : std::nullopt; }

struct LinearLikelihoodOp {
  using State = LinearLikelihoodState;
  static constexpr bool kSavesResult = false;

  static Tensor forward(bool plain, TensorList t, const State& s) {
    return VF_CALL(plain, linear_likelihood, t[0], t[1], t[2], bias_of(t), s.term, s.params);
  }
  static Tensors backward(bool plain, const Tensor& grad, TensorList t, const State& s) {
    return VF_CALL(plain, linear_likelihood_backward, grad, t[0], t[1], t[2], bias_of(t), s.term, s.params, s.mask);
  }
};

struct LinearLikelihoodSumFunction : torch::autograd::Function<LinearLikelihoodSumFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, TensorList inputs, const LinearLikelihoodState& given) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward(inputs.vec());
    LinearLikelihoodState& s = carry(ctx, given);
    // A float16 gradient is not divided by the batch size before it is multiplied by a loss's scale: it waits for the backward pass.
    const bool half = inputs[1].scalar_type() == at::kHalf || (s.mask[0] && inputs[0].scalar_type() == at::kHalf);
    if (half) {
      return VF_CALL(is_plain(inputs), linear_likelihood_sum, inputs[0], inputs[1], inputs[2], bias_of(inputs), s.term, s.params, s.mean);
    }
    auto [sum, grads] = VF_CALL(is_plain(inputs), linear_likelihood_sum_with_grad, inputs[0], inputs[1], inputs[2], bias_of(inputs), s.term,
                                s.params, s.mean, s.mask);
    s.grads = std::move(grads);
    return sum;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& upstream) {
    LinearLikelihoodState& s = carried<LinearLikelihoodState>(ctx);
    const auto saved = ctx->get_saved_variables();
    const auto grads = written_gradients(s.grads, upstream[0]);
    if (!grads) {
      const auto batch = at::infer_size_dimvector(batch_of(saved[0].sizes(), 1), batch_of(saved[1].sizes(), 1));
      const double rows = static_cast<double>(c10::multiply_integers(batch));
      const Tensor grad = (upstream[0] * (s.mean ? 1.0 / rows : 1.0)).expand(batch);
      return spread(LinearLikelihoodOp::backward(plain_backward(saved, grad), grad, saved, s), s.mask, saved.size() + 1);
    }
    return spread(*grads, s.mask, saved.size() + 1);
  }
};

LinearLikelihoodState state_of(string_view term, Numbers params, bool mean, TensorList inputs) {
  return {std::string(term), ParamList(params), mean, requires_grad_mask(inputs), {}};
}

Tensors inputs_of(const Tensor& x, const Tensor& h, const Tensor& weight, const OptionalTensor& bias) {
  return bias ? Tensors{x, h, weight, *bias} : Tensors{x, h, weight};
}

}  // namespace

Tensor linear_likelihood_kernel(const Tensor& x, const Tensor& h, const Tensor& weight, const OptionalTensor& bias, string_view term,
                                Numbers params) {
  const LinearProblem p(x, h, weight, bias, term, params);
  Tensor value = empty_values(p);
  Gradients none;
  run(p, RowGrad(), value, none);
  return value.view(p.batch);
}

Tensors linear_likelihood_backward_kernel(const Tensor& grad, const Tensor& x, const Tensor& h, const Tensor& weight,
                                          const OptionalTensor& bias, string_view term, Numbers params, const Mask& mask) {
  const LinearProblem p(x, h, weight, bias, term, params, mask[0]);
  Gradients grads(p, mask);
  std::vector<Tensor> keep;
  run(p, row_grad(grad, p.batch, p.is_double, keep), Tensor(), grads);
  return finished(p, std::move(grads), x, h, bias);
}

std::tuple<Tensor, Tensors> linear_likelihood_sum_with_grad_kernel(const Tensor& x, const Tensor& h, const Tensor& weight,
                                                                   const OptionalTensor& bias, string_view term, Numbers params, bool mean,
                                                                   const Mask& mask) {
  const LinearProblem p(x, h, weight, bias, term, params, mask[0]);
  const double scale = mean ? 1.0 / static_cast<double>(p.rows()) : 1.0;
  Tensor value = empty_values(p);
  Gradients grads(p, mask);
  RowGrad upstream;
  upstream.constant = scale;
  run(p, upstream, value, grads);
  return {total(value, mean), finished(p, std::move(grads), x, h, bias)};
}

Tensor linear_likelihood_sum_kernel(const Tensor& x, const Tensor& h, const Tensor& weight, const OptionalTensor& bias, string_view term,
                                    Numbers params, bool mean) {
  Mask none;
  for (int i = 0; i < 4; ++i) none.push_back(false);
  return std::get<0>(linear_likelihood_sum_with_grad_kernel(x, h, weight, bias, term, params, mean, none));
}

Tensor linear_likelihood_autograd(const Tensor& x, const Tensor& h, const Tensor& weight, const OptionalTensor& bias, string_view term,
                                  Numbers params) {
  const Tensors inputs = inputs_of(x, h, weight, bias);
  return OpFunction<LinearLikelihoodOp>::apply(TensorList(inputs), state_of(term, params, false, inputs));
}

Tensor linear_likelihood_sum_autograd(const Tensor& x, const Tensor& h, const Tensor& weight, const OptionalTensor& bias, string_view term,
                                      Numbers params, bool mean) {
  const Tensors inputs = inputs_of(x, h, weight, bias);
  if (!wants_grad(inputs)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return VF_CALL(is_plain(inputs), linear_likelihood_sum, x, h, weight, bias, term, params, mean);
  }
  return LinearLikelihoodSumFunction::apply(TensorList(inputs), state_of(term, params, mean, inputs));
}

Tensor linear_likelihood(const Tensor& x, const Tensor& h, const Tensor& weight, const OptionalTensor& bias, const std::string& term,
                         Numbers params) {
  const Tensors inputs = inputs_of(x, h, weight, bias);
  const bool plain = is_plain(inputs);
  if (plain && wants_grad(inputs)) {
    RECORD_FUNCTION("vae_fast::linear_likelihood", std::vector<c10::IValue>());
    return linear_likelihood_autograd(x, h, weight, bias, term, params);
  }
  return VF_CALL(plain, linear_likelihood, x, h, weight, bias, term, params);
}

Tensor linear_likelihood_sum(const Tensor& x, const Tensor& h, const Tensor& weight, const OptionalTensor& bias, const std::string& term,
                             Numbers params, bool mean) {
  const Tensors inputs = inputs_of(x, h, weight, bias);
  if (is_plain(inputs)) {
    RECORD_FUNCTION("vae_fast::linear_likelihood_sum", std::vector<c10::IValue>());
    return linear_likelihood_sum_autograd(x, h, weight, bias, term, params, mean);
  }
  return VF_CALL(false, linear_likelihood_sum, x, h, weight, bias, term, params, mean);
}

}  // namespace ops
}  // namespace vae_fast
