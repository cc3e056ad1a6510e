"""What is measured: each case is one function of a VAE's head in three forms over the same inputs.

A case builds its inputs once; every contender then runs one forward and backward pass over them. Inputs that fit in the cache are rotated
among several sets.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import vae_fast

Step = Callable[[], object]
EPS = 1e-6  # of the clipped case: in float32 the plain formula gives NaN at the source's 1e-9


def plain_logits(x: Tensor, logits: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """The loss as it is written in most VAEs, over logits."""
    log_prob = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
    kl = -0.5 * (1 + logvar - mu * mu - logvar.exp()).sum(-1)
    return (kl - log_prob).mean()


def plain_probs(x: Tensor, probs: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """The loss over clipped probabilities, as the thesis writes it."""
    p = probs.clamp(EPS, 1 - EPS)
    log_prob = (x * p.log() + (1 - x) * (1 - p).log()).sum(-1)
    kl = -0.5 * (1 + logvar - mu * mu - logvar.exp()).sum(-1)
    return (kl - log_prob).mean()


def plain_sample(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """A reparameterized sample and its KL divergence."""
    z = mu + (0.5 * logvar).exp() * torch.randn_like(mu)
    return z, -0.5 * (1 + logvar - mu * mu - logvar.exp()).sum(-1)


def ours_logits(x: Tensor, logits: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """The same loss as :func:`plain_logits`."""
    return vae_fast.elbo_loss(x, logits, mu, logvar)


def ours_probs(x: Tensor, probs: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """The same loss as :func:`plain_probs`."""
    return vae_fast.elbo_loss(x, probs, mu, logvar, likelihood="bernoulli_probs", clip="clamp", eps=EPS)


@dataclass(frozen=True)
class Case:
    """One row of the table: the least ratios promised (None: not promised) and the bytes that no version can avoid moving."""

    name: str
    batch: int
    data: int
    latent: int
    kind: str  # "logits", "probs" or "sample"
    vs_eager: float
    vs_compile: float

    @property
    def label(self) -> str:
        """The row's name in the table."""
        shape = f"B={self.batch}" + (f" D={self.data}" if self.kind != "sample" else "") + f" L={self.latent}"
        return f"{self.name}, {shape}"

    @property
    def least_bytes(self) -> int:
        """float32: every input read once, every output and gradient written once, and for a sample the upstream gradients read once."""
        latent = 4 * self.batch * self.latent
        if self.kind == "sample":  # forward: read mu, logvar, write z, kl; backward: read mu, logvar, two gradients, write two
            return 9 * latent - 2 * latent + 8 * self.batch
        return 3 * 4 * self.batch * self.data + 4 * latent

    def steps(self, device: str) -> dict[str, Step]:
        """One forward and backward pass per contender."""
        sets = 1 if self.least_bytes > 64 << 20 else 3  # what exceeds the cache need not be rotated
        g = torch.Generator(device).manual_seed(0)

        def leaf(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, generator=g).requires_grad_()

        def inputs() -> tuple[Tensor, ...]:
            mu, logvar = leaf(self.batch, self.latent), leaf(self.batch, self.latent)
            if self.kind == "sample":
                return mu, logvar
            x = torch.rand(self.batch, self.data, device=device, generator=g)
            recon = leaf(self.batch, self.data)
            return x, recon.detach().sigmoid().requires_grad_() if self.kind == "probs" else recon, mu, logvar

        plain = {"logits": plain_logits, "probs": plain_probs, "sample": plain_sample}[self.kind]
        ours = {"logits": ours_logits, "probs": ours_probs, "sample": vae_fast.reparameterize_with_kl}[self.kind]
        upstream = [torch.randn(self.batch, self.latent, device=device), torch.randn(self.batch, device=device)]
        all_inputs = [inputs() for _ in range(sets)]

        def step_of(f: Callable[..., object]) -> Step:
            rotation = itertools.cycle(all_inputs)

            def step() -> object:
                tensors = next(rotation)
                for t in tensors:
                    t.grad = None
                out = f(*tensors)
                if isinstance(out, tuple):
                    torch.autograd.backward(list(out), upstream)
                else:
                    assert isinstance(out, Tensor)
                    out.backward()
                return out

            return step

        return {"eager": step_of(plain), "compile": step_of(torch.compile(plain, dynamic=False)), "ours": step_of(ours)}


def cases(device: str) -> list[Case]:
    """The rows of the performance contract for the device."""
    if device == "cpu":
        return [
            Case("elbo_loss, logits", 8192, 784, 20, "logits", 9.0, 3.0),
            Case("elbo_loss, clipped probs", 8192, 784, 20, "probs", 25.0, 2.5),
            Case("elbo_loss, logits", 100, 784, 20, "logits", 3.0, 2.5),
            Case("reparameterize_with_kl", 8192, 0, 20, "sample", 5.0, 5.0),
        ]
    return [
        Case("elbo_loss, logits", 65536, 784, 20, "logits", 5.0, 1.3),
        Case("elbo_loss, clipped probs", 65536, 784, 20, "probs", 5.0, 1.3),
        Case("elbo_loss, logits", 100, 784, 20, "logits", 3.0, 1.3),
        Case("reparameterize_with_kl", 1 << 20, 0, 20, "sample", 5.0, 1.3),
    ]
