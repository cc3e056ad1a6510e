"""The source distribution holds what a build needs: every file of csrc, headers and CUDA sources too, and what the package reads."""

import subprocess
import sys
import tarfile

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    out = tmp_path_factory.mktemp("sdist")
    command = ["setup.py", "-q", "egg_info", "--egg-base", out, "sdist", "--dist-dir", out / "dist"]
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (archive,) = (out / "dist").glob("vae_fast-*.tar.gz")
    with tarfile.open(archive) as tar:
        return {member.name.partition("/")[2] for member in tar if member.isfile()}


def committed(folder):
    done = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_every_file_that_a_build_or_the_package_reads(names):
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= names
    sources = committed("csrc")
    assert any(name.endswith(".h") for name in sources)
    assert any(name.endswith(".cuh") for name in sources)
    assert sources <= names
    assert committed("vae_fast") <= names


def test_nothing_that_was_built(names):
    assert "vae_fast/_built_for.py" not in names
    assert not [name for name in names if name.endswith((".so", ".o")) or name.startswith(("build/", "tests/"))]
