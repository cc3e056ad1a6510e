"""Row sums over logits, where log(1 + e) is summed as the logarithm of a product: no overflow, no loss of what is tiny, at every width."""

import math

import pytest
import torch
from oracle import assert_within_contract, bernoulli_logits, value_and_grads

import vae_fast

COLUMNS = [1, 15, 47, 48, 49, 63, 64, 65, 255, 256, 257, 511, 512, 513, 784, 1023, 1024, 1025, 1500, 5003, 70_001]


@pytest.mark.parametrize("logit", [0.0, -0.0, 0.3, -9.0, 17.0, -40.0])
@pytest.mark.parametrize("columns", COLUMNS)
def test_equal_logits(columns, logit, device, backend):
    x, a = torch.full((3, columns), float(logit > 0), device=device), torch.full((3, columns), logit, device=device)
    truth = torch.full((3,), -columns * math.log1p(math.exp(-abs(logit))), dtype=torch.float64, device=device)
    value, (_, grad) = value_and_grads(vae_fast.bernoulli_log_prob, [x, a])
    assert_within_contract(value, truth)
    e = math.exp(-abs(logit))
    sign = 1.0 if logit > 0 else -1.0
    assert_within_contract(grad, torch.full_like(grad, sign * e / (1.0 + e), dtype=torch.float64))


@pytest.mark.parametrize("clip", [None, "clamp"])
@pytest.mark.parametrize("columns", COLUMNS)
def test_random_logits(columns, clip, device, backend):
    torch.manual_seed(columns)
    x, a = torch.rand(5, columns, device=device), torch.randn(5, columns, device=device) * 6
    upstream = torch.randn(5, device=device)
    results = [value_and_grads(lambda *t: vae_fast.bernoulli_log_prob(*t, clip=clip, eps=1e-3), [x, a], upstream)]
    for wide in ([x, a], [x.double(), a.double()]):
        results.append(value_and_grads(lambda *t: bernoulli_logits(*t, clip, 1e-3), wide, upstream))
    got, plain, truth = results
    assert_within_contract(got[0], truth[0], plain[0])
    for g, p, t in zip(got[1], plain[1], truth[1], strict=True):
        assert_within_contract(g, t, p)


@pytest.mark.parametrize("size", [200.0, 1e5, 1e30, 2.3e38, 2.4e38, 3.4e38])
@pytest.mark.parametrize("columns", [16, 47, 48, 64, 784])
def test_logits_of_any_size(columns, size, device, backend):
    """Where the target agrees the likelihood is 1, whatever the size; where it does not, minus their sum."""
    right = torch.tensor([1.0, 0.0], device=device).repeat(columns // 2 + 1)[:columns]
    a = (2.0 * right - 1.0) * size
    value, (_, grad) = value_and_grads(vae_fast.bernoulli_log_prob, [right, a])
    assert value == 0.0 and not grad.any()
    wrong = torch.where(torch.arange(columns, device=device) == columns - 1, 1.0 - right, right)
    value, (_, grad) = value_and_grads(vae_fast.bernoulli_log_prob, [wrong, a])
    assert value == torch.tensor(-size) and grad[-1].abs() == 1.0 and not grad[:-1].any()
