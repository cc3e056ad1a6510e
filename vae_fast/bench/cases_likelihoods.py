"""Every log-likelihood that a decoder can have, at the shape of its users, against its formula in plain PyTorch, as it is and compiled.

Data wants no gradient, parameters do. The formula is that of ``torch.distributions`` (its arguments not checked), or where people use
another package's, that one's.
"""

from __future__ import annotations

from vae_fast.bench.case import Case
from vae_fast.bench.cases_counts import counts
from vae_fast.bench.cases_densities import densities
from vae_fast.bench.cases_groups import classes, pixels


def likelihoods(device: str, quick: bool) -> list[Case]:
    """All of them.

    Example:
        >>> likelihoods("cpu", quick=True)[0].label
        'laplace_log_prob, B=256 D=784'
    """
    return [
        *densities(256 if quick else 4096, 784),
        *(counts(128, 200) if quick else counts(1024, 2000)),
        *(pixels(4, 8, 3) if quick else pixels(32, 32, 10)),
        *(classes(64, 200) if quick else classes(4096, 20_000)),
    ]
