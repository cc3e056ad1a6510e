"""Data, starts and shortcuts that the tests of mixtures of Gaussians share."""

import numpy as np
import torch
from torch import nn

from vae_fast.models import MixtureOfGaussians

KINDS = ["full", "tied", "diag", "spherical"]
LEARNED = ["weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_", "n_features_in_"]


def blobs(n=300, d=2, dtype=torch.float64, seed=0):
    """Three groups around corners, of unequal size and shape."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), n, replacement=True, generator=generator)
    z = torch.randn((n, d), generator=generator, dtype=torch.float64)
    z[:, 0] += 0.5 * z[:, 1]
    spread = torch.tensor([1.0, 0.5, 0.8], dtype=torch.float64)[label].unsqueeze(1)
    centres = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 7.0]], dtype=torch.float64)
    return (nn.functional.pad(centres, (0, d - 2))[label] + spread * z).to(dtype)


def explicit_start(X, k, kind, seed=0):
    """Equal weights, means at random samples, the variances of the data."""
    rng, d = np.random.default_rng(seed), X.shape[1]
    precision = 1.0 / (X.var(0) + 1e-2)
    full = np.diag(precision)
    return {
        "n_components": k,
        "covariance_type": kind,
        "weights_init": np.full(k, 1.0 / k),
        "means_init": X[rng.choice(len(X), k, replace=False)],
        "precisions_init": {
            "full": np.stack([full] * k),
            "tied": full,
            "diag": np.broadcast_to(precision, (k, d)),
            "spherical": np.full(k, precision.mean()),
        }[kind],
    }


def random_mixture(kind, k=3, d=2, dtype=torch.float64, **options):
    """A module with unlike components: every number of its parameters is drawn."""
    generator = torch.Generator().manual_seed(5)
    mixture = MixtureOfGaussians(k, covariance_type=kind, n_features=d, dtype=dtype, **options)
    with torch.no_grad():
        for p in mixture.parameters():
            p.copy_(0.6 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
        mixture.means.mul_(4.0)
    return mixture


def as_torch(mixture):
    """The same density by torch.distributions, from scikit-learn's attributes."""
    k, d = mixture.means_.shape
    covariances = torch.from_numpy(mixture.covariances_)
    matrices = {
        "full": lambda c: c,
        "tied": lambda c: c.expand(k, d, d),
        "diag": torch.diag_embed,
        "spherical": lambda c: c[:, None, None] * torch.eye(d, dtype=c.dtype),
    }[mixture.covariance_type](covariances)
    components = torch.distributions.MultivariateNormal(torch.from_numpy(mixture.means_), matrices)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.from_numpy(mixture.weights_)), components)
