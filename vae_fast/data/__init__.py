"""Data sets: ``images`` (digits, MNIST, Frey Faces, your own files), ``toys`` for mixtures, ``readers`` for untrusted files."""

from vae_fast.data.images import *  # noqa: F403
from vae_fast.data.images import __all__ as __all__
