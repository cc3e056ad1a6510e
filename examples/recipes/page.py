"""Write docs/recipes.md: of each recipe its words, the lines that change, and what a step gains where it was measured.

    python examples/recipes/page.py [--check | --measure]

--measure first times every recipe (pip install '.[recipes]') into benchmarks/results/<machine>/recipes.json: on a quiet machine.
"""

import argparse
import difflib
import importlib
import inspect
import json
import sys
import warnings
from importlib import metadata
from types import ModuleType

import torch
from _recipe import RECIPES, ROOT, losses, seconds

from vae_fast.bench import machine, report, sources
from vae_fast.errors import VaeFastError
from vae_fast.files import write_json

PAGE = ROOT / "docs" / "recipes.md"
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = {"pyro": "pyro-ppl", "scvi": "scvi-tools"}
HEAD = """\
# Recipes

Each is a program in `examples/recipes/` that trains a few steps both ways: `python examples/recipes/NAME.py` prints the losses side by
side and the time of a step. The tests run it with the package if that is installed, and with a frozen copy of what the package computes
otherwise; the losses agree to rounding. `noise` is given to both ways so that they can be compared: leave `noise=` out in your own code.

How much a whole step gains depends on the share that the swapped lines have in it. Where a network takes nearly all of the time, it gains
nothing.
"""
CHANGED = " The code it measured has changed since."


def difference(recipe: ModuleType) -> str:
    """From ``before`` to ``after``, without their docstrings and names."""
    sides = []
    for part in (recipe.before, recipe.after):
        text = inspect.getsource(part).replace(f"def {part.__name__}(", "def loss(", 1).replace(f'    """{part.__doc__}"""\n', "")
        sides.append(text.splitlines())
    return "\n".join(list(difflib.unified_diff(*sides, n=100, lineterm=""))[3:])


def title(recipe: ModuleType) -> tuple[str, str]:
    """The docstring's first words, up to the colon, and the rest."""
    name, _, words = (recipe.__doc__ or "").strip().partition(": ")
    return name, words[0].upper() + words[1:]


def newest() -> dict | None:
    """The result of the machine that measured last."""
    found = [(json.loads(path.read_text()), path.parent.name) for path in RESULTS.glob("*/recipes.json")]
    return max(found, key=lambda pair: (pair[0]["machine"]["date"], pair[1]))[0] if found else None


def table(result: dict | None) -> str:
    """What a step gains."""
    if result is None:
        return ""
    cells = [["recipe", "package", "step before", "after", "gain"]]
    for name, row in result["rows"].items():
        a, b = row["seconds"]
        named = title(importlib.import_module(name))[0].replace("`", "")
        cells.append([named, row["package"] or "–", report.seconds(a), report.seconds(b), report.times(a / b)])
    facts = result["machine"]
    changed = CHANGED if sources.stale(facts, "kernels") else ""
    return f"{report.markdown(cells)}\n\n{report.footer(facts, [])}{changed}\n"


def page() -> str:
    """The page's text."""
    parts = [HEAD, table(newest())]
    for name in RECIPES:
        recipe = importlib.import_module(name)
        head, words = title(recipe)
        parts.append(f"## {head}\n\n{words}\n\n```diff\n{difference(recipe)}\n```\n\n`examples/recipes/{name}.py`\n")
    return "\n".join(part for part in parts if part)


def measure() -> None:
    """Time every recipe, after a look that both ways train alike."""
    torch.set_num_threads(2)
    facts = machine.facts("cpu") | {"threads": 2}
    rows = {}
    for name, needs in RECIPES.items():
        recipe = importlib.import_module(name)
        a, b = (losses(recipe, swapped) for swapped in (False, True))
        if not torch.allclose(torch.tensor(a), torch.tensor(b), rtol=1e-4):
            raise SystemExit(f"{name}: the losses {a} and {b} are not the same")
        version = f"{needs} {metadata.version(PACKAGES.get(needs, needs))}" if needs else None
        rows[name] = {"package": version, "seconds": seconds(recipe)}
        print(name, *(f"{s * 1e3:.2f} ms" for s in rows[name]["seconds"]))
    write_json(report.script_place(str(RESULTS / "{machine}"), "recipes.json", facts), {"machine": facts, "rows": rows})


def main() -> int:
    """Write the page, or say whether it is what would be written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is not up to date")
    parser.add_argument("--measure", action="store_true", help="time the recipes first")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")  # of the packages
    try:
        if args.measure:
            measure()
        text = page()
    except VaeFastError as error:
        print(error, file=sys.stderr)
        return 2
    if not args.check:
        PAGE.write_text(text)
    elif PAGE.read_text().replace(CHANGED, "") != text.replace(CHANGED, ""):
        print(f"{PAGE.relative_to(ROOT)} is not up to date: run python examples/recipes/page.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
