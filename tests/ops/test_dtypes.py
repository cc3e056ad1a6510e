"""Half precision in and out, bytes and booleans as targets, and every mixture: computed in float32, or float64 if any input is."""

import itertools
import math

import pytest
import torch
from mixtures import LOG_PROBS, MDNS
from oracle import ALL, CASES, ELBOS, SAMPLES, TERMS, assert_within_contract, draw, std_of, value_and_grads

import vae_fast

HALVES = [torch.float16, torch.bfloat16]
FLOATS = [*HALVES, torch.float32, torch.float64]


def assert_rounded(got, want, formula):
    """``got`` is ``want`` rounded to its dtype, up to the contract's error."""
    assert not got.isnan().any()
    finfo = torch.finfo(got.dtype)
    value, want = got.double(), want.double()
    scale = want.abs().clamp(min=want.square().mean().sqrt())
    contract = 1e-6 + ((formula.double() - want).abs() / scale).max()
    error = (value - want).abs()
    allowed = 0.5 * finfo.eps * want.abs() * (1 + 1e-3) + contract * scale + finfo.smallest_normal * finfo.eps
    assert (error <= allowed).all(), (error / allowed).max()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", [*ALL, *LOG_PROBS, *MDNS], ids=str)
def test_halves_are_computed_in_float32(case, dtype, device, backend):
    tensors = case.tensors((9, 83), (9, 11), dtype, device)
    wanted = [True, True, False] if case in SAMPLES else None
    value, grads = value_and_grads(case.ours, tensors, wanted=wanted)
    plain, plain_grads = value_and_grads(case.plain, [t.float() for t in tensors], wanted=wanted)
    truth, want = value_and_grads(case.plain, [t.double() for t in tensors], wanted=wanted)
    if case in SAMPLES:
        assert value.dtype == dtype
        assert_rounded(value, truth, plain)
    else:
        assert value.dtype == torch.float32
        assert_within_contract(value, truth, plain)
    for got, formula, true in zip(grads, plain_grads, want, strict=True):
        if true is not None:
            assert got.dtype == dtype
            assert_rounded(got, true, formula)


@pytest.mark.parametrize("case", ELBOS, ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("upstream", [1.0, 1024.0])
def test_the_loss_in_halves(case, dtype, upstream, device, backend):
    tensors = case.tensors((9, 83), (9, 11), dtype, device)

    def loss(*t):
        return case.ours(*t, f=vae_fast.elbo_loss)

    value, grads = value_and_grads(loss, tensors, torch.tensor(upstream))
    truth, want = value_and_grads(lambda *t: -case.plain(*t).mean(), [t.double() for t in tensors], torch.tensor(upstream))
    plain, plain_grads = value_and_grads(lambda *t: -case.plain(*t).mean(), [t.float() for t in tensors], torch.tensor(upstream))
    assert value.dtype == torch.float32
    assert_within_contract(value, truth, plain)
    for got, true, formula, t in zip(grads, want, plain_grads, tensors, strict=True):
        assert got.dtype == t.dtype
        beyond = true.abs() > torch.finfo(dtype).max  # is infinite in a half
        assert torch.equal(got[beyond].double(), true[beyond].sign() * math.inf)
        got, true, formula = (g.masked_fill(beyond, 0.0) for g in (got, true, formula))
        if upstream == 1.0 or backend == "reference":
            assert_rounded(got, true, formula)
        else:  # rounded once when written, in float16 near its smallest numbers, and once when scaled
            eps = torch.finfo(dtype).eps
            tiny = torch.finfo(dtype).smallest_normal * eps
            torch.testing.assert_close(got.double(), true, rtol=1.1 * eps, atol=upstream * tiny + 1e-6 * true.abs().max().item())


@pytest.mark.parametrize("kind", ["uint8", "bool"])
@pytest.mark.parametrize("case", [c for c in [*TERMS, *ELBOS] if c.kinds[0] in ("target", "location") and "kl" not in c.name], ids=str)
def test_bytes_are_grey_values_and_booleans_zero_or_one(case, kind, device, backend):
    tensors = case.tensors((16, 33), (16, 5), torch.float32, device)
    x = torch.arange(16 * 33, device=device).remainder(256).to(torch.uint8).view(16, 33)
    tensors[0] = x if kind == "uint8" else x % 3 == 0
    wide = [tensors[0].double() / (255.0 if kind == "uint8" else 1.0), *(t.double() for t in tensors[1:])]
    wanted = [False] + [True] * (len(tensors) - 1)
    value, grads = value_and_grads(case.ours, tensors, wanted=wanted)
    truth, want = value_and_grads(case.plain, wide, wanted=wanted)
    plain, plain_grads = value_and_grads(case.plain, [wide[0].float(), *tensors[1:]], wanted=wanted)
    assert value.dtype == torch.float32
    assert_within_contract(value, truth, plain)
    for got, formula, true in zip(grads[1:], plain_grads[1:], want[1:], strict=True):
        assert_within_contract(got, true, formula)
    if case in ELBOS:
        loss = case.ours(*tensors, f=vae_fast.elbo_loss)
        assert_within_contract(loss, -truth.mean(), -plain.mean())


@pytest.mark.parametrize("recon", [*HALVES, torch.float64], ids=str)
def test_bytes_with_other_reconstructions(recon, device, backend):
    x = torch.arange(256, device=device).to(torch.uint8).view(2, 128)
    logits = draw("logits", (2, 128), recon, device)
    value, grads = value_and_grads(vae_fast.bernoulli_log_prob, [x, logits], wanted=[False, True])
    truth, want = value_and_grads(
        lambda x, a: CASES["elbo.bernoulli"].plain(x / 255.0, a, a[:, :0], a[:, :0]), [x.double(), logits.double()]
    )
    assert value.dtype == (torch.float64 if recon == torch.float64 else torch.float32)
    assert_within_contract(value, truth)
    assert grads[1].dtype == recon
    assert_rounded(grads[1], want[1], want[1])


def pairs_of_dtypes(n):
    """Mixtures of ``n`` dtypes in which each pair of floats appears."""
    return [tuple(FLOATS[(a + b * i) % 4] for i in range(n)) for a in range(4) for b in range(4)]


@pytest.mark.parametrize(
    "case",
    [
        CASES["kl.logvar"],
        CASES["kl_prior.std"],
        CASES["bernoulli_logits.none"],
        CASES["bernoulli_probs.clamp"],
        CASES["gaussian.unit"],
        CASES["gaussian.log_std"],
        CASES["elbo.bernoulli"],
        CASES["elbo.bernoulli.free_bits"],
        CASES["elbo.probs.add"],
        CASES["elbo.gaussian.pair.prior"],
        CASES["logsumexp.weights"],
    ],
    ids=str,
)
def test_mixtures_of_dtypes(case, device, backend):
    for dtypes in pairs_of_dtypes(len(case.kinds)):
        shape, latent = (4, 21), (4, 6)
        wide = case.tensors(shape, latent, torch.float64, device)
        tensors = [t.to(d) for t, d in zip(wide, dtypes, strict=True)]
        value, grads = value_and_grads(case.ours, tensors)
        truth, want = value_and_grads(case.plain, [t.double() for t in tensors])
        plain, plain_grads = value_and_grads(case.plain, [t.float() for t in tensors])
        double = torch.float64 in dtypes
        assert value.dtype == (torch.float64 if double else torch.float32)
        assert_within_contract(value, truth, None if double else plain, 1e-12 if double else 2e-6)
        for got, true, formula, dtype in zip(grads, want, plain_grads, dtypes, strict=True):
            assert got.dtype == dtype
            if dtype in HALVES:
                assert_rounded(got, true, formula)
            else:
                assert_within_contract(got, true, None if double else formula, 1e-6)


def test_the_loss_over_mixtures_of_dtypes(device, backend):
    case = CASES["elbo.gaussian.pair.prior"]
    for dtypes in pairs_of_dtypes(len(case.kinds)):
        tensors = [t.to(d) for t, d in zip(case.tensors((4, 21), (4, 6), device=device), dtypes, strict=True)]
        value, grads = value_and_grads(lambda *t: case.ours(*t, f=vae_fast.elbo_loss), tensors)
        truth, want = value_and_grads(lambda *t: -case.plain(*t).mean(), [t.double() for t in tensors])
        _, plain_grads = value_and_grads(lambda *t: -case.plain(*t).mean(), [t.float() for t in tensors])
        double = torch.float64 in dtypes
        assert value.dtype == (torch.float64 if double else torch.float32)
        assert_within_contract(value, truth, slack=1e-12 if double else 2e-6)
        for got, true, formula, dtype in zip(grads, want, plain_grads, dtypes, strict=True):
            assert got.dtype == dtype
            assert_rounded(got, true, formula)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(FLOATS, FLOATS)), ids=str)
def test_a_sample_has_the_promoted_dtype(first, second, device, backend):
    mu, logvar = draw("location", (5, 7), first, device), draw("logvar", (5, 7), second, device)
    noise = torch.randn(5, 7, device=device)
    z, grads = value_and_grads(lambda m, v: vae_fast.reparameterize(m, v, noise=noise), [mu, logvar])
    assert z.dtype == torch.promote_types(first, second)
    wide = mu.double() + std_of(logvar.double(), "logvar") * noise.double()
    assert_rounded(z, wide, wide)
    assert [g.dtype for g in grads] == [first, second]
    slope = 0.5 * std_of(logvar.double(), "logvar") * noise.double()
    assert_rounded(grads[1], slope, slope)
    z, kl = vae_fast.reparameterize_with_kl(mu, logvar)
    assert z.dtype == torch.promote_types(first, second)
    assert kl.dtype == (torch.float64 if torch.float64 in (first, second) else torch.float32)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_noise_of_any_float_dtype(dtype, device, backend):
    mu, logvar = torch.randn(5, 7, device=device), torch.randn(5, 7, device=device)
    noise = torch.randn(5, 7, device=device).to(dtype)
    wide = mu.double() + std_of(logvar.double(), "logvar") * noise.double()
    z = vae_fast.reparameterize(mu, logvar, noise=noise)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.double(), wide, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_gradients_of_broadcast_halves_are_summed_before_they_are_rounded(dtype, device, backend):
    """Two contributions that nearly cancel: what is left of their sum would be lost if each were rounded first."""
    one, column = torch.ones(1, 1, dtype=dtype, device=device), torch.ones(2, 1, device=device)
    little = torch.finfo(dtype).eps / 4
    calls = {  # and the derivative in the tensor of one element
        "kl": (lambda t: vae_fast.gaussian_kl(t, column), 1.0),
        "sample": (lambda t: vae_fast.reparameterize(t, column, noise=column)[:, 0], 1.0),
        "logsumexp": (lambda t: vae_fast.logsumexp(t, -1, column), 1.0),
        "bernoulli": (lambda t: vae_fast.bernoulli_log_prob(column, t - 1.0), 0.5),
        "elbo": (lambda t: vae_fast.elbo(column, column, t, column), -1.0),
    }
    upstream = torch.tensor([1.0 + little, -1.0], device=device)
    for name, (f, slope) in calls.items():
        grad = value_and_grads(f, [one], upstream)[1][0]
        assert grad.dtype == dtype
        assert grad.item() == pytest.approx(slope * little, rel=1e-3), name
