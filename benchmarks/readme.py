"""Puts the committed results into README.md: no figure there is typed by hand. Run: python benchmarks/readme.py [--check]"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

ROOT = Path(__file__).resolve().parent.parent
STALE = " **Stale: the code has changed since this commit.**"


def stale(result: dict, paths: list[str]) -> str:
    """A word of warning if the code has changed since the commit that was measured; nothing where that commit is not known."""
    commit = result["machine"]["commit"].removesuffix("+changes")
    done = subprocess.run(["git", "diff", "--quiet", commit, "HEAD", "--", *paths], cwd=ROOT, capture_output=True)
    return STALE if done.returncode == 1 else ""


def elbo_section() -> str:
    """Every table of the ELBO there is a result for."""
    from elbo import table

    parts = []
    for path in sorted((ROOT / "benchmarks" / "results").glob("*/elbo.json")):
        result = json.loads(path.read_text())
        parts.append(table(result) + stale(result, ["csrc"]))
    return "\n\n".join(parts)


def mnist_section() -> str:
    """The run on MNIST, if there is a result."""
    parts = []
    for path in sorted((ROOT / "benchmarks" / "results").glob("*/mnist.json")):
        r = json.loads(path.read_text())
        epochs = ", ".join(f"{e['loss']:.2f} (epoch {e['epoch']})" for e in r["epochs"])
        parts.append(
            f"MNIST as in the source (55,000 grey images, latent 20, batch 100), mean training loss in nats: {epochs}; "
            f"the source's own {r['source_loss']:.2f} at epoch 50, the entropy floor of grey targets {r['entropy_floor']:.2f}. "
            f"Test ELBO {-r['test_loss']:.2f}, importance-weighted log p(x) {r['test_log_prob']:.2f} ({r['num_samples']} samples). "
            f"{r['samples_per_second']:,.0f} images per second on {r['machine']['threads']} CPU threads; commit {r['machine']['commit']}."
            + stale(r, ["csrc", "vae_fast/models", "vae_fast/training.py"])
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
    for name, section in {"table": elbo_section(), "mnist": mnist_section()}.items():
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
