// One row-summed term: gaussian_kl, bernoulli_log_prob, gaussian_log_prob.
#include <ATen/record_function.h>

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

}  // namespace

Tensor term_kernel(TensorList inputs, string_view name, Numbers params, const OptionalTensor& param_at, int64_t event_dim) {
  const int32_t index = term_index(name);
  const bool is_double = any_double(inputs);
  const auto shape = common_shape(inputs);
  const Layout layout(shape, event_dim, primary(inputs, index), false);
  Term prepared = prepare_term(inputs, index, layout, is_double, params);
  prepared.args.param_at = number_at(param_at, inputs[0]);
  Tensor out = at::empty(layout.batch(), inputs[1].options().dtype(compute_type(is_double)));  // x may be sparse
  RowTermsArgs args;
  args.term[0] = prepared.args;
  args.rows = layout.rows;
  args.is_double = is_double;
  args.value = out.data_ptr();
  launch_row_terms(inputs[0], args);
  return out;
}

Tensors term_backward_kernel(const Tensor& grad, TensorList inputs, string_view name, Numbers params, const OptionalTensor& param_at,
                             int64_t event_dim, const Mask& mask) {
  const int32_t index = term_index(name);
  const bool is_double = any_double(inputs);
  const auto shape = common_shape(inputs);
  const Layout layout(shape, event_dim, primary(inputs, index), false);
  Term prepared = prepare_term(inputs, index, layout, is_double, params);
  prepared.args.param_at = number_at(param_at, inputs[0]);
  prepared.args.row_grad = row_grad(grad, layout.batch(), is_double, prepared.keep);
  Tensors grads;
  for (size_t k = 0; k < inputs.size(); ++k) {
    if (mask[k]) grads.push_back(prepared.add_gradient(static_cast<int>(k), inputs[k], layout, layout.columns));
  }
  RowTermsArgs args;
  args.term[0] = prepared.args;
  args.rows = layout.rows;
  args.is_double = is_double;
  launch_row_terms(inputs[0], args);
  for (size_t k = 0, next = 0; k < inputs.size(); ++k) {
    if (mask[k]) grads[next] = to_input(grads[next], inputs[k]), ++next;
  }
  return grads;
}

Tensor term_autograd(TensorList inputs, string_view name, Numbers params, const OptionalTensor& param_at, int64_t event_dim) {
  return OpFunction<TermOp>::apply(inputs,
                                   TermOp::State{std::string(name), ParamList(params), param_at, event_dim, requires_grad_mask(inputs)});
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
