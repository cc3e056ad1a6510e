"""Samples per second of a VAE's training with one process and with two: python benchmarks/distributed.py [--out DIR]

Each row is a ``torchrun`` of its own, which starts this file again as its workers; the batch is the same size for all. On the CPU every row
has the same processor cores in all: two processes of one thread each beside one of two.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# A script's own folder comes first, and this file's name is a package's of torch: take it off the path.
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT / "benchmarks"]

from vae_fast.files import write_json  # noqa: E402  of this checkout

#: how, processes, options of the worker
ROWS = (("one process", 1, ()), ("DistributedDataParallel", 2, ()), ("fully_shard", 2, ("--shard",)))


def work(args: argparse.Namespace) -> None:
    """One process of a row; rank 0 writes what it measured."""
    import torch

    from vae_fast import training
    from vae_fast.models import MLPVAE
    from vae_fast.training.distributed import local_device

    device = torch.device(local_device(args.device))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (args.rows, 784), dtype=torch.uint8)

    def write(history: list[training.Record]) -> None:
        rates = [record["samples_per_second"] for record in history[1:]]  # the first epoch warms up
        if rates:
            args.worker.write_text(json.dumps({"samples_per_second": statistics.median(rates), "loss": history[-1]["loss"]}))

    options = {"batch_size": args.batch_size, "epochs": args.epochs + 1, "shard": args.shard, "progress": False}
    training.fit(MLPVAE().to(device), images, callbacks=[write], **options)


def measure(processes: int, options: tuple[str, ...], args: argparse.Namespace) -> dict[str, float]:
    """One row, in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), __file__]
        command += ["--worker", str(found), "--device", args.device, "--rows", str(args.rows)]
        command += ["--threads", str(max(1, args.threads // processes))]
        command += ["--batch-size", str(args.batch_size), "--epochs", str(args.epochs), *options]
        subprocess.run(command, check=True)
        return json.loads(found.read_text())


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown; the first row is what the others are compared with."""
    lines = ["| training in processes | processes | samples/s | against one |", "|---|---|---|---|"]
    for row in rows:
        rate = row["samples_per_second"]
        lines.append(f"| {row['how']} | {row['processes']} | {rate:,.0f} | {rate / rows[0]['samples_per_second']:.2f}x |")
    return "\n".join(lines)


def main() -> int:
    """Print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--rows", type=int, default=16384, help="images (default: 16384)")
    parser.add_argument("--batch-size", type=int, default=4096, help="images per step, of all processes together (default: 4096)")
    parser.add_argument("--epochs", type=int, default=5, help="measured epochs; the median counts (default: 5)")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--threads", type=int, default=cores, help="CPU threads of a row, over its processes (default: %(default)s, the cores)"
    )
    parser.add_argument("--out", help="write distributed.json into this folder; {machine} is replaced by the machine's name")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--shard", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        work(args)
        return 0
    from vae_fast.bench import machine, report
    from vae_fast.errors import FileError

    facts = machine.facts(args.device) | {"threads": args.threads}
    try:
        path = None if args.out is None else report.script_place(args.out, "distributed.json", facts)
        rows = [{"how": how, "processes": n} | measure(n, options, args) for how, n, options in ROWS]
        print(table(rows))
        if path is not None:
            write_json(path, {"machine": facts, "batch_size": args.batch_size, "images": args.rows, "rows": rows})
            print(f"wrote {path}", file=sys.stderr)
    except FileError as error:
        print(f"distributed.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
