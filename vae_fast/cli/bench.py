"""``vae-fast bench``: the benchmarks."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vae_fast.bench import compare, machine, pictures, report, sources
from vae_fast.bench.advice import advise_file
from vae_fast.bench.options import Options
from vae_fast.bench.suites import DEFAULT, DTYPES, SUITES, cases, run
from vae_fast.cli._common import MOST_THREADS, machine_for, named_path, number
from vae_fast.errors import FileError, RunError

_SHAPE = "three positive integers B,D,L (batch, data, latent; of mixtures: samples, components, dimensions)"
_BUDGET = 450.0  # the case that has begun is finished: ten minutes in all


def add_command(commands: Any) -> None:
    """Add ``bench`` to the commands of the parser."""
    bench = commands.add_parser(
        "bench",
        help="measure the kernels against their alternatives",
        description="Measure speed, memory and overhead against eager PyTorch, torch.compile, torch.distributions, scikit-learn and KeOps "
        "(those that are installed), all in one run, with the limits that the machine sets. Close everything else first.",
        epilog="Exit code: 0, 1 if --compare found something slower, 2 for an error (one line on stderr), 130 when interrupted.",
    )
    bench.set_defaults(run=_bench, interrupted="suites that were done are written")
    add = bench.add_argument
    text = f"one of {', '.join(SUITES)}, all; may be repeated (default: {', '.join(DEFAULT)})"
    add("--suite", metavar="NAME", action="append", choices=(*SUITES, "all"), help=text)
    add("--device", metavar="NAME", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    text = f"sizes of your own, {_SHAPE}; for kernels, mixtures and memory"
    add("--shape", metavar="B,D,L", type=_shape, action="extend", nargs="+", default=[], help=text)
    add("--dtype", choices=DTYPES, help="of the inputs, for kernels, mixtures and memory; uint8: of the images alone (default: float32)")
    add("--threads", metavar="N", type=number(int, 1, MOST_THREADS), help="CPU threads (default: torch's choice)")
    add("--contenders", metavar="NAME", nargs="+", help="these alone, e.g. ours eager (default: all)")
    add("--quick", action="store_true", help="small cases, short times: to see that everything works, not to quote")
    text = "measuring time per contender and case (default: 1; with --quick 0.1)"
    add("--seconds", metavar="X", type=number(float, 0.0, open_below=True), help=text)
    text = f"start no further case after so many seconds; what is left out is named (default: {_BUDGET:g})"
    add("--budget", metavar="X", type=number(float, 0.0), default=_BUDGET, help=text)
    add("--full", action="store_true", help="training: to a loss of 100, about 20 epochs for each contender")
    text = "write <suite>.json, .csv, .md and pictures there; {machine} in it stands for this machine's name"
    add("--out", metavar="DIR", type=named_path, help=text)
    add("--no-pictures", action="store_true", help="write no PNG files (matplotlib is not needed then)")
    _other_options(bench)


def _other_options(bench: argparse.ArgumentParser) -> None:
    compared = bench.add_argument_group("comparing with an earlier result")
    add = compared.add_argument
    text = "JSON files of earlier results: measure their cases again; suspects are measured up to five times before they count as slower"
    add("--compare", metavar="FILE", type=named_path, nargs="+", help=text)
    add("--fail-if-slower", metavar="SHARE", type=_share, default=0.05, help="what counts as slower (default: 5%%)")
    add("--result", metavar="FILE", type=named_path, help="compare this result in place of measuring")
    text = "make ours slower by so much in the cases of that name, to see the comparison fail"
    add("--pretend-slower", metavar="NAME=SHARE", type=_slower, action="append", default=[], help=text)
    advice = bench.add_argument_group("a training step of your own")
    text = "a Python file with step(), one training step, and the function loss(...) that it calls: the share of the step that is the loss"
    advice.add_argument("--advise", metavar="MODEL.py", type=named_path, help=text)
    text = "name of that function in the file, dotted if it belongs to an object; may be repeated (default: loss)"
    advice.add_argument("--loss", metavar="NAME", action="append", help=text)


def _shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(t) for t in text.split(","))
    except ValueError:
        sizes = ()
    if len(sizes) != 3 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected {_SHAPE}")
    return sizes


def _share(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 10.0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a share such as 5% or 0.05")
    return value


def _slower(text: str) -> tuple[str, float]:
    name, equals, share = text.rpartition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=SHARE, e.g. gaussian_kl=20%")
    return name, _share(share)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _bench(args: argparse.Namespace) -> int:
    if args.device.split(":")[0] not in ("cpu", "cuda"):
        raise RunError(f"--device {args.device}: expected cpu, cuda or cuda:N")
    device = machine_for(args, pictures=False)  # they are drawn at the end, and only with --out
    if args.advise is not None:
        print(advise_file(args.advise, args.loss or ["loss"]))
        return 0
    options = Options(
        device=str(device),
        quick=args.quick,
        shapes=args.shape,
        dtype=args.dtype,
        contenders=args.contenders,
        seconds=args.seconds,
        deadline=time.monotonic() + args.budget,
        full=args.full,
        slower=dict(args.pretend_slower),
        say=_say,
    )
    if args.result is not None and args.compare is None:
        raise RunError("--result: goes with --compare FILE")
    return _compare(args, options) if args.compare is not None else _measure(args, options)


def _measure(args: argparse.Namespace, options: Options) -> int:
    suites = list(dict.fromkeys(args.suite or DEFAULT))
    suites = list(SUITES) if "all" in suites else suites
    _known(options, suites)
    facts = machine.facts(options.device)
    out = None if args.out is None else _place(args.out, suites, facts, options)
    if facts["commit"].endswith(sources.DIRTY):
        _say(f"the code, or what the extension was built from, differs from its commit: the result says {facts['commit']}")
    if out is not None and not args.no_pictures:
        pictures.require()
    measured = False
    for suite in suites:
        rows = run(suite, options)
        measured |= bool(rows)
        if not rows:
            _say(f"skipped {suite}: nothing to measure with these options")
            continue
        print(report.terminal(report.table(suite, rows)), report.footer(facts, rows), "", sep="\n", flush=True)
        if out is not None:
            report.write(out, suite, facts, rows, options.recorded)
    if not measured:
        raise RunError(f"--suite {' '.join(suites)}: nothing was measured with these options")
    if out is not None:
        if not args.no_pictures:
            pictures.draw(out, report.rows_in(out, facts))
        print(f"wrote {out}: {', '.join(sorted(p.name for p in out.iterdir()))}")
    return 0


def _place(given: Path, suites: Sequence[str], facts: dict[str, Any], options: Options) -> Path:
    """The folder that --out names, if nothing would be lost there."""
    out = Path(str(given).replace("{machine}", machine.name(facts)))
    if out.exists() and not out.is_dir():
        raise FileError(f"{out}: is a file; --out names a directory")
    report.check_place(out, suites, facts, options.recorded)
    return out


def _known(options: Options, suites: Sequence[str]) -> None:
    """Refuse names that no case has."""
    found = [case for suite in suites if suite != "training" for case in cases(suite, options)]
    contenders = dict.fromkeys(["ours", "eager", "compile", *(name for case in found for name in case.contenders)])
    for name in options.contenders or ():
        if name not in contenders:
            raise RunError(f"--contenders {name}: expected some of {', '.join(contenders)}")
    _known_slower(options, [case.name for case in found])


def _known_slower(options: Options, names: Sequence[str]) -> None:
    for name in options.slower:
        if name not in names:
            raise RunError(f"--pretend-slower {name}: expected one of {'; '.join(dict.fromkeys(names))}")
    if options.slower and options.device != "cpu":
        raise RunError(f"--pretend-slower: runs on the CPU alone, not on {options.device}")


def _compare(args: argparse.Namespace, options: Options) -> int:
    for name, given in (("--suite", args.suite), ("--shape", args.shape), ("--dtype", args.dtype), ("--quick", args.quick)):
        if given:
            raise RunError(f"{name}: the cases are those of the earlier result; leave it out with --compare FILE")
    if args.out is not None:
        raise RunError(f"--out {args.out}: a comparison writes no files; leave it out with --compare FILE")
    results = [(path, report.read(path)) for path in args.compare]
    now = None if args.result is None else report.read(args.result)
    if args.threads is None and now is None:
        torch.set_num_threads(int(results[0][1]["machine"]["threads"]))
    facts = machine.facts(options.device) if now is None else now["machine"]
    _known_slower(options, [str(row.get("name")) for _, result in results for row in result["rows"]])
    slower = []
    for path, result in results:
        if result["suite"] not in SUITES:
            raise FileError(f"{path}: holds the suite {result['suite']}; expected one of {', '.join(SUITES)}")
        elsewhere = _differences(path, result, facts, now)
        measured = None if now is None else now["rows"]
        own = compare.options_of(result, options)
        rows, found = compare.check(result, own, args.fail_if_slower, elsewhere=elsewhere, measured=measured)
        print(report.terminal(compare.table(result["rows"], rows)))
        print(f"{path}: {len(compare.common(result['rows'], rows))} cases compared, {len(found)} slower")
        slower += found
    for change in slower:
        print(f"slower: {change}")
    return 1 if slower else 0


def _differences(path: Path, result: dict[str, Any], facts: dict[str, Any], now: dict[str, Any] | None) -> bool:
    """Say what makes an earlier result a bad yardstick; whether it is of another machine."""
    then = result["machine"]
    elsewhere = machine.differences(then, facts)
    if elsewhere:
        _say(f"{path}: was measured on another machine ({'; '.join(elsewhere)}): its times count against its own limit and peers alone")
    if then["torch"] != facts["torch"]:
        _say(f"{path}: was measured with torch {then['torch']}, this is {facts['torch']}")
    if then["commit"].endswith(sources.DIRTY):
        _say(f"{path}: was measured with uncommitted changes ({then['commit']})")
    if result["options"].get("quick"):
        _say(f"{path}: was measured with --quick, too short to judge a few percent by")
    if now is not None and bool(now["options"].get("quick")) != bool(result["options"].get("quick")):
        _say(f"{path}: one of the two results was measured with --quick, the other was not")
    if now is None and sources.stale(then, sources.of_suite(result["suite"])):
        _say(f"{path}: the code that it measured has changed since commit {then['commit']}")
    return bool(elsewhere)
