"""Write examples/README.md: a section of each example, made by the example itself from its JSON file in pictures/.

    python examples/readme.py [--check]

The list of examples is ``EXAMPLES`` in _common.py; an example's ``section(results)`` gives its Markdown.
"""

import argparse
import importlib
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from _common import EXAMPLES, PICTURES

from vae_fast.bench.sources import DIRTY

HEAD = """\
# Examples

Written by `python examples/readme.py` from the results in `pictures/`: no figure here is typed by hand. Each script takes `--help`,
`--quick` (seconds), `--out` and `--seed`; its JSON file in `pictures/` says with which seed, command and commit it was made. The examples
with images look for MNIST and Frey Faces in `$VAE_FAST_DATA`, and with `--quick` use the digits that come with scikit-learn. They ran on
two CPU cores, in minutes: smaller networks, less data and fewer epochs than the best results need. Those of the thesis have its own
setting and take hours, and so do the importance-weighted autoencoders; they go on where they were stopped, and keep their models in `runs`.
`make experiments` runs them all with `--quick` and prints their numbers; `python examples/all.py --out DIR` runs them in full, and goes on
where it was stopped.{times} Log-likelihoods are means in nats per point.

The two lines swapped in an existing VAE, as an executed notebook: [swap.ipynb](swap.ipynb) (`python examples/notebook.py` writes it).
"""


def commits(value: object) -> Iterator[str]:
    """Every commit that a result names, at any depth."""
    if isinstance(value, list):
        for part in value:
            yield from commits(part)
    elif isinstance(value, dict):
        for key, part in value.items():
            if key in ("commit", "commits"):
                yield from [part] if isinstance(part, str) else part
            else:
                yield from commits(part)


def page(results: Path = PICTURES) -> str:
    """The README's text.

    Raises:
        ValueError: naming the file and the commit, if a result is of code that no commit holds.
    """
    found = [json.loads((results / f"{name}.json").read_text()) for name in EXAMPLES]
    for name, values in zip(EXAMPLES, found, strict=True):
        for commit in commits(values):
            if commit.endswith(DIRTY) or commit == "unknown":
                raise ValueError(f"{name}.json has commit {commit!r}: expected one that holds its code; commit, run the example again")
    head = HEAD.format(times=times_of_all(results / "times.json"))
    sections = [importlib.import_module(name).section(values) for name, values in zip(EXAMPLES, found, strict=True)]
    blocks = [block for part in (head, *sections) for block in part.strip().split("\n\n")]
    return "\n\n".join(block if block[0] in "#|!" else filled(block) for block in blocks) + "\n"


def times_of_all(path: Path) -> str:
    """How long the whole set took, if ``python examples/all.py --record`` has been run."""
    if not path.exists():
        return ""
    found = json.loads(path.read_text())
    examples = found["examples"]
    longest = sorted(((row["seconds"], name) for name, row in examples.items()), reverse=True)[:3]
    hours = sum(row["seconds"] for row in examples.values()) / 3600.0
    most = ", ".join(f"{name} takes {seconds / 60.0:.0f} minutes" for seconds, name in longest)
    return f" That takes {hours:.1f} hours on {found['machine']}, of which {most}."


def filled(text: str) -> str:
    """A paragraph with its lines broken anew, as figures have other lengths than their names."""
    return textwrap.fill(" ".join(text.split()), 140, break_long_words=False, break_on_hyphens=False)


def main() -> int:
    """Write the page, or say whether it is what would be written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is not up to date")
    args = parser.parse_args()
    path = Path(__file__).parent / "README.md"
    try:
        text = page()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not args.check:
        path.write_text(text)
    elif not path.exists() or path.read_text() != text:
        print(f"{path} is not up to date: run python examples/readme.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
