"""Training: :func:`fit`, its parts, and what a run keeps.

``fit`` and ``step`` are the loop and ``settings`` its settings, ``capture`` and ``products`` make a step fast, ``distributed`` is a run in
many processes, ``checkpoint`` (with ``archive`` and ``checkpoint_content``) is what it resumes from.
"""

from vae_fast.training.fit import (
    COLUMNS,
    Batches,
    Checkpoints,
    Hardware,
    Keywords,
    Optimization,
    Processes,
    Record,
    Schedule,
    Transform,
    adam,
    autocast,
    evaluate,
    evaluate_log_prob,
    fit,
    progress_bar,
    say,
    warmup,
)

__all__ = [
    "COLUMNS",
    "Batches",
    "Checkpoints",
    "Hardware",
    "Keywords",
    "Optimization",
    "Processes",
    "Record",
    "Schedule",
    "Transform",
    "adam",
    "autocast",
    "evaluate",
    "evaluate_log_prob",
    "fit",
    "progress_bar",
    "say",
    "warmup",
]
