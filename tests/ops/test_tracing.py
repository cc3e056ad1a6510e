"""Graphs that others make of our calls (torch.jit.trace, make_fx, fx, ONNX): they hold our ops or the formula, no constant."""

import io
import warnings

import onnxruntime
import pytest
import torch
from mixtures import LOG_PROBS
from oracle import ALL, SAMPLES, needs_kernels
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

import vae_fast

SHAPES = ((6, 11), (6, 4))


def inputs_of(case):
    return case.tensors(*SHAPES, torch.float32)


def traced(f, tensors):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.trace is deprecated, and warns of every comparison of shapes
        return torch.jit.trace(f, tuple(tensors), check_trace=False)


@pytest.mark.parametrize("case", [c for c in ALL if c not in SAMPLES], ids=str)
def test_a_jit_trace_computes(case, backend):
    """With the values of other inputs, not those it was recorded with, and with gradients."""
    g = traced(case.ours, inputs_of(case))
    torch.manual_seed(1)
    tensors = [t.requires_grad_() if t.is_floating_point() else t for t in inputs_of(case)]
    want, got = case.ours(*tensors), g(*tensors)
    torch.testing.assert_close(got, want)
    if want.requires_grad:
        leaves = [t for t in tensors if t.requires_grad]
        a, b = (torch.autograd.grad(v.sum(), leaves, allow_unused=True) for v in (got, want))
        torch.testing.assert_close(list(a), list(b))


def losses(x, a, mu, logvar):
    return vae_fast.elbo_loss(x, a, mu, logvar, beta=0.5), vae_fast.elbo_loss(x, a, mu, logvar, reduction="sum", free_bits=0.1)


def head(*, seed=0):
    torch.manual_seed(seed)
    return torch.rand(6, 11), torch.randn(6, 11), torch.randn(6, 4), torch.randn(6, 4)


def test_a_jit_trace_of_the_loss(backend):
    g = traced(losses, head())
    for got, want in zip(g(*head(seed=1)), losses(*head(seed=1)), strict=True):
        torch.testing.assert_close(got, want)


def samples(mu, logvar):
    return vae_fast.reparameterize(mu, logvar), *vae_fast.reparameterize_with_kl(mu, logvar, num_samples=2)


def test_a_jit_trace_draws_fresh_noise(backend):
    g = traced(samples, head()[2:])
    mu, logvar = head(seed=1)[2:]
    torch.manual_seed(5)
    first, second = g(mu, logvar), g(mu, logvar)
    torch.manual_seed(5)
    again, eager = g(mu, logvar), None
    torch.manual_seed(5)
    eager = samples(mu, logvar)
    assert not torch.equal(first[0], second[0])
    for a, b, c in zip(first, again, eager, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c)


def test_a_saved_trace_loads_and_computes():
    file = io.BytesIO()
    torch.jit.save(traced(lambda mu, logvar: vae_fast.gaussian_kl(mu, logvar), head()[2:]), file)
    file.seek(0)
    mu, logvar = head(seed=3)[2:]
    torch.testing.assert_close(torch.jit.load(file)(mu, logvar), vae_fast.gaussian_kl(mu, logvar))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@needs_kernels
def test_make_fx(mode):
    g = make_fx(losses, tracing_mode=mode)(*head())
    assert "vae_fast" in g.code
    for got, want in zip(g(*head(seed=1)), losses(*head(seed=1)), strict=True):
        torch.testing.assert_close(got, want)
    g = make_fx(samples, tracing_mode=mode)(*head()[2:])
    torch.manual_seed(5)
    got = g(*head()[2:])
    torch.manual_seed(5)
    assert torch.equal(got[0], samples(*head()[2:])[0])


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(11, 8), torch.nn.Linear(4, 11)

    def forward(self, x):
        mu, logvar = self.encoder(x).chunk(2, -1)
        z, kl = vae_fast.reparameterize_with_kl(mu, logvar)
        logits = self.decoder(z)
        loss = vae_fast.elbo_loss(x, logits, mu, logvar)
        return loss, kl, vae_fast.bernoulli_log_prob(x, logits), vae_fast.iwae_bound(torch.stack([kl, kl]), dim=0)


def test_symbolic_trace_keeps_our_calls_whole(backend):
    """As calls of torch.nn.functional are kept: one node each, which runs, copies and pickles."""
    model = Model()
    g = fx.symbolic_trace(model)
    targets = [n.target for n in g.graph.nodes if n.op == "call_function"]
    assert vae_fast.elbo_loss in targets and vae_fast.reparameterize_with_kl in targets
    x = torch.rand(5, 11)
    torch.manual_seed(2)
    got = g(x)
    torch.manual_seed(2)
    for a, b in zip(got, model(x), strict=True):
        torch.testing.assert_close(a, b)
    again = torch.load(_saved(g), weights_only=False)
    torch.manual_seed(2)
    assert torch.equal(again(x)[0], got[0])


def _saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("name", [n for n in vae_fast.functional.__all__ if n.islower() and n != "checks"])
def test_every_function_gives_way_to_torch_function(name):
    """A class with __torch_function__, such as an fx.Proxy, is asked what the call means."""

    class Asks:
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            return func, len(args), sorted(kwargs or {})

    function = getattr(vae_fast, name)
    assert function(Asks(), torch.zeros(2), event_dim=1) == (function, 2, ["event_dim"])


@pytest.mark.parametrize("case", LOG_PROBS, ids=str)
def test_a_jit_trace_of_a_mixture(case, backend):
    g = traced(case.ours, case.tensors((6, 3), dtype=torch.float32))
    torch.manual_seed(1)
    tensors = case.tensors((6, 3), dtype=torch.float32)
    torch.testing.assert_close(g(*tensors), case.ours(*tensors))


def test_onnx(tmp_path, backend):
    """The exported graph is the plain formula, and computes what the kernels compute."""

    class Losses(torch.nn.Module):
        def forward(self, *t):
            return losses(*t)

    path = tmp_path / "losses.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Losses(), head(), path, dynamo=True, input_names=list("abcd"), verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = head(seed=1)
    found = session.run(None, {i.name: t.numpy() for i, t in zip(session.get_inputs(), given, strict=True)})
    for a, b in zip(found, losses(*given), strict=True):
        torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-5, atol=1e-5)
