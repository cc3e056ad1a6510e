"""Training: :func:`fit`, its parts, and what a run keeps.

``fit`` and ``step`` are the loop and ``settings`` its settings, ``capture`` and ``products`` make a step fast, ``distributed`` is a run in
many processes, ``checkpoint`` (with ``archive`` and ``checkpoint_content``) is what it resumes from.
"""

from vae_fast.training.fit import *  # noqa: F403
from vae_fast.training.fit import __all__ as __all__
