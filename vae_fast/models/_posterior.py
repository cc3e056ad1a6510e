"""What an encoder returns, read as a posterior."""

from __future__ import annotations

from torch import Tensor


def posterior_of(out: object, latent_ndim: int) -> tuple[Tensor, Tensor]:
    """The pair ``(mu, logvar)`` of an encoder that gives the pair, or one tensor with both along its first latent dimension.

    Raises:
        TypeError, ValueError: saying what the encoder returned and what was expected.
    """
    if isinstance(out, Tensor):
        dim = out.ndim - latent_ndim
        if dim < 0 or out.shape[dim] % 2:
            raise ValueError(
                f"encoder returned a tensor of shape {tuple(out.shape)}: expected mu and logvar one after the "
                f"other along dimension {-latent_ndim} (an even size), or a (mu, logvar) pair"
            )
        mu, logvar = out.chunk(2, dim)
        return mu, logvar
    if not isinstance(out, tuple | list) or len(out) != 2:
        came = f"{len(out)} items" if isinstance(out, tuple | list) else type(out).__name__
        raise TypeError(f"encoder returned {came}: expected a (mu, logvar) pair or one tensor holding both")
    return out[0], out[1]
