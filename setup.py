"""Builds the extension. CUDA kernels are built when nvcc is found and torch is a CUDA build; the sources are whatever lies in csrc/.

Environment: VAE_FAST_CUDA=0|1 forces the CUDA kernels off or on; TORCH_CUDA_ARCH_LIST picks their targets (default 8.0 and 9.0 with PTX);
VAE_FAST_NO_EXTENSION=1 installs without an extension (reference backend); VAE_FAST_WHEEL=1 puts the torch that a wheel is for into its
version; VAE_FAST_DEBUG=1 keeps debugging symbols, nineteen twentieths of the file; VAE_FAST_COMMIT names the commit of sources that lie
outside a checkout.

In a checkout (`pip install -e .`, `python setup.py build_ext --inplace`, `make wheel`) objects are kept in build/extension: an edit
compiles what it touches. Where ccache is found, torch compiles through it, and clones of the repository share what was compiled.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from platform import machine

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()


def say(line):
    print(f"vae_fast: {line}", file=sys.stderr, flush=True)


def sources(pattern):
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(pattern))


def commit():
    """The checkout's, else what VAE_FAST_COMMIT says: an unpacked archive may lie inside a repository that is not ours."""
    if not (ROOT / ".git").exists():
        return os.environ.get("VAE_FAST_COMMIT") or None
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


def openmp_of(platform):
    """(compiler flags, linker flags). Apple's clang knows OpenMP's pragmas but has no library for them: torch brings omp.h and libomp. Nor
    has torch an x86 half to link with, which the universal builds of Python ask for."""
    if platform == "darwin":
        os.environ.setdefault("ARCHFLAGS", f"-arch {machine()}")
        return ["-Xpreprocessor", "-fopenmp"], ["-lomp"]
    return ["-fopenmp"], ["-fopenmp"]


def write_facts(folder, torch_version=None, cuda=None, arch_list=(), reason=""):
    """Beside the package: what was built, or why nothing was. Read before the extension is loaded, so that a torch upgrade gives words
    instead of undefined symbols, and a build without kernels says so at import."""
    lines = [
        '"""Written by setup.py."""\n',
        f"TORCH: str | None = {torch_version!r}",
        f"CUDA: str | None = {cuda!r}",
        f"ARCH_LIST: list[str] = {list(arch_list)!r}",
        f"COMMIT: str | None = {commit()!r}",
        f"REASON = {reason!r}",
    ]
    (folder / "vae_fast" / "_built_for.py").write_text("\n".join(lines) + "\n")


def nothing_built(reason):
    """A build without an extension, and the reason kept for the import's warning."""
    say(f"no extension: {reason}; every function will run in plain torch (backend 'reference')")

    class BuildPy(build_py):
        def run(self):
            super().run()
            write_facts(ROOT if self.editable_mode else Path(self.build_lib), reason=reason)

    return [], {"build_py": BuildPy}


def extension():
    """(ext_modules, cmdclass)."""
    if os.environ.get("VAE_FAST_NO_EXTENSION") == "1":
        return nothing_built("VAE_FAST_NO_EXTENSION=1 was set at install time")
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        return nothing_built("torch was not importable at install time (install torch first, then: pip install --no-build-isolation .)")
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++").split()[0], "g++")):
        return nothing_built("no C++ compiler was found at install time")

    cuda = wants_cuda(torch, cpp_extension.CUDA_HOME)
    openmp, libraries = openmp_of(sys.platform)
    cxx = ["-O3", *openmp, "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-parameter", "-fvisibility=hidden"]
    # What lets loops with selections and square roots vectorise, and keeps a product and a sum two roundings (see csrc/math/portable.h).
    # Nothing here changes the floating-point mode of the process.
    cxx += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
    cxx.append("-DAT_PER_OPERATOR_HEADERS")  # torch's headers then declare only the operators that they use
    if os.environ.get("VAE_FAST_DEBUG") != "1":
        cxx.append("-g0")  # after the interpreter's own -g
    os.environ.setdefault("CCACHE_BASEDIR", str(ROOT))
    os.environ.setdefault("CCACHE_NOHASHDIR", "1")
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
        extra_link_args=libraries,
    )

    class Build(cpp_extension.BuildExtension):
        def finalize_options(self):
            super().finalize_options()
            if self.editable_mode or self.inplace or (ROOT / ".git").exists():
                self.build_temp = str(ROOT / "build" / "extension")

        def run(self):
            super().run()
            version = torch.version.cuda if cuda else None
            write_facts(ROOT if self.inplace else Path(self.build_lib), str(torch.__version__), version, arch_list)

    return [module], {"build_ext": Build.with_options(use_ninja=shutil.which("ninja") is not None)}


def local_version():
    """What a wheel's version ends in: its extension is of one minor release of torch, and of its CPU or CUDA build."""
    if os.environ.get("VAE_FAST_WHEEL") != "1":
        return {}
    from torch import __version__, version

    return {"egg_info": {"tag_build": f"+torch{'.'.join(__version__.split('.')[:2])}.{'cuda' if version.cuda else 'cpu'}"}}


ext_modules, cmdclass = extension()
setup(ext_modules=ext_modules, cmdclass=cmdclass, options=local_version())
