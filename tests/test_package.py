"""`import vae_fast` and what is reached through it: submodules that load when they are named, and the errors a user may catch."""

import ast
import inspect
import pkgutil

import pytest

import vae_fast
from vae_fast import _moved, errors

PUBLIC = sorted(module.name for module in pkgutil.iter_modules(vae_fast.__path__) if not module.name.startswith("_"))
PUBLIC_NAME = {"vae_fast.checkpoint": "load", "vae_fast.distributed": "World", "vae_fast.toys": "toy"}
MOVED = sorted(path.removeprefix("vae_fast.") for path in _moved.MOVED)


def test_submodules_load_when_they_are_named(python):
    """In a process that imported nothing else, without the extras, and with nothing loaded before."""
    done = python(
        f"""
import sys
for extra in ("matplotlib", "sklearn", "scipy", "tqdm"):
    sys.modules[extra] = None
import vae_fast
assert "vae_fast.training" not in sys.modules and "vae_fast.plots" not in sys.modules
assert "torch._dynamo" not in sys.modules and "torch.distributed.tensor" not in sys.modules  # seconds, and for torch.compile alone
for name in {PUBLIC!r}:
    assert getattr(vae_fast, name).__name__ == "vae_fast." + name
    assert name in dir(vae_fast)
print(vae_fast.models.MLPVAE.__name__, vae_fast.elbo_loss.__name__ in dir(vae_fast))
""",
        fresh=True,
    )
    assert done.stdout.split() == ["MLPVAE", "True"]


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'vae_fast' has no attribute 'model'"):
        _ = vae_fast.model
    assert not hasattr(vae_fast, "__main__")
    assert not hasattr(vae_fast, "_nothing")


def test_type_checkers_see_the_same_submodules():
    tree = ast.parse(inspect.getsource(vae_fast))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert sorted(alias.asname for node in block.body for alias in node.names) == sorted(PUBLIC + MOVED)


@pytest.mark.parametrize(("old", "new"), sorted(_moved.MOVED.items()))
@pytest.mark.parametrize("way", ["import {old} as it", "from {room} import {leaf} as it", "import vae_fast; it = vae_fast.{leaf}"])
def test_an_old_path_is_the_same_module_and_warns_once(python, old, new, way):
    room, _, leaf = old.rpartition(".")
    done = python(f"""
import sys, warnings
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as said:
    {way.format(old=old, room=room, leaf=leaf)}
    import {old}, {old}
    from {old} import {PUBLIC_NAME[old]} as name
import {new} as there
assert it is there is sys.modules[{old!r}] is vae_fast.{leaf} and name is there.{PUBLIC_NAME[old]}
assert (there.__name__, there.__spec__.name) == ({new!r}, {new!r})
import importlib, pickle
assert importlib.reload(there) is there
assert pickle.loads(b"c{old}\\n{PUBLIC_NAME[old]}\\n.") is there.{PUBLIC_NAME[old]}
for warning in said:
    print(warning.category.__name__, warning.filename, warning.lineno, warning.message)
""")
    assert done.stdout.splitlines() == [f"DeprecationWarning <string> 5 {old} has moved: import {new}"]


def test_the_new_paths_and_all_rooms_warn_of_nothing(python):
    """Nothing in the package itself goes by an old path."""
    done = python(f"""
import importlib, pkgutil, vae_fast
for found in pkgutil.walk_packages(vae_fast.__path__, "vae_fast."):
    if not found.name.endswith(("__main__", "._C", "._built_for")):
        importlib.import_module(found.name)
import sys
assert not set(sys.modules) & set({sorted(_moved.MOVED)!r})
""")
    assert done.stderr == ""


@pytest.mark.parametrize("first", ["vae_fast.training.fit", "vae_fast.training.step", "vae_fast.training"])
def test_fit_is_the_function_whatever_is_imported_first(python, first):
    """A module of the same name lies beside it."""
    done = python(f"import {first}; import vae_fast.training.fit; from vae_fast.training.fit import adam; print(vae_fast.training.fit)")
    assert done.stdout.startswith("<function fit")


def test_every_error_the_package_defines_can_be_imported_from_errors(python):
    """Whatever any module defines: errors and warnings."""
    done = python("""
import importlib, inspect, pkgutil, vae_fast
for found in pkgutil.walk_packages(vae_fast.__path__, "vae_fast."):
    if not found.name.endswith(("__main__", "._C", "._built_for")):
        module = importlib.import_module(found.name)
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, BaseException) and kind.__module__ == found.name:
                print(found.name, name)
""")
    found = [line.split() for line in done.stdout.splitlines()]
    assert sorted(name for _, name in found) == sorted(errors.__all__)
    assert {module for module, _ in found} == {"vae_fast.errors"}


def test_every_error_is_a_vae_fast_error_and_a_built_in_one():
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert kind.__doc__
        if issubclass(kind, Warning) or kind in (errors.VaeFastError, errors.Terminated):
            continue
        assert issubclass(kind, errors.VaeFastError)
        assert issubclass(kind, ValueError | ImportError | ArithmeticError | RuntimeError)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("VAE_FAST_BACKEND", "fast", "VAE_FAST_BACKEND='fast': expected one of auto, compiled, reference"),
        ("VAE_FAST_ISA", "mmx", "VAE_FAST_ISA=mmx: expected one of"),
    ],
)
def test_a_bad_environment_variable_fails_the_import(python, variable, value, words):
    if variable == "VAE_FAST_ISA" and vae_fast.build_info()["backend"] == "reference":
        pytest.skip("there are no kernels to choose from")
    done = python("import vae_fast", check=False, **{variable: value})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"vae_fast.errors.SettingError: {words}")
