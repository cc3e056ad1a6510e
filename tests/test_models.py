"""models.VAE against formulas written out in plain torch."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vae_fast
from vae_fast.models import MLPVAE, VAE, vae


class Pair(nn.Module):
    """A linear layer for each of two outputs."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.first, self.second = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.first(x), self.second(x)


def small(device="cpu", decoder=None, **options):
    """A VAE of 6 pixels and 3 latents in float64, with data and noise."""
    torch.manual_seed(0)
    model = VAE(Pair(6, 3), nn.Linear(3, 6) if decoder is None else decoder, latent_dim=3, **options)
    return model.double().to(device), torch.rand(5, 6).double().to(device), torch.randn(5, 3).double().to(device)


def normal_log_prob(x, mean, logvar):
    return -0.5 * (math.log(2 * math.pi) + logvar + (x - mean) ** 2 / logvar.exp())


def plain_terms(model, x, noise, prior_mu=0.0, prior_logvar=0.0, floor=-math.inf):
    """(log-likelihood, KL) per sample, by the textbook."""
    mu, logvar = model.encoder(x)
    prior_logvar = torch.as_tensor(prior_logvar, dtype=x.dtype, device=x.device)
    ratio = (logvar.exp() + (mu - prior_mu) ** 2) / prior_logvar.exp()
    kl = 0.5 * (prior_logvar - logvar + ratio - 1.0)
    out = model.decoder(mu + (0.5 * logvar).exp() * noise)
    if model.likelihood == "gaussian":
        mean, out_logvar = out if isinstance(out, tuple) else (out, torch.zeros_like(out))
        log_prob = normal_log_prob(x, mean, out_logvar)
    else:
        p = torch.sigmoid(out) if model.likelihood == "bernoulli" else out
        p = p.clamp(model.eps, 1 - model.eps) if model.clip == "clamp" else p
        log_prob = x * p.log() + (1 - x) * (1 - p).log()
    return log_prob.sum(1), kl.clamp(min=floor).sum(1)


# --- the loss ---------------------------------------------------------------------------------------------------------

LIKELIHOODS = {
    "logits": {},
    "clamp": {"clip": "clamp", "eps": 0.3},
    "probs": {"likelihood": "bernoulli_probs", "decoder": nn.Sequential(nn.Linear(3, 6), nn.Sigmoid())},
    "unit gaussian": {"likelihood": "gaussian"},
    "gaussian": {"likelihood": "gaussian", "decoder": Pair(3, 6)},
}


@pytest.mark.parametrize("options", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_loss_is_the_textbook_loss(device, options):
    model, x, noise = small(device, **copy.deepcopy(options))
    twin = copy.deepcopy(model)
    log_prob, kl = plain_terms(twin, x, noise)
    want = (kl - log_prob).mean()
    got = model.loss(x, noise)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    got.backward()
    want.backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [torch.tensor, np.float32], ids=["tensor", "NumPy"])
def test_beta_and_free_bits_of_other_kinds(kind, device, backend):
    """And a tensor that is changed in place counts from the next loss on."""
    model, x, noise = small(device, beta=0.75, free_bits=0.25)
    other = VAE(model.encoder, model.decoder, beta=kind(0.75), free_bits=kind(0.25))
    torch.testing.assert_close(other.loss(x, noise), model.loss(x, noise), rtol=0, atol=0)
    if kind is torch.tensor:
        other.beta.fill_(2.0)
        model.beta = 2.0
        torch.testing.assert_close(other.loss(x, noise), model.loss(x, noise), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(), (1,), (6,)], ids=str)
@pytest.mark.parametrize("likelihood", ["gaussian", "laplace", "log_normal"])
def test_a_scale_that_the_model_learns(likelihood, shape, device, backend):
    """The loss, the samples and the estimates are those of a decoder that gives the same scale."""
    scale = nn.Parameter(torch.full(shape, -0.5, dtype=torch.float64, device=device))
    model, x, noise = small(device, likelihood=likelihood, scale=scale)
    x = x + 0.1

    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder, self.scale = model.decoder, scale

        def forward(self, z):
            loc = self.decoder(z)
            return loc, self.scale.expand_as(loc)

    other = VAE(model.encoder, Beside(), latent_dim=3, likelihood=likelihood)
    assert dict(model.named_parameters())["scale"] is scale
    loss = model.loss(x, noise)
    torch.testing.assert_close(loss, other.loss(x, noise))
    (grad,) = torch.autograd.grad(loss, scale)
    torch.testing.assert_close(grad, torch.autograd.grad(other.loss(x, noise), scale)[0])
    assert grad.abs().sum() > 0
    torch.testing.assert_close(model.losses(x, noise).loss, loss)
    generators = [torch.Generator(device).manual_seed(3) for _ in range(2)]
    for mean in (True, False):
        torch.testing.assert_close(*[m.sample(5, generator=g, mean=mean) for m, g in zip((model, other), generators, strict=True)])
    torch.testing.assert_close(model.reconstruct(x), other.reconstruct(x))
    torch.testing.assert_close(model.log_likelihood(x, x), other.log_likelihood(x, (x, scale)))
    estimates = [m.log_prob(x, 3, generator=g.manual_seed(1)) for m, g in zip((model, other), generators, strict=True)]
    torch.testing.assert_close(*estimates)


def test_a_decoder_with_parameters_that_all_samples_share(device, backend):
    """The degrees of freedom of a Student's t, of which there is one, beside a mean and the model's own scale."""

    class Heavy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.log_df = nn.Linear(3, 6), nn.Parameter(torch.tensor(1.5))

        def forward(self, z):
            return self.log_df.exp(), self.layer(z)

    scale = nn.Parameter(torch.zeros(1, 6))
    with pytest.raises(ValueError, match=r"scale has shape \(1, 6\)"):
        small(device, Heavy(), likelihood="student_t", scale=scale)
    model, x, noise = small(device, Heavy(), likelihood="student_t", scale=nn.Parameter(torch.zeros(6)))
    model.loss(x, noise).backward()
    assert model.decoder.log_df.grad.abs() > 0 and model.scale.grad.abs().min() > 0
    z = torch.randn(5, 3, dtype=torch.float64, device=device)
    want = vae_fast.student_t_log_prob(x, model.decoder.log_df.exp(), model.decoder.layer(z), model.scale)
    torch.testing.assert_close(model.log_likelihood(x, model.decode(z)), want)
    assert model.log_prob(x, 4).shape == (5,)
    assert model.sample(2, mean=False).shape == (2, 6)
    torch.testing.assert_close(model.mean_of(model.decode(z)), model.decoder.layer(z))


def test_a_scale_that_is_not_learned_is_a_buffer(device):
    model, _, _ = small(device, likelihood="gaussian", scale=torch.zeros(()))
    assert "scale" in dict(model.named_buffers()) and "scale" in model.state_dict()
    assert "scale" not in small(device)[0].state_dict()


def test_a_scale_that_cannot_be():
    parts = nn.Linear(6, 6), nn.Linear(3, 6)
    one = torch.zeros(())
    words = r"scale of shape \(\) was given: expected None for a likelihood "
    with pytest.raises(ValueError, match=words + r"likelihood='bernoulli', which has none"):
        VAE(*parts, scale=one)
    with pytest.raises(ValueError, match=words + "that is a function"):
        VAE(*parts, scale=one, likelihood=vae_fast.gaussian_log_prob)
    with pytest.raises(ValueError, match=r"scale has shape \(2, 6\): expected at most the event_dim=1 dimensions"):
        VAE(*parts, scale=torch.zeros(2, 6), likelihood="gaussian")
    with pytest.raises(TypeError, match=r"scale: expected a torch.Tensor, got float"):
        VAE(*parts, scale=0.5, likelihood="gaussian")
    model = VAE(nn.Linear(6, 6), Pair(3, 6), latent_dim=3, scale=one, likelihood="gaussian")
    with pytest.raises(ValueError, match="the decoder gives 2 of mean, logvar: expected 1, as the model has a scale"):
        model.loss(torch.zeros(2, 6))


def test_beta_free_bits_prior_and_reductions(device):
    prior_mu, prior_logvar = torch.tensor([0.5, -1.0, 0.0]), torch.tensor(0.3)
    model, x, noise = small(device, beta=0.7, free_bits=0.2, prior_mu=prior_mu, prior_logvar=prior_logvar)
    prior_mu, prior_logvar = model.prior_mu, model.prior_logvar
    log_prob, floored = plain_terms(model, x, noise, prior_mu, prior_logvar, floor=0.2)
    _, kl = plain_terms(model, x, noise, prior_mu, prior_logvar)
    assert (floored > kl).any()
    loss = 0.7 * floored - log_prob
    for reduction, reduce in (("none", lambda t: t), ("mean", torch.mean), ("sum", torch.sum)):
        got = model.losses(x, noise, reduction=reduction)
        torch.testing.assert_close(got.loss, reduce(loss), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got.kl, reduce(kl), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(model.loss(x, noise, reduction=reduction), got.loss, rtol=0, atol=0)


def test_losses_runs_the_network_once(monkeypatch):
    model, x, noise = small()
    calls = []
    model.encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    model.decoder.register_forward_hook(lambda *_: calls.append("decoder"))
    real = vae.F.elbo_loss
    monkeypatch.setattr(vae.F, "elbo_loss", lambda *a, **k: calls.append("loss") or real(*a, **k))
    loss, kl = model.losses(x, noise)
    assert calls == ["encoder", "decoder", "loss"]
    assert loss.requires_grad
    assert not kl.requires_grad


def test_losses_of_the_forward_pass(device):
    model, x, noise = small(device)
    torch.testing.assert_close(model.losses_of(x, model(x, noise)), model.losses(x, noise), rtol=0, atol=0)


def test_a_learned_prior_gets_gradients():
    model, x, noise = small(prior_mu=nn.Parameter(torch.ones(3)))
    model.loss(x, noise).backward()
    mu, _ = model.encode(x)
    torch.testing.assert_close(model.prior_mu.grad, (1.0 - mu).mean(0).detach())


def test_noise_comes_from_the_generator(device):
    model, x, _ = small(device)
    draws = [model.loss(x, generator=torch.Generator(device).manual_seed(s)) for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("kind", [torch.uint8, torch.bool])
def test_bytes_and_bools_are_read_as_grey_values(device, kind):
    model, _, noise = small(device)
    bytes_ = torch.randint(0, 256, (5, 6), device=device)
    x = (bytes_ > 127) if kind == torch.bool else bytes_.to(torch.uint8)
    grey = x.double() / (255.0 if kind == torch.uint8 else 1.0)
    torch.testing.assert_close(model.loss(x, noise), model.loss(grey, noise), rtol=1e-12, atol=0)
    torch.testing.assert_close(model.reconstruct(x), model.reconstruct(grey))


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_images_and_spatial_latents(device):
    encoder = nn.Conv2d(1, 2 * 4, 2, stride=2)
    decoder = nn.ConvTranspose2d(4, 1, 2, stride=2)
    model = VAE(encoder, decoder, latent_dim=(4, 3, 3), event_dim=3).to(device)
    x = torch.rand(5, 1, 6, 6, device=device)
    mu, logvar = model.encode(x)
    assert mu.shape == logvar.shape == (5, 4, 3, 3)
    torch.testing.assert_close(torch.cat([mu, logvar], 1), encoder(x))
    noise = torch.randn_like(mu)
    want = F.binary_cross_entropy_with_logits(decoder(mu + (0.5 * logvar).exp() * noise), x, reduction="sum")
    want = want - 0.5 * (1 + logvar - mu**2 - logvar.exp()).sum()
    torch.testing.assert_close(model.loss(x, noise, reduction="sum"), want)
    assert model.loss(x, reduction="none").shape == (5,)
    assert model.sample(7).shape == (7, 1, 6, 6)
    assert model.reconstruct(x).shape == x.shape
    with torch.no_grad():
        assert model.log_prob(x, 3).shape == (5,)


def test_one_tensor_encoder_is_the_pair(device):
    model, x, noise = small(device)
    joined = nn.Linear(6, 6).double().to(device)
    with torch.no_grad():
        joined.weight.copy_(torch.cat([model.encoder.first.weight, model.encoder.second.weight]))
        joined.bias.copy_(torch.cat([model.encoder.first.bias, model.encoder.second.bias]))
    other = VAE(joined, model.decoder)
    torch.testing.assert_close(other.loss(x, noise), model.loss(x, noise), rtol=1e-12, atol=0)


def test_empty_batch():
    model, x, _ = small()
    with torch.no_grad():
        assert model.loss(x[:0], reduction="sum") == 0.0
        assert model.log_prob(x[:0], 3).shape == (0,)


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_samples_follow_the_prior(device):
    options = {"prior_mu": torch.tensor([1.0, 2.0, 3.0]), "prior_logvar": torch.tensor([0.0, -1.0, -2.0])}
    model, _, _ = small(device, decoder=nn.Identity(), likelihood="gaussian", **options)
    z = model.sample(20000, generator=torch.Generator(device).manual_seed(0))
    torch.testing.assert_close(z.mean(0), model.prior_mu, rtol=0, atol=0.04)
    torch.testing.assert_close(z.var(0).log(), model.prior_logvar, rtol=0, atol=0.06)


def test_sample_and_reconstruct_are_probabilities_without_gradients(device):
    model, x, _ = small(device)
    mu, _ = model.encode(x)
    torch.testing.assert_close(model.reconstruct(x), torch.sigmoid(model.decoder(mu)))
    drawn = [model.sample(4, generator=torch.Generator(device).manual_seed(s)) for s in (3, 3, 4)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert ((drawn[0] > 0) & (drawn[0] < 1)).all()
    assert not drawn[0].requires_grad


# --- the ways PyTorch calls a module ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_compiles_without_a_graph_break(options):
    model, x, noise = small(**copy.deepcopy(options))
    torch._dynamo.reset()
    compiled = torch.compile(model.losses, fullgraph=True, backend="aot_eager")
    want = model.losses(x, noise)
    torch.testing.assert_close(compiled(x, noise), want, rtol=1e-12, atol=1e-12)
    assert compiled(x).loss.isfinite()  # noise drawn inside the graph


def test_autocast(device):
    model = MLPVAE(latent_dim=4, data_dim=32, hidden_dim=64, generator=torch.Generator().manual_seed(0)).to(device)
    x, noise = torch.rand(16, 32, device=device), torch.randn(16, 4, device=device)
    want = model.loss(x, noise)
    with torch.autocast(device, dtype=torch.bfloat16):
        loss, kl = model.losses(x, noise)
        assert model.encode(x)[0].dtype == torch.bfloat16
        assert model.log_prob(x, 3).dtype == torch.float32
    assert loss.dtype == kl.dtype == torch.float32
    assert loss != want
    torch.testing.assert_close(loss, want, rtol=2e-2, atol=0)
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_state_dict_round_trip(device):
    options = {"prior_mu": torch.ones(3), "prior_logvar": nn.Parameter(torch.zeros(3))}
    model, x, noise = small(device, **options)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    torch.manual_seed(99)
    other = VAE(Pair(6, 3), nn.Linear(3, 6), latent_dim=3, prior_mu=torch.zeros(3), prior_logvar=nn.Parameter(torch.ones(3)))
    other = other.double().to(device)
    assert other.loss(x, noise) != model.loss(x, noise)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.loss(x, noise) == model.loss(x, noise)
    assert {"prior_mu", "prior_logvar"} <= model.state_dict().keys()


# --- bad arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"likelihood": "geometric"}, ("likelihood", "geometric", "gaussian")),
        ({"clip": "clip"}, ("clip", "clamp")),
        ({"likelihood": "gaussian", "clip": "clamp"}, ("clip", "clamp", "None")),
        ({"clip": "clamp", "eps": 0.7}, ("eps", "0.7")),
        ({"beta": math.nan}, ("beta", "nan")),
        ({"free_bits": -1.0}, ("free_bits", "-1")),
        ({"event_dim": 0}, ("event_dim", "0")),
        ({"latent_dim": 0}, ("latent_dim", "0")),
        ({"latent_dim": (4, 2.5)}, ("latent_dim", "2.5")),
        ({"latent_dim": 3, "prior_mu": torch.zeros(4)}, ("prior_mu", "(4,)", "(3,)")),
        ({"prior_logvar": torch.zeros(3, dtype=torch.int64)}, ("prior_logvar", "int64")),
    ],
)
def test_bad_constructor_arguments(options, words):
    with pytest.raises((TypeError, ValueError)) as error:
        VAE(nn.Identity(), nn.Identity(), **options)
    assert all(word in str(error.value) for word in words)


def test_bad_encoders_and_decoders():
    x = torch.rand(4, 6)
    with pytest.raises(ValueError, match=r"encoder returned a tensor of shape \(4, 5\)"):
        VAE(nn.Linear(6, 5), nn.Linear(2, 6)).loss(x)
    three = type("Three", (nn.Module,), {"forward": lambda _, x: (x, x, x)})()
    with pytest.raises(TypeError, match="encoder returned 3 items"):
        VAE(three, nn.Linear(6, 6)).loss(x)
    with pytest.raises(ValueError, match=r"x has shape \(4, 6\), recon has shape \(4, 7\)"):
        VAE(nn.Linear(6, 4), nn.Linear(2, 7)).loss(x)
    with pytest.raises(ValueError, match="noise has shape"):
        VAE(nn.Linear(6, 4), nn.Linear(2, 6)).loss(x, torch.zeros(4, 3))
    with pytest.raises(ValueError, match="latent_dim is not known"):
        VAE(nn.Linear(6, 4), nn.Linear(2, 6)).sample(2)
    with pytest.raises(ValueError, match="num_samples=0"):
        VAE(nn.Linear(6, 4), nn.Linear(2, 6)).log_prob(x, 0)


def test_models_use_the_public_functions():
    """What the layer calls is what a user would: no formula of its own."""
    assert vae.F.elbo_loss is vae_fast.elbo_loss
    assert vae.F.reparameterize is vae_fast.reparameterize
