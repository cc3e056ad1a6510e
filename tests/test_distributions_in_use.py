"""Draws from vae_fast.distributions, KLs between them, and what torch does with them: copies, vmap, compile, second derivatives."""

import copy
import pickle

import pytest
import torch
import torch.distributions as T
from distribution_cases import CASES, NORMALS, every, mixture, needs_kernels, pair
from torch.distributions import kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

import vae_fast
from vae_fast import distributions as D

# --- draws ------------------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (0,), torch.Size([1])])
def test_sample_shapes(case, shape, backend):
    ours, torchs, *_ = pair(case)
    for method in ("sample", "rsample") if ours.has_rsample else ("sample",):
        if 0 in shape and any(word in repr(torchs).lower() for word in ("mixture", "categorical", "multinomial")):
            continue  # of nothing, torch's Categorical draws none
        got, wanted = getattr(ours, method)(shape), getattr(torchs, method)(shape)
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
        assert not got.requires_grad
    assert ours.sample().shape == ours.batch_shape + ours.event_shape


def test_a_mixture_draws_nothing():
    assert pair(CASES["mixture"])[0].sample((0, 2)).shape == (0, 2, 3)


@every
def test_mean_and_variance_of_draws(case, backend):
    d, *_ = pair(case)
    n = 20_000
    x, mean, variance = d.sample((n,)), d.mean, d.variance
    if not x.is_floating_point():  # a class has no mean: how often each is drawn
        p = getattr(d, "base_dist", d).probs
        x, mean, variance = torch.nn.functional.one_hot(x, p.shape[-1]).to(p.dtype), p, p * (1.0 - p)
    error = (x.mean(0) - mean).abs() / (variance / n).sqrt()
    assert error.max() < 4.5
    torch.testing.assert_close(x.var(0), variance, rtol=0.15, atol=0.0)


@every
def test_the_seed_decides_the_draws(case, backend):
    d, *_ = pair(case)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(d.sample((5,)))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    if "Normal" in type(d).__name__:
        torch.manual_seed(1)
        assert torch.equal(d.rsample((5,)), draws[0])


@pytest.mark.parametrize("name", NORMALS)
def test_rsample_is_differentiable(name, backend):
    d, _, mine, _ = pair(CASES[name], grad=True)
    z = d.rsample((7,))
    noise = ((z - mine["loc"]) / mine["scale"]).detach()
    loc, scale = torch.autograd.grad((z * z).sum(), [mine["loc"], mine["scale"]])
    torch.testing.assert_close(loc, (2 * z.detach()).sum_to_size(loc.shape))
    torch.testing.assert_close(scale, (2 * z.detach() * noise).sum_to_size(scale.shape))


def test_elements_of_an_expanded_normal_are_independent(backend):
    z = D.Normal(0.0, 1.0).expand((4000,)).rsample()
    assert z.unique().numel() == 4000
    assert 0.9 < z.std() < 1.1


# --- KL ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NORMALS)
@pytest.mark.parametrize("mixed", ["both ours", "prior torch's", "posterior torch's"])
def test_kl_against_torch(name, mixed, backend):
    p, tp, mine, theirs = pair(CASES[name], grad=True)
    q, tq, *_ = pair(CASES[name])
    out = kl_divergence(tp if mixed == "posterior torch's" else p, tq if mixed == "prior torch's" else q)
    wanted = kl_divergence(tp, tq)
    torch.testing.assert_close(out, wanted, rtol=1e-9, atol=1e-12)
    mine, theirs = (list((theirs if mixed == "posterior torch's" else mine).values()), list(theirs.values()))
    for a, b in zip(torch.autograd.grad(out.sum(), mine), torch.autograd.grad(wanted.sum(), theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_kl_by_monte_carlo(backend):
    p = D.Independent(D.Normal(torch.randn(3).double(), torch.rand(3).double() + 0.3), 1)
    q = D.Independent(D.Normal(torch.randn(3).double(), torch.rand(3).double() + 0.3), 1)
    x = p.sample((50_000,))
    ratio = p.log_prob(x) - q.log_prob(x)
    assert abs(ratio.mean() - kl_divergence(p, q)) < 4.5 * ratio.std() / 50_000**0.5


def test_kl_from_a_scalar_prior(backend):
    loc, scale = torch.randn(4, 3), torch.rand(4, 3) + 0.3
    out = kl_divergence(D.Normal(loc, scale), D.Normal(0.0, 1.0))
    torch.testing.assert_close(out.sum(-1), vae_fast.gaussian_kl(loc, scale, scale="std"))


@needs_kernels
def test_kl_of_independents_is_one_kernel():
    called = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(function.name())
            return function(*args, **(kwargs or {}))

    p, q = (D.Independent(D.Normal(torch.randn(4, 3), 1.0, validate_args=False), 1) for _ in range(2))
    with Seen():
        kl_divergence(p, q)
    assert called == ["vae_fast::term"]


def test_other_kls_are_torchs():
    p, q = D.Laplace(torch.zeros(2), 1.0), D.Laplace(torch.ones(2), 2.0)
    torch.testing.assert_close(kl_divergence(p, q), kl_divergence(T.Laplace(torch.zeros(2), 1.0), T.Laplace(torch.ones(2), 2.0)))
    both = D.Independent(p, 1), D.Independent(q, 1)
    torch.testing.assert_close(kl_divergence(*both), kl_divergence(p, q).sum())
    assert kl_divergence(D.Normal(0.0, 1.0), T.Gumbel(0.0, 1.0)).shape == ()
    with pytest.raises(NotImplementedError):
        kl_divergence(D.Independent(D.Normal(torch.zeros(2, 2), 1.0), 1), D.Independent(D.Normal(torch.zeros(2, 2), 1.0), 2))


# --- subclasses, copies, transforms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [D.Normal, T.Normal])
def test_a_subclass_with_its_own_log_prob_is_asked(base):
    class Twice(base):
        def log_prob(self, value):
            return 2 * super().log_prob(value)

    loc, x = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(D.Independent(Twice(loc, 1.0), 1).log_prob(x), 2 * T.Normal(loc, 1.0).log_prob(x).sum(-1))
    out = mixture(D, D.Independent(Twice(loc, 1.0), 1), torch.zeros(4)).log_prob(x)
    torch.testing.assert_close(out, mixture(T, T.Independent(Twice(loc, 1.0), 1), torch.zeros(4)).log_prob(x))
    assert type(Twice(loc, 1.0).expand((2, 4, 3))) is Twice


def test_lazy_properties_stay_lazy():
    p = torch.rand(3).double()
    d, x = D.Bernoulli(probs=p), torch.tensor([0.0, 1.0, 1.0]).double()
    before = d.log_prob(x)
    assert "logits" not in d.__dict__
    torch.testing.assert_close(d.logits, torch.logit(p))
    assert torch.equal(d.log_prob(x), before)
    d = D.Bernoulli(logits=p)
    d.log_prob(x)
    assert "probs" not in d.__dict__


@every
@pytest.mark.parametrize("way", [lambda d: pickle.loads(pickle.dumps(d)), copy.deepcopy, copy.copy], ids=["pickle", "deepcopy", "copy"])
def test_copies(case, way):
    d, *_ = pair(case)
    value = case.value().double()
    d.log_prob(value)
    again = way(d)
    assert type(again) is type(d)
    assert torch.equal(again.log_prob(value), d.log_prob(value))


@every
def test_vmap_over_a_parameter(case):
    if case is CASES["ContinuousBernoulli, probs"]:  # torch's constructor looks at the values, whatever validate_args is
        return
    given, value = case.drawn(), case.value().double()
    name, t = next(iter(given.items()))

    def log_prob(lib, t):
        return case.make(lib, **given | {name: t}, validate_args=False).log_prob(value)

    many = torch.stack([t, t + 0.1])
    torch.testing.assert_close(torch.vmap(lambda t: log_prob(D, t))(many), torch.stack([log_prob(T, t) for t in many]))
    torch.testing.assert_close(
        torch.func.grad(lambda t: log_prob(D, t).sum())(t), torch.func.grad(lambda t: log_prob(T, t).sum())(t), rtol=1e-8, atol=1e-8
    )


@needs_kernels
@pytest.mark.parametrize("name", ["Normal", "Bernoulli, probs", "Independent Normal", "mixture", "mixtures", "mixture of Laplaces"])
def test_compile_without_a_graph_break(name):
    case = CASES[name]
    given, value = case.drawn(torch.float32, grad=True), case.value()

    def loss(value, **given):
        d = case.make(D, **given)
        return d.log_prob(value).sum() + (d.rsample().sum() if d.has_rsample else 0.0)

    torch._dynamo.reset()
    torch.manual_seed(3)
    wanted = loss(value, **given)
    wanted_gradients = torch.autograd.grad(wanted, list(given.values()))
    torch.manual_seed(3)
    out = torch.compile(loss, fullgraph=True, backend="aot_eager")(value, **given)
    torch.testing.assert_close(out, wanted)
    for a, b in zip(torch.autograd.grad(out, list(given.values())), wanted_gradients, strict=True):
        torch.testing.assert_close(a, b)


@every
def test_second_derivatives(case):
    ours, torchs, mine, theirs = pair(case, grad=True)
    value, second = case.value().double(), []
    for d, parameters in ((ours, mine), (torchs, theirs)):
        leaves = list(parameters.values())
        first = torch.autograd.grad(d.log_prob(value).sum(), leaves, create_graph=True)
        total = sum((g * g).sum() for g in first)
        second.append(torch.autograd.grad(total, leaves, allow_unused=True))
    for a, b in zip(*second, strict=True):
        torch.testing.assert_close(torch.zeros(1) if a is None else a, torch.zeros(1) if b is None else b, rtol=1e-7, atol=1e-7)
