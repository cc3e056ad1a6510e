// One row-summed term: gaussian_kl, bernoulli_log_prob, gaussian_log_prob.
#include <ATen/record_function.h>

#include <algorithm>

#include "autograd.h"
#include "device.h"
#include "layout.h"

namespace vae_fast {
namespace ops {
namespace {

/// The input whose memory layout the others follow: the reconstruction of a likelihood, the mean of a KL.
const Tensor& primary(TensorList inputs, int32_t term) { return inputs[is_kl(term) ? 0 : 1]; }

struct TermOp {
  struct State {
    std::string term;
    ParamList params;
    OptionalTensor param_at;
    int64_t event_dim;
    Mask mask;
  };
  static constexpr bool kSavesResult = false;

  static Tensor forward(bool plain, TensorList inputs, const State& s) {
    return VF_CALL(plain, term, inputs, s.term, s.params, s.param_at, s.event_dim);
  }
  static Tensors backward(bool plain, const Tensor& grad, TensorList saved, const State& s) {
    return VF_CALL(plain, term_backward, grad, saved, s.term, s.params, s.param_at, s.event_dim, s.mask);
  }
};

/// One term prepared over its inputs.
struct Call {
  bool is_double;
  Layout layout;
  Term prepared;
  RowTermsArgs args;

  static Call make(TensorList inputs, string_view name, Numbers params, const OptionalTensor& param_at, int64_t event_dim) {
    const int32_t index = term_index(name);
    const bool is_double = any_double(inputs);
    const auto shape = common_shape(inputs);
    Call c{is_double, Layout(shape, event_dim, primary(inputs, index), false), {}, {}};
    c.prepared = prepare_term(inputs, index, c.layout, is_double, params);
    c.prepared.args.param_at = number_at(param_at, inputs[0]);
    c.args.rows = c.layout.rows;
    c.args.is_double = is_double;
    return c;
  }

  Tensor add_value(TensorList inputs) {
    Tensor out = at::empty(layout.batch(), inputs[1].options().dtype(compute_type(is_double)));  // x may be sparse
    args.value = out.data_ptr();
    return out;
  }
  /// The marked ones, as the kernel writes them.
  Tensors add_gradients(TensorList inputs, const Mask& mask) {
    Tensors grads;
    for (size_t k = 0; k < inputs.size(); ++k) {
      if (mask[k]) grads.push_back(prepared.add_gradient(static_cast<int>(k), inputs[k], layout, layout.columns));
    }
    return grads;
  }
  void launch(TensorList inputs) {
    args.term[0] = prepared.args;
    launch_row_terms(inputs[0], args);
  }
};

Tensors to_inputs(Tensors grads, TensorList inputs, const Mask& mask) {
  for (size_t k = 0, next = 0; k < inputs.size(); ++k) {
    if (mask[k]) grads[next] = to_input(grads[next], inputs[k]), ++next;
  }
  return grads;
}

/// A term whose value and derivatives have most of their work in common, and much of it: the forward pass writes the derivatives, and the
/// backward pass multiplies them by the upstream gradient, a tenth of the work.
struct KeptTermFunction : torch::autograd::Function<KeptTermFunction> {
  struct State {
    TermOp::State call;
    Tensors written;  // for an upstream gradient of 1; shared inputs' are sums over rows
    Mask summed;
  };

  /// On the CPU, where that was measured. A gradient of 16 bits would be rounded, and leave its range, before the upstream factor comes.
  static bool takes(TensorList inputs, int32_t term) {
    if (!is_of_counts(term)) return false;
    for (const Tensor& t : inputs) {
      if (!t.is_cpu() || (t.requires_grad() && any_16bit(t))) return false;
    }
    return true;
  }

  static Tensor forward(torch::autograd::AutogradContext* ctx, TensorList inputs, const TermOp::State& given) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward(inputs.vec());
    State& s = carry(ctx, State{given, {}, Mask()});
    Call c = Call::make(inputs, s.call.term, s.call.params, s.call.param_at, s.call.event_dim);
    Tensor out = c.add_value(inputs);
    s.written = c.add_gradients(inputs, s.call.mask);
    for (size_t k = 0; k < inputs.size(); ++k) {
      if (s.call.mask[k]) s.summed.push_back(c.prepared.args.grad[k].summed);
    }
    c.launch(inputs);
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grads) {
    State& s = carried<State>(ctx);
    const auto inputs = ctx->get_saved_variables();
    const bool plain = plain_backward(inputs, grads[0]);
    std::optional<Tensors> found;
    if (plain) found = scaled(s, inputs, grads[0]);
    return spread(found ? *found : TermOp::backward(plain, grads[0], inputs, s.call), s.call.mask, s.call.mask.size() + 1);
  }

  /// Nothing if an earlier pass over a retained graph took them, or what is a sum over rows would have to be weighed row by row.
  static std::optional<Tensors> scaled(State& s, TensorList inputs, const Tensor& upstream) {
    if (s.written.empty()) return std::nullopt;
    Tensors grads = std::move(s.written);
    s.written.clear();
    std::vector<Tensor> keep;
    const bool is_double = any_double(inputs);
    const RowGrad by = row_grad(upstream, upstream.sizes(), is_double, keep);
    const bool sums = std::any_of(s.summed.begin(), s.summed.end(), [](bool b) { return b; });
    if (sums && !cpu::is_uniform(by, upstream.numel(), is_double)) return std::nullopt;
    for (size_t i = 0; i < grads.size(); ++i) {
      Tensor& g = grads[i];
      if (s.summed[i]) {
        const double f = upstream.numel() > 0 ? upstream.flatten()[0].item<double>() : 1.0;
        f == 0.0 ? g.zero_() : g.mul_(f);
      } else {
        const int64_t rows = upstream.numel();
        cpu::scale_rows(g.data_ptr(), dtype_of(g), rows, rows > 0 ? g.numel() / rows : 0, by);
      }
    }
    return to_inputs(std::move(grads), inputs, s.call.mask);
  }
};

}  // namespace

Tensor term_kernel(TensorList inputs, string_view name, Numbers params, const OptionalTensor& param_at, int64_t event_dim) {
  Call c = Call::make(inputs, name, params, param_at, event_dim);
  Tensor out = c.add_value(inputs);
  c.launch(inputs);
  return out;
}

Tensors term_backward_kernel(const Tensor& grad, TensorList inputs, string_view name, Numbers params, const OptionalTensor& param_at,
                             int64_t event_dim, const Mask& mask) {
  Call c = Call::make(inputs, name, params, param_at, event_dim);
  c.prepared.args.row_grad = row_grad(grad, c.layout.batch(), c.is_double, c.prepared.keep);
  Tensors grads = c.add_gradients(inputs, mask);
  c.launch(inputs);
  return to_inputs(std::move(grads), inputs, mask);
}

Tensor term_autograd(TensorList inputs, string_view name, Numbers params, const OptionalTensor& param_at, int64_t event_dim) {
  return OpFunction<TermOp>::apply(inputs,
                                   TermOp::State{std::string(name), ParamList(params), param_at, event_dim, requires_grad_mask(inputs)});
}

Tensor term(const Tensors& inputs, const std::string& name, Numbers params, const OptionalTensor& param_at, int64_t event_dim) {
  const bool plain = is_plain(inputs);
  if (plain && wants_grad(inputs)) {
    RECORD_FUNCTION("vae_fast::term", std::vector<c10::IValue>());
    if (KeptTermFunction::takes(inputs, term_index(name))) {
      TermOp::State call{std::string(name), ParamList(params), param_at, event_dim, requires_grad_mask(inputs)};
      return KeptTermFunction::apply(TensorList(inputs), call);
    }
    return term_autograd(inputs, name, params, param_at, event_dim);
  }
  return VF_CALL(plain, term, inputs, name, params, param_at, event_dim);
}

}  // namespace ops
}  // namespace vae_fast
