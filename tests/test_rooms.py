"""The rooms of the house: who imports whom is what ``vae_fast.__doc__`` says, and there is no way round in a circle.

The imports are read from the source, those inside functions too. A name that is taken from a package counts as the module that has it.
What stands under ``TYPE_CHECKING`` never runs and does not count.
"""

import ast
import functools
import re
from pathlib import Path

import pytest

import vae_fast
from vae_fast import _moved

ROOT = Path(__file__).parents[1]
#: Modules of the package's top that share a room; every other module or package there is one of its own.
SHARED = {
    "base": ("errors", "files", "_archive", "_world", "_as_command", "_moved", "_optional"),
    "backend": ("_backend", "_built_for", "_dtensor", "_library", "_processor"),
    "reference": ("reference", "terms", "likelihoods", "_precision", "_samplers", "_scales"),
    "cli": ("cli", "__main__"),
}


class Imports(ast.NodeVisitor):
    """The full names a module imports, wherever in it."""

    def __init__(self):
        self.names = set()

    def visit_If(self, node):
        for child in node.orelse if "TYPE_CHECKING" in ast.unparse(node.test) else ast.iter_child_nodes(node):
            self.visit(child)

    def visit_Import(self, node):
        self.names.update(alias.name for alias in node.names)

    def visit_ImportFrom(self, node):
        start = "." * node.level + (node.module or "")
        self.names.update(f"{start}.{alias.name}" for alias in node.names)


def imports_of(source):
    visitor = Imports()
    visitor.visit(ast.parse(source))
    return visitor.names


def read(folder):
    """The modules of a package by name, each with those of the package that it imports."""
    sources = {}
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()

    def module(name):
        return name if name in sources or "." not in name else module(name.rpartition(".")[0])

    assert not [name for name, text in sources.items() if any(n.startswith(".") for n in imports_of(text))], "expected absolute imports"
    found = {name: {module(n) for n in imports_of(text) if n.split(".")[0] == folder.name} - {name} for name, text in sources.items()}
    assert set().union(*found.values()) <= set(found)
    return found


def room(module):
    top = module.split(".")[1] if "." in module else module
    return next((name for name, members in SHARED.items() if top in members), top)


def between_rooms(modules):
    """The rooms, each with those it imports from."""
    arrows = {room(module): set() for module in modules}
    for module, imported in modules.items():
        arrows[room(module)] |= {room(other) for other in imported} - {room(module)}
    return arrows


def circle(arrows):
    """Some way from a place back to it, or None."""
    done = set()

    def walk(place, way):
        if place in way:
            return [*way[way.index(place) :], place]
        if place not in done:
            for other in sorted(arrows[place]):
                found = walk(other, [*way, place])
                if found:
                    return found
            done.add(place)
        return None

    return next(filter(None, (walk(place, []) for place in sorted(arrows))), None)


@functools.cache
def house():
    """The modules of the package, read by the first test that asks: not by every process that collects."""
    return read(ROOT / "vae_fast")


def test_no_circle_between_rooms():
    assert circle(between_rooms(house())) is None


def test_no_circle_between_modules():
    assert circle(house()) is None


def test_the_rooms_arrows_are_those_that_are_written_down():
    lines = re.findall(r"^    (\w+) +<- +(.+?) *$", vae_fast.__doc__, re.MULTILINE)
    written = {name: set() if stands_on == "nothing" else set(stands_on.split(", ")) for name, stands_on in lines}
    assert written == between_rooms(house())


@pytest.mark.parametrize("folder", ["examples", "benchmarks"])
def test_what_is_shown_to_users_takes_nothing_private(folder):
    """Neither a private module nor a private name of a public one: ``data._load`` is as private as ``_data``."""
    for path in (ROOT / folder).rglob("*.py"):
        names = {n for n in imports_of(path.read_text()) if n.split(".")[0] == "vae_fast"}
        assert not [n for n in names if re.search(r"\._(?!_)", n)], path
        local = {name.rpartition(".")[2] for name in names}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in local:
                assert not re.match("_(?!_)", node.attr), f"{path}:{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("folder", ["vae_fast", "examples", "benchmarks", "tests", "tools"])
def test_nobody_here_goes_by_a_path_that_has_moved(folder):
    """Nor imports a module of ours that is not there: an installed release of before may have it."""
    for path in (ROOT / folder).rglob("*.py"):
        text = path.read_text()
        assert not imports_of(text) & set(_moved.MOVED), path
        modules = {n.module for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom) and n.module and not n.level}
        modules |= {a.name for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import) for a in n.names}
        ours = {name for name in modules if name.split(".")[0] == "vae_fast"}
        assert ours <= {*house(), "vae_fast._built_for"}, path


@pytest.mark.parametrize("path", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))])
def test_the_pages_import_nothing_private(path):
    text = (ROOT / path).read_text()
    assert not re.search(r"(?:from|import) vae_fast(?:\.\w+)*\._|vae_fast\._", text)


def test_the_reading_of_imports_is_not_blind(tmp_path):
    """An import in a function, and one of a package's name, count; one for type checkers does not."""
    folder = tmp_path / "house"
    for path, text in {
        "__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.a\nelse:\n    import house.c",
        "a.py": "def f():\n    from house import b",
        "b.py": "from house.c.d import name",
        "c/__init__.py": "",
        "c/d.py": "import house.a, os",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    found = read(folder)
    assert found["house"] == {"house.c"}
    assert found["house.a"] == {"house.b"}
    assert circle(found) == ["house.a", "house.b", "house.c.d", "house.a"]
    assert circle({"a": {"b"}, "b": set()}) is None
