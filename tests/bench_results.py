"""Runs of `vae-fast bench` and made-up results that its tests share."""

import functools
import random

from vae_fast import cli
from vae_fast.bench import machine

SMALL = ["--quick", "--shape", "64,16,4", "--contenders", "ours", "eager", "--seconds", "0.01", "--threads", "1"]


def run(*options):
    return cli.main(["bench", *map(str, options)])


def synthetic(case, contender, seconds):
    return {
        "suite": "kernels", "case": case, "name": case, "contender": contender, "direction": "both", "shape": {"B": 1}, "dtype": "float32",
        "seconds": seconds, "q20": seconds * 0.98, "q80": seconds * 1.02, "peak_bytes": 1 << 20, "least_bytes": 10**6, "flops": 10**6,
        "gflops": 1e-3 / seconds, "copy_gb_per_second": 40.0, "fma_gflops": 100.0,
        "limit_seconds": 1e-4, "usual_limit_seconds": 1e-4, "limit": "copy",
        "reached": 1e-4 / seconds, "memory_target": None, "device": "cpu", "machine": "any", "threads": 1,
    }  # fmt: skip


def result(slowed=None, by=1.0, noise=0.0, load=1.0, seed=0):
    """A result of four cases on a machine that is ``load`` times as slow, each figure disturbed by up to ``noise``."""
    generator = random.Random(seed)
    rows = []
    for i, case in enumerate(("elbo", "kl", "sample", "mixture")):
        limit = 1e-4 * load * (1 + noise * generator.random())
        for contender, times in (("ours", 2), ("eager", 10)):
            seconds = 1e-4 * (i + 1) * times * load * (1 + noise * generator.random())
            seconds *= by if (case, contender) == (slowed, "ours") else 1.0
            rows.append(synthetic(case, contender, seconds) | {"usual_limit_seconds": limit})
    return {"suite": "kernels", "machine": here(), "options": {"quick": False}, "rows": rows}


def here(**others):
    """This machine's facts with one thread, and others in place of some of them."""
    return _facts() | {"threads": 1, "commit": "unknown"} | others


_facts = functools.cache(lambda: machine.facts("cpu"))
