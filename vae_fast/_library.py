"""What the dispatcher's ops need beside their kernels: shapes for fake tensors, and derivatives of their backward passes.

The first derivative of every op is in C++. A second one differentiates the plain-torch formula in :mod:`vae_fast.reference`, and so
do all higher ones. Importing this module registers everything; it needs the extension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vae_fast import reference
from vae_fast._scales import split_bounds, with_bounds

OptTensor = Tensor | None


def _shape(tensors: Sequence[Tensor]) -> list[int]:
    return list(torch.broadcast_shapes(*(t.shape for t in tensors)))


def _batch(tensors: Sequence[Tensor], event_dim: int) -> list[int]:
    shape = _shape(tensors)
    return shape[: len(shape) - event_dim]


def _marked(tensors: Sequence[Tensor], mask: Sequence[bool]) -> list[Tensor]:
    return [t for t, m in zip(tensors, mask, strict=True) if m]


def _empty_gradients(tensors: Sequence[Tensor], mask: Sequence[bool]) -> list[Tensor]:
    return [torch.empty_like(t) for t in _marked(tensors, mask)]


# --- shapes ----------------------------------------------------------------------------------------------------------


def _term_fake(inputs: list[Tensor], term: str, params: list[float], param_at: OptTensor, event_dim: int) -> Tensor:
    return inputs[0].new_empty(_batch(inputs, event_dim), dtype=reference.compute_dtype(inputs))


def _term_backward_fake(
    grad: Tensor, inputs: list[Tensor], term: str, params: list[float], param_at: OptTensor, event_dim: int, mask: list[bool]
) -> list[Tensor]:
    return _empty_gradients(inputs, mask)


def _elbo_fake(x: list[Tensor], z: list[Tensor], *settings: Any) -> Tensor:
    event_dim, latent_dim = settings[-2:]
    batch = torch.broadcast_shapes(tuple(_batch(x, event_dim)), tuple(_batch(z, latent_dim)))
    return x[0].new_empty(batch, dtype=reference.compute_dtype([*x, *z]))


def _elbo_backward_fake(grad: Tensor, x: list[Tensor], z: list[Tensor], *rest: Any) -> list[Tensor]:
    return _empty_gradients([*x, *z], rest[-1])


def _elbo_loss_fake(x: list[Tensor], z: list[Tensor], *rest: Any) -> Tensor:
    return x[0].new_empty((), dtype=reference.compute_dtype([*x, *z]))


def _elbo_loss_with_grad_fake(x: list[Tensor], z: list[Tensor], *rest: Any) -> tuple[Tensor, list[Tensor]]:
    return _elbo_loss_fake(x, z), _empty_gradients([*x, *z], rest[-1])


def _elbo_parts_fake(x: list[Tensor], z: list[Tensor], *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _elbo_fake(x, z, *settings), _elbo_fake(x, z, *settings), _elbo_fake(x, z, *settings)


def _elbo_loss_parts_fake(x: list[Tensor], z: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _elbo_loss_fake(x, z), _elbo_loss_fake(x, z), _elbo_loss_fake(x, z)


def _elbo_loss_parts_with_grad_fake(x: list[Tensor], z: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    return *_elbo_loss_parts_fake(x, z), _empty_gradients([*x, *z], rest[-1])


def _linear_likelihood_fake(x: Tensor, h: Tensor, weight: Tensor, bias: OptTensor, term: str, params: list[float]) -> Tensor:
    return h.new_empty(torch.broadcast_shapes(x.shape[:-1], h.shape[:-1]), dtype=reference.compute_dtype([h]))


def _linear_likelihood_backward_fake(grad: Tensor, x: Tensor, h: Tensor, weight: Tensor, bias: OptTensor, *rest: Any) -> list[Tensor]:
    return _empty_gradients([x, h, weight] if bias is None else [x, h, weight, bias], rest[-1])


def _linear_likelihood_sum_fake(
    x: Tensor, h: Tensor, weight: Tensor, bias: OptTensor, term: str, params: list[float], mean: bool
) -> Tensor:
    return h.new_empty((), dtype=reference.compute_dtype([h]))


def _linear_likelihood_sum_with_grad_fake(
    x: Tensor, h: Tensor, weight: Tensor, bias: OptTensor, term: str, params: list[float], mean: bool, mask: list[bool]
) -> tuple[Tensor, list[Tensor]]:
    total = _linear_likelihood_sum_fake(x, h, weight, bias, term, params, mean)
    return total, _linear_likelihood_backward_fake(total, x, h, weight, bias, mask)


def _is_dense(t: Tensor) -> bool:
    """Whether the strides are those of a contiguous tensor in some order of its dimensions."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _reparameterize_fake(inputs: list[Tensor], noise: OptTensor, rng_state: OptTensor, scale: str, num_samples: int) -> Tensor:
    shape = _shape(inputs[:2])
    size = [num_samples, *shape] if num_samples else shape
    mu, dtype = inputs[0], torch.promote_types(inputs[0].dtype, inputs[1].dtype)
    if list(mu.shape) != shape or mu.is_contiguous() or not _is_dense(mu):
        return mu.new_empty(size, dtype=dtype)
    return mu.new_empty_strided(size, [mu.numel(), *mu.stride()][-len(size) :], dtype=dtype)  # the memory order of mu


def _draw_seed_fake(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return like.new_empty(2, dtype=torch.int64)


def _reparameterize_with_kl_fake(
    inputs: list[Tensor], noise: OptTensor, rng_state: OptTensor, kl: str, num_samples: int, floor: float, event_dim: int
) -> tuple[Tensor, Tensor]:
    z = _reparameterize_fake(inputs, noise, rng_state, kl, num_samples)
    return z, _term_fake(inputs, kl, [floor], None, event_dim)


def _reparameterize_backward_fake(grad_z: OptTensor, grad_kl: OptTensor, inputs: list[Tensor], *rest: Any) -> list[Tensor]:
    return _empty_gradients(inputs, rest[-1])


def _logsumexp_fake(a: Tensor, weights: OptTensor, dim: int) -> Tensor:
    inputs = [a] if weights is None else [a, weights]
    shape = _shape(inputs)
    del shape[dim]
    return a.new_empty(shape, dtype=reference.compute_dtype(inputs))


def _logsumexp_backward_fake(grad: Tensor, a: Tensor, weights: OptTensor, out: Tensor, dim: int, mask: list[bool]) -> list[Tensor]:
    return _empty_gradients([a] if weights is None else [a, weights], mask)


def _mixture_fake(x: Tensor, weight_logits: Tensor, means: Tensor, scale: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    dtype = reference.compute_dtype([x, weight_logits, means, scale])
    log_prob = x.new_empty(x.shape[:-1], dtype=dtype)
    return log_prob, x.new_empty((2, log_prob.numel()), dtype=dtype)


def _mixture_factorized_fake(x: Tensor, weight_logits: Tensor, means: Tensor, scale: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    joint, normaliser = _mixture_fake(x, weight_logits, means, scale)
    return joint, torch.empty_like(joint), normaliser.new_empty((2 + 2 * means.shape[1], normaliser.shape[1]))


def _mixture_factorized_backward_fake(
    grad_joint: OptTensor, grad_factorized: OptTensor, x: Tensor, weight_logits: Tensor, means: Tensor, scale: Tensor, *rest: Any
) -> list[Tensor]:
    return _gradients_of_four(x, x, weight_logits, means, scale, *rest)


def _gradients_of_four(grad: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, *rest: Any) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in _marked([a, b, c, d], rest[-1])]


def _mixture_responsibilities_fake(x: Tensor, weight_logits: Tensor, means: Tensor, scale: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], means.shape[0]), dtype=reference.compute_dtype([x, weight_logits, means, scale]))


def _mixture_statistics_fake(
    x: Tensor,
    weight_logits: Tensor,
    means: Tensor,
    scale: Tensor,
    responsibilities: OptTensor,
    sample_weight: OptTensor,
    covariance: str,
    precision: str = "float32",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = reference.compute_dtype([x, weight_logits, means, scale])
    k, d = means.shape
    second = {"diag": (k, d), "spherical": (k,), "tied": (d, d), "full": (k, d, d)}[covariance]
    log_prob = (0,) if responsibilities is not None else x.shape[:-1]
    first, *others = (x.new_empty(shape, dtype=dtype) for shape in (log_prob, (k,), (k, d), second))
    return first, others[0], others[1], others[2]


def _mdn_fake(y: Tensor, weight_logits: Tensor, means: Tensor, log_scale: Tensor, floor: float) -> Tensor:
    shared = log_scale.ndim < means.ndim
    batches = (y.shape[:-1], weight_logits.shape[:-1], means.shape[:-2], log_scale.shape[: -1 if shared else -2])
    return y.new_empty(torch.broadcast_shapes(*batches), dtype=reference.compute_dtype([y, weight_logits, means, log_scale]))


def _group_fake(x: Tensor, params: Tensor, term: str, numbers: list[float], dim: int, event_dim: int) -> Tensor:
    batch = torch.broadcast_shapes(x.shape[:-event_dim], params.shape[:-event_dim])
    return params.new_empty(batch, dtype=reference.compute_dtype([x, params]))


def _group_backward_fake(grad: Tensor, x: Tensor, params: Tensor, *rest: Any) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in _marked([x, params], rest[-1])]


def _softmax_fake(x: Tensor, logits: Tensor, row_begin: OptTensor, column: OptTensor, dim: int, event_dim: int) -> Tensor:
    batch = logits.shape[:1] if column is not None else torch.broadcast_shapes(x.shape[:-event_dim], logits.shape[:-event_dim])
    return logits.new_empty(batch, dtype=reference.compute_dtype([logits, x] if x.is_floating_point() else [logits]))


def _softmax_backward_fake(grad: Tensor, x: Tensor, logits: Tensor, *rest: Any) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in _marked([x, logits], rest[-1][:2])]


# --- second derivatives ----------------------------------------------------------------------------------------------


def _differentiate_backward(op: str, formula: Callable[..., tuple[Any, Any]], upstreams: int) -> None:
    """Registers the derivative of ``op``, the backward pass of an op.

    ``op`` takes ``upstreams`` upstream gradients first and a mask of wanted gradients last; ``formula(*rest)`` gives, in plain torch,
    the forward outputs those gradients belong to and the inputs that the mask speaks of.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        flat: list[Tensor] = []
        layout: list[tuple[str, Any, int]] = []
        for arg in inputs:
            many = isinstance(arg, list | tuple) and all(isinstance(t, Tensor) for t in arg)  # torch takes an empty list for one of tensors
            if many:
                layout.append(("list", len(flat), len(arg)))
                flat += list(arg)
            elif isinstance(arg, Tensor):
                layout.append(("tensor", len(flat), 1))
                flat.append(arg)
            else:
                layout.append(("value", arg, 0))
        ctx.save_for_backward(*flat)
        ctx.layout = layout
        ctx.set_materialize_grads(False)  # the zeros would be plain tensors, among a subclass's own

    def backward(ctx: Any, grads: Sequence[OptTensor]) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            # Views are new leaves of this small graph when no graph is to be made, and lead back to the inputs when one is.
            leaves = [t.view_as(t) if create_graph else t.detach() for t in saved]
            for t in leaves:
                if t.is_floating_point() and not t.requires_grad:
                    t.requires_grad_()
            args: list[Any] = [leaves[i] if kind == "tensor" else leaves[i : i + n] if kind == "list" else i for kind, i, n in ctx.layout]
            outputs, inputs = formula(*args[upstreams:-1])
            pairs: list[tuple[Any, Any]] = [(o, g) for o, g in zip(outputs, args[:upstreams], strict=True) if g is not None]
            wanted = _marked(inputs, args[-1])
            first = torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True)
            some = [(f, g) for f, g in zip(first, grads, strict=True) if f is not None and g is not None and f.requires_grad]
            floating = [t for t in leaves if t.is_floating_point()]
            found: tuple[OptTensor, ...] = (None,) * len(floating)
            if some:
                found = torch.autograd.grad(
                    [f for f, _ in some], floating, [g for _, g in some], create_graph=create_graph, allow_unused=True
                )
        following = iter(found)
        second = [next(following) if t.is_floating_point() else None for t in leaves]
        return tuple(second[i] if kind == "tensor" else second[i : i + n] if kind == "list" else None for kind, i, n in ctx.layout)

    torch.library.register_autograd(f"vae_fast::{op}", backward, setup_context=setup_context)


def _term_formula(inputs: list[Tensor], term: str, params: list[float], param_at: OptTensor, event_dim: int) -> tuple[Any, Any]:
    return (reference.term(term, inputs, [*params] if param_at is None else [param_at.detach()], event_dim),), inputs


def _elbo_formula(x: list[Tensor], z: list[Tensor], likelihood: str, params: list[float], kl: str, *rest: Any) -> tuple[Any, Any]:
    floor, floor_at, beta, beta_at, event_dim, latent_dim = rest
    floor, beta = floor if floor_at is None else floor_at.detach(), beta if beta_at is None else beta_at.detach()
    return (reference.elbo(x, z, likelihood, params, kl, floor, beta, event_dim, latent_dim),), [*x, *z]


def _linear_likelihood_formula(x: Tensor, h: Tensor, weight: Tensor, bias: OptTensor, term: str, params: list[float]) -> tuple[Any, Any]:
    inputs = [x, h, weight] if bias is None else [x, h, weight, bias]
    return (reference.linear_likelihood(x, h, weight, bias, term, params),), inputs


def _reparameterize_formula(
    inputs: list[Tensor], noise: OptTensor, rng_state: OptTensor, term: str, num_samples: int, floor: float, event_dim: int
) -> tuple[Any, Any]:
    name, bounds = split_bounds(term)
    family, _, scale = name.rpartition(".")
    noise = None if noise is None else noise.detach()
    if noise is None:  # the kernel's own noise, by the op that drew it: a sample of N(0, 1), in a DTensor's every shard as it was there
        dtype = reference.compute_dtype(inputs)
        unit = [torch.zeros_like(inputs[0], dtype=dtype), torch.ones_like(inputs[1], dtype=dtype), *inputs[2:]]
        with torch.no_grad():
            if family:
                standard = torch.ops.vae_fast.reparameterize_with_kl
                noise, _ = standard(unit, None, rng_state, f"{family}.std", num_samples, floor, event_dim)
            else:
                noise = torch.ops.vae_fast.reparameterize(unit, None, rng_state, "std", num_samples)
    scale = scale if bounds is None else with_bounds(scale, bounds)
    z = reference.reparameterize(inputs[0], inputs[1], scale, num_samples or None, noise)
    kl = reference.term(term, inputs, [floor], event_dim) if family else z.new_zeros(())
    return (z, kl), inputs


def _logsumexp_formula(a: Tensor, weights: OptTensor, out: Tensor, dim: int) -> tuple[Any, Any]:
    return (reference.logsumexp(a, dim, weights),), [a] if weights is None else [a, weights]


def _mixture_formula(x: Tensor, weight_logits: Tensor, means: Tensor, scale: Tensor, saved: Tensor, *rest: Any) -> tuple[Any, Any]:
    return (reference.mixture_log_prob(x, weight_logits, means, scale, rest[0]),), [x, weight_logits, means, scale]


def _mixture_factorized_formula(
    x: Tensor, weight_logits: Tensor, means: Tensor, scale: Tensor, saved: Tensor, covariance: str
) -> tuple[Any, Any]:
    return reference.mixture_factorized(x, weight_logits, means, scale, covariance), [x, weight_logits, means, scale]


def _mixture_responsibilities_formula(
    x: Tensor, weight_logits: Tensor, means: Tensor, scale: Tensor, saved: Tensor, covariance: str, precision: str
) -> tuple[Any, Any]:
    return (reference.mixture_responsibilities(x, weight_logits, means, scale, covariance),), [x, weight_logits, means, scale]


def _mdn_formula(y: Tensor, weight_logits: Tensor, means: Tensor, log_scale: Tensor, saved: Tensor, floor: float) -> tuple[Any, Any]:
    return (reference.mdn_log_prob(y, weight_logits, means, log_scale, floor),), [y, weight_logits, means, log_scale]


def _group_formula(x: Tensor, params: Tensor, *rest: Any) -> tuple[Any, Any]:
    return (reference.group(x, params, *rest),), [x, params]


def _softmax_formula(x: Tensor, logits: Tensor, *rest: Any) -> tuple[Any, Any]:
    inputs = [x, logits] if rest[0] is None else [x, logits, *rest[:2]]
    return (reference.softmax(x, logits, *rest),), inputs


def _register() -> None:
    for name, fake in {
        "term": _term_fake,
        "term_backward": _term_backward_fake,
        "elbo": _elbo_fake,
        "elbo_backward": _elbo_backward_fake,
        "elbo_loss": _elbo_loss_fake,
        "elbo_loss_with_grad": _elbo_loss_with_grad_fake,
        "elbo_parts": _elbo_parts_fake,
        "elbo_loss_parts": _elbo_loss_parts_fake,
        "elbo_loss_parts_with_grad": _elbo_loss_parts_with_grad_fake,
        "linear_likelihood": _linear_likelihood_fake,
        "linear_likelihood_backward": _linear_likelihood_backward_fake,
        "linear_likelihood_sum": _linear_likelihood_sum_fake,
        "linear_likelihood_sum_with_grad": _linear_likelihood_sum_with_grad_fake,
        "draw_seed": _draw_seed_fake,
        "reparameterize": _reparameterize_fake,
        "reparameterize_with_kl": _reparameterize_with_kl_fake,
        "reparameterize_backward": _reparameterize_backward_fake,
        "logsumexp": _logsumexp_fake,
        "logsumexp_backward": _logsumexp_backward_fake,
        "mixture": _mixture_fake,
        "mixture_backward": _gradients_of_four,
        "mixture_responsibilities": _mixture_responsibilities_fake,
        "mixture_responsibilities_backward": _gradients_of_four,
        "mixture_statistics": _mixture_statistics_fake,
        "mixture_factorized": _mixture_factorized_fake,
        "mixture_factorized_backward": _mixture_factorized_backward_fake,
        "mdn": _mdn_fake,
        "mdn_backward": _gradients_of_four,
        "group": _group_fake,
        "group_backward": _group_backward_fake,
        "softmax": _softmax_fake,
        "softmax_backward": _softmax_backward_fake,
    }.items():
        torch.library.register_fake(f"vae_fast::{name}")(fake)
    _differentiate_backward("term_backward", _term_formula, 1)
    _differentiate_backward("elbo_backward", _elbo_formula, 1)
    _differentiate_backward("linear_likelihood_backward", _linear_likelihood_formula, 1)
    _differentiate_backward("reparameterize_backward", _reparameterize_formula, 2)
    _differentiate_backward("logsumexp_backward", _logsumexp_formula, 1)
    _differentiate_backward("mixture_backward", _mixture_formula, 1)
    _differentiate_backward("mixture_responsibilities_backward", _mixture_responsibilities_formula, 1)
    _differentiate_backward("mixture_factorized_backward", _mixture_factorized_formula, 2)
    _differentiate_backward("mdn_backward", _mdn_formula, 1)
    _differentiate_backward("group_backward", _group_formula, 1)
    _differentiate_backward("softmax_backward", _softmax_formula, 1)


_register()
