"""VAE(prior=...) and models.VampPrior against formulas written out."""

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence
from torch.nn import functional as F

import vae_fast
from vae_fast.models import VAE, MixtureOfGaussians, VampPrior


@pytest.fixture(autouse=True)
def _one_thread(_reproducible):
    torch.set_num_threads(1)


def mixture_prior(kind="diag", k=4, dim=3):
    prior = MixtureOfGaussians(k, covariance_type=kind, n_features=dim, dtype=torch.float64, random_state=0)
    with torch.no_grad():
        prior.weight_logits.copy_(torch.linspace(-1.0, 1.0, k))
        prior.scale.normal_(0.0, 0.3)
    return prior


def small(prior, device="cpu", **options):
    torch.manual_seed(0)
    model = VAE(nn.Linear(6, 2 * 3), nn.Linear(3, 6), latent_dim=3, prior=prior, **options)
    return model.double().to(device), torch.rand(5, 6).double().to(device), torch.randn(5, 3).double().to(device)


def plain_terms(model, x, noise, log_prior):
    """(log-likelihood, log q(z|x) - log p(z)) of each sample."""
    mu, logvar = model.encoder(x).chunk(2, -1)
    std = (0.5 * logvar).exp()
    z = mu + std * noise
    log_p = -F.binary_cross_entropy_with_logits(model.decoder(z), x, reduction="none").sum(1)
    return log_p, Normal(mu, std).log_prob(z).sum(1) - log_prior(z)


def vamp_log_prob(prior):
    def log_prob(z):
        mu, logvar = prior.encoder(prior.pseudo_inputs.clamp(0.0, 1.0)).chunk(2, -1)
        each = Normal(mu, (0.5 * logvar).exp()).log_prob(z.unsqueeze(-2)).sum(-1)
        return torch.logsumexp(each, -1) - math.log(len(mu))

    return log_prob


# --- VAE(prior=...) ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["diag", "full"])
def test_the_loss_is_the_formula(backend, device, kind):
    model, x, noise = small(mixture_prior(kind), device, beta=0.7)
    p = model.prior
    normal = {
        "diag": lambda: Independent(Normal(p.means, p.scale.exp()), 1),
        "full": lambda: torch.distributions.MultivariateNormal(p.means, torch.from_numpy(p.covariances_).to(device)),
    }[kind]()
    mixture = MixtureSameFamily(Categorical(logits=p.weight_logits), normal)
    log_p, ratio = plain_terms(model, x, noise, mixture.log_prob)
    want = 0.7 * ratio - log_p
    for reduction, reduce in (("none", lambda t: t), ("mean", torch.mean), ("sum", torch.sum)):
        loss, kl = model.losses(x, noise, reduction=reduction)
        torch.testing.assert_close(loss, reduce(want), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(kl, reduce(ratio), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(model.loss(x, noise, reduction=reduction), loss, rtol=0, atol=0)
        assert loss.requires_grad and not kl.requires_grad
    model.loss(x, noise).backward()
    assert all(q.grad is not None and q.grad.abs().sum() > 0 for q in model.parameters())
    if kind == "diag":
        want = torch.autograd.grad(want.mean(), list(model.parameters()))
        for a, b in zip(model.parameters(), want, strict=True):
            torch.testing.assert_close(a.grad, b, rtol=1e-9, atol=1e-11)


def test_one_standard_gaussian_is_the_standard_prior():
    """The KL's mean over draws of z is the closed form of the same model without ``prior``."""
    prior = MixtureOfGaussians(1, covariance_type="spherical", n_features=3, dtype=torch.float64)
    nn.init.zeros_(prior.means)
    model, x, _ = small(prior)
    mu, logvar = model.encode(x)
    want = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(1)
    with torch.no_grad():
        kl = torch.stack([model.losses(x, reduction="none").kl for _ in range(3000)])
    assert ((kl.mean(0) - want).abs() < 5 * kl.std(0) / 3000**0.5).all()
    plain = VAE(model.encoder, model.decoder, latent_dim=3)
    state = torch.random.get_rng_state()
    with torch.no_grad():
        a = model.log_prob(x, 7)
        torch.random.set_rng_state(state)
        torch.testing.assert_close(a, plain.log_prob(x, 7), rtol=1e-10, atol=1e-10)


def test_log_prob_is_the_importance_weighted_bound_with_the_prior(backend, device):
    model, x, _ = small(mixture_prior(), device)
    p = model.prior
    mixture = MixtureSameFamily(Categorical(logits=p.weight_logits), Independent(Normal(p.means, p.scale.exp()), 1))
    mu, logvar = model.encode(x)
    z = vae_fast.reparameterize(mu, logvar, num_samples=7, generator=torch.Generator(device).manual_seed(3))
    log_p = -F.binary_cross_entropy_with_logits(model.decoder(z), x.expand(7, 5, 6), reduction="none").sum(-1)
    weights = log_p + mixture.log_prob(z) - Normal(mu, (0.5 * logvar).exp()).log_prob(z).sum(-1)
    got = model.log_prob(x, 7, generator=torch.Generator(device).manual_seed(3))
    torch.testing.assert_close(got, weights.logsumexp(0) - math.log(7), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("fitted_to", ["nothing", "tensor", "array"])
def test_sample_draws_from_the_prior(device, fitted_to):
    prior = mixture_prior()
    if fitted_to != "nothing":
        data = torch.randn(200, 3).double() + torch.tensor([5.0, 0.0, -5.0])
        prior.fit(data if fitted_to == "tensor" else data.numpy())
    model = VAE(nn.Linear(6, 6), nn.Identity(), latent_dim=3, likelihood="gaussian", prior=prior).double().to(device)
    z = model.sample(20_000)
    p = prior.distribution()
    assert z.device.type == device and z.dtype == torch.float64
    assert ((z.mean(0) - p.mean).abs() < 5 * (p.variance / 20_000).sqrt()).all()
    if fitted_to == "nothing":
        a, b = (model.sample(4, generator=torch.Generator(device).manual_seed(3)) for _ in range(2))
        assert torch.equal(a, b)


def test_any_module_with_log_prob_and_sample_is_a_prior():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.log_std = nn.Parameter(torch.ones(4 * 3 * 3))

        def log_prob(self, z):
            return Normal(0.0, self.log_std.exp()).log_prob(z).sum(-1)

        def sample(self, n):
            return self.log_std.exp() * torch.randn(n, len(self.log_std))

    model = VAE(nn.Conv2d(1, 8, 2, stride=2), nn.ConvTranspose2d(4, 1, 2, stride=2), latent_dim=(4, 3, 3), event_dim=3, prior=Wide())
    x = torch.rand(5, 1, 6, 6)
    model.loss(x).backward()
    assert model.prior.log_std.grad.abs().sum() > 0
    assert model.sample(7).shape == (7, 1, 6, 6)
    with torch.no_grad():
        assert model.log_prob(x, 3).shape == (5,)


def two_kinds(n=400):
    """Binary vectors of two kinds with noise: the posterior of a good model has two groups."""
    kinds = torch.tensor([[1.0] * 6 + [0.0] * 6, [0.0] * 6 + [1.0] * 6])
    x = kinds[torch.randint(2, (n,))]
    return (x + (torch.rand_like(x) < 0.1)) % 2


@pytest.mark.parametrize("which", ["mixture", "vamp"])
def test_training(backend, which):
    torch.manual_seed(0)
    x, encoder = two_kinds(), nn.Linear(12, 4)
    prior = MixtureOfGaussians(2, covariance_type="diag", n_features=2) if which == "mixture" else VampPrior(encoder, 2, 12)
    model = VAE(encoder, nn.Linear(2, 12), latent_dim=2, prior=prior)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    before = copy.deepcopy(prior.state_dict())
    losses = []
    for _ in range(250):
        optimizer.zero_grad()
        loss, kl = model.losses(x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] - sum(losses[-20:]) / 20 > 2.0
    assert kl > 0.1
    assert not any(torch.equal(t, before[name]) for name, t in prior.state_dict().items() if name not in ("n_steps", "weight_logits"))
    drawn = model.sample(500)
    share = ((drawn[:, :6].mean(1) > 0.6) & (drawn[:, 6:].mean(1) < 0.4)).float().mean()
    assert 0.2 < share < 0.8  # both kinds are drawn


def test_state_dict_and_compile_with_a_prior(backend):
    model, x, noise = small(mixture_prior())
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other, _, _ = small(mixture_prior(k=4))
    nn.init.normal_(other.prior.means)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.loss(x, noise) == model.loss(x, noise)
    torch._dynamo.reset()
    compiled = torch.compile(model.losses, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, noise), model.losses(x, noise), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("other", ["prior_mu", "prior_logvar", "free_bits"])
def test_a_prior_excludes_the_gaussian_ones_options(other):
    value = 0.1 if other == "free_bits" else torch.zeros(3)
    with pytest.raises(ValueError, match=f"prior and {other} were both given"):
        VAE(nn.Identity(), nn.Identity(), latent_dim=3, prior=mixture_prior(), **{other: value})


def test_bad_priors():
    with pytest.raises(TypeError, match=r"prior=Linear: expected a torch.nn.Module with log_prob\(z\) and sample\(n\)"):
        VAE(nn.Identity(), nn.Identity(), prior=nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"prior=type: expected a torch.nn.Module"):
        VAE(nn.Identity(), nn.Identity(), prior=Normal)
    with pytest.raises(ValueError, match=r"event_shape \(\): expected \(\) and \(L,\)"):
        VAE(nn.Identity(), nn.Identity(), prior=Normal(0.0, 1.0))
    model, x, _ = small(mixture_prior(dim=4))
    with pytest.raises(ValueError, match=r"x has shape \(5, 3\): expected \(..., 4\)"):
        model.loss(x)
    model, x, _ = small(MixtureOfGaussians(2))
    with pytest.raises(ValueError, match="build MixtureOfGaussians with n_features"):
        model.loss(x)
    with pytest.raises(ValueError, match="reduction='max'"):
        small(mixture_prior())[0].loss(x, reduction="max")


# --- VampPrior --------------------------------------------------------------------------------------------------------


def test_vamp_log_prob_is_the_explicit_mixture(backend, device):
    torch.manual_seed(0)
    pseudo = 2.0 * torch.rand(7, 6) - 0.5  # some beyond the bounds
    prior = VampPrior(nn.Linear(6, 2 * 3), 7, 6, pseudo_inputs=pseudo).double().to(device)
    z = torch.randn(4, 5, 3).double().to(device)
    torch.testing.assert_close(prior.log_prob(z), vamp_log_prob(prior)(z), rtol=1e-10, atol=1e-10)
    parameters = list(prior.parameters())
    got = torch.autograd.grad(prior(z).sum(), parameters)
    for a, b in zip(got, torch.autograd.grad(vamp_log_prob(prior)(z).sum(), parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    assert (prior.pseudo_inputs.grad is None) and (got[0] if got[0].shape == (7, 6) else got[-1]).abs().sum() > 0


def test_vae_with_vamp_prior_is_the_formula(backend):
    encoder = nn.Linear(6, 2 * 3)
    prior = VampPrior(encoder, 7, 6, generator=torch.Generator().manual_seed(0))
    model = VAE(encoder, nn.Linear(3, 6), latent_dim=3, prior=prior).double()
    assert model.prior.encoder is model.encoder
    x, noise = torch.rand(5, 6).double(), torch.randn(5, 3).double()
    log_p, ratio = plain_terms(model, x, noise, vamp_log_prob(prior))
    want = (ratio - log_p).mean()
    torch.testing.assert_close(model.loss(x, noise), want, rtol=1e-10, atol=1e-10)
    names, parameters = zip(*model.named_parameters(), strict=True)
    assert sorted(names) == sorted(["encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias", "prior.pseudo_inputs"])
    got = torch.autograd.grad(model.loss(x, noise), parameters)
    for a, b in zip(got, torch.autograd.grad(want, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_vamp_samples_and_images(device):
    encoder = nn.Conv2d(1, 8, 2, stride=2)
    prior = VampPrior(encoder, 5, (1, 4, 4), latent_ndim=3).to(device)
    model = VAE(encoder, nn.ConvTranspose2d(4, 1, 2, stride=2), latent_dim=(4, 2, 2), event_dim=3, prior=prior).to(device)
    model.loss(torch.rand(3, 1, 4, 4, device=device)).backward()
    assert prior.pseudo_inputs.grad.shape == (5, 1, 4, 4)
    z = prior.sample(20_000, generator=torch.Generator(device).manual_seed(0))
    p = prior.distribution()
    assert z.shape == (20_000, 16) and not z.requires_grad
    assert ((z.mean(0) - p.mean).abs() < 5 * (p.variance / 20_000).sqrt()).all()
    assert model.sample(2).shape == (2, 1, 4, 4)


def test_vamp_pseudo_inputs():
    inside = VampPrior(nn.Identity(), 50, (2, 3), bounds=(-1.0, 2.0)).pseudo_inputs
    assert -1.0 <= inside.min() < -0.8 and 1.8 < inside.max() <= 2.0
    free = VampPrior(nn.Identity(), 50, 6, bounds=None, pseudo_inputs=torch.full((50, 6), 9.0))
    assert free.distribution().mean[0].item() == pytest.approx(9.0)  # not clamped
    a, b = (VampPrior(nn.Identity(), 5, 6, generator=torch.Generator().manual_seed(1)).pseudo_inputs for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_pseudo": 0}, ("n_pseudo=0",)),
        ({"input_shape": (2, 0)}, ("input_shape=0",)),
        ({"bounds": (1.0, 0.0)}, ("bounds[1]=0.0", "[1")),
        ({"pseudo_inputs": torch.zeros(3, 6)}, ("pseudo_inputs has shape (3, 6)", "(5, 6)")),
        ({"pseudo_inputs": [[0.0]]}, ("pseudo_inputs", "torch.Tensor")),
        ({"latent_ndim": 0}, ("latent_ndim=0",)),
    ],
)
def test_bad_vamp_arguments(options, words):
    with pytest.raises((TypeError, ValueError)) as error:
        VampPrior(nn.Identity(), **{"n_pseudo": 5, "input_shape": 6} | options)
    assert all(word in str(error.value) for word in words)


def test_bad_vamp_encoders():
    with pytest.raises(ValueError, match=r"encoder returned a tensor of shape \(5, 7\)"):
        VampPrior(nn.Linear(6, 7), 5, 6).log_prob(torch.zeros(2, 3))
