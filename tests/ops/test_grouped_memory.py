"""What the grouped likelihoods take beside their arguments: the gradient, and of the last layer's logits one chunk."""

import pytest
import torch

import vae_fast
from vae_fast import _backend
from vae_fast.bench.measure import Work, peak_memory

pytestmark = pytest.mark.skipif(_backend.C is None, reason="the extension was not built")

MIB = 1 << 20
CHUNK = 4 * MIB  # csrc/ops/linear_likelihood.cpp


def taken(function, *leaves):
    """Bytes beyond the arguments, forward and backward; the gradients are among them."""
    work = Work(lambda *t: function(*t).sum(), [leaves], None)
    work()
    return peak_memory(work, "cpu")


@pytest.mark.parametrize(("layout", "shape"), [("nhwc", (8, 32, 32, 100)), ("nchw", (8, 100, 32, 32))])
def test_pixels_take_their_gradient(layout, shape):
    params = torch.randn(shape, requires_grad=True)
    x = torch.randint(256, [3 if n == 100 else n for n in shape], dtype=torch.uint8)
    bytes_taken = taken(lambda p: vae_fast.discretized_logistic_mixture_log_prob(x, p, layout=layout), params)
    assert params.nbytes <= bytes_taken <= params.nbytes + 0.1 * (params.nbytes + x.nbytes)


def test_classes_take_their_gradient():
    logits = torch.randn(16, 28, 28, 256, requires_grad=True)
    x = torch.randint(256, (16, 28, 28), dtype=torch.uint8)
    assert logits.nbytes <= taken(lambda t: vae_fast.categorical_log_prob(x, t, event_dim=2), logits) <= 1.1 * logits.nbytes


def baskets(rows, columns):
    """One in a hundred."""
    return torch.zeros(rows, columns).scatter_(1, torch.randint(columns, (rows, columns // 100)), 1.0)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_baskets_take_their_gradient(sparse):
    x, logits = baskets(500, 4000), torch.randn(500, 4000, requires_grad=True)
    given = x.to_sparse_csr() if sparse else x
    assert logits.nbytes <= taken(lambda t: vae_fast.multinomial_log_prob(given, t), logits) <= 1.1 * logits.nbytes


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_the_last_layer_takes_one_chunk(sparse, reduction):
    """Nothing of the size of the logits, 61 MiB, is made."""
    rows, columns, features = 4000, 4000, 16
    x = baskets(rows, columns)
    given = x.to_sparse_csr() if sparse else x
    h, weight = torch.randn(rows, features, requires_grad=True), torch.randn(columns, features, requires_grad=True)
    bytes_taken = taken(lambda *t: vae_fast.linear_multinomial_log_prob(given, *t, reduction=reduction), h, weight)
    assert h.nbytes + weight.nbytes <= bytes_taken <= 2 * (h.nbytes + weight.nbytes) + 2 * CHUNK
