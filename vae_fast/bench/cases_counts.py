"""Log-probabilities of counts, against the formulas that scvi-tools and ``torch.distributions`` compute.

One count in ten is not 0, as in single-cell data, and the dispersion is one number per gene, as in scvi-tools by default.
"""

from __future__ import annotations

from torch import Tensor, distributions
from torch.nn.functional import softplus

import vae_fast
from vae_fast.bench.case import Case, plain
from vae_fast.bench.likelihood_case import Input, dense_counts, dense_of, normal, positive, row_wise, sparse_counts, stored_sparse

EPS = 1e-8  # as scvi-tools has it


def plain_poisson(x: Tensor, rate: Tensor) -> Tensor:
    """Of torch.distributions."""
    log_prob: Tensor = distributions.Poisson(rate, validate_args=False).log_prob(x)
    return log_prob.sum(-1)


def plain_negative_binomial(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    """With the constant that scvi-tools adds within each logarithm."""
    log_sum = (theta + mu + EPS).log()
    gammas = (x + theta).lgamma() - theta.lgamma() - (x + 1.0).lgamma()
    return (theta * ((theta + EPS).log() - log_sum) + x * ((mu + EPS).log() - log_sum) + gammas).sum(-1)


def plain_zero_inflated(x: Tensor, mu: Tensor, theta: Tensor, zi_logits: Tensor) -> Tensor:
    """The same with zeros that are no counts: both cases are computed for every element, and one of them counts."""
    log_sum = (theta + mu + EPS).log()
    of_zero = theta * ((theta + EPS).log() - log_sum) - zi_logits
    if_zero = softplus(of_zero) - softplus(-zi_logits)
    gammas = (x + theta).lgamma() - theta.lgamma() - (x + 1.0).lgamma()
    if_more = -softplus(-zi_logits) + of_zero + x * ((mu + EPS).log() - log_sum) + gammas
    return ((x < EPS).to(x.dtype) * if_zero + (x >= EPS).to(x.dtype) * if_more).sum(-1)


def ours_negative_binomial(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    """The same values."""
    return vae_fast.negative_binomial_log_prob(x, mu, theta, eps=EPS)


def ours_zero_inflated(x: Tensor, mu: Tensor, theta: Tensor, zi_logits: Tensor) -> Tensor:
    """The same values."""
    return vae_fast.zero_inflated_negative_binomial_log_prob(x, mu, theta, zi_logits, eps=EPS)


def counts(batch: int, genes: int) -> list[Case]:
    """Of cells and genes, dense and in CSR.

    Example:
        >>> [case.name for case in counts(8, 20)][:2]
        ['poisson_log_prob', 'poisson_log_prob, CSR']
    """
    sizes, shape = {"B": batch, "G": genes}, (batch, genes)
    dense = Input(shape, dense_counts, learned=False)
    sparse = Input(shape, sparse_counts, learned=False, stored=stored_sparse(shape))
    mean, dispersion, zeros = Input(shape, positive(-1.0)), Input((genes,), positive()), Input(shape, normal())
    rows = []
    for name, rest, ours, formula, flops in (
        ("poisson_log_prob", [mean], vae_fast.poisson_log_prob, plain_poisson, (6, 3)),
        ("negative_binomial_log_prob", [mean, dispersion], ours_negative_binomial, plain_negative_binomial, (18, 16)),
        ("zero_inflated_negative_binomial_log_prob", [mean, dispersion, zeros], ours_zero_inflated, plain_zero_inflated, (26, 24)),
    ):
        over_dense = plain(lambda x, *t, f=ours: f(dense_of(x), *t))
        rows.append(row_wise(name, sizes, [dense, *rest], ours, formula, flops))
        rows.append(row_wise(f"{name}, CSR", sizes, [sparse, *rest], ours, None, flops, {"dense": over_dense}))
    return rows
