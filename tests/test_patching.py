"""vae_fast.patched: the same numbers by our kernels, in a scope that leaves nothing behind; against the real packages."""

import pickle
import re
import threading
from importlib import metadata

import pytest
import torch
import torch.distributions as T
from distribution_cases import every, needs_kernels
from torch.distributions import Normal as imported_before
from torch.distributions import kl, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

import vae_fast
from vae_fast import patching
from vae_fast.errors import MissingExtraError, UnknownVersionError

NAMES = (
    "Bernoulli",
    "ContinuousBernoulli",
    "Independent",
    "Laplace",
    "LogNormal",
    "MixtureSameFamily",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "StudentT",
)


class SubclassFromBefore(T.Normal):
    pass


def state():
    """Everything that a scope over torch.distributions could change, by identity."""
    found = {
        f"{kind.__name__}.{name}": id(value) for kind in vars(T).values() if isinstance(kind, type) for name, value in vars(kind).items()
    }
    return found | {pair: id(function) for pair, function in kl._KL_REGISTRY.items()} | {name: id(value) for name, value in vars(T).items()}


def kernels_in(call):
    called = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(function.name())
            return function(*args, **(kwargs or {}))

    with Seen():
        call()
    return [name for name in called if name.startswith("vae_fast::")]


def ours(p):
    """Whether a distribution's log_prob is computed by this package."""
    return type(p).log_prob.__module__.startswith("vae_fast.")


# --- scopes -----------------------------------------------------------------------------------------------------------


def test_a_scope_says_what_it_replaced_and_leaves_nothing_behind():
    before = state()
    with vae_fast.patched("torch.distributions") as names:
        assert {f"torch.distributions.{name}.log_prob" for name in NAMES} <= set(names)
        changed = {name for name, value in state().items() if before.get(name) != value}
        assert len(changed) == len(names)
        assert ours(T.Normal(0.0, 1.0))
    assert state() == before


def test_it_leaves_nothing_behind_after_an_error():
    before = state()
    with pytest.raises(KeyError), vae_fast.patched("torch.distributions"):
        raise KeyError
    assert state() == before


def test_scopes_nest_and_patch_counts():
    before = state()
    with vae_fast.patched("torch.distributions") as outer:
        with vae_fast.patched("torch.distributions") as inner:
            assert inner == outer
        assert vae_fast.patch("torch.distributions") == outer
        vae_fast.unpatch("torch.distributions")
        assert ours(T.Normal(0.0, 1.0))
    assert state() == before
    with pytest.raises(ValueError, match=re.escape("target='torch.distributions': expected a patched target; patched now: none")):
        vae_fast.unpatch("torch.distributions")


def test_scopes_of_two_threads_overlap():
    before, inside, leave, seen = state(), threading.Event(), threading.Event(), []

    def other():
        with vae_fast.patched("torch.distributions"):
            inside.set()
            leave.wait(30)
            seen.append(ours(T.Normal(0.0, 1.0)))

    thread = threading.Thread(target=other)
    with vae_fast.patched("torch.distributions"):
        thread.start()
        assert inside.wait(30)
    assert ours(T.Normal(0.0, 1.0))  # the other's scope is open
    leave.set()
    thread.join()
    assert seen == [True]
    assert state() == before


def test_many_threads():
    before, failed = state(), []

    def work():
        for _ in range(100):
            with vae_fast.patched("torch.distributions"):
                if not ours(T.Normal(0.0, 1.0, validate_args=False)):
                    failed.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert state() == before


def test_as_a_decorator():
    @vae_fast.patched("torch.distributions")
    def f(depth):
        return ours(T.Normal(0.0, 1.0)) and (depth == 0 or f(depth - 1))

    assert f(2)
    assert not ours(T.Normal(0.0, 1.0))


def test_what_somebody_else_put_there_is_left_and_named(monkeypatch):
    monkeypatch.setattr(T.Laplace, "log_prob", T.Laplace.log_prob)  # put back at the end
    before = state()
    words = "torch.distributions.Laplace.log_prob: replaced by other code while vae_fast had patched torch.distributions"
    with pytest.warns(RuntimeWarning, match=words), vae_fast.patched("torch.distributions"):
        T.Laplace.log_prob = theirs = lambda self, value: value
    assert {name for name, value in state().items() if before[name] != value} == {"Laplace.log_prob"}
    assert T.Laplace.log_prob is theirs


@pytest.mark.parametrize(
    ("target", "kind", "words"),
    [
        ("torch", ValueError, "target='torch': expected one of 'torch.distributions', 'pythae'"),
        ("", ValueError, "target='': expected one of"),
        (torch, TypeError, "target: expected a str, got module"),
        (None, TypeError, "target: expected a str, got NoneType"),
    ],
)
def test_unknown_targets_are_refused(target, kind, words):
    for call in (vae_fast.patch, lambda target: vae_fast.patched(target).__enter__()):
        with pytest.raises(kind, match=re.escape(words)) as caught:
            call(target)
        assert "\n" not in str(caught.value)
    with pytest.raises(kind, match="target"):
        vae_fast.unpatch(target)


@pytest.mark.parametrize("version", ["2.12.1", "2.14.0", "3.0", "2.130", "2"])
def test_unknown_versions_are_refused_by_name(version, monkeypatch):
    before = state()
    monkeypatch.setattr(metadata, "version", lambda name: version)
    with pytest.raises(
        UnknownVersionError,
        match=re.escape(f"torch {version} has not been tested with vae_fast.patch('torch.distributions'): expected 2.11 or 2.13"),
    ):
        vae_fast.patch("torch.distributions")
    assert state() == before


@pytest.mark.parametrize("version", ["2.11.0+cu130", "2.13", "2.13.0", "2.13.1+cpu"])
def test_known_versions(version, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: version)
    with vae_fast.patched("torch.distributions"):
        pass


def test_a_package_that_is_not_there_is_named(monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(MissingExtraError, match="patching pythae needs pythae: install it with `pip install pythae`"):
        vae_fast.patch("pythae")


def test_a_package_that_lacks_what_would_be_replaced_is_refused_whole(monkeypatch):
    monkeypatch.delattr(T.MixtureSameFamily, "expand")
    before = state()
    with pytest.raises(UnknownVersionError, match=r"torch does not have torch\.distributions\.MixtureSameFamily\.expand where"):
        vae_fast.patch("torch.distributions")
    assert state() == before


# --- torch.distributions ----------------------------------------------------------------------------------------------


@every
def test_torchs_own_classes_compute_the_same_by_our_kernels(case, backend):
    given, value = case.drawn(grad=True), case.value().double()
    p = case.make(T, **given)
    wanted = p.log_prob(value)
    gradients = torch.autograd.grad(wanted.sum(), list(given.values()), retain_graph=True)  # a Categorical has a part of it
    torch.manual_seed(5)
    draws = p.sample((3,))
    with vae_fast.patched("torch.distributions"):
        for q in (p, case.make(T, **given)):  # from before and from within
            assert isinstance(q, getattr(T, type(q).__name__))
            out = q.log_prob(value)
            torch.testing.assert_close(out, wanted, rtol=1e-9, atol=1e-9)
            for a, b in zip(torch.autograd.grad(out.sum(), list(given.values()), retain_graph=True), gradients, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
            torch.manual_seed(5)
            assert torch.equal(q.sample((3,)), draws)
        if backend == "compiled" and case.row:
            assert len(kernels_in(lambda: p.log_prob(value))) == 1
        inside = pickle.dumps(p)
    assert torch.equal(pickle.loads(inside).log_prob(value), wanted)


def test_kl_divergence(backend):
    p, q = (T.Independent(T.Normal(torch.randn(4, 3).double(), 1.0 + torch.rand(4, 3).double()), 1) for _ in range(2))
    wanted = kl_divergence(p, q)  # which torch remembers the function of
    with vae_fast.patched("torch.distributions"):
        torch.testing.assert_close(kl_divergence(p, q), wanted)
        torch.testing.assert_close(kl_divergence(p.base_dist, q.base_dist).sum(-1), wanted)
        if backend == "compiled":
            assert kernels_in(lambda: kl_divergence(p, q)) == ["vae_fast::term"]
    assert kernels_in(lambda: kl_divergence(p, q)) == []


@needs_kernels
def test_names_and_subclasses_from_before_are_computed_by_our_kernels():
    x = torch.zeros(2)
    with vae_fast.patched("torch.distributions"):
        for kind in (imported_before, SubclassFromBefore):
            assert len(kernels_in(lambda kind=kind: kind(x, 1.0).log_prob(x))) == 1
            assert isinstance(kind(x, 1.0), T.Normal)


def test_pyro_trains_alike():
    pyro = pytest.importorskip("pyro", reason="pyro-ppl is not installed")
    from pyro import distributions as dist
    from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

    x = torch.randn(64, 5)

    def model():
        with pyro.plate("data", 64):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            w = pyro.param("w", lambda: torch.randn(2, 5))
            pyro.sample("x", dist.Normal(z @ w, 0.5).to_event(1), obs=x)

    def guide():
        loc, scale = (
            pyro.param("loc", lambda: torch.randn(64, 2)),
            pyro.param("scale", lambda: torch.ones(2), constraint=dist.constraints.positive),
        )
        with pyro.plate("data", 64):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def losses(bound):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        steps = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), bound())
        return torch.tensor([steps.step() for _ in range(10)])

    for bound in (Trace_ELBO, TraceMeanField_ELBO):
        wanted = losses(bound)
        with vae_fast.patched("torch.distributions"):
            torch.testing.assert_close(losses(bound), wanted, rtol=1e-5, atol=0.0)


# --- pythae -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pythae():
    return pytest.importorskip("pythae.models", reason="pythae is not installed (pip install 'vae_fast[adoption]')")


def autoencoder(pythae, kind, form):
    torch.manual_seed(0)
    options = {"input_dim": (1, 8, 8), "latent_dim": 4, "reconstruction_loss": form}
    if kind == "BetaVAE":
        options["beta"] = 2.5
    model = getattr(pythae, kind)(getattr(pythae, f"{kind}Config")(**options))
    return model.train()


def curve(model, x, steps=5):
    torch.manual_seed(1)
    optimizer, out = torch.optim.Adam(model.parameters(), lr=1e-3), []
    for _ in range(steps):
        optimizer.zero_grad()
        found = model({"data": x})
        found.loss.backward()
        optimizer.step()
        out.append(torch.stack([found.loss, found.recon_loss, found.reg_loss]).detach())
    return torch.stack(out), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("kind", ["VAE", "BetaVAE"])
@pytest.mark.parametrize("form", ["mse", "bce"])
def test_pythae_trains_alike(pythae, kind, form, backend):
    x = torch.rand(16, 1, 8, 8)
    before = vars(getattr(pythae, kind))["loss_function"]
    wanted, gradients = curve(autoencoder(pythae, kind, form), x)
    model = autoencoder(pythae, kind, form)
    with vae_fast.patched("pythae") as names:
        assert names == ("pythae.models.VAE.loss_function", "pythae.models.BetaVAE.loss_function")
        found, found_gradients = curve(model, x)
        if backend == "compiled":
            assert len(kernels_in(lambda: model({"data": x}))) == 2
    assert vars(getattr(pythae, kind))["loss_function"] is before
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0.0)
    for a, b in zip(found_gradients, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_pythae_refuses_the_same_data(pythae):
    model, x = autoencoder(pythae, "VAE", "bce"), torch.full((4, 1, 8, 8), 2.0)
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        model({"data": x})
    with vae_fast.patched("pythae"), pytest.raises(ValueError, match=re.escape("x[0, 0] = 2.0: expected values in [0, 1]")):
        model({"data": x})


# --- documentation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", patching.TARGETS)
def test_every_target_and_version_is_documented(target):
    rows = patching.patch.__doc__.partition(f"    {target} ")[2].partition("``")[0]
    entry = patching.TARGETS[target]
    assert all(version in patching.patch.__doc__.partition(f"    {target} ")[2][:200] for version in entry.versions)
    assert entry.package in rows + target
