"""Objects of torch.distributions as priors, and VampPrior per dimension."""

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.distributions import (
    Categorical,
    Independent,
    Laplace,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
    TransformedDistribution,
)
from torch.distributions.transforms import AffineTransform

from vae_fast.models import VAE, DistributionPrior, VampPrior


def distributions():
    loc, scale = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1.0, 0.5, 2.0])
    components = Independent(Normal(torch.stack([loc, -loc]), torch.stack([scale, scale])), 1)
    return {
        "normal": Independent(Normal(loc, scale), 1),
        "laplace": Independent(Laplace(loc, scale), 1),
        "broadcast": Independent(StudentT(torch.tensor(5.0), loc, 1.0), 1),
        "multivariate": MultivariateNormal(loc, torch.eye(3) + 0.2),
        "mixture": MixtureSameFamily(Categorical(logits=torch.tensor([0.0, 1.0])), components),
        "transformed": TransformedDistribution(
            Independent(Normal(torch.zeros(3), torch.ones(3)), 1), [AffineTransform(loc, scale, event_dim=1)]
        ),
    }


def small(prior):
    torch.manual_seed(0)
    return VAE(nn.Linear(6, 2 * 3), nn.Linear(3, 6), latent_dim=3, prior=prior)


@pytest.mark.parametrize("name", distributions())
def test_the_loss_and_samples_are_the_distribution_s(name, backend, device):
    fixed, model = distributions()[name], small(distributions()[name]).to(device)
    assert isinstance(model.prior, DistributionPrior)
    x, noise = torch.rand(5, 6, device=device), torch.randn(5, 3, device=device)
    mu, logvar = model.encode(x)
    z = mu + (0.5 * logvar).exp() * noise
    ratio = Normal(mu, (0.5 * logvar).exp()).log_prob(z).sum(1) - fixed.log_prob(z.cpu()).to(device)
    log_p = -nn.functional.binary_cross_entropy_with_logits(model.decoder(z), x, reduction="none").sum(1)
    torch.testing.assert_close(model.loss(x, noise), (ratio - log_p).mean(), rtol=1e-5, atol=1e-5)
    model.loss(x).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    torch.manual_seed(3)
    drawn = model.prior.sample(20_000)
    assert drawn.shape == (20_000, 3)
    torch.testing.assert_close(drawn.mean(0).cpu(), fixed.sample((200_000,)).mean(0), rtol=0, atol=0.12)
    assert model.sample(4).shape == (4, 6)


@pytest.mark.parametrize("name", distributions())
def test_checkpoints_and_moves(name):
    model = small(distributions()[name])
    saved = io.BytesIO()
    torch.save(model.state_dict(), saved)
    saved.seek(0)
    other = small(distributions()[name])
    for value in other.prior.buffers():
        value.add_(0.25)
    z = torch.randn(7, 3)
    assert not torch.allclose(other.prior.log_prob(z), model.prior.log_prob(z))
    other.load_state_dict(torch.load(saved, weights_only=True))
    assert torch.equal(other.prior.log_prob(z), model.prior.log_prob(z))
    wide = copy.deepcopy(model).double()
    assert wide.prior.log_prob(z.double()).dtype == torch.float64
    torch.testing.assert_close(wide.prior.log_prob(z.double()).float(), model.prior.log_prob(z), rtol=1e-5, atol=1e-5)
    assert model.prior.log_prob(z).dtype == torch.float32  # the copy's tensors are its own


def test_a_generator_decides_and_leaves_the_default_one_alone():
    prior = DistributionPrior(distributions()["mixture"])
    before = torch.get_rng_state()
    a, b = (prior.sample(5, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(a, prior.sample(5, generator=torch.Generator().manual_seed(8)))
    model = small(distributions()["normal"])
    one, two = (model.sample(3, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, two)


def test_what_is_no_prior():
    with pytest.raises(ValueError, match=r"batch_shape \(3,\) and event_shape \(\): expected \(\) and \(L,\)"):
        small(Normal(torch.zeros(3), torch.ones(3)))
    with pytest.raises(ValueError, match=r"batch_shape \(4,\) and event_shape \(3,\)"):
        small(Independent(Normal(torch.zeros(4, 3), 1.0), 1))
    with pytest.raises(ValueError, match="loc requires a gradient: expected a fixed distribution"):
        small(Independent(Normal(nn.Parameter(torch.zeros(3)), 1.0), 1))
    with pytest.raises(TypeError, match=r"distribution: expected a torch.distributions.Distribution, got int"):
        DistributionPrior(3)
    with pytest.raises(ValueError, match="n=0: expected at least 1"):
        DistributionPrior(distributions()["normal"]).sample(0)


# --- VampPrior per dimension ------------------------------------------------------------------------------------------


def test_vamp_per_dimension_is_the_formula(backend, device):
    encoder = nn.Linear(6, 2 * 3).double().to(device)
    prior = VampPrior(encoder, 5, 6, factorized=True).double().to(device)
    z = torch.randn(4, 7, 3, dtype=torch.float64, device=device)
    mu, logvar = encoder(prior.pseudo_inputs.clamp(0.0, 1.0)).chunk(2, -1)
    each = Normal(mu, (0.5 * logvar).exp()).log_prob(z.unsqueeze(-2))
    want = (each.logsumexp(-2) - math.log(5)).sum(-1)
    torch.testing.assert_close(prior.log_prob(z), want, rtol=1e-11, atol=1e-11)
    got = torch.autograd.grad(prior.log_prob(z).sum(), [prior.pseudo_inputs, *encoder.parameters()])
    torch.testing.assert_close(got, torch.autograd.grad(want.sum(), [prior.pseudo_inputs, *encoder.parameters()]), rtol=1e-9, atol=1e-9)


def test_vamp_per_dimension_draws_each_dimension_by_itself(device):
    class Encoder(nn.Module):
        def forward(self, u):
            return u, torch.full_like(u, -8.0)

    u = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], device=device)
    for factorized in (False, True):
        prior = VampPrior(Encoder(), 2, 2, bounds=None, pseudo_inputs=u, factorized=factorized).to(device)
        z = prior.sample(4000)
        together = (z.sign()[:, 0] == z.sign()[:, 1]).double().mean().item()
        assert together == pytest.approx(0.5 if factorized else 1.0, abs=0.05)
        one, two = (prior.sample(3, generator=torch.Generator(device).manual_seed(1)) for _ in range(2))
        assert torch.equal(one, two)
    with pytest.raises(TypeError, match="factorized=1: expected True or False"):
        VampPrior(Encoder(), 2, 2, factorized=1)
