"""What the documentation's build adds to MkDocs: formulas as MathML, so that no page runs a script for them, and the docstrings' examples.

Used by mkdocs.yml twice: as a hook, and as an extension of Griffe, which reads the docstrings.
"""

import html
import re
from typing import Any

from griffe import Extension, Object
from latex2mathml.converter import convert


def on_page_content(text: str, **_: Any) -> str:
    r"""``\( \)`` and ``\[ \]``, as pymdownx.arithmatex leaves them, become MathML."""
    text = re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', lambda m: convert(html.unescape(m[1])), text, flags=re.DOTALL)
    return re.sub(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', lambda m: convert(html.unescape(m[1]), "block"), text, flags=re.DOTALL)


def markdown(text: str) -> str:
    """A docstring's reStructuredText (roles, formulas, tables) as Markdown, and ``Example:`` as ``Examples:``, whose lines are code."""
    text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
    text = re.sub(r"^( +\w+(?:, \w+)+,)\n +(?=[\w, ]+: )", r"\1 ", text, flags=re.MULTILINE)  # names of arguments over two lines
    text = re.sub(
        r"^( *)\.\. math:: (.*(?:\n\1 +\S.*)*)", lambda m: f"{m[1]}$$\n{m[1]}{' '.join(m[2].split())}\n{m[1]}$$", text, flags=re.MULTILINE
    )
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return re.sub(r"^( *)(=+ +=[= ]*\n(?:.*\n)*?(?:\1\S.*\n)*\1=+ +=[= ]*)$", r"\1```text\n\1\2\n\1```", text, flags=re.MULTILINE)


class Docstrings(Extension):
    """Every docstring as Markdown."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Of every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
