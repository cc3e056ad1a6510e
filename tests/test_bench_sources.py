"""Of which code a result of `vae-fast bench` is: what counts as a change, and which commit it names."""

import shutil
import subprocess

import pytest

from vae_fast.bench import sources

pytestmark = pytest.mark.usefixtures("no_pause")

CPP = """#pragma once
#include "a.h"
// squares
#define TWICE(x) ((x) + \\
                  (x))
inline float square(float x) { return x * x; }  /* two
lines */
auto raw = R"(a  // b
c)"; auto text = "a  b // c"; auto n = 1'000'000; char c = '"';
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("// squares", "// x * x"), ("// squares\n", ""), ("float x) {", "float x)\n{"),
        ("  /* two\nlines */", ""), ("\n                  (x)", " (x)"),
        ("x * x", "x*x"), ('#include "a.h"', '#  include "a.h"  // why'),
    ],
)  # fmt: skip
def test_comments_and_layout_are_not_code(old, new):
    assert old in CPP
    text = CPP.replace(old, new) if "(x)" not in old else CPP.replace(" \\\n                  (x))", " (x))")
    assert text != CPP and sources.cpp_tokens(text) == sources.cpp_tokens(CPP)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x * x", "x + x"), ("square(", "sqr("), ("a  // b", "a // b"), ("a  b // c", "a b // c"), ("1'000", "2'000"),
        ("inline float", "inlinefloat"),
        ("(x))\n", "(x)) "), ("'\"'", "'!'"), ("#pragma once", "pragma once"),
    ],
)  # fmt: skip
def test_code_is_code(old, new):
    assert old in CPP
    assert sources.cpp_tokens(CPP.replace(old, new)) != sources.cpp_tokens(CPP)


def test_python_without_words():
    old = 'def f(a):\n    "Doubles."\n    if a < 0:\n        raise ValueError("a < 0")\n    return g(2,\n             a)  # so\n'
    same = 'def f(a):\n\n    if a < 0:\n        raise ValueError(f"a is {a}")\n    return (g(2, a))\n'
    assert sources.python_tree(old) == sources.python_tree(same)
    for a, b in (("a < 0:", "a <= 0:"), ("2", "3"), ("        raise", "        pass\n    raise"), ("return", "_ =")):
        assert sources.python_tree(old.replace(a, b)) != sources.python_tree(old)


@pytest.fixture
def checkout(tmp_path):
    """A repository with kernels, as this one has them."""
    root = tmp_path / "checkout"
    for path, text in {
        "csrc/cpu/a.cpp": "int a;\n",
        "csrc/cuda/b.cu": "int b;\n",
        "vae_fast/functional/f.py": "f = 1\n",
        "setup.py": "s = 1\n",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    git(root, "init", "-q")
    return root, save(root)


def git(root, *arguments):
    command = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false", *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def save(root):
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "step")
    return git(root, "rev-parse", "HEAD")


@pytest.mark.parametrize("with_digest", [True, False])
def test_a_result_is_stale_when_its_code_changed(checkout, with_digest):
    root, first = checkout
    code = {what: sources.digest(what, "cpu", root) for what in sources.PATHS}
    facts = {"device": "cpu", "commit": first if not with_digest else "0" * 40} | ({"code": code} if with_digest else {})
    assert sources.digest_at(first, "kernels", "cpu", root) == code["kernels"]

    def change(path, text):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
        return sources.stale(facts, "kernels", root), sources.stale(facts, "training", root)

    assert change("README.md", "words") == (False, False)
    assert change("csrc/cpu/a.cpp", "// why\nint  a;\n") == (False, False)
    assert change("csrc/cuda/b.cu", "int c;\n") == (False, False)  # the other device's
    assert sources.stale(facts | {"device": "cuda", "commit": first, "code": None}, "kernels", root)
    assert change("vae_fast/training/fit.py", "t = 1\n") == (False, True)
    (root / "vae_fast/training/fit.py").unlink()
    assert change("vae_fast/training/products.py", "p = 1\n") == (False, True)
    assert sources.stale(facts, "linear", root)
    (root / "vae_fast/training/products.py").unlink()
    for path, text in {
        "csrc/cpu/a.cpp": "int b;\n",
        "csrc/cpu/new.h": "int n;\n",
        "vae_fast/functional/f.py": "f = 2\n",
        "setup.py": "s = 2\n",
    }.items():
        before = (root / path).read_text() if (root / path).exists() else None
        assert change(path, text) == (True, True), path
        (root / path).unlink() if before is None else (root / path).write_text(before)
    assert not sources.stale(facts, "kernels", root)


def test_a_commit_that_is_not_here_decides_nothing(checkout):
    assert not sources.stale({"device": "cpu", "commit": "0" * 40}, "kernels", checkout[0])


def test_the_commit_is_marked_where_the_code_differs(checkout, monkeypatch):
    root, first = checkout

    def built(commit):
        monkeypatch.setattr(sources, "build_info", lambda: {"commit": commit})

    built(first)
    assert sources.commit(root) == first[:12]
    (root / "notes.txt").write_text("n")
    assert sources.commit(root) == first[:12]
    (root / "vae_fast/new.py").write_text("n = 1\n")
    assert sources.commit(root) == first[:12] + "+changes"
    second = save(root)
    assert sources.commit(root) == second[:12]  # the extension's own sources are those that were built
    (root / "csrc/cpu/a.cpp").write_text("int other;\n")
    third = save(root)
    assert sources.commit(root) == third[:12] + "+changes"  # built from the sources of before
    built(third)
    assert sources.commit(root) == third[:12]
    (root / "examples").mkdir()
    (root / "examples/e.py").write_text("e = 1\n")
    (root / "examples/e.json").write_text("{}\n")
    assert sources.commit(root) == third[:12]
    assert sources.commit(root, ("examples/*.json",)) == sources.commit(root, ("examples/*.py",)) == third[:12] + "+changes"
    git(root, "add", "examples/e.py")
    git(root, "commit", "-q", "-m", "step")
    assert sources.commit(root, ("examples/*.py",)) == git(root, "rev-parse", "HEAD")[:12]
    built(third + "+changes")
    assert sources.commit(root) == git(root, "rev-parse", "HEAD")[:12] + "+changes"


def test_a_copy_inside_another_repository_has_no_commit_of_it(checkout, monkeypatch):
    root, _ = checkout
    shutil.copytree(root / "csrc", root / "copy" / "csrc")
    monkeypatch.setattr(sources, "build_info", lambda: {"commit": "built"})
    assert sources.commit(root / "copy") == "built"
