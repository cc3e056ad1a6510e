"""The explorer as a page: one HTML file that a browser opens without a server or network."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vae_fast.files import atomic_write
from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.plots._figure import PathLike
from vae_fast.plots.explorer import CLASSES, LatentPlane, colours_of
from vae_fast.plots.readings import RIGHT, WRONG, Readings

#: viridis.
_SCALE = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
_TEMPLATE = Path(__file__).with_name("explorer.html")
#: Most that a pixel in [0, 1] on the page may differ from the decoder's; measured on a lattice of the plane, and at
#: the encodings of readings, when it is written.
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


def explorer_page(path: PathLike, plane: LatentPlane, *, grid: int | None = None, readings: Readings | None = None) -> str:
    """One HTML file to move through the plane in a browser: no server, no network, no other file.

    The decoder itself runs in the page where it is an ``nn.Sequential`` of linear layers and the usual activations: its weights are in the
    page, as float16 where that moves no pixel by more than 0.001, else as float32. Any other decoder is asked beforehand for a grid of
    images, between which the page blends bilinearly. The page says which it is.

    Args:
        path: the file to write, replaced in one step.
        plane: from :func:`latent_plane`.
        grid: make it ``grid`` x ``grid`` images, of at least 2 x 2, whatever the decoder is. None: only where it has to be (24 x 24).
        readings: a third slider goes through its images: each is shown with its classifiers' bars, and the place moves to its encoding;
            the other dimensions stay there, but with a grid, which has them decoded, where the plane has them.

    Returns:
        How the page decodes, as it says itself.

    Raises:
        ValueError: for a grid below 2, or readings of images of another size.
        FileError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> from vae_fast.models import MLPVAE
        >>> from vae_fast.plots import latent_plane
        >>> plane = latent_plane(MLPVAE(latent_dim=2, data_dim=64).eval(), (8, 8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     explorer_page(Path(folder) / "plane.html", plane, grid=5)[:30]
        'a grid of 5 x 5 decoded images'
    """
    if grid is not None and grid < 2:
        raise ValueError(f"grid={grid}: expected 2 or more images along each side")
    means = plane.start[None][:0] if readings is None else plane.encode(readings.images)
    decoder = (_network(plane, means) if grid is None else None) or _grid(plane, grid or _CELLS)
    colours, labels = colours_of(plane)
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
            "palette": CLASSES[: len(labels)] if colours.dtype == np.uint8 else _SCALE,
            "places": _base64(plane.points.numpy().astype("<f4")),
            "colours": _base64(colours),
        },
        "readings": None if readings is None else _read_page(readings, means),
    }
    # Neither text can end its element or hold the other's mark: "<" is escaped in both.
    text = _TEMPLATE.read_text(encoding="utf-8").replace("<!--DATA-->", _script_json(content))
    with atomic_write(Path(path)) as file:
        file.write(text.replace("<!--TITLE-->", html.escape(plane.title or "latent plane")).encode(errors="backslashreplace"))
    return str(decoder["how"])


def _read_page(readings: Readings, means: Tensor) -> dict[str, Any]:
    return {
        "names": readings.names,
        "labels": readings.labels.tolist(),
        "classes": readings.probabilities.shape[2],
        "colours": (RIGHT, WRONG),
        "images": _base64(readings.images.numpy()),
        "probabilities": _base64(readings.probabilities.numpy().astype("<f4")),
        "means": _base64(means.float().cpu().numpy().astype("<f4")),
    }


def _network(plane: LatentPlane, means: Tensor) -> dict[str, Any] | None:
    """The decoder's layers and weights, or None if the page cannot run them to within the tolerance."""
    layers = _flat_layers(plane.model.decoder)
    if layers is None:
        return None
    if (mean := LIKELIHOODS[str(plane.model.likelihood)].mean_layer) is not None:
        layers.append(mean())
    for dtype in ("float16", "float32"):
        weights = [_rounded(layer, dtype) for layer in layers if isinstance(layer, nn.Linear)]
        error = _difference(plane, layers, weights, torch.cat((plane.latent(_lattice(plane.half, _LATTICE)), means)))
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
def _difference(plane: LatentPlane, layers: Sequence[nn.Module], weights: Sequence[tuple[Any, Any]], z: Tensor) -> float:
    """The largest difference of a pixel between the decoder and the same layers with these weights; NaN where they are not comparable."""
    h = z.float().cpu()
    given = iter(weights)
    want = plane.decode_latent(z)
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
