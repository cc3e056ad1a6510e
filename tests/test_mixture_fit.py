"""Fitting models.MixtureOfGaussians: scikit-learn followed step by step, EM, batches and files, gradient ascent."""

import io
import math
import warnings

import numpy as np
import pytest
import torch
from mixture_cases import KINDS, LEARNED, blobs, explicit_start

from vae_fast import models
from vae_fast._world import World
from vae_fast.models import MixtureOfGaussians, _em, _mixture_data, _mixture_start
from vae_fast.models._mixture_journal import Journal

pytestmark = pytest.mark.usefixtures("one_thread")


# --- agreement with scikit-learn --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "k"), [("iris", 3), ("wine", 3), ("digits", 10)])
def test_em_follows_scikit_learn(sklearn_data, backend, name, k, kind):
    sk = pytest.importorskip("sklearn.mixture")
    X = sklearn_data(name)
    start = explicit_start(X, k, kind)
    want, got = sk.GaussianMixture(**start).fit(X), MixtureOfGaussians(**start).fit(X)
    assert (got.n_iter_, got.converged_) == (want.n_iter_, want.converged_)
    assert want.n_iter_ > 3
    for attribute in [*LEARNED, "lower_bound_", "lower_bounds_"]:
        a, b = getattr(got, attribute), getattr(want, attribute)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=attribute)
    assert got.means_.dtype == got.covariances_.dtype == np.float64
    np.testing.assert_allclose(got.score_samples(X), want.score_samples(X), rtol=1e-8, atol=1e-6)
    np.testing.assert_allclose(got.predict_proba(X), want.predict_proba(X), atol=1e-6)
    np.testing.assert_array_equal(got.predict(X), want.predict(X))
    for criterion in (got.score, got.bic, got.aic):
        assert criterion(X) == pytest.approx(getattr(want, criterion.__name__)(X), rel=1e-10)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_steps_are_scikit_learns(sklearn_data, kind, steps):
    """With a start that is not diagonal, and weights that differ."""
    sk = pytest.importorskip("sklearn.mixture")
    X = sklearn_data("iris")
    start = explicit_start(X, 3, kind) | {"weights_init": np.array([0.2, 0.5, 0.3])}
    if kind in ("full", "tied"):
        start["precisions_init"] = start["precisions_init"] + 0.3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = sk.GaussianMixture(max_iter=steps, **start).fit(X)
        got = MixtureOfGaussians(max_iter=steps, **start).fit(X)
    assert (got.n_iter_, got.lower_bound_, got.converged_) == (steps, pytest.approx(want.lower_bound_, rel=1e-12), False)
    for attribute in ("weights_", "means_", "precisions_", "precisions_cholesky_"):
        np.testing.assert_allclose(getattr(got, attribute), getattr(want, attribute), rtol=1e-9, atol=1e-9)


def test_warm_start_goes_on_as_scikit_learn_does(sklearn_data):
    sk = pytest.importorskip("sklearn.mixture")
    X = sklearn_data("iris")
    options = explicit_start(X, 3, "full") | {"warm_start": True, "max_iter": 4, "tol": 1e-4}
    want, got = sk.GaussianMixture(**options), MixtureOfGaussians(**options)
    iterations = []
    for _ in range(6):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            want.fit(X), got.fit(X)
        iterations.append(got.n_iter_)
        assert (got.n_iter_, got.converged_) == (want.n_iter_, want.converged_)
        assert got.lower_bound_ == pytest.approx(want.lower_bound_, abs=1e-9)
    np.testing.assert_allclose(got.means_, want.means_, atol=1e-7)
    assert got.converged_ and iterations[0] == 4


@pytest.mark.parametrize("verbose", [1, 2])
def test_it_prints_what_scikit_learn_prints(sklearn_data, capsys, verbose):
    sk = pytest.importorskip("sklearn.mixture")
    X = sklearn_data("iris")
    options = explicit_start(X, 3, "full") | {"verbose": verbose, "verbose_interval": 5}
    lines = []
    for model in (sk.GaussianMixture, MixtureOfGaussians):
        model(**options).fit(X)
        lines.append([line.split(" lapse ")[0] + line.split("s\t")[-1] for line in capsys.readouterr().out.splitlines()])
    assert lines[0] == lines[1]
    assert len(lines[0]) > 4


def test_scikit_learns_tools_take_it(sklearn_data):
    base, selection = pytest.importorskip("sklearn.base"), pytest.importorskip("sklearn.model_selection")
    pipeline = pytest.importorskip("sklearn.pipeline")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    X = sklearn_data("iris")
    mixture = MixtureOfGaussians(3, covariance_type="diag", means_init=X[:3], random_state=0, dtype=torch.float64, device="cpu")
    twin = base.clone(mixture.fit(X))
    assert twin is not mixture and not base.clone(twin).__sklearn_is_fitted__()
    assert twin.get_params()["covariance_type"] == "diag" and np.array_equal(twin.means_init, X[:3])
    assert twin.set_params(n_components=2, means_init=None).fit(X).means_.shape == (2, 4)
    scaled = pipeline.make_pipeline(preprocessing.StandardScaler(), MixtureOfGaussians(3, random_state=0)).fit(X)
    assert scaled.predict(X).shape == (150,)
    search = selection.GridSearchCV(MixtureOfGaussians(random_state=0), {"n_components": [1, 3], "covariance_type": ["full"]}, cv=3).fit(X)
    assert search.best_params_["n_components"] in (1, 3) and math.isfinite(search.best_score_)
    with pytest.raises(ValueError, match="n_component='x': expected one of n_components"):
        mixture.set_params(n_component="x")


def test_numpy_scalars_are_numbers():
    clone = pytest.importorskip("sklearn.base").clone
    mixture = MixtureOfGaussians(np.int64(2), reg_covar=np.float32(1e-6), batch_size=np.int32(50), random_state=np.int64(0))
    assert clone(mixture).set_params(n_components=np.int64(3)).fit(blobs()).means_.shape == (3, 2)


def test_the_constructor_has_scikit_learns_arguments():
    sk = pytest.importorskip("sklearn.mixture")
    theirs, ours = sk.GaussianMixture().get_params(), MixtureOfGaussians().get_params()
    assert theirs == {name: ours[name] for name in theirs}
    for name in ours:
        assert f"        {name}" in MixtureOfGaussians.__doc__ or f", {name}" in MixtureOfGaussians.__doc__, name


# --- EM ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_lower_bound_never_falls(backend, device, kind, dtype):
    x = blobs(dtype=dtype).to(device)
    mixture = MixtureOfGaussians(5, covariance_type=kind, init_params="random_from_data", random_state=1, tol=0.0, max_iter=40, reg_covar=0)
    with pytest.warns(models.ConvergenceWarning, match="max_iter=40"):
        mixture.fit(x)
    bounds = np.array(mixture.lower_bounds_)
    assert len(bounds) == mixture.n_iter_ == 40 and not mixture.converged_
    assert np.diff(bounds).min() > (-1e-12 if dtype == torch.float64 else -2e-6)
    assert bounds[-1] > bounds[0] + 0.01
    assert mixture.score(x) >= bounds[-1] - 1e-6


@pytest.mark.parametrize("init", ["kmeans", "k-means++", "random", "random_from_data"])
@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_found_from_every_start(kind, init):
    x = blobs(600)
    # Random responsibilities begin at a saddle point, which a larger tol would take for the end.
    options = {"covariance_type": kind, "init_params": init, "random_state": 0, "n_init": 3, "max_iter": 300, "tol": 1e-7}
    mixture = MixtureOfGaussians(3, **options).fit(x)
    np.testing.assert_allclose(np.sort(mixture.weights_), [0.2, 0.3, 0.5], atol=0.05)
    order = np.argsort(mixture.means_[:, 0] - 2 * mixture.means_[:, 1])
    np.testing.assert_allclose(mixture.means_[order], [[0.0, 7.0], [0.0, 0.0], [6.0, 0.0]], atol=0.3)
    np.testing.assert_array_equal(MixtureOfGaussians(3, **options).fit(x).means_, mixture.means_)


def test_the_best_of_several_starts_is_kept():
    x = blobs(200)
    seen = []
    options = {"covariance_type": "spherical", "init_params": "random_from_data", "random_state": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixture = MixtureOfGaussians(6, n_init=5, **options).fit(x, callback=lambda _, i, bound: seen.append((i, bound)))
    starts = [i for i, (iteration, _) in enumerate(seen) if iteration == 1]
    ends = [seen[i - 1][1] for i in [*starts[1:], len(seen)]]
    assert len(starts) == 5 and len(set(ends)) > 1
    assert mixture.lower_bound_ == max(ends)
    assert mixture.score(x) >= mixture.lower_bound_


@pytest.mark.parametrize("kind", KINDS)
def test_a_common_offset_changes_nothing(kind):
    x = blobs()
    options = explicit_start(x.numpy(), 3, kind)
    near = MixtureOfGaussians(**options).fit(x)
    far = MixtureOfGaussians(**options | {"means_init": options["means_init"] + 1e6}).fit(x + 1e6)
    np.testing.assert_allclose(far.covariances_, near.covariances_, rtol=1e-6)
    single = MixtureOfGaussians(**options | {"means_init": options["means_init"] + 1000.0}).fit((x + 1000.0).float())
    np.testing.assert_allclose(single.covariances_, near.covariances_, rtol=2e-3, atol=1e-3)


def test_given_means_alone_are_the_centres():
    x = blobs()
    centres = np.array([[0.0, 7.0], [6.0, 0.0], [0.0, 0.0]])
    mixture = MixtureOfGaussians(3, means_init=centres, max_iter=0).fit(x)
    label = torch.cdist(x, torch.from_numpy(centres)).argmin(1)
    np.testing.assert_array_equal(mixture.means_, centres)
    np.testing.assert_allclose(mixture.weights_, np.bincount(label) / len(x))
    for k in range(3):
        want = np.cov(x[label == k].numpy().T, bias=True) + 1e-6 * np.eye(2)
        np.testing.assert_allclose(mixture.covariances_[k], want, rtol=1e-9)


# --- batches and files ------------------------------------------------------------------------------------------------


def test_batches_give_what_the_whole_gives(tmp_path, monkeypatch):
    x = blobs(257, d=3)
    options = explicit_start(x.numpy(), 3, "full")
    whole = MixtureOfGaussians(**options).fit(x)
    path = tmp_path / "x.npy"
    np.save(path, x.numpy())
    sizes = []
    real = _em.F.mixture_statistics
    monkeypatch.setattr(_em.F, "mixture_statistics", lambda x, *a, **k: sizes.append(len(x)) or real(x, *a, **k))
    ways = {
        "batch_size": (x, {"batch_size": 50}),
        "memmap": (np.load(path, mmap_mode="r"), {"batch_size": 50}),
        "DataLoader": (torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x[:, 0]), batch_size=50), {}),
        "list": ([part.numpy() for part in x.split(50)], {}),
    }
    for name, (data, extra) in ways.items():
        sizes.clear()
        mixture = MixtureOfGaussians(**options, **extra).fit(data)
        assert max(sizes) == 50 and len(sizes) == 6 * mixture.n_iter_, name
        assert mixture.n_iter_ == whole.n_iter_
        np.testing.assert_allclose(mixture.covariances_, whole.covariances_, rtol=1e-9, err_msg=name)
        np.testing.assert_allclose(mixture.score_samples(data), whole.score_samples(x.numpy()), rtol=1e-9, err_msg=name)
        assert isinstance(mixture.predict(data), torch.Tensor if name in ("batch_size", "DataLoader") else np.ndarray)


def test_a_memory_map_is_read_in_slices_and_started_from_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(_mixture_data, "_MAPPED_ELEMENTS", 128)
    monkeypatch.setattr(_mixture_data, "_SAMPLE", 100)
    x = blobs(600)
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    rows = _mixture_data.Rows(mapped)
    assert {len(block) for block in rows.blocks()} == {64, 600 % 64}
    n, sample = rows.survey(3, torch.Generator().manual_seed(99))
    assert n == 600 and sample.shape == (100, 2) and len(sample.unique(dim=0)) == 100
    assert sample[:, 0].mean().item() == pytest.approx(x[:, 0].mean().item(), abs=1.0)
    for init in ("kmeans", "random"):
        mixture = MixtureOfGaussians(3, init_params=init, random_state=99, n_init=3, max_iter=300, tol=1e-7).fit(mapped)
        np.testing.assert_allclose(np.sort(mixture.weights_), [0.2, 0.3, 0.5], atol=0.05)


@pytest.mark.parametrize("init", ["kmeans", "k-means++", "random", "random_from_data"])
def test_the_start_forms_nothing_of_size_n_times_k(monkeypatch, init):
    monkeypatch.setattr(_mixture_start, "_AT_ONCE", 120)
    given, formed = [], []
    real, nearest = _em.F.mixture_statistics, _mixture_start.nearest

    def seen(x, *a, responsibilities=None, **k):
        given.append(None if responsibilities is None else responsibilities.shape)
        return real(x, *a, responsibilities=responsibilities, **k)

    monkeypatch.setattr(_em.F, "mixture_statistics", seen)
    monkeypatch.setattr(_em.F, "mixture_responsibilities", lambda *a, **k: formed.append(a))
    monkeypatch.setattr(_mixture_start, "nearest", lambda *a: formed.append(a) or nearest(*a))
    start = MixtureOfGaussians(3, init_params=init, random_state=0, max_iter=0).fit(blobs())
    if init == "random":
        assert given == [(40, 3)] * 7 + [(20, 3)]
    else:  # the kernels assign, and nothing of size N x K is formed
        assert given and not formed and set(given) == {None}
    monkeypatch.setattr(_mixture_start, "_AT_ONCE", 2**22)
    np.testing.assert_allclose(start.means_, MixtureOfGaussians(3, init_params=init, random_state=0, max_iter=0).fit(blobs()).means_)


def test_a_stream_is_refused_with_advice():
    x = blobs()
    with pytest.raises(TypeError, match=r"X is a generator, which can be read once: .*partial_fit"):
        MixtureOfGaussians(2).fit(part for part in x.split(50))
    with pytest.raises(ValueError, match="X has no batches"):
        MixtureOfGaussians(2).fit([torch.zeros(0, 2)][:0] or torch.utils.data.DataLoader([]))


@pytest.mark.parametrize("kind", KINDS)
def test_partial_fit_takes_the_documented_step(backend, kind):
    """s <- (1 - g) s + g s(X) in raw moments, by hand, two batches after a fit."""
    x, k = blobs(400), 3
    mixture = MixtureOfGaussians(k, covariance_type=kind, random_state=0, learning_decay=0.7, learning_offset=2.0).fit(x[:200])
    w, m, reg, d = mixture.weights_, mixture.means_, mixture.reg_covar, 2
    expand = {"full": lambda c: c, "tied": lambda c: np.stack([c] * k), "diag": lambda c: np.stack([np.diag(v) for v in c])}
    expand["spherical"] = lambda c: c[:, None, None] * np.eye(d)
    raw = w[:, None, None] * (expand[kind](mixture.covariances_) - reg * np.eye(d) + m[:, :, None] * m[:, None, :])
    n, first = w, w[:, None] * m
    for t, batch in ((2, x[200:300]), (3, x[300:])):
        q, X = mixture.predict_proba(batch).numpy(), batch.numpy()
        g = (t - 1 + 2.0) ** -0.7
        n = (1 - g) * n + g * q.mean(0)
        first = (1 - g) * first + g * q.T @ X / len(X)
        raw = (1 - g) * raw + g * np.einsum("nk,ni,nj->kij", q, X, X) / len(X)
        means = first / n[:, None]
        covariances = raw / n[:, None, None] - means[:, :, None] * means[:, None, :]
        if kind == "tied":
            covariances = np.einsum("k,kij->ij", n, covariances)
        elif kind != "full":
            covariances = np.diagonal(covariances, axis1=1, axis2=2)
            covariances = covariances.mean(1) if kind == "spherical" else covariances
        bound = mixture.score(batch)
        assert mixture.partial_fit(batch) is mixture
        np.testing.assert_allclose(mixture.weights_, n, rtol=1e-9)
        np.testing.assert_allclose(mixture.means_, means, rtol=1e-9)
        added = reg * np.eye(d) if kind in ("full", "tied") else reg
        np.testing.assert_allclose(mixture.covariances_, covariances + added, rtol=1e-8, atol=1e-10)
        assert mixture.lower_bound_ == pytest.approx(bound) and mixture.n_iter_ == int(mixture.n_steps) == t
        # The model keeps no raw moments: for restricted forms the next step starts from what the form can hold.
        w, m = mixture.weights_, mixture.means_
        raw = w[:, None, None] * (expand[kind](mixture.covariances_) - reg * np.eye(d) + m[:, :, None] * m[:, None, :])
        n, first = w, w[:, None] * m


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_partial_fit_reaches_the_fit(kind):
    x = blobs(4000)
    whole = MixtureOfGaussians(3, covariance_type=kind, random_state=0, tol=1e-6).fit(x)
    online = MixtureOfGaussians(3, covariance_type=kind, random_state=0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        for batch in x[torch.randperm(len(x), generator=generator)].split(100):
            online.partial_fit(batch)
    assert online.score(x) > whole.score(x) - 5e-3
    assert int(online.n_steps) == 160
    saved = io.BytesIO()
    torch.save(online.state_dict(), saved)
    saved.seek(0)
    other = MixtureOfGaussians(3, covariance_type=kind)
    other.load_state_dict(torch.load(saved, weights_only=True))
    np.testing.assert_array_equal(other.partial_fit(x[:50]).means_, online.partial_fit(x[:50]).means_)
    assert int(other.n_steps) == 161


def test_reading_data_twice_does_not_copy_or_change_them():
    x = blobs(50)
    before = x.clone()
    rows = _mixture_data.Rows(x)
    assert next(iter(rows.blocks())).data_ptr() == x.data_ptr()
    MixtureOfGaussians(2, random_state=0, dtype=torch.float64).fit(x)
    assert torch.equal(x, before)


# --- gradient ascent --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 150])
@pytest.mark.parametrize("kind", KINDS)
def test_adam_reaches_the_likelihood_of_em(backend, kind, batch_size):
    """Whatever the units of the features."""
    x = blobs(300) * torch.tensor([1000.0, 0.01], dtype=torch.float64)
    options = {"covariance_type": kind, "random_state": 0, "reg_covar": 1e-12}
    if kind == "spherical":
        x = blobs(300) * 100.0
    em = MixtureOfGaussians(3, tol=1e-7, max_iter=500, **options).fit(x)
    adam = MixtureOfGaussians(3, method="adam", tol=1e-4, max_iter=1500, batch_size=batch_size, **options).fit(x)
    assert adam.converged_ and adam.n_iter_ == len(adam.lower_bounds_)
    assert adam.score(x) == pytest.approx(em.score(x), abs=2e-3 if batch_size is None else 2e-2)
    assert adam.lower_bound_ == max(adam.lower_bounds_)
    if batch_size is None:
        assert adam.score(x) == pytest.approx(adam.lower_bound_, abs=1e-12)


def test_adam_sums_the_gradient_over_blocks(monkeypatch):
    x = blobs(100)
    options = {"method": "adam", "random_state": 0, "max_iter": 5, "covariance_type": "full"}
    fits = []
    for rows in (None, 7):
        monkeypatch.setattr("vae_fast.models.mixture.block_rows", lambda k, d, rows=rows: rows)
        with pytest.warns(models.ConvergenceWarning):
            fits.append(MixtureOfGaussians(2, **options).fit(x))
    np.testing.assert_allclose(fits[0].covariances_, fits[1].covariances_, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_adam_does_not_collapse_onto_a_point(kind):
    x = torch.cat([blobs(60), torch.full((1, 2), 30.0, dtype=torch.float64)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixture = MixtureOfGaussians(4, covariance_type=kind, method="adam", lr=0.3, reg_covar=1e-2, max_iter=150, random_state=0).fit(x)
    assert np.isfinite(mixture.score_samples(x.numpy())).all()
    variances = mixture.covariances_
    if kind in ("full", "tied"):
        variances = np.diagonal(np.linalg.cholesky(variances), axis1=-2, axis2=-1) ** 2
    assert variances.min() > 1e-2 * (1 - 1e-9)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 4e-15), (torch.float32, 3e-6)])
@pytest.mark.parametrize("bound", [-3.5, 0.0, -2e4])
def test_of_starts_that_differ_by_rounding_the_first_is_kept(bound, dtype, rounding):
    """The same fit in another order: which of the two was kept hung on the number of processes."""
    journal, generator = Journal(None, 0, {}, World()), torch.Generator()
    step = rounding * max(1.0, abs(bound))
    for place, reached in enumerate((-math.inf, bound, bound + step, bound - step, bound + 1e4 * step)):
        journal.ended({"means": torch.full((2, 2), float(place), dtype=dtype)}, [reached], reached, True, generator)
        assert journal.best.tensors["means"][0, 0] == (0, 1, 1, 1, 4)[place]
