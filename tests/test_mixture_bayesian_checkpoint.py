"""Fits of BayesianMixtureOfGaussians that are cut short and taken up again."""

import numpy as np
import pytest
import torch
from mixture_cases import KINDS, blobs

from vae_fast.errors import FileError
from vae_fast.models import BayesianMixtureOfGaussians, MixtureOfGaussians

X = blobs(200)
ARRAYS = ("weights_", "means_", "covariances_", "mean_precision_", "weight_concentration_", "degrees_of_freedom_")
TYPES = ["dirichlet_process", "dirichlet_distribution"]
pytestmark = pytest.mark.filterwarnings("ignore::vae_fast.errors.ConvergenceWarning")


class Killed(Exception):
    """Raised by a callback."""


def mixture(**options):
    return BayesianMixtureOfGaussians(**{"n_components": 4, "n_init": 2, "max_iter": 7, "tol": 0.0, "random_state": 0} | options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", TYPES)
def test_a_fit_killed_again_and_again_ends_where_the_unbroken_one_does(kind, weights, tmp_path):
    options = {"covariance_type": kind, "weight_concentration_prior_type": weights}
    whole = mixture(**options).fit(X)
    path, kills, seen = tmp_path / "fit.pt", 0, []

    def die(_, iteration, bound):
        seen.append(iteration)
        if len(seen) % 3 == 0:
            raise Killed

    for _ in range(20):
        broken = mixture(**options)
        try:
            broken.fit(X, checkpoint=path, save_every=2, resume=path.exists(), callback=die)
            break
        except Killed:
            kills += 1
    assert kills >= 5
    for name in ARRAYS:
        assert np.array_equal(getattr(broken, name), getattr(whole, name)), name
    assert broken.lower_bounds_ == whole.lower_bounds_ and broken.converged_ == whole.converged_
    assert [row[:3] for row in broken.fit_history_] == [row[:3] for row in whole.fit_history_]
    again = mixture(**options).fit(X, checkpoint=path, resume=True)  # a fit that is at its end
    assert again.lower_bounds_ == whole.lower_bounds_


def test_it_goes_on_with_more_iterations(tmp_path):
    path = tmp_path / "fit.pt"
    mixture(n_init=1, max_iter=4).fit(X, checkpoint=path, save_every=4)
    seen = []

    def stop(_, iteration, bound):
        if iteration == 5:
            raise Killed

    with pytest.raises(Killed):
        mixture(n_init=1, max_iter=9).fit(X, checkpoint=path, save_every=4, callback=stop)
    more = mixture(n_init=1, max_iter=12).fit(X, checkpoint=path, resume=True, callback=lambda _, i, bound: seen.append(i))
    assert seen == list(range(5, 13))
    assert more.lower_bounds_ == mixture(n_init=1, max_iter=12).fit(X).lower_bounds_


def test_what_cannot_be_taken_up_is_refused(tmp_path):
    path = tmp_path / "fit.pt"
    mixture().fit(X, checkpoint=path)
    for options, words in (
        ({"n_components": 3}, "n_components=4, this run has n_components=3"),
        ({"mean_prior": torch.ones(2)}, "was fitted with mean_prior=None"),
        ({"weight_concentration_prior_type": TYPES[1]}, "weight_concentration_prior_type='dirichlet_process'"),
    ):
        with pytest.raises(FileError, match=words):
            mixture(**options).fit(X, checkpoint=path, resume=True)
    with pytest.raises(FileError, match="was fitted to other data"):
        mixture().fit(X + 1.0, checkpoint=path, resume=True)
    with pytest.raises(FileError, match="was fitted with"):
        MixtureOfGaussians(4, n_init=2, tol=0.0, random_state=0).fit(X, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="resume=True, checkpoint=None"):
        mixture().fit(X, resume=True)
    with pytest.raises(ValueError, match="save_every=0"):
        mixture().fit(X, checkpoint=path, save_every=0)
