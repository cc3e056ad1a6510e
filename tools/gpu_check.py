"""Everything that needs a GPU, without a network, in five stages of at most eight minutes, each of which can be taken up where it ended.

    1  the binaries load (a bundle's, or built here), the kernels' own tests, more than 2^31 elements included, the key kernels' speed
    2  the Python tests that have a GPU in them
    3  memcheck, racecheck, initcheck over the kernels' tests; the hardware's counters of the eight heaviest kernels
    4  the benchmark suites
    5  the host's choices of lanes, grid and chunk against others

All results are under one folder: stage-N.json, written after every step, summary.md, and rest.tar.gz with logs and what else steps wrote.
A step that ended well, or that the driver refused, is not made again when the same command is run with that folder; others are.

Exits 0 if every step ended well or was refused by the driver, 1 if one failed, 2 where nothing could be checked, 3 if there was no time
for all: run it again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cuda_gate
import gpu_binaries as binaries
from gpu_stages import REFUSED, STAGES, Machine, Step

ROOT = cuda_gate.ROOT
SECONDS = 480.0  # of a stage
LEAST = 5.0  # seconds that a step is begun with
LOG = 1 << 20  # bytes of a log that are kept: its end
DONE = ("ok", "refused")
LOAD = """
import torch, vae_fast
found = vae_fast.build_info()
assert found["backend"] == "compiled" and found["cuda"], found["reason"] or f"built for {found['torch_built']} without CUDA"
x = torch.rand(64, 784, device="cuda")
vae_fast.bernoulli_log_prob(x, x).cpu()
print("loaded:", found["torch_built"], "CUDA", found["cuda"], *found["arch_list"], "commit", found["commit"])
"""
BUILT = "load what was built"
PREPARATION = ("binaries", "load", BUILT, *binaries.BUILD)
Row = dict[str, Any]


def output(command: list[str]) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def commit_of(given: str | None) -> str | None:
    """The commit that is checked: as given, or of the checkout, or of the bundle that was unpacked here."""
    if given:
        return given
    if (ROOT / ".git").exists() and (found := output(["git", "rev-parse", "HEAD"])):
        return found + ("+changes" if output(["git", "status", "--porcelain", "--untracked-files=no"]) else "")
    if (ROOT / binaries.MANIFEST).exists():
        return binaries.Manifest.read((ROOT / binaries.MANIFEST).read_bytes()).commit
    return None


def facts(commit: str) -> dict[str, str] | None:
    """What the results are of, or None without a GPU that torch can use."""
    try:
        import torch
    except ImportError:
        return None
    if torch.version.cuda is None or not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "driver": output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"]),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        "commit": commit,
    }


class Check:
    """A stage under way: its steps so far, the time that is left, and the folder that says so at every moment."""

    def __init__(self, out: Path, work: Path, stage: int, seconds: float, known: dict[str, str]) -> None:
        self.out, self.rest, self.stage, self.known = out, work / "rest", stage, known
        self.path = out / f"stage-{stage}.json"
        self.end = time.monotonic() + seconds
        self.rows: dict[str, Row] = {}
        self.writing = threading.Lock()  # two builds run side by side
        out.mkdir(parents=True, exist_ok=True)
        if not self.rest.exists() and (out / "rest.tar.gz").exists():
            with tarfile.open(out / "rest.tar.gz") as archive:
                archive.extractall(work, filter="data")
        self.rest.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            before = json.loads(self.path.read_text())
            for key in ("gpu", "torch", "commit"):
                if before["facts"][key] != known[key]:
                    sys.exit(f"gpu_check: {self.path} is of {key} {before['facts'][key]}, and this is {known[key]}: name another folder")
            self.rows = {row["name"]: row for row in before["steps"]}

    def left(self) -> float:
        return self.end - time.monotonic()

    def note(self, name: str, status: str, seconds: float = 0.0, detail: str = "", tool: str = "", result: object = None) -> bool:
        """Keep how a step ended, or that it began, and write everything down."""
        with self.writing:
            return self._note(name, status, seconds, detail, tool, result)

    def _note(self, name: str, status: str, seconds: float, detail: str, tool: str, result: object) -> bool:
        date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.rows[name] = {"name": name, "status": status, "seconds": round(seconds, 1), "detail": detail, "date": date}
        if tool:
            self.rows[name]["tool"] = tool
        if result is not None:
            self.rows[name]["result"] = result
        self._write(self.path, json.dumps({"stage": self.stage, "facts": self.known, "steps": list(self.rows.values())}, indent=1))
        if status != "running":
            print(f"{name}: {status} {detail} ({seconds:.0f} s)", flush=True)
            self._write(self.out / "summary.md", summary(self.out))
            temporary = self.out / ".rest.tmp"
            with tarfile.open(temporary, "w:gz") as archive:
                archive.add(self.rest, "rest")
            temporary.replace(self.out / "rest.tar.gz")
        return status in DONE

    @staticmethod
    def _write(path: Path, text: str) -> None:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text + "\n")
        temporary.replace(path)

    def run(self, step: Step) -> bool:
        """Make a step, unless it is done or its tool was refused before; whether the stage may go on as if it had ended well."""
        before = self.rows.get(step.name, {})
        if before.get("status") in DONE:
            print(f"{step.name}: {before['status']} {before['detail']} (before)", flush=True)
            return True
        if step.tool.startswith("no "):
            return self.note(step.name, "refused", detail=f"{step.tool[3:]} was not found", tool=step.tool)
        refused = next(
            (r["detail"] for r in self.rows.values() if step.tool and r.get("tool") == step.tool and r["status"] == "refused"), ""
        )
        if refused:
            return self.note(step.name, "refused", detail=f"as before: {refused.removeprefix('as before: ')}", tool=step.tool)
        limit = min(step.limit, self.left())
        if limit < LEAST:
            return self.note(step.name, "left", detail="no time left: run this stage again")
        self.note(step.name, "running")
        begin = time.monotonic()
        log = self.rest / f"stage-{self.stage}" / f"{re.sub('[^a-z0-9]+', '-', step.name.lower()).strip('-')}.log"
        log.parent.mkdir(exist_ok=True)
        written = self.rest / step.result if step.result else None
        if written is not None:
            written.unlink(missing_ok=True)
        status, code = self._carry_out(step, limit, log)
        text = log.read_text(errors="replace")
        if len(text) > LOG:
            log.write_text(f"... the last {LOG} bytes of {len(text)}\n{text[-LOG:]}")
        found = re.findall(step.summary, text, re.MULTILINE) if step.summary else []
        detail = str(found[-1]).strip() if found else ("" if status == "ok" else f"exit {code}")
        if step.tool and status == "failed" and (said := re.search(f".*(?:{REFUSED}).*", text)):
            status, detail = "refused", said[0].strip()
        elif status == "timeout" and limit < step.limit:
            status, detail = "left", f"{limit:.0f} of {step.limit:.0f} s were not enough: run this stage again"
        if status not in DONE:
            print(f"--- {step.name}: {status}, the end of its output:", *text.splitlines()[-30:], sep="\n", flush=True)
        result = json.loads(written.read_text()) if written is not None and written.exists() else None
        return self.note(step.name, status, time.monotonic() - begin, detail, step.tool, result)

    def _carry_out(self, step: Step, limit: float, log: Path) -> tuple[str, int | None]:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), **step.environment}
        with log.open("wb") as out:
            try:
                process = subprocess.Popen(
                    step.command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
                )
            except OSError as error:
                out.write(f"{step.command[0]}: {error.strerror}\n".encode())
                return "failed", 127
            try:
                return ("ok" if process.wait(timeout=limit) == 0 else "failed"), process.returncode
            except subprocess.TimeoutExpired:
                return "timeout", None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, 9)  # its own session: nothing else is in it
                    process.wait()


def prepare(check: Check, machine: Machine, bundle: Path | None, here: binaries.Manifest) -> bool:
    """The extension and the kernels' tests, in the tree and loaded: as they are, else a bundle's, else built here."""
    load = Step("load", [machine.python, "-c", LOAD], 120, r"^(loaded: .*)")
    check.rows = {name: row for name, row in check.rows.items() if name not in PREPARATION}  # a fresh machine has none
    why = binaries.in_tree(here)
    if why:
        refused = "no bundle was given" if bundle is None else binaries.adopt(bundle, here)
        if refused == "" and bundle is not None:
            check.note("binaries", "ok", detail=f"from {bundle.name}")
            if check.run(load):
                return True
            refused = f"{bundle.name}: its extension does not load ({check.rows.pop('load')['detail']})"
        return build(check, machine, here, f"{refused}; in the tree: {why}") and check.run(replace(load, name=BUILT))
    check.note("binaries", "ok", detail="those in the tree fit")
    return check.run(load)


def build(check: Check, machine: Machine, here: binaries.Manifest, why: str) -> bool:
    """Extension and kernels' tests, side by side."""
    if machine.nvcc is None:
        return check.note("binaries", "failed", detail=f"{why}; and nvcc was not found (PATH, CUDA_HOME, /usr/local/cuda)")
    try:
        commands = binaries.build_commands(machine.python, machine.nvcc, here, binaries.default_jobs())
    except FileNotFoundError as error:
        return check.note("binaries", "failed", detail=f"{why}; and {error}")
    steps = [Step(name, command, 420, environment=environment) for name, (command, environment) in commands.items()]
    with ThreadPoolExecutor(2) as pool:
        extension = pool.submit(check.run, steps[0])
        tests = pool.submit(lambda: check.run(steps[1]) and check.run(steps[2]))
        both = extension.result() and tests.result()
    if both:
        binaries.seal(here)
        return check.note("binaries", "ok", detail=f"built here: {why}")
    return check.note("binaries", "failed", detail=f"do not build here: {why}")


def summary(out: Path) -> str:
    """All stages so far, as a table for each."""
    lines = []
    for path in sorted(out.glob("stage-*.json")):
        found = json.loads(path.read_text())
        known = found["facts"]
        title = STAGES[found["stage"]][0]
        lines += [
            f"## Stage {found['stage']}: {title}",
            "",
            f"{known['gpu']}, driver {known['driver']}, torch {known['torch']}, CUDA {known['cuda']},",
        ]
        lines += [f"commit {known['commit']}", "", "| step | how it ended | seconds | |", "|---|---|---|---|"]
        for row in found["steps"]:
            lines.append(f"| {row['name']} | {row['status']} | {row['seconds']:.0f} | {row['detail']} |")
        lines += ["", *kernels(found["steps"])]
    return "\n".join(lines)


def kernels(steps: list[Row]) -> list[str]:
    """What was timed, by kernel; several settings side by side."""
    timed = {step["name"]: {row["kernel"]: row for row in step["result"]["rows"]} for step in steps if step.get("result")}
    if not timed:
        return []
    names = list(dict.fromkeys(name for rows in timed.values() for name in rows))
    if len(timed) > 3:  # settings against each other
        lines = ["| microseconds | " + " | ".join(timed) + " |", "|---" * (len(timed) + 1) + "|"]
        for name in names:
            cells = [f"{rows[name]['seconds'] * 1e6:.1f}" if name in rows else "" for rows in timed.values()]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        return [*lines, ""]
    lines = ["| kernel | microseconds | share of its limit | predicted | target | timed by |", "|---|---|---|---|---|---|"]
    for rows in timed.values():
        for name, row in rows.items():
            predicted = "" if row["predicted_share"] is None else f"{row['predicted_share']:.0%}"
            by = row["timer"] if row["not_replayed"] is None else f"{row['timer']}: {row['not_replayed']}"
            share = f"{row['share']:.0%} ({row['limit']})"
            lines.append(f"| {name} | {row['seconds'] * 1e6:.1f} | {share} | {predicted} | {row['target']:.0%} | {by} |")
    return [*lines, ""]


def run_stage(check: Check, machine: Machine, bundle: Path | None, here: binaries.Manifest) -> int:
    """A stage, from what is left of it; the exit status."""
    if prepare(check, machine, bundle, here):
        for step in STAGES[check.stage][1](machine):
            check.run(step)
    statuses = [row["status"] for row in check.rows.values()]
    if any(status not in (*DONE, "left") for status in statuses):
        return 1
    return 3 if "left" in statuses else 0


def main(arguments: list[str] | None = None, known: dict[str, str] | None = None, machine: Machine | None = None) -> int:
    """`known` and `machine`: a stand-in's, for tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=[*map(str, STAGES), "all"], default="all")
    parser.add_argument("--out", type=Path, required=True, help="folder of all results, and of those of before, which are taken up")
    parser.add_argument("--earlier", type=Path, help="folder of earlier results, copied to --out first where that has none")
    parser.add_argument("--commit", help="what is checked (default: the checkout's, or the unpacked bundle's)")
    parser.add_argument("--bundle", type=Path, help="binaries that `make gpu-bundle` made elsewhere, used if they fit")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu-check", help="folder of what steps write before it is packed")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for each stage (default {SECONDS:.0f})")
    args = parser.parse_args(arguments)

    commit = commit_of(args.commit)
    if commit is None:
        print("gpu_check: --commit: expected the commit's name, since this is no checkout and no bundle", file=sys.stderr)
        return 2
    known = known or facts(commit)
    if known is None:
        print("gpu_check: no CUDA device that this Python's torch can use; nothing was checked", file=sys.stderr)
        return 2
    print(", ".join(f"{key} {value}" for key, value in known.items()), flush=True)
    if args.earlier is not None and not list(args.out.glob("stage-*.json")):
        args.out.mkdir(parents=True, exist_ok=True)
        for path in args.earlier.glob("*"):
            shutil.copyfile(path, args.out / path.name)
    machine = machine or Machine.here(args.work / "rest")
    here = binaries.wanted(known["torch"], known["cuda"], known["capability"], commit)
    worst = 0
    for stage in STAGES if args.stage == "all" else [int(args.stage)]:
        print(f"--- stage {stage}: {STAGES[stage][0]}", flush=True)
        status = run_stage(Check(args.out, args.work, stage, args.seconds, known), machine, args.bundle, here)
        worst = 1 if 1 in (worst, status) else max(worst, status)
    print("\n" + (args.out / "summary.md").read_text())
    return worst


if __name__ == "__main__":
    sys.exit(main())
