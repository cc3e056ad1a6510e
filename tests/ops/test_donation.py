"""donate_recon=True: the same loss and gradients with one buffer less, and a refusal wherever overwriting is known to be unsafe."""

import pytest
import torch
from oracle import assert_refused, needs_kernels

import vae_fast
from vae_fast.bench.case import Work
from vae_fast.bench.measure import peak_memory


def decoded(dtype, device, batch=(9,), columns=37):
    """A decoder's output that is no leaf, its weights, and the rest of the arguments."""
    h = torch.randn(*batch, 6, dtype=dtype, device=device)
    layer = torch.nn.Linear(6, columns, device=device, dtype=dtype)
    x = torch.rand(*batch, columns, device=device).to(dtype)
    mu, logvar = (torch.randn(*batch, 4, dtype=dtype, device=device, requires_grad=True) for _ in range(2))
    return layer, h, x, mu, logvar


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"clip": "clamp", "eps": 1e-3}, {"likelihood": "gaussian"}, {"reduction": "sum", "beta": 0.5}], ids=str
)
@pytest.mark.parametrize("columns", [37, 1500])
def test_the_same_numbers(dtype, options, columns, device, backend):
    layer, h, x, mu, logvar = decoded(dtype, device, columns=columns)
    results = []
    factor = 4.0 if dtype == torch.bfloat16 else 3.0  # of 16 bits, only a product with a power of two is not rounded
    for donate in (False, True):
        recon = layer(h)
        before = recon.detach().clone()
        loss = vae_fast.elbo_loss(x, recon, mu, logvar, donate_recon=donate, **options)
        overwritten = not torch.equal(recon.detach(), before)
        assert overwritten == (donate and backend == "compiled")
        results.append([loss.detach(), *torch.autograd.grad(factor * loss, [*layer.parameters(), mu, logvar])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_kernels
def test_byte_targets_and_images(device):
    x = torch.randint(0, 256, (3, 2, 5, 7), dtype=torch.uint8, device=device)
    mu = torch.randn(3, 4, device=device, requires_grad=True)
    base = torch.randn(3, 2, 5, 7, device=device, requires_grad=True)
    grads = []
    for donate in (False, True):
        loss = vae_fast.elbo_loss(x, base * 1.5, mu, mu, event_dim=3, donate_recon=donate)
        grads.append(torch.autograd.grad(loss, [base, mu]))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@needs_kernels
def test_memory_falls_by_the_buffer(device):
    layer, h, x, mu, logvar = decoded(torch.float32, device, (4096,), 784)

    def work(donate):
        def f(*t):
            return vae_fast.elbo_loss(x, layer(t[0]), mu, logvar, donate_recon=donate)

        return Work(f, [(h,)], None)

    buffer = x.numel() * 4
    saved = peak_memory_of(work(False), device) - peak_memory_of(work(True), device)
    assert saved == pytest.approx(buffer, rel=0.1)


def peak_memory_of(work, device):
    work.differentiable = True
    work()
    return peak_memory(work, device)


@needs_kernels
def test_nothing_is_overwritten_when_no_gradient_of_recon_is_wanted(device):
    layer, h, x, mu, logvar = decoded(torch.float32, device)
    recon = layer(h)
    before = recon.detach().clone()
    with torch.no_grad():
        vae_fast.elbo_loss(x, recon, mu, logvar, donate_recon=True)
    vae_fast.elbo_loss(x, recon.detach(), mu, logvar, donate_recon=True).backward()
    assert torch.equal(recon.detach(), before)


X, MU = torch.rand(4, 8), torch.zeros(4, 2)
LEAF = torch.zeros(4, 8, requires_grad=True)


def loss(recon, x=X, mu=MU, **options):
    return vae_fast.elbo_loss(x, recon, mu, MU, donate_recon=True, **options)


REFUSED = {
    "leaf": (lambda: loss(LEAF), ["recon is a leaf that requires grad"]),
    "strides": (lambda: loss((LEAF * 2).t().contiguous().t()), ["strides (1, 4)", "contiguous"]),
    "per row": (lambda: loss(LEAF * 2, reduction="none"), ["reduction='none'"]),
    "pair": (lambda: loss((LEAF * 2, LEAF * 2), likelihood="gaussian"), ["expected recon to be one tensor", "pair"]),
    "sigmoid": (lambda: loss(LEAF.sigmoid(), likelihood="bernoulli_probs"), ["SigmoidBackward0", "needs its value"]),
    "relu": (lambda: loss(LEAF.relu(), likelihood="gaussian"), ["ReluBackward0", "needs its value"]),
    "broadcast": (lambda: loss(LEAF * 2, X.expand(3, 4, 8), MU), ["recon of shape (4, 8) is broadcast to batch shape (3, 4)"]),
    "wider": (lambda: loss(LEAF * 2, X.double()), ["recon has dtype torch.float32", "torch.float64"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, words = REFUSED[name]
    assert_refused(call, ValueError, ["donate_recon=True", *words, "use donate_recon=False here"])


def test_memory_that_is_shared_is_refused():
    both = (LEAF * 2).repeat(2, 1)
    assert_refused(lambda: loss(both[:4], x=both[4:].detach()), ValueError, ["recon shares memory with x"])


@needs_kernels
def test_whoever_else_saved_it_says_so(device):
    leaf = torch.ones(4, 8, device=device, requires_grad=True)
    recon = leaf * 2.0
    other = (recon * recon).sum()
    x, mu = X.to(device), MU.to(device)
    total = vae_fast.elbo_loss(x, recon, mu, mu, donate_recon=True) + other
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@needs_kernels
def test_one_pass_back_and_no_second_derivative(device):
    leaf = torch.ones(4, 8, device=device, requires_grad=True)
    x, mu = X.to(device), MU.to(device)
    once = vae_fast.elbo_loss(x, leaf * 2, mu, mu, donate_recon=True)
    once.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"neither a second backward pass.*donate_recon=False"):
        once.backward()
    again = vae_fast.elbo_loss(x, leaf * 2, mu, mu, donate_recon=True)
    with pytest.raises(RuntimeError, match="nor a derivative of the gradient"):
        torch.autograd.grad(again, leaf, create_graph=True)


@needs_kernels
def test_compiled_it_is_the_same_loss(device):
    torch.compiler.reset()
    layer, h, x, mu, logvar = decoded(torch.float32, device)

    def f(h, x, mu, logvar):
        return vae_fast.elbo_loss(x, layer(h), mu, logvar, donate_recon=True)

    got = torch.compile(f, fullgraph=True, backend="aot_eager")(h, x, mu, logvar)
    torch.testing.assert_close(got, f(h, x, mu, logvar))
    got.backward()
    assert layer.weight.grad.isfinite().all()


def refused(words, *args, **kwargs):
    with pytest.raises(ValueError, match=words) as caught:
        vae_fast.elbo_loss(*args, donate_recon=True, **kwargs)
    assert str(caught.value).startswith("donate_recon=True: ") and "\n" not in str(caught.value)


def test_a_view_of_somebody_elses_memory_is_refused(device, backend):
    """The values of a parameter, or of rows that are still to be used, would be lost."""
    p = torch.nn.Parameter(torch.randn(8, 37, device=device))
    x, mu, logvar = (torch.rand(4, 37, device=device), *torch.randn(2, 4, 5, device=device).requires_grad_().unbind())
    before = p.detach().clone()
    for view in (p[:4], p[4:], p.view(8, 37)[:4], p.narrow(0, 1, 4), p.flatten()[: 4 * 37].view(4, 37)):
        refused("view of a leaf", x, view, mu, logvar)
    refused("view of a part of a tensor", x, (p * 2.0)[:4], mu, logvar)
    assert torch.equal(p, before)


@needs_kernels
def test_a_view_of_the_whole_result_may_be_donated(device):
    layer, h, x, mu, logvar = decoded(torch.float32, device, columns=36)
    x, grads = x.view(9, 4, 9), []
    for donate in (False, True):
        recon = layer(h).view(9, 4, 9)
        loss = vae_fast.elbo_loss(x, recon, mu, logvar, event_dim=2, donate_recon=donate)
        grads.append(torch.autograd.grad(loss, [*layer.parameters(), mu, logvar]))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    refused("needs its value to go back", x, torch.sigmoid(layer(h)).view(9, 4, 9), mu, logvar, event_dim=2)


@pytest.mark.parametrize("name", ["prior_mu", "prior_logvar", "mu", "logvar", "x"])
def test_every_argument_that_shares_memory_is_refused(name, device, backend):
    """A view of another shape, too: it is the storage that counts."""
    recon = torch.nn.Linear(6, 12, device=device)(torch.randn(4, 6, device=device))
    given = {"x": torch.rand(4, 12, device=device)} | {k: torch.randn(4, 12, device=device) for k in ("mu", "logvar")}
    given |= {k: torch.randn(12, device=device) for k in ("prior_mu", "prior_logvar")}
    given[name] = recon.detach()[0] if name.startswith("prior") else recon.detach().view(4, 12)
    refused(f"recon shares memory with {name}", recon=recon, **given)


def test_float16_is_refused(device, backend):
    """Its gradient may not be written before the loss scale is known."""
    layer, h, x, mu, logvar = decoded(torch.float16, device)
    refused("float16", x, layer(h), mu, logvar)
