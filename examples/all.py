"""Run every example and print a table of the numbers in their JSON files.

python examples/all.py [--quick | --full] [--out DIR]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from _common import EXAMPLES, size_options


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


def main() -> int:
    """Run them one after another; the exit code says whether all succeeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size_options(parser, "give --quick to each")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: a temporary folder)")
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp(prefix="vae_fast_examples_"))
    failed = []
    for name in EXAMPLES:
        begin = time.perf_counter()
        command = [sys.executable, str(Path(__file__).parent / f"{name}.py"), "--out", str(out)] + ["--quick"] * args.quick
        done = subprocess.run(command, stdout=subprocess.DEVNULL)
        print(f"{name}: {'done' if done.returncode == 0 else 'FAILED'} in {time.perf_counter() - begin:.1f} s", flush=True)
        if done.returncode != 0:
            failed.append(name)
    print(f"\n{'example':<18} {'number':<72} value")
    for name in EXAMPLES:
        if name not in failed:
            for key, value in numbers(json.loads((out / f"{name}.json").read_text())):
                print(f"{name:<18} {key:<72} {value}")
    print(f"\npictures and JSON files: {out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
