"""Checks of a data set's values: once before a run, and again if the run diverges."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vae_fast.functional import _values as values
from vae_fast.likelihoods import LIKELIHOODS

_AT_ONCE = 2**22  # elements read at once: data may be mapped from a file and not fit in memory


def kind_of(model: object, transform: object | None) -> str:
    """What a model requires of its data, by its likelihood: "unit", "positive", "count" or "finite"; with ``transform`` always "finite".

    Example:
        >>> from vae_fast.models import MLPVAE
        >>> kind_of(MLPVAE(latent_dim=2), None), kind_of(nn.Linear(2, 1), None)
        ('unit', 'finite')
    """
    likelihood = getattr(model, "likelihood", None)
    named = transform is None and isinstance(likelihood, str) and likelihood in LIKELIHOODS
    return LIKELIHOODS[str(likelihood)].data if named else "finite"


def refuse(name: str, data: Tensor, kind: str, rank: int = 0, size: int = 1) -> None:
    """Refuse data with an invalid value. Each of several processes checks its part.

    Raises:
        ValueError: naming the first bad index (of this process's part), its value and what was expected.

    Example:
        >>> refuse("train", torch.rand(10, 4), "unit")
    """
    found = complaint(name, data, kind, rank=rank, size=size)
    if found is not None:
        raise ValueError(f"{found}; check_data=False turns this check off")


@torch.no_grad()
def complaint(
    name: str, data: Tensor, kind: str, *, rank: int = 0, size: int = 1, through: Callable[[Tensor], Tensor] | None = None
) -> str | None:
    """The message about the first invalid value, or None; ``through`` is applied to each piece first.

    The host waits for the device once, not once for each piece.

    Example:
        >>> complaint("train", torch.tensor([[0.5], [float("nan")]]), "finite")
        'train[1, 0] = nan: expected finite numbers'
    """
    if through is None and values.all_bytes_fit(data, kind):
        return None
    step = max(1, _AT_ONCE // max(1, data[:1].numel()))
    starts = range(0, len(data), step)[rank::size]

    def piece(start: int) -> Tensor:
        rows = data[start : start + step]
        return rows if through is None else through(rows)

    extremes = [torch.stack(rows.aminmax()).to(torch.float64) for rows in map(piece, starts) if rows.numel()]
    whole = kind != "count" or not data.is_floating_point() or through is not None  # an extreme says nothing of what lies between
    if not extremes or (whole and bool(values.extremes_fit(torch.cat(extremes), kind))):
        return None
    for start in starts:
        rows = piece(start)
        if not values.fits(rows, kind):
            return values.complaint(name, rows, kind, first_row=start)
    return None  # another draw of a random transform


def reason(
    model: nn.Module, data: Tensor, transform: Callable[[Tensor], Tensor] | None, device: torch.device, rates: Sequence[float]
) -> str:
    """The cause of a loss that is not finite: a value of the data, a value that ``transform`` makes, or the learning rate.

    Example:
        >>> reason(nn.Linear(1, 1), torch.zeros(2, 1), None, torch.device("cpu"), [0.1])
        'the data are finite: try a smaller learning rate than 0.1'
    """
    found = complaint("train", data, kind_of(model, transform))
    if found is None and transform is not None:
        found = complaint("transform(train)", data, "finite", through=lambda rows: transform(rows.to(device)))
    if found is not None:
        return found
    lost = [name for name, p in model.named_parameters() if not _is_finite(p)]
    weights = f", the weights are not ({lost[0]} first)" if lost else ""
    return f"the data are finite{weights}: try a smaller learning rate than {max(rates):g}"


def _is_finite(p: Tensor) -> bool:
    held = p.detach()
    local = getattr(held, "to_local", None)  # of a weight that is sharded, what this process holds
    return values.fits(held if local is None else local(), "finite")
