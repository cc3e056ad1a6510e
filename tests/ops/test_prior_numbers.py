"""A prior given by numbers: the kernels read one value for all elements."""

import numpy as np
import pytest
import torch
from oracle import assert_refused, needs_kernels, value_and_grads

import vae_fast
from vae_fast._scales import SCALES
from vae_fast.bench.case import Work
from vae_fast.bench.measure import peak_memory

KINDS = {
    "float": float,
    "NumPy float32": np.float32,
    "NumPy float64": np.float64,
    "NumPy array": np.array,
    "tensor": torch.tensor,
}
X = torch.rand(6, 7)
FUNCTIONS = {
    "gaussian_kl": vae_fast.gaussian_kl,
    "reparameterize_with_kl": lambda mu, s, **prior: vae_fast.reparameterize_with_kl(mu, s, noise=torch.zeros_like(mu), **prior)[1],
    "elbo": lambda mu, s, **prior: vae_fast.elbo(X.to(mu), X.to(mu), mu, s, **prior),
    "elbo_loss": lambda mu, s, **prior: vae_fast.elbo_loss(X.to(mu), X.to(mu), mu, s, reduction="sum", **prior),
    "elbo_loss of a function": lambda mu, s, **prior: vae_fast.elbo_loss(
        X.to(mu), X.to(mu), mu, s, likelihood=vae_fast.bernoulli_log_prob, **prior
    ),
    "iwae_loss": lambda mu, s, **prior: vae_fast.iwae_loss(X.to(mu), X.to(mu)[None], torch.ones_like(mu)[None], mu, s, **prior),
    "ELBOLoss": lambda mu, s, scale, **prior: vae_fast.nn.ELBOLoss(scale=scale)(X.to(mu), X.to(mu), mu, s, **prior),
    "GaussianKL": lambda mu, s, scale, **prior: vae_fast.nn.GaussianKL(scale=scale)(mu, s, **prior),
}


POSTERIOR = torch.randn(6, 4), torch.rand(6, 4) + 0.5


def posterior(dtype=torch.float32, device="cpu"):
    return [t.to(device, dtype) for t in POSTERIOR]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", ["logvar", "std"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_number_is_a_tensor_of_it(name, scale, kind, device, backend):
    made = KINDS[kind]
    for given in ({"prior_mu": 0.25}, {"prior_logvar": 1.5}, {"prior_mu": -2, "prior_logvar": 0.75}):
        numbers = {k: made(v) if kind != "float" else v for k, v in given.items()}
        if kind == "tensor":
            numbers = {k: v.float() for k, v in numbers.items()}
        whole = {k: torch.full((6, 4), v, dtype=torch.float32, device=device) for k, v in given.items()}
        got = value_and_grads(lambda *t, p=numbers: FUNCTIONS[name](*t, scale=scale, **p), posterior(device=device))
        want = value_and_grads(lambda *t, p=whole: FUNCTIONS[name](*t, scale=scale, **p), posterior(device=device))
        assert got[0].dtype == want[0].dtype == torch.float32
        torch.testing.assert_close(got, want)
        assert got[1][0].any() and got[1][1].any()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_number_is_not_rounded_to_the_dtype(dtype, scale, device, backend):
    """Of float64 arguments it has all its digits, of halves those of float32."""
    mu, s = posterior(dtype, device)
    got = vae_fast.gaussian_kl(mu, s, 0.1, 0.3, scale=scale)
    wide = torch.tensor(0.1, dtype=got.dtype, device=device), torch.tensor(0.3, dtype=got.dtype, device=device)
    torch.testing.assert_close(got, vae_fast.gaussian_kl(mu, s, *wide, scale=scale), rtol=0, atol=0)
    truth = vae_fast.gaussian_kl(
        mu.double(), s.double(), *(torch.tensor(v, dtype=torch.float64, device=device) for v in (0.1, 0.3)), scale=scale
    )
    torch.testing.assert_close(got.double(), truth, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=1e-6)


@needs_kernels
def test_nothing_of_the_size_of_the_latents_is_allocated(device):
    mu, s = torch.randn(4096, 64, device=device), torch.randn(4096, 64, device=device)
    work = Work(lambda m: vae_fast.gaussian_kl(m, s, 0.5, 0.25, reduction="sum"), [(mu,)], None)
    work()
    assert peak_memory(work, device) < 0.1 * mu.nbytes


def test_a_scalar_that_is_learned_has_its_gradient(device, backend):
    p, t = (torch.tensor(v, device=device, requires_grad=True) for v in (0.5, -0.25))
    mu, s = posterior(device=device)
    vae_fast.gaussian_kl(mu, s, p, t, reduction="mean").backward()
    wide = [torch.full((6, 4), v.item(), device=device, requires_grad=True) for v in (p, t)]
    vae_fast.gaussian_kl(mu, s, *wide, reduction="mean").backward()
    torch.testing.assert_close([p.grad, t.grad], [wide[0].grad.sum(), wide[1].grad.sum()])


def test_a_model_keeps_it(device, backend):
    layers = torch.nn.Linear(7, 8, device=device), torch.nn.Linear(4, 7, device=device)
    model = vae_fast.models.VAE(*layers, latent_dim=4, prior_mu=0.5, prior_logvar=np.float32(-0.25))
    other = vae_fast.models.VAE(*layers, latent_dim=4, prior_mu=torch.full((4,), 0.5), prior_logvar=torch.full((4,), -0.25)).to(device)
    x, noise = torch.rand(3, 7, device=device), torch.randn(3, 4, device=device)
    torch.testing.assert_close(model.losses(x, noise), other.losses(x, noise))
    assert set(model.state_dict()) == set(other.state_dict()) and model.prior_mu.shape == ()
    assert model.double().loss(x.double(), noise.double()).dtype == torch.float64
    assert model.float().sample(3).shape == (3, 7)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"prior_mu": float("nan")}, ValueError, ["prior_mu=nan", "finite number"]),
        ({"prior_mu": True}, TypeError, ["prior_mu=True", "got bool"]),
        ({"prior_mu": "0"}, TypeError, ["prior_mu='0'", "got str"]),
        ({"prior_mu": np.zeros(2)}, ValueError, ["prior_mu has shape (2,)", "a number"]),
        ({"prior_logvar": float("inf")}, ValueError, ["prior_logvar=inf", "finite number"]),
        ({"prior_logvar": 0.0, "scale": "std"}, ValueError, ["prior_logvar=0.0", "expected a finite number in [1.17549e-38, inf]"]),
        ({"prior_logvar": -1, "scale": "var"}, ValueError, ["prior_logvar=-1", "expected a finite number in [1.17549e-38, inf]"]),
        ({"prior_mu": 1.0, "prior_logvar": [1.0]}, TypeError, ["prior_logvar=[1.0]", "got list"]),
    ],
    ids=str,
)
def test_what_is_refused(given, error, words, backend):
    mu, s = posterior()
    for f in (vae_fast.gaussian_kl, vae_fast.reparameterize_with_kl, lambda *t, **k: vae_fast.elbo_loss(mu, mu, *t, **k)):
        assert_refused(lambda f=f: f(mu, s, **given), error, words)
