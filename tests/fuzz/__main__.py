"""``python -m tests.fuzz``: one case again, or rounds until stopped, each in a process of its own and on another instruction set."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run this case alone, and make it simpler")
    parser.add_argument("--first", type=int, default=0, help="the case to begin with")
    parser.add_argument("--seconds", type=float, help="stop after so long; without it, when interrupted")
    parser.add_argument("--only", help="these sorts, by comma")
    parser.add_argument("--isa", help="instruction set (VAE_FAST_ISA)")
    parser.add_argument("--piece", type=float, default=60.0, help="seconds of one process")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "fuzz", help="where failures are appended")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.isa:
        os.environ["VAE_FAST_ISA"] = options.isa
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if options.case is not None:
        return _replay(options)
    return _work(options) if options.worker else _drive(options)


def _replay(options: argparse.Namespace) -> int:
    from . import rounds

    failure = rounds.run(options.seed, options.case, options.isa)
    name, case = rounds.make(options.seed, options.case)
    print(f"{name}: {case}")
    print(failure.report(30.0) if failure else "nothing found")
    return 1 if failure else 0


def _work(options: argparse.Namespace) -> int:
    """Cases until the time is over; the first failure of each sort is made simple. Prints the next case, the rates and the failures."""
    from . import rounds

    names = rounds.NAMES if options.only is None else tuple(options.only.split(","))
    current = options.out / "current"
    index, ran, failures, seen = options.first, 0, 0, set()
    end = time.monotonic() + options.piece
    while time.monotonic() < end:
        if rounds.NAMES[index % len(rounds.NAMES)] in names:
            current.write_text(str(index))
            ran += 1
            failure = rounds.run(options.seed, index, options.isa)
            if failure is not None:
                failures += 1
                with (options.out / "all.txt").open("a") as log:
                    log.write(
                        f"{failure.command}\t{failure.name}\t{failure.finding.kind}\t{failure.finding.what}\t{failure.finding.line}\n"
                    )
                if failure.key not in seen:
                    seen.add(failure.key)
                    _append(options.out, failure.report())
        index += 1
    print(index, ran, failures)
    return 0


def _append(folder: Path, text: str) -> None:
    with (folder / "failures.txt").open("a") as log:
        log.write(text + "\n")


def _drive(options: argparse.Namespace) -> int:
    """Pieces of a minute, each a process: whatever ends one is a failure of the case it was at."""
    import vae_fast

    options.out.mkdir(parents=True, exist_ok=True)
    sets: list[str | None] = [options.isa] if options.isa else [None, *vae_fast.build_info()["isa"]]
    start, first, ran, failures, piece = time.monotonic(), options.first, 0, 0, 0
    known = (options.out / "failures.txt").stat().st_size if (options.out / "failures.txt").exists() else 0
    print(f"seed {options.seed}; failures go to {options.out / 'failures.txt'}", flush=True)
    try:
        while options.seconds is None or time.monotonic() - start < options.seconds:
            left = options.piece if options.seconds is None else min(options.piece, options.seconds - (time.monotonic() - start))
            isa = sets[piece % len(sets)]
            command = [
                sys.executable,
                "-m",
                "tests.fuzz",
                "--worker",
                "--seed",
                str(options.seed),
                "--first",
                str(first),
                "--piece",
                str(left),
            ]
            command += ["--out", str(options.out)] + (["--isa", isa] if isa else []) + (["--only", options.only] if options.only else [])
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            if done.returncode == 0:
                first, n, bad = map(int, done.stdout.split()[-3:])
            else:
                at = int((options.out / "current").read_text())
                name = f"python -m tests.fuzz --seed {options.seed} --case {at}" + (f" --isa {isa}" if isa else "")
                _append(options.out, f"the process ended with {done.returncode} at\n  {name}\n")
                first, n, bad = at + 1, at - first, 1
            ran, failures, piece = ran + n, failures + bad, piece + 1
            seconds = time.monotonic() - start
            print(f"{seconds:6.0f} s  {ran} cases  {ran / seconds:.1f}/s  {failures} failures  {isa or 'default'}", flush=True)
    except KeyboardInterrupt:
        print(flush=True)
    text = (options.out / "failures.txt").read_text()[known:] if (options.out / "failures.txt").exists() else ""
    print(text)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
