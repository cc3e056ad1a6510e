// log sum_k w_k e^{a_k} over one dimension; only the result is saved.
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>

#include "autograd.h"
#include "device.h"
#include "layout.h"

namespace vae_fast {
namespace ops {
namespace {

/// `a` as a dense (outer, k, inner) array, weights as strides over it.
struct LogSumExpProblem {
  Tensor a, w;
  at::DimVector shape;
  int64_t dim;
  LogSumExpArgs args;

  LogSumExpProblem(const Tensor& input, const OptionalTensor& weights, int64_t given_dim) {
    shape = weights ? common_shape({input, *weights}) : common_shape({input});
    dim = at::maybe_wrap_dim(given_dim, static_cast<int64_t>(shape.size()));
    args.is_double = input.scalar_type() == at::kDouble || (weights && weights->scalar_type() == at::kDouble);
    // A broadcast input's gradient is summed afterwards: it is kept in the compute type until then.
    const bool broadcast = input.sizes() != at::IntArrayRef(shape);
    a = args.is_double || broadcast ? input.to(compute_type(args.is_double)) : input;
    a = a.expand(shape).contiguous();
    args.outer = args.inner = 1;
    for (int64_t d = 0; d < static_cast<int64_t>(shape.size()); ++d)
      (d < dim ? args.outer : d > dim ? args.inner : args.k) *= d == dim ? 1 : shape[d];
    args.k = shape[dim];
    args.a = a.const_data_ptr();
    args.dtype = dtype_of(a);
    if (!weights) return;
    // Dimensions around `dim` must each advance by one stride; broadcasting to fewer needs no copy, anything else does.
    w = weights->to(compute_type(args.is_double)).expand(shape);
    const bool by_k_only = weights->numel() == args.k && w.size(dim) == args.k && weights->dim() > 0 && only_dim_varies();
    if (!by_k_only) w = w.contiguous();
    args.w = w.const_data_ptr();
    args.w_stride[0] = by_k_only ? 0 : args.k * args.inner;
    args.w_stride[1] = by_k_only ? w.stride(dim) : args.inner;
    args.w_stride[2] = by_k_only ? 0 : 1;
  }

  bool only_dim_varies() const {
    for (int64_t d = 0; d < w.dim(); ++d) {
      if (d != dim && w.size(d) != 1 && w.stride(d) != 0) return false;
    }
    return true;
  }

  at::DimVector out_shape() const {
    at::DimVector s(shape);
    s.erase(s.begin() + dim);
    return s;
  }
};

struct LogSumExpOp {
  struct State {
    int64_t dim;
    bool weighted;
    Mask mask;
    OptionalTensor weights(TensorList inputs) const { return weighted ? OptionalTensor(inputs[1]) : std::nullopt; }
  };
  static constexpr bool kSavesResult = true;

  static Tensor forward(bool plain, TensorList inputs, const State& s) {
    return VF_CALL(plain, logsumexp, inputs[0], s.weights(inputs), s.dim);
  }
  static Tensors backward(bool plain, const Tensor& grad, TensorList saved, const State& s) {
    return VF_CALL(plain, logsumexp_backward, grad, saved[0], s.weights(saved), saved.back(), s.dim, s.mask);
  }
};

Tensors inputs_of(const Tensor& a, const OptionalTensor& weights) { return weights ? Tensors{a, *weights} : Tensors{a}; }

}  // namespace

Tensor logsumexp_kernel(const Tensor& a, const OptionalTensor& weights, int64_t dim) {
  LogSumExpProblem p(a, weights, dim);
  Tensor out = at::empty(p.out_shape(), a.options().dtype(compute_type(p.args.is_double)));
  p.args.out = out.data_ptr();
  VF_LAUNCH(a, logsumexp, p.args);
  return out;
}

Tensors logsumexp_backward_kernel(const Tensor& grad, const Tensor& a, const OptionalTensor& weights, const Tensor& out, int64_t dim,
                                  const Mask& mask) {
  LogSumExpProblem p(a, weights, dim);
  const auto type = compute_type(p.args.is_double);
  const Tensor dense_out = out.to(type).contiguous(), g = grad.to(type).expand(out.sizes()).contiguous();
  LogSumExpBackwardArgs b;
  b.forward = p.args;
  b.forward.out = dense_out.data_ptr();
  b.grad_out = g.const_data_ptr();
  b.grad_out_stride[0] = p.args.inner;
  b.grad_out_stride[1] = 1;
  Tensors grads;
  if (mask[0]) {
    grads.push_back(at::empty(p.shape, p.a.options()));
    b.grad_a = grads.back().data_ptr();
  }
  if (mask.size() > 1 && mask[1]) {
    grads.push_back(at::empty(p.shape, p.a.options().dtype(type)));
    b.grad_w = grads.back().data_ptr();
  }
  VF_LAUNCH(a, logsumexp_backward, b);
  for (size_t k = 0, next = 0; k < mask.size(); ++k) {
    if (mask[k]) grads[next] = to_input(grads[next], k == 0 ? a : *weights), ++next;
  }
  return grads;
}

Tensor logsumexp_autograd(const Tensor& a, const OptionalTensor& weights, int64_t dim) {
  const Tensors inputs = inputs_of(a, weights);
  return OpFunction<LogSumExpOp>::apply(TensorList(inputs), LogSumExpOp::State{dim, weights.has_value(), requires_grad_mask(inputs)});
}

Tensor logsumexp(const Tensor& a, const OptionalTensor& weights, int64_t dim) {
  const Tensors inputs = inputs_of(a, weights);
  const bool plain = is_plain(inputs);
  if (plain && wants_grad(inputs)) {
    RECORD_FUNCTION("vae_fast::logsumexp", std::vector<c10::IValue>());
    return logsumexp_autograd(a, weights, dim);
  }
  return VF_CALL(plain, logsumexp, a, weights, dim);
}

}  // namespace ops
}  // namespace vae_fast
