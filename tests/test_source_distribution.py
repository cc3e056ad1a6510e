"""What is given to others: the source distribution holds what a build needs, and the wheels are of every Python and torch that is named."""

import importlib
import re
import subprocess
import sys
import tarfile
import zipfile

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


def test_wheels_are_of_every_python_and_of_the_pinned_torch():
    project = (ROOT / "pyproject.toml").read_text()
    workflow = (ROOT / ".github" / "workflows" / "wheels.yml").read_text()
    pythons = [int(minor) for minor in re.findall(r'"cp3(\d+)-manylinux_x86_64"', project)]
    assert pythons == list(range(int(re.search(r'requires-python = ">=3\.(\d+)"', project)[1]), pythons[-1] + 1))
    assert sys.version_info.minor in pythons
    torches = re.search(r"torch: \[(.*)\]", workflow)[1].replace('"', "").split(", ")
    assert torches[0].startswith(re.search(r'"torch>=([\d.]+)"', project)[1])
    assert re.search(r"^torch==(.*)$", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)[1] == torches[-1]


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["vae_fast/libgomp.so.1"], "holds vae_fast/libgomp.so.1, which is torch's"),
        (["vae_fast.libs/libfoo.so"], "holds vae_fast.libs/libfoo.so"),
        (["vae_fast/_C.so"], "holds not one extension"),  # two of them
    ],
)
def test_a_wheel_that_is_not_right_is_refused(tmp_path, monkeypatch, names, fault):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    check = importlib.import_module("wheel_check")
    wheel = tmp_path / "vae_fast-1+torch2.13.cpu-cp311-cp311-linux_x86_64.whl"
    for extra in ([], names):
        with zipfile.ZipFile(wheel, "w") as archive:
            for name in ["vae_fast/__init__.py", "vae_fast/_C.cpython-311.so", "vae_fast-1.dist-info/RECORD", *extra]:
                archive.writestr(name, "")
        assert check.content(wheel) == ([fault] if extra else [])
    monkeypatch.setattr(check, "MOST", 10)
    assert check.content(wheel)[0].startswith("is 0.0 MiB, expected at most")
    other = wheel.rename(tmp_path / "vae_fast-1-cp311-cp311-linux_x86_64.whl")
    assert check.content(other)[-1] == "does not name its torch"
