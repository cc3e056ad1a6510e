"""Gradients of 16 bits under loss scaling: what GradScaler multiplies the loss by must reach them before they are rounded."""

import pytest
import torch
import torch.nn.functional as F
from oracle import needs_kernels

import vae_fast

FACTORS = [2.0**-10, 1e-3, 1.0, 3.0, 2.0**16, 2.0**24]


def lost(grad, truth, dtype):
    """Share of the entries that are off by more than 1%, of those a 16-bit number can hold."""
    info = torch.finfo(dtype)
    held = (truth.abs() > info.tiny) & (truth.abs() < info.max)
    return ((grad.double() - truth).abs() > 0.01 * truth.abs())[held].double().sum().item() / max(1, grad.numel())


def worst(grad, truth, dtype):
    """The largest relative error, in units of the dtype's rounding, beyond that of the float32 arithmetic."""
    info = torch.finfo(dtype)
    held = (truth.abs() > 2 * info.tiny) & (truth.abs() < info.max)
    if not held.any():
        return 0.0
    beyond = (grad.double() - truth).abs() - 1e-6 * truth.abs().max()
    return (beyond / truth.abs())[held].max().item() / (info.eps / 2)


def bernoulli(x, a, mu, logvar, factor, reduction, **options):
    return factor * vae_fast.elbo_loss(x, a, mu, logvar, reduction=reduction, **options)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@needs_kernels
def test_a_scaled_loss_loses_no_more_than_torchs(dtype, reduction, factor, device):
    batch = 65_536 if reduction == "mean" else 64
    generator = torch.Generator(device).manual_seed(0)
    a = (torch.randn(batch, 8, generator=generator, device=device) * 4.0).to(dtype).requires_grad_()
    x = torch.rand(batch, 8, generator=generator, device=device)
    mu, logvar = (torch.randn(batch, 3, generator=generator, device=device).to(dtype).requires_grad_() for _ in range(2))
    ours = torch.autograd.grad(bernoulli(x, a, mu, logvar, factor, reduction), [a, mu, logvar])
    plain = F.binary_cross_entropy_with_logits(a, x.to(dtype), reduction="sum") * (factor / (batch if reduction == "mean" else 1.0))
    torchs = torch.autograd.grad(plain, [a])[0]
    wide = [t.detach().double().requires_grad_() for t in (a, mu, logvar)]
    truth = torch.autograd.grad(bernoulli(x.double(), *wide, factor, reduction), wide)
    for grad, true in zip(ours, truth, strict=True):
        assert grad.dtype == dtype
        assert worst(grad, true, dtype) <= 1.01  # rounded once
    same_targets = torch.autograd.grad(bernoulli(x.to(dtype).double(), *wide, factor, reduction), wide)[0]
    assert lost(ours[0], truth[0], dtype) <= lost(torchs, same_targets, dtype)


@pytest.mark.parametrize("factor", FACTORS)
@needs_kernels
def test_a_gaussian_pair_does_not_overflow_before_it_is_scaled(factor, device):
    """Narrow Gaussians: gradients far outside float16's range that a small factor brings back into it."""
    x, mean = torch.randn(50, 20, device=device), torch.randn(50, 20, device=device).half().requires_grad_()
    log_scale = torch.full((50, 20), -9.0, device=device).half().requires_grad_()
    mu, logvar = (torch.zeros(50, 3, device=device, requires_grad=True) for _ in range(2))

    def grads(mean, log_scale):
        loss = factor * vae_fast.elbo_loss(x.to(mean.dtype), (mean, log_scale), mu, logvar, likelihood="gaussian", reduction="sum")
        return torch.autograd.grad(loss, [mean, log_scale])

    truth = grads(mean.detach().double().requires_grad_(), log_scale.detach().double().requires_grad_())
    for grad, true in zip(grads(mean, log_scale), truth, strict=True):
        within = true.abs() < 60_000.0
        assert torch.isfinite(grad[within]).all()
        assert torch.isinf(grad[true.abs() > 70_000.0]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@needs_kernels
def test_inside_a_compiled_graph(dtype, device):
    a = torch.randn(4096, 8, device=device).to(dtype).requires_grad_()
    x = torch.rand(4096, 8, device=device)
    mu, logvar = (torch.zeros(4096, 2, device=device, requires_grad=True) for _ in range(2))
    compiled = torch.compile(lambda a: 3.0 * vae_fast.elbo_loss(x, a, mu, logvar), backend="aot_eager", fullgraph=True)
    grad = torch.autograd.grad(compiled(a) * 2.0**15, [a])[0]
    wide = a.detach().double().requires_grad_()
    truth = torch.autograd.grad(3.0 * 2.0**15 * vae_fast.elbo_loss(x.double(), wide, mu, logvar), [wide])[0]
    assert worst(grad, truth, dtype) <= 1.01


@pytest.mark.parametrize("factor", FACTORS)
@needs_kernels
def test_the_last_layer_with_its_likelihood(factor, device):
    """Half weights and activations; the products round where torch's own do."""
    batch = 32_768
    h = torch.randn(batch, 4, device=device).half().requires_grad_()
    head = torch.nn.Linear(4, 6, device=device, dtype=torch.float16)
    x = torch.rand(batch, 6, device=device)
    loss = -vae_fast.linear_bernoulli_log_prob(x, h, head.weight, head.bias, reduction="mean")
    grad = torch.autograd.grad(factor * loss, [h])[0]
    wide = h.detach().double().requires_grad_()
    truth = -vae_fast.linear_bernoulli_log_prob(x.double(), wide, head.weight.double(), head.bias.double(), reduction="mean")
    true = torch.autograd.grad(factor * truth, [wide])[0]
    plain = F.binary_cross_entropy_with_logits(head(h), x.half(), reduction="sum") * (factor / batch)
    torchs = torch.autograd.grad(plain, [h])[0]
    same = F.binary_cross_entropy_with_logits(F.linear(wide, head.weight.double(), head.bias.double()), x.half().double(), reduction="sum")
    its_truth = torch.autograd.grad(same * (factor / batch), [wide])[0]
    assert lost(grad, true, torch.float16) <= lost(torchs, its_truth, torch.float16) + 1e-3
