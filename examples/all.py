"""Run every example and print a table of the numbers in their JSON files.

python examples/all.py [--quick | --full] [--out DIR] [--again] [--record]

With --out a set that was stopped goes on: examples that are done are kept, and the one that was stopped goes on where it was, if it can.
DIR/times.json says how long each took, in all attempts together. --record puts it among the pictures once all are done, for the page.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _common import EXAMPLES, PICTURES, commit, size_options

from vae_fast.bench import machine
from vae_fast.files import write_json

TIMES = "times.json"
#: What a run that is killed does not know of its time, at most.
SECONDS = 2.0


def numbers(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Every number of a JSON value, by its path."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from numbers(part, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for i, part in enumerate(value):
            labels = (
                [str(part[k]) for k in ("name", "labels", "dim", "model", "components", "method", "damage", "q") if k in part]
                if isinstance(part, dict)
                else []
            )
            yield from numbers(part, f"{name}[{' '.join(labels) or i}]")
    elif isinstance(value, (int, float)):
        yield name, f"{value:.6g}"


def run(name: str, quick: bool, out: Path, times: dict[str, Any]) -> bool:
    """Run one example, and note its time beside that of earlier attempts every few seconds; whether it succeeded."""
    begin = time.perf_counter()
    row = times["examples"].setdefault(name, {"seconds": 0.0})
    earlier = row["seconds"]
    row |= {"done": False, "commit": commit()}
    command = [sys.executable, str(Path(__file__).parent / f"{name}.py"), "--out", str(out)] + ["--quick"] * quick
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        code = None
        while code is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(SECONDS)
            row |= {"seconds": round(earlier + time.perf_counter() - begin, 1), "done": code == 0}
            write_json(out / TIMES, times)
    finally:
        process.kill()
    return bool(row["done"])


def earlier_times(out: Path, quick: bool) -> dict[str, Any]:
    """What is known of the set in a folder.

    Raises:
        SystemExit: in one line, if it is a set of the other size, or of another machine.
    """
    here = machine.label(machine.facts("cpu"))
    path = out / TIMES
    if not path.exists():
        return {"quick": quick, "machine": here, "examples": {}}
    found: dict[str, Any] = json.loads(path.read_text())
    for key, now in (("quick", quick), ("machine", here)):
        if found[key] != now:
            sys.exit(f"error: {path}: a set with {key} {found[key]}, and this is {now}: choose another --out, or --again")
    return found


def spoken(seconds: float) -> str:
    """Seconds, or hours and minutes.

    >>> spoken(59.94), spoken(3725.0)
    ('59.9 s', '1 h 2 min')
    """
    return f"{seconds:.1f} s" if seconds < 600.0 else f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60} min"


def main() -> int:
    """Run them one after another; the exit code says whether all succeeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size_options(parser, "give --quick to each")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write, and to go on (default: a temporary folder)")
    parser.add_argument("--again", action="store_true", help="run those that are done in DIR, too")
    parser.add_argument("--record", action="store_true", help=f"write the times of the set in full to {PICTURES.name}/{TIMES}")
    args = parser.parse_args()
    if args.record and args.quick:
        parser.error("--record: the page tells of the set in full: leave out --quick")
    out = args.out or Path(tempfile.mkdtemp(prefix="vae_fast_examples_"))
    out.mkdir(parents=True, exist_ok=True)
    if args.again:
        (out / TIMES).unlink(missing_ok=True)
    times = earlier_times(out, args.quick)
    failed = []
    for name in EXAMPLES:
        row = times["examples"].get(name, {"done": False})
        if row["done"] and (out / f"{name}.json").exists():
            print(f"{name}: kept, done at commit {row['commit']} in {spoken(row['seconds'])}", flush=True)
            continue
        done = run(name, args.quick, out, times)
        print(f"{name}: {'done' if done else 'FAILED'} in {spoken(times['examples'][name]['seconds'])}", flush=True)
        if not done:
            failed.append(name)
    print(f"\n{'example':<18} {'number':<72} value")
    for name in EXAMPLES:
        if name not in failed:
            for key, value in numbers(json.loads((out / f"{name}.json").read_text())):
                print(f"{name:<18} {key:<72} {value}")
    total = sum(row["seconds"] for row in times["examples"].values())
    print(f"\npictures and JSON files: {out}; {spoken(total)} in all" + (f"; failed: {', '.join(failed)}" if failed else ""))
    if args.record and not failed:
        shutil.copyfile(out / TIMES, PICTURES / TIMES)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
