"""Everything that needs a GPU, in one command of at most ten minutes, without a network.

Builds the extension against this Python's torch and the kernels' own tests with nvcc; runs those tests (more than 2^31 elements
included), the Python tests on cuda and on cpu, compute-sanitizer over the kernels' tests, and the benchmarks. Prints one table last
and writes it, with the GPU, driver, torch, CUDA, commit and date, to benchmarks/results/<gpu>/gpu_check.json. Exits 2 where there is
no GPU, 1 where a stage failed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUDGET = 590  # seconds, of everything


@dataclass
class Stage:
    """One step and how it ended: ok, failed, timeout or skipped."""

    name: str
    status: str
    seconds: float
    detail: str


class Run:
    """Runs stages within the time that is left, logs what they print, remembers how they ended."""

    def __init__(self, logs: Path, budget: float) -> None:
        self.logs = logs
        self.end = time.monotonic() + budget
        self.stages: list[Stage] = []

    def left(self) -> float:
        return self.end - time.monotonic()

    def stage(self, name: str, command: list[str], limit: float, pattern: str = "", **environment: str) -> bool:
        """`pattern` finds the line of the output that sums the stage up."""
        start = time.monotonic()
        limit = min(limit, self.left())
        if limit < 5:
            return self.add(Stage(name, "skipped", 0.0, "no time left"))
        log = self.logs / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.log"
        env = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
        with log.open("wb") as out:
            process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True)
            try:
                status = "ok" if process.wait(timeout=limit) == 0 else "failed"
            except subprocess.TimeoutExpired:
                status = "timeout"
                os.killpg(process.pid, 9)  # its own session: nothing else is in it
                process.wait()
        text = log.read_text(errors="replace")
        found = re.findall(pattern, text, re.MULTILINE) if pattern else []
        detail = str(found[-1]).strip() if found else ("" if status == "ok" else f"exit {process.returncode}")
        if status != "ok":
            print(f"--- {name}: {status}, the end of its output:", *text.splitlines()[-40:], sep="\n", flush=True)
        return self.add(Stage(name, status, time.monotonic() - start, detail))

    def add(self, stage: Stage) -> bool:
        self.stages.append(stage)
        print(f"{stage.name}: {stage.status} {stage.detail} ({stage.seconds:.0f} s)", flush=True)
        return stage.status == "ok"


def output(command: list[str]) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def facts() -> dict[str, str] | None:
    """What the results are of, or None without a GPU that torch can use."""
    try:
        import torch
    except ImportError:
        return None
    if torch.version.cuda is None or not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    nvcc = re.search(r"release (\S+),", output([nvcc_path() or "nvcc", "--version"]))
    dirty = "+changes" if output(["git", "status", "--porcelain", "--untracked-files=no"]) else ""
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "driver": output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"]),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "nvcc": nvcc[1] if nvcc else "",
        "python": platform.python_version(),
        "commit": (output(["git", "rev-parse", "HEAD"]) or "unknown") + dirty,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def nvcc_path() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [shutil.which("nvcc"), *(str(Path(home) / "bin" / "nvcc") for home in homes if home)]
    return next((c for c in candidates if c and Path(c).exists()), None)


def build(run: Run, build_dir: Path, capability: str) -> tuple[bool, bool]:
    """The extension in place and the kernels' tests, side by side; which of them succeeded."""
    arch = capability.replace(".", "")
    nvcc = nvcc_path() or "nvcc"
    jobs = str(max(1, (os.cpu_count() or 2) // 2))
    environment = {"VAE_FAST_CUDA": "1", "TORCH_CUDA_ARCH_LIST": capability, "MAX_JOBS": jobs, "CUDA_HOME": str(Path(nvcc).parent.parent)}
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = ["cmake", "-S", ".", "-B", str(build_dir), *generator, "-DCMAKE_BUILD_TYPE=Release", "-DVAE_FAST_CUDA=ON"]
    configure += [f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DCMAKE_CUDA_ARCHITECTURES={arch}"]

    def extension() -> bool:
        return run.stage("build extension", [sys.executable, "setup.py", "build_ext", "--inplace"], 300, **environment)

    def native() -> bool:
        made = run.stage("configure kernel tests", configure, 60)
        return made and run.stage("build kernel tests", ["cmake", "--build", str(build_dir), "-j", jobs], 240)

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(extension), pool.submit(native)]
        return both[0].result(), both[1].result()


def check(run: Run, build_dir: Path, results: Path, capability: str) -> None:
    has_extension, has_tests = build(run, build_dir, capability)
    binary = str(build_dir / "native_tests_cuda")
    passed = r"^\d+ passed, \d+ failed"
    if has_tests:
        run.stage("kernel tests", [binary, "--huge"], 90, passed)
    if has_extension:
        summary = r"^=* ?(\d+ (?:passed|failed|error).*?) ?=*$"
        workers = ["-n", "8"] if importlib.util.find_spec("xdist") and (os.cpu_count() or 1) >= 16 else []
        pytest = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
        run.stage("pytest on cuda", pytest, 200, summary, VAE_FAST_TEST_DEVICE="cuda", PYTHONPATH=str(ROOT))
        run.stage("pytest on cpu", [*pytest, *workers], 120, summary, VAE_FAST_TEST_DEVICE="cpu", PYTHONPATH=str(ROOT))
    if has_tests:
        sanitizer = shutil.which("compute-sanitizer") or str(Path(nvcc_path() or "").parent / "compute-sanitizer")
        for tool in ("memcheck", "racecheck", "initcheck"):
            name = f"compute-sanitizer {tool}"
            if Path(sanitizer).exists():
                command = [sanitizer, "--tool", tool, "--error-exitcode", "9", binary, "--rounds", "2"]
                run.stage(name, command, 45, r"={9} ((?:ERROR|RACECHECK) SUMMARY.*)")
            else:
                run.add(Stage(name, "skipped", 0.0, "compute-sanitizer was not found"))
    if has_extension:
        limit = run.left() - 10
        command = [sys.executable, "-m", "vae_fast", "bench", "--device", "cuda", "--suite", "all", "--out", str(results)]
        command += ["--budget", str(max(1, int(limit - 60)))]  # a case that has begun is finished
        command += [] if importlib.util.find_spec("matplotlib") else ["--no-pictures"]
        run.stage("benchmarks", command, limit, r"^(wrote .*)", PYTHONPATH=str(ROOT))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the results (default benchmarks/results/<gpu>)")
    parser.add_argument("--build", type=Path, help="where the kernels' tests are built, and logs go (default: a temporary folder)")
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds for everything (default {BUDGET})")
    args = parser.parse_args()

    known = facts()
    if known is None:
        print("gpu_check: no CUDA device that this Python's torch can use; nothing was checked", file=sys.stderr)
        return 2
    if nvcc_path() is None:
        print("gpu_check: nvcc was not found (PATH, CUDA_HOME, /usr/local/cuda); nothing was checked", file=sys.stderr)
        return 2
    print(", ".join(f"{key} {value}" for key, value in known.items()), flush=True)
    results = args.out or ROOT / "benchmarks" / "results" / re.sub(r"[^a-z0-9]+", "-", known["gpu"].lower()).strip("-")
    results.mkdir(parents=True, exist_ok=True)

    with tempfile.TemporaryDirectory() as temporary:
        work = args.build or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        run = Run(work, args.budget)
        check(run, work / "native", results, known["capability"])

    rows = [{**asdict(stage), "seconds": round(stage.seconds, 1), **known} for stage in run.stages]
    with tempfile.NamedTemporaryFile("w", dir=results, suffix=".tmp", delete=False) as file:
        json.dump({"command": "make gpu-check", **known, "stages": rows}, file, indent=2)
    Path(file.name).replace(results / "gpu_check.json")

    print()
    for path in sorted(results.glob("*.json")):
        print(f"wrote {path}")
    width = max(len(stage.name) for stage in run.stages)
    print(f"\n{known['gpu']}, driver {known['driver']}, torch {known['torch']}, CUDA {known['cuda']}")
    print(f"commit {known['commit'][:12]}, {known['date']}")
    for stage in run.stages:
        print(f"{stage.name:{width}}  {stage.status:8} {stage.seconds:6.0f} s  {stage.detail}")
    return 0 if all(stage.status == "ok" for stage in run.stages) else 1


if __name__ == "__main__":
    sys.exit(main())
