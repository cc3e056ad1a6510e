"""Puts the committed results into README.md and docs/benchmarks.md: no figure is typed by hand. Run: python benchmarks/readme.py [--check]

The tables are those of the machine that measured last (of the same time, the later folder's name), one CPU and one GPU; a second, short
table has the ranges over all machines in benchmarks/results. The front page shows four rows, also as bars, and leaves out what was
measured with other code than that of this checkout.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vae_fast.bench import bars, machine, ranges, report, sources  # noqa: E402
from vae_fast.errors import FileError  # noqa: E402  of this checkout

RESULTS = ROOT / "benchmarks" / "results"
SHOWN = ("kernels", "mixtures", "likelihoods", "linear", "memory", "training")
CHANGED = " The code it measured has changed since."
SINCE = " (changed since)"
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
THESIS = 'F. Arribas Jara, "Aprendizaje no-supervisado con modelos generativos profundos", Universidad Autónoma de Madrid, 2018'
#: The rows of the front page: suite, case, in words, and which contender is the usual way to write it.
FRONT = (
    ("kernels", "elbo_loss, logits, B=8192 D=784 L=20", "ELBO, 8,192 images of 784 pixels", "eager"),
    ("kernels", "elbo_loss, logits, B=100 D=784 L=20", "ELBO, 100 images of 784 pixels", "eager"),
    ("mixtures", "mixture_log_prob, N=100000 K=64 D=16", "64 Gaussians, 100,000 points, 16 dimensions", "distributions"),
    ("mixtures", "EM iteration, N=100000 K=64 D=16", "one EM iteration of the same", "scikit-learn"),
)
USUAL = {"eager": "PyTorch", "distributions": "torch.distributions", "scikit-learn": "scikit-learn"}
PICTURE = Path("docs/images/speed.svg")


def note(facts: dict, suite: str) -> str:
    """What a reader of an older result should know."""
    return CHANGED if sources.stale(facts, sources.of_suite(suite)) else ""


def tables(results: Path = RESULTS) -> str:
    """Of each kind of device: every table of the machine that measured last, and the ranges over all of them."""
    parts = []
    machines = ranges.load(results)
    for device, title in DEVICES.items():
        these = [m for m in machines if m.facts["device"] == device]
        if these:
            parts += [f"**Measured on one {title}: {these[0].label}**", *one_machine(these[0]), *all_machines(these, title)]
    return "\n\n".join(parts)


def one_machine(measured: ranges.Measured) -> list[str]:
    """Its tables, each with where and when."""
    parts = []
    for suite in SHOWN:
        if suite in measured.results:
            result = measured.results[suite]
            text = report.footer(result["machine"], result["rows"]) + note(result["machine"], suite)
            parts += [report.markdown(report.table(suite, result["rows"])), text]
    return parts + processes(measured.folder / "distributed.json")


def all_machines(machines: list[ranges.Measured], title: str) -> list[str]:
    """The ranges, and whose they are."""
    one = len(machines) == 1
    said = f"one {title} has measured so far, so each range is one figure" if one else f"ranges over {len(machines)} {title}s"
    lines = [["machine", "torch", "suites: commit", "date"]]
    for measured in machines:
        suites: dict[str, list[str]] = {}
        for suite in (s for s in SHOWN if s in measured.results):
            facts = measured.results[suite]["machine"]
            suites.setdefault(facts["commit"] + SINCE * bool(note(facts, suite)), []).append(suite)
        commits = "; ".join(f"{', '.join(names)}: {commit}" for commit, names in suites.items())
        lines.append([measured.label, measured.facts["torch"], commits, measured.facts["date"]])
    return [f"**Every machine** ({said}):", report.markdown(ranges.table(machines)), report.markdown(lines)]


def read(path: Path, keys: tuple[str, ...]) -> dict:
    """A result that is not a suite's."""
    try:
        result = json.loads(path.read_text())
        missing = [key for key in keys if key not in result]
    except (OSError, ValueError, TypeError) as error:
        raise FileError(f"{path}: cannot be read: {error}") from None
    if missing:
        raise FileError(f"{path}: has no {', '.join(missing)}; expected what a script of benchmarks/ wrote")
    ranges.check(path, result["machine"])
    return result


def processes(path: Path) -> list[str]:
    """The table of benchmarks/distributed.py, if it was run there."""
    if not path.exists():
        return []
    spec = importlib.util.spec_from_file_location("distributed_benchmark", ROOT / "benchmarks" / "distributed.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = read(path, ("machine", "batch_size", "rows"))
    facts = result["machine"]
    what = f"MLPVAE 784-500-500-20, batch {result['batch_size']:,}, the same threads in all. "
    return [module.table(result["rows"]), what + report.footer(facts, []) + note(facts, "distributed")]


def mnist(results: Path = RESULTS) -> str:
    """The run on MNIST of the machine that made it last (of the same time, the later folder's name), if there is one."""
    keys = ("machine", "epochs", "source_loss", "entropy_floor", "test_loss", "test_log_prob", "num_samples", "samples_per_second")
    found = [(read(path, keys), path.parent.name) for path in results.glob("*/mnist.json")]
    if not found:
        return ""
    r, _ = max(found, key=lambda pair: (machine.measured_at(pair[0]["machine"]), pair[1]))
    facts = r["machine"]
    epochs = ", ".join(f"{e['loss']:.2f} (epoch {e['epoch']})" for e in r["epochs"])
    return (
        f"`vae-fast train` in the setting of {THESIS} (55,000 grey images, latent 20, batch 100). Mean training loss in nats: {epochs}; "
        f"the thesis reports {r['source_loss']:.2f} at epoch 50. The entropy of the grey targets, which no loss can be below, is "
        f"{r['entropy_floor']:.2f}. "
        f"Test ELBO {-r['test_loss']:.2f}, importance-weighted log p(x) {r['test_log_prob']:.2f} ({r['num_samples']} samples). "
        f"{r['samples_per_second']:,.0f} images per second on {machine.label(facts)}; commit {facts['commit']}." + note(facts, "mnist")
    )


class Front(NamedTuple):
    """A row of the front page."""

    words: str
    usual: str
    group: dict[str, report.Row]


def front_rows(measured: ranges.Measured, *, changed: bool = False) -> list[Front]:
    """The rows of FRONT that this machine has measured; ``changed``: those too whose code has changed since."""
    rows = []
    for suite, case, words, usual in FRONT:
        result = measured.results.get(suite)
        if result and (changed or not sources.stale(result["machine"], sources.of_suite(suite))):
            group = report.grouped(result["rows"]).get(case, {})
            if "ours" in group and usual in group:
                rows.append(Front(words, usual, group))
    return rows


def front(results: Path = RESULTS, *, changed: bool = False) -> tuple[str, str]:
    """The table of the front page with its picture, and the picture; both empty if no result is of this checkout's code."""
    machines = ranges.load(results)
    rows = front_rows(machines[0], changed=changed) if machines else []
    if not rows:
        return "", ""
    cells = [["forward + backward", "vae_fast", "the usual way", "the formula, compiled", "memory: vae_fast / the usual way"]]
    groups = []
    for row in rows:
        ours = row.group["ours"]

        def cell(name: str, ours: report.Row = ours, group: dict[str, report.Row] = row.group) -> str:
            seconds = group[name]["seconds"]
            return f"{report.seconds(seconds)}: {report.times(seconds / ours['seconds'])}"

        others = [(row.usual, USUAL[row.usual])] + [("compile", "torch.compile")] * ("compile" in row.group)
        shown = [f"{words} {cell(name)}" for name, words in others]
        sizes = [report.size(bytes) for name in ("ours", row.usual) if (bytes := row.group[name]["peak_bytes"])]
        cells.append(
            [row.words, report.seconds(ours["seconds"]), shown[0], cell("compile") if len(others) == 2 else "–", " / ".join(sizes)]
        )
        drawn = [bars.Bar(words, row.group[name]["seconds"], report.seconds(row.group[name]["seconds"])) for name, words in others]
        gain = report.times(row.group[row.usual]["seconds"] / ours["seconds"])
        drawn.append(bars.Bar("vae_fast", ours["seconds"], f"{report.seconds(ours['seconds'])} ({gain})", ours=True))
        groups.append((row.words, drawn))
    facts = machines[0].facts
    where = [machines[0].label, f"torch {facts['torch']}; {facts['date']}; commit {facts['commit']}"]
    picture = bars.svg("Time of one forward and backward pass (shorter is better)", where, groups)
    best = "; ".join(f"{row.words}: {group[-1].label}" for row, (_, group) in zip(rows, groups, strict=True))
    image = f"![Time of one forward and backward pass. {best}]({PICTURE.as_posix()})"
    return f"{image}\n\n{report.markdown(cells)}\n\n{'; '.join(where)}.", picture


def filled(path: Path, sections: dict[str, str]) -> str:
    """The page with its sections written anew.

    Raises:
        FileError: if a section's marks are not in the page exactly once.
    """
    text = path.read_text()
    for name, section in sections.items():
        text, count = re.subn(
            rf"(<!-- {name}:begin[^\n]*-->\n).*?(<!-- {name}:end -->)",
            lambda m, section=section: m[1] + (section + "\n" if section else "") + m[2],
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise FileError(f"{path.relative_to(ROOT)}: holds {count} blocks between {name}:begin and {name}:end; expected one")
    return text


def pages(sections: dict[str, str], *, changed: bool = False) -> dict[Path, str]:
    """Each file that shows results, as it should be; ``sections``: those of docs/benchmarks.md."""
    table, picture = front(changed=changed)
    return {
        ROOT / "README.md": filled(ROOT / "README.md", {"front": table}),
        ROOT / "docs" / "benchmarks.md": filled(ROOT / "docs" / "benchmarks.md", sections),
        ROOT / PICTURE: picture,
    }


def differing(wanted: dict[Path, str]) -> list[Path]:
    """The files that are otherwise, what depends on the code as it is now aside."""
    return [path for path, text in wanted.items() if plain(text) != plain(path.read_text() if path.exists() else "")]


def main() -> int:
    """Rewrite, or with --check fail if a rewrite would change anything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    text = "change nothing; exit 1 if the pages do not show the results (whether the code has changed since aside)"
    parser.add_argument("--check", action="store_true", help=text)
    text = "keep rows of the front page whose code has changed since: they name their commit; before a release everything is measured anew"
    parser.add_argument("--keep-changed", action="store_true", help=text)
    args = parser.parse_args()
    try:
        sections = {"table": tables(), "mnist": mnist()}
        wanted = pages(sections, changed=args.keep_changed)
        differ = differing(wanted) and differing(pages(sections, changed=True)) if args.check else []
    except FileError as error:
        print(error, file=sys.stderr)
        return 2
    if args.check:
        for path in differ:
            print(f"{path.relative_to(ROOT)} does not show the committed results: run python benchmarks/readme.py", file=sys.stderr)
        return int(bool(differ))
    for path, text in wanted.items():
        if text:
            path.write_text(text)
        else:
            path.unlink(missing_ok=True)
    if front(changed=True)[0] != front()[0]:
        done = "kept" if args.keep_changed else "left out"
        print(f"README.md: rows were {done} whose code has changed since they were measured: run make bench-results", file=sys.stderr)
    return 0


def plain(text: str) -> str:
    """Without what depends on the code as it is now."""
    return text.replace(CHANGED, "").replace(SINCE, "")


if __name__ == "__main__":
    sys.exit(main())
