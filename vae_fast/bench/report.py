"""Results on paper: tables for the terminal and for Markdown, JSON and CSV with one row per measure."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vae_fast.bench import machine, promises
from vae_fast.bench.device_time import EVENTS, TIMERS
from vae_fast.errors import FileError
from vae_fast.files import atomic_write, write_json

Row = dict[str, Any]
Table = list[list[str]]  # the first row is the head
NAMES = {"reduction none": 'ours, reduction="none"', "elbo_loss": "elbo_loss over logits", "donate_recon": "the same, donate_recon=True"}
NAMES |= {"dense": "ours, dense x", "compile": "torch.compile", "distributions": "torch.distributions", "keops": "KeOps"}
FORMULA = {"eager": "formula, eager", "compile": "formula, compiled"}
TITLES = {
    "kernels": "forward + backward",
    "mixtures": "forward + backward",
    "likelihoods": "forward + backward",
    "linear": "forward + backward",
    "sweeps": "forward + backward",
    "training": "training",
    "memory": "peak memory, forward + backward",
    "overhead": "one small call",
}


def seconds(value: float | None) -> str:
    """A time to read.

    Example:
        >>> seconds(0.00189), seconds(4.7e-5), seconds(12.0)
        ('1.89 ms', '47 µs', '12.0 s')
    """
    if value is None:
        return "–"
    if value >= 1.0:
        return f"{value:.1f} s"
    return f"{value * 1e3:.2f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} µs" if value >= 1e-5 else f"{value * 1e6:.1f} µs"


def size(value: int | None) -> str:
    """A number of bytes to read.

    Example:
        >>> size(2048), size(3 << 29)
        ('2 KiB', '1.5 GiB')
    """
    if value is None:
        return "–"
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if value >= unit:
            return f"{value / unit:.1f} {name}"
    return f"{value / 2**10:.0f} KiB" if value >= 1 << 10 else f"{value} B"


def times(r: float) -> str:
    """A ratio to read.

    Example:
        >>> times(13.04), times(0.934), times(339.2)
        ('13.0x', '0.93x', '339x')
    """
    return f"{r:,.0f}x" if r >= 100 else f"{r:.1f}x" if r >= 1.1 else f"{r:.2f}x"


def ratio(ours: float, other: float, least: float = promises.NEVER_BELOW, *, overlap: bool = False) -> str:
    """How many times as fast, in bold with what was promised if that is not reached; with ``overlap`` the difference is within the noise.

    Example:
        >>> ratio(1.0, 13.0, 9), ratio(1.0, 5.0, 9), ratio(1.0, 0.9), ratio(1.0, 0.99), ratio(1.0, 0.9, overlap=True)
        ('13.0x', '**5.0x, below 9x**', '**0.90x, slower**', '0.99x', '**0.90x, slower** within noise')
    """
    r = other / ours
    if r >= least:
        return times(r)
    text = f"**{times(r)}, slower**" if r < promises.NEVER_BELOW else f"**{times(r)}, below {least:g}x**"
    return text + " within noise" * (overlap and 0.9 <= r < promises.NEVER_BELOW)


def reached(share: float, least: float | None = None) -> str:
    """A share of the limit, in bold with what was promised if that is not reached.

    Example:
        >>> reached(0.92, 0.8), reached(0.796, 0.8), reached(0.25)
        ('92%', '**79.6%, below 80%**', '25%')
    """
    if least is None or share >= least:
        return f"{share:.0%}"
    text = f"{share:.0%}" if f"{share:.0%}" != f"{least:.0%}" else f"{share:.1%}"
    return f"**{text}, below {least:.0%}**"


def grouped(rows: Iterable[Row], direction: str = "both") -> dict[str, dict[str, Row]]:
    """By case, then contender; of the ways to compile, the fastest (where nothing was timed, the first)."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["direction"] != direction:
            continue
        name = "compile" if row["contender"] == "compile-max" else row["contender"]
        group = found.setdefault(row["case"], {})
        if name not in group or (row["seconds"] or 0.0) < (group[name]["seconds"] or 0.0):
            group[name] = row | {"contender": name}
    return found


def _peers(groups: dict[str, dict[str, Row]]) -> list[str]:
    order = ["eager", "compile", "distributions", "keops", "scikit-learn"]
    present = dict.fromkeys(name for group in groups.values() for name in group if name != "ours")
    return sorted(present, key=lambda n: order.index(n) if n in order else len(order))


def table(suite: str, rows: Sequence[Row]) -> Table:
    """The cells of a suite's table."""
    if suite == "overhead":
        return _overhead_table(rows)
    groups = grouped(rows)
    peers = _peers(groups)
    names = {**NAMES, **(FORMULA if suite == "mixtures" else {})}
    head = [TITLES[suite], "ours", *(names.get(p, p) for p in peers)]
    if suite == "memory":
        return [head, *([case, *_memory_cells(group, peers)] for case, group in groups.items())]
    limits = any(g[n]["limit_seconds"] for g in groups.values() for n in g)
    memory = any(g[n]["peak_bytes"] for g in groups.values() for n in g)
    head += ["limit, reached"] * limits + ["peak memory: ours / " + " / ".join(names.get(p, p) for p in peers)] * memory
    return [head, *([case, *_time_cells(group, peers, limits, memory)] for case, group in groups.items())]


def _time_cells(group: dict[str, Row], peers: Sequence[str], limits: bool, memory: bool) -> list[str]:
    ours = group.get("ours")
    cells = [seconds(ours["seconds"]) if ours else "–"]
    for name in peers:
        row = group.get(name)
        if row is None:
            cells.append("–")
        elif ours is None:
            cells.append(seconds(row["seconds"]))
        else:
            overlap = bool(ours["q20"] <= row["q80"] and row["q20"] <= ours["q80"])
            cells.append(f"{seconds(row['seconds'])}: {ratio(ours['seconds'], row['seconds'], promises.least(row), overlap=overlap)}")
    if limits:
        if ours is not None and ours["limit_seconds"]:
            cells.append(f"{seconds(ours['limit_seconds'])} ({ours['limit']}), {reached(ours['reached'], promises.share(ours))}")
        else:
            cells.append("–")
    if memory:
        cells.append(" / ".join(_memory_cells(group, peers)))
    return cells


def _memory_cells(group: dict[str, Row], peers: Sequence[str]) -> list[str]:
    cells = [size(group[n]["peak_bytes"]) if n in group else "–" for n in ("ours", *peers)]
    target = group["ours"]["memory_target"] if "ours" in group else None
    if target is not None:
        kept = group["ours"]["peak_bytes"] <= target
        cells[0] += f" (at most {size(target)})" if kept else f" **(above {size(target)})**"
    return cells


def _overhead_table(rows: Sequence[Row]) -> Table:
    forward, both = grouped(rows, "forward"), grouped(rows)
    out = [[TITLES["overhead"], "route", "forward", "forward + backward"]]
    for case, group in both.items():
        for name, row in group.items():
            out.append([case, NAMES.get(name, name), seconds(forward[case][name]["seconds"]), seconds(row["seconds"])])
    return out


def markdown(cells: Table) -> str:
    """As Markdown.

    Example:
        >>> print(markdown([["a", "b"], ["1", "2"]]))
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    head, *body = cells
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *("| " + " | ".join(r) + " |" for r in body)])


def terminal(cells: Table) -> str:
    """In columns.

    Example:
        >>> print(terminal([["a", "b"], ["long", "**2**"]]))
        a     b
        ----  -
        long  2
    """
    plain = [[cell.replace("**", "") for cell in row] for row in cells]
    widths = [max(len(row[i]) for row in plain) for i in range(len(plain[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in plain]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def footer(facts: dict[str, Any], rows: Sequence[Row]) -> str:
    """Where and when, and what the machine can do."""
    parts = [machine.label(facts), f"torch {facts['torch']}"] + ([f"CUDA {facts['cuda']}"] if facts.get("gpu") else [])
    parts += [f"commit {facts['commit']}", str(facts["date"])]
    limits = []
    for key, text, unit in (("copy_gb_per_second", "copy", "GB/s"), ("fma_gflops", "multiply-adds", "GFLOP/s")):
        values = [row[key] for row in rows if row.get(key) and row.get("limit_seconds")]
        if values:
            limits.append(f"{text} {statistics.median(values):,.1f} {unit}")
    return "; ".join(parts + limits + _timed(facts, rows)) + "."


def _timed(facts: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    """How many figures of a GPU were taken in which way; those with the host's time in them are named."""
    if not facts.get("gpu"):
        return []
    taken = [(row["timer"], f"{row['case']} ({row['contender']})") for row in rows if row["direction"] == "both" and row.get("timer")]
    counts = Counter(timer for timer, _ in taken)
    said = [f"timed by {timer} ({TIMERS[timer]}): {counts[timer]}" for timer in TIMERS if counts[timer]]
    named = [name for timer, name in taken if timer == EVENTS]
    return said + [f"with the host's time in them: {', '.join(named)}"] * bool(named)


FILES = (".json", ".csv", ".md")
PARTIAL = {"quick": "--quick", "shapes": "--shape", "dtype": "--dtype", "contenders": "--contenders"}
PICTURES = ("speed.png", "memory.png", "roofline.png")


def partial(options: dict[str, Any]) -> list[str]:
    """The options of a result that leave something out, or measure something else than the suite does by itself.

    Example:
        >>> partial({"quick": True, "shapes": [], "dtype": None, "seconds": 1.0})
        ['quick']
    """
    return [key for key in PARTIAL if options.get(key)]


def check_place(out: Path, suites: Iterable[str], facts: dict[str, Any], options: dict[str, Any]) -> None:
    """That writing there replaces nothing but an earlier result of the same suite on the same machine, measured no better than this.

    Raises:
        FileError: naming what would be lost.
    """
    for name in PICTURES:
        if (out / name).exists() and not any((out / f"{suite}.json").exists() for suite in TITLES):
            raise FileError(f"{out / name}: --out would replace it, and there is no result beside it that it was drawn from")
    for suite in suites:
        paths = [out / f"{suite}{end}" for end in FILES]
        if not any(path.exists() for path in paths):
            continue
        try:
            old = read(paths[0])
        except FileError as error:
            there = next(path for path in paths if path.exists())
            raise FileError(f"{there}: --out would replace it, and it is not known to be a result: {error}") from None
        differs = machine.differences(old["machine"], facts)
        if old["suite"] != suite:
            raise FileError(f"{paths[0]}: --out would replace it, and it holds the suite {old['suite']}, not {suite}")
        if differs:
            raise FileError(f"{paths[0]}: --out would replace a result of another machine ({'; '.join(differs)}); name another folder")
        less = [f"with {PARTIAL[key]}" for key in partial(options) if options[key] != old["options"].get(key)]
        less += ["without --full"] * (suite == "training" and bool(old["options"].get("full")) and not options.get("full"))
        if less:
            raise FileError(f"{paths[0]}: --out would replace a fuller result by one measured {', '.join(less)}; name another folder")


def script_place(out: str, name: str, facts: dict[str, Any]) -> Path:
    """Where a script of benchmarks/ writes its result; ``{machine}`` in ``out`` is the machine's name.

    Raises:
        FileError: if it would replace anything but an earlier result of this machine.

    Example:
        >>> script_place("results", "mnist.json", {"processor": "AMD EPYC", "threads": 2}).as_posix()
        'results/mnist.json'
    """
    path = Path(out.replace("{machine}", machine.name(facts)) if "{machine}" in out else out) / name
    try:
        then = json.loads(path.read_text())["machine"] if path.exists() else facts
        differs = machine.differences(then, facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FileError(f"{path}: would be replaced, and is not known to be a result; name another folder") from None
    if differs:
        raise FileError(f"{path}: would be replaced, and is of another machine ({'; '.join(differs)}); name another folder")
    return path


def write(out: Path, suite: str, facts: dict[str, Any], rows: Sequence[Row], options: dict[str, Any]) -> list[Path]:
    """``<suite>.json``, ``.csv`` and ``.md`` in ``out``; ``options`` are those that measure the same cases again.

    Raises:
        FileError: if a file cannot be written, or :func:`check_place` refuses.
    """
    check_place(out, [suite], facts, options)
    paths = [out / f"{suite}{end}" for end in FILES]
    write_json(paths[0], {"suite": suite, "machine": facts, "options": options, "rows": list(rows)})
    columns = list(rows[0]) if rows else []
    lines = [",".join(columns)] + [",".join(_csv_cell(row[c]) for c in columns) for row in rows]
    for path, text in ((paths[1], "\n".join(lines)), (paths[2], markdown(table(suite, rows)) + "\n\n" + footer(facts, rows))):
        with atomic_write(path) as file:
            file.write((text + "\n").encode())
    return paths


def rows_in(out: Path, facts: dict[str, Any]) -> list[Row]:
    """The rows of every result there that this machine measured, now or earlier: what the pictures beside them are drawn from.

    Raises:
        FileError: if a file that has a suite's name is not a result.
    """
    results = [read(path) for path in (out / f"{suite}.json" for suite in TITLES) if path.exists()]
    return [row for result in results if not machine.differences(result["machine"], facts) for row in result["rows"]]


def _csv_cell(value: Any) -> str:
    if isinstance(value, dict):
        value = " ".join(f"{k}={v}" for k, v in value.items())
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text


_WORDS = ("suite", "case", "name", "contender", "direction", "dtype", "device", "machine")
_POSITIVE = ("seconds", "q20", "q80", "limit_seconds", "usual_limit_seconds", "reached", "memory_target")


def read(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        FileError: if it is not one, saying what is expected.
    """
    expected = "expected a JSON file that `vae-fast bench --out` wrote"
    try:
        result = json.loads(path.read_text())
    except IsADirectoryError:
        raise FileError(f"{path}: is a directory; {expected}") from None
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}; {expected}") from None
    except (ValueError, RecursionError):
        raise FileError(f"{path}: not JSON; {expected}") from None
    try:
        good = all(isinstance(row[key], str) for row in result["rows"] for key in _WORDS)
        whole = [row for row in result["rows"] if row["direction"] == "both"]  # of a part, zero is a measure
        good = good and all(row[key] is None or 0 < row[key] < math.inf for row in whole for key in _POSITIVE)
        good = good and all(row[key] is None or 0 <= row[key] < math.inf for row in result["rows"] for key in (*_POSITIVE, "peak_bytes"))
        good = good and all(isinstance(row["shape"], dict) and isinstance(row["threads"], int) for row in result["rows"])
        facts = result["machine"]
        good = good and all(isinstance(facts[key], str) for key in ("device", "processor", "commit", "torch", "date"))
        good = good and isinstance(result["suite"], str) and isinstance(facts["threads"], int) and isinstance(result["options"], dict)
    except (KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise FileError(f"{path}: not a result; {expected}")
    return dict(result)
