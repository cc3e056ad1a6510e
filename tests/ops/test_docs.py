"""Every public function is documented in the same form."""

import doctest
import inspect

import pytest

import vae_fast

FUNCTIONS = {name: getattr(vae_fast, name) for name in vae_fast.__all__ if not isinstance(getattr(vae_fast, name), type)}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_there_is_an_example(name):
    """tests/test_docstrings.py runs it."""
    found = doctest.DocTestFinder(recurse=False).find(FUNCTIONS[name], name, globs={})
    assert sum(len(t.examples) for t in found) > 0


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n != "build_info"])
def test_every_argument_result_and_error_is_documented(name):
    doc = inspect.getdoc(FUNCTIONS[name])
    for section in ("Args:", "Returns:", "Raises:", "Example:"):
        assert section in doc, section
    arguments = doc.partition("Args:")[2].partition("Returns:")[0]
    for parameter in inspect.signature(FUNCTIONS[name]).parameters:
        assert parameter in arguments, parameter


def test_build_info_documents_its_keys():
    doc = inspect.getdoc(vae_fast.build_info)
    for key in vae_fast.build_info():
        assert f"``{key}``" in doc, key
