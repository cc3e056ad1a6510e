"""``donate_recon``: refused, or the same numbers as without it and nobody else's memory overwritten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch

import vae_fast

from .judge import Finding, same_bits

# p (8, 8) and q (4, 8) are leaves.
RECONS = (
    "p[:4] * 1.5",
    "p[2:6]",
    "p[:4]",
    "p.view(64)[8:40].view(4, 8)",
    "p.detach()[:4]",
    "p.unflatten(0, (2, 4))[1]",
    "(p * 1.5)[2:6]",
    "(p * 1.5).view(2, 4, 8)[0]",
    "q * 1.0",
    "q.exp()",
    "q.tanh()",
    "q.relu()",
    "q.sigmoid()",
    "torch.nn.functional.softplus(q)",
    "torch.nn.functional.linear(q, p)",
    "(q * 1.5).contiguous()",
    "(q * 1.5).to(torch.float64)",
    "q.clone()",
    "q + 0.0",
    "torch.cat([q[:2], p[:2]])",
    "torch.nn.functional.dropout(q, 0.0)",
    "q.detach().clone()",
    "q.detach()",
    "q",
)
# What else has its memory.
ALIASES = ("none", "none", "x", "mu", "logvar", "prior_mu", "prior_logvar")
VIEWS = ("recon[:, :2]", "recon.detach()[:, :2]", "recon[:, 3:5]", "recon.view(-1)[:8].view(4, 2)", "recon.T[:2].T", "recon[:1, :2]")
BEFORE = ("none", "none", "recon.square().sum()", "recon.exp().sum()", "(recon * recon.detach()).sum()")


@dataclass(frozen=True)
class Donation:
    recon: str
    alias: str = "none"
    view: str = VIEWS[0]
    before: str = "none"  # another use of recon, added to the loss
    likelihood: str = "bernoulli"
    dtype: str = "float32"
    reduction: str = "mean"


def make(rng: Random) -> Donation:
    likelihood = rng.choice(("bernoulli", "bernoulli", "gaussian", "bernoulli_probs"))
    alias = rng.choice(ALIASES)
    return Donation(
        rng.choice(RECONS),
        alias,
        rng.choice(VIEWS),
        rng.choice(BEFORE) if alias == "none" else "none",
        likelihood,
        rng.choice(("float32", "float32", "float16", "float64")),
        rng.choice(("mean", "sum")),
    )


def source(case: Donation, donate: bool) -> str:
    lines = [
        "torch.manual_seed(0)",
        f"p, q = (torch.rand(n, 8, dtype=torch.{case.dtype}).mul(0.8).add(0.1).requires_grad_() for n in (8, 4))",
        f"x, mu, logvar = torch.rand(4, 8), *torch.rand(2, 4, 2, dtype=torch.{case.dtype}).requires_grad_()",
        f"recon = {case.recon}",
        *([f"{case.alias} = {'recon.detach()' if case.alias == 'x' else case.view}"] if case.alias != "none" else []),
        *([f"before = {case.before}"] if case.before != "none" else []),
    ]
    prior = f", {case.alias}={case.alias}" if case.alias.startswith("prior") else ""
    options = f"likelihood={case.likelihood!r}, reduction={case.reduction!r}{prior}, donate_recon={donate}"
    loss = f"vae_fast.elbo_loss(x, recon, mu, logvar, {options})"
    return "\n".join([*lines, f"loss = {loss}" + (" + before" if case.before != "none" else "")])


def snippet(case: Donation) -> str:
    return f"import torch\nimport vae_fast\n\n{source(case, True)}\nprint(loss, p.sum(), q.sum())"


def _run(case: Donation, donate: bool) -> dict[str, Any]:
    scope: dict[str, Any] = {"torch": torch, "vae_fast": vae_fast}
    exec(source(case, donate), scope)
    if scope["loss"].requires_grad:
        scope["loss"].backward()
    return scope


def examine(case: Donation) -> Finding | None:
    try:
        usual = _run(case, False)
    except Exception:  # shapes or values that are none, without donation either
        return None
    try:
        found = _run(case, True)
    except ValueError as error:
        plain = "donate_recon" in str(error) and "\n" not in str(error)
        return None if plain else Finding("message", "ValueError", str(error).splitlines()[0])
    except RuntimeError as error:
        known = "modified by an inplace operation" in str(error)
        return None if known else Finding("message", "RuntimeError", str(error).splitlines()[0])
    if not same_bits(found["loss"].detach(), usual["loss"].detach()):
        return Finding("donated loss", case.alias, f"the loss is {found['loss'].item():.9g}, without donation {usual['loss'].item():.9g}")
    for name in ("p", "q"):
        if not same_bits(found[name].detach(), usual[name].detach()):
            return Finding("donated leaf", name, f"the leaf {name} was overwritten: recon = {case.recon}")
    for name in ("p", "q", "mu", "logvar"):
        a, b = found[name], usual[name]
        if a.is_leaf and b.is_leaf and not same_bits(a.grad, b.grad) and not torch.allclose(a.grad, b.grad, 1e-3, 1e-6):
            return Finding("donated gradient", name, f"the gradient of {name} is another than without donation")
    return None


def simpler(case: Donation) -> Iterator[Donation]:
    for field, plain in {
        "alias": "none",
        "before": "none",
        "likelihood": "bernoulli",
        "dtype": "float32",
        "reduction": "mean",
        "recon": "q * 1.0",
        "view": VIEWS[0],
    }.items():
        if getattr(case, field) != plain:
            yield replace(case, **{field: plain})
