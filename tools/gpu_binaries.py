"""The extension and the kernels' tests for a GPU: taken from a bundle that was made for this machine's torch, else built here.

What lies in the tree is trusted if its manifest, build/gpu/manifest.json, fits: built from these very sources, for this Python, this minor
release of torch, its CUDA and this GPU. A bundle (tools/gpu_bundle.py) is held to the same; what does not fit is said, and built instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sysconfig
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path

import cuda_gate

ROOT = cuda_gate.ROOT
FOLDER = Path("build") / "gpu"
MANIFEST, NATIVE = FOLDER / "manifest.json", FOLDER / "native_tests_cuda"
BUILD = ("build extension", "configure kernel tests", "build kernel tests")  # the first beside the other two
BUILT_FROM = ("csrc", "tests/native", "setup.py", "CMakeLists.txt")


@dataclass(frozen=True)
class Manifest:
    """What binaries were built for, and from what."""

    torch: str
    cuda: str
    python: str  # the tag in the extension's file name
    capabilities: list[str]
    commit: str
    sources: str  # a digest

    @classmethod
    def read(cls, text: bytes) -> Manifest:
        return cls(**json.loads(text))

    def differs(self, here: Manifest) -> str:
        """Why binaries of this manifest cannot serve `here`, in words, or nothing."""
        for name, then, now in (
            ("torch", _minor(self.torch), _minor(here.torch)),
            ("CUDA", self.cuda, here.cuda),
            ("Python", self.python, here.python),
        ):
            if then != now:
                return f"it is for {name} {then}, and this is {now}"
        if here.capabilities[0] not in self.capabilities:
            return f"it is for GPUs of capability {' and '.join(self.capabilities)}, and this one has {here.capabilities[0]}"
        return "" if self.sources == here.sources else f"it was built from other sources (commit {self.commit})"


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def sources_digest(root: Path = ROOT) -> str:
    """Of everything that is compiled, byte by byte."""
    found = hashlib.sha256()
    for part in BUILT_FROM:
        files = [root / part] if (root / part).is_file() else sorted(p for p in (root / part).rglob("*") if p.is_file())
        for file in files:
            data = file.read_bytes()
            found.update(f"{file.relative_to(root).as_posix()}\0{len(data)}\0".encode() + data)
    return found.hexdigest()[:16]


def extension_name(python: str) -> str:
    return f"_C.{python}.so"


def wanted(torch: str, cuda: str, capability: str, commit: str) -> Manifest:
    """Of this Python and these sources."""
    return Manifest(torch, cuda, str(sysconfig.get_config_var("SOABI")), [capability], commit, sources_digest())


def names(here: Manifest) -> list[str]:
    """What a bundle adds to the sources, the manifest first."""
    return [MANIFEST.as_posix(), NATIVE.as_posix(), f"vae_fast/{extension_name(here.python)}", "vae_fast/_built_for.py"]


def in_tree(here: Manifest, root: Path = ROOT) -> str:
    """Why what lies in the tree cannot be used, or nothing."""
    if not (root / MANIFEST).exists():
        return "nothing was built or unpacked yet"
    found = Manifest.read((root / MANIFEST).read_bytes())
    missing = [p for p in (Path("vae_fast") / extension_name(here.python), NATIVE) if not (root / p).exists()]
    return found.differs(here) or (f"{missing[0]} is missing" if missing else "")


def adopt(bundle: Path, here: Manifest, root: Path = ROOT) -> str:
    """Unpack the binaries of a bundle into the tree; why not, or nothing."""
    if not bundle.is_file():
        return f"{bundle} is not there"
    try:
        with tarfile.open(bundle) as archive:
            members = {m.name.partition("/")[2]: m for m in archive.getmembers() if m.isfile()}
            contents = {}
            for name in names(here):
                file = archive.extractfile(members[name]) if name in members else None
                if file is None:
                    return f"{bundle.name} lacks {name}"
                contents[name] = file.read()
                if name == MANIFEST.as_posix() and (why := Manifest.read(contents[name]).differs(here)):
                    return f"{bundle.name}: {why}"
    except (OSError, tarfile.TarError, EOFError, ValueError, TypeError) as error:
        return f"{bundle.name} cannot be read: {error}"
    for name, data in reversed(contents.items()):  # the manifest last: what was broken off is not trusted
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.write_bytes(data)
    (root / NATIVE).chmod(0o755)
    return ""


def seal(here: Manifest, root: Path = ROOT) -> None:
    """Write down what was built."""
    place = root / MANIFEST
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(asdict(here), indent=2) + "\n")


def build_commands(python: str, nvcc: str, here: Manifest, jobs: int, root: Path = ROOT) -> dict[str, tuple[list[str], dict[str, str]]]:
    """By name: the commands that build everything in the tree, started there, and what their environment has."""
    home = cuda_gate.toolkit(nvcc)
    if home is None:
        raise FileNotFoundError(f"{nvcc} does not say where its toolkit is")
    capability = here.capabilities[0]
    environment = {"VAE_FAST_CUDA": "1", "TORCH_CUDA_ARCH_LIST": capability, "MAX_JOBS": str(jobs), "CUDA_HOME": str(home)}
    environment |= {"VAE_FAST_COMMIT": here.commit, "CCACHE_BASEDIR": str(root), "CCACHE_NOHASHDIR": "1"}
    if ccache := shutil.which("ccache"):
        environment["PYTORCH_NVCC"] = f"{ccache} {home / 'bin' / 'nvcc'}"
    configure = ["cmake", "-S", ".", "-B", str(FOLDER), *(["-G", "Ninja"] if shutil.which("ninja") else []), "-DCMAKE_BUILD_TYPE=Release"]
    configure += ["-DVAE_FAST_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={home / 'bin' / 'nvcc'}"]
    configure += [f"-DCMAKE_CUDA_ARCHITECTURES={capability.replace('.', '')}"]
    if ccache:
        configure += [f"-DCMAKE_CUDA_COMPILER_LAUNCHER={ccache}"]
    commands = ([python, "setup.py", "build_ext", "--inplace"], configure, ["cmake", "--build", str(FOLDER), "-j", str(jobs)])
    return {name: (command, environment) for name, command in zip(BUILD, commands, strict=True)}


def default_jobs() -> int:
    return max(1, (os.cpu_count() or 2) // 2)  # the extension and the tests are built side by side
