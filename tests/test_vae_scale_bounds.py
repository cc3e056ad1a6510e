"""A VAE whose posterior's scale and whose decoder's lie within bounds."""

import pytest
import torch
from torch import nn

import vae_fast
from vae_fast.models import VAE

POSTERIOR, DECODER = (-1.0, 0.5, "softclip"), (-2.0, 0.3, "clamp")


class Pair(nn.Module):
    """A decoder of means and log-variances."""

    def __init__(self, features, event):
        super().__init__()
        self.mean, self.logvar = nn.Linear(features, event), nn.Linear(features, event)

    def forward(self, z):
        return self.mean(z), 3.0 * self.logvar(z)


def model(**how):
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(6, 8), Pair(4, 6)
    nn.init.normal_(encoder.weight, std=2.0)
    return VAE(encoder, decoder, latent_dim=4, likelihood="gaussian", scale_bounds=POSTERIOR, recon_scale_bounds=DECODER, **how).double()


def softclip(t, low, high):
    upper = high - nn.functional.softplus(high - t, threshold=40)
    return low + nn.functional.softplus(upper - low, threshold=40)


def by_hand(vae, x, noise):
    mu, logvar = vae.encode(x)
    logvar = softclip(logvar, -1.0, 0.5)
    z = mu + (0.5 * logvar).exp() * noise
    mean, log_scale = vae.decode(z)
    log_p = vae_fast.gaussian_log_prob(x, mean, log_scale.clamp(-2.0, 0.3))
    return log_p, mu, logvar, z


def test_the_loss_and_its_gradients(backend):
    vae, x, noise = model(), torch.randn(7, 6, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    loss, kl = vae.losses(x, noise)
    grads = torch.autograd.grad(loss, list(vae.parameters()))
    log_p, mu, logvar, _ = by_hand(vae, x, noise)
    want_kl = vae_fast.gaussian_kl(mu, logvar).mean()
    want = want_kl - log_p.mean()
    torch.testing.assert_close((loss, kl), (want, want_kl.detach()), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads, torch.autograd.grad(want, list(vae.parameters())), rtol=1e-10, atol=1e-10)


def test_free_bits_and_a_prior_of_ones_own(backend):
    x, noise = torch.randn(7, 6, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    vae = model(free_bits=0.2)
    _, mu, logvar, _ = by_hand(vae, x, noise)
    torch.testing.assert_close(vae.losses(x, noise).kl, vae_fast.gaussian_kl(mu, logvar).mean().detach())
    vae = model(prior=torch.distributions.Independent(torch.distributions.Normal(torch.zeros(4).double(), torch.ones(4).double()), 1))
    log_p, mu, logvar, z = by_hand(vae, x, noise)
    ratio = vae_fast.gaussian_log_prob(z, mu, logvar) - vae_fast.gaussian_log_prob(z, torch.zeros_like(z))
    torch.testing.assert_close(vae.loss(x, noise), (ratio - log_p).mean())


def test_the_estimate_of_log_p(backend):
    vae, x = model(), torch.randn(3, 6, dtype=torch.float64)
    mu, logvar = vae.encode(x)
    z = vae_fast.reparameterize(mu, softclip(logvar, -1.0, 0.5), num_samples=5, generator=torch.Generator().manual_seed(3))
    mean, log_scale = vae.decode(z)
    log_w = vae_fast.gaussian_log_prob(x, mean, log_scale.clamp(-2.0, 0.3)) + vae.log_prior(z)
    log_w = log_w - vae_fast.gaussian_log_prob(z, mu, softclip(logvar, -1.0, 0.5))
    found = vae.log_prob(x, 5, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(found, vae_fast.iwae_bound(log_w), rtol=1e-10, atol=1e-10)


def test_draws_have_the_scale_within_its_bounds():
    vae = model()
    wide = torch.zeros(20_000, 6, dtype=torch.float64)
    drawn = vae.draw_of((wide, wide + 50.0), generator=torch.Generator().manual_seed(0))
    assert drawn.std().item() == pytest.approx(2.718281828 ** (0.5 * 0.3), rel=0.02)
    assert vae.sample(3, mean=False).isfinite().all()


def test_a_scale_of_the_models_own_is_held_too():
    scale = nn.Parameter(torch.tensor(9.0))
    vae = VAE(nn.Linear(6, 8), nn.Linear(4, 6), latent_dim=4, likelihood="laplace", scale=scale, recon_scale_bounds=(-1.0, 1.0, "clamp"))
    vae.loss(torch.randn(5, 6)).backward()
    assert scale.grad == 0
    assert vae.draw_of(torch.zeros(4000, 6)).abs().mean().item() == pytest.approx(2.718281828, rel=0.05)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"scale_bounds": (1.0, 0.0, "clamp")}, "scale_bounds=.*low < high"),
        ({"recon_scale_bounds": (0.0, 1.0, "soft")}, r"recon_scale_bounds\[2\]='soft'"),
        ({"recon_scale_bounds": (0.0, 1.0, "clamp"), "likelihood": "bernoulli"}, "recon_scale_bounds=.*has no scale"),
        ({"recon_scale_bounds": (0.0, 1.0, "clamp"), "likelihood": lambda x, r: x.sum(-1)}, "recon_scale_bounds=.*function"),
    ],
    ids=["order", "mode", "none", "function"],
)
def test_bad_arguments(how, words):
    with pytest.raises(ValueError, match=words):
        VAE(nn.Linear(6, 8), nn.Linear(4, 6), **({"likelihood": "gaussian"} | how))
