"""``torch.distributions`` on our kernels: the same classes with the same arguments, shapes and errors; only the import changes.

Each is a subclass of torch's class of the same name, so that ``isinstance`` holds; whatever is not in this table is inherited:

===================  ==============================================================  ==================================================
class                ours                                                            torch's arithmetic
===================  ==============================================================  ==================================================
Normal               log_prob, rsample, sample; KL between Normals                    entropy, cdf, icdf, other KLs
Laplace              log_prob                                                        rsample, sample, entropy, cdf, icdf, KLs
Bernoulli            log_prob                                                        sample, entropy, enumerate_support, KLs
StudentT             log_prob                                                        rsample, sample, entropy
LogNormal            log_prob                                                        rsample, sample, entropy, cdf, icdf, KLs
ContinuousBernoulli  log_prob                                                        rsample, sample, entropy, cdf, icdf, KLs
Poisson              log_prob                                                        sample, KLs
NegativeBinomial     log_prob, mean, variance; by ``mu`` and ``theta`` too           sample, mode
ZeroInflated-        everything: torch has no such class                             its draws: torch's Gamma, Poisson and Bernoulli
NegativeBinomial
DiscretizedLogistic  everything: torch has no such class
Categorical          log_prob                                                        sample, entropy, enumerate_support, KLs
Multinomial          log_prob                                                        sample, entropy
Independent          log_prob of the classes above, summed in the same pass; KL      summing any other class's log_prob; entropy
                     between Independent Normals, one pass
MixtureSameFamily    log_prob and sample of diagonal Normals (memory O(N + K D))     other components, cdf, mean, variance
===================  ==============================================================  ==================================================

``torch.distributions.kl_divergence`` works between two of these classes, and between one of these and one of torch's. Log-probabilities
and KL divergences are in nats. Our kernels return float32 for float16 and bfloat16, as :func:`vae_fast.gaussian_log_prob` does; integers
are numbers here: uint8 is not read as ``x / 255``. The constructors and ``log_prob`` check all values, as torch's do, unless
``validate_args=False``.

Example:
    >>> import torch
    >>> from vae_fast import distributions as D
    >>> posterior = D.Independent(D.Normal(torch.zeros(3, 2), torch.ones(3, 2)), 1)
    >>> prior = D.Independent(D.Normal(torch.zeros(2), torch.ones(2)), 1)
    >>> torch.distributions.kl_divergence(posterior, prior), posterior.rsample().shape
    (tensor([0., 0., 0.]), torch.Size([3, 2]))
"""

from vae_fast.distributions import _kl as _kl
from vae_fast.distributions._classes import Categorical, Multinomial
from vae_fast.distributions._combined import Independent, MixtureSameFamily
from vae_fast.distributions._counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from vae_fast.distributions._elementwise import Bernoulli, ContinuousBernoulli, Laplace, LogNormal, Normal, StudentT
from vae_fast.distributions._levels import DiscretizedLogistic

__all__ = [
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Independent",
    "Laplace",
    "LogNormal",
    "MixtureSameFamily",
    "Multinomial",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
]
