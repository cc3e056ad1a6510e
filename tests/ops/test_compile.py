"""torch.compile(fullgraph=True) of every public function: no graph break, the numbers of eager, noise that follows torch's generator."""

import numpy as np
import pytest
import torch
import torch._dynamo.utils
from mixtures import COVARIANCES, MDNS, MIXTURE_CASES, MIXTURES, problem
from oracle import ALL, CASES, LOGSUMEXPS, SAMPLES, SCALES, leaves, needs_kernels, value_and_grads
from torch._dynamo.testing import CompileCounterWithBackend

import vae_fast


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def compiled(f, **options):
    return torch.compile(f, fullgraph=True, **({"backend": "inductor"} | options))


def graphs_compiled():
    """Graphs compiled since the last reset."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def same_as_eager(f, g, tensors, wanted=None):
    value, grads = value_and_grads(f, tensors, wanted=wanted)
    other, other_grads = value_and_grads(g, tensors, wanted=wanted)
    torch.testing.assert_close(other, value, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(other_grads, grads, rtol=2e-6, atol=2e-6)
    for a, b in zip(other_grads, grads, strict=True):
        assert a is None or a.dtype == b.dtype


INDUCTOR = [
    CASES["kl.logvar"],
    CASES["kl_prior.var"],
    CASES["bernoulli_logits.none"],
    CASES["bernoulli_probs.clamp"],
    CASES["gaussian.logvar"],
    CASES["elbo.bernoulli"],
    CASES["elbo.gaussian.pair.prior"],
    *LOGSUMEXPS,
    CASES["reparameterize.logvar"],
    MIXTURE_CASES["mixture.diag"],
    MIXTURE_CASES["mdn"],
]


@pytest.mark.parametrize("case", INDUCTOR, ids=str)
def test_inductor(case, device):
    tensors = case.tensors((6, 11), (6, 4), torch.float32, device)
    same_as_eager(case.ours, compiled(case.ours), tensors, [True, True, False] if case in SAMPLES else None)


@pytest.mark.parametrize("case", [*ALL, *MIXTURES], ids=str)
def test_aot_eager(case, device):
    tensors = case.tensors((6, 11), (6, 4), torch.float32, device)
    same_as_eager(case.ours, compiled(case.ours, backend="aot_eager"), tensors, [True, True, False] if case in SAMPLES else None)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_loss(reduction, dtype, device):
    def loss(*t):
        return CASES["elbo.bernoulli"].ours(*t, f=vae_fast.elbo_loss, reduction=reduction)

    tensors = CASES["elbo.bernoulli"].tensors((6, 11), (6, 4), dtype, device)
    same_as_eager(loss, compiled(loss), tensors)
    same_as_eager(loss, compiled(loss), tensors, wanted=[False, True, True, True])


def test_the_loss_in_the_middle_of_a_graph(device):
    """Layers before, arithmetic after: the upstream gradient is not 1 and the inputs are not leaves."""
    layer = torch.nn.Linear(11, 11, device=device)

    def step(x, h, mu, logvar):
        return 3.0 * vae_fast.elbo_loss(x, layer(h), mu * 2, logvar - 1).exp().log() + mu.square().sum()

    same_as_eager(step, compiled(step), CASES["elbo.bernoulli"].tensors((6, 11), (6, 4), torch.float32, device))


@pytest.mark.parametrize("with_kl", [False, True], ids=["sample", "sample_with_kl"])
def test_sampling_with_given_noise(with_kl, device):
    def f(mu, s, noise):
        if not with_kl:
            return vae_fast.reparameterize(mu, s, noise=noise, num_samples=3)
        z, kl = vae_fast.reparameterize_with_kl(mu, s, s, mu, noise=noise, num_samples=3)
        return z.sum((0, 2)) + kl

    tensors = [torch.randn(5, 4, device=device), torch.randn(5, 4, device=device), torch.randn(3, 5, 4, device=device)]
    same_as_eager(f, compiled(f), tensors, [True, True, False])


@pytest.mark.parametrize("backend_name", ["aot_eager", "inductor"])
def test_compiled_noise_follows_manual_seed_and_is_new_each_call(backend_name, device):
    def f(mu, logvar):
        z, kl = vae_fast.reparameterize_with_kl(mu, logvar)
        return z, kl, vae_fast.reparameterize(mu, logvar, num_samples=2)

    g = compiled(f, backend=backend_name)
    zero = torch.zeros(200, 50, device=device)
    torch.manual_seed(5)
    first, second = g(zero, zero), g(zero, zero)
    torch.manual_seed(5)
    again = g(zero, zero)
    assert torch.equal(first[0], again[0]) and torch.equal(first[2], again[2])
    noises = [first[0], second[0], *first[2], *second[2]]
    correlation = torch.corrcoef(torch.stack([n.flatten() for n in noises])) - torch.eye(len(noises), device=device)
    assert correlation.abs().max() < 0.05  # of 10,000 draws: five standard errors
    everything = torch.cat([n.flatten() for n in noises]).double()
    assert abs(everything.mean().item()) < 4.5 / everything.numel() ** 0.5
    assert abs(everything.var().item() - 1) < 4.5 * (2 / everything.numel()) ** 0.5


@pytest.mark.parametrize("backend_name", ["aot_eager", "inductor"])
def test_compiled_backward_replays_the_noise(backend_name, device):
    def f(mu, logvar):
        return vae_fast.reparameterize(mu, logvar)

    mu, logvar = leaves([torch.randn(40, 7, device=device), torch.randn(40, 7, device=device)])
    z = compiled(f, backend=backend_name)(mu, logvar)
    upstream = torch.randn_like(z)
    z.backward(upstream)
    torch.testing.assert_close(mu.grad, upstream, rtol=0, atol=0)
    torch.testing.assert_close(logvar.grad, upstream * 0.5 * (z - mu).detach(), rtol=1e-5, atol=2e-6)


DYNAMIC = {
    "elbo": vae_fast.elbo,
    "elbo_loss": vae_fast.elbo_loss,
    "kl": lambda x, a, mu, logvar: vae_fast.gaussian_kl(mu, logvar, prior_mu=mu.sin(), reduction="mean"),
    "bernoulli": lambda x, a, mu, logvar: vae_fast.bernoulli_log_prob(x, a, clip="clamp"),
    "gaussian": lambda x, a, mu, logvar: vae_fast.gaussian_log_prob(x, a, x, scale="softplus"),
    "sample": lambda x, a, mu, logvar: vae_fast.reparameterize(mu, logvar, noise=mu.cos()),
    "sample_with_kl": lambda x, a, mu, logvar: vae_fast.reparameterize_with_kl(mu, logvar, noise=mu.cos())[1],
    "logsumexp": lambda x, a, mu, logvar: vae_fast.logsumexp(a, -1, x),
    "iwae_bound": lambda x, a, mu, logvar: vae_fast.iwae_bound(a, 0),
}


@pytest.mark.parametrize("f", DYNAMIC.values(), ids=DYNAMIC)
def test_dynamic_shapes(f, device):
    """One graph for every batch size and width."""
    g = compiled(f, dynamic=True, backend="aot_eager")
    for batch, width, latent in ((4, 11, 3), (7, 13, 5), (32, 5, 2)):
        tensors = CASES["elbo.bernoulli"].tensors((batch, width), (batch, latent), torch.float32, device)
        same_as_eager(f, g, tensors)
    assert graphs_compiled() == 1


@pytest.mark.parametrize(
    "case", [MIXTURE_CASES["mixture.diag"], MIXTURE_CASES["mixture.full"], MIXTURE_CASES["responsibilities.diag"], *MDNS], ids=str
)
def test_dynamic_shapes_of_mixtures(case, device):
    g = compiled(lambda *t: case.ours(*t), dynamic=True, backend="aot_eager")
    for batch, width in ((4, 11), (7, 13), (32, 5)):
        same_as_eager(case.ours, g, case.tensors((batch, width), dtype=torch.float32, device=device))
    assert graphs_compiled() == 1


@pytest.mark.parametrize("given", [False, True], ids=["posterior", "given"])
@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_the_sums_of_an_m_step(covariance_type, given, device):
    def sums(q, weight, *t):
        return vae_fast.mixture_statistics(*t, covariance_type=covariance_type, responsibilities=q if given else None, sample_weight=weight)

    g = compiled(sums, backend="aot_eager")
    tensors = problem(40, 3, 4, covariance_type, torch.float32, device)
    q, weight = torch.rand(40, 3, device=device), torch.rand(40, device=device)
    found, want = g(q, weight, *tensors), sums(q, weight, *tensors)
    assert type(found) is type(want) is vae_fast.MixtureStatistics
    torch.testing.assert_close(tuple(t for t in found if t is not None), tuple(t for t in want if t is not None))
    assert (found.log_prob is None) == given


@pytest.mark.parametrize("with_samples", [False, True])
def test_dynamic_shapes_of_drawn_noise(with_samples, device):
    def f(mu, logvar):
        return vae_fast.reparameterize_with_kl(mu, logvar, num_samples=3 if with_samples else None)

    g = compiled(f, dynamic=True, backend="aot_eager")
    for shape in ((4, 3), (7, 5), (32, 2)):
        mu, logvar = torch.randn(shape, device=device), torch.randn(shape, device=device)
        z, kl = g(mu, logvar)
        assert z.shape == ((3, *shape) if with_samples else shape)
        torch.testing.assert_close(kl, vae_fast.gaussian_kl(mu, logvar), rtol=1e-6, atol=1e-6)
    assert graphs_compiled() == 1


def test_dynamic_shapes_with_inductor(device):
    def loss(*t):
        return vae_fast.elbo_loss(*t)

    g = compiled(loss, dynamic=True)
    for batch in (4, 9):
        same_as_eager(loss, g, CASES["elbo.bernoulli"].tensors((batch, 11), (batch, 3), torch.float32, device))


@pytest.mark.parametrize("scale", SCALES)
def test_options_are_constants_of_the_graph(scale, device):
    def f(mu, s, t, *, event_dim=2, free_bits=0.1, reduction="mean"):
        return vae_fast.gaussian_kl(mu, s, None, t, scale=scale, event_dim=event_dim, free_bits=free_bits, reduction=reduction)

    mu, s, t = torch.randn(3, 4, 5, device=device), torch.rand(3, 4, 5, device=device) + 0.5, torch.rand(4, 5, device=device) + 0.5
    same_as_eager(f, compiled(f, backend="aot_eager"), [mu, s, t])


def test_a_beta_that_changes_each_step(device):
    """KL annealing: a new Python number each call must not break the graph, and must take effect."""
    tensors = CASES["elbo.bernoulli"].tensors((6, 11), (6, 4), torch.float32, device)

    def loss(*t, beta):
        return vae_fast.elbo_loss(*t, beta=beta)

    g = compiled(loss, backend="aot_eager")
    for beta in (0.0, 0.25, 0.5, 1.0, 4.0):
        torch.testing.assert_close(g(*tensors, beta=beta), loss(*tensors, beta=beta), rtol=1e-6, atol=1e-6)


NUMBERS = {
    "beta": lambda b, x, a, m, s: vae_fast.elbo_loss(x, a, m, s, beta=b),
    "beta, no reduction": lambda b, x, a, m, s: vae_fast.elbo(x, a, m, s, beta=b).sum(),
    "free_bits": lambda b, x, a, m, s: vae_fast.elbo_loss(x, a, m, s, free_bits=b),
    "free_bits of a KL": lambda b, x, a, m, s: vae_fast.gaussian_kl(m, s, free_bits=b, reduction="sum") + a.sum(),
    "prior_mu": lambda b, x, a, m, s: vae_fast.elbo_loss(x, a, m, s, prior_mu=b),
    "prior_logvar": lambda b, x, a, m, s: vae_fast.gaussian_kl(m, s.exp(), prior_logvar=b + 0.5, scale="std").sum() + a.sum(),
    "a function": lambda b, x, a, m, s: vae_fast.elbo_loss(x, a, m, s, beta=b, likelihood=vae_fast.bernoulli_log_prob),
    "free_bits of a sample": lambda b, x, a, m, s: vae_fast.reparameterize_with_kl(m, s, free_bits=b, noise=x[:, :4])[1].sum() + a.sum(),
}


@pytest.mark.parametrize("kind", ["a number", "a tensor", "of NumPy"])
@pytest.mark.parametrize("what", NUMBERS)
def test_a_number_that_changes_compiles_at_most_two_graphs(what, kind, device):
    """As in plain torch: one for the first value, one for all others."""
    tensors = [torch.rand(6, 11, device=device), *(torch.randn(6, n, device=device, requires_grad=True) for n in (11, 4, 4))]
    made = {"a number": float, "a tensor": lambda b: torch.tensor(b, device=device), "of NumPy": np.float32}[kind]
    graphs = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    g = torch.compile(NUMBERS[what], backend=graphs, fullgraph=True)
    for step in range(30):
        b = step / 29
        got, want = g(made(b), *tensors), NUMBERS[what](b, *tensors)
        torch.testing.assert_close(got, want)
        both = [torch.autograd.grad(v, tensors[1:]) for v in (got, want)]
        torch.testing.assert_close(*both)
    assert graphs.frame_count <= 2


@pytest.mark.parametrize("kind", [float, np.float32, torch.tensor], ids=["a number", "of NumPy", "a new tensor"])
@pytest.mark.parametrize("option", ["beta", "free_bits"])
def test_so_does_an_attribute(option, kind, device):
    """Of a loss and of a model, whose beta is warmed up by assigning it."""
    loss = vae_fast.nn.ELBOLoss(**{option: 1.0})
    model = vae_fast.models.VAE(torch.nn.Linear(11, 8), torch.nn.Linear(4, 11), **{option: 1.0}).to(device)
    tensors = torch.rand(6, 11, device=device), *(torch.randn(6, n, device=device) for n in (11, 4, 4))
    for owner, call, given in ((loss, loss, tensors), (model, model.loss, (tensors[0], tensors[2]))):
        graphs = CompileCounterWithBackend("aot_eager")
        torch._dynamo.reset()
        g = torch.compile(call, backend=graphs, fullgraph=True)
        for step in range(30):
            setattr(owner, option, kind(step / 29))
            torch.testing.assert_close(g(*given), call(*given))
        assert graphs.frame_count <= 2


def test_bytes_images_and_autocast(device):
    x = torch.randint(0, 256, (3, 2, 5, 4), device=device, dtype=torch.uint8)
    layer = torch.nn.Conv2d(2, 2, 1, device=device)

    def step(h, mu, logvar):
        with torch.autocast(device, dtype=torch.bfloat16):
            return vae_fast.elbo_loss(x, layer(h), mu, logvar, event_dim=3)

    tensors = [torch.randn(3, 2, 5, 4, device=device), torch.randn(3, 4, device=device), torch.randn(3, 4, device=device)]
    value, grads = value_and_grads(step, tensors)
    other, other_grads = value_and_grads(compiled(step, backend="aot_eager"), tensors)
    assert other.dtype == torch.float32
    torch.testing.assert_close(other, value, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(other_grads, grads, rtol=5e-2, atol=2e-2)


def test_bad_arguments_are_refused_under_compile(device):
    g = compiled(lambda x, a: vae_fast.bernoulli_log_prob(x, a), backend="aot_eager")
    with pytest.raises(Exception, match="expected the same last 1 dimension"):
        g(torch.zeros(3, 4, device=device), torch.zeros(3, 5, device=device))


@needs_kernels
def test_a_module_with_the_loss_exports(device):
    class Head(torch.nn.Module):
        def forward(self, x, logits, mu, logvar):
            return vae_fast.elbo(x, logits, mu, logvar, clip="clamp"), vae_fast.gaussian_kl(mu, logvar)

    tensors = tuple(CASES["elbo.bernoulli"].tensors((6, 11), (6, 4), torch.float32, device))
    program = torch.export.export(Head(), tensors)
    torch.testing.assert_close(program.module()(*tensors), Head()(*tensors))
    assert "vae_fast.elbo" in str(program.graph)


@needs_kernels
def test_make_fx_traces_forward_and_backward(device):
    from torch.fx.experimental.proxy_tensor import make_fx

    def step(*t):
        t = [v.detach().requires_grad_() for v in t]
        return torch.autograd.grad(vae_fast.elbo_loss(*t), t)

    tensors = CASES["elbo.bernoulli"].tensors((6, 11), (6, 4), torch.float32, device)
    for mode in ("real", "fake", "symbolic"):
        traced = make_fx(step, tracing_mode=mode)(*tensors)
        assert "vae_fast.elbo_loss_with_grad" in traced.code
        torch.testing.assert_close(traced(*tensors), step(*tensors), rtol=2e-6, atol=1e-7)
