"""Log-normal, continuous Bernoulli and Student-t densities: torch.distributions' values, extremes, what lies outside of the support."""

import math

import mpmath
import pytest
import torch
from oracle import SCALES, assert_refused, std_of, value_and_grads
from torch.distributions import ContinuousBernoulli, LogNormal, StudentT

import vae_fast
from vae_fast.likelihoods import LIKELIHOODS

FLOATS = [torch.float32, torch.float64]
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-14}
mpmath.mp.dps = 60


def elementwise(f, *tensors):
    """Values and derivatives of the elements, each on its own."""
    return value_and_grads(lambda *t: f(*t, event_dim=0), list(tensors))


# --- log-normal -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_log_normal_as_torch_has_it(scale, device, backend):
    torch.manual_seed(0)
    x, loc, s = torch.rand(50, 7, device=device).double() + 0.01, *torch.rand(2, 50, 7, device=device).double()
    got = vae_fast.log_normal_log_prob(x, loc, s, scale=scale)
    torch.testing.assert_close(got, LogNormal(loc, std_of(s, scale)).log_prob(x).sum(-1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("x", [0.0, -0.0, -1e-30, -3.0, -math.inf])
def test_where_there_is_no_log_normal_density(x, scale, dtype, device, backend):
    at, zero = torch.tensor([1.0, x, 2.0], dtype=dtype, device=device), torch.zeros(3, dtype=dtype, device=device)
    value, grads = elementwise(lambda *t, **kw: vae_fast.log_normal_log_prob(*t, scale=scale, **kw), at, zero, zero + 0.5)
    assert value[1].item() == -math.inf
    assert value[::2].isfinite().all()
    assert [g[1].item() for g in grads] == [0.0] * 3
    row, grads = value_and_grads(lambda *t: vae_fast.log_normal_log_prob(*t, scale=scale), [at, zero, zero + 0.5])
    assert row.item() == -math.inf
    assert all(g.isfinite().all() for g in grads)


def test_a_log_normal_not_a_number_is_not_hidden_by_an_impossible_x(device, backend):
    zero, nan = torch.zeros(2, 1, device=device), torch.full((2, 1), math.nan, device=device)
    assert vae_fast.log_normal_log_prob(zero, nan, zero).isnan().all()
    assert vae_fast.log_normal_log_prob(zero, zero, nan).isnan().all()
    assert vae_fast.log_normal_log_prob(nan, zero, zero).isnan().all()


def test_log_normal_bytes(device, backend):
    x = torch.tensor([[0, 1, 255]], dtype=torch.uint8, device=device)
    loc = torch.zeros(1, 3, device=device)
    got = vae_fast.log_normal_log_prob(x, loc, loc, event_dim=0)[0]
    want = LogNormal(0.0, 1.0).log_prob(torch.tensor([1 / 255, 1.0]))
    torch.testing.assert_close(got[1:].cpu(), want)
    assert got[0].item() == -math.inf


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_log_normal_far_out(dtype, device, backend):
    """Over the whole range of x, and with the derivative in x in range where (log x - m) / s^2 is not."""
    tiny, huge = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    steep = math.sqrt(huge) * 1e-10
    x = torch.tensor([tiny, tiny * 0.25, 1e-20, 1.0, 1e20, huge, 1e30], dtype=dtype, device=device)
    loc = torch.tensor([0.0, -80.0, 40.0, 1.0, -1e4, 80.0, 60.0], dtype=dtype, device=device)
    std = torch.tensor([1.0, 0.1, 3.0, 1e3, 1e2, 2.0, 1 / steep], dtype=dtype, device=device)
    value, grads = elementwise(lambda *t, **kw: vae_fast.log_normal_log_prob(*t, scale="std", **kw), x, loc, std)

    def exact(x, m, s):
        log_x = mpmath.log(x)
        t = (log_x - m) / s
        return -log_x - mpmath.log(s) - mpmath.log(2 * mpmath.pi) / 2 - t * t / 2, -(1 + t / s) / x, t / s, (t * t - 1) / s

    largest = mpmath.mpf(huge)
    for i, row in enumerate(zip(x.tolist(), loc.tolist(), std.tolist(), strict=True)):
        for got, want in zip((value, *grads), exact(*map(mpmath.mpf, row)), strict=True):
            want = math.copysign(math.inf, want) if abs(want) > largest else float(want)
            assert got[i].item() == pytest.approx(want, rel=60 * ROUNDING[dtype]), (i, row)


# --- continuous Bernoulli ---------------------------------------------------------------------------------------------

LOGITS = [0.0, 1e-30, 1e-8, 1e-4, 0.01, 0.3, 0.999, 1.001, 1.9999, 2.0001, 5.0, 17.0, 40.0, 89.0, 745.0, 1e4, 1e30]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_continuous_bernoulli_far_out_and_around_a_half(dtype, device, backend):
    logits = [a for v in LOGITS for a in (v, -v)]
    for target in (0.0, 1e-3, 0.25, 0.5, 0.75, 1.0):
        a = torch.tensor(logits, dtype=dtype, device=device)
        x = torch.full_like(a, target)
        value, grads = elementwise(vae_fast.continuous_bernoulli_log_prob, x, a)
        for i, (xi, ai) in enumerate(zip(x.tolist(), a.tolist(), strict=True)):
            m, w = mpmath.mpf(ai), mpmath.mpf(xi)
            want, slope = mpmath.mpf(0), w - 0.5
            if m != 0:
                with mpmath.workdps(140):
                    c = abs(m)
                    want = mpmath.log(c / (1 - mpmath.exp(-c))) - (w if m < 0 else 1 - w) * c
                    smaller = 1 / c - mpmath.exp(-c) / (1 - mpmath.exp(-c))
                    slope = w - smaller if m < 0 else smaller - (1 - w)
            size = 1.0 + abs(ai) * min(abs(xi - (ai > 0)), 1.0)
            assert value[i].item() == pytest.approx(float(want), rel=0, abs=4 * ROUNDING[dtype] * size), (xi, ai)
            assert grads[1][i].item() == pytest.approx(float(slope), rel=2 * ROUNDING[dtype], abs=2 * ROUNDING[dtype]), (xi, ai)
        assert torch.equal(grads[0], a)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_small_logits_keep_the_precision_of_their_own_size(dtype, device, backend):
    """The density of x = 1/2 is 1 - a^2 / 24, whose logarithm is far below the rounding of 1; the gradient there is -a / 12."""
    a = torch.logspace(-12, -2, 60, dtype=dtype, device=device)
    value, grads = elementwise(vae_fast.continuous_bernoulli_log_prob, torch.full_like(a, 0.5), a)
    u = a.double().square()
    assert ((value / a).double() / (a * (-1 / 24 + u / 2880 - u * u / 181440)) - 1).abs().max() < ROUNDING[dtype]
    assert (grads[1].double() / (a * (-1 / 12 + u / 720 - u * u / 30240)) - 1).abs().max() < ROUNDING[dtype]


def test_continuous_bernoulli_as_torch_has_it(device, backend):
    torch.manual_seed(0)
    a, x = 3 * torch.randn(200, 9, dtype=torch.float64, device=device), torch.rand(200, 9, dtype=torch.float64, device=device)
    want = ContinuousBernoulli(logits=a)
    torch.testing.assert_close(vae_fast.continuous_bernoulli_log_prob(x, a), want.log_prob(x).sum(-1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(LIKELIHOODS["continuous_bernoulli"].mean([a]), want.mean, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, *FLOATS], ids=str)
def test_continuous_bernoulli_mean_and_draws(dtype):
    """The mean is in [0, 1] with gradients for every logit; draws have the distribution function."""
    a = torch.tensor([v for a in (0.0, 1e-6, 0.99, 1.01, 30.0, 1e4) for v in (a, -a)], dtype=dtype, requires_grad=True)
    entry = LIKELIHOODS["continuous_bernoulli"]
    mean = entry.mean([a])
    mean.sum().backward()
    assert mean.dtype == dtype
    assert a.grad.isfinite().all()
    assert (mean.detach() >= 0).all() and (mean.detach() <= 1).all()
    torch.testing.assert_close(mean[::2] + mean[1::2], torch.ones(6, dtype=dtype), rtol=2e-3 if dtype == torch.float16 else 1e-6, atol=0)
    logits = torch.tensor([0.0, -7.0, 7.0, 0.3, 1e4], dtype=dtype).expand(100_000, 5)
    drawn = entry.draw([logits], torch.Generator().manual_seed(0))
    assert drawn.dtype == dtype
    assert (drawn >= 0).all() and (drawn <= 1).all()
    for level in (0.1, 0.5, 0.9):
        below = (drawn[:, :4] < level).double().mean(0)
        want = ContinuousBernoulli(logits=logits[0, :4].double()).cdf(torch.tensor(level, dtype=torch.float64))
        assert (below - want).abs().max() < 6 * 0.5 / math.sqrt(100_000)
    assert (drawn[:, 4] > 0.99).all()


# --- Student's t ------------------------------------------------------------------------------------------------------

DEGREES = [1e-2, 0.3, 1.0, 2.5, 7.999, 8.001, 15.999, 16.001, 1e2, 1e4, 1e6, 1e8]
DISTANCES = [0.0, 1e-6, 0.3, 1.0, 1.0001, 30.0, 1e4, 1e6, 1e12, 1e30]


def exact_student_t(x, n, m, log_s):
    """Value and derivatives in x, n, m and log s, and of each what its rounding errors are relative to."""
    s = mpmath.exp(log_s)
    t = (x - m) / s
    q = t * t / n
    lgamma, psi, log1p = mpmath.loggamma((n + 1) / 2) - mpmath.loggamma(n / 2), mpmath.digamma, mpmath.log1p(q)
    value = lgamma - mpmath.log(n * mpmath.pi) / 2 - log_s - (n + 1) / 2 * log1p
    slope = (n + 1) * t / (n + t * t) / s
    own = (psi((n + 1) / 2) - psi(n / 2) - 1 / n) / 2
    p = q / (1 + q)
    dn, ds = own + (p / n + p - log1p) / 2, n * (t * t - 1) / (n + t * t)
    sizes = 1 + abs(log_s) * (1 + n * (q > 1e9)) + (n + 1) / 2 * log1p, own + p / n + log1p - p
    return (value, -slope, dn, slope, ds), (sizes[0], abs(slope), sizes[1], abs(slope), 1 + abs(ds))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_student_t_far_out_and_near_the_gaussian(dtype, device, backend):
    """From 0.01 to 1e8 degrees of freedom, where x is and where it is not in range of the square; float32 inputs exactly as they are."""
    rows = [(x, n, m, log_s) for n in DEGREES for x in DISTANCES for m, log_s in ((0.0, 0.0), (1.0, -3.0), (-2.0, 40.0), (0.0, -80.0))]
    tensors = [torch.tensor(column, dtype=dtype, device=device) for column in zip(*rows, strict=True)]
    value, grads = elementwise(vae_fast.student_t_log_prob, *tensors)
    largest, tiny = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    for i, row in enumerate(zip(*(t.tolist() for t in tensors), strict=True)):
        wants, sizes = exact_student_t(*map(mpmath.mpf, row))
        # half a unit of an exponent of 80 is that many roundings of its power
        if backend == "reference":  # autograd subtracts what the kernels know the difference of
            sizes = (*sizes[:2], sizes[2] + abs(wants[0]), *sizes[3:])
        slack = ROUNDING[dtype] * (8 if abs(row[3]) > 5 and row[0] != row[2] else 1)
        for name, got, want, size in zip(("value", "x", "df", "loc", "scale"), (value, *grads), wants, sizes, strict=True):
            if abs(want) > largest:
                assert got[i].item() == math.copysign(math.inf, want), (name, row)
            else:
                assert abs(got[i].item() - want) <= 2 * slack * size + tiny, (name, row, got[i].item(), float(want))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_student_t_of_many_degrees_is_a_gaussian(dtype, device, backend):
    torch.manual_seed(0)
    x, loc, s = torch.randn(3, 40, 6, dtype=dtype, device=device)
    n = torch.full((), 1e20, dtype=dtype, device=device)
    got, grads = value_and_grads(vae_fast.student_t_log_prob, [x, n, loc, s])
    want, normal = value_and_grads(lambda *t: vae_fast.gaussian_log_prob(*t, scale="log_std"), [x, loc, s])
    torch.testing.assert_close(got, want, rtol=4 * ROUNDING[dtype], atol=4 * ROUNDING[dtype])
    for a, b in zip((grads[0], grads[2], grads[3]), normal, strict=True):
        torch.testing.assert_close(a, b, rtol=4 * ROUNDING[dtype], atol=4 * ROUNDING[dtype])
    assert abs(grads[1].item()) < 1e-30


@pytest.mark.parametrize("scale", SCALES)
def test_student_t_as_torch_has_it(scale, device, backend):
    """One number of degrees of freedom for all, one for each dimension, and one for each element."""
    torch.manual_seed(0)
    x, loc = torch.randn(2, 20, 5, dtype=torch.float64, device=device)
    s = torch.rand(5, dtype=torch.float64, device=device)
    for shape in ((), (1,), (5,), (20, 1), (20, 5)):
        n = 0.5 + 10 * torch.rand(shape, dtype=torch.float64, device=device)
        got = value_and_grads(lambda *t: vae_fast.student_t_log_prob(*t, scale=scale), [x, n, loc, s])
        want = value_and_grads(lambda x, n, m, s: StudentT(n, m, std_of(s, scale)).log_prob(x).sum(-1), [x, n, loc, s])
        for a, b in zip((got[0], *got[1]), (want[0], *want[1]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("scale", ["std", "var"])
def test_student_t_of_no_width(scale, device, backend):
    """Where the scale is 0 the density is infinite at loc and 0 elsewhere."""
    x, zero = torch.tensor([[0.0], [1.0], [-1e-40]], device=device), torch.zeros(3, 1, device=device)
    got = vae_fast.student_t_log_prob(x, torch.full_like(x, 3.0), zero, zero, scale=scale)
    assert got[1:].tolist() == [-math.inf, -math.inf]
    assert got[0].item() == math.inf or backend == "reference"  # where 0 / 0 is not a number, as of the other densities


def test_student_t_draws(device):
    parameters = [torch.tensor([[3.0], [0.5], [200.0]]).expand(3, 200_000), torch.full((), 1.5), torch.full((), -0.5)]
    entry = LIKELIHOODS["student_t"]
    drawn = entry.draw(parameters, torch.Generator().manual_seed(0))
    again = entry.draw(parameters, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)
    scaled = (drawn.double() - 1.5) / math.exp(-0.5)
    for row, n in zip(scaled, (3.0, 0.5, 200.0), strict=True):
        for quantile in (0.1, 0.5, 0.75):
            at = mpmath.findroot(lambda v, n=n, q=quantile: _student_t_cdf(v, n) - q, 0.1 if quantile >= 0.5 else -0.5)
            assert (row < float(at)).double().mean().item() == pytest.approx(quantile, abs=6 * 0.5 / math.sqrt(200_000))


def _student_t_cdf(v, n):
    half = mpmath.betainc(n / 2, 0.5, 0, n / (n + v * v), regularized=True) / 2
    return 1 - half if v > 0 else half


def test_recon_of_student_t(device, backend):
    """(df, loc) or (df, loc, log_scale), of which loc alone has the shape of the event; and nothing else is taken."""
    x, latent = torch.randn(4, 5, device=device), torch.zeros(4, 2, device=device)
    df, loc, s = torch.full((), 3.0, device=device), torch.randn(4, 5, device=device), torch.zeros(5, device=device)
    want = vae_fast.student_t_log_prob(x, df, loc, s)
    for recon in ((df, loc), (df, loc, s), [df, loc, s]):
        torch.testing.assert_close(vae_fast.elbo(x, recon, latent, latent, likelihood="student_t"), want)
    z, many = torch.zeros(3, 4, 2, device=device), torch.randn(3, 4, 5, device=device)
    bounds = [
        vae_fast.iwae_loss(x, (df, many, s), z, latent, latent, likelihood=likelihood)
        for likelihood in ("student_t", vae_fast.student_t_log_prob)
    ]
    torch.testing.assert_close(*bounds)
    as_function = vae_fast.elbo(x, (df, loc, s), latent, latent, likelihood=vae_fast.student_t_log_prob)
    torch.testing.assert_close(as_function, want)
    words = ["recon: expected (df, loc) or a (df, loc, log_scale) triple"]
    for recon, came in ((loc, "got a Tensor"), ((loc,), "got 1 items"), ((df, loc, s, s), "got 4 items")):
        call = lambda recon=recon: vae_fast.elbo(x, recon, latent, latent, likelihood="student_t")  # noqa: E731
        assert_refused(call, ValueError, [*words, came])
    assert_refused(
        lambda: vae_fast.elbo(x, (df, loc[:, :1], s), latent, latent, likelihood="student_t"),
        ValueError,
        ["recon[1] has shape (4, 1)", "x has shape (4, 5)"],
    )
