"""The picture of the front page: bars of time, as SVG text that is the same for the same results on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_WIDTH, _LEFT, _FULL, _BAR, _GAP, _HEAD = 560, 16, 528, 16, 10, 38
_STYLE = """text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: #1f2328; }
.title { font-size: 15px; font-weight: 600; } .name { font-weight: 600; } .note { font-size: 11px; fill: #59636e; }
.ours { fill: #0a7d4b; } .other { fill: #b6bec8; }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .note { fill: #9198a1; }
  .ours { fill: #2ea36b; } .other { fill: #4a525c; } }"""


class Bar(NamedTuple):
    """One bar: what ran, for how long, and what is written beside it."""

    name: str
    seconds: float
    label: str
    ours: bool = False


def svg(title: str, notes: Sequence[str], groups: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """Groups of bars, the longest of each group at full width.

    Args:
        title: of the picture.
        notes: lines below the bars: the machine.
        groups: what was computed, and its bars from top to bottom.

    Returns:
        The SVG; it follows the reader's light or dark mode.

    Example:
        >>> text = svg("Time", ["a CPU"], [("the ELBO", [Bar("plain", 4.0, "4.0 s"), Bar("ours", 1.0, "1.0 s", ours=True)])])
        >>> 'width="528"' in text and 'width="132"' in text
        True
    """
    lines, y = [], _HEAD
    for name, bars in groups:
        lines.append(f'<text class="name" x="{_LEFT}" y="{y + 12}">{escape(name)}</text>')
        y += 20
        longest = max(bar.seconds for bar in bars)
        for bar in bars:
            width = max(2, round(_FULL * bar.seconds / longest))
            kind = "ours" if bar.ours else "other"
            lines.append(f'<rect class="{kind}" x="{_LEFT}" y="{y}" width="{width}" height="{_BAR}" rx="2"/>')
            text = f"{bar.name}: {bar.label}"
            # Beside the bar, or, where it is too long for that, on it.
            place = _LEFT + width + 8 if width < 0.7 * _FULL else _LEFT + 8
            lines.append(f'<text x="{place}" y="{y + 13}">{escape(text)}</text>')
            y += _BAR + 3
        y += _GAP
    for note in notes:
        y += 14
        lines.append(f'<text class="note" x="{_LEFT}" y="{y}">{escape(note)}</text>')
    height = y + 10
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img">'
    return "\n".join(
        [
            head,
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            f'<text class="title" x="{_LEFT}" y="24">{escape(title)}</text>',
            *lines,
            "</svg>\n",
        ]
    )
