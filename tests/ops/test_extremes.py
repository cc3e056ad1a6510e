"""Finite inputs far out: the right number, never NaN, infinite only where the true value is out of range."""

import math

import pytest
import torch
from oracle import ALL, CLIPS, SAMPLES, SCALES, bernoulli_logits, draw, value_and_grads

import vae_fast

FLOATS = [torch.float32, torch.float64]


def close(got, want, rtol=2e-6, atol=1e-30):
    """Equal to the float64 truth, where the truth that leaves the range of ``got`` is infinite and what underflows is 0."""
    want = want.double()
    largest, smallest = torch.finfo(got.dtype).max, torch.finfo(got.dtype).smallest_normal
    want = torch.where(want.abs() > largest, want.sign() * math.inf, want)
    assert not got.isnan().any(), got
    torch.testing.assert_close(got.double(), want, rtol=rtol, atol=max(atol, 2 * smallest), equal_nan=False)


LOGITS = [0.0, 1e-30, 0.5, 15.0, 16.7, 17.4, 20.0, 20.7, 20.8, 50.0, 87.0, 88.8, 99.9, 100.1, 104.0, 745.0, 1e4, 1e30, 3e38]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("clip", [None, "clamp", "bce"])
def test_logits_far_out(clip, dtype, device, backend):
    a = torch.tensor([*LOGITS, *(-v for v in LOGITS)], dtype=dtype, device=device)[:, None]
    for target in (0.0, 1.0, 0.25):
        x = torch.full_like(a, target)
        value, grads = value_and_grads(lambda x, a: vae_fast.bernoulli_log_prob(x, a, clip=clip), [x, a])
        wide = a.double()
        q, p = torch.sigmoid(-wide), torch.sigmoid(wide)
        bound = math.log(1 - 1e-9) - math.log(1e-9)
        c = wide.clamp(-bound, bound) if clip == "clamp" else wide
        log_p, log_q = -torch.logaddexp(torch.zeros_like(c), -c), -torch.logaddexp(torch.zeros_like(c), c)
        if clip == "bce":
            log_p, log_q = log_p.clamp(min=-100.0), log_q.clamp(min=-100.0)
        # Plain torch's sigmoid(a) is 1 from here on, and its derivative 0; the kernels keep both ends apart.
        plain_bce = clip == "bce" and backend == "reference"
        known = wide[:, 0].abs() < ((15.0 if dtype == torch.float32 else 30.0) if plain_bce else math.inf)
        close(value, (target * log_p + (1 - target) * log_q)[:, 0], atol=1e-6 if plain_bce else 1e-30)
        slope = torch.where(wide < 0, target - p, q - (1 - target))
        if clip == "clamp":
            slope = slope.masked_fill(c != wide, 0.0)
        elif clip == "bce":
            slope = slope * (p * q) / (p * q).clamp(min=1e-12)
        close(grads[1][known], slope[known], rtol=4e-6, atol=1e-6 if plain_bce else 1e-25)
        assert not grads[1].isnan().any()
        if clip is None:
            close(grads[0], wide)
        else:
            close(grads[0], log_p - log_q, atol=1e-9)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_logits_far_out_with_an_added_constant(dtype, device, backend):
    a = torch.tensor([*LOGITS, *(-v for v in LOGITS)], dtype=dtype, device=device)[:, None]
    for target in (0.0, 1.0, 0.25):
        x = torch.full_like(a, target)
        value, grads = value_and_grads(lambda x, a: vae_fast.bernoulli_log_prob(x, a, clip="add", eps=1e-9), [x, a])
        truth, want = value_and_grads(lambda x, a: bernoulli_logits(x, a, "add", 1e-9), [x.double(), a.double()])
        close(value, truth, atol=2e-7)
        close(grads[1], want[1], rtol=1e-5, atol=2e-7)
        close(grads[0], want[0], atol=1e-6)


@pytest.mark.parametrize("clip", CLIPS)
def test_large_images_of_extreme_logits(clip, device):
    """Every element of a vectorised row, not only its scalar tail."""
    a = torch.tensor([-1e4, -90.0, 90.0, 1e4], device=device).repeat(3, 64)
    x = (a > 0).float()
    value, grads = value_and_grads(lambda x, a: vae_fast.bernoulli_log_prob(x, a, clip=clip), [x, a])
    clipped = {None: 0.0, "bce": 0.0, "clamp": 256 * math.log1p(-1e-9), "add": 256 * math.log1p(1e-9)}[clip]
    torch.testing.assert_close(value, torch.full((3,), clipped, device=device), rtol=1e-5, atol=4e-7)
    torch.testing.assert_close(grads[1], torch.zeros_like(a), rtol=0, atol=1e-7)
    wrong = vae_fast.bernoulli_log_prob(1 - x, a, clip=clip)
    floor = {None: -128 * (1e4 + 90), "bce": -128 * 190.0, "clamp": 256 * math.log(1e-9), "add": 256 * math.log(1e-9)}[clip]
    torch.testing.assert_close(wrong, torch.full((3,), floor, device=device), rtol=1e-6, atol=0)


# --- scales -----------------------------------------------------------------------------------------------------------

LOG_STD = [-40.0, -20.0, -5.0, -1e-3, 0.0, 1e-3, 5.0, 20.0, 40.0]


def scale_of(log_std, scale, dtype, device):
    """Scale tensors with these log standard deviations, and the exact ones of what was rounded."""
    s = torch.tensor(log_std, dtype=torch.float64, device=device)
    t = {"logvar": lambda: 2 * s, "log_std": lambda: s, "std": s.exp, "var": (2 * s).exp, "softplus": lambda: s.exp().expm1().log()}[
        scale
    ]()
    t = torch.where(t.isfinite(), t, s.exp())[:, None]  # softplus^-1(y) -> y
    t = t.to(dtype)
    w = t.double()
    back = {
        "logvar": lambda: 0.5 * w,
        "log_std": lambda: w,
        "std": w.log,
        "var": lambda: 0.5 * w.log(),
        "softplus": lambda: torch.where(w < -30, w, torch.nn.functional.softplus(w, threshold=40).log()),
    }[scale]()
    return t, back


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_kl_of_variances_far_out(scale, dtype, device, backend):
    s, log_std = scale_of(LOG_STD, scale, dtype, device)
    for mean in (0.0, 1.5, 1e4):
        mu = torch.full_like(s, mean)
        value, grads = value_and_grads(lambda m, s: vae_fast.gaussian_kl(m, s, scale=scale), [mu, s])
        u = 2 * log_std
        close(value, (0.5 * (torch.expm1(u) - u + mean**2))[:, 0], atol=1e-9)
        close(grads[0], mu)
        assert not grads[1].isnan().any()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_kl_between_variances_far_out(scale, dtype, device, backend):
    s, log_s = scale_of([v for v in LOG_STD for _ in LOG_STD], scale, dtype, device)
    t, log_t = scale_of(LOG_STD * len(LOG_STD), scale, dtype, device)
    for delta in (0.0, 1.0):
        mu, prior = torch.full_like(s, 2.0 + delta), torch.full_like(s, 2.0)
        value, grads = value_and_grads(lambda *v: vae_fast.gaussian_kl(*v, scale=scale), [mu, s, prior, t])
        u = 2 * (log_s - log_t)
        close(value, (0.5 * (torch.expm1(u) - u + (delta * (-log_t).exp()) ** 2))[:, 0], rtol=2e-5, atol=1e-6)
        slope = delta * (-2 * log_t).exp()
        close(grads[0], slope, rtol=2e-5)
        close(grads[2], -slope, rtol=2e-5)
        assert not grads[1].isnan().any()
        assert not grads[3].isnan().any()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_log_density_of_variances_far_out(scale, dtype, device, backend):
    s, log_s = scale_of(LOG_STD, scale, dtype, device)
    for delta in (0.0, 1e-3, 1.0, 1e15):
        x, mu = torch.full_like(s, delta), torch.zeros_like(s)
        value, grads = value_and_grads(lambda *v: vae_fast.gaussian_log_prob(*v, scale=scale), [x, mu, s])
        t = x.double() * (-log_s).exp()
        close(value, (-log_s - 0.5 * math.log(2 * math.pi) - 0.5 * t * t)[:, 0], rtol=2e-5, atol=2e-6)
        close(grads[1], t * (-log_s).exp(), rtol=2e-5)
        close(grads[0], -t * (-log_s).exp(), rtol=2e-5)
        assert not grads[2].isnan().any()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_samples_of_variances_far_out(scale, dtype, device, backend):
    s, log_s = scale_of(LOG_STD, scale, dtype, device)
    mu, noise = torch.full_like(s, 0.5), torch.full_like(s, -1.25)
    value, grads = value_and_grads(lambda m, s: vae_fast.reparameterize(m, s, noise=noise, scale=scale), [mu, s])
    close(value, 0.5 - 1.25 * log_s.exp(), rtol=2e-5)
    close(grads[0], torch.ones_like(s))
    assert not grads[1].isnan().any()


# Beyond |logvar| = 177 the standard deviation or its inverse leaves float32; at the mean the true value is still a number.
OUT_OF_RANGE = [-2000.0, -200.0, -120.0, 120.0, 200.0, 2000.0]


@pytest.mark.parametrize("logvar", OUT_OF_RANGE)
def test_kl_of_a_variance_out_of_range(logvar, device, backend):
    one = torch.ones(3, 20, device=device)
    kl, grads = value_and_grads(vae_fast.gaussian_kl, [one, torch.full_like(one, logvar)])
    close(kl, torch.full((3,), 10.0 * (math.exp(min(logvar, 700.0)) - logvar), dtype=torch.float64, device=device))
    assert not grads[1].isnan().any()


@pytest.mark.parametrize("logvar", OUT_OF_RANGE)
def test_kl_of_a_variance_out_of_range_from_itself(logvar, device, backend):
    one = torch.ones(3, 20, device=device)
    t = torch.full_like(one, logvar)
    kl, grads = value_and_grads(vae_fast.gaussian_kl, [one, t, one, t])
    assert torch.equal(kl, torch.zeros(3, device=device))
    assert not any(g.isnan().any() for g in grads)


@pytest.mark.parametrize("logvar", OUT_OF_RANGE)
def test_log_density_at_the_mean_of_a_variance_out_of_range(logvar, device, backend):
    one = torch.ones(3, 20, device=device)
    log_prob, grads = value_and_grads(vae_fast.gaussian_log_prob, [one, one, torch.full_like(one, logvar)])
    close(log_prob, torch.full((3,), -10.0 * logvar - 10.0 * math.log(2 * math.pi), device=device))
    assert not any(g.isnan().any() for g in grads)


@pytest.mark.parametrize("logvar", OUT_OF_RANGE)
def test_zero_noise_of_a_variance_out_of_range(logvar, device, backend):
    one = torch.ones(3, 20, device=device)
    noise = torch.zeros_like(one)
    z, grads = value_and_grads(lambda m, s: vae_fast.reparameterize(m, s, noise=noise), [one, torch.full_like(one, logvar)])
    assert torch.equal(z, one)
    assert not any(g.isnan().any() for g in grads)


# --- differences, scales and their ratios near the ends of the range ----------------------------------------------------


def value_and_grads_of(f, numbers, device, dtype=torch.float32):
    """Of one element: the value, and the gradients as a list of numbers."""
    value, grads = value_and_grads(f, [torch.tensor([v], dtype=dtype, device=device) for v in numbers])
    return value, [g.item() for g in grads]


DENSITIES = {
    "difference_overflows": (3e38, -3e38, 400.0),
    "std_overflows": (1e37, -3.4e38, 178.0),
    "inverse_std_overflows": (1e-20, 0.0, -178.0),
    "square_overflows_and_its_half_does_not": (2.2e19, 0.0, 0.0),
    "slope_of_a_difference_that_overflows": (3e38, -1e38, 1.0),
}


@pytest.mark.parametrize("case", DENSITIES.values(), ids=DENSITIES)
def test_log_density_is_right_where_its_parts_are_out_of_range(case, device, backend):
    value, grads = value_and_grads_of(vae_fast.gaussian_log_prob, case, device)
    x, mu, logvar = (torch.tensor(v, dtype=torch.float32).double().item() for v in case)
    t, inverse = (x - mu) * math.exp(-0.5 * logvar), math.exp(-0.5 * logvar)
    want = [-0.5 * (logvar + math.log(2 * math.pi) + t * t), -t * inverse, t * inverse, 0.5 * (t * t - 1)]
    for got, true in zip([value.item(), *grads], want, strict=True):
        true = math.copysign(math.inf, true) if abs(true) > torch.finfo(torch.float32).max else true
        assert got == pytest.approx(true, rel=2e-6, abs=1e-37)


@pytest.mark.parametrize(("log_std", "want"), [(1.8e38, math.inf), (-3e38, 3e38), (44.6, 0.5 * math.exp(2 * 44.6))])
def test_kl_of_a_log_std_whose_double_is_out_of_range(log_std, want, device, backend):
    value, grads = value_and_grads_of(lambda m, s: vae_fast.gaussian_kl(m, s, scale="log_std"), (0.0, log_std), device)
    assert value.item() == pytest.approx(want, rel=1e-5)
    assert grads[1] == pytest.approx(math.inf if log_std > 44.5 else -1.0)


@pytest.mark.parametrize("scale", ["std", "var", "softplus", "logvar", "log_std"])
def test_kl_from_itself_is_zero_however_narrow(scale, device, backend):
    narrow = {"std": 1e-39, "var": 1e-40}.get(scale, -300.0)
    value, grads = value_and_grads_of(lambda *t: vae_fast.gaussian_kl(*t, scale=scale), (0.5, narrow, 0.5, narrow), device)
    assert value.item() == 0.0
    assert grads == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("gap", [20.0, 40.7, 60.3, 87.0])
def test_kl_between_distant_log_variances_keeps_its_digits(gap, device, backend):
    for base in (0.1, -37.3, 19.9):
        pair = torch.tensor([base + gap, base])
        value, grads = value_and_grads_of(vae_fast.gaussian_kl, (0.0, pair[0].item(), 0.0, pair[1].item()), device)
        u = (pair[0].double() - pair[1].double()).item()
        assert value.item() == pytest.approx(0.5 * (math.expm1(u) - u), rel=6e-7)
        assert grads[1] == pytest.approx(0.5 * math.expm1(u), rel=6e-7)
        assert grads[3] == pytest.approx(-0.5 * math.expm1(u), rel=6e-7)


@pytest.mark.parametrize("size", [1e-30, 1e-4, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("scale", ["std", "var"])
def test_kl_near_a_prior_of_any_size_keeps_its_digits(scale, size, device, backend):
    for step in (1e-6, -1e-5, 1e-3, -0.1, 0.3):
        s, t = torch.tensor([size * (1.0 + step), size])
        value, grads = value_and_grads_of(lambda *v: vae_fast.gaussian_kl(*v, scale=scale), (0.0, s.item(), 0.0, t.item()), device)
        power = 2 if scale == "std" else 1
        excess = ((s.double() - t.double()) / t.double()).item()
        w = 0.5 * power * math.log1p(excess)
        half = 0.5 * excess * (2 + excess) if scale == "std" else 0.5 * excess  # (r^2 - 1) / 2
        phi = half - w if abs(w) > 1e-2 else w * w * (1 + w * (2 / 3 + w * (1 / 3 + w * 2 / 15)))
        assert value.item() == pytest.approx(phi, rel=3e-6)
        assert grads[1] == pytest.approx(power * half / s.item(), rel=2e-6)
        assert grads[3] == pytest.approx(-power * half / t.item(), rel=2e-6)


@pytest.mark.parametrize("t", [-14.78, -0.0015, 0.7, 12.0])
def test_kl_near_a_softplus_prior_keeps_its_digits(t, device, backend):
    for step in (1e-3, 1e-2, 0.2):
        a, b = (v.item() for v in torch.tensor([t + step, t]).double())
        value, grads = value_and_grads_of(lambda *v: vae_fast.gaussian_kl(*v, scale="softplus"), (0.0, a, 0.0, b), device)
        w = math.log(math.log1p(math.exp(a))) - math.log(math.log1p(math.exp(b)))
        assert value.item() == pytest.approx(0.5 * math.expm1(2 * w) - w, rel=1e-5)
        slope = 1 / (1 + math.exp(-a)) / math.log1p(math.exp(a))
        assert grads[1] == pytest.approx(math.expm1(2 * w) * slope, rel=2e-6)


def test_free_bits_stop_a_gradient_that_is_out_of_range(device, backend):
    tiny = torch.finfo(torch.float32).smallest_normal * 2**-23
    kl = vae_fast.gaussian_kl
    value, grads = value_and_grads_of(lambda *t: kl(*t, scale="std", free_bits=1.0), (tiny, tiny, 0.0, tiny), device)
    assert value.item() == 1.0
    assert grads == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("logit", [-88.0, -90.0, -100.0])
def test_logits_below_float_keep_their_slope_beside_a_small_added_constant(logit, device, backend):
    p = math.exp(logit)
    bernoulli = vae_fast.bernoulli_log_prob
    _, grads = value_and_grads_of(lambda x, a: bernoulli(x, a, clip="add", eps=1e-30), (1.0, logit), device)
    assert grads[1] == pytest.approx(p / (p + 1e-30), rel=2e-6)
    _, grads = value_and_grads_of(lambda x, a: bernoulli(x, a, clip="bce"), (1.0, logit), device)
    assert grads[1] == pytest.approx(p * 1e12, rel=2e-6)


ENDS = {
    "location": [0.0, 1e-45, -1e-39, 1.0, -1e4, 1e19, -1e30, 3.4e38, -3.4e38],
    "logvar": [0.0, 1e-3, -60.0, 88.9, -178.0, 178.0, 400.0, -1e4, 3e38, -3e38],
    "std": [1e-45, 1e-39, 1e-30, 1e-10, 1.0, 1e4, 1e10, 1e30, 3.4e38],
}
ENDS |= {"log_std": ENDS["logvar"], "softplus": ENDS["logvar"], "var": ENDS["std"]}
GAUSSIANS = [case for case in ALL if case.name.startswith(("kl", "gaussian"))]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", GAUSSIANS, ids=str)
def test_no_finite_input_gives_nan(case, dtype, device, backend):
    """Every combination of the numbers above, value and gradients."""
    grid = torch.cartesian_prod(*(torch.tensor(ENDS[k], dtype=torch.float32).to(device, dtype) for k in case.kinds))
    value, grads = value_and_grads(lambda *t: case.ours(*t, event_dim=0), list(grid.unbind(1)))
    for t in (value, *grads):
        assert not t.isnan().any(), grid[t.isnan()][0]


# --- log-sum-exp ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("k", [1, 3, 16, 41])
def test_logsumexp_far_out(k, dtype, device, backend):
    for level in (-3e38, -1e30, -1e4, 1e4, 1e30, 3e38):
        a = torch.full((2, k), level, dtype=dtype, device=device)
        a[1, : k // 2] = -level
        value, grads = value_and_grads(vae_fast.logsumexp, [a])
        close(value, torch.logsumexp(a.double(), -1))
        assert not grads[0].isnan().any()
        if abs(level) == 1e4:  # e^(a - L) with L rounded, as in torch.logsumexp
            close(grads[0], torch.softmax(a.double(), -1), rtol=1e-3 if dtype == torch.float32 else 1e-11)


def test_weights_of_exactly_zero(device, backend):
    a = torch.tensor([[1.0, 1e4, -1e4, 2.0], [3e38, 0.0, 1.0, 5.0], [math.inf, 0.0, -math.inf, 1.0]], device=device)
    w = torch.tensor([[1.0, 0.0, 0.0, 3.0], [0.0, 1.0, 2.0, 0.0], [0.0, 0.5, 0.0, 0.5]], device=device)
    value, grads = value_and_grads(lambda a, w: vae_fast.logsumexp(a, -1, w), [a, w])
    kept = torch.where(w > 0, a.double() + w.double().log(), -math.inf)
    close(value, torch.logsumexp(kept, -1))
    close(grads[0], torch.softmax(kept, -1))
    assert not grads[1].isnan().any()
    on = w > 0
    close(grads[1][on], (a.double() - value.double()[:, None]).exp()[on])


def test_all_weights_zero_or_all_minus_infinity(device, backend):
    a = torch.randn(4, 5, device=device)
    w = torch.ones(4, 5, device=device)
    w[1] = 0.0
    a[2] = -math.inf
    value, grads = value_and_grads(lambda a, w: vae_fast.logsumexp(a, -1, w), [a, w])
    assert torch.equal(value.isinf(), torch.tensor([False, True, True, False], device=device))
    assert (value[1:3] == -math.inf).all()
    assert not grads[0].isnan().any()
    assert (grads[0][1:3] == 0).all()
    value, grads = value_and_grads(vae_fast.logsumexp, [a])
    assert value[2] == -math.inf
    assert not grads[0].isnan().any()
    assert (grads[0][2] == 0).all()
    value, grads = value_and_grads(lambda t: vae_fast.iwae_bound(t, -1), [a])
    assert value[2] == -math.inf
    assert (grads[0][2] == 0).all()


def test_plus_infinity_is_the_sum(device, backend):
    a = torch.tensor([[math.inf, 0.0], [math.inf, -math.inf]], device=device)
    assert (vae_fast.logsumexp(a) == math.inf).all()
    assert (vae_fast.logsumexp(a, -1, torch.ones_like(a)) == math.inf).all()


@pytest.mark.parametrize("case", ALL, ids=str)
def test_no_nan_from_large_random_inputs(case, device, backend):
    """Locations up to 1e15, logits up to 1e4, log-variances up to 80, probabilities 0 and 1."""
    wild = {
        "location": lambda t: t.sign() * 10 ** (torch.rand_like(t) * 30 - 15),
        "logits": lambda t: t * 3e3,
        "logvar": lambda t: t.sign() * torch.rand_like(t) * 80,
        "log_std": lambda t: t.sign() * torch.rand_like(t) * 40,
        "softplus": lambda t: t.sign() * torch.rand_like(t) * 40,
        "std": lambda t: 10 ** (torch.rand_like(t) * 30 - 15),
        "var": lambda t: 10 ** (torch.rand_like(t) * 60 - 30),
        "df": lambda t: 10 ** (torch.rand_like(t) * 10 - 2),
        "positive": lambda t: 10 ** (torch.rand_like(t) * 60 - 30),
        "probs": torch.round,
        "target": torch.round,
        "weights": lambda t: t * (torch.rand_like(t) > 0.5),
        "rate": lambda t: 10 ** (torch.rand_like(t) * 30 - 15),
        "log_rate": lambda t: t.sign() * torch.rand_like(t) * 80,
        "theta": lambda t: 10 ** (torch.rand_like(t) * 30 - 15),
    }
    tensors = [wild[k](draw(k, (64, 33), torch.float32, device)) for k in case.kinds]
    wanted = [True, True, False] if case in SAMPLES else None
    value, grads = value_and_grads(case.ours, tensors, wanted=wanted)
    assert not value.isnan().any()
    if "probs.none" in case.name or case.name == "elbo.probs":
        tensors = tensors[1:]  # d/dx = log p - log(1 - p) is infinite at p = 0 and 1
    for g in grads[-len(tensors) :]:
        assert g is None or not g.isnan().any()
