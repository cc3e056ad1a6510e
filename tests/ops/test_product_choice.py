"""Which library multiplies on the CPU: the faster, tried once per shape and number of threads, without random numbers."""

import pytest
import torch
import torch.nn.functional as F
from oracle import leaves, needs_kernels

from vae_fast import _backend
from vae_fast.functional import linear_bernoulli_log_prob

pytestmark = needs_kernels
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def layer(batch=100, inputs=300, outputs=200):
    """Value and gradients of a linear layer, and whether oneDNN had a part in it."""
    torch.manual_seed(1)
    tensors = leaves([torch.randn(batch, inputs), torch.randn(outputs, inputs), torch.randn(outputs)])
    return profiled(lambda: _backend.C.linear(*tensors), tensors)


def head(rows=300):
    torch.manual_seed(1)
    tensors = leaves([torch.randn(rows, 200), torch.randn(200, 200) / 14.0, torch.randn(200)])
    x = torch.rand(rows, 200)
    return profiled(lambda: linear_bernoulli_log_prob(x, *tensors, reduction="mean"), tensors)


def profiled(f, tensors):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        out = f()
        grads = torch.autograd.grad(out.square().sum(), tensors)
    return [out.detach(), *grads], any("mkldnn" in e.key for e in profile.key_averages())


@needs_onednn
@pytest.mark.parametrize("work", [layer, head])
def test_the_slower_library_is_not_taken(work, timed_products):
    timed_products(blas=1.0, onednn=2.0)
    plain, by_onednn = work()
    assert not by_onednn
    timed_products(blas=2.0, onednn=1.0)
    other, by_onednn = work()
    assert by_onednn
    torch.testing.assert_close(other, plain, rtol=1e-3, atol=1e-3)


@needs_onednn
def test_where_both_are_as_fast_it_is_torchs_own(timed_products):
    timed_products(blas=1.0, onednn=0.98)
    assert not layer()[1]


def test_a_shape_is_tried_once_for_each_number_of_threads(timed_products):
    asked = timed_products(blas=1.0, onednn=2.0)
    layer()
    first = len(asked)
    assert first == 2 * 3  # forward, and the gradients of input and weight
    layer()
    assert len(asked) == first
    torch.set_num_threads(1)
    layer()
    assert len(asked) == 2 * first
    torch.set_num_threads(2)
    layer()
    assert len(asked) == 2 * first
    assert {name.split()[-2] for name, _ in asked} == {"1", "2"}


def test_sizes_within_an_eighth_share_a_choice(timed_products):
    asked = timed_products(blas=1.0, onednn=2.0)
    for batch in range(97, 105):
        layer(batch)
    assert len(asked) == 2 * 3
    layer(105)
    assert len(asked) == 2 * 2 * 3


def test_the_sum_over_rows_and_that_over_pixels_keep_the_error_that_is_promised(timed_products):
    """oneDNN is not even asked for a sum of more terms than it adds up well; over rows it is asked by pieces."""
    asked = timed_products(blas=2.0, onednn=1.0)
    tensors = leaves([torch.randn(300, 100), torch.randn(784, 100), torch.randn(784)])
    linear_bernoulli_log_prob(torch.rand(300, 784), *tensors, reduction="mean")
    assert sorted(name.split()[1] for name, library in asked if library == "onednn") == ["linear+bias", "sum"]


def test_the_clock_decides_and_takes_no_random_numbers():
    before = _backend.C.set_product_mode("auto")
    _backend.C.set_product_timer(None)
    try:
        x, w, b = torch.randn(128, 300), torch.randn(200, 300), torch.randn(200)
        state = torch.get_rng_state()
        first, second = _backend.C.linear(x, w, b), _backend.C.linear(x, w, b)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(first, second)
        torch.testing.assert_close(first, F.linear(x, w, b), rtol=1e-4, atol=1e-4)
    finally:
        _backend.C.set_product_mode(before)


def test_large_products_are_tried_in_part(timed_products):
    """A product of a minute would take minutes to try: the whole is within what the parts need."""
    _backend.C.set_product_timer(None)
    x, w = torch.randn(20_000, 784), torch.randn(500, 784)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        _backend.C.linear(x, w, None)
    rows = [e.input_shapes[0][0] for e in profile.events() if e.name in ("aten::mm", "mkldnn::_linear_pointwise")]
    assert rows.count(20_000) == 1
    assert max(r for r in rows if r != 20_000) < 2000


def test_deterministic_algorithms_are_torchs_own(timed_products):
    asked = timed_products(blas=2.0, onednn=1.0)
    torch.use_deterministic_algorithms(True)
    try:
        assert not layer()[1]
    finally:
        torch.use_deterministic_algorithms(False)
    assert asked == []


def test_a_runs_choices_come_before_the_processs(timed_products):
    timed_products(blas=1.0, onednn=2.0)
    run = _backend.C.ProductRun({})
    before = _backend.C.enter_product_run(run)
    layer()
    table = run.table()
    assert set(table.values()) == {"blas"} and len(table) == 3
    asked = timed_products(blas=2.0, onednn=1.0)
    _backend.C.enter_product_run(_backend.C.ProductRun(table))
    _, by_onednn = layer()
    _backend.C.enter_product_run(before)
    assert (by_onednn, asked) == (False, [])
    with pytest.raises(ValueError, match="'a' is 'mkl': expected 'blas' or 'onednn'"):
        _backend.C.ProductRun({"a": "mkl"})


@pytest.mark.parametrize("mode", ["blas", "onednn"])
@needs_onednn
def test_the_choice_can_be_fixed(mode, python):
    code = """
import torch, vae_fast
from vae_fast import _backend
with torch.profiler.profile() as profile:
    _backend.C.linear(torch.randn(100, 300), torch.randn(200, 300), None)
print(any("mkldnn" in e.key for e in profile.key_averages()))
"""
    assert python(code, VAE_FAST_PRODUCTS=mode).stdout.split()[-1] == str(mode == "onednn")


def test_another_word_is_refused(python):
    done = python("import vae_fast", check=False, VAE_FAST_PRODUCTS="mkl")
    assert "VAE_FAST_PRODUCTS='mkl': expected one of auto, blas, onednn" in done.stderr.splitlines()[-1]
    with pytest.raises(ValueError, match="expected one of auto, blas, onednn"):
        _backend.C.set_product_mode("mkl")
