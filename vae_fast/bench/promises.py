"""What is promised of a row: a ratio to what else ran in the same run, and a share of the limit that the same run measured.

No promise is a time: another machine's milliseconds say nothing about this one. What holds on every processor is in the first half; ratios
that depend on how fast the alternative happens to be there are promised for the processors that they were set on, and for no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = dict[str, Any]
#: Ours is at least so many times as fast as anything else a user has, our own other routes included, in every row.
NEVER_BELOW = 0.98

#: By case: the least share of the limit, on every CPU; the ELBO's are set by a copy, the mixtures' by multiply-adds.
_CPU_SHARES = {
    "elbo_loss, logits, B=8192 D=784 L=20": 0.80,
    "elbo_loss, clipped probs, B=8192 D=784 L=20": 0.85,
}
_CPU_MULTIPLY_ADDS = {"mixture_log_prob": 0.40, "EM iteration": 0.40}  # by name, where multiply-adds are what limits the case
_CPU_RATIOS: dict[str, dict[str, float]] = {"reparameterize_with_kl, B=8192 L=20": {"eager": 4.5}}

#: By processor and CPU threads, then case: ratios beyond those.
_EPYC: dict[str, dict[str, float]] = {
    "elbo_loss, logits, B=8192 D=784 L=20": {"eager": 9, "compile": 3},
    "elbo_loss, clipped probs, B=8192 D=784 L=20": {"eager": 12, "compile": 2.5},
    "elbo_loss, logits, B=100 D=784 L=20": {"eager": 3, "compile": 2.5},
    "reparameterize_with_kl, B=8192 L=20": {"compile": 5},
    "mixture_log_prob, N=100000 K=10 D=2": {"distributions": 10, "compile": 3},
    "mixture_log_prob, N=100000 K=64 D=16": {"distributions": 150, "compile": 1.5},
    "mixture_log_prob, N=20000 K=100 D=64": {"distributions": 150, "compile": 1},
    "mixture_log_prob, N=5000 K=50 D=784": {"distributions": 150},
    "EM iteration, N=100000 K=64 D=16": {"scikit-learn": 8},
    "total_correlation, B=2048 L=10": {"eager": 20, "compile": 4},
    "negative_binomial_log_prob, B=1024 G=2000": {"eager": 12, "compile": 4},
    "negative_binomial_log_prob, CSR, B=1024 G=2000": {"dense": 2},
    "zero_inflated_negative_binomial_log_prob, B=1024 G=2000": {"eager": 12, "compile": 4},
    "zero_inflated_negative_binomial_log_prob, CSR, B=1024 G=2000": {"dense": 2},
    "VAE 784-500-500-20 on MNIST, one epoch of 550 steps": {"eager": 1.25},
}
_MIXTURES_CUDA: dict[str, float] = {"distributions": 20, "keops": 2}
_H200: dict[str, dict[str, float]] = {
    "elbo_loss, logits, B=65536 D=784 L=20": {"eager": 5, "compile": 1.3},
    "elbo_loss, clipped probs, B=65536 D=784 L=20": {"eager": 5, "compile": 1.3},
    "elbo_loss, logits, B=100 D=784 L=20": {"eager": 3, "compile": 1.3},
    "reparameterize_with_kl, B=1048576 L=20": {"eager": 5, "compile": 1.3},
    "mixture_log_prob, N=100000 K=64 D=16": _MIXTURES_CUDA,
    "mixture_log_prob, N=200000 K=100 D=64": _MIXTURES_CUDA,
    "mixture_log_prob, N=100000 K=256 D=64": _MIXTURES_CUDA,
    "VAE 784-500-500-20 on MNIST, one epoch of 550 steps": {"eager": 1.25},
}
_H200_COPY, _H200_LARGE = 0.90, 256 << 20  # the share of the copy limit from so many bytes on
_H200_SHARES = {"mixture_log_prob, N=100000 K=256 D=64": 0.50}


def least(row: Row) -> float:
    """The least ratio of another contender's time to ours, in the same run, that is promised.

    Args:
        row: the other contender's: its ``case``, ``contender``, ``device``, ``machine`` (the processor's or GPU's name) and ``threads``.

    Example:
        >>> row = {"case": "gaussian_kl, B=8192 L=20", "contender": "eager", "device": "cpu", "machine": "AMD EPYC", "threads": 2}
        >>> least(row), least(row | {"case": "elbo_loss, logits, B=8192 D=784 L=20"})
        (0.98, 9)
    """
    tables: list[Mapping[str, Mapping[str, float]]] = []
    if row["device"] == "cpu":
        tables += [_CPU_RATIOS, _EPYC if row["machine"].startswith("AMD EPYC") and row["threads"] == 2 else {}]
    elif "H200" in row["machine"]:
        tables += [_H200]
    return max([NEVER_BELOW, *(t.get(row["case"], {}).get(row["contender"], NEVER_BELOW) for t in tables)])


def share(row: Row) -> float | None:
    """The least share of the limit of the same run that ours is promised to reach; None where nothing is.

    Args:
        row: ours: its ``case``, ``name``, ``device``, ``machine``, ``limit``, ``least_bytes`` and ``dtype``.

    Example:
        >>> row = {"case": "EM iteration, N=100000 K=64 D=16", "name": "EM iteration", "limit": "arithmetic", "least_bytes": 1}
        >>> row |= {"device": "cpu", "machine": "any", "dtype": "float32"}
        >>> share(row), share(row | {"limit": "copy"})
        (0.4, None)
    """
    if row["device"] == "cpu":
        bound = row["limit"] == "arithmetic" and row["dtype"] == "float32"  # the multiply-adds that are measured are float32's
        by_name = _CPU_MULTIPLY_ADDS.get(row["name"]) if bound else None
        return _CPU_SHARES.get(row["case"], by_name)
    if "H200" not in row["machine"]:
        return None
    large = _H200_COPY if row["limit"] == "copy" and (row["least_bytes"] or 0) >= _H200_LARGE else None
    return _H200_SHARES.get(row["case"], large)
