"""Puts the committed results into README.md: no figure there is typed by hand. Run: python benchmarks/readme.py [--check]

The tables are those of the machine that measured last (of the same day, the later folder's name), one CPU and one GPU; a second, short
table has the ranges over all machines in benchmarks/results.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vae_fast.bench import machine, ranges, report, sources  # noqa: E402
from vae_fast.errors import FileError  # noqa: E402  of this checkout

RESULTS = ROOT / "benchmarks" / "results"
SHOWN = ("kernels", "mixtures", "likelihoods", "linear", "memory", "training")
CHANGED = " The code it measured has changed since."
SINCE = " (changed since)"
DEVICES = {"cpu": "CPU", "cuda": "GPU"}


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
    """The run on MNIST of the machine that made it last (of the same day, the later folder's name), if there is one."""
    keys = ("machine", "epochs", "source_loss", "entropy_floor", "test_loss", "test_log_prob", "num_samples", "samples_per_second")
    found = [(read(path, keys), path.parent.name) for path in results.glob("*/mnist.json")]
    if not found:
        return ""
    r, _ = max(found, key=lambda pair: (pair[0]["machine"]["date"], pair[1]))
    facts = r["machine"]
    epochs = ", ".join(f"{e['loss']:.2f} (epoch {e['epoch']})" for e in r["epochs"])
    return (
        f"MNIST as in the source (55,000 grey images, latent 20, batch 100), mean training loss in nats: {epochs}; "
        f"the source's own {r['source_loss']:.2f} at epoch 50, the entropy floor of grey targets {r['entropy_floor']:.2f}. "
        f"Test ELBO {-r['test_loss']:.2f}, importance-weighted log p(x) {r['test_log_prob']:.2f} ({r['num_samples']} samples). "
        f"{r['samples_per_second']:,.0f} images per second on {machine.label(facts)}; commit {facts['commit']}." + note(facts, "mnist")
    )


def main() -> int:
    """Rewrite, or with --check fail if a rewrite would change anything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    text = "change nothing; exit 1 if README.md does not show the results (whether the code has changed since aside)"
    parser.add_argument("--check", action="store_true", help=text)
    args = parser.parse_args()
    readme = ROOT / "README.md"
    old = text = readme.read_text()
    try:
        sections = {"table": tables(), "mnist": mnist()}
    except FileError as error:
        print(error, file=sys.stderr)
        return 2
    for name, section in sections.items():
        text, count = re.subn(
            rf"(<!-- {name}:begin[^\n]*-->\n).*?(<!-- {name}:end -->)",
            lambda m, section=section: m[1] + (section + "\n" if section else "") + m[2],
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            print(f"README.md: holds {count} blocks between {name}:begin and {name}:end; expected one", file=sys.stderr)
            return 2
    if args.check:
        differs = plain(text) != plain(old)
        if differs:
            print("README.md does not show the committed results: run python benchmarks/readme.py", file=sys.stderr)
        return int(differs)
    readme.write_text(text)
    return 0


def plain(text: str) -> str:
    """Without what depends on the code as it is now."""
    return text.replace(CHANGED, "").replace(SINCE, "")


if __name__ == "__main__":
    sys.exit(main())
