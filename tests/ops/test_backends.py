"""Which backend runs, what is said when there is no extension, and what build_info() reports."""

import ast
import re
import shutil
from pathlib import Path

import pytest
import torch
from oracle import needs_kernels

import vae_fast

PACKAGE = Path(vae_fast.__file__).parent
REPORT = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import vae_fast, torch
    torch.manual_seed(0)
    mu = torch.ones(3, 4, requires_grad=True)
    for _ in range(3):
        kl = vae_fast.gaussian_kl(mu, mu)
        vae_fast.reparameterize(mu, mu)
        vae_fast.elbo_loss(mu.detach(), mu, mu, mu).backward()
print([vae_fast.build_info(), [(w.category.__name__, str(w.message)) for w in caught], kl.tolist()])
"""


def report(done):
    info, warned, kl = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    assert kl == pytest.approx([4 * 0.5 * (2.718281828 - 1)] * 3, rel=1e-6)
    return info, warned


def copy_of_package(folder, extension=True, **built_for):
    """The package in another folder, without its extension or with another idea of what it was built for."""
    target = folder / "vae_fast"
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__", "_C*", *([] if extension else ["_built_for.py"])))
    if extension:
        for library in PACKAGE.glob("_C*"):
            (target / library.name).symlink_to(library)
    for name, value in built_for.items():
        path = target / "_built_for.py"
        path.write_text(re.sub(rf"^{name}(: [^=]+)? = .*$", f"{name} = {value!r}", path.read_text(), flags=re.M))
    return folder


def test_the_reference_backend_by_choice_says_nothing(python):
    info, warned = report(python(REPORT, VAE_FAST_BACKEND="reference"))
    assert info["backend"] == "reference"
    assert info["reason"] == "VAE_FAST_BACKEND=reference"
    assert warned == []


@needs_kernels
@pytest.mark.parametrize("choice", ["compiled", "auto", "AUTO", None])
def test_the_kernels_by_choice_or_by_default(choice, python):
    info, warned = report(python(REPORT, **({} if choice is None else {"VAE_FAST_BACKEND": choice})))
    assert info["backend"] == "compiled"
    assert info["reason"] == ""
    assert warned == []


def test_an_unknown_backend_is_refused(python):
    done = python("import vae_fast", check=False, VAE_FAST_BACKEND="bogus")
    assert done.returncode != 0
    assert "SettingError: VAE_FAST_BACKEND='bogus': expected one of auto, compiled, reference" in done.stderr


def test_without_the_extension_the_package_runs_and_says_so_once(tmp_path, python):
    info, warned = report(python(REPORT, path=copy_of_package(tmp_path, extension=False)))
    assert info["backend"] == "reference"
    assert "not built" in info["reason"]
    assert [category for category, _ in warned] == ["UserWarning"]
    assert "vae_fast: the extension was not built" in warned[0][1]
    assert "plain torch" in warned[0][1]


def test_the_warning_points_at_the_import(tmp_path, python):
    done = python("import warnings\nimport vae_fast\n", path=copy_of_package(tmp_path, extension=False))
    assert done.stderr.count("UserWarning") == 1
    assert re.search(r"the extension was not built", done.stderr)


def test_asking_for_the_kernels_without_the_extension_is_an_error(tmp_path, python):
    done = python("import vae_fast", check=False, path=copy_of_package(tmp_path, extension=False), VAE_FAST_BACKEND="compiled")
    assert done.returncode != 0
    assert "ExtensionError: vae_fast: the extension was not built" in done.stderr
    assert "pip install --no-build-isolation" in done.stderr


@needs_kernels
def test_an_extension_for_another_torch_is_not_loaded(tmp_path, python):
    folder = copy_of_package(tmp_path, TORCH="1.13.1+cu117")
    info, warned = report(python(REPORT, path=folder))
    assert info["backend"] == "reference"
    want = f"the extension was built for torch 1.13.1+cu117 and this is torch {torch.__version__}"
    assert info["reason"] == want
    assert len(warned) == 1
    assert want in warned[0][1]
    done = python("import vae_fast", check=False, path=folder, VAE_FAST_BACKEND="compiled")
    assert f"ExtensionError: vae_fast: {want}" in done.stderr
    minor, _, kind = str(torch.__version__).partition("+")
    wheel = f"install the wheel with +torch{'.'.join(minor.split('.')[:2])}.cpu in its name, or reinstall with: pip install"
    assert (wheel in warned[0][1]) == (kind == "cpu")


@needs_kernels
def test_a_patch_release_of_torch_is_the_same_abi(tmp_path, python):
    number, plus, local = str(torch.__version__).partition("+")
    other = ".".join([*number.split(".")[:2], "99"]) + plus + local
    assert report(python(REPORT, path=copy_of_package(tmp_path, TORCH=other)))[0]["backend"] == "compiled"


@needs_kernels
def test_a_broken_extension_says_why(tmp_path, python):
    folder = copy_of_package(tmp_path)
    library = next((folder / "vae_fast").glob("_C*"))
    library.unlink()
    library.write_bytes(b"not a library")
    info, warned = report(python(REPORT, path=folder))
    assert info["backend"] == "reference"
    assert "does not load" in info["reason"]
    assert len(warned) == 1


@needs_kernels
def test_build_info_is_honest():
    info = vae_fast.build_info()
    keys = {"backend", "reason", "torch_built", "torch", "cuda", "arch_list", "isa", "isa_in_use", "commit"}
    assert set(info) == keys
    assert info["torch"] == torch.__version__
    assert info["isa_in_use"] in info["isa"]
    assert info["isa"][-1] == "baseline"
    assert isinstance(info["arch_list"], list)
    assert (info["cuda"] is None) == (info["arch_list"] == [])
    assert isinstance(info["commit"], str)
    info["isa"].append("changed")
    assert "changed" not in vae_fast.build_info()["isa"]


def test_build_info_has_the_same_keys_without_the_extension(plain_torch):
    with_c, without = vae_fast.build_info(), plain_torch(vae_fast.build_info)
    assert set(with_c) == set(without)
    assert without["backend"] == "reference"
    assert without["isa"] == []
    assert without["isa_in_use"] is None


@needs_kernels
@pytest.mark.parametrize("name", ["avx512", "avx2", "baseline"])
def test_the_instruction_set_can_be_chosen(name, python):
    if name not in vae_fast.build_info()["isa"]:
        done = python(f"import vae_fast; vae_fast.build_info()  # {name}", check=False, VAE_FAST_ISA=name)
        assert done.returncode != 0
        return
    info, _ = report(python(REPORT, VAE_FAST_ISA=name))
    assert info["isa_in_use"] == name


def test_everything_public_is_exported():
    assert set(vae_fast.__all__) == {*vae_fast.functional.__all__, "build_info", "patch", "patched", "unpatch"}
    assert all(callable(getattr(vae_fast, name)) for name in vae_fast.__all__)
    assert all(getattr(vae_fast, name) is getattr(vae_fast.functional, name) for name in vae_fast.functional.__all__)
