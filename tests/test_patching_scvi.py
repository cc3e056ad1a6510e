"""vae_fast.patched("scvi") against scvi-tools itself."""

import importlib
import logging
import sys
import warnings
from pathlib import Path

import pytest
import torch

import vae_fast

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
REASON = "scvi-tools is not installed (pip install 'vae_fast[adoption]')"


@pytest.fixture(scope="module")
def scvi():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pytest.importorskip("scvi", reason=REASON)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return found


def drawn(dtype):
    mu, theta, zi_logits = torch.rand(6, 9) * 5 + 0.01, torch.rand(9) * 3 + 0.1, torch.randn(6, 9)
    return [t.to(dtype).requires_grad_() for t in (mu, theta, zi_logits)]


@pytest.mark.parametrize("name", ["NegativeBinomial", "ZeroInflatedNegativeBinomial"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients(scvi, name, dtype, backend):
    mu, theta, zi_logits = drawn(dtype)
    given = {"mu": mu, "theta": theta} | ({"zi_logits": zi_logits} if name[0] == "Z" else {})
    x = torch.poisson(torch.rand(6, 9) * 4).to(dtype)
    p = getattr(scvi.distributions, name)(**given)
    wanted = p.log_prob(x)
    gradients = torch.autograd.grad(wanted.sum(), list(given.values()), retain_graph=True)
    with vae_fast.patched("scvi") as names:
        found = p.log_prob(x)
    assert names == tuple(f"scvi.distributions._negative_binomial.{f}" for f in ("log_nb_positive", "log_zinb_positive", "log_mixture_nb"))
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    rtol = 1e-4 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=rtol)
    for a, b in zip(torch.autograd.grad(found.sum(), list(given.values())), gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=10 * rtol, atol=10 * rtol)


@pytest.mark.parametrize("dispersions", ["one", "two"])
@pytest.mark.parametrize("eps", [1e-8, 1e-3])
def test_mixtures_of_two(scvi, dispersions, eps, backend):
    module = importlib.import_module("scvi.distributions._negative_binomial")
    mu, theta, logits = drawn(torch.float64)
    other, second = (3.0 * mu).detach().requires_grad_(), (theta + 1.0).detach().requires_grad_()
    x = torch.poisson(torch.rand(6, 9) * 8).double()
    arguments = (mu, other, theta.expand(6, 9), second.expand(6, 9) if dispersions == "two" else None, logits)
    leaves = [mu, other, theta, logits] + ([second] if dispersions == "two" else [])
    wanted = module.log_mixture_nb(x, *arguments, eps=eps)
    gradients = torch.autograd.grad(wanted.sum(), leaves)
    with vae_fast.patched("scvi"):
        found = module.log_mixture_nb(x, *arguments, eps=eps)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    for a, b in zip(torch.autograd.grad(found.sum(), leaves), gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_nothing_is_left_behind(scvi):
    module = importlib.import_module("scvi.distributions._negative_binomial")
    before = {name: id(value) for name, value in vars(module).items()}
    with vae_fast.patched("scvi"):
        assert module.log_nb_positive.__wrapped__ is not module.log_nb_positive
        assert sum(before[name] != id(value) for name, value in vars(module).items()) == 3
    assert {name: id(value) for name, value in vars(module).items()} == before


def test_functions_of_another_library_are_left_to_scvi(scvi):
    """It hands its formula JAX's logarithm, or one for another device."""
    module = importlib.import_module("scvi.distributions._negative_binomial")
    mu, theta, zi_logits = drawn(torch.float64)
    x, called = torch.ones(6, 9).double(), []

    def log(t):
        called.append(t)
        return t.log()

    calls = {
        "log_nb_positive": (x, mu, theta),
        "log_zinb_positive": (x, mu, theta, zi_logits),
        "log_mixture_nb": (x, mu, 2 * mu, theta, None, zi_logits),
    }
    for name, arguments in calls.items():
        wanted = getattr(module, name)(*arguments)
        with vae_fast.patched("scvi"):
            called.clear()
            assert torch.equal(getattr(module, name)(*arguments, log_fn=log), wanted)
            assert called


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_a_model_trains_alike(scvi, likelihood):
    """The same data, seed and noise: scvi-tools' own training loop."""
    scvi_run = importlib.import_module("scvi_run")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted, found = (scvi_run.curve(scvi, likelihood, 128, 30, 3, targets) for targets in scvi_run.SCOPES.values())
    assert len(found) == 3
    assert wanted[0] > wanted[-1]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-4, atol=0.0)
