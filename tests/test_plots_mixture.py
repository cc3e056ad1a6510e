"""The pictures of a mixture: what is drawn is where it should be."""

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from vae_fast import plots
from vae_fast.data.toys import toy


def test_density_is_drawn_where_it_is():
    axes = Figure().add_subplot()
    peak = plots.draw_density(axes, lambda x: -(x - torch.tensor([3.0, -1.0])).square().sum(1), (0.0, 4.0, -4.0, 4.0), resolution=80)
    assert peak == pytest.approx(1.0, abs=0.01)
    image = axes.images[0]
    row, column = np.unravel_index(image.get_array().argmax(), (80, 80))
    assert image.origin == "lower"
    assert (column + 0.5) / 80 * 4.0 == pytest.approx(3.0, abs=0.06)
    assert -4.0 + (row + 0.5) / 80 * 8.0 == pytest.approx(-1.0, abs=0.11)
    assert image.get_array().max() == pytest.approx(1.0)
    plots.draw_density(axes, lambda x: x[:, 0] * 0.0, (0.0, 1.0, 0.0, 1.0), resolution=5, peak=4.0)
    assert np.allclose(axes.images[1].get_array(), 0.5)


def test_ellipses_lie_along_their_covariances():
    axes = Figure().add_subplot()
    long = torch.tensor([math.cos(0.5), math.sin(0.5)])
    covariance = 4.0 * torch.outer(long, long) + 0.25 * (torch.eye(2) - torch.outer(long, long))
    weights = torch.tensor([0.75, 0.25, 0.0])
    plots.draw_ellipses(axes, weights, torch.tensor([[1.0, 2.0], [0.0, 0.0], [9.0, 9.0]]), covariance.expand(3, 2, 2))
    assert len(axes.patches) == 4  # two each; none for a weight of zero
    two_sigma, one_sigma, light, _ = axes.patches
    assert one_sigma.get_center() == pytest.approx((1.0, 2.0))
    assert (one_sigma.width, one_sigma.height) == pytest.approx((4.0, 1.0), rel=1e-5)
    assert (two_sigma.width, two_sigma.height) == pytest.approx((8.0, 2.0), rel=1e-5)
    assert math.radians(one_sigma.angle) % math.pi == pytest.approx(0.5, abs=1e-5)
    assert light.get_edgecolor()[3] < two_sigma.get_edgecolor()[3]


def test_density_on_the_line_is_the_mixtures():
    axes = Figure().add_subplot()
    plots.draw_density_1d(axes, toy("cats", 2000), torch.tensor([0.3, 0.7]), torch.tensor([5.0, 3.0]), torch.tensor([0.25, 1.0]))
    first, second, mixture = axes.lines
    x, y = mixture.get_data()
    np.testing.assert_allclose(first.get_ydata() + second.get_ydata(), y, rtol=1e-6)
    want = 0.3 * np.exp(-0.5 * ((x - 5.0) / 0.5) ** 2) / 0.5 + 0.7 * np.exp(-0.5 * (x - 3.0) ** 2)
    np.testing.assert_allclose(y, want / math.sqrt(2.0 * math.pi), rtol=1e-5)
    assert [text.get_text() for text in axes.get_legend().get_texts()][1:] == ["0.70 N(3, 1$^2$)", "0.30 N(5, 0.5$^2$)", "mixture"]


def test_bounds_leave_outliers_out():
    x = torch.cat([torch.rand(9999, 2), torch.tensor([[1e6, -1e6]])])
    left, right, bottom, top = plots.bounds_of(x)
    assert -0.2 < left < 0.0 < 1.0 < right < 1.2
    assert -0.2 < bottom < top < 1.2


def test_covariance_matrices():
    """Every form says the same as the matrices it stands for."""
    diagonal = plots.covariance_matrices(torch.tensor([[1.0, 4.0], [9.0, 16.0]]), "diag", 2, 2)
    assert diagonal.tolist() == [[[1.0, 0.0], [0.0, 4.0]], [[9.0, 0.0], [0.0, 16.0]]]
    spherical = plots.covariance_matrices(torch.tensor([2.0, 3.0]), "spherical", 2, 2)
    assert spherical.tolist() == [[[2.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [0.0, 3.0]]]
    tied = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    assert plots.covariance_matrices(tied, "tied", 2, 2).tolist() == [tied.tolist()] * 2
    full = torch.stack([tied, torch.eye(2)])
    assert torch.equal(plots.covariance_matrices(full, "full", 2, 2), full.double())
