// The whole head of a VAE: likelihood minus beta KL of every sample, and the reduced loss that writes its gradient in the same pass.
#include <ATen/ExpandUtils.h>
#include <ATen/record_function.h>

#include "autograd.h"
#include "device.h"
#include "layout.h"

namespace vae_fast {
namespace ops {
namespace {

/// What a call says beside its tensors: VF_ELBO_SETTINGS in one piece.
struct Settings {
  string_view likelihood;
  Numbers params;
  string_view kl;
  double floor;
  OptionalTensor floor_at;
  double beta;
  OptionalTensor beta_at;
  int64_t event_dim, latent_dim;
};
#define VF_SETTINGS_AS_GIVEN likelihood, params, kl, floor, floor_at, beta, beta_at, event_dim, latent_dim
#define VF_GIVEN_SETTINGS \
  Settings { VF_SETTINGS_AS_GIVEN }
#define VF_SETTINGS(c) c.likelihood, c.params, c.kl, c.floor, c.floor_at, c.beta, c.beta_at, c.event_dim, c.latent_dim

struct ElboState {
  std::string likelihood, kl;
  ParamList params;
  Settings settings;         // its names and parameters are those of the call, which is over when the backward pass begins
  size_t likelihood_inputs;  // of the concatenated inputs
  bool mean, donate;
  Mask mask;
  Tensors grads;  // of a loss: what its forward pass has already written

  Settings call() const {
    Settings c = settings;
    c.likelihood = likelihood;
    c.params = params;
    c.kl = kl;
    return c;
  }
  TensorList x(TensorList inputs) const { return inputs.slice(0, likelihood_inputs); }
  TensorList z(TensorList inputs) const { return inputs.slice(likelihood_inputs); }
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

  static Head make(TensorList x, TensorList z, const Settings& c) {
    const int32_t lik = term_index(c.likelihood), div = term_index(c.kl);
    TORCH_CHECK_VALUE(!is_kl(lik) && is_kl(div), "elbo of '", c.likelihood, "' and '", c.kl, "': expected a likelihood and a KL");
    const auto x_shape = common_shape(x), z_shape = common_shape(z);
    TORCH_CHECK_VALUE(x[0].device() == z[0].device(), "tensors on ", x[0].device(), " and ", z[0].device(), ": expected one device");
    TORCH_CHECK_VALUE(c.event_dim >= 0 && c.event_dim <= static_cast<int64_t>(x_shape.size()), "event_dim=", c.event_dim,
                      ": expected 0 to ", x_shape.size());
    TORCH_CHECK_VALUE(c.latent_dim >= 0 && c.latent_dim <= static_cast<int64_t>(z_shape.size()), "latent_dim=", c.latent_dim,
                      ": expected 0 to ", z_shape.size());
    const auto xb = batch_of(x_shape, c.event_dim);
    const auto zb = batch_of(z_shape, c.latent_dim);
    const at::DimVector batch = xb == zb ? at::DimVector(xb) : at::infer_size_dimvector(xb, zb);
    Head h{any_double(x) || any_double(z),
           Layout(with_event(batch, x_shape, c.event_dim), c.event_dim, x[1], false),
           Layout(with_event(batch, z_shape, c.latent_dim), c.latent_dim, z[0], false),
           {},
           {},
           {},
           {}};
    h.likelihood = prepare_term(x, lik, h.data, h.is_double, c.params);
    h.kl = prepare_term(z, div, h.latent, h.is_double, c.floor);
    h.kl.args.param_at = number_at(c.floor_at, x[0]);
    h.kl.args.scale_at = number_at(c.beta_at, x[0]);
    h.kl.args.coefficient = -beta(c);
    h.kl.args.row_grad.constant = -beta(c);
    h.args.terms_used = 2;
    h.args.rows = h.data.rows;
    h.args.is_double = h.is_double;
    return h;
  }

  /// Beside a beta on the device the number counts for nothing.
  static double beta(const Settings& c) { return c.beta_at ? 1.0 : c.beta; }

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

std::tuple<Tensor, Tensors> loss_with_grad(TensorList x, TensorList z, const Settings& c, bool mean, const Mask& mask, bool donate) {
  Head h = Head::make(x, z, c);
  Tensor loss = h.empty_result(x, {});
  const double scale = mean ? -1.0 / static_cast<double>(h.data.rows) : -1.0;
  h.args.loss = loss.data_ptr();
  h.args.loss_scale = scale;
  h.likelihood.args.row_grad.constant = scale;
  h.kl.args.row_grad.constant = -Head::beta(c) * scale;
  h.add_gradients(x, z, mask, donate);
  h.launch(x);
  return {loss, h.input_gradients(x, z, mask)};
}

struct ElboOp {
  using State = ElboState;
  static constexpr bool kSavesResult = false;

  static Tensor forward(bool plain, TensorList inputs, const State& s) {
    const Settings c = s.call();
    return VF_CALL(plain, elbo, s.x(inputs), s.z(inputs), VF_SETTINGS(c));
  }
  static Tensors backward(bool plain, const Tensor& grad, TensorList saved, const State& s) {
    const Settings c = s.call();
    return VF_CALL(plain, elbo_backward, grad, s.x(saved), s.z(saved), VF_SETTINGS(c), s.mask);
  }
};

struct ElboLossFunction : torch::autograd::Function<ElboLossFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, TensorList inputs, const ElboState& given) {
    const at::AutoDispatchBelowADInplaceOrView below;
    Tensors saved = inputs.vec();
    if (given.donate) saved[kRecon] = Tensor();
    ctx->save_for_backward(saved);
    ElboState& s = carry(ctx, given);
    const auto x = s.x(inputs), z = s.z(inputs);
    const Settings c = s.call();
    const bool plain = is_plain(inputs);
    if (!s.donate && !may_write_gradients(plain, inputs, s)) return VF_CALL(plain, elbo_loss, x, z, VF_SETTINGS(c), s.mean);
    auto [loss, grads] = s.donate ? loss_with_grad(x, z, c, s.mean, s.mask, true)
                                  : VF_CALL(plain, elbo_loss_with_grad, x, z, VF_SETTINGS(c), s.mean, s.mask);
    // Whatever else saved the reconstruction for its backward pass finds it changed, and says so there.
    if (s.donate) torch::autograd::impl::bump_version(inputs[kRecon]);
    s.grads = std::move(grads);
    return loss;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& upstream) {
    ElboState& s = carried<ElboState>(ctx);
    const auto saved = ctx->get_saved_variables();  // refuses a second pass over a freed graph, or inputs changed in place
    const bool exactly = !s.donate && any_16bit(s.grads);
    auto grads = written_gradients(s.grads, upstream[0], exactly);
    if (!grads) {
      TORCH_CHECK(!s.donate,
                  "elbo_loss with donate_recon=True: recon holds its gradient now, so there is neither a second backward pass "
                  "over a retained graph nor a derivative of the gradient; call it with donate_recon=False for those");
      const Tensor grad = per_sample_grad(s, saved, upstream[0]);
      return spread(ElboOp::backward(plain_backward(saved, grad), grad, saved, s), s.mask, saved.size() + 1);
    }
    if (exactly) write_unless_exact(s, saved, upstream[0], *grads);
    return spread(*grads, s.mask, saved.size() + 1);
  }

  /// Whether the forward pass may write gradients that the upstream one multiplies later. A float16 one it may not: divided by the batch
  /// size it leaves the range of normal halves, which is what loss scaling comes too late for. A bfloat16 one has float32's range; it is
  /// written anew where the product would be rounded once more (below), for which it has to be the kernel's own buffer.
  static bool may_write_gradients(bool plain, TensorList inputs, const ElboState& s) {
    Tensors marked;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (s.mask[i]) marked.push_back(inputs[i]);
    }
    if (!any_16bit(marked)) return true;
    if (!plain || any_double(inputs)) return false;
    const auto [data, latent] = full_shapes(s, inputs);
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!s.mask[i]) continue;
      const at::IntArrayRef full = i < s.likelihood_inputs ? data : latent;
      if (inputs[i].scalar_type() == at::kHalf || inputs[i].sizes() != full) return false;
    }
    return true;
  }

  /// The shapes of data and latents, broadcast to one batch.
  static std::pair<at::DimVector, at::DimVector> full_shapes(const ElboState& s, TensorList inputs) {
    const auto x = common_shape(s.x(inputs)), z = common_shape(s.z(inputs));
    const int64_t event_dim = s.settings.event_dim, latent_dim = s.settings.latent_dim;
    const auto batch = at::infer_size_dimvector(batch_of(x, event_dim), batch_of(z, latent_dim));
    return {Head::with_event(batch, x, event_dim), Head::with_event(batch, z, latent_dim)};
  }

  static Tensor per_sample_grad(const ElboState& s, TensorList inputs, const Tensor& upstream) {
    const auto data = full_shapes(s, inputs).first;
    const auto batch = batch_of(data, s.settings.event_dim);
    const double rows = static_cast<double>(c10::multiply_integers(batch));
    return (upstream * (s.mean ? -1.0 / rows : -1.0)).expand(batch);
  }

  /// Writes the gradients over what the forward pass wrote, if the upstream one is no power of two; decided on the device.
  static void write_unless_exact(const ElboState& s, TensorList inputs, const Tensor& upstream, const Tensors& grads) {
    const TensorList x = s.x(inputs), z = s.z(inputs);
    const Settings c = s.call();
    Head h = Head::make(x, z, c);
    const double scale = s.mean ? -1.0 / static_cast<double>(h.data.rows) : -1.0;
    h.likelihood.args.row_grad.constant = scale;
    h.kl.args.row_grad.constant = -Head::beta(c) * scale;
    const RowGrad one = row_grad(upstream, h.data.batch(), h.is_double, h.likelihood.keep);
    for (TermArgs* t : {&h.likelihood.args, &h.kl.args}) {
      t->row_grad.data = one.data;
      t->row_grad.stride = one.stride;
    }
    for (size_t i = 0, next = 0; i < inputs.size(); ++i) {
      if (!s.mask[i]) continue;
      const bool in_x = i < x.size();
      TermArgs& term = in_x ? h.likelihood.args : h.kl.args;
      term.grad[in_x ? i : i - x.size()] = dense_stream(grads[next++], in_x ? h.data.columns : h.latent.columns);
    }
    h.args.unless_power_of_two = one.data;
    h.launch(x);
  }
};

ElboState state_of(const Tensors& inputs, size_t likelihood_inputs, const Settings& c, bool mean, bool donate) {
  return {std::string(c.likelihood),
          std::string(c.kl),
          ParamList(c.params),
          c,
          likelihood_inputs,
          mean,
          donate && inputs[kRecon].requires_grad(),
          requires_grad_mask(inputs),
          {}};
}

Tensor loss_autograd(TensorList x, TensorList z, const Settings& c, bool mean, bool donate) {
  const Tensors inputs = concatenate(x, z);
  if (!wants_grad(inputs)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return VF_CALL(is_plain(inputs), elbo_loss, x, z, VF_SETTINGS(c), mean);
  }
  return ElboLossFunction::apply(TensorList(inputs), state_of(inputs, x.size(), c, mean, donate));
}

}  // namespace

Tensor elbo_kernel(TensorList x, TensorList z, VF_ELBO_SETTINGS) {
  Head h = Head::make(x, z, VF_GIVEN_SETTINGS);
  Tensor out = h.empty_result(x, h.data.batch());
  h.args.value = out.data_ptr();
  h.launch(x);
  return out;
}

Tensors elbo_backward_kernel(const Tensor& grad, TensorList x, TensorList z, VF_ELBO_SETTINGS, const Mask& mask) {
  Head h = Head::make(x, z, VF_GIVEN_SETTINGS);
  const RowGrad g = row_grad(grad, h.data.batch(), h.is_double, h.likelihood.keep);
  for (TermArgs* t : {&h.likelihood.args, &h.kl.args}) {
    t->row_grad.data = g.data;
    t->row_grad.stride = g.stride;
  }
  h.add_gradients(x, z, mask);
  h.launch(x);
  return h.input_gradients(x, z, mask);
}

std::tuple<Tensor, Tensors> elbo_loss_with_grad_kernel(TensorList x, TensorList z, VF_ELBO_SETTINGS, bool mean, const Mask& mask) {
  return loss_with_grad(x, z, VF_GIVEN_SETTINGS, mean, mask, false);
}

Tensor elbo_loss_kernel(TensorList x, TensorList z, VF_ELBO_SETTINGS, bool mean) {
  Mask none;
  for (size_t i = 0; i < x.size() + z.size(); ++i) none.push_back(false);
  return std::get<0>(loss_with_grad(x, z, VF_GIVEN_SETTINGS, mean, none, false));
}

Tensor elbo_autograd(TensorList x, TensorList z, VF_ELBO_SETTINGS) {
  const Tensors inputs = concatenate(x, z);
  return OpFunction<ElboOp>::apply(TensorList(inputs), state_of(inputs, x.size(), VF_GIVEN_SETTINGS, false, false));
}

Tensor elbo_loss_autograd(TensorList x, TensorList z, VF_ELBO_SETTINGS, bool mean) {
  return loss_autograd(x, z, VF_GIVEN_SETTINGS, mean, false);
}

Tensor elbo(const Tensors& x, const Tensors& z, VF_ELBO_SETTINGS) {
  const bool plain = is_plain(x) && is_plain(z);
  if (plain && (wants_grad(x) || wants_grad(z))) {
    RECORD_FUNCTION("vae_fast::elbo", std::vector<c10::IValue>());
    return elbo_autograd(x, z, VF_SETTINGS_AS_GIVEN);
  }
  return VF_CALL(plain, elbo, x, z, VF_SETTINGS_AS_GIVEN);
}

Tensor elbo_loss(const Tensors& x, const Tensors& z, VF_ELBO_SETTINGS, bool mean, bool donate) {
  const bool plain = is_plain(x) && is_plain(z);
  if (plain) {
    RECORD_FUNCTION("vae_fast::elbo_loss", std::vector<c10::IValue>());
    return loss_autograd(x, z, VF_GIVEN_SETTINGS, mean, donate);
  }
  return VF_CALL(plain, elbo_loss, x, z, VF_SETTINGS_AS_GIVEN, mean);
}

}  // namespace ops
}  // namespace vae_fast
