"""The aggregate posterior, total correlation and mean discrepancy against their formulas on B x B x L, as others have them."""

import functools
import math

import pytest
import torch
from oracle import assert_refused, leaves, needs_kernels, value_and_grads
from test_mixture_gradients import peak_growth
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import Normal

import vae_fast
from vae_fast import aggregate_log_prob, mmd, total_correlation
from vae_fast.functional import _row_chunks

EXACT = {"rtol": 1e-11, "atol": 1e-11}


def posteriors(batch, dims, dtype=torch.float64, device="cpu"):
    """z, mu, logvar."""
    mu, logvar, noise = (torch.randn(batch, dims, dtype=torch.float64) for _ in range(3))
    logvar = 0.5 * logvar - 1.0
    return [t.to(device, dtype) for t in (mu + (0.5 * logvar).exp() * noise, mu, logvar)]


def pairs(z, mu, logvar):
    """log q(z_i,d | x_j), (i, j, d)."""
    return Normal(mu, (0.5 * logvar).exp()).log_prob(z.unsqueeze(1))


def weights(batch, dataset_size, like):
    """The matrix of the public implementations, in their words: every (M + 1)-th element is a column."""
    m = batch - 1
    strata = (dataset_size - m) / (dataset_size * m)
    w = torch.full((batch, batch), 1.0 / m, dtype=torch.float64, device=like.device)
    w.view(-1)[:: m + 1] = 1.0 / dataset_size
    w.view(-1)[1 :: m + 1] = strata
    w[m - 1, 0] = strata
    return w.log()


def formula(z, mu, logvar, dataset_size, estimator, project):
    each, (batch, _) = pairs(z, mu, logvar), z.shape
    if estimator == "mws" and project == "beta-tcvae":
        joint = each.sum(2).logsumexp(1) - math.log(dataset_size * batch)
        product = (each.logsumexp(1) - math.log(dataset_size * batch)).sum(1)
    elif estimator == "mws":
        joint, product = each.sum(2).logsumexp(1), each.logsumexp(1).sum(1)
    elif project == "beta-tcvae":
        log_w = weights(batch, dataset_size, z)
        joint, product = (log_w + each.sum(2)).logsumexp(1), (log_w.unsqueeze(2) + each).logsumexp(1).sum(1)
    else:
        weighed = each + weights(batch, dataset_size, z).unsqueeze(2)
        joint, product = weighed.sum(2).logsumexp(1), weighed.logsumexp(1).sum(1)
    own = Normal(mu, (0.5 * logvar).exp()).log_prob(z).sum(1)
    prior = Normal(torch.zeros_like(z), 1.0).log_prob(z).sum(1)
    return torch.stack([own - joint, joint - product, product - prior])


def ours(z, mu, logvar, dataset_size=5000, estimator="mws", project="beta-tcvae", reduction="none"):
    return torch.stack(total_correlation(z, mu, logvar, dataset_size, estimator=estimator, formula=project, reduction=reduction))


FORMS = pytest.mark.parametrize(
    ("estimator", "project"), [(e, p) for e in ("mws", "mss") for p in ("beta-tcvae", "disentangling-vae")], ids=str
)


@pytest.mark.parametrize(("batch", "dims", "size"), [(2, 3, 100), (3, 1, 2), (64, 10, 5000), (129, 4, 128), (33, 6, 33)], ids=str)
@FORMS
def test_total_correlation_is_the_public_formula(estimator, project, batch, dims, size, device, backend):
    tensors = posteriors(batch, dims, device=device)
    upstream = torch.randn(3, batch, dtype=torch.float64, device=device)
    found = value_and_grads(lambda *t: ours(*t, size, estimator, project), tensors, upstream)
    want = value_and_grads(lambda *t: formula(*t, size, estimator, project), tensors, upstream)
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-10)
    for reduction in ("mean", "sum"):
        total = ours(*tensors, size, estimator, project, reduction)
        torch.testing.assert_close(total, getattr(want[0], reduction)(1), **EXACT)
    parts = ours(*tensors, size, estimator, project).sum(0)
    posterior, prior = vae_fast.gaussian_log_prob(*tensors), vae_fast.gaussian_log_prob(tensors[0], torch.zeros_like(tensors[0]))
    torch.testing.assert_close(parts, posterior - prior, **EXACT)


@FORMS
def test_total_correlation_in_float32(estimator, project, device, backend):
    narrow = posteriors(700, 10, torch.float32, device)
    wide = [t.double() for t in narrow]
    value, grads = value_and_grads(lambda *t: ours(*t, 5000, estimator, project, "mean"), narrow)
    truth, want = value_and_grads(lambda *t: formula(*t, 5000, estimator, project).mean(1), wide)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), truth, rtol=2e-6, atol=2e-6)
    for g, w in zip(grads, want, strict=True):
        assert (g - w).norm() <= 5e-6 * w.norm()


@FORMS
def test_gradcheck(estimator, project, device, backend):
    f = functools.partial(ours, dataset_size=50, estimator=estimator, project=project)
    tensors = leaves(posteriors(4, 2, device=device))
    assert gradcheck(f, tensors)
    assert gradgradcheck(f, tensors)


def test_a_batch_that_is_the_data_set_has_a_weight_of_zero(device, backend):
    """N = M leaves nothing of column 1; its gradient is a number."""
    tensors = posteriors(6, 3, device=device)
    value, grads = value_and_grads(lambda *t: ours(*t, 5, "mss"), tensors)
    torch.testing.assert_close(value, formula(*tensors, 5, "mss", "beta-tcvae"), **EXACT)
    assert all(g.isfinite().all() for g in grads)


def test_aggregate_log_prob(device, backend):
    z, mu, logvar = posteriors(20, 3, device=device)
    z = torch.randn(2, 7, 3, dtype=torch.float64, device=device)
    each = Normal(mu, (0.5 * logvar).exp()).log_prob(z.unsqueeze(-2))
    joint, product = each.sum(-1).logsumexp(-1) - math.log(20), (each.logsumexp(-2) - math.log(20)).sum(-1)
    torch.testing.assert_close(aggregate_log_prob(z, mu, logvar), joint, **EXACT)
    torch.testing.assert_close(aggregate_log_prob(z, mu, logvar, factorized=True), product, **EXACT)
    both = aggregate_log_prob(z, mu, logvar, factorized="both")
    torch.testing.assert_close((both.joint, both.factorized), (joint, product), **EXACT)
    assert gradcheck(lambda *t: torch.stack(aggregate_log_prob(*t, factorized="both")), leaves([z[0, :2], mu[:3], logvar[:3]]))


@needs_kernels
def test_memory_is_of_the_batch_not_of_its_square(device):
    batch, dims = 6000, 10
    tensors = leaves(posteriors(batch, dims, torch.float32, device))

    def step(t):
        sum(total_correlation(*t, 60_000)).backward()

    step(leaves([t[:50] for t in tensors]))
    grown = peak_growth(functools.partial(step, tensors), device)
    assert grown < batch * batch * 4 / 2, f"{grown / 2**20:.0f} MiB"  # half of one B x B array


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_without_a_break(reduction, device, backend):
    tensors = posteriors(12, 3, torch.float32, device)
    for estimator in ("mws", "mss"):
        f = functools.partial(ours, estimator=estimator, reduction=reduction)
        got = value_and_grads(torch.compile(f, fullgraph=True, backend="aot_eager"), tensors)
        torch.testing.assert_close(got, value_and_grads(f, tensors), rtol=1e-5, atol=1e-5)


# --- the mean discrepancy ---------------------------------------------------------------------------------------------


def mmd_formula(z, prior, kernel="imq", bandwidth=1.0, scales=None):
    """On N x N x L differences."""
    scales = scales or ([0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0] if kernel == "imq" else [1.0])

    def k(a, b):
        squares = (a.unsqueeze(1) - b).square().sum(2)
        widths = [2.0 * a.shape[1] * bandwidth**2 * s for s in scales]
        return sum(c / (c + squares) if kernel == "imq" else (-squares / c).exp() for c in widths)

    def within(t):
        return (k(t, t) * (1.0 - torch.eye(len(t), dtype=t.dtype, device=t.device))).sum() / (len(t) * (len(t) - 1))

    return within(z) + within(prior) - 2.0 * k(z, prior).mean()


KERNELS = pytest.mark.parametrize("kernel", ["imq", "rbf"])


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("sizes", [(2, 2), (40, 40), (31, 57)], ids=str)
@KERNELS
def test_mmd_is_its_formula(kernel, sizes, offset, device, backend, monkeypatch):
    z, prior = (torch.randn(n, 5, dtype=torch.float64, device=device) + offset for n in sizes)
    z = 0.7 * (z - offset) + offset + 0.3
    options = {"kernel": kernel, "bandwidth": 0.8, "scales": [0.3, 2.0]}
    for elements in (2**22, 200):  # in one block, and in many
        monkeypatch.setattr(_row_chunks, "ELEMENTS", elements)
        torch.testing.assert_close(
            value_and_grads(functools.partial(mmd, **options), [z, prior]),
            value_and_grads(functools.partial(mmd_formula, **options), [z, prior]),
            rtol=1e-9,
            atol=1e-12,
        )
        torch.testing.assert_close(mmd(z, prior, kernel=kernel), mmd_formula(z, prior, kernel), **EXACT)
        narrow = [z.float(), prior.float()]
        value, grads = value_and_grads(functools.partial(mmd, **options), narrow)
        truth, want = value_and_grads(functools.partial(mmd_formula, **options), [t.double() for t in narrow])
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), truth, rtol=2e-6, atol=2e-6)
        for g, w in zip(grads, want, strict=True):
            assert (g - w).norm() <= 1e-5 * w.norm()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_is_as_exact_as_the_call(backend):
    """The widths of the kernels, which depend on a size, went through float32 in a trace."""
    z, prior = torch.randn(2, 5, 3, dtype=torch.float64)
    for f in (lambda z, prior: mmd(z, prior, bandwidth=0.7), lambda z, mu: torch.stack(total_correlation(z, mu, 0.5 * mu, 1000))):
        torch.testing.assert_close(torch.jit.trace(f, (z, prior), check_trace=False)(z, prior), f(z, prior), rtol=1e-14, atol=1e-14)


@KERNELS
def test_mmd_gradcheck(kernel, device, backend, monkeypatch):
    tensors = leaves([torch.randn(n, 2, dtype=torch.float64, device=device) for n in (3, 4)])
    for elements in (2**22, 4):
        monkeypatch.setattr(_row_chunks, "ELEMENTS", elements)
        assert gradcheck(functools.partial(mmd, kernel=kernel), tensors)
        assert gradgradcheck(functools.partial(mmd, kernel=kernel), tensors)


@KERNELS
def test_points_that_coincide(kernel, device, backend):
    z = torch.zeros(4, 3, dtype=torch.float64, device=device)
    value, grads = value_and_grads(functools.partial(mmd, kernel=kernel), [z, z + 0.0])
    assert value.abs() < 1e-14
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


# --- bad arguments ----------------------------------------------------------------------------------------------------

T, ONE = torch.zeros(5, 2), torch.zeros(1, 2)
BAD = {
    "z list": (lambda: total_correlation([0.0], T, T, 10), TypeError, ["z", "got list"]),
    "mu shape": (lambda: total_correlation(T, torch.zeros(5), T, 10), ValueError, ["mu has shape (5,)", "(M, L)"]),
    "logvar shape": (lambda: total_correlation(T, T, ONE, 10), ValueError, ["logvar has shape (1, 2)", "expected (5, 2)"]),
    "z rows": (lambda: total_correlation(ONE, T, T, 10), ValueError, ["z has shape (1, 2)", "expected (5, 2)"]),
    "z columns": (lambda: aggregate_log_prob(torch.zeros(5, 3), T, T), ValueError, ["z has shape (5, 3)", "expected (..., 2)"]),
    "logvar device": (lambda: aggregate_log_prob(T, T, T.to("meta")), ValueError, ["logvar is on meta", "expected one device"]),
    "dataset_size float": (lambda: total_correlation(T, T, T, 10.0), TypeError, ["dataset_size=10.0", "got float"]),
    "dataset_size zero": (lambda: total_correlation(T, T, T, 0), ValueError, ["dataset_size=0", "at least 1"]),
    "dataset_size small": (lambda: total_correlation(T, T, T, 3, estimator="mss"), ValueError, ["dataset_size=3", "at least 4"]),
    "one row": (lambda: total_correlation(ONE, ONE, ONE, 3, estimator="mss"), ValueError, ["mu has shape (1, 2)", "at least 2 rows"]),
    "estimator": (lambda: total_correlation(T, T, T, 10, estimator="MWS"), ValueError, ["estimator='MWS'", "'mws', 'mss'"]),
    "formula": (lambda: total_correlation(T, T, T, 10, formula="c"), ValueError, ["formula='c'", "'disentangling-vae'"]),
    "reduction": (lambda: total_correlation(T, T, T, 10, reduction="max"), ValueError, ["reduction='max'"]),
    "factorized": (lambda: aggregate_log_prob(T, T, T, factorized="each"), ValueError, ["factorized='each'", "'both'"]),
    "mmd one row": (lambda: mmd(ONE, T), ValueError, ["z has shape (1, 2)", "at least 2"]),
    "mmd columns": (lambda: mmd(T, torch.zeros(5, 3)), ValueError, ["prior has shape (5, 3)", "(M, 2)"]),
    "mmd kernel": (lambda: mmd(T, T, kernel="linear"), ValueError, ["kernel='linear'", "'imq', 'rbf'"]),
    "mmd bandwidth": (lambda: mmd(T, T, bandwidth=0.0), ValueError, ["bandwidth=0.0"]),
    "mmd scales": (lambda: mmd(T, T, scales=[]), TypeError, ["scales=[]", "sequence of numbers"]),
    "mmd scale": (lambda: mmd(T, T, scales=[1.0, -1.0]), ValueError, ["scales[1]=-1.0"]),
    "mmd bytes": (lambda: mmd(T.byte(), T), TypeError, ["z has dtype uint8"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name, backend):
    assert_refused(*BAD[name])
