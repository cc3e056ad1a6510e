"""models.BayesianMixtureOfGaussians: scikit-learn followed step by step, its estimator's interface, streams, and what it refuses."""

import copy
import io
import pickle
import warnings

import numpy as np
import pytest
import torch
from mixture_cases import KINDS, LEARNED, blobs

from vae_fast import models
from vae_fast.models import BayesianMixtureOfGaussians

pytestmark = pytest.mark.usefixtures("one_thread")
PRIORS = ["dirichlet_process", "dirichlet_distribution"]
POSTERIOR = ["weight_concentration_", "mean_precision_", "degrees_of_freedom_"]
PRIOR = ["weight_concentration_prior_", "mean_precision_prior_", "mean_prior_", "degrees_of_freedom_prior_", "covariance_prior_"]


def theirs(X, centres, **options):
    """scikit-learn's, with each sample assigned to the nearest centre at the start."""
    sk = pytest.importorskip("sklearn.mixture")

    class FromCentres(sk.BayesianGaussianMixture):
        def _initialize_parameters(self, X, random_state, xp=None):
            nearest = np.square(X[:, None] - centres).sum(2).argmin(1)
            self._initialize(X, np.eye(len(centres))[nearest])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FromCentres(n_components=len(centres), **options).fit(X)


def ours(X, centres, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return BayesianMixtureOfGaussians(len(centres), means_init=centres, **options).fit(X)


def compare(got, want, X, rtol=1e-6):
    assert (got.n_iter_, got.converged_) == (want.n_iter_, want.converged_)
    for name in [*LEARNED, *POSTERIOR, *PRIOR, "lower_bound_", "lower_bounds_"]:
        value = np.asarray(getattr(want, name))
        value = value.reshape(-1) if name == "lower_bounds_" else value  # for "tied" scikit-learn's are arrays of one number
        np.testing.assert_allclose(getattr(got, name), value, rtol=rtol, atol=rtol, err_msg=name)
    np.testing.assert_allclose(got.score_samples(X), want.score_samples(X), rtol=rtol, atol=rtol)
    np.testing.assert_allclose(got.predict_proba(X), want.predict_proba(X), atol=rtol)
    np.testing.assert_array_equal(got.predict(X), want.predict(X))
    assert got.score(X) == pytest.approx(want.score(X), rel=rtol)


@pytest.mark.parametrize("steps", [0, 1, 2, 40])
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_follows_scikit_learn(sklearn_data, backend, kind, prior, steps):
    X = sklearn_data("iris")
    options = {"covariance_type": kind, "weight_concentration_prior_type": prior, "max_iter": steps, "tol": 1e-4}
    got, want = ours(X, X[[3, 60, 130, 80, 20]], **options), theirs(X, X[[3, 60, 130, 80, 20]], **options)
    if steps == 0:  # scikit-learn has no bound then
        for name in [*LEARNED, *POSTERIOR]:
            np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-9, atol=1e-9, err_msg=name)
        return
    compare(got, want, X)


@pytest.mark.parametrize("kind", KINDS)
def test_given_priors_are_those_of_scikit_learn(sklearn_data, kind):
    X = sklearn_data("iris")
    d = X.shape[1]
    covariance = {"full": 2.0 * np.eye(d) + 0.1, "tied": 2.0 * np.eye(d) + 0.1, "diag": np.arange(1.0, d + 1.0), "spherical": 0.7}[kind]
    options = {
        "covariance_type": kind,
        "covariance_prior": covariance,
        "mean_prior": np.arange(d) - 1.0,
        "degrees_of_freedom_prior": d + 2.5,
    }
    options |= {"weight_concentration_prior": 0.02, "mean_precision_prior": 0.3, "reg_covar": 1e-3, "max_iter": 25}
    centres = X[[3, 60, 130]]
    compare(ours(X, centres, **options), theirs(X, centres, **options), X)


def test_warm_start_goes_on(sklearn_data):
    X = sklearn_data("iris")
    options = {"max_iter": 5, "tol": 1e-9, "random_state": 0}
    whole = ours(X, X[[3, 60, 130]], **options | {"max_iter": 10})
    parts = BayesianMixtureOfGaussians(3, means_init=X[[3, 60, 130]], warm_start=True, **options)
    for _ in range(2):
        with pytest.warns(models.ConvergenceWarning, match="max_iter=5"):
            parts.fit(X)
    np.testing.assert_array_equal(parts.means_, whole.means_)
    assert parts.lower_bound_ == whole.lower_bound_


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_never_falls_and_spare_components_empty(backend, device, kind, prior):
    x = blobs(600).to(device)
    options = {
        "weight_concentration_prior_type": prior,
        "weight_concentration_prior": 1e-3,
        "random_state": 0,
        "max_iter": 300,
        "tol": 1e-6,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixture = BayesianMixtureOfGaussians(8, covariance_type=kind, reg_covar=0.0, **options).fit(x)
    assert np.diff(mixture.lower_bounds_).min() > -1e-7
    if kind == "full":
        assert (mixture.weights_ > 0.02).sum() == 3
    assert mixture.weights_.sum() == pytest.approx(1.0)


def test_files_batches_and_dtypes_make_the_same_fit(tmp_path):
    x = blobs(500, d=3)
    np.save(tmp_path / "x.npy", x.numpy())
    options = {"max_iter": 10, "tol": 0.0, "covariance_type": "diag"}
    whole = ours(x.numpy(), x[:4].numpy(), **options)
    for data, more, near in (
        (np.load(tmp_path / "x.npy", mmap_mode="r"), {}, 1e-9),
        (list(x.split(70)), {}, 1e-9),
        (x, {"batch_size": 33}, 1e-9),
        (x.float(), {}, 2e-3),
    ):
        mixture = ours(data, x[:4].numpy(), **options, **more)
        np.testing.assert_allclose(mixture.means_, whole.means_, rtol=near, atol=near)
        np.testing.assert_allclose(mixture.covariances_, whole.covariances_, rtol=near, atol=near)
        assert mixture.lower_bound_ == pytest.approx(whole.lower_bound_, rel=near)


def test_as_a_module_it_is_the_mixture_at_the_means():
    x = blobs(300)
    mixture = BayesianMixtureOfGaussians(4, random_state=0).fit(x)
    point = models.MixtureOfGaussians(
        4, weights_init=mixture.weights_, means_init=mixture.means_, precisions_init=mixture.precisions_, max_iter=0
    ).fit(x)
    torch.testing.assert_close(mixture.log_prob(x), point.log_prob(x), rtol=1e-9, atol=1e-9)
    assert mixture.sample(5)[0].shape == (5, 2)
    saved = io.BytesIO()
    torch.save(mixture.state_dict(), saved)
    saved.seek(0)
    other = BayesianMixtureOfGaussians(4)
    other.load_state_dict(torch.load(saved, weights_only=True))
    for twin in (other, copy.deepcopy(mixture), pickle.loads(pickle.dumps(mixture))):
        assert torch.equal(twin.score_samples(x), mixture.score_samples(x))


def test_the_constructor_has_scikit_learns_arguments():
    sk = pytest.importorskip("sklearn.mixture")
    theirs, ours = sk.BayesianGaussianMixture().get_params(), BayesianMixtureOfGaussians().get_params()
    assert theirs == {name: ours[name] for name in theirs}
    for name in ours:
        assert f"        {name}" in BayesianMixtureOfGaussians.__doc__ or f", {name}" in BayesianMixtureOfGaussians.__doc__, name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight_concentration_prior_type": "beta"}, ("weight_concentration_prior_type='beta'", "'dirichlet_process'")),
        ({"weight_concentration_prior": 0.0}, ("weight_concentration_prior=0.0", "above 0")),
        ({"mean_precision_prior": -1.0}, ("mean_precision_prior=-1.0",)),
        ({"degrees_of_freedom_prior": 1.0}, ("degrees_of_freedom_prior=1.0", "above 1")),
        ({"mean_prior": [0.0]}, ("mean_prior has shape (1,)", "(2,)")),
        ({"covariance_prior": np.eye(3)}, ("covariance_prior has shape (3, 3)", "(2, 2)")),
        ({"covariance_prior": -np.eye(2)}, ("covariance_prior", "positive-definite")),
        ({"covariance_prior": [1.0, 0.0], "covariance_type": "diag"}, ("covariance_prior", "positive numbers")),
        ({"means_init": np.zeros((2, 2))}, ("means_init has shape (2, 2)", "(3, 2)")),
        ({"n_components": 500}, ("X has 300 samples", "n_components=500")),
        ({"distributed": "all"}, ("distributed='all'", "'none'")),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises((TypeError, ValueError)) as error:
        BayesianMixtureOfGaussians(**{"n_components": 3} | options).fit(blobs())
    assert all(word in str(error.value) for word in words), error.value


def test_before_a_fit_and_a_single_sample():
    mixture = BayesianMixtureOfGaussians(1)
    for name in [*LEARNED, *POSTERIOR, *PRIOR]:
        with pytest.raises(models.NotFittedError, match=name):
            getattr(mixture, name)
    with pytest.raises(models.NotFittedError):
        mixture.predict(blobs())
    with pytest.raises(ValueError, match="X has 1 samples: expected at least 2"):
        mixture.fit(blobs()[:1])
    assert not hasattr(mixture, "bic")  # as scikit-learn's
