"""Pictures of a training run, with matplotlib (an extra): loss curve, reconstructions, samples, latent space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_fast._optional import optional_import
from vae_fast.plots._figure import BLUE, GRID, INK, ORANGE, QUIET, PathLike, bare, new_figure, save


def loss_curve(path: PathLike, history: Sequence[Mapping[str, float]], floor: float | None = None, title: str = "") -> None:
    """Training and validation loss by epoch, in nats per image, with the entropy floor of grey targets as a line.

    Args:
        path: the PNG to write, replaced in one step.
        history: what :func:`vae_fast.training.fit` returned.
        floor: see :func:`vae_fast.data.entropy_floor`; None draws no line.
        title: above the picture.

    Raises:
        MissingExtraError: without matplotlib.
        FileError: if the file cannot be written.
    """
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot()
    epochs = [int(r["epoch"]) for r in history]
    marker = "o" if len(epochs) < 15 else None
    axes.plot(epochs, [r["loss"] for r in history], color=BLUE, marker=marker, markersize=4, label="training")
    if history and "valid_loss" in history[0]:
        valid = [r["valid_loss"] for r in history]
        axes.plot(epochs, valid, color=ORANGE, marker=marker, markersize=4, linestyle="--", label="validation")
    if floor is not None:
        axes.axhline(floor, color=QUIET, linewidth=1.2, linestyle=":", label=f"entropy floor of grey targets ({floor:.2f})")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
    if len(epochs) < 15:
        axes.set_xlim(0.5, len(epochs) + 0.5)
    axes.set_ylabel("loss = -ELBO, nats per image")
    axes.set_title(title, loc="left", color=INK)
    axes.grid(color=GRID, linewidth=0.7)
    bare(axes)
    axes.legend(frameon=False)
    save(figure, path)


def image_grid(path: PathLike, rows: Sequence[Tensor], shape: tuple[int, int], labels: Sequence[str] = ()) -> None:
    """Rows of grey images, e.g. inputs above their reconstructions.

    Args:
        path: the PNG to write, replaced in one step.
        rows: each ``(n, height * width)``, all with the same n; uint8, or floating in [0, 1].
        shape: ``(height, width)`` of one image.
        labels: one word beside each row.

    Raises:
        MissingExtraError: without matplotlib.
        FileError: if the file cannot be written.
    """
    height, width = shape
    sheet = np.ones((len(rows) * (height + 1) + 1, len(rows[0]) * (width + 1) + 1), dtype=np.float32)
    for i, row in enumerate(rows):
        pixels = row.float() / 255.0 if row.dtype == torch.uint8 else row.float()
        for j, image in enumerate(pixels.cpu().numpy().reshape(-1, height, width)):
            top, left = i * (height + 1) + 1, j * (width + 1) + 1
            sheet[top : top + height, left : left + width] = image
    inches = 9.0
    figure = new_figure(inches, max(1.0, inches * sheet.shape[0] / sheet.shape[1]))
    axes = figure.add_subplot()
    axes.imshow(sheet, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([i * (height + 1) + 0.5 * height for i in range(len(labels))], labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    save(figure, path)


def latent_scatter(path: PathLike, mu: Tensor, labels: Tensor, label_name: str = "label") -> None:
    """Posterior means coloured by label: the two latent dimensions, or their first two principal components.

    Args:
        path: the PNG to write, replaced in one step.
        mu: ``(n, L)``.
        labels: ``(n,)`` integers; up to 10 different ones are shown as classes, more as a continuous scale.
        label_name: what the labels are.

    Raises:
        MissingExtraError: without matplotlib.
        FileError: if the file cannot be written.
    """
    points, names = _plane(mu.detach().double().cpu())
    colours, values = labels.cpu().numpy(), np.unique(labels.cpu().numpy())
    figure = new_figure(6.0, 5.4)
    axes = figure.add_subplot()
    size = float(np.clip(20000 / max(1, len(points)), 3.0, 24.0))
    if len(values) <= 10:
        palette = optional_import("matplotlib", "matplotlib", "drawing pictures").colormaps["tab10"]
        # One class over another would hide it: draw the points in their own order, then empty handles for the legend.
        index = np.searchsorted(values, colours)
        axes.scatter(*points.T, s=size, c=palette(index), linewidths=0, alpha=0.75)
        for k, value in enumerate(values):
            axes.scatter([], [], s=30, color=palette(k), label=str(value))
        axes.legend(title=label_name, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        drawn = axes.scatter(*points.T, s=size, c=colours, cmap="viridis", linewidths=0, alpha=0.85)
        figure.colorbar(drawn, ax=axes, label=label_name)
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    axes.set_aspect("equal", adjustable="datalim")
    bare(axes)
    save(figure, path)


def _plane(mu: Tensor) -> tuple[np.ndarray[Any, Any], tuple[str, str]]:
    """Two coordinates per point, and what they are."""
    mu = mu.flatten(1)
    if mu.shape[1] == 1:
        return np.column_stack([mu[:, 0].numpy(), np.zeros(len(mu))]), ("mean of $z_1$", "")
    if mu.shape[1] == 2:
        return mu.numpy(), ("mean of $z_1$", "mean of $z_2$")
    points, share = principal_components(mu)
    first, second = (f"principal component {i + 1} of the means ({s:.0%} of the variance)" for i, s in enumerate(share))
    return points.numpy(), (first, second)


def principal_components(x: Tensor, k: int = 2) -> tuple[Tensor, list[float]]:
    """Coordinates along the first ``k`` principal components and each one's share of the variance.

    Args:
        x: ``(n, d)``.
        k: at most n and d.

    Example:
        >>> points, share = principal_components(torch.tensor([[-2.0, 0.0, 0.0], [2.0, 0.0, 0.0]]))
        >>> [round(s, 3) for s in share]
        [1.0, 0.0]
    """
    centred = x - x.mean(0)
    _, spread, axes = torch.linalg.svd(centred, full_matrices=False)
    axes = axes[:k].T
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()  # SVD leaves them open: largest entry positive
    share = spread.square() / spread.square().sum().clamp(min=1e-300)
    return centred @ (axes * signs), share[:k].tolist()
