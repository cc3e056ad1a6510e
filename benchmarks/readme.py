"""Puts the committed results into README.md: no figure there is typed by hand. Run: python benchmarks/readme.py [--check]"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vae_fast.bench import machine, report  # noqa: E402  of this checkout

SHOWN = ("kernels", "mixtures", "linear", "memory", "training")
STALE = " **Stale: the kernels have changed since this commit.**"


def tables() -> str:
    """Every table there is a result for, machine by machine."""
    parts = []
    for folder in sorted(p for p in (ROOT / "benchmarks" / "results").iterdir() if p.is_dir()):
        for suite in SHOWN:
            if (folder / f"{suite}.json").exists():
                result = report.read(folder / f"{suite}.json")
                facts = result["machine"]
                stale = STALE if report.is_stale(facts) else ""
                parts += [report.markdown(report.table(suite, result["rows"])), report.footer(facts, result["rows"]) + stale]
        parts += processes(folder / "distributed.json")
    return "\n\n".join(parts)


def processes(path: Path) -> list[str]:
    """The table of benchmarks/distributed.py, if it was run there."""
    if not path.exists():
        return []
    spec = importlib.util.spec_from_file_location("distributed_benchmark", ROOT / "benchmarks" / "distributed.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = json.loads(path.read_text())
    facts = result["machine"]
    what = f"MLPVAE 784-500-500-20, batch {result['batch_size']:,}, the same threads in all. "
    stale = STALE if machine.stale(facts["commit"], facts["device"], "vae_fast/training.py", "vae_fast/distributed.py") else ""
    return [module.table(result["rows"]), what + report.footer(facts, []) + stale]


def mnist() -> str:
    """The run on MNIST, if there is a result."""
    parts = []
    for path in sorted((ROOT / "benchmarks" / "results").glob("*/mnist.json")):
        r = json.loads(path.read_text())
        epochs = ", ".join(f"{e['loss']:.2f} (epoch {e['epoch']})" for e in r["epochs"])
        stale = machine.stale(r["machine"]["commit"], r["machine"]["device"], "vae_fast/models", "vae_fast/training.py")
        parts.append(
            f"MNIST as in the source (55,000 grey images, latent 20, batch 100), mean training loss in nats: {epochs}; "
            f"the source's own {r['source_loss']:.2f} at epoch 50, the entropy floor of grey targets {r['entropy_floor']:.2f}. "
            f"Test ELBO {-r['test_loss']:.2f}, importance-weighted log p(x) {r['test_log_prob']:.2f} ({r['num_samples']} samples). "
            f"{r['samples_per_second']:,.0f} images per second on {r['machine']['threads']} CPU threads; commit {r['machine']['commit']}."
            + (STALE if stale else "")
        )
    return "\n\n".join(parts)


def main() -> int:
    """Rewrite, or with --check fail if a rewrite would change anything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 if README.md does not show the results (a mark of staleness aside)"
    )
    args = parser.parse_args()
    readme = ROOT / "README.md"
    old = text = readme.read_text()
    for name, section in {"table": tables(), "mnist": mnist()}.items():
        text = re.sub(
            rf"(<!-- {name}:begin[^\n]*-->\n).*?(<!-- {name}:end -->)",
            lambda m, section=section: m[1] + (section + "\n" if section else "") + m[2],
            text,
            flags=re.DOTALL,
        )
    if args.check:
        differs = text.replace(STALE, "") != old.replace(STALE, "")
        if differs:
            print("README.md does not show the committed results: run python benchmarks/readme.py", file=sys.stderr)
        return int(differs)
    readme.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
