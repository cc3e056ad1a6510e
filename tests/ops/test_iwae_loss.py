"""The importance-weighted loss of K samples, whose x, mu and logvar are broadcast and never repeated."""

import math

import pytest
import torch
from oracle import assert_refused, bernoulli_logits, gaussian_log_prob, leaves, needs_kernels

import vae_fast
from vae_fast._scales import SCALES
from vae_fast.bench.case import Work
from vae_fast.bench.measure import peak_memory


def problem(k=3, batch=(4,), columns=7, latent=2, dtype=torch.float64, device="cpu"):
    """x, recon, z, mu, logvar."""
    shapes = [(*batch, columns), (k, *batch, columns), (k, *batch, latent), (*batch, latent), (*batch, latent)]
    tensors = [torch.randn(s, dtype=torch.float64, device=device) for s in shapes]
    tensors[0] = tensors[0].sigmoid()
    return [t.to(dtype) for t in tensors]


def plain(x, recon, z, mu, logvar, reduction="mean", prior_mu=None, prior_logvar=None):
    log_p = bernoulli_logits(x.expand_as(recon), recon)
    prior = (torch.zeros_like(z) if prior_mu is None else prior_mu.expand_as(z), torch.zeros_like(z))
    prior = (prior[0], prior[1] if prior_logvar is None else prior_logvar.expand_as(z))
    log_w = log_p + gaussian_log_prob(z, *prior) - gaussian_log_prob(z, mu.expand_as(z), logvar.expand_as(z))
    loss = math.log(len(z)) - torch.logsumexp(log_w, 0)
    return {"none": loss, "sum": loss.sum(), "mean": loss.mean()}[reduction]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(("k", "batch"), [(1, (4,)), (5, (2, 3)), (3, ())])
def test_values_and_gradients(k, batch, reduction, device, backend):
    tensors = problem(k, batch, device=device)
    mine, other = leaves(tensors), leaves(tensors)
    got, want = vae_fast.iwae_loss(*mine, reduction=reduction), plain(*other, reduction=reduction)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), mine), torch.autograd.grad(want.sum(), other))


def test_derivatives(device):
    assert torch.autograd.gradcheck(vae_fast.iwae_loss, leaves(problem(2, (2,), 3, device=device)))


def test_prior(device):
    tensors = problem(device=device)
    prior = {
        "prior_mu": torch.randn(2, dtype=torch.float64, device=device),
        "prior_logvar": torch.randn(2, dtype=torch.float64, device=device),
    }
    torch.testing.assert_close(vae_fast.iwae_loss(*tensors, **prior), plain(*tensors, **prior))


@pytest.mark.parametrize("scale", SCALES)
def test_the_form_of_the_scales(scale, device, backend):
    """Of the posterior and the prior, in values and gradients."""
    x, recon, z, mu, logvar = problem(device=device)
    mine, other = ([t.requires_grad_() for t in (logvar.clone(), torch.ones_like(logvar[0]))] for _ in range(2))

    def form(t):
        std = (0.5 * t).exp()
        return {"logvar": t, "log_std": 0.5 * t, "std": std, "var": t.exp(), "softplus": std.expm1().log()}[scale]

    got = vae_fast.iwae_loss(x, recon, z, mu, form(mine[0]), prior_logvar=form(mine[1]), scale=scale)
    want = plain(x, recon, z, mu, other[0], prior_logvar=other[1])
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, mine), torch.autograd.grad(want, other))


def test_one_sample_has_the_mean_of_the_elbo(device):
    """E_z of the bound with K = 1 is the ELBO with its analytic KL; a fixed decoder output leaves only log q - log p to average."""
    x, _, _, mu, logvar = problem(1, (3,), device=device)
    recon = torch.randn(1, 3, 7, dtype=torch.float64, device=device)
    n = 20_000
    z = vae_fast.reparameterize(mu, logvar, num_samples=n)
    ratio = torch.stack([vae_fast.iwae_loss(x, recon, z[i : i + 1], mu, logvar, reduction="none") for i in range(0, n, n // 400)])
    want = vae_fast.elbo_loss(x, recon[0], mu, logvar, reduction="none")
    assert ((ratio.mean(0) - want).abs() < 5.0 * ratio.std(0) / len(ratio) ** 0.5).all()


def test_more_samples_are_tighter(device):
    torch.manual_seed(1)
    decoder = torch.nn.Linear(2, 7, dtype=torch.float64, device=device)
    x, _, _, mu, logvar = problem(1, (200,), device=device)
    losses = []
    with torch.no_grad():
        for k in (1, 5, 50):
            z = vae_fast.reparameterize(mu, logvar, num_samples=k)
            losses.append(vae_fast.iwae_loss(x, decoder(z), z, mu, logvar).item())
    assert losses[0] > losses[1] > losses[2]


def test_images_bytes_and_a_gaussian_pair(device):
    x = torch.randint(0, 256, (4, 1, 3, 5), dtype=torch.uint8, device=device)
    recon = torch.randn(6, 4, 1, 3, 5, device=device)
    mu, logvar = torch.randn(2, 4, 2, device=device)
    z = vae_fast.reparameterize(mu, logvar, num_samples=6)
    got = vae_fast.iwae_loss(x, recon, z, mu, logvar, event_dim=3, reduction="none")
    wide = [t.double() for t in (x.double().flatten(1) / 255, recon.flatten(2), z, mu, logvar)]
    torch.testing.assert_close(got.double(), plain(*wide, reduction="none"), rtol=1e-5, atol=1e-5)
    pair = vae_fast.iwae_loss(x, (recon, recon), z, mu, logvar, likelihood="gaussian", event_dim=3)
    assert pair.shape == ()
    assert pair.isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_gradient_of_half_samples_is_rounded_once(dtype, device, backend):
    """Those of log p(z) and log q(z) are each out of float16's range here, and nearly cancel."""
    x, recon = torch.rand(4, 7, device=device), torch.zeros(1, 4, 7, device=device)
    z = torch.full((1, 4, 2), 0.1, dtype=dtype, device=device).requires_grad_()
    scales = {"logvar": torch.full((4, 2), -14.0, device=device), "prior_logvar": torch.full((2,), -14.0, device=device)}
    mu = torch.linspace(-0.01, 0.01, 8, device=device).view(4, 2)
    vae_fast.iwae_loss(x, recon, z, mu, reduction="sum", **scales).backward()
    true = (mu.double() - 0.0) * math.exp(14.0)  # of z: (z - prior mu) / variance - (z - mu) / variance
    torch.testing.assert_close(z.grad[0].double(), true, rtol=2 * torch.finfo(dtype).eps, atol=0.01)


@pytest.mark.parametrize("far", [1e20, 1e37, 3e38])
def test_a_sample_that_no_posterior_draws_has_no_weight(far, device, backend):
    x, recon, z, mu, logvar = (t.float() for t in problem(3, device=device))
    usual = vae_fast.iwae_loss(x, recon[1:], z[1:], mu, logvar, reduction="none") + math.log(3 / 2)
    z[0] = far
    got = vae_fast.iwae_loss(x, recon, z, mu, logvar, reduction="none")
    torch.testing.assert_close(got, usual, rtol=1e-5, atol=1e-5)
    assert (vae_fast.iwae_loss(x, recon, z * 0.0 + far, mu, logvar, reduction="none") == math.inf).all()


def test_not_a_number_shows(device, backend):
    x, recon, z, mu, logvar = (t.float() for t in problem(3, device=device))
    z[0, 0] = 1e20
    mu[0, 0] = math.nan
    got = vae_fast.iwae_loss(x, recon, z, mu, logvar, reduction="none")
    assert got[0].isnan()
    assert got[1:].isfinite().all()


@pytest.mark.parametrize("wide", range(7))
def test_one_float64_argument_makes_all_of_it_float64(wide, device, backend):
    """Row sums in float32 that are then called float64 would be off by 3e-8."""
    tensors = [t.float() for t in problem(4, (5,), 300, 10, device=device)]
    tensors += [torch.randn(10, device=device), torch.randn(10, device=device)]

    def loss(x, recon, z, mu, logvar, prior_mu, prior_logvar):
        return vae_fast.iwae_loss(x, recon, z, mu, logvar, prior_mu=prior_mu, prior_logvar=prior_logvar, reduction="none")

    truth = loss(*(t.double() for t in tensors))
    tensors[wide] = tensors[wide].double()
    got = loss(*tensors)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, truth, rtol=1e-13, atol=0.0)


def test_one_float64_of_a_pair(device, backend):
    x, recon, z, mu, logvar = (t.float() for t in problem(4, (5,), 300, 10, device=device))

    def loss(*pair):
        return vae_fast.iwae_loss(x, pair, z, mu, logvar, likelihood="gaussian")

    truth = loss(recon.double(), recon.double())
    for pair in ((recon.double(), recon), (recon, recon.double())):
        torch.testing.assert_close(loss(*pair), truth, rtol=1e-13, atol=0.0)


@needs_kernels
def test_x_is_not_repeated(device):
    x, recon, z, mu, logvar = problem(20, (256,), 784, dtype=torch.float32, device=device)
    work = Work(lambda r: vae_fast.iwae_loss(x, r, z, mu, logvar), [(recon,)], None)
    assert peak_memory(work, device) < 0.1 * recon.nbytes


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("sample_dim", [1, 2, -1, -2, -3])
def test_samples_in_any_batch_dimension(sample_dim, reduction, device, backend):
    """The numbers of samples that come first, and their gradients."""
    x, recon, z, mu, logvar = problem(5, (2, 3), device=device)
    prior = torch.randn(3, 2, dtype=torch.float64, device=device), torch.randn(2, dtype=torch.float64, device=device)

    def loss(x, recon, z, mu, logvar, p, t, **options):
        return vae_fast.iwae_loss(x, recon, z, mu, logvar, prior_mu=p, prior_logvar=t, reduction=reduction, **options)

    first, moved = leaves([x, recon, z, mu, logvar, *prior]), leaves([x, recon, z, mu, logvar, *prior])
    want = loss(*first)
    place = sample_dim % 3
    there = [t.movedim(0, place) if i in (1, 2) else t for i, t in enumerate(moved)]
    got = loss(*there, sample_dim=sample_dim)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), moved), torch.autograd.grad(want.sum(), first))
    dense = [t.detach().contiguous() for t in there]
    torch.testing.assert_close(loss(*dense, sample_dim=sample_dim), want.detach())


def test_samples_of_images_after_the_batch(device, backend):
    """Bytes, a pair, a posterior that is broadcast, and a latent of two dimensions."""
    x = torch.randint(0, 256, (4, 1, 3, 5), dtype=torch.uint8, device=device)
    recon, spread = torch.randn(6, 4, 1, 3, 5, device=device), torch.randn(1, 3, 5, device=device)
    mu, logvar, z = torch.randn(4, 2, 3, device=device), torch.randn(3, device=device), torch.randn(6, 4, 2, 3, device=device)
    options = {"likelihood": "gaussian", "event_dim": 3, "latent_dim": 2, "reduction": "none"}
    want = vae_fast.iwae_loss(x, (recon, spread), z, mu, logvar, **options)
    got = vae_fast.iwae_loss(x, (recon.transpose(0, 1), spread), z.transpose(0, 1), mu, logvar, sample_dim=1, **options)
    torch.testing.assert_close(got, want)


def test_samples_after_the_batch_for_a_function(device, backend):
    x, recon, z, mu, logvar = problem(5, (4,), device=device)

    def log_prob(x, logits):
        return vae_fast.bernoulli_log_prob(x.unsqueeze(1), logits)

    got = vae_fast.iwae_loss(x, recon.transpose(0, 1), z.transpose(0, 1), mu, logvar, likelihood=log_prob, sample_dim=-1)
    torch.testing.assert_close(got, vae_fast.iwae_loss(x, recon, z, mu, logvar))


@needs_kernels
def test_nothing_is_copied_for_samples_after_the_batch(device):
    x, recon, z, mu, logvar = (t.contiguous() for t in problem(20, (256,), 784, dtype=torch.float32, device=device))
    recon, z = recon.transpose(0, 1).contiguous(), z.transpose(0, 1).contiguous()
    work = Work(lambda r: vae_fast.iwae_loss(x, r, z, mu, logvar, sample_dim=1), [(recon,)], None)
    assert peak_memory(work, device) < 0.1 * recon.nbytes
    others = Work(lambda r: vae_fast.iwae_loss(x, r, z.movedim(1, 0), mu, logvar), [(recon.movedim(1, 0),)], None)
    assert peak_memory(others, device) < 0.1 * recon.nbytes  # nor for strides that put it first


def test_a_compiled_sample_dimension(device):
    torch._dynamo.reset()
    x, recon, z, mu, logvar = problem(5, (4,), device=device)
    given = x, recon.transpose(0, 1), z.transpose(0, 1), mu, logvar
    got = torch.compile(vae_fast.iwae_loss, backend="aot_eager", fullgraph=True)(*given, sample_dim=-1)
    torch.testing.assert_close(got, vae_fast.iwae_loss(x, recon, z, mu, logvar))


X, R, Z, M = torch.zeros(4, 7), torch.zeros(3, 4, 7), torch.zeros(3, 4, 2), torch.zeros(4, 2)
BAD = {
    "z without samples": (lambda: vae_fast.iwae_loss(X, R, M, M, M), ValueError, ["z has shape (4, 2)", "expected z (K, *mu.shape)"]),
    "no sample": (lambda: vae_fast.iwae_loss(X, R[:0], Z[:0], M, M), ValueError, ["z has shape (0, 4, 2)", "K at least 1"]),
    "recon without samples": (lambda: vae_fast.iwae_loss(X, X, Z, M, M), ValueError, ["recon has shape (4, 7)", "K=3"]),
    "other samples": (lambda: vae_fast.iwae_loss(X, R[:2], Z, M, M), ValueError, ["recon has shape (2, 4, 7)", "K=3"]),
    "z wider than mu": (lambda: vae_fast.iwae_loss(X, R, torch.zeros(3, 4, 5), M, M), ValueError, ["z has shape (3, 4, 5)", "mu.shape"]),
    "z narrower than mu": (
        lambda: vae_fast.iwae_loss(X, R, Z[..., :1], M, M),
        ValueError,
        ["z has shape (3, 4, 1)", "mu has shape (4, 2)"],
    ),
    "z of other rows": (lambda: vae_fast.iwae_loss(X, R, Z[:, :3], M, M), ValueError, ["z has shape (3, 3, 2)", "mu has shape (4, 2)"]),
    "prior of more rows": (
        lambda: vae_fast.iwae_loss(X, R[:, :1], Z[:, :1], M[:1], M[:1], prior_mu=M),
        ValueError,
        ["z has shape (3, 1, 2)", "with logvar and the prior (4, 2)"],
    ),
    "recon of other rows": (
        lambda: vae_fast.iwae_loss(X[:3], R[:, :3], Z, M, M),
        ValueError,
        ["recon has shape (3, 3)", "z has shape (3, 4)", "broadcast"],
    ),
    "z on another device": (lambda: vae_fast.iwae_loss(X, R, Z.to("meta"), M, M), ValueError, ["z is on meta", "mu is on cpu"]),
    "recon on another device": (
        lambda: vae_fast.iwae_loss(X.to("meta"), R.to("meta"), Z, M, M),
        ValueError,
        ["recon is on meta", "mu is on cpu"],
    ),
    "z with samples elsewhere": (
        lambda: vae_fast.iwae_loss(X, R, Z, M, M, sample_dim=1),
        ValueError,
        ["z has shape (3, 4, 2)", "mu.shape with K as its dimension 1"],
    ),
    "recon with samples elsewhere": (
        lambda: vae_fast.iwae_loss(X, R, Z.transpose(0, 1), M, M, sample_dim=1),
        ValueError,
        ["recon has shape (3, 4, 7)", "x.shape with K as its dimension 1 with the K=3 of z"],
    ),
    "no such dimension": (lambda: vae_fast.iwae_loss(X, R, Z, M, M, sample_dim=2), ValueError, ["sample_dim=2", "expected -2 to 1"]),
    "nor from the end": (lambda: vae_fast.iwae_loss(X, R, Z, M, M, sample_dim=-3), ValueError, ["sample_dim=-3", "expected -2 to 1"]),
    "rows of another rank": (
        lambda: vae_fast.iwae_loss(X.expand(3, 4, 7), R.expand(3, 3, 4, 7), Z, M, M),
        ValueError,
        ["recon has shape (3, 3, 4)", "z has shape (3, 4)", "as many"],
    ),
    "reduction": (lambda: vae_fast.iwae_loss(X, R, Z, M, M, reduction="k"), ValueError, ["reduction='k'"]),
    "z list": (lambda: vae_fast.iwae_loss(X, R, [0.0], M, M), TypeError, ["z", "got list"]),
    "likelihood": (lambda: vae_fast.iwae_loss(X, R, Z, M, M, likelihood="geometric"), ValueError, ["likelihood='geometric'"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name, backend):
    assert_refused(*BAD[name])
