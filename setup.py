"""Builds the extension. CUDA kernels are built when nvcc is found and torch is a CUDA build; the sources are whatever lies in csrc/.

Environment: VAE_FAST_CUDA=0|1 forces the CUDA kernels off or on; TORCH_CUDA_ARCH_LIST picks their targets (default 8.0 and 9.0 with PTX);
VAE_FAST_NO_EXTENSION=1 installs without an extension (reference backend).
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent.resolve()


def say(line):
    print(f"vae_fast: {line}", file=sys.stderr, flush=True)


def sources(pattern):
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(pattern))


def commit():
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "--", "csrc", "setup.py"], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def wants_cuda(torch, cuda_home):
    """Whether to build CUDA kernels: decided by the toolkit and by torch, never by whether a GPU is visible."""
    choice = os.environ.get("VAE_FAST_CUDA", "")
    if choice not in ("", "0", "1"):
        sys.exit(f"VAE_FAST_CUDA={choice!r}: expected 0 or 1")
    if choice == "0":
        say("building for CPU only, as VAE_FAST_CUDA=0 asks")
        return False
    if torch.version.cuda is None:
        reason = f"torch {torch.__version__} is a CPU build"
    elif cuda_home is None or not (shutil.which("nvcc") or Path(cuda_home, "bin", "nvcc").exists()):
        reason = "nvcc was not found (set CUDA_HOME)"
    else:
        say(f"building for CPU and CUDA {torch.version.cuda}")
        return True
    if choice == "1":
        sys.exit(f"VAE_FAST_CUDA=1, but {reason}")
    say(f"building for CPU only: {reason}")
    return False


def extension():
    """(ext_modules, cmdclass), empty where an extension cannot be built."""
    if os.environ.get("VAE_FAST_NO_EXTENSION") == "1":
        say("no extension, as VAE_FAST_NO_EXTENSION=1 asks: plain torch (backend 'reference')")
        return [], {}
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        say("torch is not importable while building: no extension, plain torch (backend 'reference').")
        say("For the kernels, install torch first, then: pip install --no-build-isolation .")
        return [], {}
    if shutil.which(os.environ.get("CXX", "c++").split()[0]) is None and shutil.which("g++") is None:
        say("no C++ compiler was found: no extension, plain torch (backend 'reference')")
        return [], {}

    cuda = wants_cuda(torch, cpp_extension.CUDA_HOME)
    cxx = ["-O3", "-fopenmp", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-parameter", "-fvisibility=hidden"]
    # What lets loops with selections and square roots vectorise, and keeps a product and a sum two roundings (see csrc/math/portable.h).
    # Nothing here changes the floating-point mode of the process.
    cxx += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
    files = sources("csrc/*.cpp") + sources("csrc/cpu/*.cpp") + sources("csrc/ops/*.cpp")
    arch_list = []
    if cuda:
        arch_list = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX").replace(" ", ";").split(";")
        files += sources("csrc/cuda/*.cu")
        cxx.append("-DVF_WITH_CUDA")
    make = cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension
    module = make(
        name="vae_fast._C",
        sources=files,
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args={"cxx": cxx, "nvcc": ["-O3", "-DVF_WITH_CUDA", "--expt-relaxed-constexpr"]},
        extra_link_args=["-fopenmp"],
    )

    class Build(cpp_extension.BuildExtension):
        """Writes beside the extension what it was built for: read before it is loaded, so a torch upgrade gives words, not symbols."""

        def run(self):
            super().run()
            package = ROOT if self.inplace else Path(self.build_lib)
            facts = [
                f"TORCH = {str(torch.__version__)!r}",
                f"CUDA: str | None = {torch.version.cuda if cuda else None!r}",
                f"ARCH_LIST: list[str] = {arch_list!r}",
                f"COMMIT: str | None = {commit()!r}",
            ]
            (package / "vae_fast" / "_built_for.py").write_text('"""Written by setup.py."""\n\n' + "\n".join(facts) + "\n")

    return [module], {"build_ext": Build.with_options(use_ninja=shutil.which("ninja") is not None)}


ext_modules, cmdclass = extension()
setup(ext_modules=ext_modules, cmdclass=cmdclass)
