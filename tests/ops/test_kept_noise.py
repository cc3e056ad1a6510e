"""On the CPU a small sample's noise is kept for the backward pass; a large one's is drawn again. Nobody can tell but by time and memory."""

import pytest
import torch
from oracle import needs_kernels
from torch.utils.checkpoint import checkpoint

import vae_fast

LARGE = (2100, 523)  # above 4 MiB of float32
SMALL = 100  # rows of it


def inputs(rows, dtype=torch.float32):
    torch.manual_seed(0)
    full = [torch.randn(LARGE).to(dtype) for _ in range(2)]
    return [t[:rows].clone().requires_grad_() for t in full]


def draw(mu, s, kl=True, num_samples=None, noise=None):
    generator = None if noise is not None else torch.Generator().manual_seed(3)
    options = {"generator": generator, "noise": noise, "num_samples": num_samples}
    return vae_fast.reparameterize_with_kl(mu, s, **options) if kl else (vae_fast.reparameterize(mu, s, **options), None)


@needs_kernels
@pytest.mark.parametrize("kl", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kept_or_drawn_again_the_bits_are_the_same(dtype, kl):
    torch.manual_seed(1)
    upstream = torch.randn(LARGE).to(dtype)
    results = []
    for rows in (SMALL, LARGE[0]):
        mu, s = inputs(rows, dtype)
        z, _ = draw(mu, s, kl)
        z.backward(upstream[:rows])
        results.append([t.detach()[:SMALL] for t in (z, mu.grad, s.grad)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_kernels
@pytest.mark.parametrize(
    ("shape", "dtype", "num_samples", "kept"),
    [
        ((100, 20), torch.float32, None, True),
        ((100, 20), torch.float64, None, True),
        ((100, 20), torch.bfloat16, None, False),  # it would be larger than z
        ((100, 20), torch.float16, None, False),
        ((1024, 1024), torch.float32, None, True),  # 4 MiB
        ((1024, 1025), torch.float32, None, False),
        ((1024, 205), torch.float32, 5, False),
        ((1024, 205), torch.float32, 4, True),
    ],
    ids=str,
)
def test_noise_is_kept_if_it_is_small_and_no_larger_than_z(shape, dtype, num_samples, kept):
    mu, s = (torch.randn(shape).to(dtype).requires_grad_() for _ in range(2))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append((t.shape, t.dtype)) or t, lambda t: t):
        z, _ = draw(mu, s, num_samples=num_samples)
    assert saved.count((shape, dtype)) == 2 + (kept and num_samples is None and dtype == torch.float32)
    noise, state = (z.shape, torch.float32), (torch.Size([2]), torch.int64)
    assert (noise in saved) == (kept or (dtype == torch.float32 and num_samples is None))
    assert (state in saved) == (not kept)


@needs_kernels
def test_nothing_is_kept_without_gradients():
    mu = torch.zeros(10, 4)
    z, _ = draw(mu, mu)
    assert z.grad_fn is None


@needs_kernels
@pytest.mark.parametrize("num_samples", [None, 3])
def test_gradients_and_second_gradients_are_those_of_the_noise_given(num_samples):
    mu, s = (torch.randn(6, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    zero = torch.zeros(6, 5, dtype=torch.float64)
    noise = draw(zero, zero, num_samples=num_samples)[0]
    results = []
    for given in (None, noise):
        z, kl = draw(mu, s, num_samples=num_samples, noise=given)
        first = torch.autograd.grad(z.square().sum() + kl.sum(), [mu, s], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), [mu, s])
        results.append([z, *first, *second])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@needs_kernels
def test_checkpointing_draws_the_noise_it_drew_before():
    results = []
    for wrapped in (False, True):
        mu, s = inputs(SMALL)
        torch.manual_seed(7)
        call = vae_fast.reparameterize_with_kl
        z, kl = checkpoint(call, mu, s, use_reentrant=False) if wrapped else call(mu, s)
        (z.square().sum() + kl.sum()).backward()
        results.append((z.detach(), mu.grad, s.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_kernels
def test_a_retained_graph_gives_the_same_twice():
    mu, s = inputs(SMALL)
    z, kl = draw(mu, s)
    loss = z.square().sum() + kl.sum()
    once = torch.autograd.grad(loss, [mu, s], retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(once, torch.autograd.grad(loss, [mu, s]), strict=True))
