"""Every function gives the number that torch.distributions and torch.nn.functional give in float64."""

import pytest
import torch
from oracle import ALL, CASES, ELBOS, SAMPLES, SCALES, TERMS, assert_within_contract, draw, kl_elements, std_of

import vae_fast

SHAPES = {"small": ((7, 13), (7, 5)), "digits": ((64, 784), (64, 20)), "row": ((1, 33), (1, 1)), "column": ((65, 1), (65, 17))}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("case", ALL, ids=str)
def test_float32_is_within_the_contract(case, shapes, device, backend):
    tensors = case.tensors(*shapes, torch.float32, device)
    value = case.ours(*tensors)
    assert value.dtype == torch.float32
    assert_within_contract(value, case.plain(*(t.double() for t in tensors)), case.plain(*tensors))


@pytest.mark.parametrize("case", ALL, ids=str)
def test_float64_is_exact_to_rounding(case, device, backend):
    tensors = case.tensors((9, 31), (9, 6), torch.float64, device)
    value = case.ours(*tensors)
    assert value.dtype == torch.float64
    assert_within_contract(value, case.plain(*tensors), slack=1e-13)


@pytest.mark.parametrize("case", [*TERMS, CASES["logsumexp"], CASES["logsumexp.weights"]], ids=str)
def test_row_sums_do_not_drift(case, device):
    tensors = case.tensors((2, 100_003), dtype=torch.float32, device=device)
    assert_within_contract(case.ours(*tensors), case.plain(*(t.double() for t in tensors)), slack=1e-6)


def test_a_mean_over_many_rows_does_not_drift(device):
    x, logits = torch.full((200_001, 3), 0.7, device=device), torch.full((200_001, 3), -1.3, device=device)
    mu = logvar = torch.full((200_001, 1), 0.9, device=device)
    case = CASES["elbo.bernoulli"]
    for reduction in ("mean", "sum"):
        value = case.ours(x, logits, mu, logvar, f=vae_fast.elbo_loss, reduction=reduction)
        truth = -getattr(case.plain(x.double(), logits.double(), mu.double(), logvar.double()), reduction)()
        assert_within_contract(value, truth)


@pytest.mark.parametrize("case", ELBOS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_elbo_loss_is_the_reduced_negative_elbo(case, dtype, device, backend):
    tensors = case.tensors((37, 50), (37, 4), dtype, device)
    truth = -case.plain(*(t.double() for t in tensors))
    plain = -case.plain(*tensors)
    slack = 1e-6 if dtype == torch.float32 else 1e-13
    for reduction, reduce in {"none": lambda t: t, "mean": torch.mean, "sum": torch.sum}.items():
        value = case.ours(*tensors, f=vae_fast.elbo_loss, reduction=reduction)
        assert value.dtype == dtype
        assert_within_contract(value, reduce(truth), reduce(plain), slack)
    mean = case.ours(*tensors, f=vae_fast.elbo_loss)
    assert torch.equal(mean, case.ours(*tensors, f=vae_fast.elbo_loss, reduction="mean"))


@pytest.mark.parametrize("case", ELBOS, ids=str)
def test_the_loss_does_not_depend_on_whether_gradients_are_wanted(case, device):
    tensors = case.tensors((37, 50), (37, 4), torch.float32, device)
    without = case.ours(*tensors, f=vae_fast.elbo_loss)
    for wanted in (tensors[:1], tensors):
        for t in wanted:
            t.requires_grad_()
        assert torch.equal(case.ours(*tensors, f=vae_fast.elbo_loss).detach(), without)


@pytest.mark.parametrize("event_dim", [0, 1, 2, 3])
@pytest.mark.parametrize("case", TERMS, ids=str)
def test_event_dim_sums_the_last_dimensions(case, event_dim, device, backend):
    tensors = case.tensors((2, 3, 4, 5), dtype=torch.float32, device=device)
    value = case.ours(*tensors, event_dim=event_dim)
    assert value.shape == (2, 3, 4, 5)[: 4 - event_dim]
    plain = case.plain(*tensors, event_dim=event_dim)
    assert_within_contract(value, case.plain(*(t.double() for t in tensors), event_dim=event_dim), plain)


@pytest.mark.parametrize(("event_dim", "latent_dim"), [(3, 1), (1, 0), (0, 1), (2, 2), (0, 0), (1, 3)])
def test_elbo_sums_image_and_latent_dimensions_apart(event_dim, latent_dim, device, backend):
    case = CASES["elbo.bernoulli"]
    batch = (2, 3)
    tensors = case.tensors(batch + (4, 1, 5)[:event_dim], batch + (2, 3, 1)[:latent_dim], torch.float32, device)
    options = {"event_dim": event_dim, "latent_dim": latent_dim}
    value = case.ours(*tensors, **options)
    assert value.shape == batch
    assert_within_contract(value, case.plain(*(t.double() for t in tensors), **options), case.plain(*tensors, **options))


# --- KL ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_kl_reductions_run_over_the_batch(reduction, device, backend):
    mu, logvar = draw("location", (5, 3, 7), torch.float32, device), draw("logvar", (5, 3, 7), torch.float32, device)
    rows = kl_elements(mu.double(), logvar.double()).sum(-1)
    truth = rows if reduction == "none" else getattr(rows, reduction)()
    assert_within_contract(vae_fast.gaussian_kl(mu, logvar, reduction=reduction), truth)
    z, kl = vae_fast.reparameterize_with_kl(mu, logvar, reduction=reduction)
    assert z.shape == mu.shape
    assert_within_contract(kl, truth)


@pytest.mark.parametrize("scale", SCALES)
def test_half_a_prior_is_completed_with_mean_zero_or_unit_variance(scale, device, backend):
    mu, s, p, t = (draw(k, (4, 9), torch.float32, device) for k in ("location", scale) * 2)
    zero, one = torch.zeros_like(p).double(), torch.ones_like(p).double()
    wide = [v.double() for v in (mu, s, p, t)]
    unit = {"logvar": zero, "log_std": zero, "std": one, "var": one, "softplus": torch.log(torch.expm1(one))}[scale]
    with_mean = kl_elements(wide[0], wide[1], wide[2], unit, scale).sum(-1)
    with_scale = kl_elements(wide[0], wide[1], zero, wide[3], scale).sum(-1)
    assert_within_contract(vae_fast.gaussian_kl(mu, s, p, scale=scale), with_mean, slack=2e-6)
    assert_within_contract(vae_fast.gaussian_kl(mu, s, prior_logvar=t, scale=scale), with_scale, slack=2e-6)
    assert_within_contract(vae_fast.reparameterize_with_kl(mu, s, p, scale=scale)[1], with_mean, slack=2e-6)
    assert_within_contract(vae_fast.reparameterize_with_kl(mu, s, prior_logvar=t, scale=scale)[1], with_scale, slack=2e-6)


@pytest.mark.parametrize("scale", ["logvar", "log_std"])
def test_kl_keeps_its_relative_accuracy_near_the_prior(scale, device, backend):
    small = torch.logspace(-6, -1, 50, dtype=torch.float64, device=device)
    mu, u = small[:, None].float(), -small[:, None].float()
    per_u = 1.0 if scale == "logvar" else 2.0
    v = per_u * u.double()
    truth = 0.5 * (torch.where(v.abs() < 1e-3, v * v * (0.5 + v / 6 + v * v / 24), torch.expm1(v) - v) + mu.double() ** 2).squeeze(-1)
    value = vae_fast.gaussian_kl(mu, u, scale=scale).double()
    relative = 1e-6 if backend == "compiled" else 0.05  # expm1(u) - u, all that plain torch has for it, cancels
    assert ((value - truth).abs() <= relative * truth).all()
    assert (value > 0).all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("prior", [False, True])
def test_free_bits_floor_every_element_and_stop_its_gradient(scale, prior, device, backend):
    floor = 0.4
    tensors = [draw(k, (6, 11), torch.float64, device).requires_grad_() for k in ("location", scale) * (1 + prior)]
    elements = kl_elements(*tensors, scale=scale)
    below = elements < floor
    assert below.any() and not below.all()
    kl = vae_fast.gaussian_kl(*tensors, scale=scale, free_bits=floor)
    torch.testing.assert_close(kl, elements.clamp(min=floor).sum(-1), rtol=1e-12, atol=0)
    grads = torch.autograd.grad(kl.sum(), tensors)
    for got, want in zip(grads, torch.autograd.grad(elements[~below].sum(), tensors), strict=True):
        assert (got[below] == 0).all()
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


# --- sampling and KL in one pass --------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [None, 1, 3])
@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("scale", SCALES)
def test_sample_with_kl_is_the_sample_and_the_kl(scale, prior, num_samples, device, backend):
    tensors = [draw(k, (5, 6), torch.float32, device) for k in ("location", scale) * (1 + prior)]
    noise = torch.randn((5, 6) if num_samples is None else (num_samples, 5, 6), device=device)
    options = {"scale": scale, "noise": noise, "num_samples": num_samples}
    z, kl = vae_fast.reparameterize_with_kl(*tensors, **options, free_bits=0.2)
    assert torch.equal(z, vae_fast.reparameterize(*tensors[:2], **options))
    assert z.shape == noise.shape
    wide = [t.double() for t in tensors]
    assert_within_contract(z, wide[0] + std_of(wide[1], scale) * noise.double())
    plain = kl_elements(*tensors, scale=scale).clamp(min=0.2).sum(-1)
    assert_within_contract(kl, kl_elements(*wide, scale=scale).clamp(min=0.2).sum(-1), plain)


@pytest.mark.parametrize("case", SAMPLES, ids=str)
def test_zero_noise_gives_the_mean(case, device, backend):
    mu, s, _ = case.tensors((5, 6), dtype=torch.float32, device=device)
    assert torch.equal(case.ours(mu, s, torch.zeros_like(mu)), mu)


# --- log-sum-exp ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_logsumexp_over_each_dimension(dim, weighted, device, backend):
    a = draw("location", (4, 5, 6), torch.float32, device) * 20
    w = draw("weights", (4, 5, 6), torch.float32, device) if weighted else None
    wide = a.double() + (w.double().log() if weighted else 0)
    assert_within_contract(vae_fast.logsumexp(a, dim, w), torch.logsumexp(wide, dim))


@pytest.mark.parametrize("k", [1, 2, 5, 8, 17, 100, 5000])
def test_iwae_bound_is_the_log_of_the_mean(k, device, backend):
    log_w = draw("location", (k, 6), torch.float32, device) * 30 - 500
    truth = torch.logsumexp(log_w.double(), 0) - torch.log(torch.tensor(float(k), dtype=torch.float64))
    assert_within_contract(vae_fast.iwae_bound(log_w), truth)
    assert_within_contract(vae_fast.iwae_bound(log_w.T.contiguous(), dim=-1), truth)
    if k == 1:
        assert torch.equal(vae_fast.iwae_bound(log_w), log_w[0])
