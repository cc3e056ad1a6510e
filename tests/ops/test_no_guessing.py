"""A name that is allowed somewhere and computed nowhere is refused everywhere: no ``else`` takes it for another."""

import pytest
import torch
from torch import nn

import vae_fast
from vae_fast import _backend, _scales, reference
from vae_fast._scales import SCALES
from vae_fast.functional import _arguments as check
from vae_fast.functional import mixture as mixture_functions
from vae_fast.likelihoods import LIKELIHOODS, Likelihood
from vae_fast.models import VAE, MixtureDistribution, MixtureOfGaussians, _em
from vae_fast.terms import TERMS, in_order, names
from vae_fast.training import warmup

X, MU = torch.rand(3, 4), torch.zeros(3, 2)


@pytest.fixture
def geometric(monkeypatch):
    """A likelihood that somebody has begun to add: an entry, and no term."""
    entry = Likelihood("geometric", ("rate",), "geometric", mean=lambda p: p[0] + 7, draw=lambda p, generator: p[0])
    monkeypatch.setitem(LIKELIHOODS, "geometric", entry)


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
@pytest.mark.usefixtures("geometric")
def test_a_new_likelihood_is_not_taken_for_another(name, backend):
    """What needs the term has none; a mean is the entry's own."""
    model = vae(likelihood="geometric")
    if name in ("mean_of", "sample", "reconstruct"):
        torch.manual_seed(0)
        mean = USES[name](model)
        gaussian = vae(likelihood="gaussian")
        gaussian.load_state_dict(model.state_dict())
        torch.manual_seed(0)
        assert torch.equal(mean, USES[name](gaussian) + 7)
        return
    with pytest.raises(ValueError, match="term='geometric': expected one of kl"):
        USES[name](model)


@pytest.mark.parametrize("name", USES)
def test_nor_is_one_set_afterwards(name, backend):
    model = vae()
    model.likelihood = "geometric"
    with pytest.raises(ValueError, match="likelihood='geometric': expected"):
        USES[name](model)


@pytest.mark.usefixtures("geometric")
def test_functions_refuse_it_too(backend):
    for call in (
        lambda: vae_fast.elbo(X, X, MU, MU, likelihood="geometric"),
        lambda: vae_fast.elbo_loss(X, X, MU, MU, likelihood="geometric"),
        lambda: vae_fast.elbo_loss(X, X, MU, MU, likelihood="geometric", reduction="none"),
        lambda: vae_fast.iwae_loss(X, X[None], MU[None], MU, MU, likelihood="geometric"),
    ):
        with pytest.raises(ValueError, match="term='geometric': expected one of kl"):
            call()


@pytest.mark.parametrize(
    "name",
    ["geometric", "gaussian", "gaussian.", "gaussian.sigma", "kl", "kl.sigma", "bernoulli_logits.clip", "bernoulli_probs.", "cauchy.std"],
)
def test_reference_knows_its_terms(name):
    with pytest.raises(ValueError, match=f"term='{name}': expected one of kl.logvar, "):
        reference.term(name, [X, X, X, X], [0.1], 1)


def test_every_term_of_the_kernels_is_known():
    """The extension's table and the one in plain torch have the same names, and every formula takes what is asked of its inputs."""
    if _backend.C is not None:
        with pytest.raises(ValueError, match="expected one of") as refused:
            _backend.C.term([X, X], "geometric", [], None, 1)
        assert str(refused.value).splitlines()[0].partition("expected one of ")[2].split(", ") == names()
    for name in names():
        inputs = [X[:, :1]] * len(TERMS[name.partition(".")[0]].inputs)
        numbers = [255.0, 1.0] if name == "discretized_logistic" else [0.1]
        assert reference.term(name, inputs, numbers, 1).shape == (3,)


#: Parameters for which the mean of a few draws is near that of all.
DRAWN = {"log_scale": lambda t: -t, "df": lambda t: t + 4.0}


@pytest.mark.parametrize("name", [n for n, entry in LIKELIHOODS.items() if entry.grouped_data is None])  # see test_grouped_likelihoods
def test_an_entry_is_whole(name, backend):
    """Every likelihood has terms, for each clip and each way to give its parameters; its mean is that of its draws."""
    entry = LIKELIHOODS[name]
    assert entry.name == name
    assert entry.data == TERMS[entry.family].inputs[0]
    torch.manual_seed(3)
    all_of_it = [DRAWN.get(p, lambda t: t)(torch.rand(2, 5) * 0.8 + 0.1) for p in entry.parameters]
    for given in entry.arity:
        parameters = all_of_it[:given]
        recon = parameters[0] if given == 1 else tuple(parameters)
        for clip in entry.clips:
            assert entry.term(len(entry.completed(parameters)), clip) in names()
            value = vae_fast.elbo(torch.ones(2, 5), recon, MU[:2], MU[:2], likelihood=name, clip=clip)
            assert value.shape == (2,) and value.isfinite().all()
        draws = entry.draw([p.expand(40_000, 2, 5) for p in parameters], torch.Generator().manual_seed(1))
        assert (draws.mean(0) - entry.mean(parameters)).abs().max() < 6 * draws.std(0).max() / 200
    layer = entry.mean_layer
    assert layer is None or torch.equal(layer()(all_of_it[0]), entry.mean(all_of_it[:1]))


@pytest.mark.parametrize("name", [n for n, entry in LIKELIHOODS.items() if entry.scale])
@pytest.mark.parametrize("scale", SCALES)
def test_a_density_integrates_to_one(name, scale, backend):
    entry = LIKELIHOODS[name]
    u = torch.linspace(-60, 60, 200_001, dtype=torch.float64).unsqueeze(-1)
    x, step = (u.exp(), u.exp()) if entry.data == "positive" else (u, torch.ones_like(u))
    parameters = [torch.tensor([v], dtype=torch.float64) for v in ((0.3, 0.7) if len(entry.parameters) == 2 else (9.0, 0.3, 0.7))]
    inputs = [x, *in_order(entry.family, parameters)]
    density = reference.term(f"{entry.family}.{scale}", inputs, [], 1).exp()
    assert torch.trapezoid(density * step[:, 0], u[:, 0]).item() == pytest.approx(1.0, abs=1e-6)


def test_reductions():
    with pytest.raises(ValueError, match="reduction='batchmean': expected 'none', 'mean' or 'sum'"):
        reference.reduce(X, "batchmean")


def test_a_new_covariance_type_is_not_taken_for_another(monkeypatch):
    low_rank = {**mixture_functions._FACTORS, "low_rank": False}
    monkeypatch.setattr(mixture_functions, "_FACTORS", low_rank)
    monkeypatch.setattr(mixture_functions, "COVARIANCE_TYPES", tuple(low_rank))
    parameters = _em.Parameters(torch.zeros(3), torch.zeros(3, 2), torch.zeros(3, 2))
    sums = _em.Sums(3, torch.zeros(()), torch.ones(3), torch.zeros(3, 2), torch.ones(3, 2), torch.zeros(0, 2), torch.zeros(0))
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


@pytest.mark.parametrize("form", [_scales.std, _scales.log_std])
def test_reference_knows_its_scales(form):
    with pytest.raises(ValueError, match="scale='sigma': expected one of logvar, log_std, std, var, softplus"):
        form(X, "sigma")
