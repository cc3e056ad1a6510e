"""models.MixtureOfGaussians as a module, on degenerate data, and what it refuses."""

import copy
import io
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from mixture_cases import KINDS, LEARNED, as_torch, blobs, explicit_start, random_mixture
from torch import nn
from torch.func import functional_call

from vae_fast import models
from vae_fast.models import MixtureOfGaussians, _mixture_start

pytestmark = pytest.mark.usefixtures("one_thread")


# --- the module -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_log_prob_is_torch_distributions(backend, device, kind, dtype):
    mixture = random_mixture(kind).to(device=device, dtype=dtype)
    x = torch.randn(4, 5, 2, dtype=torch.float64)
    want = as_torch(random_mixture(kind)).log_prob(x)
    p = mixture.distribution()
    assert (p.batch_shape, p.event_shape) == ((), (2,))
    near = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    for got in (mixture(x.to(device, dtype)), mixture.log_prob(x.to(device, dtype)), p.log_prob(x.to(device, dtype))):
        assert got.dtype == dtype and got.device.type == device
        torch.testing.assert_close(got.cpu().double(), want, **near)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_all_parameters(backend, kind):
    mixture, x = random_mixture(kind), torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    names = ("weight_logits", "means", "scale")

    def f(x, *values):
        return functional_call(mixture, dict(zip(names, values, strict=True)), x)

    assert torch.autograd.gradcheck(f, (x, *(getattr(mixture, n).detach().requires_grad_() for n in names)))


def test_it_trains_inside_a_larger_model(backend):
    """A flow's base density: the loss falls, and every parameter has moved."""
    torch.manual_seed(0)
    base = MixtureOfGaussians(4, covariance_type="full", n_features=2, random_state=0)
    flow = nn.ModuleDict({"layer": nn.Linear(2, 2), "base": base})
    x = blobs(200, dtype=torch.float32)
    before = copy.deepcopy(flow.state_dict())
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.05)

    def loss():
        return -(base(flow["layer"](x)) + torch.linalg.slogdet(flow["layer"].weight).logabsdet).mean()

    first = loss().item()
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < first - 1.0
    moved = {name for name, t in flow.state_dict().items() if not torch.equal(t, before[name])}
    assert moved == {"layer.weight", "layer.bias", "base.weight_logits", "base.means", "base.scale"}


@pytest.mark.parametrize("kind", KINDS)
def test_any_numbers_are_valid_parameters(kind):
    mixture = random_mixture(kind, k=4, d=3)
    with torch.no_grad():
        for p in mixture.parameters():
            p.copy_(5.0 * torch.randn_like(p))
    assert mixture.log_prob(torch.zeros(2, 3, dtype=torch.float64)).isfinite().all()
    covariances = mixture.covariances_
    assert (np.linalg.eigvalsh(mixture.precisions_) > 0).all() if kind in ("full", "tied") else (covariances > 0).all()
    assert mixture.weights_.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_sampling(device, kind):
    mixture, n = random_mixture(kind).to(device), 40_000
    p = mixture.distribution()
    x, component = p.sample_with_component((4, n // 4), generator=torch.Generator(device).manual_seed(0))
    assert x.shape == (4, n // 4, 2) and component.shape == (4, n // 4) and not x.requires_grad
    x, component = x.reshape(n, 2).cpu(), component.reshape(n).cpu()
    share = np.bincount(component, minlength=3) / n
    np.testing.assert_allclose(share, mixture.weights_, atol=4 * 0.5 / math.sqrt(n))
    want = as_torch(mixture.cpu())
    for k in range(3):
        z = x[component == k] - torch.from_numpy(mixture.means_[k])
        covariance = want.component_distribution.covariance_matrix[k]
        white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), z.T, upper=False)
        np.testing.assert_allclose(np.cov(white.numpy(), bias=True), np.eye(2), atol=6 / math.sqrt(len(z)))
    torch.testing.assert_close(mixture.distribution().mean, want.mean)
    torch.testing.assert_close(mixture.distribution().variance, want.variance)
    torch.testing.assert_close(x.mean(0), want.mean, atol=6 * want.variance.max().sqrt().item() / math.sqrt(n), rtol=0)


def test_sampling_draws_one_gaussian_for_each_sample(monkeypatch):
    shapes = []
    real = torch.randn
    mixture = random_mixture("full", k=7)
    monkeypatch.setattr(torch, "randn", lambda shape, **k: shapes.append(tuple(shape)) or real(shape, **k))
    mixture.sample(11)
    assert shapes == [(11, 2)]


def test_sample_is_repeatable_and_of_the_kind_that_was_fitted():
    x = blobs()
    fitted = MixtureOfGaussians(3, random_state=7).fit(x.numpy())
    (a, label), (b, _) = fitted.sample(20), fitted.sample(20)
    assert isinstance(a, np.ndarray) and a.dtype == np.float64 and label.dtype == np.int64
    np.testing.assert_array_equal(a, b)
    assert isinstance(MixtureOfGaussians(3).fit(x).sample(2)[0], torch.Tensor)
    state = torch.Generator().manual_seed(1)
    one, two = (MixtureOfGaussians(3, random_state=r).fit(x).sample(4)[0] for r in (state, np.random.RandomState(0)))
    assert not torch.equal(one, two)
    with pytest.raises(TypeError, match="random_state='seed': expected None, an int"):
        MixtureOfGaussians(3, random_state="seed").fit(x)


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_round_trip(kind):
    x = blobs()
    mixture = MixtureOfGaussians(3, covariance_type=kind, random_state=0).fit(x)
    file = io.BytesIO()
    torch.save(mixture.state_dict(), file)
    for other in (MixtureOfGaussians(3, covariance_type=kind), MixtureOfGaussians(3, covariance_type=kind, n_features=2).double()):
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(other.score_samples(x), mixture.score_samples(x))
        assert other.means.dtype == torch.float64
    for twin in (copy.deepcopy(mixture), pickle.loads(pickle.dumps(mixture))):
        np.testing.assert_array_equal(twin.predict(x.numpy()), mixture.predict(x.numpy()))
        assert twin.n_iter_ == mixture.n_iter_
    with pytest.raises(RuntimeError, match="means"):
        MixtureOfGaussians(4, covariance_type=kind).load_state_dict(mixture.state_dict())


def test_to_and_refit_keep_the_parameters_of_an_optimizer():
    x = blobs()
    mixture = MixtureOfGaussians(3, n_features=2, dtype=torch.float64, random_state=0)
    parameters = list(mixture.parameters())
    mixture.fit(x)
    assert all(a is b for a, b in zip(parameters, mixture.parameters(), strict=True))
    mixture.float().fit(x)
    assert mixture.means.dtype == torch.float64  # what dtype= says
    module = MixtureOfGaussians(3, n_features=2).fit(x)
    assert module.means.dtype == torch.float32  # what it was built as
    assert MixtureOfGaussians(3).fit(x.float()).means.dtype == torch.float32  # what the data are
    assert MixtureOfGaussians(3).fit(x.half()).means_.dtype == np.float32
    assert MixtureOfGaussians(3).fit((10 * x).int().numpy()).means_.dtype == np.float64
    assert MixtureOfGaussians(3, dtype=torch.float32).fit(x.tolist()).means_.dtype == np.float32


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_compiles_without_a_graph_break(backend, kind):
    mixture, x = random_mixture(kind), torch.randn(5, 2, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(mixture.log_prob, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), mixture.log_prob(x), rtol=1e-12, atol=1e-12)
    compiled(x).sum().backward()
    got = [p.grad.clone() for p in mixture.parameters()]
    mixture.zero_grad()
    mixture(x).sum().backward()
    for a, b in zip(got, mixture.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad, rtol=1e-10, atol=1e-12)


def test_tensors_come_back_where_they_came_from(device):
    x = blobs(dtype=torch.float32).to(device)
    mixture = MixtureOfGaussians(3, random_state=0).fit(x)
    assert mixture.means.device.type == device
    for got, shape in ((mixture.predict(x), (300,)), (mixture.predict_proba(x), (300, 3)), (mixture.score_samples(x.cpu()), (300,))):
        assert isinstance(got, torch.Tensor) and got.shape == shape
    assert mixture.predict(x).device == x.device and mixture.score_samples(x.cpu()).device.type == "cpu"
    assert isinstance(mixture.predict(x.cpu().numpy()), np.ndarray)
    elsewhere = MixtureOfGaussians(3, random_state=0, device=device, batch_size=100).fit(x.cpu().numpy())
    assert elsewhere.means.device.type == device
    np.testing.assert_allclose(elsewhere.means_, mixture.means_, atol=1e-3)


def test_callback_sees_every_iteration():
    x, seen = blobs(), []
    mixture = MixtureOfGaussians(3, random_state=0)
    mixture.fit(x, callback=lambda m, iteration, bound: seen.append((m is mixture, iteration, bound, m.score(x))))
    assert [s[:3] for s in seen] == [(True, i + 1, b) for i, b in enumerate(mixture.lower_bounds_)]
    assert [s[3] for s in seen[:-1]] == pytest.approx(mixture.lower_bounds_[1:], abs=1e-12)


# --- degenerate data: a number or an error, never NaN -----------------------------------------------------------------


def all_finite(mixture, X):
    with np.errstate(all="ignore"):
        arrays = [getattr(mixture, name) for name in LEARNED[:-1]]
        results = [mixture.score_samples(X), mixture.predict_proba(X), mixture.lower_bounds_]
    return all(np.isfinite(np.asarray(a)).all() for a in [*arrays, *results])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_constant_features_and_duplicates(backend, kind, dtype):
    X = blobs(120, d=5).numpy().astype(dtype)
    X[:, 3], X[:, 4] = 0.0, 7.3
    X = np.concatenate([X, X[:60]])
    mixture = MixtureOfGaussians(4, covariance_type=kind, random_state=0).fit(X)
    assert all_finite(mixture, X)


@pytest.mark.parametrize("method", ["em", "adam"])
@pytest.mark.parametrize("init", ["kmeans", "k-means++", "random", "random_from_data"])
@pytest.mark.parametrize("kind", KINDS)
def test_more_components_than_points(kind, init, method):
    X = np.repeat(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), 5, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixture = MixtureOfGaussians(6, covariance_type=kind, init_params=init, random_state=0, method=method, max_iter=30).fit(X)
    assert all_finite(mixture, X)


@pytest.mark.parametrize("kind", KINDS)
def test_digits_in_single_precision(sklearn_data, kind):
    X = sklearn_data("digits").astype(np.float32)[:500]
    mixture = MixtureOfGaussians(5, covariance_type=kind, random_state=0, max_iter=10, tol=0.1).fit(X)
    assert all_finite(mixture, X)


@pytest.mark.parametrize("kind", KINDS)
def test_singular_covariances_are_named(backend, kind):
    """One group is a single point, repeated; without reg_covar there is nothing to invert."""
    X = np.concatenate([blobs(50).numpy(), np.full((20, 2), 50.3)])
    means = np.array([[1.0, 1.0], [50.0, 50.0]])
    start = explicit_start(X, 2, kind) | {"means_init": means, "reg_covar": 0.0}
    if kind == "tied":
        X[:, 1] = 2.5
        start["means_init"][:, 1] = 2.5
    which = "the tied covariance is" if kind == "tied" else "the covariance of component 1 is"
    with pytest.raises(models.SingularCovarianceError, match=rf"iteration \d+: {which} singular .*raise reg_covar=0, ask for fewer"):
        MixtureOfGaussians(**start, max_iter=50, tol=0.0).fit(X)
    assert issubclass(models.SingularCovarianceError, ValueError)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert all_finite(MixtureOfGaussians(**start | {"reg_covar": 1e-6}, max_iter=50).fit(X), X)


@pytest.mark.parametrize("kind", ["full", "tied"])
def test_a_feature_that_repeats_another_is_singular(kind):
    x = blobs()
    X = torch.cat([x, x[:, :1] * 3.0 + 1.0], 1)
    with pytest.raises(models.SingularCovarianceError, match="combination of others"):
        MixtureOfGaussians(2, covariance_type=kind, reg_covar=0.0, random_state=0).fit(X)


def test_dead_components_are_named_kept_finite_and_reseeded():
    X = np.concatenate([blobs(100).numpy(), blobs(100, seed=1).numpy() + 40.0])
    means = np.array([[0.0, 0.0], [1e6, 1e6], [5.0, 0.0]])
    start = explicit_start(X, 3, "full") | {"means_init": means, "precisions_init": np.stack([np.eye(2)] * 3)}
    with pytest.warns(models.DeadComponentWarning, match="component 1 of 3: fewer than 0.1 samples.*reseed_dead"):
        dead = MixtureOfGaussians(**start).fit(X)
    assert all_finite(dead, X) and dead.weights_[1] < 1e-12
    np.testing.assert_allclose(dead.means_[1], [1e6, 1e6])
    with warnings.catch_warnings():
        warnings.simplefilter("error", models.DeadComponentWarning)
        alive = MixtureOfGaussians(**start, reseed_dead=True).fit(X)
    assert alive.weights_.min() > 0.1 and alive.score(X) > dead.score(X) + 0.1
    online = MixtureOfGaussians(**start, reseed_dead=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", models.DeadComponentWarning)
        for _ in range(10):
            online.partial_fit(X)
    assert online.weights_.min() > 0.01


def test_weights_of_zero():
    """EM gives such a component 10 eps of a sample and leaves it in place; the gradient leaves it without weight."""
    x = blobs()
    start = explicit_start(x.numpy(), 3, "diag") | {"weights_init": [0.5, 0.0, 0.5]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        em = MixtureOfGaussians(**start, max_iter=1).fit(x)
        adam = MixtureOfGaussians(**start, max_iter=20, method="adam").fit(x)
    assert all_finite(em, x.numpy()) and all_finite(adam, x.numpy())
    np.testing.assert_allclose(em.weights_[1], 10 * np.finfo(float).eps / len(x), rtol=1e-6)
    np.testing.assert_allclose(em.means_[1], start["means_init"][1], rtol=1e-12)
    np.testing.assert_allclose(em.precisions_[1], start["precisions_init"][1], rtol=1e-12)
    assert adam.weights_[1] == 0.0


def test_values_out_of_range_are_an_error():
    X = blobs(20).numpy()
    X[3, 0] = 1e200
    with pytest.raises(ValueError, match=r"out of range|singular"):
        MixtureOfGaussians(2, random_state=0).fit(X)


# --- k-means ----------------------------------------------------------------------------------------------------------


def test_nearest_is_exact_far_from_the_origin(monkeypatch):
    monkeypatch.setattr(_mixture_start, "_AT_ONCE", 64)
    x = blobs(dtype=torch.float32) + 4096.0
    centres = x[:5]
    label, distance = _mixture_start.nearest(x, centres)
    want = (x.double().unsqueeze(1) - centres.double()).square().sum(2)
    torch.testing.assert_close(distance.double(), want.amin(1), rtol=1e-3, atol=1e-3)
    assert (want.gather(1, label.unsqueeze(1)).squeeze(1) <= want.amin(1) + 1e-3).all()


def test_kmeans_is_scikit_learns(sklearn_data):
    cluster = pytest.importorskip("sklearn.cluster")
    X = torch.from_numpy(sklearn_data("digits"))
    start = X[:10]
    want = cluster.KMeans(10, init=start.numpy(), n_init=1, tol=0.0, algorithm="lloyd").fit(X.numpy())
    np.testing.assert_allclose(_mixture_start.kmeans(X, start, tol=0.0), want.cluster_centers_, atol=1e-9)
    # The greedy seeds alone are close to what Lloyd makes of random ones (a factor of 2 is what is seen; uniform seeds give more).
    seeds = _mixture_start.plus_plus(X, 10, torch.Generator().manual_seed(0))
    assert _mixture_start.nearest(X, seeds)[1].sum() < 2.0 * want.inertia_
    assert len(seeds.unique(dim=0)) == 10


def test_empty_clusters_move_to_the_furthest_samples():
    x = torch.tensor([[0.0], [0.1], [10.0], [10.1]])
    centres = _mixture_start.kmeans(x, torch.tensor([[0.0], [1e4], [2e4]]))
    assert len(torch.unique(_mixture_start.nearest(x, centres)[0])) == 3


# --- bad arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_components": 0}, ("n_components=0", "at least 1")),
        ({"n_components": 2.0}, ("n_components=2.0", "int")),
        ({"covariance_type": "round"}, ("covariance_type='round'", "'full'")),
        ({"init_params": "k-means"}, ("init_params='k-means'", "'kmeans'")),
        ({"method": "sgd"}, ("method='sgd'", "'adam'")),
        ({"tol": -1.0}, ("tol=-1.0", "[0")),
        ({"reg_covar": math.nan}, ("reg_covar=nan",)),
        ({"max_iter": -1}, ("max_iter=-1",)),
        ({"n_init": 0}, ("n_init=0",)),
        ({"lr": -0.1}, ("lr=-0.1",)),
        ({"batch_size": 0}, ("batch_size=0",)),
        ({"n_features": 0}, ("n_features=0",)),
        ({"dtype": torch.int64}, ("dtype=torch.int64", "torch.float32")),
        ({"learning_decay": 0.5}, ("learning_decay=0.5", "(0.5, 1]")),
        ({"reseed_dead": True, "method": "adam"}, ("reseed_dead=True", "method='adam'")),
    ],
)
def test_bad_constructor_arguments(options, words):
    with pytest.raises((TypeError, ValueError)) as error:
        MixtureOfGaussians(**options)
    assert all(word in str(error.value) for word in words)
    model = MixtureOfGaussians().set_params(**options)  # scikit-learn's way round the constructor
    with pytest.raises((TypeError, ValueError)):
        model.fit(blobs())


@pytest.mark.parametrize(
    ("X", "words"),
    [
        (np.zeros(5), ("X has shape (5,)", "(n_samples, n_features)", "reshape(-1, 1)")),
        (np.zeros((2, 3, 4)), ("X has shape (2, 3, 4)",)),
        (np.zeros((0, 3)), ("X has shape (0, 3)", "at least one sample")),
        (np.zeros((2, 2)), ("X has 2 samples", "n_components=3")),
        (np.array([[1.0, 2.0], [3.0, np.nan], [0.0, 0.0]]), ("X[1, 1] is nan", "finite")),
        (torch.tensor([[1.0, 2.0], [3.0, 4.0], [math.inf, 0.0]]), ("X[2, 0] is inf", "finite")),
        (np.zeros((5, 2), dtype=complex), ("dtype complex128", "real")),
        (torch.zeros(5, 2, dtype=torch.complex64), ("complex64",)),
        (np.array([["a", "b"]] * 4), ("dtype <U1", "real")),
        ([[1.0, 2.0], [3.0]], ("X: expected rows of numbers",)),
        ([np.zeros((3, 2)), np.zeros((3, 4))], ("a batch of X has shape (3, 4)", "(batch, 2)")),
        ([np.zeros((3, 2)), "text"], ("a batch of X", "str")),
        (5, ("X: expected an array", "int")),
    ],
)
def test_bad_data(X, words):
    with pytest.raises((TypeError, ValueError)) as error:
        MixtureOfGaussians(3).fit(X)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights_init": [0.5, 0.4, 0.3]}, ("weights_init sums to 1.2",)),
        ({"weights_init": [1.5, -0.5, 0.0]}, ("weights_init", "-0.5")),
        ({"weights_init": [0.5, 0.5]}, ("weights_init has shape (2,)", "(3,)")),
        ({"means_init": np.zeros((3, 3))}, ("means_init has shape (3, 3)", "(3, 2)")),
        ({"means_init": np.full((3, 2), np.nan)}, ("means_init", "finite")),
        ({"precisions_init": np.stack([np.eye(2), np.eye(2), -np.eye(2)])}, ("precisions_init", "component 2", "positive-definite")),
        ({"precisions_init": np.stack([np.eye(2), [[1.0, 0.5], [0.0, 1.0]], np.eye(2)])}, ("precisions_init", "component 1", "symmetric")),
        ({"precisions_init": np.array([1.0, 0.0, 1.0]), "covariance_type": "spherical"}, ("precisions_init", "component 1", "positive")),
        ({"n_features": 3}, ("X has 2 features", "3")),
    ],
)
def test_bad_starts(options, words):
    with pytest.raises(ValueError) as error:
        MixtureOfGaussians(3, **options).fit(blobs())
    assert all(word in str(error.value) for word in words), error.value


def test_results_before_a_fit():
    mixture = MixtureOfGaussians(2)
    calls = [mixture.predict, mixture.predict_proba, mixture.score_samples, mixture.score, mixture.bic, mixture.aic, mixture.log_prob]
    for call in calls:
        with pytest.raises(models.NotFittedError, match="call fit or partial_fit"):
            call(blobs())
    for call in (mixture.sample, mixture.distribution):
        with pytest.raises(models.NotFittedError):
            call()
    for name in [*LEARNED, "converged_", "n_iter_", "lower_bound_", "lower_bounds_"]:
        assert not hasattr(mixture, name)
        with pytest.raises(models.NotFittedError, match=name):
            getattr(mixture, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mixture.nothing  # noqa: B018
    assert issubclass(models.NotFittedError, ValueError)
    fitted = mixture.fit(blobs())
    with pytest.raises(ValueError, match="X has 3 features: expected 2"):
        fitted.predict(blobs(d=3))
    with pytest.raises(ValueError, match=r"X\[0, 0\] is nan"):
        fitted.predict(np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match="n_samples=0"):
        fitted.sample(0)
    with pytest.raises(ValueError, match=r"x has shape \(4, 3\)"):
        fitted.log_prob(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="n_components=3: expected 2"):
        fitted.set_params(n_components=3, warm_start=True).fit(blobs())
