"""The sums of an M-step: against explicit sums in float64, and as the parts that the gradients are made of."""

import math

import pytest
import torch
from mixtures import COVARIANCES, assert_gradient_within_contract, gradient_errors, log_prob, problem, responsibilities
from oracle import leaves, needs_kernels, value_and_grads
from test_mixture_gradients import peak_growth

import vae_fast

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SIZES = [(0, 3, 5), (1, 1, 1), (1000, 17, 3), (65, 300, 2), (300, 5, 17), (70, 2, 64), (30_001, 3, 2), (300, 5, 8), (90, 6, 256)]


def explicit(x, logits, means, scale, covariance_type, q=None, weight=None):
    """Counts, first and second moments about the means, by the definition."""
    rows = x.reshape(-1, x.shape[-1])
    q = (responsibilities(x, logits, means, scale, covariance_type) if q is None else q).reshape(len(rows), len(means))
    q = q if weight is None else q * weight.reshape(-1, 1)
    second = []
    first = torch.stack([q[:, k] @ (rows - means[k]) for k in range(len(means))])
    for k in range(len(means)):
        delta = rows - means[k]
        outer = (q[:, k, None] * delta).mT @ delta
        second.append({"diag": outer.diagonal(), "spherical": outer.trace()}.get(covariance_type, outer))
    second = torch.stack(second)
    return q.sum(0), first, second.sum(0) if covariance_type == "tied" else second


def assert_sums(got, want, slack):
    for name, g, w in zip(("counts", "first", "second"), got[1:], want, strict=True):
        norm, worst = gradient_errors(g, w)
        assert max(norm, worst) <= slack, f"{name}: relative error {max(norm, worst):.3g}"


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_float64_sums(covariance_type, size, device, backend):
    tensors = problem(*size, covariance_type, device=device)
    found = vae_fast.mixture_statistics(*tensors, covariance_type=covariance_type)
    assert isinstance(found, vae_fast.MixtureStatistics)
    assert found._fields == ("log_prob", "counts", "first", "second")
    torch.testing.assert_close(found.log_prob, log_prob(*tensors, covariance_type), rtol=1e-12, atol=1e-12)
    assert_sums(found, explicit(*tensors, covariance_type), 1e-11)
    n, k, d = size
    shapes = {"diag": (k, d), "spherical": (k,), "tied": (d, d), "full": (k, d, d)}
    assert [tuple(t.shape) for t in found] == [(n,), (k,), (k, d), shapes[covariance_type]]
    assert found.counts.sum().item() == pytest.approx(n)
    if covariance_type in ("tied", "full"):
        torch.testing.assert_close(found.second, found.second.mT, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("offset", [0.0, 100.0, 1000.0])
@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_float32_sums(covariance_type, offset, device, backend):
    for size in ((5000, 5, 3), (300, 17, 16)):
        tensors = problem(*size, covariance_type, torch.float32, device, offset)
        found = vae_fast.mixture_statistics(*tensors, covariance_type=covariance_type)
        assert {t.dtype for t in found} == {torch.float32}
        want = explicit(*(t.double() for t in tensors), covariance_type)
        plain = explicit(*tensors, covariance_type)
        if backend == "compiled":
            for got, formula, true in zip(found[1:], plain, want, strict=True):
                assert_gradient_within_contract(got, true, formula)
        else:
            assert_sums(found, want, 2e-5)
        assert torch.equal(found.log_prob, vae_fast.mixture_log_prob(*tensors, covariance_type=covariance_type))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_given_responsibilities(covariance_type, dtype, weighted, device, backend):
    """Any non-negative numbers, of any dtype and layout; weights and scale then do not matter."""
    x, logits, means, scale = problem((13, 10), 7, 3, covariance_type, torch.float32, device)
    q = torch.rand(7, 13, 10, device=device).to(dtype).permute(1, 2, 0)
    weight = torch.rand(10, 13, device=device).to(dtype).T if weighted else None
    options = {"covariance_type": covariance_type, "responsibilities": q, "sample_weight": weight}
    found = vae_fast.mixture_statistics(x, logits, means, scale, **options)
    assert found.log_prob is None
    assert {t.dtype for t in found[1:]} == {torch.float32}
    wide = [t.double() for t in (x, logits, means, scale)]
    want = explicit(*wide, covariance_type, q.double(), weight.double() if weighted else None)
    assert_sums(found, want, 2e-6)
    nonsense = [x, torch.full_like(logits, math.nan), means, torch.full_like(scale, math.nan)]
    other = vae_fast.mixture_statistics(*nonsense, **options)
    assert all(torch.equal(a, b) for a, b in zip(other[1:], found[1:], strict=True))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_sample_weights(covariance_type, dtype, device, backend):
    tensors = problem((41, 5), 4, 3, covariance_type, device=device)
    weight = torch.rand(41, 5, device=device).to(dtype)
    weight[::4] = 0.0
    found = vae_fast.mixture_statistics(*tensors, covariance_type=covariance_type, sample_weight=weight)
    assert_sums(found, explicit(*tensors, covariance_type, weight=weight.double()), 1e-11)
    assert found.log_prob.shape == (41, 5)
    torch.testing.assert_close(found.log_prob, log_prob(*tensors, covariance_type))  # a weight is no part of the density
    twice = vae_fast.mixture_statistics(*tensors, covariance_type=covariance_type, sample_weight=torch.full_like(weight, 2.0))
    once = vae_fast.mixture_statistics(*tensors, covariance_type=covariance_type)
    torch.testing.assert_close(twice[1:], tuple(2 * t for t in once[1:]), rtol=1e-12, atol=0)


def test_hard_assignments_are_means_of_groups(device, backend):
    x = torch.randn(300, 3, device=device)
    which = torch.randint(4, (300,), device=device)
    q = torch.nn.functional.one_hot(which, 5).float()  # the fifth group is empty
    means = torch.randn(5, 3, device=device)
    zero = torch.zeros(5, device=device)
    found = vae_fast.mixture_statistics(x, zero, means, zero, covariance_type="spherical", responsibilities=q)
    assert torch.equal(found.counts, which.bincount(minlength=5).float())
    assert not found.first[4].any()
    assert found.second[4] == 0
    for k in range(4):
        torch.testing.assert_close(means[k] + found.first[k] / found.counts[k], x[which == k].mean(0), rtol=1e-5, atol=1e-6)


# --- what they are for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_gradients_are_made_of_the_sums(covariance_type, weighted, device, backend):
    """d mu = Sigma^-1 first, d logits = counts - w N, and the same for scales and factors; sample weights are upstream gradients."""
    x, logits, means, scale = problem(200, 4, 3, covariance_type, device=device)
    weight = torch.rand(200, dtype=torch.float64, device=device) if weighted else None
    s = vae_fast.mixture_statistics(x, logits, means, scale, covariance_type=covariance_type, sample_weight=weight)

    def f(*t):
        return vae_fast.mixture_log_prob(x, *t, covariance_type=covariance_type)

    d_logits, d_means, d_scale = value_and_grads(f, [logits, means, scale], weight)[1]
    n = 200 if weight is None else weight.sum()
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(d_logits, s.counts - logits.softmax(0) * n, **close)
    if covariance_type in ("diag", "spherical"):
        variance = (2 * scale).exp()
        torch.testing.assert_close(d_means, s.first / (variance if covariance_type == "diag" else variance[:, None]), **close)
        counts = s.counts[:, None] if covariance_type == "diag" else 3 * s.counts
        torch.testing.assert_close(d_scale, s.second / variance - counts, **close)
    else:
        p = scale.triu()
        torch.testing.assert_close(d_means, (p @ p.mT @ s.first[..., None]).squeeze(-1), **close)
        counts = s.counts.sum() if covariance_type == "tied" else s.counts[:, None]
        diagonal = (counts / p.diagonal(dim1=-2, dim2=-1)).diag_embed()
        torch.testing.assert_close(d_scale, diagonal - (s.second @ p).triu(), **close)


@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_expectation_maximisation_raises_the_likelihood(covariance_type, device, backend):
    x, logits, means, scale = problem(500, 3, 2, covariance_type, device=device)
    x = x * torch.tensor([3.0, 0.5], dtype=torch.float64, device=device)
    before = -math.inf
    for _ in range(8):
        s = vae_fast.mixture_statistics(x, logits, means, scale, covariance_type=covariance_type)
        level = s.log_prob.sum().item()
        assert level > before
        before = level
        shift = s.first / s.counts[:, None]
        logits, means = (s.counts / s.counts.sum()).log(), means + shift
        if covariance_type == "diag":
            scale = 0.5 * (s.second / s.counts[:, None] - shift**2).log()
        elif covariance_type == "spherical":
            scale = 0.5 * ((s.second / s.counts - shift.square().sum(-1)) / 2).log()
        else:
            outer = shift[:, :, None] * shift[:, None]
            tied = covariance_type == "tied"
            count = s.counts[:, None, None]
            covariance = (s.second - (count * outer).sum(0)) / len(x) if tied else s.second / count - outer
            scale = torch.linalg.inv(torch.linalg.cholesky(covariance)).mT


@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_nothing_is_differentiable(covariance_type, device, backend):
    tensors = leaves(problem(9, 3, 2, covariance_type, device=device))
    q = torch.rand(9, 3, dtype=torch.float64, device=device, requires_grad=True)
    weight = torch.rand(9, dtype=torch.float64, device=device, requires_grad=True)
    for given in (None, q):
        options = {"covariance_type": covariance_type, "responsibilities": given, "sample_weight": weight}
        found = vae_fast.mixture_statistics(*tensors, **options)
        assert not any(t is not None and t.requires_grad for t in found)


def test_float64_of_any_argument_makes_float64(device, backend):
    tensors = problem(9, 3, 2, dtype=torch.float32, device=device)
    for i in range(4):
        mixed = [t.double() if j == i else t for j, t in enumerate(tensors)]
        assert {t.dtype for t in vae_fast.mixture_statistics(*mixed)} == {torch.float64}
    for i in range(4):
        halves = [t.bfloat16() if j == i else t for j, t in enumerate(tensors)]
        assert {t.dtype for t in vae_fast.mixture_statistics(*halves)} == {torch.float32}


@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_rows_that_nothing_explains_add_nothing(covariance_type, device, backend):
    x, logits, means, scale = problem(20, 3, 2, covariance_type, torch.float32, device)
    want = vae_fast.mixture_statistics(x[1:], logits, means, scale, covariance_type=covariance_type)
    x[0] = 1e30
    found = vae_fast.mixture_statistics(x, logits, means, scale, covariance_type=covariance_type)
    assert found.log_prob[0] == -math.inf
    torch.testing.assert_close(found[1:], want[1:], rtol=2e-6, atol=2e-6)


@needs_kernels
@pytest.mark.parametrize(("n", "k", "d", "most"), [(2000, 65_536, 4, 256), (2000, 8, 4096, 64)], ids=str)
def test_many_components_and_many_dimensions(n, k, d, most, device):
    """Memory of N + K D numbers, in MiB: N x K would be 500 of them, N x K x D 250."""
    tensors = problem(n, k, d, "diag", torch.float32, device)
    vae_fast.mixture_statistics(tensors[0][:50], *tensors[1:])
    found = []
    grown = peak_growth(lambda: found.append(vae_fast.mixture_statistics(*tensors)), device)
    assert grown < most << 20, f"{grown / 2**20:.0f} MiB"
    some = [tensors[0][:20].double(), *(t.double() for t in tensors[1:])]
    torch.testing.assert_close(found[0].log_prob[:20].double(), log_prob(*some, "diag"), rtol=1e-5, atol=1e-4)
    assert found[0].counts.double().sum().item() == pytest.approx(n, rel=1e-4)
