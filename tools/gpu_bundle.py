"""One archive for a machine with a GPU and no network: the extension, the kernels' own tests, and the sources, from a clean clone.

Built without a GPU for PyTorch 2.11.0's wheel (CUDA 13.0, Python 3.12) and GPUs of capability 9.0, by setup.py and CMakeLists.txt as
everywhere. `make gpu-check BUNDLE=...` takes the binaries where they fit, or runs in the unpacked archive. The wheel brings libraries and
headers, nvcc the compiler; the Python that is given has that torch, or gets an environment with it under build/ (three gigabytes).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import cuda_gate
import gpu_binaries as binaries

ROOT = cuda_gate.ROOT
TORCH, CUDA, PYTHON, CAPABILITY = "2.11.0", "13.0", (3, 12), "9.0"
# setuptools: the newest that this torch allows
NEEDED = (f"torch=={TORCH}", "numpy==2.4.6", "setuptools==81.0.0", "ninja==1.13.2")
MOST = 60_000_000  # bytes of the archive
ASK = "import json, sysconfig, torch; print(json.dumps([torch.__version__, torch.version.cuda, sysconfig.get_config_var('SOABI')]))"
TRY = """
import torch, vae_fast
found = vae_fast.build_info()
assert found["backend"] == "compiled" and found["cuda"] and found["commit"], found
x = torch.rand(64, 784)
got, want = vae_fast.bernoulli_log_prob(x, x), (x * x - torch.nn.functional.softplus(x)).sum(-1)
torch.testing.assert_close(got, want)
print("the extension loads:", found["torch"], "CUDA", found["cuda"], *found["arch_list"], "commit", found["commit"])
"""


def say(line: str) -> None:
    print(f"gpu_bundle: {line}", flush=True)


def run(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    begin = time.monotonic()
    done = subprocess.run(command, cwd=folder, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        print(done.stdout.decode(errors="replace")[-8000:], file=sys.stderr)
        sys.exit(f"gpu_bundle: exit {done.returncode}: {' '.join(command)}")
    say(f"{' '.join(command[:4])}: {time.monotonic() - begin:.0f} s")


def ask(python: str) -> tuple[str, str, str] | None:
    """torch, its CUDA and the tag of extensions; None without a torch that imports."""
    done = subprocess.run([python, "-c", ASK], capture_output=True, text=True, cwd=ROOT)
    return tuple(json.loads(done.stdout)) if done.returncode == 0 else None


def with_torch(python: str) -> str:
    """The Python itself if it has the torch that is built for, else one of an environment that gets it."""
    said = subprocess.run([python, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True)
    if said.returncode != 0 or tuple(map(int, said.stdout.split())) != PYTHON:
        version = said.stdout.strip().replace(" ", ".") or said.stderr.strip().splitlines()[0]
        sys.exit(f"gpu_bundle: --python {python}: expected Python {'.'.join(map(str, PYTHON))}, got {version}")
    if (found := ask(python)) is not None and found[0].partition("+")[0] == TORCH and found[1] == CUDA:
        return python
    place = ROOT / "build" / "gpu-python"
    own = str(place / "bin" / "python")
    if not Path(own).exists() or ask(own) is None:
        say(f"installing {', '.join(NEEDED)} in {place}")
        run([python, "-m", "venv", str(place)], ROOT)
        run([own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *NEEDED], ROOT)
    return own


def clone(commit: str) -> Path:
    """A clean clone of what is committed here."""
    tree = ROOT / "build" / "gpu-bundle" / f"vae_fast-{commit[:12]}"
    shutil.rmtree(tree, ignore_errors=True)
    tree.parent.mkdir(parents=True, exist_ok=True)
    run(["git", "clone", "--quiet", "--no-checkout", str(ROOT), str(tree)], ROOT)
    run(["git", "checkout", "--quiet", "--detach", commit], tree)
    return tree


def pack(tree: Path, archive: Path, commit: str, here: binaries.Manifest) -> None:
    """The tracked files and the binaries, under one folder."""
    sources = subprocess.run(["git", "archive", "--format=tar", commit], cwd=tree, capture_output=True, check=True).stdout
    temporary = archive.with_suffix(".tmp")
    with tarfile.open(temporary, "w:xz", preset=6) as out, tarfile.open(fileobj=io.BytesIO(sources)) as given:
        for member in given.getmembers():
            file = given.extractfile(member) if member.isfile() else None
            member.name = f"{tree.name}/{member.name}"
            out.addfile(member, file)
        for name in binaries.names(here):
            out.add(tree / name, f"{tree.name}/{name}")
    temporary.replace(archive)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="python3.12", help="a Python 3.12, with or without that torch (default: python3.12)")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the archive (default: dist)")
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1, help="compilers at a time")
    args = parser.parse_args(arguments)
    nvcc = cuda_gate.find_nvcc()
    if nvcc is None:
        sys.exit("gpu_bundle: nvcc was not found (CUDA_HOME, PATH, /usr/local/cuda)")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    if subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], cwd=ROOT, capture_output=True, text=True).stdout.strip():
        say(f"there are changes that are not committed: they are not in it, it is of {commit[:12]}")
    python = with_torch(args.python)
    found = ask(python)
    if found is None:
        sys.exit(f"gpu_bundle: {python} cannot import torch")
    tree = clone(commit)
    here = binaries.Manifest(found[0], found[1], found[2], [CAPABILITY], commit, binaries.sources_digest(tree))
    environment = {"PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(tree)}
    for command, own in binaries.build_commands(python, nvcc, here, args.jobs, tree).values():
        run(command, tree, environment | own)
    binaries.seal(here, tree)
    if why := binaries.in_tree(here, tree):
        sys.exit(f"gpu_bundle: {why}")
    tried = subprocess.run([python, "-c", TRY], cwd=tree, capture_output=True, text=True, env={**os.environ, **environment})
    if tried.returncode != 0:
        sys.exit(f"gpu_bundle: the extension was built and does not work:\n{tried.stderr}")
    say(tried.stdout.strip())
    args.out.mkdir(parents=True, exist_ok=True)
    archive = args.out / f"vae_fast-gpu-{commit[:12]}.tar.xz"
    pack(tree, archive, commit, here)
    size = archive.stat().st_size
    if size > MOST:
        archive.unlink()
        sys.exit(f"gpu_bundle: {archive.name} has {size} bytes: expected at most {MOST}")
    # what a machine of that kind would say of it
    unpacked = ROOT / "build" / "gpu-bundle" / "tried"
    shutil.rmtree(unpacked, ignore_errors=True)
    if why := binaries.adopt(archive, replace(here, commit="other"), unpacked):
        sys.exit(f"gpu_bundle: {why}")
    say(f"wrote {archive}: {size / 1e6:.1f} MB, torch {here.torch}, CUDA {here.cuda}, {here.python}, capability {CAPABILITY}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
