"""How a run of the benchmarks is made, and what its rows have in common: what the suites of cases and of training both stand on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vae_fast.bench import machine

Row = dict[str, Any]


def _ignore(line: str) -> None:
    pass


@dataclass(frozen=True)
class Options:
    """How a run is made.

    Attributes:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        quick: small cases and short times, to see that everything works.
        shapes: sizes of the user's choice in place of a suite's own.
        dtype: in place of float32, for suites that can; None is the suite's own.
        contenders: None is every one of a case.
        seconds: measuring time per contender and case; None is 1, or 0.1 if quick.
        rounds: turns that each contender gets.
        deadline: what starts after this time (of ``time.monotonic``) is skipped.
        full: train to a loss of 100.
        slower: seconds added to ours by name of the case, as a share: to see a comparison fail.
        say: told what is measured and what is skipped.
    """

    device: str = "cpu"
    quick: bool = False
    shapes: Sequence[tuple[int, int, int]] = ()
    dtype: str | None = None
    contenders: Sequence[str] | None = None
    seconds: float | None = None
    rounds: int = 7
    deadline: float = float("inf")
    full: bool = False
    slower: Mapping[str, float] = field(default_factory=dict)
    say: Callable[[str], None] = _ignore

    @property
    def recorded(self) -> dict[str, Any]:
        """What a later run needs to measure the same cases."""
        own = {"quick": self.quick, "full": self.full, "shapes": [list(s) for s in self.shapes], "dtype": self.dtype}
        return own | {"seconds": self.measuring_time, "contenders": None if self.contenders is None else list(self.contenders)}

    @property
    def measuring_time(self) -> float:
        """Seconds per contender and case."""
        return self.seconds if self.seconds is not None else 0.1 if self.quick else 1.0


_known: dict[tuple[str, int], dict[str, Any]] = {}


def facts_of(device: str) -> dict[str, Any]:
    """The facts that every row carries; the rest is in the head of the file."""
    key = device, torch.get_num_threads()
    if key not in _known:
        found = machine.facts(device)
        _known[key] = {
            "machine": found.get("gpu") or found["processor"],
            "device": found["device"],
            "torch": found["torch"],
            "cuda": found["cuda"],
            "commit": found["commit"],
            "date": found["date"],
        }
    return _known[key]
