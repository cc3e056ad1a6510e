"""VAE(regularizer=...) against the loss without it and formulas written out."""

import copy

import pytest
import torch
from torch import nn

import vae_fast
from vae_fast.models import VAE, MixtureOfGaussians, _objective


def small(regularizer, device="cpu", latent=3, **options):
    """A VAE of 6 pixels in float64, with 5 rows and noise."""
    torch.manual_seed(0)
    model = VAE(nn.Linear(6, 2 * latent), nn.Linear(latent, 6), latent_dim=latent, regularizer=regularizer, **options)
    return model.double().to(device), torch.rand(5, 6).double().to(device), torch.randn(5, latent).double().to(device)


def total_correlation(z, mu, logvar):
    return 5.0 * vae_fast.total_correlation(z, mu, logvar, dataset_size=100).total_correlation


def discrepancy(z, mu, logvar):
    prior = torch.linspace(-1.0, 1.0, z.numel(), dtype=z.dtype, device=z.device).reshape(z.shape)
    return 10.0 * vae_fast.mmd(z, prior)


def sparsity(z, mu, logvar):
    """One number for each sample."""
    return (mu.abs() + 0.1 * z.square() + logvar.exp()).sum(1)


class Scaled(nn.Module):
    """A regularizer with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, z, mu, logvar):
        return self.weight * mu.square().mean()


REGULARIZERS = {"total_correlation": total_correlation, "mmd": discrepancy, "of each sample": sparsity}
MODELS = {
    "gaussian prior": dict,
    "free bits": lambda: {"free_bits": 0.3, "beta": 0.5},
    "mixture": lambda: {"prior": MixtureOfGaussians(2, covariance_type="diag", n_features=3)},
}


def gradients(model, value):
    model.zero_grad()
    value.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", REGULARIZERS)
def test_it_is_added_to_the_loss(name, kind, reduction, device, backend):
    regularizer = REGULARIZERS[name]
    model, x, noise = small(regularizer, device, **MODELS[kind]())
    plain = copy.deepcopy(model)
    plain.regularizer = None
    output = plain(x, noise)
    by_hand = regularizer(output.z, output.mu, output.logvar).expand(5)
    by_hand = by_hand if reduction == "none" else getattr(by_hand, reduction)()
    expected = plain.loss(x, noise, reduction=reduction) + by_hand
    exact = {"rtol": 1e-12, "atol": 1e-12}
    for loss in (model.loss(x, noise, reduction=reduction), model.losses(x, noise, reduction=reduction).loss):
        torch.testing.assert_close(loss, expected, **exact)
    got, want = gradients(model, loss.sum()), gradients(plain, expected.sum())
    assert len(got) == len(want)
    torch.testing.assert_close(got, want, **exact)
    kl = (m.losses(x, noise, reduction=reduction).kl for m in (model, plain))
    torch.testing.assert_close(next(kl), next(kl), **exact)


def test_a_modules_parameters_are_trained_and_saved(device):
    model, x, noise = small(Scaled(), device)
    assert "regularizer.weight" in model.state_dict()
    model.loss(x, noise).backward()
    mu = model.encode(x)[0]
    torch.testing.assert_close(model.regularizer.weight.grad, mu.square().mean().detach())


def test_a_latent_with_several_dimensions_is_flattened(device):
    seen = []

    def look(z, mu, logvar):
        seen.extend(t.shape for t in (z, mu, logvar))
        return z.new_zeros(len(z))

    encoder, decoder = nn.Conv2d(1, 8, 2, stride=2), nn.ConvTranspose2d(4, 1, 2, stride=2)
    model = VAE(encoder, decoder, latent_dim=(4, 3, 3), event_dim=3, regularizer=look).to(device)
    x = torch.rand(2, 1, 6, 6, device=device)
    assert model.loss(x, reduction="none").shape == (2,)
    assert seen == [(2, 36)] * 3


def test_it_compiles(device, backend):
    model, x, noise = small(total_correlation, device)
    torch._dynamo.reset()
    compiled = torch.compile(model.losses, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, noise), model.losses(x, noise), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        ("mmd", TypeError, "regularizer='mmd': expected a function f(z, mu, logvar)"),
        (3.0, TypeError, "regularizer=3.0: expected a function"),
        (Scaled, TypeError, "regularizer=Scaled is a class: expected a function"),
    ],
)
def test_what_is_no_function_is_refused(value, kind, words):
    with pytest.raises(kind) as caught:
        VAE(nn.Linear(6, 6), nn.Linear(3, 6), regularizer=value)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        (lambda z, mu, logvar: vae_fast.total_correlation(z, mu, logvar, 100), TypeError, "regularizer gave TotalCorrelation: expected"),
        (lambda z, mu, logvar: 0.0, TypeError, "regularizer gave float: expected"),
        (lambda z, mu, logvar: mu, ValueError, "regularizer gave shape (5, 3) for batch=5: expected"),
        (lambda z, mu, logvar: mu[:1, 0], ValueError, "regularizer gave shape (1,) for batch=5: expected"),
        (lambda z, mu, logvar: torch.tensor(1), TypeError, "regularizer gave dtype int64: expected"),
    ],
)
def test_what_it_gives_is_looked_at(given, kind, words):
    model, x, noise = small(given)
    with pytest.raises(kind) as caught:
        model.loss(x, noise)
    assert str(caught.value).startswith(words)
    assert _objective.EXPECTED in str(caught.value)


def test_the_repr_names_a_function_and_shows_a_module():
    assert "regularizer='total_correlation'" in repr(small(total_correlation)[0])
    assert "(regularizer): Scaled()" in repr(small(Scaled())[0])
    assert "regularizer" not in repr(small(None)[0])
