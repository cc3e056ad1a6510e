"""Moving through a latent plane: a window with two sliders. :mod:`vae_fast.plots.page` is the same as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_fast._optional import optional_import
from vae_fast.models.vae import VAE
from vae_fast.plots._figure import GRID, INK, ORANGE, PathLike, bare, new_figure, save
from vae_fast.plots.mixture import bounds_of
from vae_fast.plots.readings import Readings, draw_reading

_MOST_POINTS = 5000  # more dots than this only make a blot of the plane and a large page
_MOST_CLASSES = 10
#: Ten colours that stay apart for colour-blind readers (Petroff 2021, arXiv:2107.02270).
CLASSES = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
_SPREAD = 3.0  # standard deviations of N(0, I) that the plane shows at least


# --- what is explored -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LatentPlane:
    """Two dimensions of a VAE's latent space, the others held still. Made by :func:`latent_plane`.

    Attributes:
        model: whose decoder draws.
        image_shape: ``(height, width)``.
        dims: the two dimensions, from 0.
        start: ``(L,)``: where the two begin and where the others stay.
        points: ``(n, 2)``: posterior means of images along the two dimensions; n may be 0.
        labels: ``(n,)`` integers.
        label_name: what the labels are.
        half: the plane is ``[-half, half]`` in both dimensions: 3 standard deviations of the prior N(0, I) or more, so that
            the points are inside (all but the outermost 0.1 per cent on each side).
        title: for the window and the page.
    """

    model: VAE
    image_shape: tuple[int, int]
    dims: tuple[int, int]
    start: Tensor
    points: Tensor
    labels: Tensor
    label_name: str
    half: float
    title: str

    def decode(self, places: Tensor) -> Tensor:
        """The mean of ``p(x|z)`` at places of the plane, ``(n, 2)`` to ``(n, height, width)`` float32 in [0, 1], on the CPU."""
        return self.decode_latent(self.latent(places))

    def latent(self, places: Tensor) -> Tensor:
        """z at places of the plane, ``(n, 2)`` to ``(n, L)``."""
        z = self.start.repeat(len(places), 1)
        z[:, list(self.dims)] = places.to(z)
        return z

    @torch.no_grad()
    def decode_latent(self, z: Tensor) -> Tensor:
        """:meth:`decode` of any z, ``(n, L)``."""
        mean = self.model.mean_of(self.model.decode(z))
        return mean.reshape(-1, *self.image_shape).float().clamp(0.0, 1.0).cpu()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Posterior means of ``(n, height, width)`` images, ``(n, L)``.

        Raises:
            ValueError: if they are of another size than the plane's.
        """
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"images of {tuple(images.shape[1:])} pixels: expected {self.image_shape}, those of the plane")
        return torch.cat([self.model.encode(part.flatten(1).to(self.start.device))[0] for part in images.split(1000)])

    @property
    def origin(self) -> tuple[float, float]:
        """Where the two dimensions begin."""
        first, second = self.start[list(self.dims)].tolist()
        return first, second


@torch.no_grad()
def latent_plane(
    model: VAE,
    image_shape: tuple[int, int],
    dims: tuple[int, int] = (0, 1),
    *,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    label_name: str = "label",
    at: Tensor | None = None,
    title: str = "",
) -> LatentPlane:
    """A plane of a latent space to move in.

    Args:
        model: in ``eval()`` mode, with a latent of one dimension of size 2 or more.
        image_shape: ``(height, width)`` of what the decoder gives, flattened or not.
        dims: the two dimensions of z, from 0.
        images: ``(n, *event)``, encoded and drawn as points at their posterior means; of more than 5,000, 5,000 evenly spread. None: none.
        labels: ``(n,)`` integers that colour the points; up to 10 different ones are classes, more a scale. None: all 0.
        label_name: what the labels are.
        at: one image ``(*event)``: start at its posterior mean, in every dimension. None: 0.
        title: for the window and the page.

    Raises:
        ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> from vae_fast.models import MLPVAE
        >>> plane = latent_plane(MLPVAE(latent_dim=3, data_dim=64).eval(), (8, 8), (0, 2))
        >>> plane.decode(torch.tensor([[0.5, -1.0]])).shape
        torch.Size([1, 8, 8])
    """
    size = model.latent_shape
    if size is None or len(size) != 1 or size[0] < 2:
        raise ValueError(f"the latent has shape {size}: expected one dimension of size 2 or more")
    if len(set(dims)) != 2 or not all(0 <= i < size[0] for i in dims):
        raise ValueError(f"dims={tuple(dims)}: expected two different dimensions of 0 to {size[0] - 1}")
    like = model._anchor()
    start = torch.zeros(size[0], dtype=like.dtype, device=like.device)
    if at is not None:
        start = model.encode(at[None].to(like.device))[0][0]
    points, colours = torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)
    if images is not None and len(images):
        kept = torch.arange(len(images))[:: -(-len(images) // _MOST_POINTS)]
        means = [model.encode(images[part].to(like.device))[0][:, list(dims)] for part in kept.split(1000)]
        points = torch.cat(means).float().cpu()
        colours = torch.zeros(len(kept), dtype=torch.long) if labels is None else labels.cpu()[kept]
    reach = [abs(v) for v in start[list(dims)].tolist()] + ([abs(v) for v in bounds_of(points)] if len(points) else [])
    return LatentPlane(model, image_shape, dims, start, points, colours, label_name, max(_SPREAD, *reach), title)


def colours_of(plane: LatentPlane) -> tuple[np.ndarray[Any, Any], list[str]]:
    """``(index of its class per point, names)``, or with more than 10 labels ``(place on the scale in [0, 1], [least, largest])``."""
    labels = plane.labels.numpy()
    values = np.unique(labels)
    if len(values) <= _MOST_CLASSES:
        return np.searchsorted(values, labels).astype(np.uint8), [str(v) for v in values]
    low, high = values[0], values[-1]
    return ((labels - low) / (high - low)).astype(np.float32), [str(low), str(high)]


# --- the window -------------------------------------------------------------------------------------------------------


class Explorer:
    """The plane, the decoded image and two sliders on a figure; move a slider or click on the plane to decode another image.

    Args:
        figure: of matplotlib; of ``pyplot`` to be shown as a window.
        plane: from :func:`latent_plane`.
        readings: a third slider goes through its images: each is shown with its classifiers' bars, and the place moves to its encoding,
            where the other dimensions stay.

    Attributes:
        sliders: one per dimension, then that of the readings.
        picture: the decoded image on its axes.
        bars: the axes of the classifiers' bars.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from vae_fast.models import MLPVAE
        >>> explorer = Explorer(Figure(), latent_plane(MLPVAE(latent_dim=2, data_dim=64).eval(), (8, 8)))
        >>> explorer.move(0.5, -1.0)
        >>> [float(s.val) for s in explorer.sliders]
        [0.5, -1.0]
    """

    def __init__(self, figure: Any, plane: LatentPlane, readings: Readings | None = None) -> None:
        """Draw it where the plane starts, or at the first of the readings."""
        widgets = optional_import("matplotlib.widgets", "matplotlib", "the explorer's window")
        self._plane, self._readings, self.bars = plane, readings, []
        heights = (14, 1, 1) if readings is None else (14, 6, 1, 1, 1)
        rows = figure.add_gridspec(len(heights), 1, height_ratios=heights)
        tops = [figure.add_subplot(cell) for cell in rows[0].subgridspec(1, 2 if readings is None else 3)]
        self._axes, image = tops[:2]
        names = [f"$z_{{{i + 1}}}$" for i in plane.dims]
        _draw_plane(self._axes, plane, names, -0.12 if readings is None else -0.22)
        (self._cross,) = self._axes.plot(*([v] for v in plane.origin), marker="+", markersize=18, markeredgewidth=2.5, color=INK)
        self.picture = image.imshow(np.zeros(plane.image_shape), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        image.set_axis_off()
        image.set_title("decoded", loc="left", fontsize="medium")
        figure.suptitle(plane.title, x=0.01, ha="left", color=INK, parse_math=False)  # it is the page's title too
        places = [figure.add_subplot(rows[i - len(heights)]) for i in range(len(heights) - (2 if readings is None else 3), len(heights))]
        self.sliders = [
            widgets.Slider(axes, name, -plane.half, plane.half, valinit=value, valfmt="%.2f", color=ORANGE)
            for axes, name, value in zip(places, names, plane.origin, strict=False)
        ]
        for slider in self.sliders:
            slider.on_changed(self._redraw)
        if readings is not None:
            self._means = plane.encode(readings.images)
            self._read_image = tops[2].imshow(np.zeros(plane.image_shape), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            tops[2].set_axis_off()
            self.bars = [figure.add_subplot(cell) for cell in rows[1].subgridspec(1, len(readings.names))]
            last = len(readings.images) - 1
            self.sliders.append(widgets.Slider(places[2], "image", 0, last, valinit=0, valstep=1, valfmt="%d", color=ORANGE))
            self.sliders[2].on_changed(self._read)
        self._canvas = figure.canvas
        for event in ("button_press_event", "motion_notify_event"):
            self._canvas.mpl_connect(event, self._pressed)
        if readings is None:
            self._redraw()
        else:
            self._read(0)

    def move(self, first: float, second: float) -> None:
        """Go to a place of the plane: both sliders, the cross and the image; outside the plane, to its edge."""
        half = self._plane.half
        first, second = (min(max(v, -half), half) for v in (first, second))
        self.sliders[0].eventson = False  # decode once, when both have moved
        self.sliders[0].set_val(first)
        self.sliders[0].eventson = True
        self.sliders[1].set_val(second)

    def _pressed(self, event: Any) -> None:
        toolbar = getattr(self._canvas, "toolbar", None)  # a drag that zooms or pans is the toolbar's
        if event.inaxes is self._axes and event.button == 1 and not (toolbar is not None and toolbar.mode):
            self.move(event.xdata, event.ydata)

    def _read(self, number: float) -> None:
        readings, i = self._readings, int(number)
        assert readings is not None
        self._read_image.set_data(readings.images[i].numpy())
        self._read_image.axes.set_title(f"image {i:,}: a {int(readings.labels[i])}", loc="left", fontsize="medium")
        for axes, name, p in zip(self.bars, readings.names, readings.probabilities[i].tolist(), strict=True):
            axes.clear()
            draw_reading(axes, p, int(readings.labels[i]), name)
        self._plane = replace(self._plane, start=self._means[i])
        self.move(*self._plane.origin)

    def _redraw(self, _: float | None = None) -> None:
        place = [float(slider.val) for slider in self.sliders[:2]]
        self.picture.set_data(self._plane.decode(torch.tensor([place]))[0].numpy())
        self._cross.set_data([place[0]], [place[1]])
        self._canvas.draw_idle()


def _draw_plane(axes: Any, plane: LatentPlane, names: Sequence[str], legend: float) -> None:
    colours, labels = colours_of(plane)
    how = {"s": float(np.clip(12000 / max(1, len(plane.points)), 3.0, 24.0)), "linewidths": 0, "alpha": 0.75}
    if colours.dtype == np.uint8:
        # One class over another would hide it: the points in their own order, then empty handles for the legend.
        axes.scatter(*plane.points.T.numpy(), c=np.array(CLASSES)[colours].tolist(), **how)
        for name, colour in zip(labels, CLASSES, strict=False):
            axes.scatter([], [], s=30, color=colour, label=name)
        if len(labels) > 1:
            axes.legend(title=plane.label_name, frameon=False, loc="center right", bbox_to_anchor=(legend, 0.5))
    else:
        drawn = axes.scatter(*plane.points.T.numpy(), c=plane.labels.numpy(), cmap="viridis", **how)
        axes.figure.colorbar(drawn, ax=axes, label=plane.label_name, location="left", shrink=0.75)
    axes.set(xlim=(-plane.half, plane.half), ylim=(-plane.half, plane.half), xlabel=names[0], ylabel=names[1], aspect="equal")
    axes.set_title("click or drag to move", loc="left", fontsize="medium")
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    bare(axes)


def explorer_picture(path: PathLike, plane: LatentPlane, readings: Readings | None = None) -> None:
    """What the window shows when it opens, as a PNG.

    Raises:
        MissingExtraError: without matplotlib.
        FileError: if the file cannot be written.
    """
    figure = new_figure(9.6, 6.0)
    Explorer(figure, plane, readings)
    save(figure, path)
