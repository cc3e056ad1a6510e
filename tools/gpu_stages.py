"""What `make gpu-check` does in each of its stages, as steps that stand for themselves: a command, its longest time, its summary."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cuda_gate
import gpu_binaries

# of native tests with kernels for a GPU
KINDS = (
    "row_terms",
    "sample",
    "logsumexp",
    "mixture",
    "mixture_products",
    "mixture_parameters",
    "mixture_dims",
    "mdn",
    "groups",
    "softmax",
)
SUITES = ("kernels", "mixtures", "overhead", "memory", "training", "likelihoods", "linear", "sweeps")
ROW_KERNELS = (
    "bernoulli_logits f32, forward and gradient, D=784",
    "bernoulli_logits bf16, x uint8, forward and gradient, D=784",
    "bernoulli_logits bf16, forward, D=784",
    "logsumexp bf16, forward, K=784",
)
#: What a tool says where the driver or the machine does not let it work.
REFUSED = (
    r"Device not supported|LibraryNotLoaded|ERR_NVGPUCTRPERM|Failed to initialize the profiler|not supported on this (?:device|platform)"
)


@dataclass(frozen=True)
class Step:
    """A command, the seconds that it may take, and what sums it up: the last match of `summary`, or the JSON file that it writes."""

    name: str
    command: list[str]
    limit: float
    summary: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    tool: str = ""  # one that the driver may refuse: the step is skipped then, and so are the others with that tool
    result: str = ""  # file in the folder of the rest


@dataclass(frozen=True)
class Machine:
    """What steps are made of: programs, and where their files go."""

    python: str
    nvcc: str | None
    sanitizer: str | None
    ncu: str | None
    rest: Path  # folder of what steps write
    native: str  # the kernels' tests
    workers: int  # of pytest; 0: no xdist
    pictures: bool

    @classmethod
    def here(cls, rest: Path) -> Machine:
        nvcc = cuda_gate.find_nvcc()
        home = cuda_gate.toolkit(nvcc) if nvcc else None
        beside = [str(home / "bin")] if home else []
        path = os.pathsep.join([os.environ.get("PATH", ""), *beside])
        workers = 12 if importlib.util.find_spec("xdist") else 0
        pictures = importlib.util.find_spec("matplotlib") is not None
        sanitizer, ncu = (shutil.which(name, path=path) for name in ("compute-sanitizer", "ncu"))
        native = str(gpu_binaries.ROOT / gpu_binaries.NATIVE)
        return cls(sys.executable, nvcc, sanitizer, ncu, rest, native, workers, pictures)

    def kernels(self, name: str, *options: str, limit: float = 60, tool: str = "") -> Step:
        """tools/gpu_kernels.py, its result under the step's name."""
        file = name.replace(" ", "-").replace(",", "") + ".json"
        command = [self.python, "tools/gpu_kernels.py", *options, "--out", str(self.rest / file)]
        return Step(name, command, limit, r"^(\d+ kernels, \d+ below .*)$", tool=tool, result=file)


def first(m: Machine) -> list[Step]:
    """The kernels compute what they should, and the ten key ones at what speed."""
    passed = r"^(\d+ passed, \d+ failed)"
    return [
        Step("kernel tests", [m.native, "--rounds", "10"], 120, passed),
        m.kernels("key kernels", "--key", limit=120),
        m.kernels("other kernels", *(f"--only={name}" for name in other_kernels()), limit=90),
        Step("kernel tests, more than 2^31 elements", [m.native, "--rounds", "1", "--huge"], 180, passed),
    ]


def other_kernels() -> list[str]:
    """Those of which nothing is predicted yet."""
    return [
        "multinomial f32, CSR, forward and gradient, K=20000",
        "sample and KL f32, forward, L=20",
        "sample and KL f32, backward, L=20",
        "mixture f32, forward, K=256 D=64",
        "mixture f32, backward, K=256 D=64",
        "mdn f32, forward, K=5 D=2",
    ]


def second(m: Machine) -> list[Step]:
    """The Python tests that have a GPU in them, in parts, so that one that is broken off can be taken up."""
    workers = ["-n", str(m.workers), "--dist", "loadfile"] if m.workers else []
    base = [m.python, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *workers]
    ops = sorted(p.relative_to(gpu_binaries.ROOT).as_posix() for p in (gpu_binaries.ROOT / "tests" / "ops").glob("test_*.py"))
    parts = {f"pytest on cuda: ops {i + 1} of 4": ops[i::4] for i in range(4)}
    parts |= {"pytest on cuda: the rest": ["tests", "--ignore=tests/ops"]}
    summary = r"^=* ?((?:\d+ (?:passed|failed|error|skipped|deselected)|no tests ran).*?) ?=*$"
    return [Step(name, [*base, *part], 300, summary, {"VAE_FAST_TEST_DEVICE": "cuda"}) for name, part in parts.items()]


def third(m: Machine) -> list[Step]:
    """Memory, races, uninitialised values; then what the hardware counts of the heaviest kernels."""
    found = []
    for tool in ("memcheck", "racecheck", "initcheck"):
        for kind in KINDS:
            command = [m.sanitizer or "", "--tool", tool, "--error-exitcode", "9", m.native, "--rounds", "1", "--only", kind]
            summary = r"={9} ((?:ERROR|RACECHECK) SUMMARY.*)"
            found.append(Step(f"{tool}: {kind}", command, 90, summary, tool="compute-sanitizer" if m.sanitizer else "no compute-sanitizer"))
    for name in heaviest():
        file = f"ncu-{name}.csv".replace(" ", "-").replace(",", "")
        command = [m.ncu or "", "--clock-control", "none", "--section", "SpeedOfLight", "--section", "Occupancy"]
        command += ["--section", "MemoryWorkloadAnalysis", "--section", "WarpStateStats", "--csv", "--log-file", str(m.rest / file)]
        command += ["--kernel-name", "regex:row_terms|logsumexp|sample|mixture|mdn|softmax", "--launch-count", "6"]
        command += [m.python, "tools/gpu_kernels.py", "--once", "--only", name]
        found.append(Step(f"ncu: {name}", command, 60, tool="ncu" if m.ncu else "no ncu"))
    return found


def heaviest() -> list[str]:
    """Eight: those that issue most beside the bytes they move."""
    return [ROW_KERNELS[0], ROW_KERNELS[3], *other_kernels()]


def fourth(m: Machine) -> list[Step]:
    """The benchmark suites, the contract's first."""
    command = [m.python, "-m", "vae_fast", "bench", "--device", "cuda", "--out", str(m.rest / "bench")]
    command += [] if m.pictures else ["--no-pictures"]
    # a case that has begun when the budget ends is finished
    return [Step(f"suite {s}", [*command, "--suite", s, "--seconds", "0.3", "--budget", "75"], 150, r"^(wrote .*)") for s in SUITES]


def fifth(m: Machine) -> list[Step]:
    """The host's choices against others, at run time: threads of a row, blocks of a processor, bytes of responsibilities at once."""
    rows = [f"--only={name}" for name in ROW_KERNELS]
    mixture = ["--only=mixture f32, backward, K=256 D=64"]
    steps = [m.kernels("as chosen", *rows, *mixture)]
    steps += [m.kernels(f"lanes {n}", *rows, "--lanes", str(n)) for n in (8, 16, 32, 64, 128, 256)]
    steps += [m.kernels(f"blocks {n}", *rows, "--blocks", str(n)) for n in (3, 6, 16, 32, 128)]
    steps += [m.kernels(f"chunk {n} MiB", *mixture, "--chunk", str(n << 20)) for n in (4, 8, 32, 48)]
    return [*steps, m.kernels("as chosen, again", *rows, *mixture)]


STAGES: dict[int, tuple[str, Callable[[Machine], list[Step]]]] = {
    1: ("the kernels are right, and how fast", first),
    2: ("the Python tests on cuda", second),
    3: ("sanitizers and counters", third),
    4: ("benchmarks", fourth),
    5: ("lanes, grid and chunk against others", fifth),
}
