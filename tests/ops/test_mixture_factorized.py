"""Mixtures of each dimension by itself, and weights of each sample: values, gradients, memory, threads, and what is refused."""

import functools
import itertools

import pytest
import torch
from mixtures import LOG_2PI, assert_gradients_within_contract, problem
from oracle import assert_refused, assert_within_contract, leaves, needs_kernels, value_and_grads
from test_layouts import LAYOUTS
from test_mixture_gradients import peak_growth
from test_mixture_threads import flat, same_bits
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap
from torch.utils.checkpoint import checkpoint

import vae_fast
from vae_fast import mixture_log_prob
from vae_fast.functional import _row_chunks

DIAGONAL = ("diag", "spherical")
ALL = (*DIAGONAL, "tied", "full")
NAMES = ("x", "weight_logits", "means", "scale")


def plain(x, logits, means, scale, factorized):
    """In the words of the formula, on N x K x D."""
    log_s = scale if scale.ndim == 2 else scale[:, None].expand_as(means)
    each = -0.5 * ((x.unsqueeze(-2) - means) / log_s.exp()) ** 2 - log_s - 0.5 * LOG_2PI
    w = logits.log_softmax(-1)
    joint, product = (w + each.sum(-1)).logsumexp(-1), (w.unsqueeze(-1) + each).logsumexp(-2).sum(-1)
    return {False: joint, True: product, "both": torch.stack([joint, product])}[factorized]


def ours(x, logits, means, scale, factorized, covariance_type="diag"):
    value = mixture_log_prob(x, logits, means, scale, covariance_type=covariance_type, factorized=factorized)
    return torch.stack(value) if factorized == "both" else value


def case(n, k, d, covariance_type="diag", by_row=False, dtype=torch.float64, device="cpu", offset=0.0):
    batch = (n,) if isinstance(n, int) else n
    tensors = problem(batch, k, d, covariance_type, torch.float64, device, offset)
    if by_row:
        tensors[1] = torch.randn(*batch, k, dtype=torch.float64, device=device)
    return [t.to(dtype) for t in tensors]


WHAT = [(c, f, r) for c in DIAGONAL for f in (False, True, "both") for r in (False, True) if f or r]
CASES = pytest.mark.parametrize(("covariance_type", "factorized", "by_row"), WHAT, ids=str)
SIZES = [
    (1, 2, 3, 0.0),
    (300, 17, 5, 0.0),
    (65, 200, 3, 0.0),
    (90, 8, 16, 100.0),
    (40, 3, 130, 0.0),
    (3001, 3, 2, 0.0),
    (7, 1, 1, 0.0),
    (700, 300, 2, 0.0),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@CASES
def test_values_and_gradients(covariance_type, factorized, by_row, size, device, backend):
    *shape, offset = size
    f = functools.partial(ours, factorized=factorized, covariance_type=covariance_type)
    formula = functools.partial(plain, factorized=factorized)
    wide = case(*shape, covariance_type, by_row, device=device, offset=offset)
    upstream = torch.randn_like(formula(*wide))
    value, grads = value_and_grads(f, wide, upstream)
    want, want_grads = value_and_grads(formula, wide, upstream)
    torch.testing.assert_close(value, want, rtol=1e-12, atol=1e-12)
    for g, w in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-11 * max(1.0, w.abs().max().item()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("far", [9.0, 12.0, 15.0, 40.0, 1e4])
@CASES
def test_a_row_far_from_every_component_among_others(covariance_type, factorized, by_row, far, dtype, device, backend):
    """Its terms are out of range where no shift is taken from their exponents; those of the rows beside it are not."""
    wide = case(300, 5, 3, covariance_type, by_row, device=device)
    wide[3] = 0.1 * wide[3]
    wide[0][7] = far + wide[2].max()
    wide[0][9, 1] = -far + wide[2].min()
    narrow = [t.to(dtype) for t in wide]
    wide = [t.double() for t in narrow]
    f = functools.partial(ours, factorized=factorized, covariance_type=covariance_type)
    formula = functools.partial(plain, factorized=factorized)
    upstream = torch.randn_like(formula(*wide))
    value, grads = value_and_grads(f, narrow, upstream.to(dtype))
    want, want_grads = value_and_grads(formula, wide, upstream)
    rtol = 1e-12 if dtype == torch.float64 else 3e-6
    torch.testing.assert_close(value.double(), want, rtol=rtol, atol=rtol)
    for g, w in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(g.double(), w, rtol=100 * rtol, atol=10 * rtol * max(1.0, w.abs().max().item()))


@pytest.mark.parametrize("size", SIZES, ids=str)
@CASES
@needs_kernels
def test_float32_is_within_the_contract(covariance_type, factorized, by_row, size, device):
    *shape, offset = size
    f = functools.partial(ours, factorized=factorized, covariance_type=covariance_type)
    formula = functools.partial(plain, factorized=factorized)
    rounds = []
    for _ in range(12 if shape[0] * shape[1] < 1000 else 3):
        narrow = case(*shape, covariance_type, by_row, torch.float32, device, offset)
        upstream = torch.randn_like(formula(*narrow))
        value, grads = value_and_grads(f, narrow, upstream)
        by_formula, formula_grads = value_and_grads(formula, narrow, upstream)
        truth, true_grads = value_and_grads(formula, [t.double() for t in narrow], upstream.double())
        assert value.dtype == torch.float32
        assert_within_contract(value, truth, by_formula)
        rounds.append((grads, formula_grads, true_grads))
    for i, name in enumerate(NAMES):
        got, formula_got, true = ([g[i] for g in kind] for kind in zip(*rounds, strict=True))
        if name == "weight_logits" and shape[1] == 1:
            assert max(g.abs().max().item() for g in got) < 1e-5  # a weight of one whatever its logit is
        else:
            assert_gradients_within_contract(got, true, formula_got, what=name)


@CASES
def test_gradcheck(covariance_type, factorized, by_row, device, backend):
    f = functools.partial(ours, factorized=factorized, covariance_type=covariance_type)
    for n, k, d in ((2, 3, 2), (3, 1, 2), (2, 2, 1)):
        tensors = leaves(case(n, k, d, covariance_type, by_row, device=device))
        assert gradcheck(f, tensors)
    assert gradgradcheck(f, tensors)
    assert gradgradcheck(f, leaves(case(2, 2, 2, covariance_type, by_row, device=device)))


@pytest.mark.parametrize("covariance_type", ALL)
def test_weights_of_each_sample_for_every_covariance(covariance_type, device, backend):
    """A row with weights of its own is a row of the mixture with these weights."""
    x, logits, means, scale = case(9, 4, 3, covariance_type, True, device=device)
    value, grads = value_and_grads(lambda *t: mixture_log_prob(*t, covariance_type=covariance_type), [x, logits, means, scale])

    def row_by_row(x, logits, means, scale):
        one = [mixture_log_prob(a, w, means, scale, covariance_type=covariance_type) for a, w in zip(x, logits, strict=True)]
        return torch.stack(one)

    want, want_grads = value_and_grads(row_by_row, [x, logits, means, scale])
    torch.testing.assert_close(value, want, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(grads, want_grads, rtol=1e-10, atol=1e-12)
    assert gradcheck(lambda *t: mixture_log_prob(*t, covariance_type=covariance_type), leaves([x[:2], logits[:2], means, scale]))


@pytest.mark.parametrize("lead", [(), (1,), (5,), (1, 5), (4, 1), (4, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("factorized", [False, True, "both"])
def test_weights_broadcast_against_the_batch(factorized, lead, device, backend):
    x, _, means, scale = case((4, 5), 3, 2, device=device)
    logits = torch.randn(*lead, 3, dtype=torch.float64, device=device)
    tensors = [x, logits, means, scale]
    value, grads = value_and_grads(lambda *t: ours(*t, factorized), tensors)
    want, want_grads = value_and_grads(lambda x, w, m, s: plain(x, w.expand(4, 5, 3), m, s, factorized), tensors)
    torch.testing.assert_close(value, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads, want_grads, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch", [(), (0,), (2, 0, 3), (2, 3)], ids=str)
def test_leading_dimensions(batch, device, backend):
    tensors = case(batch, 3, 4, by_row=True, device=device)
    for factorized in (False, True, "both"):
        value, grads = value_and_grads(lambda *t, f=factorized: ours(*t, f), tensors)
        assert value.shape == ((2, *batch) if factorized == "both" else batch)
        assert [g.shape for g in grads] == [t.shape for t in tensors]
    both = mixture_log_prob(*tensors, factorized="both")
    assert isinstance(both, vae_fast.MixtureLogProbs)
    torch.testing.assert_close(both.joint, mixture_log_prob(*tensors))
    assert torch.equal(both.factorized, mixture_log_prob(*tensors, factorized=True))


def test_one_dimension_is_the_joint(device, backend):
    tensors = case(50, 7, 1, device=device)
    torch.testing.assert_close(mixture_log_prob(*tensors, factorized=True), mixture_log_prob(*tensors), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("by_row", [False, True])
def test_every_combination_of_wanted_gradients_and_results(by_row, device, backend):
    tensors = case(70, 5, 3, by_row=by_row, dtype=torch.float32, device=device)

    def f(*t):
        both = mixture_log_prob(*t, factorized="both")
        return both.joint * 0.5 + both.factorized * 2.0

    full = value_and_grads(f, tensors)[1]
    for wanted in itertools.product([False, True], repeat=4):
        if any(wanted):
            some = value_and_grads(f, tensors, wanted=wanted)[1]
            for got, want, w in zip(some, full, wanted, strict=True):
                assert got is None if not w else torch.equal(got, want)
    t = leaves(tensors)
    alone = torch.autograd.grad(mixture_log_prob(*t, factorized="both").joint.sum(), t)
    want = torch.autograd.grad(mixture_log_prob(*t).sum(), t)
    torch.testing.assert_close(alone, want, rtol=2e-5, atol=2e-5)
    used = torch.autograd.grad(mixture_log_prob(*t, factorized="both").factorized.sum(), t)
    torch.testing.assert_close(used, torch.autograd.grad(mixture_log_prob(*t, factorized=True).sum(), t), rtol=0, atol=0)


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_finite_argument_gives_nan(dtype, by_row, device, backend):
    numbers = torch.tensor([0.0, 1.0, -1.0, 1e4, -1e4, 80.0, 1e30, -1e30, 3e38, -3e38], device=device, dtype=dtype)
    for seed in range(20):
        pick = functools.partial(torch.randint, len(numbers), generator=torch.Generator().manual_seed(seed))
        x, means, scale = (numbers[pick(shape).to(device)] for shape in ((9, 2), (4, 2), (4, 2)))
        scale = scale.clamp(-1e4, 1e4) if seed % 2 else scale.clamp(-80, 80)
        logits = numbers[pick((9, 4) if by_row else (4,)).to(device)]
        value, grads = value_and_grads(lambda *t: ours(*t, "both"), [x, logits, means, scale])
        assert not value.isnan().any()
        assert not any(g.isnan().any() for g in grads)


@pytest.mark.parametrize("by_row", [False, True])
def test_a_weight_of_zero_leaves_its_component_out(by_row, device, backend):
    x, logits, means, scale = case(20, 4, 3, by_row=by_row, device=device)
    logits[..., 2] = -float("inf")
    keep = torch.tensor([0, 1, 3], device=device)
    value, grads = value_and_grads(lambda *t: ours(*t, "both"), [x, logits, means, scale])
    torch.testing.assert_close(value, ours(x, logits[..., keep], means[keep], scale[keep], "both"), rtol=1e-12, atol=1e-12)
    assert not grads[1][..., 2].any()
    assert not grads[2][2].any()
    assert all(g.isfinite().all() for g in grads)


def test_nan_stays_in_its_row(device, backend):
    x, *parameters = case(40, 5, 3, by_row=True, dtype=torch.float32, device=device)
    want = ours(x, *parameters, "both")
    x[7, 1], parameters[0][9, 2] = float("nan"), float("nan")
    value = ours(x, *parameters, "both")
    bad = torch.zeros(40, dtype=torch.bool, device=device)
    bad[[7, 9]] = True
    assert value[:, bad].isnan().all()
    assert torch.equal(value[:, ~bad], want[:, ~bad])
    leaf = x.clone().requires_grad_()
    ours(leaf, *parameters, "both").sum().backward()
    assert leaf.grad[~bad].isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_strides_do_not_change_a_bit(layout, device, backend):
    tensors = case(23, 5, 7, by_row=True, dtype=torch.float32, device=device)
    value, grads = value_and_grads(lambda *t: ours(*t, "both"), tensors)
    tensors_of = [layout(t).requires_grad_() for t in tensors]
    out = ours(*tensors_of, "both")
    out.sum().backward()
    tolerance = {"rtol": 0, "atol": 0} if backend == "compiled" else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(out.detach(), value, **tolerance)
    torch.testing.assert_close([t.grad for t in tensors_of], grads, **tolerance)


@pytest.mark.parametrize("size", [(5011, 5, 3), (300, 300, 2), (230, 3, 64), (2, 40, 7)], ids=str)
@pytest.mark.parametrize("by_row", [False, True])
@needs_kernels
def test_the_number_of_threads_changes_no_bit(by_row, size):
    tensors = case(*size, by_row=by_row, dtype=torch.float32)
    same_bits(lambda: flat(value_and_grads(lambda *t: ours(*t, "both"), tensors)))


@needs_kernels
def test_memory_grows_with_rows_not_with_rows_times_components(device):
    n, k, d = 20_000, 500, 4
    tensors = leaves(case(n, k, d, dtype=torch.float32, device=device))

    def step(t):
        ours(*t, "both").sum().backward()

    step(leaves([tensors[0][:50], *tensors[1:]]))
    grown = peak_growth(functools.partial(step, tensors), device)
    assert grown < n * k * 4, f"{grown / 2**20:.0f} MiB"  # a quarter of one N x K x D array; 38 MiB


@pytest.mark.parametrize("by_row", [False, True])
def test_blocks_of_rows_give_the_same(by_row, device, monkeypatch, plain_torch):
    """What the plain-torch backend does with arrays that are too large."""
    tensors = case(37, 5, 3, by_row=by_row, device=device)
    for factorized in (True, "both") if not by_row else (False, True, "both"):
        want = value_and_grads(lambda *t, f=factorized: ours(*t, f), tensors)
        monkeypatch.setattr(_row_chunks, "ELEMENTS", 60)
        assert 60 // 15 < 37
        got = plain_torch(value_and_grads, lambda *t, f=factorized: ours(*t, f), tensors)
        monkeypatch.undo()
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
        monkeypatch.setattr(_row_chunks, "ELEMENTS", 60)
        assert plain_torch(gradgradcheck, lambda *t, f=factorized: ours(*t, f), leaves([t[:5] if len(t) == 37 else t for t in tensors]))
        monkeypatch.undo()


# --- graphs and transforms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_row", [False, True])
@needs_kernels
def test_opcheck(by_row, device):
    tensors = case(3, 4, 2, by_row=by_row, dtype=torch.float32, device=device)
    ops = torch.ops.vae_fast
    for covariance_type in DIAGONAL:
        scale = tensors[3] if covariance_type == "diag" else tensors[3][:, 0].contiguous()
        args = (*tensors[:3], scale, covariance_type)
        torch.library.opcheck(ops.mixture_factorized.default, args, rtol=1e-4, atol=1e-5)
        torch.library.opcheck(ops.mixture_factorized.default, tuple(leaves(args[:4])) + args[4:], rtol=1e-4, atol=1e-5)
        saved, ones = ops.mixture_factorized(*args)[2], torch.ones(3, device=device)
        for joint, product in ((ones, ones), (None, ones), (ones, None)):
            backward = (joint, product, *args[:4], saved, covariance_type, [True, True, False, True])
            torch.library.opcheck(ops.mixture_factorized_backward.default, backward, rtol=1e-4, atol=1e-5)
    if by_row:
        torch.library.opcheck(ops.mixture.default, (*leaves(tensors), "diag"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("by_row", [False, True])
def test_compiled_without_a_break(by_row, device, backend):
    tensors = case(33, 5, 3, by_row=by_row, dtype=torch.float32, device=device)
    f = functools.partial(ours, factorized="both")
    got = value_and_grads(torch.compile(f, fullgraph=True, backend="aot_eager"), tensors)
    torch.testing.assert_close(got, value_and_grads(f, tensors), rtol=1e-5, atol=1e-5)


def test_vmap_and_checkpoint(device, backend):
    x, logits, means, scale = case(6, 3, 2, by_row=True, device=device)
    f = functools.partial(ours, factorized=True)
    torch.testing.assert_close(vmap(f, (0, 0, None, None))(x, logits, means, scale), f(x, logits, means, scale))
    sets = torch.stack([means, means + 1.0])
    torch.testing.assert_close(vmap(f, (None, None, 0, None))(x, logits, sets, scale), torch.stack([f(x, logits, m, scale) for m in sets]))
    want = value_and_grads(f, [x, logits, means, scale])
    torch.testing.assert_close(value_and_grads(lambda *t: checkpoint(f, *t, use_reentrant=False), [x, logits, means, scale]), want)


@needs_kernels
def test_inputs_changed_in_place_before_backward_are_detected(device):
    for changed in range(4):
        tensors = [t.clone() for t in leaves(case(5, 3, 2, by_row=True, dtype=torch.float32, device=device))]
        out = ours(*tensors, True).sum()
        with torch.no_grad():
            tensors[changed].add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.backward()


# --- bad arguments ----------------------------------------------------------------------------------------------------

X, W, M, S = torch.zeros(5, 2), torch.zeros(3), torch.zeros(3, 2), torch.zeros(3, 2)
FULL = torch.eye(2).expand(3, 2, 2)
BAD = {
    "factorized number": (lambda: mixture_log_prob(X, W, M, S, factorized=1), TypeError, ["factorized=1", "True or False", "got int"]),
    "factorized word": (lambda: mixture_log_prob(X, W, M, S, factorized="all"), ValueError, ["factorized='all'", "'both'"]),
    "factorized None": (lambda: mixture_log_prob(X, W, M, S, factorized=None), TypeError, ["factorized=None", "got NoneType"]),
    "factorized full": (
        lambda: mixture_log_prob(X, W, M, FULL, covariance_type="full", factorized=True),
        ValueError,
        ["covariance_type='full'", "'diag' or 'spherical'", "factorized=True"],
    ),
    "factorized tied": (
        lambda: mixture_log_prob(X, W, M, FULL[0], covariance_type="tied", factorized="both"),
        ValueError,
        ["covariance_type='tied'", "'diag' or 'spherical'", "factorized='both'"],
    ),
    "weights of other rows": (
        lambda: mixture_log_prob(X, torch.zeros(4, 3), M, S),
        ValueError,
        ["weight_logits has shape (4, 3)", "expected (3,)", "(5, 3)"],
    ),
    "weights of other components": (
        lambda: mixture_log_prob(X, torch.zeros(5, 4), M, S),
        ValueError,
        ["weight_logits has shape (5, 4)", "(5, 3)"],
    ),
    "weights with a dimension more": (
        lambda: mixture_log_prob(X, torch.zeros(2, 5, 3), M, S),
        ValueError,
        ["weight_logits has shape (2, 5, 3)", "(5, 3)"],
    ),
    "weights of rows in responsibilities": (
        lambda: vae_fast.mixture_responsibilities(X, torch.zeros(5, 3), M, S),
        ValueError,
        ["weight_logits has shape (5, 3)", "expected (3,)"],
    ),
    "weights of rows in statistics": (
        lambda: vae_fast.mixture_statistics(X, torch.zeros(5, 3), M, S),
        ValueError,
        ["weight_logits has shape (5, 3)", "expected (3,)"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name, backend):
    assert_refused(*BAD[name])


@needs_kernels
def test_ops_called_directly_check_too():
    op = torch.ops.vae_fast.mixture_factorized
    for bad in ((torch.zeros(4, 3),), (torch.zeros(5, 4),), (torch.zeros(2, 5, 3),)):
        with pytest.raises((ValueError, RuntimeError)):
            op(X, *bad, M, S, "diag")
        with pytest.raises((ValueError, RuntimeError)):
            torch.ops.vae_fast.mixture(X, *bad, M, S, "diag")
    with pytest.raises((ValueError, RuntimeError)):
        op(X, W, M, FULL, "full")
    with pytest.raises((ValueError, RuntimeError)):
        torch.ops.vae_fast.mixture_statistics(X, torch.zeros(5, 3), M, S, None, None, "diag")
    with pytest.raises((ValueError, RuntimeError)):
        torch.ops.vae_fast.mixture_factorized_backward(None, torch.ones(5), X, W, M, S, torch.zeros(2, 5), "diag", [True] * 4)
