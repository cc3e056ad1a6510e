"""The ops as PyTorch's dispatcher sees them: schemas, fake tensors, modes, subclasses."""

import copy
import math

import pytest
import torch
from mixtures import MIXTURE_CASES, MIXTURES, mdn_problem, problem
from oracle import ALL, CASES, SAMPLES, leaves, needs_kernels, value_and_grads
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import vae_fast
from vae_fast import _backend

pytestmark = needs_kernels
ops = torch.ops.vae_fast
NO_FLOOR = -math.inf


def op_calls(dtype, device):
    """Every op with arguments; tensors that may require gradients come as leaves."""
    x, logits, mu, logvar, p, t = (torch.randn(3, 5, dtype=dtype, device=device) for _ in range(6))
    x = torch.rand(3, 5, dtype=dtype, device=device)
    rng = torch.tensor([5, 8], device=device)
    rows, z = torch.randn(3, dtype=dtype, device=device), torch.randn(2, 3, 5, dtype=dtype, device=device)
    head = ("bernoulli_logits.none", [], "kl.logvar", NO_FLOOR, None, 0.5, None, 1, 1)
    floor, beta = (torch.tensor(v, dtype=torch.float64, device=device) for v in (0.1, 0.5))
    on_device = ("bernoulli_logits.add", [1e-3], "kl.logvar", 0.0, floor, 0.0, beta, 1, 1)
    return {
        "term": (ops.term, ([mu, logvar, p, t], "kl_prior.logvar", [NO_FLOOR], None, 1)),
        "term.param_at": (ops.term, ([mu, logvar], "kl.logvar", [0.0], floor, 1)),
        "term_backward": (ops.term_backward, (rows, [x, logits], "bernoulli_logits.clamp", [1e-3], None, 1, [True, True])),
        "term_backward.param_at": (ops.term_backward, (rows, [mu, logvar], "kl.logvar", [0.0], floor, 1, [True, True])),
        "elbo": (ops.elbo, ([x, logits], [mu, logvar], *head)),
        "elbo_backward": (ops.elbo_backward, (rows, [x, logits], [mu, logvar], *head, [False, True, True, True])),
        "elbo.on_device": (ops.elbo, ([x, logits], [mu, logvar], *on_device)),
        "elbo_backward.on_device": (ops.elbo_backward, (rows, [x, logits], [mu, logvar], *on_device, [False, True, True, True])),
        "elbo_loss.on_device": (ops.elbo_loss, ([x, logits], [mu, logvar], *on_device, True)),
        "elbo_loss": (ops.elbo_loss, ([x, logits], [mu, logvar], *head, True)),
        "elbo_loss_with_grad": (ops.elbo_loss_with_grad, ([x, logits], [mu, logvar], *head, False, [True, True, False, True])),
        "elbo_parts": (ops.elbo_parts, ([x, logits], [mu, logvar], *head)),
        "elbo_loss_parts": (ops.elbo_loss_parts, ([x, logits], [mu, logvar], *head, True)),
        "elbo_loss_parts_with_grad": (
            ops.elbo_loss_parts_with_grad,
            ([x, logits], [mu, logvar], *on_device, True, [True, True, True, False]),
        ),
        **linear_calls(dtype, device),
        "draw_seed": (ops.draw_seed, (mu,)),
        "reparameterize": (ops.reparameterize, ([mu, logvar], None, rng, "logvar", 2)),
        "reparameterize.noise": (ops.reparameterize, ([mu, logvar], p.detach().clone(), None, "softplus", 0)),
        "reparameterize_with_kl": (ops.reparameterize_with_kl, ([mu, logvar], None, rng, "kl.logvar", 0, NO_FLOOR, 1)),
        "reparameterize_with_kl.prior": (ops.reparameterize_with_kl, ([mu, logvar, p, t], None, rng, "kl_prior.logvar", 2, 0.1, 1)),
        "reparameterize_backward": (
            ops.reparameterize_backward,
            (z, rows, [mu, logvar, p, t], None, rng, "kl_prior.logvar", 2, NO_FLOOR, 1, [True, True, True, False]),
        ),
        "logsumexp": (ops.logsumexp, (mu, logvar.exp(), -1)),
        "logsumexp.plain": (ops.logsumexp, (mu, None, 0)),
        **mixture_calls(dtype, device),
        **group_calls(dtype, device),
        "logsumexp_backward": (ops.logsumexp_backward, (rows, mu, logvar.exp(), torch.logsumexp(mu + logvar, -1), 1, [True, True])),
    }


def linear_calls(dtype, device):
    """The same for a decoder's last layer with its likelihood."""
    x, h, weight, bias = (torch.randn(s, dtype=dtype, device=device) for s in ((3, 5), (2, 3, 4), (5, 4), (5,)))
    x, rows, term = torch.rand(3, 5, dtype=dtype, device=device), torch.randn(2, 3, dtype=dtype, device=device), "bernoulli_logits.none"
    return {
        "linear_likelihood": (ops.linear_likelihood, (x, h, weight, bias, term, [])),
        "linear_likelihood.unbiased": (ops.linear_likelihood, (x, h, weight, None, "bernoulli_logits.clamp", [1e-3])),
        "linear_likelihood_backward": (ops.linear_likelihood_backward, (rows, x, h, weight, bias, term, [], [False, True, True, True])),
        "linear_likelihood_sum": (ops.linear_likelihood_sum, (x, h, weight, bias, term, [], True)),
        "linear_likelihood_sum_with_grad": (
            ops.linear_likelihood_sum_with_grad,
            (x, h, weight, bias, term, [], False, [True, True, False, True]),
        ),
    }


def mixture_calls(dtype, device):
    """The same for the ops of mixtures."""
    diag, spherical, tied, full = (problem(3, 4, 2, c, dtype, device) for c in ("diag", "spherical", "tied", "full"))
    mdn, shared = mdn_problem((3,), 4, 2, False, dtype, device), mdn_problem((3,), 4, 2, True, dtype, device)
    rows, q = torch.randn(3, dtype=dtype, device=device), torch.rand(3, 4, dtype=dtype, device=device)
    with torch.no_grad():
        saved = ops.mixture(*full, "full")[1]
        posterior = ops.mixture_responsibilities(*tied, "tied")
        log_prob = ops.mdn(*mdn, NO_FLOOR)
        by_dim = ops.mixture_factorized(*diag, "diag")[2]
    return {
        "mixture": (ops.mixture, (*diag, "diag")),
        "mixture.full": (ops.mixture, (*full, "full")),
        "mixture_backward": (ops.mixture_backward, (rows, *full, saved, "full", "float32", [True, True, False, True])),
        "mixture_responsibilities": (ops.mixture_responsibilities, (*spherical, "spherical")),
        "mixture_responsibilities_backward": (
            ops.mixture_responsibilities_backward,
            (q, *tied, posterior, "tied", "float32", [False, True, True, True]),
        ),
        "mixture_statistics": (ops.mixture_statistics, (*full, None, rows, "full")),
        "mixture_statistics.given": (ops.mixture_statistics, (*tied, q, None, "tied")),
        "mixture_factorized": (ops.mixture_factorized, (*spherical, "spherical")),
        "mixture_factorized_backward": (ops.mixture_factorized_backward, (rows, rows, *diag, by_dim, "diag", [True, True, False, True])),
        "mdn": (ops.mdn, (*mdn, NO_FLOOR)),
        "mdn.shared": (ops.mdn, (*shared, -0.5)),
        "mdn_backward": (ops.mdn_backward, (rows, *mdn, log_prob, NO_FLOOR, [True, False, True, True])),
    }


def group_calls(dtype, device):
    """The same for terms over groups of parameters."""
    levels, classes = torch.rand(3, 2, 2, 3, dtype=dtype, device=device), torch.randint(5, (3, 4, 1), device=device)
    params, logits, rows = (torch.randn(s, dtype=dtype, device=device) for s in ((3, 2, 2, 20), (3, 4, 5), (3,)))
    pixels = ("discretized_logistic_mixture.rgb.exact", [255.0, 1.0, -0.996, 0.996, -7.0], -1, 3)
    counts = torch.rand(3, 5, dtype=dtype, device=device)
    begin, column = torch.tensor([0, 1, 1, 3], device=device), torch.tensor([4, 0, 2], device=device)
    entries = counts.flatten()[:3].clone()
    return {
        "group": (ops.group, (levels, params, *pixels)),
        "group_backward": (ops.group_backward, (rows, levels, params, *pixels, [False, True])),
        "softmax": (ops.softmax, (classes, logits, None, None, -1, 2)),
        "softmax.counts": (ops.softmax, (counts, logits[:, 0].contiguous(), None, None, -1, 1)),
        "softmax.csr": (ops.softmax, (entries, logits[:, 0].contiguous(), begin, column, -1, 1)),
        "softmax_backward": (ops.softmax_backward, (rows, classes, logits, None, None, -1, 2, [False, True])),
        "softmax_backward.counts": (ops.softmax_backward, (rows, counts, logits[:, 0].contiguous(), None, None, -1, 1, [True, True])),
        "softmax_backward.csr": (
            ops.softmax_backward,
            (rows, entries, logits[:, 0].contiguous(), begin, column, -1, 1, [False, True, False, False]),
        ),
    }


#: Data that get no gradient: an op, and the place of the argument.
DATA = {("group", 0), ("group_backward", 1), ("softmax.csr", 0), ("softmax_backward.csr", 1)}


def wanting_gradients(value):
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_() if value.is_floating_point() else value
    if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
        return [wanting_gradients(v) for v in value]
    return value


NAMES = list(op_calls(torch.float32, "cpu")) if _backend.C is not None else []
INNER = {
    "elbo_loss_with_grad",
    "elbo_loss_parts_with_grad",
    "linear_likelihood_sum_with_grad",
    "mixture_statistics",
    "mixture_statistics.given",
}  # called below autograd only, or without gradients


def test_every_op_is_checked():
    schemas = {s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith("vae_fast::")}
    assert {n.removeprefix("vae_fast::") for n in schemas} == {n.partition(".")[0] for n in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_opcheck_without_gradients(name, device):
    op, args = op_calls(torch.float32, device)[name]
    torch.library.opcheck(op.default, args)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(n, d) for n in NAMES if n not in INNER for d in (torch.float32, torch.float64) if d == torch.float64 or not n.startswith("m")],
    ids=str,
)
def test_opcheck_with_gradients(name, dtype, device):
    op, args = op_calls(dtype, device)[name]
    given = tuple(a if (name, i) in DATA else wanting_gradients(a) for i, a in enumerate(args))
    torch.library.opcheck(op.default, given, rtol=1e-4, atol=1e-5)


# --- fake tensors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("case", [*ALL, *MIXTURES], ids=str)
def test_fake_tensors_have_the_shapes_and_dtypes_of_real_ones(case, dtype, device):
    tensors = case.tensors((2, 3, 4), (2, 3, 2), dtype, device)
    wanted = [True, True, False] if case in SAMPLES else None
    value, grads = value_and_grads(case.ours, tensors, wanted=wanted)
    with FakeTensorMode() as mode:
        fake, fake_grads = value_and_grads(case.ours, [mode.from_tensor(t) for t in tensors], wanted=wanted)
    for got, want in zip([fake, *fake_grads], [value, *grads], strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            assert type(got).__name__ == "FakeTensor"
            assert (got.shape, got.dtype, got.device, got.stride()) == (want.shape, want.dtype, want.device, want.stride())


def test_fake_gradients_keep_the_memory_format_of_images(device):
    x = torch.rand(2, 3, 4, 5, device=device).contiguous(memory_format=torch.channels_last)
    z = torch.randn(2, 6, device=device)

    def grad(x, z):
        recon = x.detach().requires_grad_()
        vae_fast.elbo_loss(x, recon, z, z, event_dim=3).backward()
        return recon.grad.stride()

    with FakeTensorMode() as mode:
        fake = grad(mode.from_tensor(x), mode.from_tensor(z))
    assert fake == grad(x, z) == x.stride()


def test_fake_samples_and_broadcasting():
    with FakeTensorMode():
        mu = torch.empty(4, 1, 3, dtype=torch.float16)
        logvar = torch.empty(5, 1, dtype=torch.bfloat16)
        z, kl = vae_fast.reparameterize_with_kl(mu, logvar, num_samples=7)
        assert (z.shape, z.dtype) == ((7, 4, 5, 3), torch.float32)
        assert (kl.shape, kl.dtype) == ((4, 5), torch.float32)
        assert vae_fast.reparameterize(mu, mu).dtype == torch.float16
        assert vae_fast.logsumexp(mu, 0, logvar.double()).shape == (5, 3)


# --- modes and subclasses ---------------------------------------------------------------------------------------------


class Record(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", [*ALL, *MIXTURES], ids=str)
def test_dispatch_modes_see_the_ops(case, device):
    tensors = case.tensors((3, 4), (3, 2), torch.float32, device)
    wanted = [True, True, False] if case in SAMPLES else None
    want = value_and_grads(case.ours, tensors, wanted=wanted)
    with Record() as record:
        got = value_and_grads(case.ours, tensors, wanted=wanted)
    assert any(s.startswith("vae_fast.") and "backward" not in s for s in record.seen)
    assert any("backward" in s and "vae_fast" in s for s in record.seen)
    assert torch.equal(got[0], want[0])
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(got[1], want[1], strict=True))


def test_a_dispatch_mode_sees_the_loss_and_the_draw(device):
    tensors = CASES["elbo.bernoulli"].tensors((3, 4), (3, 2), torch.float32, device)
    want = value_and_grads(vae_fast.elbo_loss, tensors)
    with Record() as record:
        got = value_and_grads(vae_fast.elbo_loss, tensors)
        z = vae_fast.reparameterize(*tensors[2:])
    assert "vae_fast.elbo_loss_with_grad.default" in record.seen
    assert "vae_fast.reparameterize.default" in record.seen
    assert z.shape == tensors[2].shape
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


def test_flop_counter(device):
    from torch.utils.flop_counter import FlopCounterMode

    layer = torch.nn.Linear(4, 6, device=device)
    with FlopCounterMode(display=False) as counter:
        h = layer(torch.randn(5, 4, device=device))
        vae_fast.elbo_loss(torch.rand(5, 6, device=device), h, h, h).backward()
    assert counter.get_total_flops() == 2 * 2 * 5 * 4 * 6  # the layer's own, forward and backward


class Tagged(torch.Tensor):
    """A subclass that keeps its type through torch functions, as PyTorch's own do."""

    @staticmethod
    def __new__(cls, data):
        return torch.Tensor._make_subclass(cls, data, data.requires_grad)


class Wrapped(torch.Tensor):
    """A wrapper subclass: its storage is in another tensor, which only __torch_dispatch__ can reach."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device, strides=inner.stride())

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def unwrap(v):
            return v.inner if isinstance(v, Wrapped) else v

        def wrap(v):
            return Wrapped(v) if isinstance(v, torch.Tensor) else v

        args, kwargs = torch.utils._pytree.tree_map(unwrap, (args, kwargs or {}))
        return torch.utils._pytree.tree_map(wrap, func(*args, **kwargs))


@pytest.mark.parametrize(
    "case",
    [
        CASES["kl.logvar"],
        CASES["kl.softplus"],
        CASES["kl_prior.var"],
        CASES["bernoulli_logits.add"],
        CASES["bernoulli_probs.add"],
        CASES["gaussian.log_std"],
        CASES["elbo.bernoulli"],
        CASES["elbo.bernoulli.free_bits"],
        CASES["elbo.probs.add"],
        CASES["elbo.gaussian.pair.prior"],
        CASES["logsumexp.weights"],
        CASES["iwae_bound"],
        CASES["reparameterize.softplus"],
        MIXTURE_CASES["mixture.diag"],
        MIXTURE_CASES["responsibilities.full"],
        MIXTURE_CASES["mdn.shared"],
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [Tagged, Wrapped, torch.nn.Parameter], ids=lambda c: c.__name__)
def test_tensor_subclasses(case, kind, device):
    tensors = case.tensors((3, 4), (3, 2), torch.float32, device)
    wanted = [True, True, False] if case in SAMPLES else [True] * len(tensors)
    value, grads = value_and_grads(case.ours, tensors, wanted=wanted)
    inputs = [kind(t.clone()) for t in tensors]
    for t, w in zip(inputs, wanted, strict=True):
        t.requires_grad_(w)
    out = case.ours(*inputs)
    out.sum().backward()

    def plain(t):
        return t.inner if isinstance(t, Wrapped) else None if t is None else t.detach().as_subclass(torch.Tensor)

    torch.testing.assert_close(plain(out.detach()), value, rtol=1e-6, atol=1e-7)
    for t, g in zip(inputs, grads, strict=True):
        torch.testing.assert_close(plain(t.grad), g, rtol=1e-6, atol=1e-7)


def test_a_lazily_negated_tensor(device):
    """x.imag of a conjugate is negated by a bit, not in memory."""
    t = torch.randn(3, 4, dtype=torch.complex64, device=device).conj().imag
    assert t.is_neg()
    torch.testing.assert_close(vae_fast.gaussian_kl(t, t), vae_fast.gaussian_kl(t.resolve_neg(), t.resolve_neg()))
    torch.testing.assert_close(vae_fast.logsumexp(t), torch.logsumexp(t.resolve_neg(), -1))


def test_results_can_be_copied_and_changed_in_place(device):
    tensors = CASES["elbo.bernoulli"].tensors((3, 4), (3, 2), torch.float32, device)
    out = vae_fast.elbo(*tensors)
    assert torch.equal(copy.deepcopy(out), out)
    assert torch.equal(out.clone().add_(1.0), out + 1.0)
    for f in (vae_fast.elbo, vae_fast.elbo_loss, lambda *t: vae_fast.reparameterize(*t[2:])):
        once, twice = leaves(tensors), leaves(tensors)
        f(*once).sum().backward()
        f(*twice).mul_(2.0).sum().backward()  # the results are not saved for the backward pass, and may be changed
        for a, b in zip(once, twice, strict=True):
            assert a.grad is b.grad is None or f is not vae_fast.elbo or torch.equal(2 * a.grad, b.grad)
    out = vae_fast.logsumexp(*leaves(tensors[1:2])).mul_(2.0)  # this one is saved
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [*ALL, *MIXTURES], ids=str)
def test_autocast_changes_nothing(case, dtype, device):
    """The ops compute in float32 whatever comes, so autocast has nothing to cast."""
    tensors = case.tensors((3, 4), (3, 2), torch.float32, device)
    wanted = [True, True, False] if case in SAMPLES else None
    want = value_and_grads(case.ours, tensors, wanted=wanted)
    with torch.autocast(device, dtype=dtype):
        got = value_and_grads(case.ours, tensors, wanted=wanted)
    assert torch.equal(got[0], want[0])
    assert got[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_network_under_autocast(dtype, device, backend):
    """Half-precision layers feed the loss directly, probabilities included: F.binary_cross_entropy refuses exactly this."""
    net, x = torch.nn.Linear(12, 12, device=device), torch.rand(5, 12, device=device)
    with torch.autocast(device, dtype=dtype):
        h = net(x)
        assert h.dtype == dtype
        z, kl = vae_fast.reparameterize_with_kl(h, h)
        loss = vae_fast.elbo_loss(x, h.sigmoid(), h, h, likelihood="bernoulli_probs", clip="bce")
    assert (z.dtype, kl.dtype, loss.dtype) == (dtype, torch.float32, torch.float32)
    (loss + kl.mean() + z.float().mean()).backward()
    assert net.weight.grad.dtype == torch.float32
    assert net.weight.grad.isfinite().all()
