"""Pictures of results: speed and memory against size, and a roofline with every kernel on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vae_fast._optional import optional_import
from vae_fast.bench.report import size
from vae_fast.plots._figure import BLUE, GRID, INK, ORANGE, QUIET, bare, new_figure, require, save

__all__ = ["draw", "require"]

Row = dict[str, Any]
GREEN, PURPLE = "#3a8f5c", "#7a4fa3"
STYLE = {
    "ours": (BLUE, "o", "vae_fast"),
    "eager": (ORANGE, "s", "eager PyTorch"),
    "compile": (GREEN, "^", "torch.compile"),
    "distributions": (PURPLE, "D", "torch.distributions"),
}
#: What is swept: the size along the axis, the function, the sizes held, and the words.
_SWEEPS = (
    ("B", "elbo_loss, logits", {"D": 784}, "batch", "ELBO, D = 784"),
    ("B", "elbo_loss, logits", {"D": 12288}, "batch", "ELBO, D = 3 x 64 x 64"),
    ("L", "reparameterize_with_kl", {"B": 2048}, "latent size", "sample and KL, batch 2048"),
    ("K", "mixture_log_prob", {"D": 16}, "components", "mixture, D = 16"),
)


def draw(out: Path, rows: Sequence[Row]) -> list[Path]:
    """Write those pictures that the rows have data for: ``speed.png``, ``memory.png``, ``roofline.png``.

    Raises:
        MissingExtraError: without matplotlib.
        FileError: if a file cannot be written.
    """
    rows = [r for r in rows if r["direction"] == "both"]
    found = {"speed": _speed(rows), "memory": _memory(rows), "roofline": _roofline(rows)}
    paths = []
    for name, figure in found.items():
        if figure is not None:
            paths.append(out / f"{name}.png")
            save(figure, paths[-1])
    return paths


def _curves(rows: Sequence[Row], key: str, name: str, held: dict[str, int], value: str) -> dict[str, list[tuple[int, Row]]]:
    found: dict[str, dict[int, Row]] = {}
    for r in rows:
        plain = r["dtype"] == "float32" and "thread" not in r["case"]
        if r["name"] == name and plain and r[value] and all(r["shape"].get(k) == v for k, v in held.items()) and key in r["shape"]:
            found.setdefault(r["contender"], {})[r["shape"][key]] = r
    return {c: sorted(points.items()) for c, points in found.items() if c in STYLE and len(points) > 1}


def _lines(axes: Any, curves: dict[str, list[tuple[int, float]]]) -> None:
    for contender, points in curves.items():
        colour, marker, label = STYLE[contender]
        x, y = zip(*points, strict=True)
        style: dict[str, Any] = {"color": colour, "marker": marker, "label": label, "markersize": 5, "linewidth": 1.6}
        if contender == "compile":  # where it is as good as ours, both are seen
            style |= {"markersize": 8, "markerfacecolor": "none", "linewidth": 1.2, "linestyle": "--", "zorder": 4}
        axes.plot(x, y, **style)


def _axes(figure: Any, places: tuple[int, int, int], label: str, title: str, unit: Any = None) -> Any:
    """Logarithmic axes; along y, 1, 2 and 5 of each decade are labelled."""
    ticker = optional_import("matplotlib.ticker", "matplotlib", "drawing pictures")
    axes = figure.add_subplot(*places)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.set_title(title, loc="left", color=INK, fontsize=10.5)
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(unit) if unit else ticker.EngFormatter(sep=""))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    axes.tick_params(labelsize=8.5)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    bare(axes)
    return axes


def _speed(rows: Sequence[Row]) -> Any:
    """Samples per second against size, and what a copy or multiply-adds would allow."""
    timed = [r for r in rows if r["suite"] == "sweeps"]
    panels = [(s, _curves(timed, s[0], s[1], s[2], "seconds")) for s in _SWEEPS]
    panels = [(s, c) for s, c in panels if "ours" in c]
    if not panels:
        return None
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = new_figure(5.2 * columns, 3.6 * lines + 0.5)
    for i, ((_, _, _, label, title), curves) in enumerate(panels):
        axes = _axes(figure, (lines, columns, i + 1), label, title)
        _lines(axes, {c: [(x, _count(r) / r["seconds"]) for x, r in points] for c, points in curves.items()})
        limit = [(x, _count(r) / r["limit_seconds"]) for x, r in curves["ours"] if r["limit_seconds"]]
        if limit:
            axes.plot(*zip(*limit, strict=True), color=QUIET, linewidth=1.2, linestyle=":", label="limit of the machine", zorder=1)
        _sizes(axes, [x for x, _ in curves["ours"]])
        axes.set_ylabel("samples per second" if i % columns == 0 else "")
    _legend(figure, figure.axes)
    return figure


def _sizes(axes: Any, sizes: Sequence[int]) -> None:
    """Ticks at the sizes that were measured; where two are close, the first is labelled."""
    labels, last = [], 0.0
    for x in sizes:
        labels.append(f"{x:,}" if x > 2.6 * last else "")
        last = x if labels[-1] else last
    axes.set_xticks(sizes, labels)
    axes.xaxis.set_minor_locator(optional_import("matplotlib.ticker", "matplotlib", "drawing pictures").NullLocator())


def _decades() -> Any:
    return optional_import("matplotlib.ticker", "matplotlib", "drawing pictures").LogLocator(base=4.0)


def _count(row: Row) -> int:
    return int(row["shape"].get("B") or row["shape"]["N"])


def _legend(figure: Any, axes: Sequence[Any]) -> None:
    """One legend of what any panel holds, above all of them."""
    entries: dict[str, Any] = {}
    for a in axes:
        for handle, label in zip(*a.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(list(entries.values()), list(entries), loc="outside upper center", ncols=len(entries), frameon=False)


def _memory(rows: Sequence[Row]) -> Any:
    """Peak memory against batch."""
    curves = _curves(rows, "B", "elbo_loss, logits", {"D": 784}, "peak_bytes")
    if "ours" not in curves:
        return None
    figure = new_figure(6.4, 4.2)
    axes = _axes(figure, (1, 1, 1), "batch", "memory of the ELBO's forward and backward pass, D = 784", lambda y, _: size(y))
    axes.yaxis.set_major_locator(_decades())
    _lines(axes, {c: [(x, r["peak_bytes"]) for x, r in points] for c, points in curves.items()})
    _sizes(axes, [x for x, _ in curves["ours"]])
    axes.set_ylabel("peak beyond the inputs")
    axes.legend(frameon=False)
    return figure


def _roofline(rows: Sequence[Row]) -> Any:
    """Operations per second against operations per byte, under the roof that the copy and the multiply-adds of the same run set."""
    points = [r for r in rows if r["seconds"] and r["flops"] and r["least_bytes"] and r["copy_gb_per_second"]]
    points = [r for r in points if r["suite"] in ("kernels", "mixtures") and r["contender"] in STYLE and r["fma_gflops"]]
    ours = [r for r in points if r["contender"] == "ours"]
    if not ours:
        return None
    numbers = {r["case"]: i + 1 for i, r in enumerate(ours)}
    bandwidth, peak = _median([r["copy_gb_per_second"] for r in ours]), _median([r["fma_gflops"] for r in ours])
    figure = new_figure(9.6, 5.4)
    axes = _axes(figure, (1, 1, 1), "operations per byte that must move", "roofline: forward and backward", lambda y, _: f"{y:,g}")
    across = [r["flops"] / r["least_bytes"] for r in points]
    low, high = min(*across, peak / bandwidth) / 5, max(*across, peak / bandwidth) * 2
    axes.plot([low, peak / bandwidth, high], [low * bandwidth, peak, peak], color=QUIET, linewidth=1.6, zorder=1)
    effects = optional_import("matplotlib.patheffects", "matplotlib", "drawing pictures")
    halo = {"color": QUIET, "fontsize": 9, "zorder": 5, "path_effects": [effects.withStroke(linewidth=3, foreground="white")]}
    for text, place, offset, aligned in (  # above the roof, where points are none or few, and over those
        (f"multiply-adds {peak:,.0f} GFLOP/s", (high, peak), (0, 4), "baseline"),
        (f"copy {bandwidth:,.0f} GB/s", (0.5 * peak / bandwidth, 0.5 * peak), (-8, 0), "center"),
    ):
        axes.annotate(text, place, offset, textcoords="offset points", ha="right", va=aligned, **halo)
    for contender, (colour, marker, label) in STYLE.items():
        mine = [r for r in points if r["contender"] == contender]
        if mine:
            x, y = [r["flops"] / r["least_bytes"] for r in mine], [r["gflops"] for r in mine]
            extent, fill = (44, colour) if contender == "ours" else (26, "none")
            axes.scatter(x, y, s=extent, marker=marker, facecolors=fill, edgecolors=colour, linewidths=1.1, label=label, zorder=3)
    written: list[tuple[float, float]] = []
    for r in sorted(ours, key=lambda r: r["gflops"]):
        x, y = r["flops"] / r["least_bytes"], r["gflops"]
        while any(abs(math.log(x / a)) < 0.25 and 0.85 < y / b < 1.2 for a, b in written):  # numbers of points that coincide go above
            y *= 1.05
        written.append((x, y))
        axes.annotate(str(numbers[r["case"]]), (x, y), (6, 0), textcoords="offset points", va="center", color=BLUE, fontsize=8.5)
    axes.set_ylabel("GFLOP/s")
    axes.set_xlim(low, high)
    axes.set_ylim(top=peak * 1.6)
    key = "\n".join(f"{n:>2}  {case}" for case, n in numbers.items())
    axes.text(1.03, 0.0, key, transform=axes.transAxes, fontsize=8, color=INK, va="bottom", linespacing=1.5)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=9)
    return figure


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
