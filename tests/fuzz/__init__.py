"""A seeded fuzzer of the public functions and of the readers of files.

Every case is a pure function of (seed, index): ``python -m tests.fuzz --seed S --case N`` runs it again, alone, makes it as simple as
still fails, and prints a snippet to paste. ``make fuzz`` runs until it is stopped. The parts:

- ``case``: what a case of an op consists of, and the tensors it stands for: sizes, dtypes, values, memory layouts;
- ``family``, ``families``, ``mixture_families``: the ops: their axes, the public call, and the plain formula of ``tests/ops``, in float64
  the truth;
- ``judge``: the numerical contract as a verdict about one tensor; ``checks``: a case is run, judged, and run again in other ways;
- ``shrink``: the simplest case that still fails the same way, as a snippet;
- ``hostile``: arguments that must be refused, in one line that names them; ``donation``: memory that must not be overwritten;
- ``files``: damaged and forged checkpoints, ``.npy`` and IDX files;
- ``rounds``: case N of seed S and the report of a failure; ``__main__``: the command line.

Why not hypothesis, which the other random tests use: its cases are replayed by a blob or a database of its version and not by a number,
a run remembers every case (it slows down and grows over hours), and it stops at a test's first failure, where a long run should go on
and list distinct ones. What it does better, shrinking, is simple here: each axis has a plain choice.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ops"))  # oracle, mixtures
