"""Any object of ``torch.distributions`` as the prior of a VAE."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.transforms import Transform

from vae_fast.functional import _arguments as check


def _parts(value: object, path: str, seen: set[int]) -> Iterator[tuple[str, object]]:
    """A distribution, its parts and its transforms, each with a name."""
    if isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from _parts(part, f"{path}_{i}", seen)
    if not isinstance(value, Distribution | Transform) or id(value) in seen:
        return
    seen.add(id(value))
    yield path, value
    for key, item in vars(value).items():
        yield from _parts(item, f"{path}_{key}", seen)


class DistributionPrior(nn.Module):
    """A fixed distribution of ``torch.distributions`` as a module: its tensors are buffers, so that it moves and is saved with the model.

    ``VAE(..., prior=distribution)`` makes one of a distribution by itself. It belongs to the module from then on: what moves the module
    moves the distribution's tensors. One to be learned is a module with ``log_prob(z)`` and ``sample(n)`` of its own instead.

    Args:
        distribution: over vectors of L: its event shape is ``(L,)``, as ``Independent(Normal(loc, scale), 1)`` has it.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torch.distributions import Independent, Laplace
        >>> from vae_fast.models import VAE, DistributionPrior
        >>> prior = DistributionPrior(Independent(Laplace(torch.zeros(2), torch.ones(2)), 1))
        >>> prior.log_prob(torch.zeros(3, 2)), prior.sample(4).shape
        (tensor([-1.3863, -1.3863, -1.3863]), torch.Size([4, 2]))
        >>> VAE(nn.Linear(784, 2 * 2), nn.Linear(2, 784), latent_dim=2, prior=prior).loss(torch.rand(5, 784)).shape
        torch.Size([])
    """

    def __init__(self, distribution: Distribution) -> None:
        """See the class."""
        super().__init__()
        if not isinstance(distribution, Distribution):
            raise TypeError(f"distribution: expected a torch.distributions.Distribution, got {type(distribution).__name__}")
        if distribution.batch_shape or len(distribution.event_shape) != 1:
            raise ValueError(
                f"distribution has batch_shape {tuple(distribution.batch_shape)} and event_shape {tuple(distribution.event_shape)}: "
                "expected () and (L,), as torch.distributions.Independent(..., 1) has them"
            )
        self._distribution = distribution
        parts = list(_parts(distribution, type(distribution).__name__, set()))
        self._known = [(part, frozenset(vars(part))) for _, part in parts]
        self._tensors = [(part, key, f"{path}_{key}") for path, part in parts for key, t in vars(part).items() if isinstance(t, Tensor)]
        for part, key, name in self._tensors:
            if vars(part)[key].requires_grad:
                raise ValueError(
                    f"distribution: {name} requires a gradient: expected a fixed distribution; one to be learned is a torch.nn.Module "
                    "with log_prob(z) and sample(n)"
                )
            # One number for several elements cannot be loaded into; a tensor of its own can.
            self.register_buffer(name, vars(part)[key].clone(memory_format=torch.contiguous_format))
        self._share()

    def _share(self) -> None:
        for part, key, name in self._tensors:
            vars(part)[key] = getattr(self, name)

    def _current(self) -> Distribution:
        """The distribution without what it has derived from its tensors and kept: they may have been moved or loaded since."""
        for part, known in self._known:
            for key in vars(part).keys() - known:
                del vars(part)[key]
        return self._distribution

    def _apply(self, fn: Any, recurse: bool = True) -> DistributionPrior:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._share()
        return self

    def log_prob(self, z: Tensor) -> Tensor:
        """``log p(z)`` in nats, ``(..., L)`` to ``(...)``."""
        log_p: Tensor = self._current().log_prob(z)
        return log_p

    def forward(self, z: Tensor) -> Tensor:
        """:meth:`log_prob`."""
        return self.log_prob(z)

    @torch.no_grad()
    def sample(self, n: int = 1, *, generator: torch.Generator | None = None) -> Tensor:
        """``n`` independent draws, ``(n, L)``.

        ``torch.distributions`` draws from torch's default generator alone: one that is given seeds it for these draws, and it is as it
        was afterwards.
        """
        check.positive_int("n", n)
        if generator is None:
            return self._drawn(n)
        check.generator(generator, generator.device, "what it draws")
        seed = torch.randint(2**63 - 1, (), generator=generator, device=generator.device).item()
        with torch.random.fork_rng():
            torch.manual_seed(int(seed))
            return self._drawn(n)

    def _drawn(self, n: int) -> Tensor:
        drawn: Tensor = self._current().sample(torch.Size((n,)))
        return drawn

    def extra_repr(self) -> str:
        """What it wraps."""
        return type(self._distribution).__name__
