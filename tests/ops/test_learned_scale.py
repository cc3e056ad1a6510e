"""Arguments that all samples share, as a learned scale: their gradients are summed in the kernels."""

import pytest
import torch
from oracle import leaves, needs_kernels, value_and_grads
from torch.profiler import ProfilerActivity, profile

import vae_fast

SHAPES = {"scalar": (), "one": (1,), "channel": (3, 1, 1), "batched channel": (1, 3, 1, 1), "columns": (5,), "element": (3, 4, 5)}


def expanded(t, batch):
    return t.expand(*batch, 3, 4, 5).contiguous()


def calls(likelihood):
    def elbo(x, loc, s, mu, logvar, f=vae_fast.elbo_loss, **kw):
        return f(x, (loc, s), mu, logvar, likelihood=likelihood, event_dim=3, **kw)

    return elbo


@pytest.mark.parametrize("likelihood", ["gaussian", "laplace"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [(1,), (7,), (300,), (4, 65)], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gradient_of_a_shared_scale(shape, batch, dtype, likelihood, device, backend):
    """Of every way to give one; that of its expansion in float64, summed, is the truth."""
    torch.manual_seed(0)
    x, loc = torch.randn(2, *batch, 3, 4, 5, device=device).to(dtype)
    s = (0.3 * torch.randn(shape, device=device)).to(dtype)
    mu, logvar = torch.randn(2, *batch, 2, device=device).to(dtype)
    call = calls(likelihood)
    rounding = {torch.float32: 1e-6, torch.float64: 1e-13, torch.bfloat16: 4e-3}[dtype]
    for kw in ({}, {"reduction": "sum"}, {"reduction": "none"}, {"f": vae_fast.elbo}):
        got, grads = value_and_grads(lambda *t, kw=kw: call(*t, **kw), [x, loc, s, mu, logvar])
        wide = [t.double() for t in (x, loc, expanded(s, batch), mu, logvar)]
        want, true = value_and_grads(lambda *t, kw=kw: call(*t, **kw), wide)
        torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=2e-6)
        terms = true[2].abs().sum_to_size(shape)
        assert grads[2].dtype == dtype and grads[2].shape == shape
        error = (grads[2].double() - true[2].sum_to_size(shape)).abs()
        assert (error <= 2 * rounding * (1.0 + terms)).all(), (kw, error / terms)


@pytest.mark.parametrize("batch", [(70,), (5, 14)], ids=str)
def test_every_shared_argument_at_once(batch, device, backend):
    """The data's location and scale, and the prior's; one upstream gradient for each sample."""
    torch.manual_seed(0)
    x, mu, logvar = (torch.randn(*batch, n, dtype=torch.float64, device=device) for n in (6, 2, 2))
    loc, s, prior_mu, prior_logvar = (torch.randn(n, dtype=torch.float64, device=device) for n in ((6,), (), (2,), (1,)))
    upstream = torch.randn(batch, dtype=torch.float64, device=device)

    def f(x, loc, s, mu, logvar, p, t):
        return vae_fast.elbo(x, (loc, s), mu, logvar, likelihood="gaussian", prior_mu=p, prior_logvar=t, beta=0.7)

    tensors = [x, loc, s, mu, logvar, prior_mu, prior_logvar]
    got = value_and_grads(f, tensors, upstream)
    whole = [t.expand(*batch, n).contiguous() for t, n in zip(tensors, (6, 6, 6, 2, 2, 2, 2), strict=True)]
    want = value_and_grads(f, whole, upstream)
    torch.testing.assert_close(got[0], want[0])
    for t, a, b in zip(tensors, got[1], want[1], strict=True):
        torch.testing.assert_close(a, b.sum_to_size(t.shape), rtol=1e-12, atol=1e-13)


def test_images_in_channels_last(device, backend):
    x, loc = torch.randn(2, 90, 3, 4, 5, device=device)
    s, latent = torch.randn(3, 1, 1, device=device), torch.zeros(90, 2, device=device)
    want = value_and_grads(calls("gaussian"), [x, loc, s, latent, latent])
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x, loc)]
    got = value_and_grads(calls("gaussian"), [*last, s, latent, latent])
    torch.testing.assert_close(got[0], want[0])
    torch.testing.assert_close(got[1][2], want[1][2], rtol=1e-6, atol=0)


@needs_kernels
def test_threads_do_not_matter():
    x, loc = torch.randn(2, 400, 3, 4, 5)
    s, latent = torch.randn(3, 1, 1), torch.zeros(400, 2)
    results, threads = [], torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(value_and_grads(calls("gaussian"), [x, loc, s, latent, latent])[1][2])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_shared_scale_takes_no_memory_of_the_batch(shape):
    """Neither for its values nor for its gradient: the mean's gradient is the only tensor of the batch's size that is made."""
    x, loc = torch.randn(2, 2048, 3, 4, 5)
    t = leaves([x, loc, torch.zeros(shape), torch.zeros(2048, 2), torch.zeros(2048, 2)], [False, True, True, True, True])
    calls("gaussian")(*t).backward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        for v in t:
            v.grad = None
        calls("gaussian")(*t).backward()
    made = sum(max(e.self_cpu_memory_usage, 0) for e in recorded.key_averages())
    assert x.nbytes < made < 1.25 * x.nbytes


@needs_kernels
def test_long_rows_and_single_elements():
    """Where rows are shared among threads, and where nothing is summed, sums come afterwards."""
    x, s = torch.randn(3, 70_000, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for event_dim in (0, 1):

        def f(x, loc, s, event_dim=event_dim):
            return vae_fast.gaussian_log_prob(x, loc, s, event_dim=event_dim)

        got = value_and_grads(f, [x, x * 0.5, s])[1][2]
        want = value_and_grads(f, [x, x * 0.5, s.expand(3, 70_000).contiguous()])[1][2].sum()
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
