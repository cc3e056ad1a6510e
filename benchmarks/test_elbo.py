"""The same cases under pytest-benchmark: pytest benchmarks/ --benchmark-group-by=param:case."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cases import Case, cases

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("contender", ["ours", "eager", "compile"])
@pytest.mark.parametrize("case", cases(DEVICE), ids=lambda c: c.label)
def test_forward_and_backward(benchmark, case: Case, contender: str) -> None:
    step = case.steps(DEVICE)[contender]

    def timed() -> None:
        step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        timed()
    benchmark(timed)
