"""The importance-weighted estimate of log p(x), against a model whose log p(x) is known."""

import math

import pytest
import torch
from torch import nn

from vae_fast.models import VAE, vae


def exact_model(device):
    """Probabilistic PCA with orthogonal loadings: the posterior is a diagonal Gaussian, log p(x) is known."""
    torch.manual_seed(0)
    loadings = torch.linalg.qr(torch.randn(6, 3).double())[0] * torch.tensor([2.0, 1.0, 0.5]).double()
    size = loadings.square().sum(0)

    class Posterior(nn.Module):
        def forward(self, x):
            return x @ loadings.to(x) / (1.0 + size.to(x)), (-(1.0 + size.to(x)).log()).expand(*x.shape[:-1], 3)

    decoder = nn.Linear(3, 6, bias=False)
    decoder.weight = nn.Parameter(loadings.clone())
    model = VAE(Posterior(), decoder, latent_dim=3, likelihood="gaussian").double().to(device)
    covariance = loadings @ loadings.T + torch.eye(6).double()
    x = torch.randn(5, 6).double()
    want = torch.distributions.MultivariateNormal(torch.zeros(6).double(), covariance).log_prob(x)
    return model, x.to(device), want.to(device)


@pytest.mark.parametrize("max_rows", [1, 7, 8192])
def test_log_prob_with_the_true_posterior_is_exact(device, max_rows):
    """Every importance weight is then p(x) itself, whatever the number of samples and the chunks."""
    model, x, want = exact_model(device)
    for samples in (1, 5):
        got = model.log_prob(x, samples, max_rows=max_rows)
        torch.testing.assert_close(got.detach(), want, rtol=1e-11, atol=1e-11)


def test_log_prob_with_another_posterior_tightens_to_it():
    model, x, want = exact_model("cpu")
    exact = model.encoder
    model.encoder = type("Off", (nn.Module,), {"forward": lambda _, x: (exact(x)[0] + 0.3, exact(x)[1] + 0.2)})()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        error = [(want - model.log_prob(x, k, generator=generator)).abs().max() for k in (1, 20000)]
        elbo = torch.stack([-model.loss(x, generator=generator, reduction="none") for _ in range(500)]).mean(0)
    assert error[1] < 0.02 < error[0]
    assert (elbo < want - 0.05).all()


def test_log_prob_prior_and_batch_shape():
    model, x, want = exact_model("cpu")
    # The same model with the prior's scale moved into the decoder: z' = 2 z + 1.
    exact, loadings = model.encoder, model.decoder.weight.detach()
    model.register_buffer("prior_mu", torch.ones(3).double())
    model.register_buffer("prior_logvar", torch.full((3,), 2.0 * math.log(2.0), dtype=torch.float64))
    shifted = {"forward": lambda _, x: (2.0 * exact(x)[0] + 1.0, exact(x)[1] + 2.0 * math.log(2.0))}
    model.encoder = type("Shifted", (nn.Module,), shifted)()
    model.decoder = type("Decoder", (nn.Module,), {"forward": lambda _, z: (z - 1.0) / 2.0 @ loadings.T})()
    torch.testing.assert_close(model.log_prob(x, 4), want, rtol=1e-11, atol=1e-11)
    batched = model.log_prob(x[:4].reshape(2, 2, 6), 4)
    torch.testing.assert_close(batched, want[:4].reshape(2, 2), rtol=1e-11, atol=1e-11)


def test_log_prob_is_chunked_and_repeats_nothing(monkeypatch):
    model, x, _ = exact_model("cpu")
    rows, targets = [], []
    model.decoder.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    real = vae.log_likelihood

    def seen(x, recon, *rest):
        targets.append((tuple(x.shape), tuple((recon if isinstance(recon, torch.Tensor) else recon[0]).shape)))
        return real(x, recon, *rest)

    monkeypatch.setattr(vae, "log_likelihood", seen)
    model.log_prob(x, 7, max_rows=10)
    assert sum(rows) == 5 * 7
    assert max(rows) <= 10
    assert targets == [((5, 6), (2, 5, 6))] * 3 + [((5, 6), (1, 5, 6))]
