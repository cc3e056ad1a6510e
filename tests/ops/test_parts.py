"""return_parts=True: the loss with the likelihood and the KL that it is made of, all of one pass."""

import pytest
import torch
from oracle import assert_refused, elbo, needs_kernels

import vae_fast

EXTREME = 200.0  # of a log-variance: its exponential is out of float32's range


def head(dtype=torch.float32, device="cpu", batch=(9,), columns=37, latents=4):
    """x, and leaves: logits, mu, logvar."""
    x = torch.rand(*batch, columns, device=device).to(dtype)
    rest = (torch.randn(*batch, n, device=device).to(dtype).requires_grad_() for n in (columns, latents, latents))
    return x, *rest


def parts_in_double(x, recon, mu, logvar, **options):
    """Likelihood and KL of each sample, by the oracle: at beta 0, and the difference that beta 1 makes."""
    x, mu, logvar = (t.detach().double() for t in (x, mu, logvar))
    recon = tuple(t.detach().double() for t in recon) if isinstance(recon, tuple) else recon.detach().double()
    prior = [options.pop(name).double() for name in ("prior_mu", "prior_logvar") if name in options]
    likelihood = elbo(x, recon, mu, logvar, *prior, **(options | {"beta": 0.0}))
    return likelihood, likelihood - elbo(x, recon, mu, logvar, *prior, **(options | {"beta": 1.0}))


OPTIONS = {
    "bernoulli": {},
    "beta": {"beta": 0.3},
    "beta 0": {"beta": 0.0},
    "beta below 0": {"beta": -0.5},
    "free bits": {"free_bits": 0.3, "beta": 4.0},
    "clamp": {"clip": "clamp", "eps": 1e-3},
    "gaussian": {"likelihood": "gaussian"},
    "prior": {"prior_mu": torch.tensor([0.5, -1.0, 0.0, 2.0]), "prior_logvar": torch.tensor([0.1, 0.2, -0.3, 0.4])},
}
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_values(dtype, name, reduction, device, backend):
    tensors, options = head(dtype, device), {k: v.to(device) if torch.is_tensor(v) else v for k, v in OPTIONS[name].items()}
    loss, likelihood, kl = vae_fast.elbo_loss(*tensors, **options, reduction=reduction, return_parts=True)
    want = parts_in_double(*tensors, **options)
    total = {"mean": torch.mean, "sum": torch.sum, "none": lambda t: t}[reduction]
    close = {"rtol": DTYPES[dtype], "atol": DTYPES[dtype]}
    for got, exact in zip((likelihood, kl), want, strict=True):
        assert not got.requires_grad and got.dtype == loss.dtype and got.shape == loss.shape
        torch.testing.assert_close(got.double(), total(exact), **close)
    assert loss.requires_grad
    torch.testing.assert_close(loss.detach(), -likelihood + options.get("beta", 1.0) * kl, **close)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("columns", [1, 37, 1500, 70000])
def test_the_loss_and_its_gradients_are_those_without(columns, reduction, device, backend):
    x, *leaves = head(torch.float32, device, (3,), columns)
    upstream = torch.randn(3, device=device) if reduction == "none" else None
    plain = vae_fast.elbo_loss(x, *leaves, beta=0.7, reduction=reduction)
    loss, likelihood, _ = vae_fast.elbo_loss(x, *leaves, beta=0.7, reduction=reduction, return_parts=True)
    assert torch.equal(loss, plain)
    grads = [torch.autograd.grad(out, leaves, upstream) for out in (plain, loss)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    with torch.no_grad():
        values = vae_fast.elbo_loss(x, *leaves, beta=0.7, reduction=reduction, return_parts=True)
    assert torch.equal(values[0], plain) and torch.equal(values[1], likelihood)


def test_elbo_has_the_same_parts(device, backend):
    tensors = head(device=device)
    loss, *parts = vae_fast.elbo_loss(*tensors, beta=0.3, reduction="none", return_parts=True)
    value, *others = vae_fast.elbo(*tensors, beta=0.3, return_parts=True)
    assert torch.equal(value, -loss) and all(torch.equal(a, b) for a, b in zip(parts, others, strict=True))
    torch.testing.assert_close(value.detach(), others[0] - 0.3 * others[1])
    value.sum().backward()
    assert all(t.grad is not None for t in tensors[1:])


def test_batches_that_broadcast(device, backend):
    """The parts have the batch of the loss, so that their means and sums are over the same samples."""
    x, logits, _, _ = head(device=device, batch=(5, 1))
    _, _, mu, logvar = head(device=device, batch=(1, 3))
    likelihood = vae_fast.bernoulli_log_prob(x, logits).expand(5, 3)
    kl = vae_fast.gaussian_kl(mu, logvar).expand(5, 3)
    rows = vae_fast.elbo_loss(x, logits, mu, logvar, reduction="none", return_parts=True)
    total = vae_fast.elbo_loss(x, logits, mu, logvar, reduction="sum", return_parts=True)
    for i, want in enumerate((kl - likelihood, likelihood, kl)):
        torch.testing.assert_close(rows[i].detach(), want.detach())
        torch.testing.assert_close(total[i].detach(), want.sum().detach())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_of_no_samples(reduction, device, backend):
    out = vae_fast.elbo_loss(*head(device=device, batch=(0,)), reduction=reduction, return_parts=True)
    if reduction == "none":
        assert all(t.shape == (0,) for t in out)
    else:
        assert all(t.isnan() if reduction == "mean" else t == 0 for t in out)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_kl_out_of_range_shows_in_its_part_alone(reduction, device, backend):
    x, logits, mu, _ = head(device=device)
    logvar = torch.full_like(mu, EXTREME).requires_grad_()
    loss, likelihood, kl = vae_fast.elbo_loss(x, logits, mu, logvar, beta=0.0, reduction=reduction, return_parts=True)
    assert torch.equal(loss.detach(), -likelihood) and (kl == torch.inf).all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_beta_and_free_bits_on_the_device(reduction, device, backend):
    tensors = head(device=device)
    beta, floor = torch.tensor(0.3, device=device), torch.tensor(0.25, device=device)
    got = vae_fast.elbo_loss(*tensors, beta=beta, free_bits=floor, reduction=reduction, return_parts=True)
    want = vae_fast.elbo_loss(*tensors, beta=0.3, free_bits=0.25, reduction=reduction, return_parts=True)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_a_function_as_the_likelihood(device, backend):
    """Its parts are those of the same calls; it is called once."""
    calls = []

    def log_prob(x, logits):
        calls.append(1)
        return vae_fast.bernoulli_log_prob(x, logits)

    for reduction in ("mean", "sum", "none"):
        x, *leaves = head(device=device)
        options = {"beta": 0.3, "free_bits": 0.2, "reduction": reduction, "return_parts": True}
        got = vae_fast.elbo_loss(x, *leaves, likelihood=log_prob, **options)
        want = vae_fast.elbo_loss(x, *leaves, **options)
        assert len(calls) == 1
        calls.clear()
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)
        assert got[0].requires_grad and not got[1].requires_grad and not got[2].requires_grad
        grads = [torch.autograd.grad(out[0].sum(), leaves) for out in (got, want)]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b)
    value = vae_fast.elbo(x, *leaves, likelihood=log_prob, return_parts=True)
    torch.testing.assert_close(value[0].detach(), value[1] - value[2])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_with_a_donated_reconstruction(reduction, device, backend):
    results = []
    for donate in (False, True):
        torch.manual_seed(1)
        x, leaf, mu, logvar = head(device=device)
        out = vae_fast.elbo_loss(x, leaf * 2.0, mu, logvar, reduction=reduction, donate_recon=donate, return_parts=True)
        results.append([*(t.detach() for t in out), *torch.autograd.grad(out[0], (leaf, mu, logvar))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_second_derivatives(device, backend):
    x, *leaves = head(torch.float64, device)
    found = []
    for parts in (False, True):
        out = vae_fast.elbo_loss(x, *leaves, return_parts=parts)
        grads = torch.autograd.grad(out[0] if parts else out, leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in grads), leaves))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_under_vmap(device, backend):
    x, logits, mu, logvar = (t.detach() for t in head(device=device))

    def one(*t):
        return vae_fast.elbo_loss(*t, reduction="sum", return_parts=True)

    rows = torch.func.vmap(one)(x, logits, mu, logvar)
    for a, b in zip(rows, vae_fast.elbo_loss(x, logits, mu, logvar, reduction="none", return_parts=True), strict=True):
        torch.testing.assert_close(a, b)


@needs_kernels
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_it_is_one_graph_and_one_op(reduction, device):
    torch._dynamo.reset()
    graphs = []

    def collect(graph, _):
        graphs.append(graph)
        return graph.forward

    def f(*t):
        return vae_fast.elbo_loss(*t, beta=0.5, reduction=reduction, return_parts=True)

    tensors = head(device=device)
    got = torch.compile(f, backend=collect, fullgraph=True)(*tensors)
    heads = [n for n in graphs[0].graph.nodes if n.op == "call_function" and "vae_fast" in str(n.target)]
    assert len(graphs) == 1 and len(heads) == 1
    want = f(*tensors)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()
    got = torch.compile(f, backend="aot_eager", fullgraph=True)(*tensors)
    assert got[0].requires_grad and not got[1].requires_grad and not got[2].requires_grad
    grads = [torch.autograd.grad(out[0].sum(), tensors[1:]) for out in (got, want)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@needs_kernels
def test_nothing_else_is_launched(device):
    tensors = head(device=device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        vae_fast.elbo_loss(*tensors, return_parts=True)[0].backward()
    ours = [e.name for e in profile.events() if e.name.startswith("vae_fast::")]
    assert ours == ["vae_fast::elbo_loss"]


def test_the_parts_do_not_depend_on_the_threads(device, backend):
    tensors = head(device=device, batch=(300,), columns=200)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(vae_fast.elbo_loss(*tensors, return_parts=True))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_nan_stays_in_its_row_and_its_part(device, backend):
    x, logits, mu, logvar = (t.detach() for t in head(device=device))
    logits[2, 5] = torch.nan
    mu[4, 1] = torch.nan
    loss, likelihood, kl = vae_fast.elbo_loss(x, logits, mu, logvar, reduction="none", return_parts=True)
    assert loss.isnan().nonzero().flatten().tolist() == [2, 4]
    assert likelihood.isnan().nonzero().flatten().tolist() == [2] and kl.isnan().nonzero().flatten().tolist() == [4]


def test_what_is_no_bool_is_refused(backend):
    tensors = head()
    for f in (vae_fast.elbo, vae_fast.elbo_loss):
        assert_refused(lambda f=f: f(*tensors, return_parts=1), TypeError, ["return_parts=1", "expected True or False"])


def test_as_a_module(backend):
    tensors = head()
    loss = vae_fast.nn.ELBOLoss(beta=0.3, return_parts=True)
    got, want = loss(*tensors), vae_fast.elbo_loss(*tensors, beta=0.3, return_parts=True)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)) and repr(loss) == "ELBOLoss(beta=0.3, return_parts=True)"
    assert_refused(lambda: vae_fast.nn.ELBOLoss(return_parts="yes"), TypeError, ["return_parts='yes'", "expected True or False"])


@needs_kernels
def test_a_model_logs_its_kl_in_the_same_pass(device, monkeypatch):
    """Without a floor, with which the KL that is logged is not the one that counts."""
    passes = []
    real = vae_fast.functional.gaussian_kl
    monkeypatch.setattr(vae_fast.functional, "gaussian_kl", lambda *a, **k: passes.append(1) or real(*a, **k))
    for free_bits, want in ((None, 0), (0.5, 1)):
        layers = torch.nn.Linear(12, 6, device=device), torch.nn.Linear(3, 12, device=device)
        model = vae_fast.models.VAE(*layers, beta=0.3, free_bits=free_bits)
        x, noise = torch.rand(5, 12, device=device), torch.randn(5, 3, device=device)
        passes.clear()
        got = model.losses(x, noise)
        assert len(passes) == want
        torch.testing.assert_close(got.kl, real(*(t.detach() for t in model.encode(x)), reduction="mean"))
        torch.testing.assert_close(got.loss, model.loss(x, noise))
