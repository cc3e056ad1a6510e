"""The examples in the docstrings of every module run, on both backends where they compute."""

import ast
import doctest
import importlib
import inspect
import pkgutil

import pytest

import vae_fast

ELSEWHERE = ("vae_fast._C", "vae_fast.__main__")  # compiled, a command
MODULES = sorted(found.name for found in pkgutil.walk_packages(vae_fast.__path__, "vae_fast.") if found.name not in ELSEWHERE)
MEASURES = [name for name in MODULES if name.startswith("vae_fast.bench.")]
#: Modules whose public names are explained by examples, apart from the functions of tests/ops/test_docs.py.
EXPLAINED = {f"vae_fast.models.{name}" for name in ("vae", "mixture", "mdn", "bayesian", "priors")}
EXPLAINED |= {f"vae_fast.models.{name}" for name in ("_mixture_module", "_mixture_distribution")}
EXPLAINED |= {f"vae_fast.plots.{name}" for name in ("explorer", "page", "readings")}
EXPLAINED |= {f"vae_fast.training.{name}" for name in ("fit", "settings", "checkpoint")}
EXPLAINED |= {f"vae_fast.data.{name}" for name in ("images", "toys", "values")} | {"vae_fast.nn", "vae_fast.functional._values"}
# A module that has moved says so when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def run(name):
    done = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert done.failed == 0
    assert done.attempted > 0 or name not in EXPLAINED


@pytest.mark.parametrize("name", sorted(set(MODULES) - set(MEASURES)))
def test_examples_run(name, backend):
    run(name)


@pytest.mark.parametrize("name", MEASURES)
def test_examples_of_the_benchmarks_run(name):
    run(name)


@pytest.mark.parametrize("name", MODULES)
def test_no_example_is_hidden(name):
    """A decorator that is not transparent would hide its function's examples from doctest."""
    module = importlib.import_module(name)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, kinds)]
    found = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    assert len(found) == sum(">>>" in doc for doc in docs)


def test_the_explained_modules_are_there():
    assert set(MODULES) >= EXPLAINED
