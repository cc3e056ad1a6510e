// One row-summed term: gaussian_kl, bernoulli_log_prob, gaussian_log_prob.
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>

#include <algorithm>

#include "device.h"
#include "written.h"

namespace vae_fast {
namespace ops {
namespace {

/// The input whose memory layout the others follow: the reconstruction of a likelihood, the mean of a KL.
const Tensor& primary(TensorList inputs, int32_t term) { return inputs[is_kl(term) ? 0 : 1]; }

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
    c.prepared.args.bound = bound_of(name, inputs[0]);
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

struct TermOp {
  struct State {
    std::string term;
    ParamList params;
    OptionalTensor param_at;
    int64_t event_dim;
    Mask mask;
    Written written;
  };
  static constexpr bool kSavesResult = false;

  static Tensor forward(bool plain, TensorList inputs, const State& s) {
    return VF_CALL(plain, term, inputs, s.term, s.params, s.param_at, s.event_dim);
  }
  static Tensors backward(bool plain, const Tensor& grad, TensorList saved, const State& s) {
    return VF_CALL(plain, term_backward, grad, saved, s.term, s.params, s.param_at, s.event_dim, s.mask);
  }
  static Tensor forward_with_grad(TensorList inputs, State& s) {
    Call c = Call::make(inputs, s.term, s.params, s.param_at, s.event_dim);
    Tensor out = c.add_value(inputs);
    const Tensors grads = c.add_gradients(inputs, s.mask);
    for (size_t k = 0, next = 0; k < inputs.size(); ++k) {
      if (s.mask[k]) s.written.add(grads[next++], c.prepared.args.grad[k].summed);
    }
    c.launch(inputs);
    return out;
  }
  static Tensors finish(Tensors grads, TensorList inputs, const State& s) { return to_inputs(std::move(grads), inputs, s.mask); }
};

/// Whether the forward pass writes the gradients: of counts, on the CPU, where that was measured.
bool writes_gradients(TensorList inputs, int32_t term) {
  return is_of_counts(term) &&
         std::all_of(inputs.begin(), inputs.end(), [](const Tensor& t) { return t.is_cpu() && (!t.requires_grad() || can_be_written(t)); });
}

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
  const TermOp::State call{std::string(name), ParamList(params), param_at, event_dim, requires_grad_mask(inputs), {}};
  return writes_gradients(inputs, term_index(name)) ? WrittenFunction<TermOp>::apply(inputs, call)
                                                    : OpFunction<TermOp>::apply(inputs, call);
}

Tensor term(const Tensors& inputs, const std::string& name, Numbers params, const OptionalTensor& param_at, int64_t event_dim) {
  const bool plain = is_plain(inputs);
  if (plain && wants_grad(inputs)) {
    RECORD_FUNCTION("vae_fast::term", std::vector<c10::IValue>());
    return term_autograd(inputs, name, params, param_at, event_dim);
  }
  return VF_CALL(plain, term, inputs, name, params, param_at, event_dim);
}

}  // namespace ops
}  // namespace vae_fast
