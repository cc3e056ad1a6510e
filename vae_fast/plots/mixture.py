"""Pictures of mixtures of Gaussians: log-likelihood by iteration, densities on the line and in the plane, components."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_fast._optional import optional_import
from vae_fast.functional.mixture import has_factors
from vae_fast.plots._figure import BLUE, GRID, INK, ORANGE, QUIET, PathLike, bare, new_figure, save

LogProb = Callable[[Tensor], Tensor]
Bounds = tuple[float, float, float, float]
_MOST_POINTS = 4000  # more dots than this only make a blot of the data and a slow picture


def covariance_matrices(covariances: Tensor, covariance_type: str, components: int, d: int) -> Tensor:
    """Covariances in scikit-learn's shapes as one matrix per component.

    Args:
        covariances: ``(K, D, D)`` for ``"full"``, ``(D, D)`` for ``"tied"``, ``(K, D)`` for ``"diag"``, ``(K,)`` for ``"spherical"``.
        covariance_type: which.
        components: K.
        d: D.

    Returns:
        float64 on the CPU, ``(K, D, D)``.

    Example:
        >>> covariance_matrices(torch.tensor([4.0]), "spherical", 1, 2)
        tensor([[[4., 0.],
                 [0., 4.]]], dtype=torch.float64)
    """
    c = covariances.detach().double().cpu()
    if has_factors(covariance_type):
        return c.expand(components, d, d)
    return torch.diag_embed(c if covariance_type == "diag" else c[:, None].expand(components, d))


# --- one set of axes --------------------------------------------------------------------------------------------------


def bounds_of(x: Tensor, margin: float = 0.08) -> Bounds:
    """The rectangle around points of the plane, with a margin: ``(left, right, bottom, top)``.

    A hair of outliers does not make the rest small: the outermost 0.1 per cent on each side may fall outside.

    Args:
        x: ``(n, 2)``.
        margin: on each side, as a share of the width or height.

    Example:
        >>> bounds_of(torch.tensor([[0.0, 0.0], [1.0, 2.0]]), margin=0.5)
        (-0.5, 1.5, -1.0, 3.0)
    """
    low, high = np.quantile(x.detach().double().cpu().numpy(), [0.001, 0.999], axis=0) if len(x) > 1000 else _extremes(x)
    space = margin * np.where(high > low, high - low, 1.0)
    (left, bottom), (right, top) = low - space, high + space
    return float(left), float(right), float(bottom), float(top)


def _extremes(x: Tensor) -> tuple[Any, Any]:
    points = x.detach().double().cpu().numpy()
    return points.min(0), points.max(0)


def draw_density(axes: Any, log_prob: LogProb, bounds: Bounds, *, resolution: int = 240, peak: float | None = None) -> float:
    """The density as an image, white where it is nothing; the shade goes with its square root, so that thin tails show.

    Args:
        axes: of matplotlib.
        log_prob: ``(n, 2)`` float32 to ``(n,)``, in nats.
        bounds: the rectangle, see :func:`bounds_of`.
        resolution: cells along each side.
        peak: density of the darkest shade; None: the largest one here. Pictures with the same peak can be compared.

    Returns:
        The largest density on the grid.
    """
    left, right, bottom, top = bounds
    x, y = (low + (torch.arange(resolution) + 0.5) / resolution * (high - low) for low, high in ((left, right), (bottom, top)))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)
    with torch.no_grad():
        density = log_prob(grid).double().exp().reshape(resolution, resolution).cpu()
    largest = float(density.max())
    shade = (density / (largest if peak is None else peak)).clamp(0.0, 1.0).sqrt()
    axes.imshow(
        shade.numpy(),
        extent=bounds,
        origin="lower",
        cmap=_shades(),
        vmin=0.0,
        vmax=1.0,
        interpolation="bilinear",
        interpolation_stage="data",  # few colours, so a small file
        aspect="equal",
    )
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    return largest


def draw_points(axes: Any, x: Tensor, colour: str = INK, alpha: float = 0.25) -> None:
    """The points of the plane as dots, at most 4,000 of them.

    Args:
        axes: of matplotlib.
        x: ``(n, 2)``.
        colour: of all dots.
        alpha: their opacity.
    """
    shown = x[:: max(1, math.ceil(len(x) / _MOST_POINTS))].detach().cpu().numpy()
    axes.scatter(*shown.T, s=3, color=colour, alpha=alpha, linewidths=0, rasterized=True)


def draw_ellipses(axes: Any, weights: Tensor, means: Tensor, covariances: Tensor, colour: str = ORANGE) -> None:
    """Each component as its mean and its one- and two-sigma ellipses, the more opaque the greater its weight.

    Args:
        axes: of matplotlib.
        weights: ``(K,)``.
        means: ``(K, 2)``.
        covariances: ``(K, 2, 2)``, see :func:`covariance_matrices`.
        colour: of lines and fill.
    """
    ellipse = optional_import("matplotlib.patches", "matplotlib", "drawing pictures").Ellipse
    heaviest = float(weights.max())
    values, vectors = torch.linalg.eigh(covariances.detach().double().cpu())
    for weight, mean, value, vector in zip(weights.tolist(), means.detach().double().cpu(), values, vectors, strict=True):
        if weight <= 0.0:
            continue
        strength = (weight / heaviest) ** 0.5
        height, width = (2.0 * value.clamp(min=0.0).sqrt()).tolist()
        angle = math.degrees(math.atan2(vector[1, 1].item(), vector[0, 1].item()))
        for sigmas in (2.0, 1.0):
            options = {"facecolor": (*_rgb(colour), 0.08 * strength), "edgecolor": (*_rgb(colour), 0.25 + 0.75 * strength)}
            axes.add_patch(ellipse(mean.tolist(), sigmas * width, sigmas * height, angle=angle, linewidth=2.0 / (1.0 + sigmas), **options))
        axes.plot(*mean.tolist(), marker="+", markersize=5, color=colour, alpha=0.25 + 0.75 * strength)


def draw_density_1d(axes: Any, x: Tensor, weights: Tensor, means: Tensor, variances: Tensor) -> None:
    """Histogram of points on the line, the density of a mixture over it, and each weighted component under it.

    Args:
        axes: of matplotlib.
        x: ``(n, 1)`` or ``(n,)``.
        weights, means, variances: ``(K,)``.
    """
    points = x.detach().double().cpu().flatten()
    bins = max(10, min(120, round(2.0 * len(points) ** (1.0 / 3.0))))
    axes.hist(points.numpy(), bins=bins, density=True, color="#d4dbe4", label="data")
    low, high = points.min().item(), points.max().item()
    space = 0.06 * ((high - low) or 1.0)
    line = torch.linspace(low - space, high + space, 800, dtype=torch.float64)
    order = means.argsort()
    weights, means, variances = (t.detach().double().cpu()[order.cpu()] for t in (weights, means, variances))
    parts = _components_1d(line, weights, means, variances)
    # Few components get a colour and a name each; many would make a legend nobody reads.
    palette = optional_import("matplotlib", "matplotlib", "drawing pictures").colormaps["tab10"]
    for k, part in enumerate(parts):
        named = len(parts) <= 6
        label = f"{weights[k].item():.2f} N({means[k].item():.3g}, {variances[k].item() ** 0.5:.3g}$^2$)" if named else None
        axes.plot(line, part, color=palette((k + 1) % 10) if named else QUIET, linewidth=1.3, linestyle="--" if named else "-", label=label)
    axes.plot(line, parts.sum(0), color=BLUE, linewidth=2.0, label="mixture")
    axes.set_xlim(line[0].item(), line[-1].item())
    axes.set_ylim(bottom=0.0)
    axes.set_ylabel("density")
    bare(axes)
    axes.legend(frameon=False)


def _components_1d(x: Tensor, weights: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """Weighted density of each component at each point, ``(K, n)``."""
    square = (x - means[:, None]).square() / variances[:, None]
    return weights[:, None] * torch.exp(-0.5 * square) / (2.0 * math.pi * variances[:, None]).sqrt()


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = optional_import("matplotlib.colors", "matplotlib", "drawing pictures").to_rgb(colour)
    return red, green, blue


def _shades() -> Any:
    """White to the blue of the curves and on to near black."""
    colours = optional_import("matplotlib.colors", "matplotlib", "drawing pictures")
    return colours.LinearSegmentedColormap.from_list("density", ["#ffffff", "#b9d0ea", BLUE, "#0b2142"], N=128)


# --- whole pictures ---------------------------------------------------------------------------------------------------


def log_likelihood_curve(
    path: PathLike,
    values: Sequence[float],
    title: str = "",
    others: Sequence[Sequence[float]] = (),
    label: str = "mean log-likelihood, nats per point",
) -> None:
    """Mean log-likelihood of the training data by iteration, in nats per point; or what else ``label`` says.

    Args:
        path: the PNG to write, replaced in one step.
        values: one per iteration, from the first.
        title: above the picture.
        others: the same of other starts, drawn thin behind.
        label: what the values are.

    Raises:
        MissingExtraError: without matplotlib.
        FileError: if the file cannot be written.
    """
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot()
    for i, other in enumerate(others):
        axes.plot(range(1, len(other) + 1), other, color=QUIET, linewidth=0.9, label="other starts" if i == 0 else None)
    axes.plot(range(1, len(values) + 1), values, color=BLUE, marker="o" if len(values) < 15 else None, markersize=4, label="the best start")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("iteration")
    axes.set_ylabel(label)
    axes.set_title(title, loc="left", color=INK)
    axes.grid(color=GRID, linewidth=0.7)
    bare(axes)
    if others:
        axes.legend(frameon=False, loc="lower right")
    save(figure, path)


def density_1d(path: PathLike, x: Tensor, weights: Tensor, means: Tensor, variances: Tensor, title: str = "", label: str = "x") -> None:
    """A picture of :func:`draw_density_1d`.

    Args:
        path: the PNG to write, replaced in one step.
        x, weights, means, variances: see there.
        title: above the picture.
        label: what ``x`` is.

    Raises:
        MissingExtraError: without matplotlib.
        FileError: if the file cannot be written.
    """
    figure = new_figure(6.8, 4.2)
    axes = figure.add_subplot()
    draw_density_1d(axes, x, weights, means, variances)
    axes.set_xlabel(label)
    axes.set_title(title, loc="left", color=INK)
    save(figure, path)


def density_2d(path: PathLike, x: Tensor, log_prob: LogProb, weights: Tensor, means: Tensor, covariances: Tensor, title: str = "") -> None:
    """Side by side: the data with the components as ellipses, and the density.

    Args:
        path: the PNG to write, replaced in one step.
        x: the data, ``(n, 2)``.
        log_prob: see :func:`draw_density`.
        weights, means, covariances: see :func:`draw_ellipses`.
        title: above the picture.

    Raises:
        MissingExtraError: without matplotlib.
        FileError: if the file cannot be written.
    """
    bounds = bounds_of(x)
    left, right, bottom, top = bounds
    shape = min(2.5, max(0.4, (top - bottom) / (right - left)))
    figure = new_figure(10.4, min(9.0, 0.9 + 4.9 * shape))
    data, density = figure.subplots(1, 2, sharex=True, sharey=True)
    draw_points(data, x)
    draw_ellipses(data, weights, means, covariances)
    data.set_aspect("equal")
    data.set_title("data; components at one and two sigma", loc="left", fontsize="medium")
    draw_density(density, log_prob, bounds)
    density.set_title("density (shade: its square root)", loc="left", fontsize="medium")
    for axes in (data, density):
        axes.set_xlabel("$x_1$")
        bare(axes)
    data.set_ylabel("$x_2$")
    figure.suptitle(title, x=0.01, ha="left", color=INK)
    save(figure, path)
