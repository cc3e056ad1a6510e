"""The table of the README: the head of a VAE, forward and backward, against eager PyTorch and torch.compile, in one run.

python benchmarks/elbo.py [--device cpu|cuda] [--threads 2] [--seconds 4] [--rounds 7] [--out DIR] [--no-write]

Close everything else first: two busy processes on two cores slow each other tenfold.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import measure
from cases import Case, cases


def run(case: Case, device: str, rounds: int, seconds: float, bandwidth: float) -> dict[str, Any]:
    """One row."""
    steps = case.steps(device)
    times = measure.in_turns(steps, device, rounds, seconds)
    memory = {name: measure.peak_memory(step, device) for name, step in steps.items()}
    row: dict[str, Any] = {
        "case": case.label,
        "batch": case.batch,
        "data": case.data,
        "latent": case.latent,
        "dtype": "float32",
        "seconds": {name: statistics.median(t) for name, t in times.items()},
        "rounds": times,
        "peak_bytes": memory,
        "least_bytes": case.least_bytes,
        "copy_limit_seconds": case.least_bytes / bandwidth,
        "target": {"eager": case.vs_eager, "compile": case.vs_compile},
    }
    row["ratio"] = {name: row["seconds"][name] / row["seconds"]["ours"] for name in ("eager", "compile")}
    if device == "cuda":
        row["host_seconds"] = {name: measure.host_seconds(step) for name, step in steps.items()}
    return row


def table(result: dict[str, Any]) -> str:
    """The rows as Markdown; a ratio below its target is marked."""

    def time(s: float) -> str:
        return f"{s * 1e3:.2f} ms" if s >= 1e-3 else f"{s * 1e6:.0f} µs"

    def memory(b: int) -> str:
        return f"{b / 2**20:.1f} MiB" if b >= 2**20 else f"{b / 2**10:.0f} KiB"

    def ratio(row: dict[str, Any], name: str) -> str:
        r, t = row["ratio"][name], row["target"][name]
        return f"{r:.1f}x" + ("" if r >= t else f" (below {t:g}x)")

    lines = [
        "| forward + backward, float32 | ours | eager | torch.compile | copy limit | vs eager | vs compile "
        "| peak memory: ours / eager / compile |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        s, m = row["seconds"], row["peak_bytes"]
        lines.append(
            f"| {row['case']} | {time(s['ours'])} | {time(s['eager'])} | {time(s['compile'])} | {time(row['copy_limit_seconds'])} "
            f"| {ratio(row, 'eager')} | {ratio(row, 'compile')} | {memory(m['ours'])} / {memory(m['eager'])} / {memory(m['compile'])} |"
        )
    f = result["machine"]
    where = f.get("gpu") or f"{f['processor']}, {f['instruction_set']}, {f['threads']} threads"
    lines += ["", f"{where}; torch {f['torch']}; commit {f['commit']}; {f['date']}; copy {result['copy_bytes_per_second'] / 1e9:.1f} GB/s."]
    return "\n".join(lines)


def main() -> int:
    """Measure, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--seconds", type=float, default=4.0, help="measuring time per contender and row (default 4)")
    parser.add_argument("--rounds", type=int, default=7, help="turns each contender gets (default 7)")
    parser.add_argument("--out", type=Path, help="folder of the result (default benchmarks/results/<machine>)")
    parser.add_argument("--no-write", action="store_true", help="print only")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/elbo.py: --device cuda: no CUDA device is visible to torch", file=sys.stderr)
        return 2
    torch.set_num_threads(args.threads)
    bandwidth = measure.copy_bandwidth(args.device)
    rows = []
    for case in cases(args.device):
        print(f"measuring {case.label}", file=sys.stderr, flush=True)
        torch._dynamo.reset()
        rows.append(run(case, args.device, args.rounds, args.seconds, bandwidth))
    facts = measure.machine(args.device)
    result = {"machine": facts, "copy_bytes_per_second": bandwidth, "rows": rows}
    print(table(result))
    if not args.no_write:
        out = args.out or measure.folder(facts)
        out.mkdir(parents=True, exist_ok=True)
        (out / "elbo.json").write_text(json.dumps(result, indent=1) + "\n")
        print(f"wrote {out / 'elbo.json'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
