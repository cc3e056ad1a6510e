"""Moving through a latent plane: a window with two sliders, and a page that a browser opens without a server or network."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vae_fast._optional import optional_import
from vae_fast.files import atomic_write
from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.models.vae import VAE
from vae_fast.plots._figure import GRID, INK, ORANGE, PathLike, bare, new_figure, save
from vae_fast.plots.mixture import bounds_of

_MOST_POINTS = 5000  # more dots than this only make a blot of the plane and a large page
_MOST_CLASSES = 10
#: Ten colours that stay apart for colour-blind readers (Petroff 2021, arXiv:2107.02270), and viridis.
_CLASSES = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
_SCALE = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
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

    @torch.no_grad()
    def decode(self, places: Tensor) -> Tensor:
        """The mean of ``p(x|z)`` at places of the plane, ``(n, 2)`` to ``(n, height, width)`` float32 in [0, 1], on the CPU."""
        z = self.start.repeat(len(places), 1)
        z[:, list(self.dims)] = places.to(z)
        mean = self.model.mean_of(self.model.decode(z))
        return mean.reshape(-1, *self.image_shape).float().clamp(0.0, 1.0).cpu()

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
        ValueError: naming the argument, what came and what was expected.

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


def _colours(plane: LatentPlane) -> tuple[np.ndarray[Any, Any], list[str]]:
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

    Attributes:
        sliders: one per dimension.
        picture: the decoded image on its axes.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from vae_fast.models import MLPVAE
        >>> explorer = Explorer(Figure(), latent_plane(MLPVAE(latent_dim=2, data_dim=64).eval(), (8, 8)))
        >>> explorer.move(0.5, -1.0)
        >>> [float(s.val) for s in explorer.sliders]
        [0.5, -1.0]
    """

    def __init__(self, figure: Any, plane: LatentPlane) -> None:
        """Draw it where the plane starts."""
        widgets = optional_import("matplotlib.widgets", "matplotlib", "the explorer's window")
        self._plane = plane
        parts = figure.subplot_mosaic([["plane", "image"], ["first", "first"], ["second", "second"]], height_ratios=(14, 1, 1))
        self._axes, image = parts["plane"], parts["image"]
        names = [f"$z_{{{i + 1}}}$" for i in plane.dims]
        _draw_plane(self._axes, plane, names)
        (self._cross,) = self._axes.plot(*([v] for v in plane.origin), marker="+", markersize=18, markeredgewidth=2.5, color=INK)
        self.picture = image.imshow(np.zeros(plane.image_shape), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        image.set_axis_off()
        image.set_title("decoded", loc="left", fontsize="medium")
        figure.suptitle(plane.title, x=0.01, ha="left", color=INK, parse_math=False)  # it is the page's title too
        self.sliders = [
            widgets.Slider(axes, name, -plane.half, plane.half, valinit=value, valfmt="%.2f", color=ORANGE)
            for axes, name, value in zip((parts["first"], parts["second"]), names, plane.origin, strict=True)
        ]
        for slider in self.sliders:
            slider.on_changed(self._redraw)
        self._canvas = figure.canvas
        for event in ("button_press_event", "motion_notify_event"):
            self._canvas.mpl_connect(event, self._pressed)
        self._redraw()

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

    def _redraw(self, _: float | None = None) -> None:
        place = [float(slider.val) for slider in self.sliders]
        self.picture.set_data(self._plane.decode(torch.tensor([place]))[0].numpy())
        self._cross.set_data([place[0]], [place[1]])
        self._canvas.draw_idle()


def _draw_plane(axes: Any, plane: LatentPlane, names: Sequence[str]) -> None:
    colours, labels = _colours(plane)
    how = {"s": float(np.clip(12000 / max(1, len(plane.points)), 3.0, 24.0)), "linewidths": 0, "alpha": 0.75}
    if colours.dtype == np.uint8:
        # One class over another would hide it: the points in their own order, then empty handles for the legend.
        axes.scatter(*plane.points.T.numpy(), c=np.array(_CLASSES)[colours].tolist(), **how)
        for name, colour in zip(labels, _CLASSES, strict=False):
            axes.scatter([], [], s=30, color=colour, label=name)
        if len(labels) > 1:
            axes.legend(title=plane.label_name, frameon=False, loc="center right", bbox_to_anchor=(-0.12, 0.5))
    else:
        drawn = axes.scatter(*plane.points.T.numpy(), c=plane.labels.numpy(), cmap="viridis", **how)
        axes.figure.colorbar(drawn, ax=axes, label=plane.label_name, location="left", shrink=0.75)
    axes.set(xlim=(-plane.half, plane.half), ylim=(-plane.half, plane.half), xlabel=names[0], ylabel=names[1], aspect="equal")
    axes.set_title("click or drag to move", loc="left", fontsize="medium")
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    bare(axes)


def explorer_picture(path: PathLike, plane: LatentPlane) -> None:
    """What the window shows when it opens, as a PNG.

    Raises:
        MissingExtraError: without matplotlib.
        FileError: if the file cannot be written.
    """
    figure = new_figure(9.6, 6.0)
    Explorer(figure, plane)
    save(figure, path)


# --- the page ---------------------------------------------------------------------------------------------------------

_TEMPLATE = Path(__file__).with_name("explorer.html")
#: Most that a pixel in [0, 1] on the page may differ from the decoder's; measured on a lattice of the plane when it is written.
TOLERANCE = 1e-3
_CELLS = 24  # of the pre-decoded grid, along each side, unless asked for
_LATTICE = 9  # places along each side where the page is compared with the decoder
#: The layers that the page can run, and the numbers each needs; explorer.html has the same list.
_LAYERS: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.Linear: ("linear", ("in_features", "out_features")),
    nn.ReLU: ("relu", ()),
    nn.LeakyReLU: ("leaky_relu", ("negative_slope",)),
    nn.Tanh: ("tanh", ()),
    nn.Sigmoid: ("sigmoid", ()),
    nn.SiLU: ("silu", ()),
    nn.Softplus: ("softplus", ("beta", "threshold")),
}
_NOTHING = (nn.Identity, nn.Dropout)  # layers that do nothing in eval() mode


def explorer_page(path: PathLike, plane: LatentPlane, *, grid: int | None = None) -> str:
    """One HTML file to move through the plane in a browser: no server, no network, no other file.

    The decoder itself runs in the page where it is an ``nn.Sequential`` of linear layers and the usual activations: its weights are in the
    page, as float16 where that moves no pixel by more than 0.001, else as float32. Any other decoder is asked beforehand for a grid of
    images, between which the page blends bilinearly. The page says which it is.

    Args:
        path: the file to write, replaced in one step.
        plane: from :func:`latent_plane`.
        grid: make it ``grid`` x ``grid`` images, of at least 2 x 2, whatever the decoder is. None: only where it has to be (24 x 24).

    Returns:
        How the page decodes, as it says itself.

    Raises:
        ValueError: for a grid below 2.
        FileError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> from vae_fast.models import MLPVAE
        >>> plane = latent_plane(MLPVAE(latent_dim=2, data_dim=64).eval(), (8, 8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     explorer_page(Path(folder) / "plane.html", plane, grid=5)[:30]
        'a grid of 5 x 5 decoded images'
    """
    if grid is not None and grid < 2:
        raise ValueError(f"grid={grid}: expected 2 or more images along each side")
    decoder = (_network(plane) if grid is None else None) or _grid(plane, grid or _CELLS)
    colours, labels = _colours(plane)
    content = {
        "format": "vae_fast.explorer",
        "version": 1,
        "shape": plane.image_shape,
        "dims": plane.dims,
        "start": plane.start.tolist(),
        "half": plane.half,
        "decoder": decoder,
        "points": {
            "kind": "classes" if colours.dtype == np.uint8 else "scale",
            "name": plane.label_name,
            "labels": labels,
            "palette": _CLASSES[: len(labels)] if colours.dtype == np.uint8 else _SCALE,
            "places": _base64(plane.points.numpy().astype("<f4")),
            "colours": _base64(colours),
        },
    }
    # Neither text can end its element or hold the other's mark: "<" is escaped in both.
    text = _TEMPLATE.read_text(encoding="utf-8").replace("<!--DATA-->", _script_json(content))
    with atomic_write(Path(path)) as file:
        file.write(text.replace("<!--TITLE-->", html.escape(plane.title or "latent plane")).encode(errors="backslashreplace"))
    return str(decoder["how"])


def _network(plane: LatentPlane) -> dict[str, Any] | None:
    """The decoder's layers and weights, or None if the page cannot run them to within the tolerance."""
    layers = _flat_layers(plane.model.decoder)
    if layers is None:
        return None
    if (mean := LIKELIHOODS[str(plane.model.likelihood)].mean_layer) is not None:
        layers.append(mean())
    for dtype in ("float16", "float32"):
        weights = [_rounded(layer, dtype) for layer in layers if isinstance(layer, nn.Linear)]
        error = _difference(plane, layers, weights)
        if error <= TOLERANCE:
            arrays = [part.astype(f"<f{4 if dtype == 'float32' else 2}").ravel() for pair in weights for part in pair]
            kinds = [{"type": kind} | {n: getattr(layer, n) for n in names} for layer in layers for kind, names in (_LAYERS[type(layer)],)]
            count = sum(a.size for a in arrays)
            how = f"the network itself, {count:,} weights as {dtype}"
            how += f", which moves a pixel in [0, 1] by at most {error:.0e}" if dtype == "float16" else ""
            return {"kind": "network", "how": how, "layers": kinds, "dtype": dtype, "weights": _base64(np.concatenate(arrays))}
    return None


def _flat_layers(decoder: nn.Module) -> list[nn.Module] | None:
    """The layers one after the other if the page knows them all. A subclass may compute something else: it is not known."""
    if type(decoder) is nn.Sequential:
        parts = [_flat_layers(layer) for layer in decoder]
        return None if any(p is None for p in parts) else [layer for p in parts for layer in p or ()]
    if type(decoder) in _NOTHING:
        return []
    return [decoder] if type(decoder) in _LAYERS else None


def _rounded(layer: nn.Linear, dtype: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
    with np.errstate(over="ignore"):  # a weight beyond float16 is infinite, and the comparison fails
        weight, offset = (t.detach().float().cpu().numpy().astype(dtype) for t in (layer.weight, bias))
    return weight, offset


@torch.no_grad()
def _difference(plane: LatentPlane, layers: Sequence[nn.Module], weights: Sequence[tuple[Any, Any]]) -> float:
    """The largest difference of a pixel between the decoder and the same layers with these weights; NaN where they are not comparable."""
    places = _lattice(plane.half, _LATTICE)
    h = plane.start.float().cpu().repeat(len(places), 1)
    h[:, list(plane.dims)] = places
    given = iter(weights)
    want = plane.decode(places)
    try:
        for layer in layers:
            if isinstance(layer, nn.Linear):
                h = nn.functional.linear(h, *(torch.from_numpy(part.astype(np.float32)) for part in next(given)))
            else:
                h = type(layer).forward(layer, h)  # without the hooks a call would run: the page has none
        return float((h.clamp(0.0, 1.0).reshape(want.shape) - want).abs().max())
    except RuntimeError:  # a model whose decode() gives its decoder more than z, or makes less of what comes back
        return math.nan


def _grid(plane: LatentPlane, n: int) -> dict[str, Any]:
    """Images decoded beforehand: ``(n, n, height, width)`` uint8, the second dimension of the plane along the rows."""
    images = (plane.decode(_lattice(plane.half, n)) * 255.0).round().to(torch.uint8).reshape(n, n, *plane.image_shape)
    corners = images.float() / 255.0
    middles = (corners[1:, 1:] + corners[1:, :-1] + corners[:-1, 1:] + corners[:-1, :-1]) / 4.0
    want = plane.decode(_lattice(plane.half * (n - 2) / (n - 1), n - 1))
    error = float((middles.reshape(want.shape) - want).abs().max())
    how = (
        f"a grid of {n} x {n} decoded images, blended between; in the middle of a cell up to {error:.2f} from the decoder's pixel in [0, 1]"
    )
    return {"kind": "grid", "how": how, "n": n, "images": _base64(images.numpy())}


def _lattice(half: float, n: int) -> Tensor:
    """``(n * n, 2)`` places of the plane, row by row from the lowest second coordinate."""
    line = torch.linspace(-half, half, n)
    second, first = torch.meshgrid(line, line, indexing="ij")
    return torch.stack((first, second), -1).reshape(-1, 2)


def _base64(array: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _script_json(value: Any) -> str:
    """JSON that cannot leave a ``<script>`` element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
