// Mixtures of Gaussians. The kernels' work is per row; what is done here to the parameters, on tensors of K or K x D (x D) elements and in
// double, is prepared before and finished after.
#include <ATen/record_function.h>

#include "autograd.h"
#include "device.h"
#include "layout.h"

namespace vae_fast {
namespace ops {
namespace {

enum class Covariance { kDiag, kSpherical, kTied, kFull };

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

/// Prepared arguments, and the tensors that keep them alive.
struct Problem {
  bool is_double;
  Covariance covariance;
  Layout layout;
  std::vector<Tensor> keep;
  MixtureArgs args;
  Tensor log_weights, inverse, factor, unit;  // double; inverse (K, D) if diagonal, else factor (K or 1, D, D) and unit (D,)

  Problem(const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale, string_view name, string_view precision)
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
    TORCH_CHECK_VALUE(weight_logits.sizes() == at::IntArrayRef(k), "weight_logits of shape ", weight_logits.sizes(), ": expected [", k,
                      "]");
    for (const Tensor* t : {&weight_logits, &means, &scale}) {
      TORCH_CHECK_VALUE(t->device() == x.device(), "tensors on ", t->device(), " and ", x.device(), ": expected one device");
    }
    const auto type = compute_type(is_double);
    args.rows = layout.rows;
    args.components = k;
    args.dims = d;
    args.is_double = is_double;
    args.x = stream_of(x, layout, is_double, keep);
    log_weights = at::log_softmax(weight_logits.to(at::kDouble), 0);
    Tensor log_det;
    args.full = covariance == Covariance::kTied || covariance == Covariance::kFull;
    if (args.full) {
      const bool tied = covariance == Covariance::kTied;
      factor = scale.to(at::kDouble).triu().reshape({tied ? 1 : k, d, d});
      const Tensor diagonal = factor.diagonal(0, 1, 2).abs();
      log_det = diagonal.log().sum(1);
      // Features are measured in powers of two near their least conditional standard deviation: second moments of anything else may be out
      // of range where the density is not. Exact, but for what is out of range itself.
      const double most = is_double ? 500.0 : 120.0;
      unit = at::exp2(at::nan_to_num(diagonal.amax(0).log2_(), 0.0, 0.0, 0.0).round_().clamp_(-most, most));
      factor = factor / unit.view({d, 1});
      args.x_scale = hold(unit.to(type));
      args.scale = hold(factor.to(type).contiguous());
      args.factor_stride = tied ? 0 : d * d;
    } else {
      const Tensor log_std = scale.to(at::kDouble).reshape({k, -1}).expand({k, d});
      log_det = -log_std.sum(1);
      // The largest finite number is as good as anything beyond: a difference of zero times it is zero. So is the least one above zero (no
      // normal one: the largest difference times that is not small) as anything below: sums in units of it can be divided by it, which is
      // why all read it as it was rounded.
      const Tensor scales = (is_double ? (-log_std).clamp_(-744.4, 709.78) : (-log_std).clamp_(-103.27, 88.72)).exp_().to(type);
      args.scale = hold(scales.contiguous());
      inverse = scales.to(at::kDouble);
    }
    const bool products = products_wanted(precision);
    TORCH_CHECK_VALUE(!products || !(args.full || is_double), "precision='", precision, "' with covariance='", name, "' and ", type,
                      ": expected covariance diag or spherical and float32 or narrower");
    // Rows are near the mixture's mean, or so one hopes; what a component of weight zero is near does not matter.
    if (products) args.centre = static_cast<const float*>(hold(at::matmul(log_weights.exp(), means.to(at::kDouble)).to(at::kFloat)));
    const Tensor scaled = unit.defined() ? means.to(at::kDouble) * unit : means;
    args.means = hold(scaled.to(type).contiguous());
    const Tensor constant = log_weights + log_det;
    // Bounded, or beside a component of no width (log std -1e30) nothing would be left of the others' constants.
    const Tensor top = at::nan_to_num(constant.amax(0), 0.0, 0.0, 0.0).clamp_(-1e8, 1e8);
    const double largest = is_double ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max();
    const Tensor relative = (constant - top).clamp_max_(largest), high = relative.to(type);
    args.constant = hold(high);
    args.constant_low = hold(at::nan_to_num(relative - high, 0.0, 0.0, 0.0).to(type));
    // sum_d (u^2 - 1) / 2 where the density has u^2 / 2, and its (2 pi)^(-D/2)
    args.baseline = static_cast<const double*>(hold(top - 0.5 * static_cast<double>(d) * (1.0 + 1.8378770664093454836)));
  }

  const void* hold(Tensor t) {
    keep.push_back(std::move(t));
    return keep.back().const_data_ptr();
  }
  void need_transposed() {
    if (args.full) args.transposed = hold(factor.transpose(1, 2).to(compute_type(is_double)).contiguous());
  }
  at::TensorOptions options(const Tensor& x) const { return x.options().dtype(compute_type(is_double)); }
};

/// Sums over rows, in double; see MixtureBackwardArgs.
struct Sums {
  Tensor counts, first, second;
};

/// Runs the backward kernel for what is wanted: the gradient of x, the sums, the second moments.
Sums run_backward(Problem& p, const Tensor& x, MixtureBackwardArgs& b, Tensor* grad_x, bool sums, bool second) {
  Sums s;
  if (grad_x != nullptr) {
    p.need_transposed();
    *grad_x = gradient_buffer(x, p.layout, p.is_double);
    b.grad_x = dense_stream(*grad_x, p.layout.columns);
  }
  b.mixture = p.args;
  if (sums) {
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
    scratch = at::empty({cuda::mixture_scratch_bytes(b)}, x.options().dtype(at::kByte));
    b.scratch = scratch.data_ptr();
  }
#endif
  VF_LAUNCH(x, mixture_backward, b);
  if (second && p.args.full) s.second = s.second.triu() + s.second.triu(1).transpose(1, 2);
  return s;
}

/// The gradients that `mask` marks (x, weight_logits, means, scale), for weights that `b` describes.
Tensors gradients(Problem& p, MixtureBackwardArgs& b, const Tensor& x, const Tensor& weight_logits, const Tensor& means,
                  const Tensor& scale, const Mask& mask) {
  Tensor grad_x;
  const bool sums = mask[1] || mask[2] || mask[3];
  const Sums s = run_backward(p, x, b, mask[0] ? &grad_x : nullptr, sums, mask[3]);
  Tensors grads;
  if (mask[0]) grads.push_back(to_input(grad_x, x));
  if (mask[1]) {  // given weights sum to zero over the components of a row: they come from a softmax already
    const Tensor g = b.weights != nullptr ? s.counts : s.counts - p.log_weights.exp() * s.counts.sum();
    grads.push_back(g.to(weight_logits.scalar_type()));
  }
  if (mask[2]) {
    Tensor g;
    if (p.args.full) {  // sum q P P^T t, P (K or 1, D, D)
      g = at::matmul(at::matmul(s.first.unsqueeze(1), p.factor), p.factor.transpose(1, 2)).squeeze(1) * p.unit;
    } else {
      g = s.first * p.inverse;
    }
    grads.push_back(g.to(means.scalar_type()));
  }
  if (mask[3]) {
    Tensor g;
    if (p.args.full) {  // d/dP (log|P| - |t P|^2 / 2) = diag(1 / P_ii) - t^T t P, on and above the diagonal
      const Tensor counts = (p.covariance == Covariance::kTied ? s.counts.sum().view({1}) : s.counts).unsqueeze(1);
      const Tensor diagonal = p.factor.diagonal(0, 1, 2);
      g = at::matmul(s.second, p.factor).neg_().triu_();
      g.diagonal(0, 1, 2).add_(at::where(counts == 0, counts, counts / diagonal));
      g.div_(p.unit.view({-1, 1}));
    } else {
      g = s.second - s.counts.unsqueeze(1);
      if (p.covariance == Covariance::kSpherical) g = g.sum(1);
    }
    grads.push_back(g.reshape(scale.sizes()).to(scale.scalar_type()));
  }
  return grads;
}

struct MixtureState {
  std::string covariance, precision;
  Mask mask;
};

struct MixtureFunction : torch::autograd::Function<MixtureFunction> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, TensorList inputs, const MixtureState& s) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [out, normaliser] = VF_CALL(is_plain(inputs), mixture, inputs[0], inputs[1], inputs[2], inputs[3], s.covariance, s.precision);
    auto saved = inputs.vec();
    saved.push_back(normaliser);
    ctx->save_for_backward(saved);
    ctx->mark_non_differentiable({normaliser});
    ctx->set_materialize_grads(false);
    carry(ctx, s);
    return {out, normaliser};
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grads) {
    if (!grads[0].defined()) return torch::autograd::variable_list(5);
    const MixtureState& s = carried<MixtureState>(ctx);
    const auto t = ctx->get_saved_variables();
    const Tensors some =
        VF_CALL(plain_backward(t, grads[0]), mixture_backward, grads[0], t[0], t[1], t[2], t[3], t[4], s.covariance, s.precision, s.mask);
    return spread(some, s.mask, 5);
  }
};

struct ResponsibilitiesOp {
  using State = MixtureState;
  static constexpr bool kSavesResult = true;

  static Tensor forward(bool plain, TensorList t, const State& s) {
    return VF_CALL(plain, mixture_responsibilities, t[0], t[1], t[2], t[3], s.covariance, s.precision);
  }
  static Tensors backward(bool plain, const Tensor& grad, TensorList t, const State& s) {
    return VF_CALL(plain, mixture_responsibilities_backward, grad, t[0], t[1], t[2], t[3], t[4], s.covariance, s.precision, s.mask);
  }
};

}  // namespace

std::tuple<Tensor, Tensor> mixture_kernel(const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                                          string_view covariance, string_view precision) {
  Problem p(x, weight_logits, means, scale, covariance, precision);
  Tensor out = at::empty(p.layout.batch(), p.options(x)), normaliser = at::empty({2, p.args.rows}, p.options(x));
  MixtureForwardArgs f;
  f.mixture = p.args;
  f.log_prob = out.data_ptr();
  f.shift = normaliser.data_ptr();
  f.total = static_cast<char*>(f.shift) + static_cast<size_t>(p.args.rows) * normaliser.element_size();
  VF_LAUNCH(x, mixture, f);
  return {out, normaliser};
}

Tensors mixture_backward_kernel(const Tensor& grad, const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                                const Tensor& normaliser, string_view covariance, string_view precision, const Mask& mask) {
  Problem p(x, weight_logits, means, scale, covariance, precision);
  MixtureBackwardArgs b;
  b.grad = row_grad(grad, p.layout.batch(), p.is_double, p.keep);
  const Tensor saved = normaliser.to(compute_type(p.is_double)).contiguous();
  b.shift = saved.const_data_ptr();
  b.total = static_cast<const char*>(b.shift) + static_cast<size_t>(p.args.rows) * saved.element_size();
  return gradients(p, b, x, weight_logits, means, scale, mask);
}

std::tuple<Tensor, Tensor> mixture_autograd(const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                                            string_view covariance, string_view precision) {
  const Tensors inputs{x, weight_logits, means, scale};
  const auto out =
      MixtureFunction::apply(TensorList(inputs), MixtureState{std::string(covariance), std::string(precision), requires_grad_mask(inputs)});
  return {out[0], out[1]};
}

std::tuple<Tensor, Tensor> mixture(const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                                   const std::string& covariance, const std::string& precision) {
  const Tensors inputs{x, weight_logits, means, scale};
  const bool plain = is_plain(inputs);
  if (plain && wants_grad(inputs)) {
    RECORD_FUNCTION("vae_fast::mixture", std::vector<c10::IValue>());
    return mixture_autograd(x, weight_logits, means, scale, covariance, precision);
  }
  return VF_CALL(plain, mixture, x, weight_logits, means, scale, covariance, precision);
}

Tensor mixture_responsibilities_kernel(const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                                       string_view covariance, string_view precision) {
  Problem p(x, weight_logits, means, scale, covariance, precision);
  at::DimVector shape(p.layout.batch());
  shape.push_back(p.args.components);
  Tensor out = at::empty(shape, p.options(x));
  MixtureForwardArgs f;
  f.mixture = p.args;
  f.responsibilities = out.data_ptr();
  VF_LAUNCH(x, mixture, f);
  return out;
}

Tensors mixture_responsibilities_backward_kernel(const Tensor& grad, const Tensor& x, const Tensor& weight_logits, const Tensor& means,
                                                 const Tensor& scale, const Tensor& responsibilities, string_view covariance,
                                                 string_view precision, const Mask& mask) {
  Problem p(x, weight_logits, means, scale, covariance, precision);
  const auto type = compute_type(p.is_double);
  // The softmax's derivative: what reaches l_k is q_k (g_k - sum_j q_j g_j).
  const Tensor q = responsibilities.to(type), g = grad.to(type);
  const Tensor weights = (q * (g - (q * g).sum(-1, true))).contiguous();
  MixtureBackwardArgs b;
  b.weights = weights.const_data_ptr();
  return gradients(p, b, x, weight_logits, means, scale, mask);
}

Tensor mixture_responsibilities_autograd(const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                                         string_view covariance, string_view precision) {
  const Tensors inputs{x, weight_logits, means, scale};
  return OpFunction<ResponsibilitiesOp>::apply(TensorList(inputs),
                                               MixtureState{std::string(covariance), std::string(precision), requires_grad_mask(inputs)});
}

Tensor mixture_responsibilities(const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                                const std::string& covariance, const std::string& precision) {
  const Tensors inputs{x, weight_logits, means, scale};
  const bool plain = is_plain(inputs);
  if (plain && wants_grad(inputs)) {
    RECORD_FUNCTION("vae_fast::mixture_responsibilities", std::vector<c10::IValue>());
    return mixture_responsibilities_autograd(x, weight_logits, means, scale, covariance, precision);
  }
  return VF_CALL(plain, mixture_responsibilities, x, weight_logits, means, scale, covariance, precision);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> mixture_statistics_kernel(const Tensor& x, const Tensor& weight_logits, const Tensor& means,
                                                                     const Tensor& scale, const OptionalTensor& responsibilities,
                                                                     const OptionalTensor& sample_weight, string_view covariance,
                                                                     string_view precision) {
  // Given responsibilities leave nothing to the scale: a diagonal one of ones keeps its value out of the arithmetic.
  const bool diagonal = covariance == "diag" || covariance == "spherical";
  Problem p(x, weight_logits, means, responsibilities && diagonal ? at::zeros_like(scale) : scale, covariance, precision);
  const auto type = compute_type(p.is_double);
  MixtureBackwardArgs b;
  Tensor log_prob = at::empty({0}, p.options(x)), weights, normaliser;
  at::DimVector of_components(p.layout.batch());
  of_components.push_back(p.args.components);
  TORCH_CHECK_VALUE(!responsibilities || responsibilities->sizes() == at::IntArrayRef(of_components), "responsibilities: expected shape ",
                    at::IntArrayRef(of_components));
  TORCH_CHECK_VALUE(!sample_weight || sample_weight->sizes() == p.layout.batch(), "sample_weight: expected shape ", p.layout.batch());
  if (responsibilities) {
    weights = responsibilities->to(type);
    if (sample_weight) weights = weights * sample_weight->to(type).unsqueeze(-1);
    weights = weights.contiguous();
    b.weights = weights.const_data_ptr();
  } else {
    std::tie(log_prob, normaliser) = mixture_kernel(x, weight_logits, means, scale, covariance, precision);
    b.shift = normaliser.const_data_ptr();
    b.total = static_cast<const char*>(b.shift) + static_cast<size_t>(p.args.rows) * normaliser.element_size();
    if (sample_weight) b.grad = row_grad(*sample_weight, p.layout.batch(), p.is_double, p.keep);
  }
  Sums s = run_backward(p, x, b, nullptr, true, true);
  if (!diagonal) {
    s.first.div_(p.unit);
    s.second.div_(p.unit).div_(p.unit.view({-1, 1}));
  }
  if (p.covariance == Covariance::kTied) s.second = s.second.squeeze(0);
  if (diagonal) {  // from units of the standard deviation
    s.first.div_(p.inverse);
    s.second.div_(p.inverse).div_(p.inverse);
    if (p.covariance == Covariance::kSpherical) s.second = s.second.sum(1);
  }
  return {log_prob, s.counts.to(type), s.first.to(type), s.second.to(type)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> mixture_statistics(const Tensor& x, const Tensor& weight_logits, const Tensor& means,
                                                              const Tensor& scale, const OptionalTensor& responsibilities,
                                                              const OptionalTensor& sample_weight, const std::string& covariance,
                                                              const std::string& precision) {
  const bool plain =
      is_plain({x, weight_logits, means, scale}) && is_plain_or_absent(responsibilities) && is_plain_or_absent(sample_weight);
  return VF_CALL(plain, mixture_statistics, x, weight_logits, means, scale, responsibilities, sample_weight, covariance, precision);
}

}  // namespace ops
}  // namespace vae_fast
