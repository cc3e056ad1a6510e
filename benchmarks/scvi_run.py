"""scvi-tools' SCVI on its own synthetic data, as it is and under vae_fast.patched: the same loss curve, and the time of a training step.

python benchmarks/scvi_run.py [--quick] [--out runs/scvi]     (needs scvi-tools: pip install '.[adoption]')

Both runs start from one seed and draw the same noise. The step is a forward, a backward and an optimizer's step of the module on one batch
that is already a tensor; the two take turns, and the medians are compared. The result, scvi.json, goes to benchmarks/results/<machine>/;
that of --quick to --out.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import vae_fast  # noqa: E402  of this checkout
from vae_fast.bench import machine, report  # noqa: E402
from vae_fast.errors import FileError  # noqa: E402
from vae_fast.files import write_json  # noqa: E402

TARGETS = ("scvi", "torch.distributions")
SCOPES: dict[str, tuple[str, ...]] = {"scvi-tools": (), "patched": TARGETS}


@contextlib.contextmanager
def scope(targets: tuple[str, ...]) -> Any:
    """All of the targets patched."""
    with contextlib.ExitStack() as stack:
        for target in targets:
            stack.enter_context(vae_fast.patched(target))
        yield


def model_of(scvi: Any, likelihood: str, cells: int, genes: int) -> Any:
    """A fresh SCVI model of synthetic data, from one seed."""
    scvi.settings.seed = 0
    data = scvi.data.synthetic_iid(batch_size=cells, n_genes=genes, n_proteins=0, n_regions=0, n_batches=1, n_labels=1)
    scvi.model.SCVI.setup_anndata(data)
    return scvi.model.SCVI(data, gene_likelihood=likelihood)


def curve(scvi: Any, likelihood: str, cells: int, genes: int, epochs: int, targets: tuple[str, ...]) -> list[float]:
    """The training loss after each epoch of scvi-tools' own training."""
    model = model_of(scvi, likelihood, cells, genes)
    scvi.settings.seed = 1
    with scope(targets):
        model.train(
            max_epochs=epochs,
            batch_size=128,
            train_size=1.0,
            accelerator="cpu",
            enable_progress_bar=False,
            logger=None,
            enable_model_summary=False,
        )
    return [float(value) for value in model.history["reconstruction_loss_train"].iloc[:, 0]]


def stepper(model: Any, cells: int) -> Callable[[], None]:
    """One training step of the model's module on a batch at hand."""
    batch = next(iter(model._make_data_loader(model.adata, batch_size=cells)))
    module = model.module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, eps=0.01, weight_decay=1e-6)  # scvi-tools' own settings

    def step() -> None:
        optimizer.zero_grad()
        module(batch, loss_kwargs={"kl_weight": 1.0})[-1].loss.backward()
        optimizer.step()

    return step


def step_times(scvi: Any, likelihood: str, cells: int, genes: int, rounds: int) -> dict[str, Any]:
    """Median seconds of a step in each scope, and their ratio."""
    steps = {name: stepper(model_of(scvi, likelihood, cells, genes), cells) for name in SCOPES}
    seconds: dict[str, list[float]] = {name: [] for name in SCOPES}
    for turn in range(rounds + 2):
        for name, targets in SCOPES.items():
            with scope(targets):
                start = time.perf_counter()
                steps[name]()
                if turn >= 2:  # after a warm-up
                    seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    quartiles = {name: statistics.quantiles(values, n=4)[::2] for name, values in seconds.items()}
    return {
        "likelihood": likelihood,
        "cells": cells,
        "genes": genes,
        "seconds": median,
        "quartiles": quartiles,
        "ratio": median["scvi-tools"] / median["patched"],
    }


def main() -> int:
    """Train twice, time, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small run, whose times mean nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "scvi", help="folder of the result of --quick (default runs/scvi)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20, help="steps that are timed (default 20)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")  # of Lightning, about loggers and workers
    logging.disable(logging.WARNING)
    try:
        import scvi
    except ImportError as error:
        print(f"scvi_run.py: {error.name} is not installed: pip install '.[adoption]'", file=sys.stderr)
        return 2
    facts = machine.facts("cpu") | {"threads": args.threads}
    try:
        path = report.script_place(str(args.out if args.quick else ROOT / "benchmarks" / "results" / "{machine}"), "scvi.json", facts)
    except FileError as error:
        print(f"scvi_run.py: {error}", file=sys.stderr)
        return 2
    size = {"cells": 256, "genes": 50, "epochs": 3} if args.quick else {"cells": 1024, "genes": 500, "epochs": 10}
    curves, steps = [], []
    for likelihood in ("zinb", "nb"):
        losses = {name: curve(scvi, likelihood, **size, targets=targets) for name, targets in SCOPES.items()}
        apart = max(abs(a - b) / abs(a) for a, b in zip(losses["scvi-tools"], losses["patched"], strict=True))
        curves.append({"likelihood": likelihood, **size, "losses": losses, "apart": apart})
        print(f"{likelihood}: loss {losses['scvi-tools'][-1]:.3f} and {losses['patched'][-1]:.3f}, at most {apart:.1e} apart")
        for cells in (32,) if args.quick else (128, 1024):
            row = step_times(scvi, likelihood, cells, 50 if args.quick else 2000, 3 if args.quick else args.rounds)
            steps.append(row)
            took = row["seconds"]
            print(f"{likelihood}, {cells} cells: {took['scvi-tools'] * 1e3:.1f} ms, {took['patched'] * 1e3:.1f} ms: {row['ratio']:.2f}x")
    write_json(path, {"machine": facts, "scvi": scvi.__version__, "curves": curves, "steps": steps})
    print(f"wrote {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
