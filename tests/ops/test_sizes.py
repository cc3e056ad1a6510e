"""Sizes at the edges: nothing, one, odd, more than a kernel's block, and no dimensions at all."""

import math

import pytest
import torch
from oracle import ALL, CASES, ELBOS, LOGSUMEXPS, SAMPLES, TERMS, assert_within_contract, draw, value_and_grads

import vae_fast

COLUMNS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 127, 255, 257, 1023, 1025]


@pytest.mark.parametrize("case", ALL, ids=str)
def test_every_tail_of_a_row(case, device):
    wanted = [True, True, False] if case in SAMPLES else None
    for d in COLUMNS:
        tensors = case.tensors((3, d), (3, (d + 1) // 2), torch.float32, device)
        value, grads = value_and_grads(case.ours, tensors, wanted=wanted)
        plain, plain_grads = value_and_grads(case.plain, tensors, wanted=wanted)
        truth, want = value_and_grads(case.plain, [t.double() for t in tensors], wanted=wanted)
        assert_within_contract(value, truth, plain, slack=2e-6)
        for got, formula, true in zip(grads, plain_grads, want, strict=True):
            if true is not None:
                assert_within_contract(got, true, formula, slack=2e-6)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 63, 64, 65, 1000])
@pytest.mark.parametrize("case", [*ELBOS, *LOGSUMEXPS], ids=str)
def test_every_number_of_rows(case, rows, device):
    tensors = case.tensors((rows, 5), (rows, 2), torch.float32, device)
    value = case.ours(*tensors)
    assert_within_contract(value, case.plain(*(t.double() for t in tensors)), case.plain(*tensors), slack=2e-6)
    if case in ELBOS:
        loss = case.ours(*tensors, f=vae_fast.elbo_loss, reduction="sum")
        assert_within_contract(loss, -case.plain(*(t.double() for t in tensors)).sum(), -case.plain(*tensors).sum())


@pytest.mark.parametrize("case", [*TERMS, *ELBOS, CASES["logsumexp"], CASES["logsumexp.weights"], *SAMPLES], ids=str)
def test_more_rows_than_a_grid_has_blocks(case, device):
    tensors = case.tensors((131_075, 2), (131_075, 1), torch.float32, device)
    wanted = [True, True, False] if case in SAMPLES else None
    value, grads = value_and_grads(case.ours, tensors, wanted=wanted)
    truth, want = value_and_grads(case.plain, [t.double() for t in tensors], wanted=wanted)
    torch.testing.assert_close(value.double(), truth, rtol=2e-6, atol=4e-6)
    for got, true in zip(grads, want, strict=True):
        if true is not None:
            torch.testing.assert_close(got.double(), true, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [*TERMS, *ELBOS, CASES["logsumexp.weights"]], ids=str)
def test_gradients_of_a_very_long_row(case, device):
    tensors = case.tensors((1, 100_003), (1, 10_001), torch.float32, device)
    upstream = torch.full((1,), 0.7, device=device)
    grads = value_and_grads(case.ours, tensors, upstream)[1]
    plain = value_and_grads(case.plain, tensors, upstream)[1]
    want = value_and_grads(case.plain, [t.double() for t in tensors], upstream)[1]
    for got, formula, true in zip(grads, plain, want, strict=True):
        assert_within_contract(got, true, formula)


@pytest.mark.parametrize("case", [*TERMS, *ELBOS, *SAMPLES], ids=str)
def test_an_empty_batch(case, device, backend):
    tensors = case.tensors((0, 5), (0, 3), torch.float32, device)
    wanted = [True, True, False] if case in SAMPLES else None
    value, grads = value_and_grads(case.ours, tensors, wanted=wanted)
    assert value.shape == ((0, 5) if case in SAMPLES else (0,))
    assert all(g is None or g.shape == t.shape for g, t in zip(grads, tensors, strict=True))


@pytest.mark.parametrize("case", [*TERMS, *ELBOS], ids=str)
def test_an_empty_event_sums_to_zero(case, device, backend):
    tensors = case.tensors((4, 0), (4, 0), torch.float32, device)
    value, grads = value_and_grads(case.ours, tensors)
    assert torch.equal(value, torch.zeros(4, device=device))
    assert all(g.shape == t.shape for g, t in zip(grads, tensors, strict=True))


def test_an_empty_event_beside_a_full_one(device, backend):
    mu, logvar = torch.randn(4, 3, device=device), torch.randn(4, 3, device=device)
    none, some = torch.zeros(4, 0, device=device), torch.zeros(4, 5, device=device)
    kl = vae_fast.gaussian_kl(mu, logvar)
    torch.testing.assert_close(vae_fast.elbo(none, none, mu, logvar), -kl)
    torch.testing.assert_close(vae_fast.elbo(some, some, none, none), torch.full((4,), -5 * math.log(2.0), device=device))


def test_the_loss_of_an_empty_batch_is_that_of_torch(device, backend):
    """The sum over nothing is 0 and the mean NaN, as torch has it."""
    tensors = CASES["elbo.bernoulli"].tensors((0, 5), (0, 3), torch.float32, device)
    for reduction in ("sum", "mean"):
        value, grads = value_and_grads(lambda *t, r=reduction: CASES["elbo.bernoulli"].ours(*t, f=vae_fast.elbo_loss, reduction=r), tensors)
        assert value.isnan() if reduction == "mean" else value == 0
        assert [g.shape for g in grads] == [t.shape for t in tensors]
    assert vae_fast.gaussian_kl(*tensors[2:], reduction="sum") == 0


def test_logsumexp_of_nothing(device, backend):
    for weights in (None, torch.zeros(4, 0, device=device)):
        value = vae_fast.logsumexp(torch.zeros(4, 0, device=device), -1, weights)
        assert torch.equal(value, torch.full((4,), -math.inf, device=device))
    assert vae_fast.logsumexp(torch.zeros(0, 4, device=device)).shape == (0,)
    value, grads = value_and_grads(vae_fast.logsumexp, [torch.zeros(4, 0, device=device)])
    assert grads[0].shape == (4, 0)
    assert vae_fast.iwae_bound(torch.zeros(3, 0, device=device)).shape == (0,)


@pytest.mark.parametrize("case", [*TERMS, *ELBOS], ids=str)
def test_scalars(case, device, backend):
    tensors = case.tensors((), (), torch.float32, device)
    options = {"event_dim": 0} | ({"latent_dim": 0} if case in ELBOS else {})
    value, grads = value_and_grads(lambda *t: case.ours(*t, **options), tensors)
    plain = case.plain(*tensors, **options)
    truth, want = value_and_grads(lambda *t: case.plain(*t, **options), [t.double() for t in tensors])
    assert_within_contract(value, truth, plain, slack=2e-6)
    for got, true in zip(grads, want, strict=True):
        assert got.shape == ()
        torch.testing.assert_close(got.double(), true, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", [*TERMS, *ELBOS], ids=str)
def test_one_event_without_a_batch(case, device, backend):
    tensors = case.tensors((9,), (4,), torch.float32, device)
    value, grads = value_and_grads(case.ours, tensors)
    assert value.shape == ()
    assert_within_contract(value, case.plain(*(t.double() for t in tensors)), case.plain(*tensors), slack=2e-6)
    assert [g.shape for g in grads] == [t.shape for t in tensors]


@pytest.mark.parametrize("case", SAMPLES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (0,), (2, 0, 3), (2, 3, 4, 5, 6)], ids=str)
def test_samples_of_any_shape(case, shape, device, backend):
    tensors = case.tensors(shape, dtype=torch.float32, device=device)
    value, grads = value_and_grads(case.ours, tensors, wanted=[True, True, False])
    truth, want = value_and_grads(case.plain, [t.double() for t in tensors], wanted=[True, True, False])
    torch.testing.assert_close(value.double(), truth, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close([g.double() for g in grads[:2]], want[:2], rtol=2e-6, atol=1e-6)
    assert vae_fast.reparameterize(*tensors[:2], num_samples=3).shape == (3, *shape)


def test_scalar_logsumexp_has_no_dimension(device, backend):
    with pytest.raises(IndexError, match="dim=-1"):
        vae_fast.logsumexp(torch.zeros((), device=device))


def test_one_component_is_itself(device, backend):
    a, w = draw("location", (5, 1), torch.float32, device), draw("weights", (5, 1), torch.float32, device)
    assert torch.equal(vae_fast.logsumexp(a), a[:, 0])
    torch.testing.assert_close(vae_fast.logsumexp(a, -1, w), a[:, 0] + w[:, 0].log(), rtol=1e-6, atol=1e-6)
    _, grads = value_and_grads(vae_fast.logsumexp, [a])
    assert torch.equal(grads[0], torch.ones_like(a))
