// The whole head of a VAE: likelihood minus beta KL of every sample, and the reduced loss that writes its gradient in the same pass.
#include <ATen/ExpandUtils.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
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
  bool parts, mean, donate;
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

/// A result and, beside it, the two that it is made of; these are undefined where they are not wanted.
struct Results {
  Tensor whole, likelihood, kl;

  static Results of(Tensor whole) { return {std::move(whole), {}, {}}; }
  static Results of(const Parts& all) { return {std::get<0>(all), std::get<1>(all), std::get<2>(all)}; }
  static Results of(const torch::autograd::variable_list& all) { return all.size() == 1 ? of(all[0]) : Results{all[0], all[1], all[2]}; }
  Parts all() const { return {whole, likelihood, kl}; }
  /// As an autograd function returns them: the parts have no gradient.
  torch::autograd::variable_list outputs(torch::autograd::AutogradContext* ctx) const {
    if (!likelihood.defined()) return {whole};
    ctx->mark_non_differentiable({likelihood, kl});
    ctx->set_materialize_grads(false);  // zeros for the parts, which nobody reads
    return {whole, likelihood, kl};
  }
};

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
    h.likelihood.args.bound = bound_of(c.likelihood, x[0]);
    h.kl.args.bound = bound_of(c.kl, x[0]);
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
    const int64_t columns = data.columns + latent.columns;
    for (size_t i = 0; i < mask.size(); ++i) {
      if (!mask[i]) continue;
      if (donate && i == kRecon) {
        grads.push_back(x[kRecon].variable_data());
        likelihood.args.grad[kRecon] = dense_stream(grads.back(), data.columns);
        continue;
      }
      const bool in_x = i < x.size();
      const int k = static_cast<int>(in_x ? i : i - x.size());
      grads.push_back(in_x ? likelihood.add_gradient(k, x[i], data, columns)
                           : kl.add_gradient(k, z[static_cast<size_t>(k)], latent, columns));
    }
  }

  /// Room for what a launch writes.
  Results room(TensorList x, at::IntArrayRef shape, bool parts, void*& whole, void* (&part)[2]) const {
    const auto options = x[1].options().dtype(compute_type(is_double));
    Results r = Results::of(at::empty(shape, options));
    whole = r.whole.data_ptr();
    if (!parts) return r;
    r.likelihood = at::empty(shape, options);
    r.kl = at::empty(shape, options);
    part[0] = r.likelihood.data_ptr();
    part[1] = r.kl.data_ptr();
    return r;
  }

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

Results per_sample(TensorList x, TensorList z, const Settings& c, bool parts) {
  Head h = Head::make(x, z, c);
  Results out = h.room(x, h.data.batch(), parts, h.args.value, h.args.part_value);
  h.launch(x);
  return out;
}

std::pair<Results, Tensors> loss_with_grad(TensorList x, TensorList z, const Settings& c, bool mean, bool parts, const Mask& mask,
                                           bool donate = false) {
  Head h = Head::make(x, z, c);
  Results loss = h.room(x, {}, parts, h.args.loss, h.args.part_loss);
  const double weight = mean ? 1.0 / static_cast<double>(h.data.rows) : 1.0;
  h.args.loss_scale = -weight;
  h.args.part_scale = weight;
  h.likelihood.args.row_grad.constant = -weight;
  h.kl.args.row_grad.constant = Head::beta(c) * weight;
  h.add_gradients(x, z, mask, donate);
  h.launch(x);
  return {std::move(loss), h.input_gradients(x, z, mask)};
}

Results loss_alone(TensorList x, TensorList z, const Settings& c, bool mean, bool parts) {
  Mask none;
  for (size_t i = 0; i < x.size() + z.size(); ++i) none.push_back(false);
  return loss_with_grad(x, z, c, mean, parts, none).first;
}

struct ElboFunction : torch::autograd::Function<ElboFunction> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, TensorList inputs, const ElboState& given) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward(inputs.vec());
    const ElboState& s = carry(ctx, given);
    return value(is_plain(inputs), s.x(inputs), s.z(inputs), s.call(), s.parts).outputs(ctx);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grads) {
    const ElboState& s = carried<ElboState>(ctx);
    const auto saved = ctx->get_saved_variables();
    return spread(gradients(plain_backward(saved, grads[0]), grads[0], saved, s), s.mask, saved.size() + 1);
  }

  static Results value(bool plain, TensorList x, TensorList z, const Settings& c, bool parts) {
    if (parts) return Results::of(VF_CALL(plain, elbo_parts, x, z, VF_SETTINGS(c)));
    return Results::of(VF_CALL(plain, elbo, x, z, VF_SETTINGS(c)));
  }

  static Tensors gradients(bool plain, const Tensor& grad, TensorList saved, const ElboState& s) {
    const Settings c = s.call();
    return VF_CALL(plain, elbo_backward, grad, s.x(saved), s.z(saved), VF_SETTINGS(c), s.mask);
  }
};

struct ElboLossFunction : torch::autograd::Function<ElboLossFunction> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, TensorList inputs, const ElboState& given) {
    const at::AutoDispatchBelowADInplaceOrView below;
    Tensors saved = inputs.vec();
    if (given.donate) saved[kRecon] = Tensor();
    ctx->save_for_backward(saved);
    ElboState& s = carry(ctx, given);
    const auto x = s.x(inputs), z = s.z(inputs);
    const Settings c = s.call();
    const bool plain = is_plain(inputs);
    if (!s.donate && !may_write_gradients(plain, inputs, s)) return value(plain, x, z, c, s.mean, s.parts).outputs(ctx);
    auto [loss, grads] =
        s.donate ? loss_with_grad(x, z, c, s.mean, s.parts, s.mask, true) : value_with_grad(plain, x, z, c, s.mean, s.parts, s.mask);
    // Whatever else saved the reconstruction for its backward pass finds it changed, and says so there.
    if (s.donate) torch::autograd::impl::bump_version(inputs[kRecon]);
    s.grads = std::move(grads);
    return loss.outputs(ctx);
  }

  static Results value(bool plain, TensorList x, TensorList z, const Settings& c, bool mean, bool parts) {
    if (parts) return Results::of(VF_CALL(plain, elbo_loss_parts, x, z, VF_SETTINGS(c), mean));
    return Results::of(VF_CALL(plain, elbo_loss, x, z, VF_SETTINGS(c), mean));
  }

  static std::pair<Results, Tensors> value_with_grad(bool plain, TensorList x, TensorList z, const Settings& c, bool mean, bool parts,
                                                     const Mask& mask) {
    if (parts) {
      auto [loss, likelihood, kl, grads] = VF_CALL(plain, elbo_loss_parts_with_grad, x, z, VF_SETTINGS(c), mean, mask);
      return {{loss, likelihood, kl}, std::move(grads)};
    }
    auto [loss, grads] = VF_CALL(plain, elbo_loss_with_grad, x, z, VF_SETTINGS(c), mean, mask);
    return {Results::of(loss), std::move(grads)};
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
      return spread(ElboFunction::gradients(plain_backward(saved, grad), grad, saved, s), s.mask, saved.size() + 1);
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

ElboState state_of(const Tensors& inputs, size_t likelihood_inputs, const Settings& c, bool parts, bool mean, bool donate) {
  return {std::string(c.likelihood),
          std::string(c.kl),
          ParamList(c.params),
          c,
          likelihood_inputs,
          parts,
          mean,
          donate && inputs[kRecon].requires_grad(),
          requires_grad_mask(inputs),
          {}};
}

Results elbo_graph(TensorList x, TensorList z, const Settings& c, bool parts) {
  const Tensors inputs = concatenate(x, z);
  return Results::of(ElboFunction::apply(TensorList(inputs), state_of(inputs, x.size(), c, parts, false, false)));
}

Results loss_graph(TensorList x, TensorList z, const Settings& c, bool parts, bool mean, bool donate) {
  const Tensors inputs = concatenate(x, z);
  if (!wants_grad(inputs)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ElboLossFunction::value(is_plain(inputs), x, z, c, mean, parts);
  }
  return Results::of(ElboLossFunction::apply(TensorList(inputs), state_of(inputs, x.size(), c, parts, mean, donate)));
}

/// As Python calls it.
Results eager_elbo(const Tensors& x, const Tensors& z, const Settings& c, bool parts) {
  const bool plain = is_plain(x) && is_plain(z);
  if (plain && (wants_grad(x) || wants_grad(z))) {
    RECORD_FUNCTION("vae_fast::elbo", std::vector<c10::IValue>());
    return elbo_graph(x, z, c, parts);
  }
  return ElboFunction::value(plain, x, z, c, parts);
}

Results eager_loss(const Tensors& x, const Tensors& z, const Settings& c, bool parts, bool mean, bool donate) {
  const bool plain = is_plain(x) && is_plain(z);
  if (plain) {
    RECORD_FUNCTION("vae_fast::elbo_loss", std::vector<c10::IValue>());
    return loss_graph(x, z, c, parts, mean, donate);
  }
  return ElboLossFunction::value(plain, x, z, c, mean, parts);
}

}  // namespace

Tensor elbo_kernel(TensorList x, TensorList z, VF_ELBO_SETTINGS) { return per_sample(x, z, VF_GIVEN_SETTINGS, false).whole; }
Parts elbo_parts_kernel(TensorList x, TensorList z, VF_ELBO_SETTINGS) { return per_sample(x, z, VF_GIVEN_SETTINGS, true).all(); }

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
  auto [loss, grads] = loss_with_grad(x, z, VF_GIVEN_SETTINGS, mean, false, mask);
  return {loss.whole, std::move(grads)};
}
std::tuple<Tensor, Tensor, Tensor, Tensors> elbo_loss_parts_with_grad_kernel(TensorList x, TensorList z, VF_ELBO_SETTINGS, bool mean,
                                                                             const Mask& mask) {
  auto [loss, grads] = loss_with_grad(x, z, VF_GIVEN_SETTINGS, mean, true, mask);
  return {loss.whole, loss.likelihood, loss.kl, std::move(grads)};
}

Tensor elbo_loss_kernel(TensorList x, TensorList z, VF_ELBO_SETTINGS, bool mean) {
  return loss_alone(x, z, VF_GIVEN_SETTINGS, mean, false).whole;
}
Parts elbo_loss_parts_kernel(TensorList x, TensorList z, VF_ELBO_SETTINGS, bool mean) {
  return loss_alone(x, z, VF_GIVEN_SETTINGS, mean, true).all();
}

Tensor elbo_autograd(TensorList x, TensorList z, VF_ELBO_SETTINGS) { return elbo_graph(x, z, VF_GIVEN_SETTINGS, false).whole; }
Parts elbo_parts_autograd(TensorList x, TensorList z, VF_ELBO_SETTINGS) { return elbo_graph(x, z, VF_GIVEN_SETTINGS, true).all(); }

Tensor elbo_loss_autograd(TensorList x, TensorList z, VF_ELBO_SETTINGS, bool mean) {
  return loss_graph(x, z, VF_GIVEN_SETTINGS, false, mean, false).whole;
}
Parts elbo_loss_parts_autograd(TensorList x, TensorList z, VF_ELBO_SETTINGS, bool mean) {
  return loss_graph(x, z, VF_GIVEN_SETTINGS, true, mean, false).all();
}

Tensor elbo(const Tensors& x, const Tensors& z, VF_ELBO_SETTINGS) { return eager_elbo(x, z, VF_GIVEN_SETTINGS, false).whole; }
Parts elbo_parts(const Tensors& x, const Tensors& z, VF_ELBO_SETTINGS) { return eager_elbo(x, z, VF_GIVEN_SETTINGS, true).all(); }

Tensor elbo_loss(const Tensors& x, const Tensors& z, VF_ELBO_SETTINGS, bool mean, bool donate) {
  return eager_loss(x, z, VF_GIVEN_SETTINGS, false, mean, donate).whole;
}
Parts elbo_loss_parts(const Tensors& x, const Tensors& z, VF_ELBO_SETTINGS, bool mean, bool donate) {
  return eager_loss(x, z, VF_GIVEN_SETTINGS, true, mean, donate).all();
}

}  // namespace ops
}  // namespace vae_fast
