"""Case N of seed S, what it finds, and how that is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from . import checks, donation, files, hostile, shrink
from .families import FAMILIES
from .judge import Finding


@dataclass(frozen=True)
class Generator:
    """Cases of one sort; ``make`` is a pure function of the state of its random generator."""

    make: Callable[[Random], Any]
    examine: Callable[[Any], Finding | None]
    simpler: Callable[[Any], Iterator[Any]]
    snippet: Callable[[Any], str]


GENERATORS = {name: Generator(f.make, checks.examine, shrink.simpler, shrink.snippet) for name, f in FAMILIES.items()}
GENERATORS |= {m.__name__.rsplit(".", 1)[1]: Generator(m.make, m.examine, m.simpler, m.snippet) for m in (hostile, donation, files)}  # type: ignore[attr-defined]
NAMES = tuple(GENERATORS)


@dataclass
class Failure:
    seed: int
    index: int
    name: str
    case: Any
    finding: Finding
    isa: str | None = None

    @property
    def command(self) -> str:
        return f"python -m tests.fuzz --seed {self.seed} --case {self.index}" + (f" --isa {self.isa}" if self.isa else "")

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells one fault from another, as far as a machine can: sort, kind, tensor and the options that choose a formula."""
        options = getattr(self.case, "options", {})
        chosen = tuple(options.get(k) for k in ("space", "scale", "clip", "covariance", "of"))
        return (self.name, self.finding.kind, self.finding.what, *chosen)

    def report(self, seconds: float = 2.0) -> str:
        """The finding, the command that runs it again, and the simplest case like it."""
        g = GENERATORS[self.name]
        case, found = shrink.shrink(self.case, self.finding, g.examine, g.simpler, seconds)
        code = "\n    ".join(g.snippet(case).splitlines())
        return f"{self.name}: {self.finding.kind}: {self.finding.line}\n  {self.command}\n  simplest: {found.line}\n    {code}\n"


def make(seed: int, index: int) -> tuple[str, Any]:
    name = NAMES[index % len(NAMES)]
    return name, GENERATORS[name].make(Random(f"{seed}/{index}"))


def run(seed: int, index: int, isa: str | None = None) -> Failure | None:
    """Case ``index`` of ``seed``: None if all is well."""
    name, case = make(seed, index)
    found = GENERATORS[name].examine(case)
    return None if found is None else Failure(seed, index, name, case, found, isa)
