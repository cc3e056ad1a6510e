// What the autograd layers share: when a call may skip the dispatcher, and how state is carried to the backward pass.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <utility>
#include <vector>

#include "device.h"
#include "ops.h"

namespace vae_fast {
namespace ops {

/// True if the dispatcher would find nothing above the CPU or CUDA kernel but autograd: no subclass, fake tensor, dispatch mode, transform,
/// and no torch.jit.trace, which records what goes through the dispatcher and would take a kernel's result for uninitialised memory.
inline bool is_plain(TensorList tensors) {
  using c10::DispatchKey;
  constexpr c10::DispatchKeySet special({DispatchKey::Tracer, DispatchKey::Python, DispatchKey::PythonTLSSnapshot, DispatchKey::PreDispatch,
                                         DispatchKey::PythonDispatcher, DispatchKey::Functionalize, DispatchKey::Batched,
                                         DispatchKey::FuncTorchBatched, DispatchKey::FuncTorchDynamicLayerFrontMode,
                                         DispatchKey::FuncTorchDynamicLayerBackMode, DispatchKey::FuncTorchGradWrapper,
                                         DispatchKey::Conjugate, DispatchKey::Negative, DispatchKey::ZeroTensor});
  const auto tls = c10::impl::tls_local_dispatch_key_set();
  auto keys = tls.included_;
  for (const Tensor& t : tensors) {
    if (!t.is_cpu() && !t.is_cuda()) return false;
    keys = keys | t.key_set();
  }
  return !((keys - tls.excluded_).has_any(special));
}

inline bool is_plain_or_absent(const OptionalTensor& tensor) { return !tensor || is_plain(*tensor); }

/// True if a graph is being recorded through any of the tensors.
inline bool wants_grad(TensorList tensors) {
  if (!at::GradMode::is_enabled()) return false;
  for (const Tensor& t : tensors) {
    if (t.requires_grad()) return true;
  }
  return false;
}

inline Mask requires_grad_mask(TensorList tensors) {
  Mask mask;
  for (const Tensor& t : tensors) mask.push_back(t.requires_grad());
  return mask;
}

inline Tensors concatenate(TensorList a, TensorList b) {
  Tensors all(a.begin(), a.end());
  all.insert(all.end(), b.begin(), b.end());
  return all;
}

/// A plain struct carried by an autograd context.
template <class State>
struct Carried : torch::CustomClassHolder {
  State state;
  explicit Carried(State s) : state(std::move(s)) {}
};
template <class State>
State& carry(torch::autograd::AutogradContext* ctx, State state) {
  auto holder = c10::make_intrusive<Carried<State>>(std::move(state));
  State& kept = holder->state;
  ctx->saved_data["state"] = c10::IValue::make_capsule(std::move(holder));
  return kept;
}
template <class State>
State& carried(torch::autograd::AutogradContext* ctx) {
  return static_cast<Carried<State>*>(ctx->saved_data["state"].toCapsule().get())->state;
}

/// True if a backward pass may skip the dispatcher: also, its own derivative is not wanted.
inline bool plain_backward(TensorList saved, const Tensor& grad) {
  return !at::GradMode::is_enabled() && is_plain(saved) && is_plain(grad);
}

/// `some` holds the gradients that `mask` marks; spreads them over `slots` results, the rest undefined.
inline torch::autograd::variable_list spread(const Tensors& some, const Mask& mask, size_t slots) {
  torch::autograd::variable_list all(slots);
  for (size_t i = 0, next = 0; i < mask.size(); ++i) {
    if (mask[i]) all[i] = some[next++];
  }
  return all;
}

/// An op with one result as an autograd function. Op has a State, with the Mask `mask` of the inputs whose gradients are wanted, and
///   static Tensor forward(bool plain, TensorList inputs, const State&);
///   static Tensors backward(bool plain, const Tensor& grad, TensorList saved, const State&);   // of the marked inputs
/// where `saved` are the inputs and, if kSavesResult, the result.
template <class Op>
struct OpFunction : torch::autograd::Function<OpFunction<Op>> {
  using State = typename Op::State;

  static Tensor forward(torch::autograd::AutogradContext* ctx, TensorList inputs, const State& s) {
    const at::AutoDispatchBelowADInplaceOrView below;
    Tensor out = Op::forward(is_plain(inputs), inputs, s);
    Tensors saved = inputs.vec();
    if (Op::kSavesResult) saved.push_back(out);
    ctx->save_for_backward(std::move(saved));
    carry(ctx, s);
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grads) {
    const State& s = carried<State>(ctx);
    const auto saved = ctx->get_saved_variables();
    return spread(Op::backward(plain_backward(saved, grads[0]), grads[0], saved, s), s.mask, s.mask.size() + 1);
  }
};

inline bool any_16bit(TensorList tensors) {
  for (const Tensor& t : tensors) {
    if (t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16) return true;
  }
  return false;
}

/// The gradients that the forward pass wrote, times the upstream one; nothing if the gradient's own derivative is wanted, or an earlier
/// pass over a retained graph took them: then the backward pass starts from the inputs. In place, unless it is being traced and the
/// compiler fuses the product with what comes next. `only_exactly`: see scale_unless_one.
inline std::optional<Tensors> written_gradients(Tensors& kept, const Tensor& upstream, bool only_exactly = false) {
  if (at::GradMode::is_enabled() || kept.empty()) return std::nullopt;
  Tensors grads = std::move(kept);
  kept.clear();
  const bool plain = is_plain(upstream) && is_plain(grads);
  for (Tensor& g : grads) {
    if (plain) {
      scale_unless_one(g, upstream, only_exactly);
    } else {
      g = g * upstream.to(g.scalar_type());
    }
  }
  return grads;
}

/// name_kernel itself if `plain`, else the op vae_fast::name through the dispatcher, where every subclass, transform and mode takes part.
#define VF_CALL(plain, name, ...)                                                                                                   \
  ((plain) ? name##_kernel(__VA_ARGS__) : [&] {                                                                                     \
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("vae_fast::" #name, "").typed<decltype(name##_kernel)>(); \
    return op.call(__VA_ARGS__);                                                                                                    \
  }())

}  // namespace ops
}  // namespace vae_fast
