"""The public functions; each is documented with its formula, shapes, units and reduction."""

from vae_fast.functional._values import checks
from vae_fast.functional.aggregate import TotalCorrelation, aggregate_log_prob, total_correlation
from vae_fast.functional.bernoulli import bernoulli_log_prob
from vae_fast.functional.categorical import categorical_log_prob, multinomial_log_prob
from vae_fast.functional.continuous_bernoulli import continuous_bernoulli_log_prob
from vae_fast.functional.counts import (
    negative_binomial_log_prob,
    negative_binomial_mixture_log_prob,
    poisson_log_prob,
    zero_inflated_negative_binomial_log_prob,
)
from vae_fast.functional.discretized import discretized_logistic_log_prob, discretized_logistic_mixture_log_prob
from vae_fast.functional.elbo import elbo, elbo_loss
from vae_fast.functional.gaussian import gaussian_kl, gaussian_log_prob
from vae_fast.functional.iwae import iwae_loss
from vae_fast.functional.laplace import laplace_log_prob
from vae_fast.functional.linear import linear_bernoulli_log_prob, linear_multinomial_log_prob
from vae_fast.functional.log_normal import log_normal_log_prob
from vae_fast.functional.logsumexp import iwae_bound, logsumexp
from vae_fast.functional.mdn import mdn_log_prob
from vae_fast.functional.mixture import MixtureLogProbs, MixtureStatistics, mixture_log_prob, mixture_responsibilities, mixture_statistics
from vae_fast.functional.mmd import mmd
from vae_fast.functional.reparameterize import reparameterize, reparameterize_with_kl
from vae_fast.functional.student_t import student_t_log_prob

__all__ = [
    "MixtureLogProbs",
    "MixtureStatistics",
    "TotalCorrelation",
    "aggregate_log_prob",
    "bernoulli_log_prob",
    "categorical_log_prob",
    "checks",
    "continuous_bernoulli_log_prob",
    "discretized_logistic_log_prob",
    "discretized_logistic_mixture_log_prob",
    "elbo",
    "elbo_loss",
    "gaussian_kl",
    "gaussian_log_prob",
    "iwae_bound",
    "iwae_loss",
    "laplace_log_prob",
    "linear_bernoulli_log_prob",
    "linear_multinomial_log_prob",
    "log_normal_log_prob",
    "logsumexp",
    "mdn_log_prob",
    "mixture_log_prob",
    "mixture_responsibilities",
    "mixture_statistics",
    "mmd",
    "multinomial_log_prob",
    "negative_binomial_log_prob",
    "negative_binomial_mixture_log_prob",
    "poisson_log_prob",
    "reparameterize",
    "reparameterize_with_kl",
    "student_t_log_prob",
    "total_correlation",
    "zero_inflated_negative_binomial_log_prob",
]
