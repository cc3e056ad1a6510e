"""The experiment of F. Arribas Jara's thesis: `vae-fast train` on MNIST, latent 20, 50 epochs; for docs/benchmarks.md.

python benchmarks/mnist.py [--out runs/mnist] [--threads 2]     (needs the MNIST files: VAE_FAST_DATA, or --data-dir)

The result goes to benchmarks/results/<machine>/mnist.json; that of fewer epochs or samples than the thesis's, to the run's own folder.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vae_fast.bench import machine, report  # noqa: E402
from vae_fast.cli import main as vae_fast_main  # noqa: E402
from vae_fast.errors import FileError  # noqa: E402  of this checkout
from vae_fast.files import write_json  # noqa: E402

SOURCE_LOSS = 95.786946  # the thesis, section 5.1.1.4: epoch 50, latent 20
SHOWN = (1, 2, 5, 10, 20, 50)
EPOCHS, SAMPLES = 50, 100  # of a result that is shown


def main() -> int:
    """Train, collect, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mnist", help="folder of the run (default runs/mnist)")
    parser.add_argument("--data-dir", help="where the MNIST files are (default $VAE_FAST_DATA)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="importance samples per test image (default 100)")
    args = parser.parse_args()
    facts = machine.facts("cpu") | {"threads": args.threads}
    full = args.epochs == EPOCHS and args.samples == SAMPLES
    try:
        path = report.script_place(str(ROOT / "benchmarks" / "results" / "{machine}" if full else args.out), "mnist.json", facts)
    except FileError as error:
        print(f"mnist.py: {error}", file=sys.stderr)
        return 2
    command = ["train", "--dataset", "mnist", "--latent", "20", "--epochs", str(args.epochs), "--threads", str(args.threads)]
    command += ["--out", str(args.out), "--overwrite", "--eval", str(args.samples)]
    code = vae_fast_main(command + (["--data-dir", args.data_dir] if args.data_dir else []))
    if code:
        return code
    with (args.out / "metrics.csv").open() as file:
        history = list(csv.DictReader(file))
    results = json.loads((args.out / "results.json").read_text())
    row = {
        "machine": facts,
        "epochs": [{"epoch": int(r["epoch"]), "loss": float(r["loss"]), "kl": float(r["kl"])} for r in history if int(r["epoch"]) in SHOWN],
        "source_loss": SOURCE_LOSS,
        "entropy_floor": results["entropy_floor"],
        "test_loss": results["test_loss"],
        "test_log_prob": results["test_log_prob"],
        "num_samples": results["importance_samples"],
        "samples_per_second": statistics.median(float(r["samples_per_second"]) for r in history),
    }
    write_json(path, row)
    print(f"wrote {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
