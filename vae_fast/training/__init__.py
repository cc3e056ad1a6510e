"""Training: :func:`fit`, its parts, and the checkpoints that a run resumes from.

``fit`` and ``step`` hold the loop and ``settings`` its settings; ``capture`` and ``products`` make a step fast; ``distributed`` runs it in
several processes; ``checkpoint`` and ``checkpoint_content`` write, read and check the files.
"""

from vae_fast.training.fit import *  # noqa: F403
from vae_fast.training.fit import __all__ as __all__
