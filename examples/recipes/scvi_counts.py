"""scvi-tools: its distributions of counts, in your own module or in its models; `vae_fast.patched` stands around the training.

`python benchmarks/scvi_run.py` trains a whole SCVI model both ways.
"""

import torch
from _recipe import Step, main, package, stepper
from torch import Tensor, nn

import vae_fast

CELLS, GENES = 128, 2000


def before(mu: Tensor, theta: Tensor, zi_logits: Tensor, counts: Tensor) -> Tensor:
    """The mean negative log-likelihood of cells."""
    zinb = package("scvi.distributions").ZeroInflatedNegativeBinomial
    return -zinb(mu=mu, theta=theta, zi_logits=zi_logits).log_prob(counts).sum(-1).mean()


def after(mu: Tensor, theta: Tensor, zi_logits: Tensor, counts: Tensor) -> Tensor:
    """The mean negative log-likelihood of cells."""
    zinb = package("scvi.distributions").ZeroInflatedNegativeBinomial
    with vae_fast.patched("scvi"):
        return -zinb(mu=mu, theta=theta, zi_logits=zi_logits).log_prob(counts).sum(-1).mean()


def frozen_loss(mu: Tensor, theta: Tensor, zi_logits: Tensor, counts: Tensor, swapped: bool, eps: float = 1e-8) -> Tensor:
    """scvi-tools 1.4.2's ``log_zinb_positive``, and the function that is put in its place."""
    if swapped:
        return -vae_fast.zero_inflated_negative_binomial_log_prob(counts, mu, theta, zi_logits, eps=eps).mean()
    softplus_pi = nn.functional.softplus(-zi_logits)
    log_theta_eps, log_theta_mu_eps = torch.log(theta + eps), torch.log(theta + mu + eps)
    pi_theta_log = -zi_logits + theta * (log_theta_eps - log_theta_mu_eps)
    zero = nn.functional.softplus(pi_theta_log) - softplus_pi
    positive = -softplus_pi + pi_theta_log + counts * (torch.log(mu + eps) - log_theta_mu_eps)
    positive = positive + torch.lgamma(counts + theta) - torch.lgamma(theta) - torch.lgamma(counts + 1)
    return -torch.where(counts < eps, zero, positive).sum(-1).mean()


def step(swapped: bool, frozen: bool = False) -> Step:
    """A training step of a decoder of counts."""
    decoder, log_theta, h = nn.Linear(128, 2 * GENES), nn.Parameter(torch.zeros(GENES)), torch.randn(CELLS, 128)
    counts = torch.poisson(torch.rand(CELLS, GENES, generator=torch.Generator().manual_seed(3)) * 2)

    def loss() -> Tensor:
        log_mu, zi_logits = decoder(h).chunk(2, -1)
        given = (log_mu.exp(), log_theta.exp(), zi_logits, counts)
        return frozen_loss(*given, swapped) if frozen else (after if swapped else before)(*given)

    return stepper([*decoder.parameters(), log_theta], loss)


if __name__ == "__main__":
    main(__name__)
