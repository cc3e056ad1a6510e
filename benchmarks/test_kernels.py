"""The cases of `vae-fast bench` under pytest-benchmark, small: pytest benchmarks/ --benchmark-group-by=param:case

VAE_FAST_BENCH_FULL=1 takes the cases of the README instead.
"""

import os

import pytest
import torch

from vae_fast.bench.case import Bench, Case
from vae_fast.bench.device_time import synchronize
from vae_fast.bench.measure import warm_up
from vae_fast.bench.options import Options
from vae_fast.bench.suites import cases

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPTIONS = Options(device=DEVICE, quick=os.environ.get("VAE_FAST_BENCH_FULL") != "1")
SUITES = ("kernels", "mixtures", "overhead")
PAIRS = [(case, name) for suite in SUITES for case in cases(suite, OPTIONS) for name in case.contenders]


@pytest.mark.parametrize(("case", "contender"), PAIRS, ids=lambda p: p.label if isinstance(p, Case) else p)
def test_forward_and_backward(benchmark, case: Case, contender: str) -> None:
    torch._dynamo.reset()
    try:
        work = Bench(case, DEVICE).work(contender)
    except ImportError as error:
        pytest.skip(str(error))
    warm_up(work, DEVICE)

    def timed() -> None:
        work()
        synchronize(DEVICE)

    benchmark(timed)
