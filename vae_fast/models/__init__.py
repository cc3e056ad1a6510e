"""Modules built from :mod:`vae_fast.functional`."""

from vae_fast.errors import ConvergenceWarning, DeadComponentWarning, NotFittedError, SingularCovarianceError
from vae_fast.models._decoded import Losses, VAEOutput
from vae_fast.models._distribution_prior import DistributionPrior
from vae_fast.models._mixture_distribution import MixtureDistribution
from vae_fast.models.bayesian import BayesianMixtureOfGaussians
from vae_fast.models.mdn import MDNOutput, MixtureDensityNetwork
from vae_fast.models.mixture import MixtureOfGaussians
from vae_fast.models.mlp import MLPVAE
from vae_fast.models.priors import VampPrior
from vae_fast.models.vae import VAE

__all__ = [
    "MLPVAE",
    "VAE",
    "BayesianMixtureOfGaussians",
    "ConvergenceWarning",
    "DeadComponentWarning",
    "DistributionPrior",
    "Losses",
    "MDNOutput",
    "MixtureDensityNetwork",
    "MixtureDistribution",
    "MixtureOfGaussians",
    "NotFittedError",
    "SingularCovarianceError",
    "VAEOutput",
    "VampPrior",
]
