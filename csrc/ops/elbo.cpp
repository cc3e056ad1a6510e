// The whole head of a VAE: likelihood minus beta KL of every sample, and the reduced loss that writes its gradient in the same pass.
#include <ATen/ExpandUtils.h>
#include <ATen/record_function.h>

#include "autograd.h"
#include "device.h"
#include "layout.h"

namespace vae_fast {
namespace ops {
namespace {

struct ElboState {
  std::string likelihood, kl;
  double eps, floor, beta;
  int64_t event_dim, latent_dim;
  size_t likelihood_inputs;  // of the concatenated inputs
  bool mean, donate;
  Mask mask;
  Tensors grads;  // of a loss: what its forward pass has already written
};

constexpr size_t kRecon = 1;  // its place among the inputs

/// Both terms prepared over one batch.
struct Head {
  bool is_double;
  Layout data, latent;
  Term likelihood, kl;
  RowTermsArgs args;
  Tensors grads;  // marked ones, likelihood first

  static at::DimVector with_event(at::IntArrayRef batch, at::IntArrayRef shape, int64_t event_dim) {
    at::DimVector full(batch);
    for (size_t d = shape.size() - static_cast<size_t>(event_dim); d < shape.size(); ++d) full.push_back(shape[d]);
    return full;
  }

  static Head make(TensorList x, TensorList z, string_view likelihood, string_view kl, double eps, double floor, double beta,
                   int64_t event_dim, int64_t latent_dim) {
    const int32_t lik = term_index(likelihood), div = term_index(kl);
    TORCH_CHECK_VALUE(!is_kl(lik) && is_kl(div), "elbo of '", likelihood, "' and '", kl, "': expected a likelihood and a KL");
    const auto x_shape = common_shape(x), z_shape = common_shape(z);
    TORCH_CHECK_VALUE(x[0].device() == z[0].device(), "tensors on ", x[0].device(), " and ", z[0].device(), ": expected one device");
    TORCH_CHECK_VALUE(event_dim >= 0 && event_dim <= static_cast<int64_t>(x_shape.size()), "event_dim=", event_dim, ": expected 0 to ",
                      x_shape.size());
    TORCH_CHECK_VALUE(latent_dim >= 0 && latent_dim <= static_cast<int64_t>(z_shape.size()), "latent_dim=", latent_dim, ": expected 0 to ",
                      z_shape.size());
    const auto xb = batch_of(x_shape, event_dim);
    const auto zb = batch_of(z_shape, latent_dim);
    const at::DimVector batch = xb == zb ? at::DimVector(xb) : at::infer_size_dimvector(xb, zb);
    Head h{any_double(x) || any_double(z),
           Layout(with_event(batch, x_shape, event_dim), event_dim, x[1], false),
           Layout(with_event(batch, z_shape, latent_dim), latent_dim, z[0], false),
           {},
           {},
           {},
           {}};
    h.likelihood = prepare_term(x, lik, h.data, h.is_double, eps, floor);
    h.kl = prepare_term(z, div, h.latent, h.is_double, eps, floor);
    h.kl.args.coefficient = -beta;
    h.kl.args.row_grad.constant = -beta;
    h.args.terms_used = 2;
    h.args.rows = h.data.rows;
    h.args.is_double = h.is_double;
    return h;
  }

  /// With `donate`, that of the reconstruction lies over the reconstruction, which has the buffer's shape, dtype and layout.
  void add_gradients(TensorList x, TensorList z, const Mask& mask, bool donate = false) {
    for (size_t i = 0; i < mask.size(); ++i) {
      if (!mask[i]) continue;
      if (donate && i == kRecon) {
        grads.push_back(x[kRecon].variable_data());
        likelihood.args.grad[kRecon] = dense_stream(grads.back(), data.columns);
        continue;
      }
      const bool in_x = i < x.size();
      const int k = static_cast<int>(in_x ? i : i - x.size());
      grads.push_back(in_x ? likelihood.add_gradient(k, x[i], data) : kl.add_gradient(k, z[static_cast<size_t>(k)], latent));
    }
  }

  Tensor empty_result(TensorList x, at::IntArrayRef shape) const { return at::empty(shape, x[0].options().dtype(compute_type(is_double))); }

  void launch(TensorList x) {
    args.term[0] = likelihood.args;
    args.term[1] = kl.args;
    launch_row_terms(x[0], args);
  }

  Tensors input_gradients(TensorList x, TensorList z, const Mask& mask) {
    for (size_t i = 0, next = 0; i < mask.size(); ++i) {
      if (mask[i]) grads[next] = to_input(grads[next], i < x.size() ? x[i] : z[i - x.size()]), ++next;
    }
    return std::move(grads);
  }
};

std::tuple<Tensor, Tensors> loss_with_grad(TensorList x, TensorList z, string_view likelihood, string_view kl, double eps, double floor,
                                           double beta, int64_t event_dim, int64_t latent_dim, bool mean, const Mask& mask, bool donate) {
  Head h = Head::make(x, z, likelihood, kl, eps, floor, beta, event_dim, latent_dim);
  Tensor loss = h.empty_result(x, {});
  const double scale = mean ? -1.0 / static_cast<double>(h.data.rows) : -1.0;
  h.args.loss = loss.data_ptr();
  h.args.loss_scale = scale;
  h.likelihood.args.row_grad.constant = scale;
  h.kl.args.row_grad.constant = -beta * scale;
  h.add_gradients(x, z, mask, donate);
  h.launch(x);
  return {loss, h.input_gradients(x, z, mask)};
}

struct ElboOp {
  using State = ElboState;
  static constexpr bool kSavesResult = false;

  static Tensor forward(bool plain, TensorList inputs, const State& s) {
    const auto x = inputs.slice(0, s.likelihood_inputs), z = inputs.slice(s.likelihood_inputs);
    return VF_CALL(plain, elbo, x, z, s.likelihood, s.kl, s.eps, s.floor, s.beta, s.event_dim, s.latent_dim);
  }
  static Tensors backward(bool plain, const Tensor& grad, TensorList saved, const State& s) {
    const auto x = saved.slice(0, s.likelihood_inputs), z = saved.slice(s.likelihood_inputs);
    return VF_CALL(plain, elbo_backward, grad, x, z, s.likelihood, s.kl, s.eps, s.floor, s.beta, s.event_dim, s.latent_dim, s.mask);
  }
};

struct ElboLossFunction : torch::autograd::Function<ElboLossFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, TensorList inputs, const ElboState& given) {
    const at::AutoDispatchBelowADInplaceOrView below;
    Tensors saved = inputs.vec();
    if (given.donate) saved[kRecon] = Tensor();
    ctx->save_for_backward(saved);
    ElboState& s = carry(ctx, given);
    const auto x = inputs.slice(0, s.likelihood_inputs), z = inputs.slice(s.likelihood_inputs);
    auto [loss, grads] =
        s.donate ? loss_with_grad(x, z, s.likelihood, s.kl, s.eps, s.floor, s.beta, s.event_dim, s.latent_dim, s.mean, s.mask, true)
                 : VF_CALL(is_plain(inputs), elbo_loss_with_grad, x, z, s.likelihood, s.kl, s.eps, s.floor, s.beta, s.event_dim,
                           s.latent_dim, s.mean, s.mask);
    // Whatever else saved the reconstruction for its backward pass finds it changed, and says so there.
    if (s.donate) torch::autograd::impl::bump_version(inputs[kRecon]);
    s.grads = std::move(grads);
    return loss;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& upstream) {
    ElboState& s = carried<ElboState>(ctx);
    const auto saved = ctx->get_saved_variables();  // refuses a second pass over a freed graph, or inputs changed in place
    const auto grads = written_gradients(s.grads, upstream[0]);
    if (!grads) {
      TORCH_CHECK(!s.donate,
                  "elbo_loss with donate_recon=True: recon holds its gradient now, so there is neither a second backward pass "
                  "over a retained graph nor a derivative of the gradient; call it with donate_recon=False for those");
      const Tensor grad = per_sample_grad(s, saved, upstream[0]);
      return spread(ElboOp::backward(plain_backward(saved, grad), grad, saved, s), s.mask, saved.size() + 1);
    }
    return spread(*grads, s.mask, saved.size() + 1);
  }

  static Tensor per_sample_grad(const ElboState& s, TensorList inputs, const Tensor& upstream) {
    const auto x_shape = common_shape(inputs.slice(0, s.likelihood_inputs)), z_shape = common_shape(inputs.slice(s.likelihood_inputs));
    const auto batch = at::infer_size_dimvector(batch_of(x_shape, s.event_dim), batch_of(z_shape, s.latent_dim));
    const double rows = static_cast<double>(c10::multiply_integers(batch));
    return (upstream * (s.mean ? -1.0 / rows : -1.0)).expand(batch);
  }
};

ElboState state_of(const Tensors& inputs, size_t likelihood_inputs, string_view likelihood, string_view kl, double eps, double floor,
                   double beta, int64_t event_dim, int64_t latent_dim, bool mean, bool donate) {
  return {std::string(likelihood),
          std::string(kl),
          eps,
          floor,
          beta,
          event_dim,
          latent_dim,
          likelihood_inputs,
          mean,
          donate && inputs[kRecon].requires_grad(),
          requires_grad_mask(inputs),
          {}};
}

Tensor loss_autograd(TensorList x, TensorList z, string_view likelihood, string_view kl, double eps, double floor, double beta,
                     int64_t event_dim, int64_t latent_dim, bool mean, bool donate) {
  const Tensors inputs = concatenate(x, z);
  if (!wants_grad(inputs)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return VF_CALL(is_plain(inputs), elbo_loss, x, z, likelihood, kl, eps, floor, beta, event_dim, latent_dim, mean);
  }
  return ElboLossFunction::apply(TensorList(inputs),
                                 state_of(inputs, x.size(), likelihood, kl, eps, floor, beta, event_dim, latent_dim, mean, donate));
}

}  // namespace

Tensor elbo_kernel(TensorList x, TensorList z, string_view likelihood, string_view kl, double eps, double floor, double beta,
                   int64_t event_dim, int64_t latent_dim) {
  Head h = Head::make(x, z, likelihood, kl, eps, floor, beta, event_dim, latent_dim);
  Tensor out = h.empty_result(x, h.data.batch());
  h.args.value = out.data_ptr();
  h.launch(x);
  return out;
}

Tensors elbo_backward_kernel(const Tensor& grad, TensorList x, TensorList z, string_view likelihood, string_view kl, double eps,
                             double floor, double beta, int64_t event_dim, int64_t latent_dim, const Mask& mask) {
  Head h = Head::make(x, z, likelihood, kl, eps, floor, beta, event_dim, latent_dim);
  const RowGrad g = row_grad(grad, h.data.batch(), h.is_double, h.likelihood.keep);
  for (TermArgs* t : {&h.likelihood.args, &h.kl.args}) {
    t->row_grad.data = g.data;
    t->row_grad.stride = g.stride;
  }
  h.add_gradients(x, z, mask);
  h.launch(x);
  return h.input_gradients(x, z, mask);
}

std::tuple<Tensor, Tensors> elbo_loss_with_grad_kernel(TensorList x, TensorList z, string_view likelihood, string_view kl, double eps,
                                                       double floor, double beta, int64_t event_dim, int64_t latent_dim, bool mean,
                                                       const Mask& mask) {
  return loss_with_grad(x, z, likelihood, kl, eps, floor, beta, event_dim, latent_dim, mean, mask, false);
}

Tensor elbo_loss_kernel(TensorList x, TensorList z, string_view likelihood, string_view kl, double eps, double floor, double beta,
                        int64_t event_dim, int64_t latent_dim, bool mean) {
  Mask none;
  for (size_t i = 0; i < x.size() + z.size(); ++i) none.push_back(false);
  return std::get<0>(elbo_loss_with_grad_kernel(x, z, likelihood, kl, eps, floor, beta, event_dim, latent_dim, mean, none));
}

Tensor elbo_autograd(TensorList x, TensorList z, string_view likelihood, string_view kl, double eps, double floor, double beta,
                     int64_t event_dim, int64_t latent_dim) {
  const Tensors inputs = concatenate(x, z);
  return OpFunction<ElboOp>::apply(TensorList(inputs),
                                   state_of(inputs, x.size(), likelihood, kl, eps, floor, beta, event_dim, latent_dim, false, false));
}

Tensor elbo_loss_autograd(TensorList x, TensorList z, string_view likelihood, string_view kl, double eps, double floor, double beta,
                          int64_t event_dim, int64_t latent_dim, bool mean) {
  return loss_autograd(x, z, likelihood, kl, eps, floor, beta, event_dim, latent_dim, mean, false);
}

Tensor elbo(const Tensors& x, const Tensors& z, const std::string& likelihood, const std::string& kl, double eps, double floor, double beta,
            int64_t event_dim, int64_t latent_dim) {
  const bool plain = is_plain(x) && is_plain(z);
  if (plain && (wants_grad(x) || wants_grad(z))) {
    RECORD_FUNCTION("vae_fast::elbo", std::vector<c10::IValue>());
    return elbo_autograd(x, z, likelihood, kl, eps, floor, beta, event_dim, latent_dim);
  }
  return VF_CALL(plain, elbo, x, z, likelihood, kl, eps, floor, beta, event_dim, latent_dim);
}

Tensor elbo_loss(const Tensors& x, const Tensors& z, const std::string& likelihood, const std::string& kl, double eps, double floor,
                 double beta, int64_t event_dim, int64_t latent_dim, bool mean, bool donate) {
  const bool plain = is_plain(x) && is_plain(z);
  if (plain) {
    RECORD_FUNCTION("vae_fast::elbo_loss", std::vector<c10::IValue>());
    return loss_autograd(x, z, likelihood, kl, eps, floor, beta, event_dim, latent_dim, mean, donate);
  }
  return VF_CALL(plain, elbo_loss, x, z, likelihood, kl, eps, floor, beta, event_dim, latent_dim, mean);
}

}  // namespace ops
}  // namespace vae_fast
