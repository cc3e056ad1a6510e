"""Which code a figure is of: a digest of what is compiled and run, comments and layout aside, and the commit it was checked out from."""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import re
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vae_fast._backend import build_info

ROOT = Path(__file__).resolve().parents[2]
DIRTY = "+changes"
_KERNELS = ("csrc", "vae_fast/functional", "setup.py")  # setup.py has the compiler's flags
_LINEAR = (*_KERNELS, "vae_fast/training/capture.py", "vae_fast/training/products.py")  # how a run multiplies
_TRAINING = (*_LINEAR, "vae_fast/models", "vae_fast/training")
#: By what was measured: the paths that it depends on, folders whole. A path that a commit does not have counts as empty.
PATHS = {"extension": ("csrc", "setup.py"), "kernels": _KERNELS, "linear": _LINEAR, "training": _TRAINING}
_OTHER = {"cpu": "csrc/cuda/", "cuda": "csrc/cpu/"}  # the other device's kernels do not count
_SUFFIXES = (".h", ".cpp", ".cu", ".cuh", ".py")
_TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?\*/)|(?P<space>\s+)
    |R"(?P<delimiter>[^()\\\s]*)\(.*?\)(?P=delimiter)"     # a raw string: all of it, line ends too
    |"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])+'
    |[A-Za-z_]\w*|\.?\d(?:[eEpP][+-]|'?\w|\.)*             # names, numbers with their separators
    |<<=|>>=|->|\+\+|--|&&|\|\||::|[-+*/%&|^<>=!]=|<<|>>|\#\#|.""",
    re.DOTALL | re.VERBOSE,
)


def cpp_tokens(text: str) -> str:
    """C++ or CUDA without comments and layout: a token a line; the end of a preprocessor's line is a token of its own.

    Example:
        >>> cpp_tokens("int  a; // one") == cpp_tokens("int a /* 1 */ ;") != cpp_tokens("int b;")
        True
    """
    found, directive, fresh = [], False, True  # fresh: nothing but space and comments on the line so far
    for match in _TOKEN.finditer(text.replace("\\\n", "")):
        token = match.group()
        if match.lastgroup in ("comment", "space"):
            ends = "\n" in token
            if ends and directive:
                found.append("<end>")
            directive, fresh = directive and not ends, fresh or ends
            continue
        directive, fresh = directive or (fresh and token == "#"), False
        found.append(token)
    return "\n".join(found)


def python_tree(text: str) -> str:
    """A module's syntax tree without comments, layout, docstrings and the words of its errors; the same in every version of Python.

    Example:
        >>> python_tree('def f(a):  # doubles\\n    return 2 * a') == python_tree('def f(a):\\n    "Doubles."\\n    return (2 * a)')
        True
    """

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, list):
            yield "["
            for item in node:
                yield from walk(item)
            yield "]"
        elif isinstance(node, ast.Raise):
            yield "Raise"
        elif isinstance(node, ast.AST):
            yield f"{type(node).__name__}("
            for key, value in ast.iter_fields(node):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and key == "body":
                    value = value[ast.get_docstring(node, clean=False) is not None :]
                if key not in ("ctx", "kind") and value is not None and value != []:  # versions differ in what they leave empty
                    yield f"{key}="
                    yield from walk(value)
            yield ")"
        else:
            yield repr(node)

    return "\n".join(walk(ast.parse(text)))


def of_suite(suite: str) -> str:
    """Which of :data:`PATHS` the figures of a suite depend on.

    Example:
        >>> of_suite("mixtures"), of_suite("linear"), of_suite("mnist")
        ('kernels', 'linear', 'training')
    """
    return "training" if suite in ("training", "distributed", "mnist") else "linear" if suite == "linear" else "kernels"


def _counts(path: str, device: str) -> bool:
    return path.endswith(_SUFFIXES) and not path.startswith(_OTHER["cpu" if device == "cpu" else "cuda"])


def _digest(files: dict[str, str]) -> str:
    found = hashlib.sha256()
    for path, text in sorted(files.items()):
        plain = python_tree(text) if path.endswith(".py") else cpp_tokens(text)
        found.update(f"{path}\0{plain}\0".encode())
    return found.hexdigest()[:16]


def digest(what: str, device: str, root: Path = ROOT) -> str | None:
    """Of the code as it lies in the checkout.

    Args:
        what: one of :data:`PATHS`.
        device: ``"cpu"`` or ``"cuda"``.
        root: the checkout.

    Returns:
        16 hexadecimal digits; None where there is no checkout.

    Example:
        >>> digest("kernels", "cpu") == digest("kernels", "cpu")
        True
    """
    if not (root / "csrc").is_dir():
        return None
    files: dict[str, str] = {}
    for path in PATHS[what]:
        for file in [root / path] if (root / path).is_file() else (root / path).rglob("*"):
            name = file.relative_to(root).as_posix()
            if file.is_file() and _counts(name, device):
                files[name] = file.read_text(encoding="utf-8")
    return _digest(files)


def _git(root: Path, *arguments: str) -> tuple[int, bytes]:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True)
    except OSError:
        return 127, b""
    return done.returncode, done.stdout


@functools.lru_cache(maxsize=64)
def digest_at(commit: str, what: str, device: str, root: Path = ROOT) -> str | None:
    """The same at a commit; None where that is not known.

    Example:
        >>> digest_at("unknown", "kernels", "cpu") is None
        True
    """
    code, listed = _git(root, "ls-tree", "-r", "--name-only", "--full-tree", commit, "--", *PATHS[what])
    names = [n for n in listed.decode().splitlines() if _counts(n, device)]
    code, packed = _git(root, "archive", "--format=tar", commit, "--", *names) if code == 0 and names else (1, b"")
    if code != 0:
        return None
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        files = {m.name: archive.extractfile(m) for m in archive.getmembers() if m.isfile()}
        return _digest({name: file.read().decode() for name, file in files.items() if file is not None})


def commit(root: Path = ROOT, also: Sequence[str] = ()) -> str:
    """The commit that is checked out, marked ``+changes`` if the code, or what the extension was built from, differs from it.

    Where there is no checkout it is the commit that was built.

    Args:
        root: the checkout.
        also: what else must be as that commit has it, as git names paths: ``"examples/*.py"``.

    Example:
        >>> len(commit()) >= 7
        True
    """
    built = str(build_info()["commit"] or "unknown")
    # A folder of somebody else's repository has a prefix; its commit is not ours.
    code, said = _git(root, "rev-parse", "--short=12", "HEAD", "--show-prefix") if (root / "csrc").is_dir() else (1, b"")
    found = said.decode().split()
    if code != 0 or len(found) != 1:
        return built
    code, changed = _git(root, "status", "--porcelain", "--", "csrc", "vae_fast", "setup.py", *also)
    differs = code != 0 or bool(changed.strip()) or not built_from_here(built, root)
    return found[0] + (DIRTY if differs else "")


def built_from_here(built: str, root: Path = ROOT) -> bool:
    """Whether the extension that was built at a commit is that of the checkout's sources; True where there is no extension.

    Example:
        >>> built_from_here("unknown")
        True
    """
    if built == "unknown":
        return True
    return (
        not built.endswith(DIRTY)
        and digest_at(built, "extension", "cuda", root) == digest("extension", "cuda", root)
        and (digest_at(built, "extension", "cpu", root) == digest("extension", "cpu", root))
    )


def stale(facts: dict[str, Any], what: str = "kernels", root: Path = ROOT) -> bool:
    """Whether code that a result depends on differs from the checkout's by more than comments and layout.

    The result's own digest decides. A result without one is judged by its commit; False where that commit is not known.

    Args:
        facts: what :func:`vae_fast.bench.machine.facts` said then.
        what: one of :data:`PATHS`.
        root: the checkout.

    Example:
        >>> stale({"device": "cpu", "commit": "unknown"})
        False
    """
    now = digest(what, facts["device"], root)
    then = (facts.get("code") or {}).get(what) or digest_at(facts["commit"].removesuffix(DIRTY), what, facts["device"], root)
    return now is not None and then is not None and now != then
