"""A name that is allowed somewhere and computed nowhere is refused everywhere: no ``else`` takes it for another."""

import pytest
import torch
from torch import nn

import vae_fast
from vae_fast import reference
from vae_fast.functional import _arguments as check
from vae_fast.functional import mixture as mixture_functions
from vae_fast.models import VAE, MixtureDistribution, MixtureOfGaussians, _em
from vae_fast.training import warmup

X, MU = torch.rand(3, 4), torch.zeros(3, 2)


@pytest.fixture
def poisson(monkeypatch):
    """A likelihood that somebody has begun to add."""
    monkeypatch.setattr(check, "LIKELIHOODS", (*check.LIKELIHOODS, "poisson"))


def vae(**kwargs):
    return VAE(nn.Linear(4, 4), nn.Linear(2, 4), latent_dim=2, **kwargs)


USES = {
    "loss": lambda m: m.loss(X),
    "losses": lambda m: m.losses(X),
    "log_likelihood": lambda m: m.log_likelihood(X, X),
    "mean_of": lambda m: m.mean_of(X),
    "log_prob": lambda m: m.log_prob(X, 2),
    "sample": lambda m: m.sample(2),
    "reconstruct": lambda m: m.reconstruct(X),
}


@pytest.mark.parametrize("name", USES)
@pytest.mark.usefixtures("poisson")
def test_a_new_likelihood_is_not_taken_for_another(name, backend):
    with pytest.raises(ValueError, match="likelihood='poisson': expected"):
        USES[name](vae(likelihood="poisson"))


@pytest.mark.parametrize("name", USES)
def test_nor_is_one_set_afterwards(name, backend):
    model = vae()
    model.likelihood = "poisson"
    with pytest.raises(ValueError, match="likelihood='poisson': expected"):
        USES[name](model)


@pytest.mark.usefixtures("poisson")
def test_functions_refuse_it_too(backend):
    for call in (
        lambda: vae_fast.elbo(X, X, MU, MU, likelihood="poisson"),
        lambda: vae_fast.elbo_loss(X, X, MU, MU, likelihood="poisson"),
        lambda: vae_fast.elbo_loss(X, X, MU, MU, likelihood="poisson", reduction="none"),
        lambda: vae_fast.iwae_loss(X, X[None], MU[None], MU, MU, likelihood="poisson"),
    ):
        with pytest.raises(ValueError, match="likelihood='poisson': expected"):
            call()


@pytest.mark.parametrize(
    "name",
    ["poisson", "gaussian", "gaussian.", "gaussian.sigma", "kl", "kl.sigma", "bernoulli_logits.clip", "bernoulli_probs.", "laplace.std"],
)
def test_reference_knows_its_terms(name):
    with pytest.raises(ValueError, match=f"term='{name}': expected one of kl.logvar, "):
        reference.term(name, [X, X, X, X], 0.1, 0.0, 1)


def test_every_term_of_the_kernels_is_known():
    """What the checks of values ask of each, and the reference's formulas, by the same names."""
    from vae_fast.functional import _values

    assert set(_values._TERMS) == set(reference._VARIANTS)
    for family, variants in reference._VARIANTS.items():
        for variant in variants:
            count = len(_values._TERMS[family])
            assert reference.term(f"{family}.{variant}", [X[:, :1]] * count, 0.1, 0.0, 1).shape == (3,)


def test_reductions():
    with pytest.raises(ValueError, match="reduction='batchmean': expected 'none', 'mean' or 'sum'"):
        reference.reduce(X, "batchmean")


def test_a_new_covariance_type_is_not_taken_for_another(monkeypatch):
    low_rank = {**mixture_functions._FACTORS, "low_rank": False}
    monkeypatch.setattr(mixture_functions, "_FACTORS", low_rank)
    monkeypatch.setattr(mixture_functions, "COVARIANCE_TYPES", tuple(low_rank))
    parameters = _em.Parameters(torch.zeros(3), torch.zeros(3, 2), torch.zeros(3, 2))
    sums = _em.Sums(3, torch.zeros(()), torch.ones(3), torch.zeros(3, 2), torch.ones(3, 2), torch.zeros(0, 2))
    for call in (
        lambda: reference.mixture_log_joint(X[:, :2], *parameters, "low_rank"),
        lambda: _em.maximise(parameters, sums, 0.0, "low_rank", "here"),
        lambda: MixtureDistribution(*parameters, covariance_type="low_rank").sample((2,)),
    ):
        with pytest.raises(ValueError, match="covariance_type='low_rank': expected"):
            call()


def test_a_covariance_type_set_afterwards_is_refused():
    for use in (
        lambda m: m.sample(2),
        lambda m: m.distribution(),
        lambda m: m.covariances_,
        lambda m: m.precisions_,
        lambda m: m.precisions_cholesky_,
        lambda m: m.log_prob(X[:, :2]),
        lambda m: m.fit(X[:, :2]),
    ):
        mixture = MixtureOfGaussians(2, n_features=2, covariance_type="diag")
        mixture.covariance_type = "diagonal"
        with pytest.raises(ValueError, match="covariance_type='diagonal': expected one of 'diag', 'spherical', 'tied', 'full'"):
            use(mixture)


def test_schedules(monkeypatch):
    monkeypatch.setattr(check, "one_of", lambda *args: None)
    with pytest.raises(ValueError, match="then='step': expected"):
        warmup(1, "step", 10)(5)


@pytest.mark.parametrize("form", [reference.std, reference.log_std])
def test_reference_knows_its_scales(form):
    with pytest.raises(ValueError, match="scale='sigma': expected one of logvar, log_std, std, var, softplus"):
        form(X, "sigma")
