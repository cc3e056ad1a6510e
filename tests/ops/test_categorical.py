"""Likelihoods over classes: categorical, multinomial (dense and CSR), and the last layer with it, against torch's own formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_refused, assert_within_contract, leaves, needs_kernels, value_and_grads
from torch.autograd import gradcheck, gradgradcheck

import vae_fast

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = [torch.uint8, torch.int16, torch.int32, torch.int64]


def categorical(x, logits, dim=-1, event_dim=1):
    shares = logits.log_softmax(dim).gather(dim, x.long().unsqueeze(dim)).squeeze(dim)
    return shares.sum(tuple(range(-event_dim, 0))) if event_dim else shares


def multinomial(x, logits):
    return torch.where(x == 0, 0.0, x * logits.log_softmax(-1)).sum(-1)


def counts_of(shape, dtype=torch.float64, device="cpu"):
    """Mostly zeros."""
    return (torch.randint(1, 6, shape) * (torch.rand(shape) < 0.2)).to(device, dtype)


def assert_gradient(grad, want, plain, slack):
    allowed = slack * (1 + want.abs()) + (0 if plain is None else 2 * (plain.double() - want).abs().amax() if want.numel() else 0)
    assert ((grad.double() - want).abs() <= allowed).all()


# --- one class per element --------------------------------------------------------------------------------------------

# Batch, event, classes, where the classes are among the dimensions of the logits.
PLACES = [
    ((0,), (3,), 4, -1),
    ((5,), (), 7, -1),
    ((1,), (1,), 1, -1),
    ((), (6,), 3, -1),
    ((4,), (9, 5), 256, -1),
    ((4,), (9, 5), 256, 1),
    ((2, 3), (7, 2, 5), 11, -3),
    ((3,), (300,), 5, 1),
    ((2,), (3,), 5000, -1),
    ((3,), (4, 1), 6, -2),
]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_values_and_gradients(place, device, backend):
    batch, event, classes, dim = place
    x = torch.randint(classes, (*batch, *event), device=device)
    full = (*batch, *event, classes)
    for dtype, slack in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        logits = torch.randn(full, dtype=dtype, device=device).mul_(3).movedim(-1, dim).contiguous()
        upstream = torch.randn(batch, dtype=dtype, device=device)
        value, [grad] = value_and_grads(lambda t: vae_fast.categorical_log_prob(x, t, dim=dim, event_dim=len(event)), [logits], upstream)
        assert (value.dtype, value.shape, grad.shape) == (dtype, batch, logits.shape)
        truth, [want] = value_and_grads(lambda t: categorical(x, t, dim, len(event)), [logits.double()], upstream)
        plain, [formula] = value_and_grads(lambda t: categorical(x, t, dim, len(event)), [logits], upstream)
        single = dtype == torch.float32
        assert_within_contract(value, truth, plain if single else None, slack)
        assert_gradient(grad, want, formula if single else None, slack)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("x_dtype", INTEGERS, ids=str)
def test_dtypes(x_dtype, dtype, device, backend):
    x = torch.randint(100, (4, 6), device=device).to(x_dtype)
    logits = torch.randn(4, 6, 100, device=device).to(dtype)
    value, [grad] = value_and_grads(lambda t: vae_fast.categorical_log_prob(x, t), [logits])
    truth, [want] = value_and_grads(lambda t: categorical(x, t), [logits.double()])
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_within_contract(value, truth, slack=1e-6)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad.double(), want, rtol=0.51 * torch.finfo(dtype).eps + 1e-6, atol=2e-7)


@pytest.mark.parametrize("size", [1e4, -1e4, 3e38])
def test_large_logits(size, device, backend):
    """Exact: l[x] - log sum e^l of logits that no float32 exponential holds."""
    logits = torch.zeros(1, 3, 4, device=device)
    logits[..., 1] = size
    x = torch.tensor([[0, 1, 2]], device=device)
    value, [grad] = value_and_grads(lambda t: vae_fast.categorical_log_prob(x, t, event_dim=0), [logits])
    truth = categorical(x, logits.double(), event_dim=0)
    torch.testing.assert_close(value.double(), truth, rtol=1e-6, atol=1e-7)
    assert grad.isfinite().all()
    one_hot = F.one_hot(x, 4) - logits.double().softmax(-1)
    torch.testing.assert_close(grad.double(), one_hot, rtol=1e-6, atol=1e-7)


def test_classes_of_probability_zero(device, backend):
    logits = torch.randn(2, 4, 5, device=device)
    logits[..., 2] = -math.inf
    x = torch.tensor([[0, 1, 3, 4], [0, 1, 2, 4]], device=device)
    value, [grad] = value_and_grads(lambda t: vae_fast.categorical_log_prob(x, t), [logits])
    kept = logits[0][:, [0, 1, 3, 4]]
    torch.testing.assert_close(value[0], categorical(torch.arange(4, device=device), kept))
    assert value[1] == -math.inf
    assert grad[0].isfinite().all()
    assert not grad[0, :, 2].any()


@pytest.mark.parametrize("dim", [-1, -2])
def test_nan_stays_in_its_row(dim, device, backend):
    logits = torch.randn(4, 3, 5, device=device)
    x = torch.randint(3, (4, 3 if dim == -1 else 5), device=device)
    clean, [clean_grad] = value_and_grads(lambda t: vae_fast.categorical_log_prob(x, t, dim=dim), [logits])
    logits[2, 1, 1] = math.nan
    value, [grad] = value_and_grads(lambda t: vae_fast.categorical_log_prob(x, t, dim=dim), [logits])
    others = [0, 1, 3]
    assert value[2].isnan()
    assert torch.equal(value[others], clean[others])
    assert torch.equal(grad[others], clean_grad[others])


@pytest.mark.parametrize(("x_batch", "batch"), [((2, 3), (3,)), ((3,), (2, 3)), ((), (4,)), ((2, 1), (1, 3))], ids=str)
@pytest.mark.parametrize("dim", [-1, -2])
def test_batch_dimensions_broadcast(dim, x_batch, batch, device, backend):
    x = torch.randint(6, (*x_batch, 4), device=device)
    logits = torch.randn(*batch, 4, 6, dtype=torch.float64, device=device).movedim(-1, dim)
    wide = torch.broadcast_shapes(x_batch, batch)
    upstream = torch.randn(wide, dtype=torch.float64, device=device)
    value, [grad] = value_and_grads(lambda t: vae_fast.categorical_log_prob(x, t, dim=dim), [logits], upstream)
    truth, [want] = value_and_grads(lambda t: categorical(x.expand(*wide, 4), t.expand(*wide, *t.shape[-2:]), dim), [logits], upstream)
    torch.testing.assert_close(value, truth, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dim", [-1, 1])
def test_memory_layouts(dim, device, backend):
    x = torch.randint(6, (3, 4, 5), device=device)
    logits = torch.randn(3, 4, 5, 6, device=device).movedim(-1, dim)
    want = categorical(x, logits, dim, 2)
    for t in (logits, logits.contiguous(), logits.contiguous(memory_format=torch.channels_last), logits.repeat_interleave(2, 0)[::2]):
        torch.testing.assert_close(vae_fast.categorical_log_prob(x, t, dim=dim, event_dim=2), want, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(
        vae_fast.categorical_log_prob(x.mT.contiguous().mT, logits, dim=dim, event_dim=2), want, rtol=1e-6, atol=1e-5
    )


@pytest.mark.parametrize("dim", [-1, -2])
def test_gradcheck(dim, device, backend):
    x = torch.tensor([[0, 2, 1]], device=device)
    logits = torch.randn(1, 3, 4, dtype=torch.float64, device=device).movedim(-1, dim)
    assert gradcheck(lambda t: vae_fast.categorical_log_prob(x, t, dim=dim), leaves([logits]))
    assert gradgradcheck(lambda t: vae_fast.categorical_log_prob(x, t, dim=dim), leaves([logits]))


@pytest.mark.parametrize("bad", [-1, 5, 2**40])
def test_an_index_out_of_range_is_refused(bad, device, backend):
    x = torch.zeros(2, 3, dtype=torch.int64, device=device)
    x[1, 2] = bad
    check_data = {"check_data": True} if device == "cuda" else {}
    words = [f"x holds {bad}", "class indices from 0 to 4"]
    last, first = torch.zeros(2, 3, 5, device=device), torch.zeros(2, 5, 3, device=device)
    assert_refused(lambda: vae_fast.categorical_log_prob(x, last, **check_data), ValueError, words)
    assert_refused(lambda: vae_fast.categorical_log_prob(x, first, dim=-2, **check_data), ValueError, words)


@pytest.mark.cuda
@needs_kernels
@pytest.mark.parametrize("dim", [-1, -2])
@pytest.mark.parametrize("bad", [-1, 6, 2**40])
def test_an_index_out_of_range_on_a_gpu_is_nan(bad, dim):
    """Nothing waits there to refuse it: its sample is NaN, and of the gradient its element; nothing else is."""
    x = torch.randint(6, (3, 4), device="cuda")
    x[1, 2] = bad
    logits = torch.randn(3, 4, 6, device="cuda").movedim(-1, dim)
    value, [grad] = value_and_grads(lambda t: vae_fast.categorical_log_prob(x, t, dim=dim), [logits])
    assert value.isnan().tolist() == [False, True, False]
    wanted = torch.zeros(3, 4, 6, dtype=torch.bool)
    wanted[1, 2] = True
    assert torch.equal(grad.movedim(dim, -1).isnan().cpu(), wanted)


@pytest.mark.cuda
@needs_kernels
def test_damaged_csr_on_a_gpu_is_nan():
    begin, column = torch.tensor([0, 2, 3, 5, 9], device="cuda"), torch.tensor([3, 1, 7, 0, 0, 2], device="cuda")
    counts = torch.arange(1.0, 7.0, device="cuda")
    with torch.sparse.check_sparse_tensor_invariants(False):
        x = torch.sparse_csr_tensor(begin, column, counts, (4, 5))
    logits = torch.randn(4, 5, device="cuda")
    value, [grad] = value_and_grads(lambda t: vae_fast.multinomial_log_prob(x, t), [logits])
    dense = torch.tensor([[0, 2, 0, 1, 0], [0, 0, 0, 0, 0], [9, 0, 0, 0, 0], [0, 0, 0, 0, 0]], device="cuda", dtype=torch.float32)
    want, [want_grad] = value_and_grads(lambda t: vae_fast.multinomial_log_prob(dense, t), [logits])
    for row in (0, 2):  # out of order, and one column twice
        torch.testing.assert_close(value[row], want[row], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(grad[row], want_grad[row], rtol=1e-6, atol=1e-6)
    assert value[[1, 3]].isnan().all()
    assert grad[[1, 3]].isnan().all()


# --- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (5,), (7, 20), (2, 3, 1500), (3, 5000)], ids=str)
def test_counts(shape, device, backend):
    for dtype, slack in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        tensors = [counts_of(shape, dtype, device), torch.randn(shape, dtype=dtype, device=device) * 3]
        upstream = torch.randn(shape[:-1], dtype=dtype, device=device)
        value, grads = value_and_grads(vae_fast.multinomial_log_prob, tensors, upstream)
        exact = [t.double() for t in tensors]
        truth, [_, want] = value_and_grads(multinomial, exact, upstream)
        plain, [_, formula] = value_and_grads(multinomial, tensors, upstream)
        single = dtype == torch.float32
        assert_within_contract(value, truth, plain if single else None, slack)
        assert_gradient(grads[1], want, formula if single else None, slack)
        want_x = upstream.double().unsqueeze(-1) * exact[1].log_softmax(-1)
        torch.testing.assert_close(grads[0].double(), want_x, rtol=1e-6 if single else 1e-12, atol=1e-6 if single else 1e-12)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, torch.int8, torch.bool], ids=str)
def test_dtypes_of_counts(dtype, device, backend):
    x, logits = counts_of((6, 30), device=device).to(dtype), torch.randn(6, 30, device=device)
    value = vae_fast.multinomial_log_prob(x, logits)
    torch.testing.assert_close(value.double(), multinomial(x.double(), logits.double()), rtol=1e-6, atol=1e-5)
    csr = vae_fast.multinomial_log_prob(x.to_sparse_csr(), logits)
    torch.testing.assert_close(csr.double(), multinomial(x.double(), logits.double()), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_sparse_counts_are_dense_counts(dtype, device, backend):
    x, logits = counts_of((9, 2500), torch.float32, device), torch.randn(9, 2500, device=device).to(dtype)
    x[4] = 0  # an empty row
    upstream = torch.randn(9, device=device)
    value, [grad] = value_and_grads(lambda t: vae_fast.multinomial_log_prob(x.to_sparse_csr(), t), [logits], upstream)
    want, [want_grad] = value_and_grads(lambda t: vae_fast.multinomial_log_prob(x, t), [logits], upstream)
    torch.testing.assert_close(value, want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad, want_grad, rtol=1e-6 + torch.finfo(dtype).eps, atol=1e-6)
    assert value[4] == 0.0
    assert not grad[4].any()


def test_the_coefficient_is_that_of_torch(device, backend):
    x, logits = counts_of((6, 30), device=device), torch.randn(6, 30, dtype=torch.float64, device=device)
    want = torch.stack([torch.distributions.Multinomial(int(r.sum()), logits=row).log_prob(r) for r, row in zip(x, logits, strict=True)])
    for form in (x, x.to_sparse_csr(), x.long()):
        torch.testing.assert_close(vae_fast.multinomial_log_prob(form, logits, coefficient=True), want)


def test_counts_of_nothing_need_no_probability(device, backend):
    x = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]], device=device)
    logits = torch.tensor([[0.0, -math.inf, 1e4], [0.0, -math.inf, 1.0]], device=device)
    value, [grad] = value_and_grads(lambda t: vae_fast.multinomial_log_prob(x, t), [logits])
    assert value.tolist() == [pytest.approx(-2e4), -math.inf]
    assert not grad.isnan().any()


def test_gradcheck_of_counts(device, backend):
    x, logits = counts_of((3, 5), device=device), torch.randn(3, 5, dtype=torch.float64, device=device)
    assert gradcheck(vae_fast.multinomial_log_prob, leaves([x, logits]))
    assert gradgradcheck(vae_fast.multinomial_log_prob, leaves([x, logits]))
    csr = x.to_sparse_csr()
    assert gradcheck(lambda t: vae_fast.multinomial_log_prob(csr, t), leaves([logits]))
    assert gradgradcheck(lambda t: vae_fast.multinomial_log_prob(csr, t), leaves([logits]))


# --- the last layer with it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("batch", [(5,), (3, 5)], ids=str)
def test_the_last_layer(batch, sparse, biased, reduction, device, backend):
    x = counts_of((5, 40), device=device)
    tensors = [torch.randn(*batch, 6), torch.randn(40, 6), *([torch.randn(40)] if biased else [])]
    tensors = [t.to(device, torch.float64) for t in tensors]
    upstream = torch.randn(batch if reduction == "none" else (), dtype=torch.float64, device=device)

    def plain(h, *w):
        rows = multinomial(x, F.linear(h, *w))
        return rows if reduction == "none" else rows.mean() if reduction == "mean" else rows.sum()

    given = x.to_sparse_csr() if sparse else x
    value, grads = value_and_grads(lambda *t: vae_fast.linear_multinomial_log_prob(given, *t, reduction=reduction), tensors, upstream)
    truth, want = value_and_grads(plain, tensors, upstream)
    torch.testing.assert_close(value, truth, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(grads, want, rtol=1e-10, atol=1e-10)
    with_coefficient = vae_fast.linear_multinomial_log_prob(given, *tensors, coefficient=True)
    added = vae_fast.multinomial_log_prob(x, F.linear(*tensors), coefficient=True)
    torch.testing.assert_close(with_coefficient, added, rtol=1e-11, atol=1e-11)


def test_the_last_layer_in_many_chunks(device, backend):
    """More rows than one chunk holds, and counts as bytes."""
    x = counts_of((300, 15_000), torch.uint8, device)
    h, weight = torch.randn(300, 8, device=device), torch.randn(15_000, 8, device=device)
    value, grads = value_and_grads(lambda *t: vae_fast.linear_multinomial_log_prob(x, *t), [h, weight])
    csr, csr_grads = value_and_grads(lambda *t: vae_fast.linear_multinomial_log_prob(x.to_sparse_csr(), *t), [h, weight])
    truth, want = value_and_grads(lambda h, w: multinomial(x.double(), F.linear(h, w)), [h.double(), weight.double()])
    for got, got_grads in ((value, grads), (csr, csr_grads)):
        assert_within_contract(got, truth, slack=3e-6)
        for g, w in zip(got_grads, want, strict=True):
            torch.testing.assert_close(g.double(), w, rtol=1e-4, atol=1e-5 * w.abs().max().item())


def test_gradcheck_of_the_last_layer(device, backend):
    x = counts_of((3, 5), device=device)
    tensors = leaves([torch.randn(s, dtype=torch.float64, device=device) for s in ((3, 2), (5, 2), (5,))])
    for form in (x, x.to_sparse_csr()):
        assert gradcheck(lambda *t: vae_fast.linear_multinomial_log_prob(form, *t), tensors)  # noqa: B023
        assert gradgradcheck(lambda *t: vae_fast.linear_multinomial_log_prob(form, *t), tensors)  # noqa: B023


# --- transforms -------------------------------------------------------------------------------------------------------


def test_vmap(device, backend):
    x, logits = torch.randint(5, (4, 3), device=device), torch.randn(4, 3, 5, dtype=torch.float64, device=device)
    f = vae_fast.categorical_log_prob
    torch.testing.assert_close(torch.vmap(f)(x, logits), f(x, logits))
    counts = counts_of((4, 3, 5), device=device)
    torch.testing.assert_close(torch.vmap(vae_fast.multinomial_log_prob)(counts, logits), vae_fast.multinomial_log_prob(counts, logits))


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled(compiler, device):
    x, counts = torch.randint(5, (4, 3), device=device), counts_of((4, 5), torch.float32, device)
    begin, column, entries = (getattr(counts.to_sparse_csr(), part)().clone() for part in ("crow_indices", "col_indices", "values"))

    def f(t):
        sparse = torch.ops.vae_fast.softmax(entries, t[:, 0], begin, column, -1, 1)
        return vae_fast.categorical_log_prob(x, t * 2) + 3 * vae_fast.multinomial_log_prob(counts, t[:, 1]) + sparse

    logits = torch.randn(4, 3, 5, device=device)
    value, [grad] = value_and_grads(torch.compile(f, fullgraph=True, backend=compiler), [logits])
    want, [want_grad] = value_and_grads(f, [logits])
    torch.testing.assert_close(value, want, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(grad, want_grad, rtol=2e-6, atol=2e-6)


# --- what is refused --------------------------------------------------------------------------------------------------

X, L, N = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, 5), torch.zeros(2, 5)
BAD_CSR = torch.sparse_csr_tensor(torch.tensor([0, 1, 2]), torch.tensor([0, 4]), torch.ones(2), (2, 5))
REFUSED = {
    "float x": (lambda: vae_fast.categorical_log_prob(X.float(), L), TypeError, ["x has dtype float32", "int64"]),
    "integer logits": (lambda: vae_fast.categorical_log_prob(X, L.long()), TypeError, ["logits has dtype int64"]),
    "event": (lambda: vae_fast.categorical_log_prob(X[:, :2], L), ValueError, ["x has shape (2, 2)", "logits has shape (2, 3, 5)"]),
    "dim": (lambda: vae_fast.categorical_log_prob(X, L, dim=0), ValueError, ["dim=0", "last 2 dimensions of logits", "(2, 3, 5)"]),
    "dim real": (lambda: vae_fast.categorical_log_prob(X, L, dim=1.0), TypeError, ["dim=1.0", "got float"]),
    "event_dim": (lambda: vae_fast.categorical_log_prob(X, L, event_dim=3), ValueError, ["event_dim=3", "0 to 2"]),
    "too few": (lambda: vae_fast.categorical_log_prob(X, L[0, 0]), ValueError, ["logits has shape (5,)", "at least 2 dimensions"]),
    "no classes": (lambda: vae_fast.categorical_log_prob(X, L[..., :0]), ValueError, ["at least one class"]),
    "batch": (lambda: vae_fast.categorical_log_prob(X, torch.zeros(3, 3, 5)), ValueError, ["batch dimensions", "x has shape (2,)"]),
    "device": (lambda: vae_fast.categorical_log_prob(X.to("meta"), L), ValueError, ["x is on meta"]),
    "counts": (lambda: vae_fast.multinomial_log_prob(N[:, :4], N), ValueError, ["x has shape (2, 4)", "same last dimension"]),
    "no counts": (lambda: vae_fast.multinomial_log_prob(N[:, :0], N[:, :0]), ValueError, ["at least 1"]),
    "csr shape": (lambda: vae_fast.multinomial_log_prob(BAD_CSR, N[:1]), ValueError, ["x is sparse and has shape (2, 5)", "x.to_dense()"]),
    "csr of h": (
        lambda: vae_fast.linear_multinomial_log_prob(BAD_CSR, torch.zeros(3, 4), torch.zeros(5, 4)),
        ValueError,
        ["x has shape (2,)", "h has shape (3,)"],
    ),
    "csr gradient": (
        lambda: vae_fast.multinomial_log_prob(N.clone().to_sparse_csr().requires_grad_(), N),
        ValueError,
        ["x is sparse and requires a gradient"],
    ),
    "coo": (lambda: vae_fast.multinomial_log_prob(N.to_sparse(), N), TypeError, ["x has layout torch.sparse_coo"]),
    "coefficient": (lambda: vae_fast.multinomial_log_prob(N, N, coefficient=1), TypeError, ["coefficient=1"]),
    "negative": (lambda: vae_fast.multinomial_log_prob(N - 1, N, check_data=True), ValueError, ["x[0, 0] = -1.0", "at least 0"]),
    "infinite": (lambda: vae_fast.categorical_log_prob(X, L + math.inf, check_data=True), ValueError, ["logits[0, 0, 0] = inf"]),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused(case, backend):
    assert_refused(*case)


@needs_kernels
@pytest.mark.parametrize(("begin", "column", "words"), [
    ([0, 1, 2], [0, 7], ["column 7", "0 to 4"]),
    ([0, 2, 2], [3, 1], ["column 1", "ascending"]),
    ([0, 1, 1], [0, 1], ["go from 0 to 1", "from 0 to 2"]),
    ([0, 3, 2], [0, 1], ["row pointers in ascending order"]),
])  # fmt: skip
def test_damaged_csr_is_refused(begin, column, words):
    """By the kernels: they would read and write outside of the tensors."""
    with torch.sparse.check_sparse_tensor_invariants(False):
        x = torch.sparse_csr_tensor(torch.tensor(begin), torch.tensor(column), torch.ones(2), (2, 5))
    for f in (vae_fast.multinomial_log_prob, vae_fast.poisson_log_prob):
        assert_refused(lambda f=f: f(x, torch.ones(2, 5)), ValueError, words)
    assert_refused(lambda: vae_fast.linear_multinomial_log_prob(x, torch.ones(2, 3), torch.ones(5, 3)), ValueError, words)
