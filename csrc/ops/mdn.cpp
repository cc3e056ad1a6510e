// Mixture density networks: parameters per row; of the forward pass only the result is saved.
#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>

#include "autograd.h"
#include "device.h"
#include "layout.h"

namespace vae_fast {
namespace ops {
namespace {

/// Inputs in the order of the op: targets, weight logits, means, log scales.
struct MdnProblem {
  bool is_double, shared_scale;
  at::DimVector batch;
  Layout layouts[4];
  std::vector<Tensor> keep;
  MdnArgs args;

  explicit MdnProblem(const Tensor (&t)[4], double floor)
      : is_double(any_double({t[0], t[1], t[2], t[3]})),
        shared_scale(t[3].dim() < t[2].dim()),
        batch(batch_shape(t, shared_scale)),
        layouts{layout(t[0], 1), layout(t[1], 1), layout(t[2], 2), layout(t[3], shared_scale ? 1 : 2)} {
    args.rows = layouts[0].rows;
    args.components = t[2].size(-2);
    args.dims = t[2].size(-1);
    args.is_double = is_double;
    args.shared_scale = shared_scale;
    args.floor = floor;
    Stream* const streams[4] = {&args.y, &args.logits, &args.means, &args.scale};
    for (int i = 0; i < 4; ++i) *streams[i] = stream_of(t[i], layouts[i], is_double, keep);
  }

 private:
  static at::DimVector batch_shape(const Tensor (&t)[4], bool shared) {
    const bool ranks = t[0].dim() >= 1 && t[1].dim() >= 1 && t[2].dim() >= 2 && t[3].dim() >= t[2].dim() - 1;
    const auto parameters = t[2].sizes().slice(static_cast<size_t>(ranks ? t[2].dim() - 2 : 0));  // (K, D)
    const auto scales = shared ? parameters.slice(0, 1) : parameters;
    const bool sizes = ranks && parameters[0] > 0 && parameters[1] > 0 && t[0].size(-1) == parameters[1] &&
                       t[1].size(-1) == parameters[0] && t[3].sizes().slice(static_cast<size_t>(t[3].dim()) - scales.size()) == scales;
    TORCH_CHECK_VALUE(sizes, "shapes ", t[0].sizes(), ", ", t[1].sizes(), ", ", t[2].sizes(), ", ", t[3].sizes(),
                      ": expected (..., D), (..., K), (..., K, D) and (..., K, D) or (..., K)");
    at::DimVector shape(batch_of(t[0].sizes(), 1));
    for (int i = 1; i < 4; ++i) {
      TORCH_CHECK_VALUE(t[i].device() == t[0].device(), "tensors on ", t[i].device(), " and ", t[0].device(), ": expected one device");
      shape = at::infer_size_dimvector(shape, batch_of(t[i].sizes(), i == 1 || (i == 3 && shared) ? 1 : 2));
    }
    return shape;
  }
  Layout layout(const Tensor& t, int64_t event_dim) const {
    at::DimVector shape(batch);
    for (const int64_t size : t.sizes().slice(static_cast<size_t>(t.dim() - event_dim))) shape.push_back(size);
    return Layout(shape, event_dim, t, true);
  }
};

struct MdnOp {
  struct State {
    double floor;
    Mask mask;
  };
  static constexpr bool kSavesResult = true;

  static Tensor forward(bool plain, TensorList t, const State& s) { return VF_CALL(plain, mdn, t[0], t[1], t[2], t[3], s.floor); }
  static Tensors backward(bool plain, const Tensor& grad, TensorList t, const State& s) {
    return VF_CALL(plain, mdn_backward, grad, t[0], t[1], t[2], t[3], t[4], s.floor, s.mask);
  }
};

}  // namespace

Tensor mdn_kernel(const Tensor& y, const Tensor& weight_logits, const Tensor& means, const Tensor& log_scale, double floor) {
  const Tensor inputs[4] = {y, weight_logits, means, log_scale};
  MdnProblem p(inputs, floor);
  Tensor out = at::empty(p.batch, y.options().dtype(compute_type(p.is_double)));
  p.args.log_prob = out.data_ptr();
  VF_LAUNCH(y, mdn, p.args);
  return out;
}

Tensors mdn_backward_kernel(const Tensor& grad, const Tensor& y, const Tensor& weight_logits, const Tensor& means, const Tensor& log_scale,
                            const Tensor& log_prob, double floor, const Mask& mask) {
  const Tensor inputs[4] = {y, weight_logits, means, log_scale};
  MdnProblem p(inputs, floor);
  const Tensor value = log_prob.to(compute_type(p.is_double)).contiguous();
  p.args.log_prob = value.data_ptr();
  MdnBackwardArgs b;
  b.forward = p.args;
  b.grad = row_grad(grad, p.batch, p.is_double, p.keep);
  Stream* const streams[4] = {&b.grad_y, &b.grad_logits, &b.grad_means, &b.grad_scale};
  Tensors grads;
  for (int i = 0; i < 4; ++i) {
    if (!mask[static_cast<size_t>(i)]) continue;
    grads.push_back(gradient_buffer(inputs[i], p.layouts[i], p.is_double));
    *streams[i] = dense_stream(grads.back(), p.layouts[i].columns);
  }
  VF_LAUNCH(y, mdn_backward, b);
  for (size_t i = 0, next = 0; i < 4; ++i) {
    if (mask[i]) grads[next] = to_input(grads[next], inputs[i]), ++next;
  }
  return grads;
}

Tensor mdn_autograd(const Tensor& y, const Tensor& weight_logits, const Tensor& means, const Tensor& log_scale, double floor) {
  const Tensors inputs{y, weight_logits, means, log_scale};
  return OpFunction<MdnOp>::apply(TensorList(inputs), MdnOp::State{floor, requires_grad_mask(inputs)});
}

Tensor mdn(const Tensor& y, const Tensor& weight_logits, const Tensor& means, const Tensor& log_scale, double floor) {
  const Tensors inputs{y, weight_logits, means, log_scale};
  const bool plain = is_plain(inputs);
  if (plain && wants_grad(inputs)) {
    RECORD_FUNCTION("vae_fast::mdn", std::vector<c10::IValue>());
    return mdn_autograd(y, weight_logits, means, log_scale, floor);
  }
  return VF_CALL(plain, mdn, y, weight_logits, means, log_scale, floor);
}

}  // namespace ops
}  // namespace vae_fast
