"""`VAE.loss` of several samples per row, with its KL drawn or in closed form, and scaled to the data set: by the textbook, in float64."""

import math

import pytest
import torch
from test_models import normal_log_prob, small
from torch import nn

from vae_fast.models import MLPVAE, VAE, DistributionPrior
from vae_fast.training import fit

L, N = 4, 60


def by_the_textbook(model, x, noise, kl, beta=1.0, floor=-math.inf):
    """Kingma and Welling 2014, eqs. 6 (sampled) and 7 (analytic): the loss of each row, and its KL."""
    mu, logvar = model.encoder(x)
    z = mu + (0.5 * logvar).exp() * noise
    out = model.decoder(z)
    if model.likelihood == "gaussian":
        log_p = normal_log_prob(x, out, torch.zeros((), dtype=torch.float64)).sum(-1)
    else:
        log_p = (x * out.sigmoid().log() + (1 - x) * (1 - out.sigmoid()).log()).sum(-1)
    if kl == "sampled":
        log_prior = (
            normal_log_prob(z, 0.0, torch.zeros((), dtype=torch.float64)).sum(-1) if model.prior is None else model.prior.log_prob(z)
        )
        term = (normal_log_prob(z, mu, logvar).sum(-1) - log_prior).mean(0)
    else:
        term = (0.5 * (logvar.exp() + mu**2 - 1.0 - logvar)).clamp(min=floor).sum(-1)
    return beta * term - log_p.mean(0), term


def gradients(loss, model):
    return torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("kl", ["analytic", "sampled"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_values_and_gradients(backend, device, likelihood, kl, reduction):
    model, x, _ = small(device, likelihood=likelihood, beta=0.7)
    noise = torch.randn(L, 5, 3, dtype=torch.float64, device=device)
    rows, term = by_the_textbook(model, x, noise, kl, beta=0.7)
    reduce = {"mean": torch.mean, "sum": torch.sum, "none": lambda t: t}[reduction]
    loss = model.loss(x, noise, reduction=reduction, num_samples=L, kl=kl)
    both = model.losses(x, noise, reduction=reduction, num_samples=L, kl=kl)
    torch.testing.assert_close(loss, reduce(rows))
    torch.testing.assert_close(both.loss, reduce(rows))
    torch.testing.assert_close(both.kl, reduce(term).detach())
    assert not both.kl.requires_grad
    up = torch.rand_like(loss)
    want = gradients((reduce(rows) * up).sum(), model)
    for value in (loss, both.loss):
        for one, other in zip(gradients((value * up).sum(), model), want, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kl", ["analytic", "sampled"])
@pytest.mark.parametrize("several", [1, L])
def test_the_batch_stands_for_the_data_set(backend, several, kl):
    """Eq. 8: the sum over the batch, times N / M; the mean of it over all batches is the loss of the data set."""
    model, _, _ = small()
    x, noise = torch.rand(N, 6).double(), torch.randn(several, N, 3).double()
    whole = by_the_textbook(model, x, noise, kl)[0].sum()
    options = {"reduction": "sum", "num_samples": several, "kl": kl, "dataset_size": N}
    parts = [slice(start, start + 12) for start in range(0, N, 12)]
    given = [noise[:, rows] if several > 1 else noise[0, rows] for rows in parts]
    found = [model.losses(x[rows], eps, **options) for rows, eps in zip(parts, given, strict=True)]
    torch.testing.assert_close(torch.stack([loss for loss, _ in found]).mean(), whole)
    torch.testing.assert_close(torch.stack([k for _, k in found]).mean(), by_the_textbook(model, x, noise, kl)[1].sum().detach())
    torch.testing.assert_close(model.loss(x[parts[1]], given[1], **options), found[1].loss)
    each = model.loss(x[parts[1]], given[1], **options | {"reduction": "none"})
    torch.testing.assert_close(each, 5 * by_the_textbook(model, x[parts[1]], noise[:, parts[1]], kl)[0])


def test_one_sample_is_what_it_was():
    """With and without a dimension of its own; the noise that is drawn is the same."""
    model, x, noise = small()
    assert torch.equal(model.loss(x, noise), model.loss(x, noise, num_samples=1))
    torch.manual_seed(3)
    one = model.loss(x)
    torch.manual_seed(3)
    assert torch.equal(model.loss(x, num_samples=1, kl="analytic"), one)


def test_both_estimators_have_one_mean():
    model, x, _ = small()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        drawn = {kl: model.loss(x, generator=generator, num_samples=200_000, kl=kl, reduction="none") for kl in ("analytic", "sampled")}
    torch.testing.assert_close(drawn["sampled"], drawn["analytic"], atol=0.03, rtol=0)


def test_free_bits_hold_the_loss_and_not_the_kl(backend):
    model, x, _ = small(free_bits=0.5)
    noise = torch.randn(L, 5, 3).double()
    loss, kl = model.losses(x, noise, num_samples=L)
    torch.testing.assert_close(loss, by_the_textbook(model, x, noise, "analytic", floor=0.5)[0].mean())
    torch.testing.assert_close(kl, by_the_textbook(model, x, noise, "analytic")[1].mean().detach())


def test_a_prior_without_closed_form(backend):
    prior = DistributionPrior(torch.distributions.Independent(torch.distributions.Laplace(torch.zeros(3).double(), 1.0), 1))
    model, x, _ = small(prior=prior)
    noise = torch.randn(L, 5, 3).double()
    rows, term = by_the_textbook(model, x, noise, "sampled")
    torch.testing.assert_close(model.loss(x, noise, num_samples=L, reduction="none"), rows)
    torch.testing.assert_close(model.losses(x, noise, num_samples=L, kl="sampled").kl, term.mean().detach())


def test_regularizer_is_the_mean_over_the_samples():
    model, x, _ = small(regularizer=lambda z, mu, logvar: (z - mu).pow(2).sum(1) * logvar.exp().mean())
    noise = torch.randn(L, 5, 3).double()
    _, logvar = model.encoder(x)
    penalty = ((0.5 * logvar).exp() * noise).pow(2).sum(-1).mean(0) * logvar.exp().mean()
    want = by_the_textbook(model, x, noise, "analytic")[0] + penalty
    torch.testing.assert_close(model.loss(x, noise, num_samples=L, reduction="none"), want)


def test_images_and_one_scale_for_all():
    """A latent and an event of several dimensions; the decoder's pair, of which one is shared."""

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean, self.logvar = nn.Conv2d(2, 3, 1), nn.Parameter(torch.zeros(1, 1, 1, 1))

        def forward(self, z):
            return self.mean(z), self.logvar

    model = VAE(nn.Conv2d(3, 4, 1), Decoder(), latent_dim=(2, 4, 4), likelihood="gaussian", event_dim=3).double()
    x, noise = torch.rand(5, 3, 4, 4).double(), torch.randn(L, 5, 2, 4, 4).double()
    mu, logvar = model.encode(x)
    z = mu + (0.5 * logvar).exp() * noise
    log_p = torch.stack([normal_log_prob(x, model.decoder.mean(one), model.decoder.logvar).sum((1, 2, 3)) for one in z]).mean(0)
    kl = 0.5 * (logvar.exp() + mu**2 - 1 - logvar).sum((1, 2, 3))
    torch.testing.assert_close(model.loss(x, noise, num_samples=L, reduction="none"), kl - log_p)
    output = model(x, noise, num_samples=L)
    assert output.z.shape == noise.shape
    assert [tuple(t.shape) for t in output.recon] == [(L, 5, 3, 4, 4), (1, 1, 1, 1)]
    torch.testing.assert_close(model.losses_of(x, output).loss, (kl - log_p).mean())


def test_bytes_and_sparse_counts():
    model = MLPVAE(2, 6, 8)
    noise, x = torch.randn(L, 5, 2), torch.randint(0, 256, (5, 6), dtype=torch.uint8)
    torch.testing.assert_close(model.loss(x, noise, num_samples=L), model.loss(x.float() / 255, noise, num_samples=L))
    counts = VAE(nn.Linear(6, 4), nn.Linear(2, 6), latent_dim=2, likelihood="poisson")
    y = torch.poisson(torch.ones(5, 6))
    assert torch.equal(counts.loss(y.to_sparse_csr(), noise, num_samples=L), counts.loss(y, noise, num_samples=L))


def test_fit_takes_the_model_s_own():
    """The attributes are what `fit` and the bare call go by; less noise in the gradient, another run."""
    x = torch.rand(40, 6)
    histories = {}
    for several in (1, 16):
        torch.manual_seed(0)
        model = VAE(nn.Linear(6, 4), nn.Linear(2, 6), latent_dim=2, num_samples=several, kl="sampled")
        histories[several] = fit(model, x, epochs=2, batch_size=20, seed=0)
        torch.manual_seed(1)
        own = model.loss(x)
        torch.manual_seed(1)
        assert torch.equal(own, model.loss(x, num_samples=several, kl="sampled"))
    assert histories[1][-1]["loss"] != histories[16][-1]["loss"]
    assert histories[1][-1]["loss"] == pytest.approx(histories[16][-1]["loss"], abs=0.5)


def test_compiles_without_a_graph_break(device):
    model, x, _ = small(device)
    noise = torch.randn(L, 5, 3, dtype=torch.float64, device=device)
    compiled = torch.compile(lambda: model.loss(x, noise, num_samples=L, reduction="sum", dataset_size=N), fullgraph=True)
    torch.testing.assert_close(compiled(), 12 * by_the_textbook(model, x, noise, "analytic")[0].sum())


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"num_samples": 0}, ValueError, "num_samples=0"),
        ({"num_samples": 2.0}, TypeError, "num_samples"),
        ({"kl": "exact"}, ValueError, "kl='exact': expected"),
        ({"dataset_size": 60}, ValueError, "dataset_size=60: expected None with reduction='mean'"),
        ({"dataset_size": 0, "reduction": "sum"}, ValueError, "dataset_size=0"),
        ({"reduction": "max"}, ValueError, "reduction='max'"),
        ({"num_samples": 3, "noise": torch.zeros(5, 3)}, ValueError, "noise"),
    ],
)
def test_bad_arguments(options, kind, words):
    model, x, _ = small()
    for call in (model.loss, model.losses):
        with pytest.raises(kind, match=words):
            call(x, **options)


def test_bad_settings():
    for options, words in (({"num_samples": -1}, "num_samples=-1"), ({"kl": "no"}, "kl='no'")):
        with pytest.raises(ValueError, match=words):
            small(**options)
    with pytest.raises(ValueError, match="kl='sampled': expected 'analytic' or None with free_bits"):
        small(free_bits=0.1, kl="sampled")
    with pytest.raises(ValueError, match="kl='analytic': expected 'sampled' or None with prior"):
        small(prior=torch.distributions.Independent(torch.distributions.Normal(torch.zeros(3), 1.0), 1), kl="analytic")
