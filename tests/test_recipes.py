"""The recipes: the same losses from the same noise, with the package if it is installed and with a frozen copy of it; the page."""

import importlib.util
import json
import os
import sys

import interpreters
import pytest
from conftest import ROOT

FOLDER = ROOT / "examples" / "recipes"
sys.path.insert(0, str(FOLDER))
from _recipe import RECIPES  # noqa: E402

FROZEN = [name for name, needs in RECIPES.items() if needs not in (None, "pyro")]
INSTALLED = [name for name, needs in RECIPES.items() if needs is None or importlib.util.find_spec(needs)]
CASES = [(name, False) for name in INSTALLED] + [(name, True) for name in FROZEN]
BOTH = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {folder!r})
import _recipe
recipe = importlib.import_module({name!r})
{change}
print(json.dumps([_recipe.losses(recipe, swapped, {frozen}) for swapped in (False, True)]))
"""


def both(name, frozen, change=""):
    """In an interpreter of its own: packages change what they import."""
    code = BOTH.format(folder=str(FOLDER), name=name, frozen=frozen, change=change)
    done = interpreters.run("-c", code, environment=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize(("name", "frozen"), CASES)
def test_the_same_losses_from_the_same_noise(name, frozen):
    before, after = both(name, frozen)
    assert after == pytest.approx(before, rel=2e-5)
    assert before[-1] < before[0]


def test_a_wrong_swap_is_seen():
    change = "import functools; recipe.vae_fast.elbo_loss = functools.partial(recipe.vae_fast.elbo_loss, beta=0.9)"
    before, after = both("pytorch_example", False, change)
    assert after != pytest.approx(before, rel=2e-5)


if "lightning_module" in INSTALLED:

    def test_lightnings_own_loop_trains_alike():
        change = "print(json.dumps([recipe.trained(swapped, 4) for swapped in (False, True)])); sys.exit(0)"
        before, after = both("lightning_module", False, change)
        assert len(before) == 4 and after == pytest.approx(before, rel=2e-5)


def test_every_program_is_a_recipe():
    assert {p.stem for p in FOLDER.glob("*.py")} == {*RECIPES, "_recipe", "page"}


def test_the_page_shows_them():
    done = interpreters.run(FOLDER / "page.py", "--check", environment=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr


def test_a_package_that_is_not_there_is_named():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import _recipe; _recipe.package('no_such_package')"
    done = interpreters.run("-c", code, FOLDER, environment=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode != 0
    assert "MissingExtraError: this recipe needs no_such_package: install it with `pip install '.[recipes]'`" in done.stderr
