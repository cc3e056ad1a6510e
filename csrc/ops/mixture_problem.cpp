// What is done to a mixture's parameters before and after the kernels, in double: of a diagonal one by kernels of their own, of others on
// tensors of K or K x D x D elements.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp2.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/nan_to_num.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "mixture_problem.h"

#include "../math/mixture.h"

namespace vae_fast {
namespace ops {
namespace {

Covariance covariance_of(string_view name) {
  if (name == "diag") return Covariance::kDiag;
  if (name == "spherical") return Covariance::kSpherical;
  if (name == "tied") return Covariance::kTied;
  TORCH_CHECK_VALUE(name == "full", "covariance='", name, "': expected one of diag, spherical, tied, full");
  return Covariance::kFull;
}

bool products_wanted(string_view precision) {
  TORCH_CHECK_VALUE(precision == "float32" || precision == "tf32x3", "precision='", precision, "': expected one of float32, tf32x3");
  return precision == "tf32x3";
}

double largest_of(bool is_double) { return is_double ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max(); }

/// mixture_top of the constants, (K, ...), of tensors.
Tensor common_constant(const Tensor& constant) {
  const Tensor ordinary = constant.masked_fill(constant > 1e8, -std::numeric_limits<double>::infinity());
  return at::nan_to_num(ordinary.amax(0), 0.0, 0.0, 0.0).clamp_min_(-1e8);
}

}  // namespace

MixtureProblem::MixtureProblem(const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale, string_view name,
                               string_view precision, bool factorized, Tensor* kept)
    : is_double(any_double({x, weight_logits, means, scale})), covariance(covariance_of(name)), layout(x.sizes(), 1, x, true) {
  TORCH_CHECK_TYPE(x.is_floating_point(), "x: expected a floating dtype, got ", x.scalar_type());
  TORCH_CHECK_VALUE(x.dim() >= 1 && means.dim() == 2 && means.size(0) > 0 && means.size(1) > 0 && x.size(-1) == means.size(1),
                    "x of shape ", x.sizes(), ", means of shape ", means.sizes(), ": expected (..., D) and (K, D)");
  const int64_t k = means.size(0), d = means.size(1);
  const at::DimVector wanted = covariance == Covariance::kDiag        ? at::DimVector{k, d}
                               : covariance == Covariance::kSpherical ? at::DimVector{k}
                               : covariance == Covariance::kTied      ? at::DimVector{d, d}
                                                                      : at::DimVector{k, d, d};
  TORCH_CHECK_VALUE(scale.sizes() == at::IntArrayRef(wanted), "scale of shape ", scale.sizes(), ": expected ", at::IntArrayRef(wanted));
  const bool by_row = weight_logits.dim() > 1;
  at::DimVector of_rows(layout.batch());
  of_rows.push_back(k);
  TORCH_CHECK_VALUE(weight_logits.sizes() == (by_row ? at::IntArrayRef(of_rows) : at::IntArrayRef(k)), "weight_logits of shape ",
                    weight_logits.sizes(), ": expected [", k, "] or ", at::IntArrayRef(of_rows));
  for (const Tensor* t : {&weight_logits, &means, &scale}) {
    TORCH_CHECK_VALUE(t->device() == x.device(), "tensors on ", t->device(), " and ", x.device(), ": expected one device");
  }
  const auto type = compute_type(is_double);
  args.rows = layout.rows;
  args.components = k;
  args.dims = d;
  args.is_double = is_double;
  args.x = stream_of(x, layout, is_double, keep);
  args.full = covariance == Covariance::kTied || covariance == Covariance::kFull;
  const bool products = products_wanted(precision);
  TORCH_CHECK_VALUE(!products || !(args.full || is_double), "precision='", precision, "' with covariance='", name, "' and ", type,
                    ": expected covariance diag or spherical and float32 or narrower");
  TORCH_CHECK_VALUE(!(factorized && args.full), "covariance='", name, "' and factorized: expected diag or spherical");
  if (by_row) {
    row_log_weights = at::log_softmax(weight_logits.to(type), -1).reshape({layout.rows, k}).contiguous();
    args.row_weights = hold(row_log_weights);
  }
  if (!args.full) {
    prepare_diagonal(weight_logits, means, scale, products, factorized, kept);
    return;
  }
  log_weights = by_row ? at::zeros({k}, means.options().dtype(at::kDouble)) : at::log_softmax(weight_logits.to(at::kDouble), 0);
  prepare_full(means, scale);
}

void MixtureProblem::prepare_diagonal(const Tensor& weight_logits, const Tensor& means, const Tensor& scale, bool products, bool factorized,
                                      Tensor* kept) {
  const auto type = compute_type(is_double);
  const int64_t k = args.components, d = args.dims, size = is_double ? 8 : 4;
  const bool by_row = row_log_weights.defined();
  args.means = hold(means.to(type).contiguous());
  int64_t bytes = 0;
  const auto part = [&](int64_t of) {
    const int64_t at = bytes;
    bytes += (of + 255) / 256 * 256;
    return at;
  };
  const int64_t weights_at = part(8 * k), det_at = part(8 * k), baseline_at = part(8), constant_at = part(size * k),
                low_at = part(size * k);
  // Rows are near the mixture's mean, or so one hopes; what a component of weight zero is near does not matter.
  const bool centred = means.is_cuda() && !by_row && !is_double;
  args.products = products && centred;
  const int64_t centre_at = part(centred ? 4 * d : 0);
  scale_at = part(size * k * d);
  const bool ready = kept != nullptr && kept->defined();
  prepared = ready ? *kept : at::empty({bytes}, means.options().dtype(at::kByte));
  char* const data = static_cast<char*>(prepared.data_ptr());
  MixtureParametersArgs a;
  a.components = k, a.dims = d;
  a.is_double = is_double, a.spherical = covariance == Covariance::kSpherical;
  a.means = args.means;
  a.log_weights = reinterpret_cast<double*>(data + weights_at);
  a.log_det = reinterpret_cast<double*>(data + det_at);
  a.baseline = reinterpret_cast<double*>(data + baseline_at);
  a.scale = data + scale_at, a.constant = data + constant_at, a.constant_low = data + low_at;
  if (centred) a.centre = reinterpret_cast<float*>(data + centre_at);
  if (!ready) {
    if (!by_row) a.logits = hold(weight_logits.to(type).contiguous());
    a.log_std = hold(scale.to(type).contiguous());
    a.counter = zero_counter(means, keep);
    VF_LAUNCH(means, mixture_parameters, a);
    if (kept != nullptr) *kept = prepared;
  }
  args.scale = a.scale, args.constant = a.constant, args.constant_low = a.constant_low;
  args.baseline = a.baseline, args.centre = a.centre;
  log_weights_data = a.log_weights;
  if (!factorized) return;
  const Tensor of_components = prepared.narrow(0, weights_at, 8 * k).view(at::kDouble);
  const Tensor dim_constant = of_components.unsqueeze(1) - scale.to(at::kDouble).reshape({k, -1}).expand({k, d});
  const Tensor dim_top = common_constant(dim_constant);
  const double log2e = 1.4426950408889634;
  args.dim_constant = hold((dim_constant - dim_top).mul_(log2e).clamp_max_(largest_of(is_double)).to(type).contiguous());
  args.dim_baseline = static_cast<const double*>(hold(dim_top.sum() - 0.5 * static_cast<double>(d) * 1.8378770664093454836));
}

void MixtureProblem::prepare_full(const Tensor& means, const Tensor& scale) {
  const auto type = compute_type(is_double);
  const int64_t k = args.components, d = args.dims;
  const bool tied = covariance == Covariance::kTied;
  factor = scale.to(at::kDouble).triu().reshape({tied ? 1 : k, d, d});
  const Tensor diagonal = factor.diagonal(0, 1, 2).abs();
  // Features are measured in powers of two near their least conditional standard deviation: second moments of anything else may be out
  // of range where the density is not. Exact, but for what is out of range itself.
  const double most = is_double ? 500.0 : 120.0;
  unit = at::exp2(at::nan_to_num(diagonal.amax(0).log2_(), 0.0, 0.0, 0.0).round_().clamp_(-most, most));
  factor = factor / unit.view({d, 1});
  args.x_scale = hold(unit.to(type));
  args.scale = hold(factor.to(type).contiguous());
  args.factor_stride = tied ? 0 : d * d;
  args.means = hold((means.to(at::kDouble) * unit).to(type).contiguous());
  const Tensor constant = log_weights + diagonal.log().sum(1);
  const Tensor top = common_constant(constant);
  const Tensor relative = (constant - top).clamp_max_(largest_of(is_double)), high = relative.to(type);
  args.constant = hold(high);
  args.constant_low = hold(at::nan_to_num(relative - high, 0.0, 0.0, 0.0).to(type));
  args.baseline = static_cast<const double*>(hold(generic::math::mixture_baseline(0.0, d) + top));
}

/// Runs the backward kernel for what is wanted: the gradient of x, the sums, the second moments.
RowSums run_mixture_backward(MixtureProblem& p, const Tensor& x, MixtureBackwardArgs& b, Tensor* grad_x, bool sums, bool second) {
  RowSums s;
  if (grad_x != nullptr) {
    p.need_transposed();
    *grad_x = gradient_buffer(x, p.layout, p.is_double);
    b.grad_x = dense_stream(*grad_x, p.layout.columns);
  }
  b.mixture = p.args;
  if (sums && b.finish == nullptr) {
    const auto options = x.options().dtype(at::kDouble);
    const int64_t k = p.args.components, d = p.args.dims;
    s.counts = at::empty({k}, options);
    s.first = at::empty({k, d}, options);
    b.counts = s.counts.data_ptr<double>();
    b.first = s.first.data_ptr<double>();
    if (second) {
      s.second = p.args.full ? at::zeros({p.factor.size(0), d, d}, options) : at::empty({k, d}, options);
      b.second = s.second.data_ptr<double>();
    }
  }
  Tensor scratch;
#if defined(VF_WITH_CUDA)
  if (x.is_cuda()) {
    const c10::cuda::CUDAGuard guard(x.device());  // what it takes depends on the device's processors
    scratch = at::empty({cuda::mixture_scratch_bytes(b)}, x.options().dtype(at::kByte));
    b.scratch = scratch.data_ptr();
  }
#endif
  VF_LAUNCH(x, mixture_backward, b);
  if (second && p.args.full) s.second = s.second.triu() + s.second.triu(1).transpose(1, 2);
  return s;
}

namespace {

/// Of sums over rows of the responsibilities, or the responsibilities of each row, in double. Given weights sum to zero over the components
/// of a row: they come from a softmax already.
Tensor logit_gradient(const MixtureProblem& p, const MixtureBackwardArgs& b, Tensor counts, const Tensor& weight_logits) {
  if (b.weights == nullptr) {
    const Tensor& log_weights = p.row_log_weights.defined() ? p.row_log_weights : p.log_weights;
    counts = counts - log_weights.exp() * counts.sum(-1, true);
  }
  return counts.reshape(weight_logits.sizes()).to(weight_logits.scalar_type());
}

/// The gradient of every row's own logits: on CUDA the kernels write it, elsewhere what the counts sum over rows.
Tensor row_logit_gradient(const MixtureProblem& p, const MixtureBackwardArgs& b, const Tensor& of_rows, const Tensor& weight_logits) {
  if (b.grad_row_logits == nullptr) return logit_gradient(p, b, of_rows, weight_logits);
  return of_rows.reshape(weight_logits.sizes()).to(weight_logits.scalar_type());
}

/// mixture_gradients of a diagonal mixture, whose parameters' gradients the kernels write. of_rows: where every row has its own weights.
Tensors diagonal_gradients(MixtureProblem& p, MixtureBackwardArgs& b, const Tensor& x, const Tensor& weight_logits, const Tensor& means,
                           const Tensor& scale, const Mask& mask, const Tensor& of_rows) {
  const auto options = p.options(x);
  const bool of_logits = mask[1] && !p.row_log_weights.defined(), sums = of_logits || mask[2] || mask[3];
  Tensor grad_x, grad_logits, grad_means, grad_scale;
  MixtureFinishArgs f;
  f.spherical = p.covariance == Covariance::kSpherical;
  f.centred = p.args.dim_constant == nullptr;
  if (of_logits) {
    grad_logits = at::empty({p.args.components}, options);
    f.grad_logits = grad_logits.data_ptr();
    if (b.weights == nullptr) f.log_weights = p.log_weights_data;
  }
  if (mask[2]) f.grad_means = (grad_means = at::empty({p.args.components, p.args.dims}, options)).data_ptr();
  if (mask[3]) f.grad_log_std = (grad_scale = at::empty(scale.sizes(), options)).data_ptr();
  if (sums) {
    f.counter = zero_counter(x, p.keep);
    b.finish = &f;
  }
  run_mixture_backward(p, x, b, mask[0] ? &grad_x : nullptr, sums, mask[3]);
  Tensors grads;
  if (mask[0]) grads.push_back(to_input(grad_x, x));
  if (of_logits) grads.push_back(grad_logits.to(weight_logits.scalar_type()));
  if (mask[1] && !of_logits) grads.push_back(row_logit_gradient(p, b, of_rows, weight_logits));
  if (mask[2]) grads.push_back(grad_means.to(means.scalar_type()));
  if (mask[3]) grads.push_back(grad_scale.to(scale.scalar_type()));
  return grads;
}

}  // namespace

/// The gradients that `mask` marks (x, weight_logits, means, scale), for weights that `b` describes.
Tensors mixture_gradients(MixtureProblem& p, MixtureBackwardArgs& b, const Tensor& x, const Tensor& weight_logits, const Tensor& means,
                          const Tensor& scale, const Mask& mask) {
  Tensor grad_x, of_rows;
  const bool by_row = p.row_log_weights.defined(), sums = (mask[1] && !by_row) || mask[2] || mask[3];
  if (mask[1] && by_row) {
    of_rows = at::empty({p.args.rows, p.args.components}, x.is_cuda() ? p.options(x) : x.options().dtype(at::kDouble));
    if (x.is_cuda()) {
      b.grad_row_logits = of_rows.data_ptr();
    } else {
      b.row_counts = of_rows.data_ptr<double>();
    }
  }
  if (!p.args.full) return diagonal_gradients(p, b, x, weight_logits, means, scale, mask, of_rows);
  const RowSums s = run_mixture_backward(p, x, b, mask[0] ? &grad_x : nullptr, sums, mask[3]);
  Tensors grads;
  if (mask[0]) grads.push_back(to_input(grad_x, x));
  if (mask[1]) grads.push_back(by_row ? row_logit_gradient(p, b, of_rows, weight_logits) : logit_gradient(p, b, s.counts, weight_logits));
  if (mask[2]) {  // sum q P P^T t, P (K or 1, D, D)
    const Tensor g = at::matmul(at::matmul(s.first.unsqueeze(1), p.factor), p.factor.transpose(1, 2)).squeeze(1) * p.unit;
    grads.push_back(g.to(means.scalar_type()));
  }
  if (mask[3]) {  // d/dP (log|P| - |t P|^2 / 2) = diag(1 / P_ii) - t^T t P, on and above the diagonal
    const Tensor counts = (p.covariance == Covariance::kTied ? s.counts.sum().view({1}) : s.counts).unsqueeze(1);
    const Tensor diagonal = p.factor.diagonal(0, 1, 2);
    Tensor g = at::matmul(s.second, p.factor).neg_().triu_();
    g.diagonal(0, 1, 2).add_(at::where(counts == 0, counts, counts / diagonal));
    g.div_(p.unit.view({-1, 1}));
    grads.push_back(g.reshape(scale.sizes()).to(scale.scalar_type()));
  }
  return grads;
}

}  // namespace ops
}  // namespace vae_fast
