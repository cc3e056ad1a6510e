// Reparameterized sampling with or without the KL of the same pass. The noise is kept as (seed, offset), or, on the CPU, as a tensor where
// that is small: drawing it again costs more than reading it from the cache, and the values are the same.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/record_function.h>

#include <algorithm>

#include "autograd.h"
#include "device.h"
#include "layout.h"

namespace vae_fast {
namespace ops {
namespace {

/// The sample's own inputs, mean and scale, decide its shape; a prior only broadcasts to it.
struct SampleProblem {
  at::DimVector shape;  // of one sample
  bool is_double;
  Layout layout;

  SampleProblem(TensorList inputs, int64_t event_dim)
      : shape(common_shape(inputs.slice(0, 2))), is_double(any_double(inputs)), layout(shape, event_dim, inputs[0], true) {
    const auto full = common_shape(inputs);
    TORCH_CHECK_VALUE(full == shape, "prior broadcasts to ", at::IntArrayRef(full), ", mu and scale to ", at::IntArrayRef(shape),
                      ": expected a prior that broadcasts to them");
  }
  at::DimVector sample_shape(int64_t num_samples) const {
    at::DimVector s;
    if (num_samples > 0) s.push_back(num_samples);
    s.append(shape.begin(), shape.end());
    return s;
  }
};

/// By the number of dimensions alone: their sizes may be symbols of a graph being traced.
int64_t no_kl_event_dim(TensorList inputs) { return std::max(inputs[0].dim(), inputs[1].dim()) > 0 ? 1 : 0; }

/// A stream over a tensor of sample_shape, as (samples * rows) x columns.
Stream sample_stream(const Tensor& t, const SampleProblem& p, at::IntArrayRef sample_shape, int64_t event_dim, std::vector<Tensor>& keep) {
  TORCH_CHECK_VALUE(t.sizes() == sample_shape, "noise or gradient has shape ", t.sizes(), ": expected ", sample_shape);
  return stream_of(t, Layout(sample_shape, event_dim, t, true), p.is_double, keep);
}

PhiloxSeed saved_seed(const OptionalTensor& rng_state) {
  TORCH_CHECK_VALUE(rng_state.has_value() && rng_state->scalar_type() == at::kLong && rng_state->numel() == 2 && rng_state->is_contiguous(),
                    "rng_state: expected a contiguous int64 tensor of 2 elements, or noise instead");
  PhiloxSeed seed;
  seed.seed_at = rng_state->const_data_ptr<int64_t>();
  seed.offset_at = seed.seed_at + 1;
  return seed;
}

/// `t`, of the shape of `like` or with samples before it, in the memory order of `like`: channels_last stays channels_last.
Tensor in_order_of(const Tensor& like, Tensor t) {
  if (like.is_contiguous() || !like.is_non_overlapping_and_dense() || t.dim() < like.dim()) return t;
  if (t.sizes().slice(t.dim() - like.dim()) != like.sizes()) return t;
  at::DimVector strides(t.strides());
  std::copy(like.strides().begin(), like.strides().end(), strides.end() - like.dim());
  return at::empty_strided(t.sizes(), strides, t.options()).copy_(t);
}

/// The largest noise that is kept for the backward pass on the CPU, in bytes: what the caches beside the cores hold.
constexpr int64_t kKeptNoise = int64_t{4} << 20;

/// Whether to keep the noise of a sample of `count` elements: on the CPU, if it is small and no larger than z.
bool keeps_noise(TensorList inputs, int64_t count) {
  const auto z = c10::promoteTypes(inputs[0].scalar_type(), inputs[1].scalar_type());
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  return inputs[0].is_cpu() && bytes <= kKeptNoise && c10::elementSize(z) >= sizeof(float);
}

/// z and, if a KL is named, its value. Noise comes from `noise`, or from `seed`, and is then recorded: where `drawn` is given and the noise
/// is small, as it is, else in `rng_out`.
std::tuple<Tensor, Tensor> run(TensorList inputs, const OptionalTensor& noise, const PhiloxSeed& seed, Tensor* rng_out, Tensor* drawn,
                               string_view scale_or_kl, bool with_kl, int64_t num_samples, double floor, int64_t event_dim) {
  const SampleProblem p(inputs, event_dim);
  const auto sample_shape = p.sample_shape(num_samples);
  const auto dtype = c10::promoteTypes(inputs[0].scalar_type(), inputs[1].scalar_type());
  std::vector<Tensor> keep;
  SampleArgs a;
  a.samples = num_samples > 0 ? num_samples : 1;
  a.rows = p.layout.rows;
  a.columns = p.layout.columns;
  a.is_double = p.is_double;
  a.form = scale_form(scale_or_kl);
  a.bound = bound_of(scale_or_kl, inputs[0]);
  a.mu = stream_of(inputs[0], p.layout, p.is_double, keep);
  a.scale = stream_of(inputs[1], p.layout, p.is_double, keep);
  if (noise) {
    TORCH_CHECK_VALUE(noise->device() == inputs[0].device(), "noise is on ", noise->device(), ", mu is on ", inputs[0].device(),
                      ": expected one device");
    a.noise = sample_stream(*noise, p, sample_shape, event_dim, keep);
  } else {
    a.philox = seed;
    if (drawn != nullptr && keeps_noise(inputs, a.samples * a.rows * a.columns)) {
      *drawn = at::empty(sample_shape, inputs[0].options().dtype(at::kFloat));
      a.drawn = drawn->data_ptr<float>();
    } else if (rng_out != nullptr) {
      *rng_out = at::empty({2}, inputs[0].options().dtype(at::kLong));
      a.rng_state = rng_out->data_ptr<int64_t>();
    }
  }
  Tensor z = at::empty(sample_shape, inputs[0].options().dtype(dtype)), kl;
  a.z = dense_stream(z, p.layout.columns);
  Term prepared;
  if (with_kl) {
    prepared = prepare_term(inputs, term_index(scale_or_kl), p.layout, p.is_double, floor);
    kl = at::empty(p.layout.batch(), inputs[0].options().dtype(compute_type(p.is_double)));
    a.with_kl = true;
    a.kl = prepared.args;
    a.kl_value = kl.data_ptr();
  }
  VF_LAUNCH(inputs[0], sample, a);
  return {in_order_of(inputs[0], std::move(z)), kl};
}

struct SampleState {
  std::string term;  // the KL's name, or the scale form's
  bool with_kl;
  int64_t num_samples;
  double floor;
  int64_t event_dim;
  Mask mask;
  PhiloxSeed seed;  // used if neither noise nor rng_state is given, if it was drawn
  bool seed_drawn;
  bool has_noise, has_state;
};

struct SampleFunction : torch::autograd::Function<SampleFunction> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, TensorList inputs, const OptionalTensor& noise,
                                                const OptionalTensor& rng_state, const SampleState& s) {
    const at::AutoDispatchBelowADInplaceOrView below;
    Tensor z, kl, state = rng_state ? *rng_state : Tensor(), kept = noise ? *noise : Tensor();
    if (s.has_noise || s.has_state) {
      const bool plain = is_plain(inputs) && is_plain_or_absent(noise);
      if (s.with_kl) {
        std::tie(z, kl) = VF_CALL(plain, reparameterize_with_kl, inputs, noise, rng_state, s.term, s.num_samples, s.floor, s.event_dim);
      } else {
        z = VF_CALL(plain, reparameterize, inputs, noise, rng_state, s.term, s.num_samples);
      }
    } else {
      TORCH_CHECK_VALUE(s.seed_drawn, "rng_state: expected an int64 tensor of 2 elements, or noise instead");
      std::tie(z, kl) = run(inputs, noise, s.seed, &state, &kept, s.term, s.with_kl, s.num_samples, s.floor, s.event_dim);
    }
    auto saved = inputs.vec();
    saved.push_back(kept);
    saved.push_back(state);
    ctx->save_for_backward(saved);
    ctx->set_materialize_grads(false);
    carry(ctx, s);
    return s.with_kl ? torch::autograd::variable_list{z, kl} : torch::autograd::variable_list{z};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grads) {
    const SampleState& s = carried<SampleState>(ctx);
    auto saved = ctx->get_saved_variables();
    const OptionalTensor state = saved.back().defined() ? OptionalTensor(saved.back()) : std::nullopt;
    saved.pop_back();
    const OptionalTensor noise = saved.back().defined() ? OptionalTensor(saved.back()) : std::nullopt;
    saved.pop_back();
    const size_t slots = saved.size() + 3;
    const OptionalTensor grad_z = grads[0].defined() ? OptionalTensor(grads[0]) : std::nullopt;
    const OptionalTensor grad_kl = s.with_kl && grads[1].defined() ? OptionalTensor(grads[1]) : std::nullopt;
    if (!grad_z && !grad_kl) return torch::autograd::variable_list(slots);
    const bool plain = !at::GradMode::is_enabled() && is_plain(saved) && is_plain_or_absent(noise) && is_plain_or_absent(grad_z) &&
                       is_plain_or_absent(grad_kl);
    const Tensors some =
        VF_CALL(plain, reparameterize_backward, grad_z, grad_kl, saved, noise, state, s.term, s.num_samples, s.floor, s.event_dim, s.mask);
    return spread(some, s.mask, slots);
  }
};

SampleState state_of(TensorList inputs, const OptionalTensor& noise, const OptionalTensor& rng_state, string_view term, bool with_kl,
                     int64_t num_samples, double floor, int64_t event_dim) {
  return {std::string(term),    with_kl, num_samples, floor, event_dim, requires_grad_mask(inputs), {}, false, noise.has_value(),
          rng_state.has_value()};
}

/// (seed, offset) as a tensor, drawn by an op that every mode and subclass sees.
Tensor traced_state(const Tensor& like, const std::optional<at::Generator>& generator) {
  return VF_CALL(false, draw_seed, like, generator);
}

}  // namespace

Tensor reparameterize_kernel(TensorList inputs, const OptionalTensor& noise, const OptionalTensor& rng_state, string_view scale,
                             int64_t num_samples) {
  const PhiloxSeed seed = noise ? PhiloxSeed{} : saved_seed(rng_state);
  return std::get<0>(run(inputs, noise, seed, nullptr, nullptr, scale, false, num_samples, 0.0, no_kl_event_dim(inputs)));
}

std::tuple<Tensor, Tensor> reparameterize_with_kl_kernel(TensorList inputs, const OptionalTensor& noise, const OptionalTensor& rng_state,
                                                         string_view kl, int64_t num_samples, double floor, int64_t event_dim) {
  const PhiloxSeed seed = noise ? PhiloxSeed{} : saved_seed(rng_state);
  return run(inputs, noise, seed, nullptr, nullptr, kl, true, num_samples, floor, event_dim);
}

Tensors reparameterize_backward_kernel(const OptionalTensor& grad_z, const OptionalTensor& grad_kl, TensorList inputs,
                                       const OptionalTensor& noise, const OptionalTensor& rng_state, string_view term, int64_t num_samples,
                                       double floor, int64_t event_dim, const Mask& mask) {
  const SampleProblem p(inputs, event_dim);
  const auto sample_shape = p.sample_shape(num_samples);
  Term prepared;
  std::vector<Tensor>& keep = prepared.keep;
  SampleBackwardArgs a;
  a.samples = num_samples > 0 ? num_samples : 1;
  a.rows = p.layout.rows;
  a.columns = p.layout.columns;
  a.is_double = p.is_double;
  a.form = scale_form(term);
  a.bound = bound_of(term, inputs[0]);
  if (grad_kl) {
    prepared = prepare_term(inputs, term_index(term), p.layout, p.is_double, floor);
    prepared.args.row_grad = row_grad(*grad_kl, p.layout.batch(), p.is_double, keep);
  }
  prepared.args.is_double = p.is_double;
  a.mu = stream_of(inputs[0], p.layout, p.is_double, keep);
  a.scale = stream_of(inputs[1], p.layout, p.is_double, keep);
  if (grad_z) a.grad_z = sample_stream(*grad_z, p, sample_shape, event_dim, keep);
  if (noise) {
    a.noise = sample_stream(*noise, p, sample_shape, event_dim, keep);
  } else {
    a.philox = saved_seed(rng_state);
  }
  Tensors grads;
  for (size_t k = 0; k < mask.size(); ++k) {
    if (!mask[k]) continue;
    grads.push_back(prepared.add_gradient(static_cast<int>(k), inputs[k], p.layout, 0));
    if (k >= 2 && !grad_kl) grads.back().zero_();
  }
  a.grad_mu = prepared.args.grad[0];
  a.grad_scale = prepared.args.grad[1];
  prepared.args.grad[0] = prepared.args.grad[1] = Stream{};
  a.with_kl = grad_kl.has_value();
  a.kl = prepared.args;
  VF_LAUNCH(inputs[0], sample_backward, a);
  for (size_t k = 0, next = 0; k < mask.size(); ++k) {
    if (mask[k]) grads[next] = in_order_of(inputs[k], to_input(grads[next], inputs[k])), ++next;
  }
  return grads;
}

Tensor reparameterize_autograd(TensorList inputs, const OptionalTensor& noise, const OptionalTensor& rng_state, string_view scale,
                               int64_t num_samples) {
  return SampleFunction::apply(inputs, noise, rng_state,
                               state_of(inputs, noise, rng_state, scale, false, num_samples, 0.0, no_kl_event_dim(inputs)))[0];
}

std::tuple<Tensor, Tensor> reparameterize_with_kl_autograd(TensorList inputs, const OptionalTensor& noise, const OptionalTensor& rng_state,
                                                           string_view kl, int64_t num_samples, double floor, int64_t event_dim) {
  const auto out =
      SampleFunction::apply(inputs, noise, rng_state, state_of(inputs, noise, rng_state, kl, true, num_samples, floor, event_dim));
  return {out[0], out[1]};
}

namespace {
/// Eager: the seed is drawn here and read by the kernel, with no tensor and no launch of its own.
std::tuple<Tensor, Tensor> eager(const Tensors& inputs, const OptionalTensor& noise, const std::optional<at::Generator>& generator,
                                 const std::string& term, bool with_kl, int64_t num_samples, double floor, int64_t event_dim) {
  SampleState s = state_of(inputs, noise, std::nullopt, term, with_kl, num_samples, floor, event_dim);
  if (!noise) {
    s.seed = draw_seed(inputs[0], generator);
    s.seed_drawn = true;
  }
  if (!wants_grad(inputs)) return run(inputs, noise, s.seed, nullptr, nullptr, term, with_kl, num_samples, floor, event_dim);
  const auto out = SampleFunction::apply(TensorList(inputs), noise, OptionalTensor(), s);
  return {out[0], with_kl ? out[1] : Tensor()};
}
}  // namespace

Tensor reparameterize(const Tensors& inputs, const OptionalTensor& noise, const std::optional<at::Generator>& generator,
                      const std::string& scale, int64_t num_samples) {
  if (!is_plain(inputs) || !is_plain_or_absent(noise)) {
    const OptionalTensor state = noise ? OptionalTensor() : OptionalTensor(traced_state(inputs[0], generator));
    return VF_CALL(false, reparameterize, inputs, noise, state, scale, num_samples);
  }
  RECORD_FUNCTION("vae_fast::reparameterize", std::vector<c10::IValue>());
  return std::get<0>(eager(inputs, noise, generator, scale, false, num_samples, 0.0, no_kl_event_dim(inputs)));
}

std::tuple<Tensor, Tensor> reparameterize_with_kl(const Tensors& inputs, const OptionalTensor& noise,
                                                  const std::optional<at::Generator>& generator, const std::string& kl, int64_t num_samples,
                                                  double floor, int64_t event_dim) {
  if (!is_plain(inputs) || !is_plain_or_absent(noise)) {
    const OptionalTensor state = noise ? OptionalTensor() : OptionalTensor(traced_state(inputs[0], generator));
    return VF_CALL(false, reparameterize_with_kl, inputs, noise, state, kl, num_samples, floor, event_dim);
  }
  RECORD_FUNCTION("vae_fast::reparameterize_with_kl", std::vector<c10::IValue>());
  return eager(inputs, noise, generator, kl, true, num_samples, floor, event_dim);
}

}  // namespace ops
}  // namespace vae_fast
