"""The benchmarks: what ``vae-fast bench`` runs, and :func:`advise` for a training step of your own."""

from vae_fast.bench.advice import Advice, advise

__all__ = ["Advice", "advise"]
