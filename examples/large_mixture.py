"""A mixture of 1,000 Gaussians fitted to 20,000,000 points by two processes that never hold the file: the curve, rows a second, and memory.

    python examples/large_mixture.py [--quick] [--out DIR] [--data FILE.npy]

The points are draws of a known mixture of twice as many Gaussians, written to a file (640 MB). The fit is the command
``torchrun --nproc-per-node 2 -m vae_fast mog``, in whose processes memory is watched (Linux). Writes large_mixture.png and
large_mixture.json.
"""

import argparse
import csv
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import finish, options, save, table
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from vae_fast import mixture_log_prob
from vae_fast.bench.machine import processor

DIM, PROCESSES, BLOCK = 8, 2, 250_000


class Truth:
    """A mixture of diagonal Gaussians: means from N(0, I), standard deviations from 0.03 to 0.3, weights from a Dirichlet distribution."""

    def __init__(self, components: int, generator: torch.Generator) -> None:
        """Draw its parameters."""
        self.means = torch.randn(components, DIM, generator=generator)
        self.log_std = torch.empty(components, DIM).uniform_(math.log(0.03), math.log(0.3), generator=generator)
        self.weights = torch.empty(components).exponential_(generator=generator).square()
        self.weights /= self.weights.sum()

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """``(n, DIM)``."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        return self.means[k] + self.log_std[k].exp() * torch.randn(n, DIM, generator=generator)

    def log_prob(self, x: Tensor) -> float:
        """Mean, in nats per point."""
        return mixture_log_prob(x, self.weights.log(), self.means, self.log_std).double().mean().item()


def write(path: Path, truth: Truth, rows: int, generator: torch.Generator) -> None:
    """A block at a time."""
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, DIM))
    for begin in tqdm(range(0, rows, BLOCK), desc=f"writing {path}", unit="block", disable=None):
        file[begin : begin + BLOCK] = truth.draw(min(BLOCK, rows - begin), generator).numpy()
    file.flush()


def anonymous(parent: int) -> dict[int, int]:
    """Bytes that belong to no file, of every descendant of a process that runs the command: what a mapped file does not count in."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = int(status.parent.name), status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended since
        children.setdefault(int(rest[1]), []).append(pid)
    below, found = [parent], {}
    while below:
        below += children.get(pid := below.pop(), [])
        try:
            fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            is_fit = (
                b"vae_fast" in Path(f"/proc/{pid}/cmdline").read_bytes()
                and b"distributed.run" not in Path(f"/proc/{pid}/cmdline").read_bytes()
            )
        except (FileNotFoundError, ProcessLookupError):
            continue
        if is_fit and "RssAnon" in fields:
            found[pid] = 1024 * int(fields["RssAnon"].split()[0])
    return found


def fit(data: Path, out: Path, components: int, iterations: int, seed: int) -> tuple[list[dict[str, float]], dict[str, Any], int]:
    """The command, watched: its rows of metrics.csv, results.json, and the most anonymous memory that all its processes had at once."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(PROCESSES), "-m", "vae_fast", "mog"]
    command += ["--data", data, "-k", components, "--covariance", "diag", "--max-iter", iterations, "--tol", 1e-4, "--holdout", 0.005]
    command += ["--threads", 1, "--seed", seed, "--out", out, "--overwrite", "--no-pictures"]
    run = subprocess.Popen([str(word) for word in command], env=os.environ | {"OMP_NUM_THREADS": "1"})
    most = 0
    while run.poll() is None:
        most = max(most, sum(anonymous(run.pid).values()))
        time.sleep(0.1)
    if run.returncode != 0:
        sys.exit(f"error: the fit ended with exit code {run.returncode}")
    with (out / "metrics.csv").open() as file:
        curve = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return curve, json.loads((out / "results.json").read_text()), most


def own_options(parser: argparse.ArgumentParser) -> None:
    """Where the points are kept."""
    parser.add_argument(
        "--data", type=Path, metavar="FILE.npy", help="where to write the points, and keep them (default: a temporary file)"
    )


def main() -> None:
    """Write the points, fit, draw."""
    args = options(__doc__, add=own_options)
    rows, components, iterations = (200_000, 50, 15) if args.quick else (20_000_000, 1000, 30)
    generator = torch.Generator().manual_seed(args.seed)
    truth = Truth(2 * components, generator)
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or Path(folder) / "points.npy"
        begin = time.perf_counter()
        write(data, truth, rows, generator)
        written = time.perf_counter() - begin
        test = truth.draw(100_000, generator)
        one = torch.distributions.MultivariateNormal(test.mean(0), test.T.cov()).log_prob(test).mean().item()
        curve, found, most = fit(data, Path(folder) / "fit", components, iterations, args.seed)
        size = data.stat().st_size
    steps = [b["seconds"] - a["seconds"] for a, b in itertools.pairwise(curve)]
    each = sorted(steps)[len(steps) // 2]
    results: dict[str, Any] = {
        "rows": rows,
        "dim": DIM,
        "components": components,
        "true_components": 2 * components,
        "processes": PROCESSES,
        "machine": processor()["processor"],
        "torch": str(torch.__version__),
        "file_bytes": size,
        "most_anonymous_bytes": most,
        "seconds_to_write": written,
        "seconds_to_start": curve[0]["seconds"] - each,
        "seconds_an_iteration": each,
        "rows_a_second": rows * (1 - 0.005) / each,
        "true_log_likelihood": truth.log_prob(test),
        "gaussian_log_likelihood": one,
        "curve": [[row["iteration"], row["log_likelihood"]] for row in curve],
        "fit": found,
    }
    print(f"{results['rows_a_second']:,.0f} rows/s, {each:.2f} s an iteration, start {results['seconds_to_start']:.1f} s")
    print(f"{most / 2**30:.2f} GiB beyond the file")

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*results["curve"], strict=True), "o-", color="#1f5fa8", markersize=4, label=f"{components:,} components, training")
    axes.axhline(results["true_log_likelihood"], color="#222222", linestyle=":", label=f"the true density, {2 * components:,} components")
    axes.set(xlabel="iteration of EM", ylabel="log-likelihood, nats per point")
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, args.out / "large_mixture.png")
    finish(args, results, ("large_mixture.png",))


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    mib = r["most_anonymous_bytes"] / 2**20
    rows = [
        ["one Gaussian", "", f"{r['gaussian_log_likelihood']:.4f}"],
        [f"{r['components']:,} Gaussians", f"{r['fit']['train_log_likelihood']:.4f}", f"{r['fit']['test_log_likelihood']:.4f}"],
        [f"the true density, {r['true_components']:,} Gaussians", "", f"{r['true_log_likelihood']:.4f}"],
    ]
    return f"""\
## A mixture on more rows than one holds: `{r["command"]}`

{r["rows"]:,} points of {r["dim"]} dimensions in a file of {r["file_bytes"] / 1e6:,.0f} MB, and {r["components"]:,} Gaussians with
diagonal covariances: `torchrun --nproc-per-node {r["processes"]} -m vae_fast mog --data FILE.npy -k {r["components"]} --covariance diag`.
Each process reads its own rows from the mapped file, a block ahead of the arithmetic, and the processes add up their sums.

{table(["density", "training, nats per point", "test"], rows)}

An iteration takes {r["seconds_an_iteration"]:.1f} s, {r["rows_a_second"]:,.0f} rows a second ({r["machine"]}, a thread for each
process, torch {r["torch"]}); the start (k-means|| over the file) takes {r["seconds_to_start"]:.1f} s. Beyond the mapped file both
processes together have {mib:,.0f} MiB at most, torch itself included: one array of rows by components would be
{4 * r["rows"] * r["components"] / 2**30:,.0f} GiB.

![Log-likelihood by iteration](pictures/large_mixture.png)
"""


if __name__ == "__main__":
    main()
