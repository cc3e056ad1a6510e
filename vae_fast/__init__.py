"""Fused kernels for the arithmetic of variational autoencoders and Gaussian mixtures."""

from vae_fast._backend import build_info
from vae_fast.functional import *  # noqa: F403
from vae_fast.functional import __all__ as _functional

__version__ = "0.1.0"
__all__ = [*_functional, "build_info"]  # noqa: PLE0604
