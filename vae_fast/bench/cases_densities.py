"""Densities of grey values and other real numbers, against ``torch.distributions``."""

from __future__ import annotations

from torch import Tensor, distributions

import vae_fast
from vae_fast.bench.case import Case
from vae_fast.bench.likelihood_case import Input, normal, positive, row_wise, uniform


def _summed(p: distributions.Distribution, x: Tensor) -> Tensor:
    log_prob: Tensor = p.log_prob(x)
    return log_prob.sum(-1)


def plain_laplace(x: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    """Of torch.distributions."""
    return _summed(distributions.Laplace(loc, log_scale.exp(), validate_args=False), x)


def plain_gaussian(x: Tensor, mu: Tensor, log_std: Tensor) -> Tensor:
    """Of torch.distributions."""
    return _summed(distributions.Normal(mu, log_std.exp(), validate_args=False), x)


def plain_log_normal(x: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    """Of torch.distributions."""
    return _summed(distributions.LogNormal(loc, log_scale.exp(), validate_args=False), x)


def plain_student_t(x: Tensor, df: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    """Of torch.distributions."""
    return _summed(distributions.StudentT(df, loc, log_scale.exp(), validate_args=False), x)


def plain_continuous_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    """Of torch.distributions."""
    return _summed(distributions.ContinuousBernoulli(logits=logits, validate_args=False), x)


def ours_one_scale(x: Tensor, mu: Tensor, log_std: Tensor) -> Tensor:
    """A scale of no dimensions, which the decoder learns beside its weights (a sigma-VAE)."""
    return vae_fast.gaussian_log_prob(x, mu, log_std, scale="log_std")


def densities(batch: int, data: int) -> list[Case]:
    """Of a decoder that gives images.

    Example:
        >>> [case.name for case in densities(8, 784)][:2]
        ['laplace_log_prob', 'gaussian_log_prob, one learned scale']
    """
    sizes, shape = {"B": batch, "D": data}, (batch, data)
    grey, location, scale = Input(shape, uniform, learned=False), Input(shape, normal()), Input(shape, normal(spread=0.5))
    one, amount, df = Input((), normal(spread=0.5)), Input(shape, positive(), learned=False), Input((data,), positive(1.0))
    logits = Input(shape, normal(spread=3.0))
    return [
        row_wise("laplace_log_prob", sizes, [grey, location, scale], vae_fast.laplace_log_prob, plain_laplace, (7, 7)),
        row_wise("gaussian_log_prob, one learned scale", sizes, [grey, location, one], ours_one_scale, plain_gaussian, (5, 5)),
        row_wise("log_normal_log_prob", sizes, [amount, location, scale], vae_fast.log_normal_log_prob, plain_log_normal, (8, 7)),
        row_wise("student_t_log_prob", sizes, [grey, df, location, scale], vae_fast.student_t_log_prob, plain_student_t, (24, 20)),
        row_wise(
            "continuous_bernoulli_log_prob",
            sizes,
            [grey, logits],
            vae_fast.continuous_bernoulli_log_prob,
            plain_continuous_bernoulli,
            (10, 8),
        ),
    ]
