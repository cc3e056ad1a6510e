"""Results of several machines side by side: the range of each ratio, and of the share of the limit that was reached."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_fast.bench import machine, promises, report
from vae_fast.errors import FileError

SUITES = ("kernels", "mixtures", "likelihoods", "linear", "training")  # whose rows are compared over machines
_COLUMNS = {"eager": "eager", "compile": "torch.compile"}


@dataclass(frozen=True)
class Measured:
    """What one machine measured: its folder, and its results by suite."""

    folder: Path
    results: Mapping[str, dict[str, Any]]

    @property
    def facts(self) -> dict[str, Any]:
        """Of the suite that was measured last; of several at that time, the first in the order of the suites."""
        return max((r["machine"] for r in self.results.values()), key=machine.measured_at)

    @property
    def label(self) -> str:
        """The machine in words."""
        return machine.label(self.facts)


def load(folders: Path) -> list[Measured]:
    """Every folder that holds results of suites, the one measured last first (of the same time, the later name), CPUs before GPUs.

    Raises:
        FileError: if a file is not a result, lies in another machine's folder, or was not measured in full.
    """
    found = []
    for folder in sorted(p for p in folders.iterdir() if p.is_dir()):
        results = {}
        for suite in report.TITLES:
            path = folder / f"{suite}.json"
            if path.exists():
                results[suite] = report.read(path)
                check(path, results[suite]["machine"], options=results[suite]["options"])
        if results:
            found.append(Measured(folder, results))
    found.sort(key=lambda m: (machine.measured_at(m.facts), m.folder.name), reverse=True)
    return sorted(found, key=lambda m: str(m.facts["device"]))


def check(path: Path, facts: dict[str, Any], options: dict[str, Any] | None = None) -> None:
    """That a result may be shown under the name of its folder.

    Raises:
        FileError: naming the file.
    """
    if machine.name(facts) != path.parent.name:
        raise FileError(f"{path}: is of {machine.label(facts)}; expected in a folder named {machine.name(facts)}")
    less = report.partial(options or {})
    if less:
        raise FileError(f"{path}: was measured with {', '.join(report.PARTIAL[key] for key in less)}; expected a full measurement")


def _spread(values: Sequence[float], text: Any) -> str:
    low, high = text(min(values)), text(max(values))
    return low if low == high else f"{low} to {high}"


def _ratio_cell(found: Sequence[tuple[float, float]]) -> str:
    """A range of ratios, each with the least that is promised of it; in bold if one falls short."""
    if not found:
        return "–"
    text = _spread([ratio for ratio, _ in found], report.times)
    return f"**{text}**" if any(ratio < least for ratio, least in found) else text


def _reached_cell(rows: Sequence[dict[str, Any]]) -> str:
    rows = [row for row in rows if row["reached"]]
    if not rows:
        return "–"
    kinds = "/".join(dict.fromkeys(row["limit"] for row in rows))
    text = f"{_spread([row['reached'] for row in rows], lambda share: f'{share:.0%}')} ({kinds})"
    return f"**{text}**" if any(row["reached"] < (promises.share(row) or 0.0) for row in rows) else text


def table(machines: Iterable[Measured]) -> report.Table:
    """Per case: how many machines measured it, ours against eager, torch.compile and the best alternative, and the share of the limit.

    Each ratio and each share is of one run on one machine; a range is over machines. Bold is what breaks a promise on one of them.
    """
    cases: dict[str, list[dict[str, dict[str, Any]]]] = {}
    for measured in machines:
        for suite in SUITES:
            if suite in measured.results:
                for case, group in report.grouped(measured.results[suite]["rows"]).items():
                    if "ours" in group and group["ours"]["seconds"]:
                        cases.setdefault(case, []).append(group)
    cells = [["ours against, forward + backward", "machines", *_COLUMNS.values(), "the best alternative", "of the limit"]]
    for case, groups in cases.items():
        ratios = [
            {n: (row["seconds"] / g["ours"]["seconds"], promises.least(row)) for n, row in g.items() if n != "ours" and row["seconds"]}
            for g in groups
        ]
        columns = [[found[name] for found in ratios if name in found] for name in _COLUMNS]
        best = [min(found.values()) for found in ratios if found]
        row = [case, str(len(groups)), *(_ratio_cell(column) for column in (*columns, best))]
        cells.append([*row, _reached_cell([g["ours"] for g in groups])])
    return cells
