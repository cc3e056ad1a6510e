"""The decoder's last layer with its likelihood in chunks: the plain form's numbers in a fraction of its memory."""

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_refused, assert_within_contract, bernoulli_logits, leaves, needs_kernels

import vae_fast
from vae_fast.bench.case import Work
from vae_fast.bench.measure import peak_memory
from vae_fast.functional import linear_bernoulli_log_prob

EPS = 1e-3
CHUNKED = (3001, 7, 784)  # rows, features, columns: two whole chunks and a part


def problem(batch, features, columns, dtype=torch.float64, device="cpu", x_batch=None):
    """x, h, weight, bias; exact in every float at least as wide as ``dtype``."""
    x = torch.rand(*(batch if x_batch is None else x_batch), columns)
    values = [x, torch.randn(*batch, features), torch.randn(columns, features) / max(1, features) ** 0.5, torch.randn(columns)]
    return [t.to(device, dtype) for t in values]


def plain(x, h, weight, bias=None, clip=None, reduction="none"):
    rows = bernoulli_logits(x, F.linear(h, weight, bias), clip, EPS)
    return {"none": rows, "sum": rows.sum(), "mean": rows.mean()}[reduction]


def ours(x, h, weight, bias=None, clip=None, reduction="none"):
    return linear_bernoulli_log_prob(x, h, weight, bias, clip=clip, eps=EPS, reduction=reduction)


def value_and_grads(f, tensors, **options):
    tensors = leaves(tensors)
    out = f(*tensors, **options)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.device, out.dtype)
    return [out.detach(), *torch.autograd.grad(out, tensors, upstream)]


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape", [((1,), 1, 1), ((5,), 3, 17), ((2, 3), 4, 9), ((), 6, 5), ((CHUNKED[0],), *CHUNKED[1:]), ((1500,), 500, 784)], ids=str
)
def test_float32_is_as_exact_as_the_plain_form(shape, bias, reduction, device, backend):
    tensors = problem(*shape, torch.float32, device)[: 4 if bias else 3]
    truth = value_and_grads(plain, [t.double() for t in tensors], reduction=reduction)
    formula = value_and_grads(plain, tensors, reduction=reduction)
    for value, want, usual in zip(value_and_grads(ours, tensors, reduction=reduction), truth, formula, strict=True):
        assert value.dtype == torch.float32
        assert_within_contract(value, want, usual)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_as_exact_with_targets_that_are_data(reduction, device):
    """Then the logits' product may be another library's."""
    x, *rest = problem((1500,), 500, 784, torch.float32, device)
    results = []
    for f, dtype in ((ours, torch.float32), (plain, torch.float32), (plain, torch.float64)):
        results.append(value_and_grads(lambda *t, f=f, d=dtype: f(x.to(d), *t, reduction=reduction), [t.to(dtype) for t in rest]))
    for value, usual, truth in zip(*results, strict=True):
        assert_within_contract(value, truth, usual)


@pytest.mark.parametrize("clip", [None, "clamp", "add", "bce"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_clip_modes(clip, reduction, device):
    tensors = problem((40,), 5, 13, torch.float64, device)
    tensors[1] *= 6.0  # far enough for clipping to happen
    want = value_and_grads(plain, tensors, clip=clip, reduction=reduction)
    got = value_and_grads(ours, tensors, clip=clip, reduction=reduction)
    for a, b in zip(got[:1] + got[2:], want[:1] + want[2:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("x_batch", "h_batch"), [((5,), (3, 5)), ((5,), (2, 3, 5)), ((3, 1), (3, 5)), ((1, 5), (3, 5)), ((4, 5), (5,)), ((1,), (CHUNKED[0],))]
)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_batches_broadcast(x_batch, h_batch, reduction, device):
    x = torch.rand(*x_batch, 13, dtype=torch.float64, device=device)
    _, h, weight, bias = problem(h_batch, 4, 13, torch.float64, device)
    want = value_and_grads(plain, [x, h, weight, bias], reduction=reduction)
    for a, b in zip(value_and_grads(ours, [x, h, weight, bias], reduction=reduction), want, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("x_batch", [(1, 1), (1, 5), (3, 1)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_targets_that_their_owner_expanded_get_a_gradient_of_their_shape(x_batch, reduction, device, backend):
    """Here as decoded means that need grad: rows that share memory, each with a gradient of its own."""
    x = torch.rand(*x_batch, 13, dtype=torch.float64, device=device).expand(3, 5, 13)
    tensors = [x, *problem((3, 5), 4, 13, torch.float64, device)[1:]]

    def with_x(f):
        given = [t.detach().requires_grad_() for t in tensors]
        given[0] = x.detach().requires_grad_()  # requires_grad_ keeps the strides
        assert 0 in given[0].stride()
        return torch.autograd.grad(f(*given, reduction=reduction).sum(), given)

    for a, b in zip(with_x(ours), with_x(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_meta(reduction, backend):
    """Shapes and dtypes without values, as torch.device("meta") gives them to a model."""
    tensors = [t.requires_grad_() for t in problem((3, 5), 4, 13, torch.float32, "meta")]
    out = ours(*tensors, reduction=reduction)
    assert out.device.type == "meta" and out.dtype == torch.float32 and out.shape == ((3, 5) if reduction == "none" else ())
    for g, t in zip(torch.autograd.grad(out.sum(), tensors), tensors, strict=True):
        assert (g.shape, g.dtype, g.device.type) == (t.shape, t.dtype, "meta")


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_sums_over_the_batch_do_not_depend_on_the_threads(reduction):
    """The likelihood's and the bias's; a matrix product rounds as its library does."""
    x, h, weight, bias = problem((70_000,), 1, 1, torch.float32)
    results, threads = [], torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            leaf = bias.clone().requires_grad_()
            value = ours(x, h, weight, leaf, reduction=reduction)
            results.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_halves_accumulate_weights_in_float32(dtype, reduction, device):
    tensors = problem((CHUNKED[0],), *CHUNKED[1:], dtype, device)
    got = value_and_grads(ours, tensors, reduction=reduction)
    want = value_and_grads(plain, [t.double() for t in tensors], reduction=reduction)
    assert got[0].dtype == torch.float32
    unit = torch.finfo(dtype).eps
    for a, b, t in zip(got[1:], want[1:], tensors, strict=True):
        assert a.dtype == dtype
        # each logit, and each gradient of one, is rounded to the dtype; sums over rows are not, but for the result
        typical = b.square().mean().sqrt()
        assert (a.double() - b).abs().max() <= 12 * unit * (typical + b.abs().max()), t.shape


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_byte_targets(dtype, device):
    x, h, weight, bias = problem((9,), 4, 21, torch.float32, device)
    bytes_ = (x * 255).to(torch.uint8) if dtype == torch.uint8 else x > 0.5
    got = ours(bytes_, h, weight, bias)
    want = plain(bytes_.double() / (255 if dtype == torch.uint8 else 1), h.double(), weight.double(), bias.double())
    assert_within_contract(got, want)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_derivatives(reduction, device, backend):
    tensors = leaves(problem((2, 3), 2, 3, torch.float64, device))

    def f(*t):
        return linear_bernoulli_log_prob(*t, reduction=reduction)

    assert torch.autograd.gradcheck(f, tensors)
    assert torch.autograd.gradgradcheck(f, tensors)


@pytest.mark.parametrize("wanted", [(0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 0, 0, 0), (0, 1, 1, 0), (0, 0, 0, 0)])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_only_the_gradients_that_are_wanted(wanted, reduction, device):
    tensors = problem((6,), 3, 5, torch.float64, device)
    mine, other = leaves(tensors, map(bool, wanted)), leaves(tensors, map(bool, wanted))
    a, b = ours(*mine, reduction=reduction), plain(*other, reduction=reduction)
    assert a.requires_grad == any(wanted)
    if any(wanted):
        a.sum().backward()
        b.sum().backward()
    for p, q in zip(mine, other, strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad)


def test_a_graph_that_is_kept_gives_the_same_gradients_again(device):
    tensors = leaves(problem((50,), 3, 5, torch.float64, device))
    loss = ours(*tensors, reduction="mean")
    first = torch.autograd.grad(3.0 * loss, tensors, retain_graph=True)
    second = torch.autograd.grad(3.0 * loss, tensors)
    torch.testing.assert_close(first, second)


def test_layouts(device):
    x, h, weight, bias = problem((12, 5), 6, 10, torch.float64, device)
    want = value_and_grads(plain, [x, h, weight, bias])
    odd = [x.transpose(0, 1).contiguous().transpose(0, 1), h.flip(1).flip(1)[..., :], weight.t().contiguous().t(), bias.repeat(2)[::2]]
    odd[3] = torch.stack([bias, bias], 1)[:, 0]  # a stride of two
    mine = [t.detach().requires_grad_() for t in odd]
    out = ours(*mine)
    upstream = torch.randn(1, 5, dtype=torch.float64, device=device).expand(12, 5)
    got = torch.autograd.grad(out, mine, upstream)
    plain_inputs = leaves([x, h, weight, bias])
    other = torch.autograd.grad(plain(*plain_inputs), plain_inputs, upstream)
    torch.testing.assert_close(out.detach(), want[0])
    torch.testing.assert_close(got, other)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_no_rows_and_no_columns(reduction, device, backend):
    for shape in (((0,), 4, 3), ((3, 0), 4, 3), ((4,), 0, 3), ((4,), 3, 0)):
        tensors = leaves(problem(*shape, torch.float32, device))
        out = ours(*tensors, reduction=reduction)
        assert out.shape == (shape[0] if reduction == "none" else ())
        for grad, t in zip(torch.autograd.grad(out.sum(), tensors), tensors, strict=True):
            assert grad.shape == t.shape
            assert grad.isfinite().all()


def test_nan_stays_in_its_row(device):
    x, h, weight, bias = problem((8,), 4, 6, torch.float32, device)
    h[3, 1] = float("nan")
    assert ours(x, h, weight, bias).isnan().tolist() == [i == 3 for i in range(8)]


@needs_kernels
def test_memory_stays_a_quarter_of_the_plain_form(device):
    x, h, weight, bias = problem((8192,), 64, 784, torch.float32, device)

    def work(f):
        return Work(f, [(x, *(t.requires_grad_() for t in leaves([h, weight, bias])))], None)

    usual = peak_memory(work(lambda *t: plain(*t, reduction="mean")), device)
    for reduction in ("none", "mean"):
        peak = peak_memory(work(lambda *t, r=reduction: linear_bernoulli_log_prob(*t, reduction=r).mean()), device)
        assert peak < (usual / 4 if device == "cpu" else usual / 1.5)  # of this small a case a GPU's chunk is the larger part


@needs_kernels
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_compiles_without_a_break(reduction, device):
    torch.compiler.reset()
    tensors = problem((40,), 6, 11, torch.float32, device)
    fast = torch.compile(ours, fullgraph=True, backend="aot_eager")
    got, want = (value_and_grads(f, tensors, reduction=reduction) for f in (fast, ours))
    torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-6)


def test_autocast_casts_as_a_linear_layer_does(device, backend):
    x, h, weight, bias = problem((30,), 6, 11, torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        tensors = leaves([h, weight, bias])
        got = linear_bernoulli_log_prob(x, *tensors, reduction="mean")
    assert got.dtype == torch.float32
    halves = leaves([t.bfloat16() for t in (h, weight, bias)])
    want = linear_bernoulli_log_prob(x, *halves, reduction="mean")
    assert torch.equal(got, want)
    for a, b in zip(torch.autograd.grad(got, tensors), torch.autograd.grad(want, halves), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b.float())


def test_torch_func(device):
    x, h, weight, bias = problem((7,), 3, 5, torch.float64, device)
    got = torch.func.grad(lambda w: ours(x, h, w, bias, reduction="mean"))(weight)
    want = torch.func.grad(lambda w: plain(x, h, w, bias, reduction="mean"))(weight)
    torch.testing.assert_close(got, want)


X, H, W, B = (torch.zeros(3, 4), torch.zeros(3, 2), torch.zeros(4, 2), torch.zeros(4))
BAD = {
    "weight dims": (lambda: ours(X, H, B), ValueError, ["weight has shape (4,)", "expected (D, H)"]),
    "features": (lambda: ours(X, X, W), ValueError, ["h has shape (3, 4)", "weight has shape (4, 2)", "expected h (*batch, 2)"]),
    "columns": (lambda: ours(H, H, W), ValueError, ["x has shape (3, 2)", "expected x (*batch, 4)"]),
    "bias": (lambda: ours(X, H, W, torch.zeros(2)), ValueError, ["bias has shape (2,)", "expected bias (4,)"]),
    "batch": (lambda: ours(X[:2], H, W), ValueError, ["batch dimensions", "x has shape (2,)", "h has shape (3,)", "broadcast"]),
    "dtype": (lambda: ours(X, H.double(), W), TypeError, ["weight has dtype torch.float32", "h has dtype torch.float64", "autocast"]),
    "device": (lambda: ours(X.to("meta"), H, W), ValueError, ["x is on meta", "h is on cpu", "expected one device"]),
    "clip": (lambda: linear_bernoulli_log_prob(X, H, W, clip="floor"), ValueError, ["clip='floor'", "clamp"]),
    "reduction": (
        lambda: linear_bernoulli_log_prob(X, H, W, reduction="batch"),
        ValueError,
        ["reduction='batch'", "'none', 'mean', 'sum'"],
    ),
    "not a tensor": (lambda: ours(X, H, [[1.0]]), TypeError, ["weight", "expected a torch.Tensor, got list"]),
    "integers": (lambda: ours(X.long(), H, W), TypeError, ["x has dtype int64", "uint8"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name, backend):
    assert_refused(*BAD[name])


def test_it_is_the_head_of_an_elbo(device):
    """The ELBO in two calls equals elbo_loss over the logits."""
    x, h, weight, bias = problem((20,), 5, 9, torch.float64, device)
    mu, logvar = torch.randn(2, 20, 3, dtype=torch.float64, device=device)
    split = vae_fast.gaussian_kl(mu, logvar, reduction="mean") - linear_bernoulli_log_prob(x, h, weight, bias, reduction="mean")
    torch.testing.assert_close(split, vae_fast.elbo_loss(x, F.linear(h, weight, bias), mu, logvar))
