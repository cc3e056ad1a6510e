"""An ELBO over a log-probability of the caller's own, or of another op of this package, with its gradient written in the forward pass.

The fused head takes likelihoods that are sums over elements. Any other one, a mixture density network's or a flow's, is a function of the
data and the decoder's output that gives one log-probability per sample; the KL divergence is the kernels', and the whole is differentiated
at once, so that nothing but the gradients waits for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae_fast import reference
from vae_fast.functional import _arguments as check
from vae_fast.functional import _bounds as bounds
from vae_fast.functional import _values as values
from vae_fast.functional._dispatch import reduce, row_sum
from vae_fast.functional._numbers import Number, number
from vae_fast.functional.gaussian import floor_of, kl_term, prior_of

LogProb = Callable[..., Tensor]


def log_prob(f: LogProb, x: Any, recon: Any) -> Tensor:
    """``f(x, *recon)``, checked to be one number per sample.

    Raises:
        TypeError: if it is no floating tensor.
    """
    out = f(x, *parameters_of(recon))
    if not isinstance(out, Tensor) or not out.is_floating_point():
        came = f"a tensor of {str(out.dtype).removeprefix('torch.')}" if isinstance(out, Tensor) else type(out).__name__
        raise TypeError(f"likelihood: expected a function that gives a floating tensor, one log-probability per sample, got {came}")
    return out


def parameters_of(recon: Any) -> tuple[Any, ...]:
    """The decoder's output as the arguments of a log-probability."""
    return tuple(recon) if isinstance(recon, tuple | list) else (recon,)


class Head:
    """What an ELBO over ``f`` is computed from, and how."""

    def __init__(
        self,
        f: LogProb,
        x: Any,
        recon: Any,
        mu: Tensor,
        logvar: Tensor,
        beta: Number,
        prior_mu: Number | None,
        prior_logvar: Number | None,
        scale: str,
        scale_bounds: bounds.ScaleBounds | None,
        free_bits: Number | None,
        latent_dim: int,
        check_data: bool,
        return_parts: bool,
    ) -> None:
        """Check all but the function's own arguments."""
        prior_mu, prior_logvar = prior_of(mu, logvar, prior_mu, prior_logvar, scale)
        shape = check.gaussian(mu, logvar, prior_mu, prior_logvar, scale)
        between = bounds.checked(scale_bounds, scale)
        check.event_dims("latent_dim", latent_dim, "mu", shape)
        if values.wanted(check_data):
            values.require(*values.gaussian(mu, logvar, prior_mu, prior_logvar, scale, between is not None))
        self.f, self.latent_dim, self.batch = f, latent_dim, shape[: len(shape) - latent_dim]
        self.beta, self.floor = number("beta", beta, mu), floor_of(free_bits, mu)
        self.kl, latents = kl_term(mu, logvar, prior_mu, prior_logvar, scale, between)
        self.arguments: list[Any] = [x, *parameters_of(recon), *latents]
        self.latents, self.return_parts = len(latents), return_parts

    def elbo(self, *arguments: Any) -> tuple[Tensor, ...]:
        """The ELBO of each sample; if they are wanted, the likelihood and the KL that it is made of, without gradients."""
        data, latents = arguments[: -self.latents], list(arguments[-self.latents :])
        log_p = log_prob(self.f, data[0], data[1:])
        if len(log_p.shape) != len(self.batch) or any(a != b and 1 not in (a, b) for a, b in zip(log_p.shape, self.batch, strict=True)):
            raise ValueError(
                f"likelihood gives shape {tuple(log_p.shape)}, mu has batch shape {tuple(self.batch)} (latent_dim={self.latent_dim}): "
                "expected one log-probability per sample"
            )
        kl = row_sum(self.kl, latents, [self.floor], self.latent_dim)
        # 0 leaves nothing of a KL that is out of range; NaN shows
        off = torch.as_tensor(self.beta == 0, device=kl.device) & ~kl.isnan()
        dtype = reference.compute_dtype([log_p, kl])
        value = log_p.to(dtype) - self.beta * kl.masked_fill(off, 0.0).to(dtype)
        if not self.return_parts:
            return (value,)
        return value, *(part.detach().to(dtype).expand(value.shape) for part in (log_p, kl))

    def loss(self, reduction: str) -> tuple[Tensor, ...]:
        """The negative ELBO, reduced, and its parts as :meth:`elbo` has them; its gradients are written at once where that is all."""
        places = [i for i, t in enumerate(self.arguments) if isinstance(t, Tensor) and t.requires_grad]
        given = [self.arguments[i] for i in places]
        if reduction == "none" or not places or not torch.is_grad_enabled() or not _eager(self.arguments):
            return self.reduced(reduction, self.arguments)
        if any(t.dtype in (torch.float16, torch.bfloat16) for t in given):
            return self.reduced(reduction, self.arguments)  # a half gradient waits for the loss's scale
        begun = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        own = [t.view_as(t) for t in given]
        loss, *parts = self.reduced(reduction, self.with_own(places, own))
        nodes = [t.grad_fn for t in own]
        held = _leaves_of([loss.grad_fn], nodes, begun)
        if held is None or _lead_to(nodes, held):
            return loss, *parts  # something in this graph is wanted by another, or leads where the arguments do: left to autograd
        grads = torch.autograd.grad(loss, [*own, *held], allow_unused=True)
        result = _Result(self, reduction, places, loss.detach(), list(grads))
        return _Written.apply(result, *given, *held), *parts  # type: ignore[no-untyped-call]

    def with_own(self, places: Sequence[int], own: Sequence[Tensor]) -> list[Any]:
        """The arguments, with others in these places."""
        arguments = list(self.arguments)
        for i, t in zip(places, own, strict=True):
            arguments[i] = t
        return arguments

    def reduced(self, reduction: str, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
        """The loss as a graph of its own, and its parts."""
        value, *parts = self.elbo(*arguments)
        return tuple(reduce(t, reduction) for t in (-value, *parts))


def _eager(arguments: Sequence[Any]) -> bool:
    """Whether values are at hand and nobody records or transforms what is done: no compiler, trace, subclass, mode or ``torch.func``."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or torch._C._len_torch_dispatch_stack():
        return False
    tensors = [t for t in arguments if isinstance(t, Tensor)]
    return all(type(t) in (Tensor, torch.nn.Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors)


def _leaves_of(starts: Sequence[Any], stops: Sequence[Any], begun: int) -> list[Tensor] | None:
    """The leaves that a graph leads to from ``starts`` without passing ``stops``; None if it passes a node older than ``begun``."""
    found: dict[int, Tensor] = {}
    seen, left = set(stops), list(starts)
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            found[id(variable)] = variable
        elif node._sequence_nr() < begun:
            return None
        left += [following for following, _ in node.next_functions]
    return list(found.values())


def _lead_to(nodes: Sequence[Any], leaves: Sequence[Tensor]) -> bool:
    """Whether the graph behind these nodes leads to one of the leaves."""
    if not leaves:
        return False  # and no walk through the model's graph
    behind = _leaves_of(nodes, (), 0) or ()
    return any(t is leaf for t in behind for leaf in leaves)


@dataclass
class _Result:
    """A loss and its gradients, and how to come by them again."""

    head: Head
    reduction: str
    places: list[int]  # of the arguments that get a gradient
    loss: Tensor
    grads: list[Tensor | None] | None  # handed over by the first backward pass


class _Written(torch.autograd.Function):
    """A loss whose gradients are known, as a node of the graph: of the arguments, then of the leaves that the function holds."""

    @staticmethod
    def forward(ctx: Any, result: _Result, *leaves: Tensor) -> Tensor:
        ctx.result = result
        ctx.save_for_backward(*leaves)
        return result.loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        leaves = ctx.saved_tensors  # refuses a second pass over a freed graph, and inputs changed in place
        result: _Result = ctx.result
        grads, result.grads = result.grads, None
        if grads is not None and not torch.is_grad_enabled():
            return None, *(None if g is None else g * upstream for g in grads)  # not in place: torch may share one between inputs
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            count = len(result.places)
            own = [t.view_as(t) if create_graph else t.detach().requires_grad_() for t in leaves[:count]]
            loss, *_ = result.head.reduced(result.reduction, result.head.with_own(result.places, own))
            again = torch.autograd.grad(loss, [*own, *leaves[count:]], upstream, create_graph=create_graph, allow_unused=True)
        return None, *again
