"""The likelihoods a decoder can have: what its output means, the kernels' term for it, its mean, and how to draw from it.

:data:`LIKELIHOODS` is read by :func:`vae_fast.elbo_loss` and its kin, :class:`vae_fast.models.VAE`, the explorer and the tests: a name that
stands here works in all of them. A new one is a struct in ``csrc/math`` and its row in ``csrc/term_table.h``, the same formula and its row
in :mod:`vae_fast.terms`, and an entry here. One whose element needs a group of parameters is a struct in ``csrc/math`` and its row in
``csrc/group_table.h``, the same formula in :mod:`vae_fast.reference`, a public function, and an entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vae_fast import _samplers
from vae_fast._scales import UNIT_SCALE
from vae_fast.terms import TERMS, in_order

#: The clip modes of the Bernoulli likelihoods; None is exact.
CLIPS = (None, "clamp", "add", "bce")
_WITH_CONSTANT = ("clamp", "add")


@dataclass(frozen=True)
class Likelihood:
    """One entry of :data:`LIKELIHOODS`."""

    name: str
    #: What the decoder gives: one tensor, or a tuple of them. The last may be left out where it is a scale, which is 1 then.
    parameters: tuple[str, ...]
    #: The family of the kernels' terms over all of them, and where the scale is left out (None: the scale of 1 is filled in).
    #: Of a grouped one, the public function that it is, ``<family>_log_prob``.
    family: str
    #: The mean of ``p(x|z)``, and a draw from it; from the parameters that are given.
    mean: Callable[[Sequence[Tensor]], Tensor]
    draw: Callable[[Sequence[Tensor], torch.Generator | None], Tensor]
    family_alone: str | None = None
    #: What form the scale is given in, see :func:`vae_fast.gaussian_log_prob`.
    scale: str | None = None
    #: The variant of the family, where that is neither a scale's form nor a clip mode; and the term's own parameters.
    variant: str | None = None
    params: tuple[float, ...] = ()
    clips: tuple[str | None, ...] = (None,)
    #: The layer that makes the mean of the first parameter; None if that is the mean itself, or no layer makes it.
    mean_layer: type[nn.Module] | None = None
    #: Of a likelihood whose element needs a group of parameters: what the values of x have to be. It is no term of a row sum.
    grouped_data: str | None = None

    @property
    def data(self) -> str:
        """What the values of x have to be, by the names in :mod:`vae_fast.functional._values`: "unit" (in [0, 1]), "finite", ..."""
        return self.grouped_data or TERMS[self.family].inputs[0]

    @property
    def of_counts(self) -> bool:
        """Whether x counts: integers are taken, bytes are numbers, and there is no gradient."""
        return self.family in TERMS and self.data == "count"

    @property
    def arity(self) -> tuple[int, ...]:
        """How many of its parameters may be given."""
        return (len(self.parameters),) if self.scale is None else (len(self.parameters) - 1, len(self.parameters))

    def term(self, given: int, clip: str | None) -> str:
        """The kernels' name for it, with ``given`` of its parameters."""
        if given < len(self.parameters) and self.family_alone is not None:
            return self.family_alone
        if self.scale is not None or self.variant is not None:
            return f"{self.family}.{self.scale or self.variant}"
        return f"{self.family}.{clip or 'none'}" if len(self.clips) > 1 else self.family

    def completed(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """The inputs of :meth:`term` beside x: a scale of 1 is filled in where there is no term without one."""
        if len(parameters) < len(self.parameters) and self.family_alone is not None:
            return list(parameters)
        if len(parameters) < len(self.parameters) and self.scale is not None:
            first = parameters[0]
            dtype = torch.promote_types(first.dtype, torch.float32)
            parameters = [*parameters, torch.full((), UNIT_SCALE[self.scale], dtype=dtype, device=first.device)]
        return in_order(self.family, parameters)


def term_params(clip: str | None, eps: float) -> list[float]:
    """The parameters of a likelihood's term: a clip mode's constant, if it has one."""
    return [eps] if clip in _WITH_CONSTANT else []


LIKELIHOODS = {
    entry.name: entry
    for entry in (
        Likelihood(
            "bernoulli",
            ("logits",),
            "bernoulli_logits",
            mean=lambda p: p[0].sigmoid(),
            draw=lambda p, generator: _samplers.draw_bernoulli(p[0].sigmoid(), generator),
            clips=CLIPS,
            mean_layer=nn.Sigmoid,
        ),
        Likelihood(
            "bernoulli_probs",
            ("probs",),
            "bernoulli_probs",
            mean=_samplers.first,
            draw=lambda p, generator: _samplers.draw_bernoulli(p[0], generator),
            clips=CLIPS,
        ),
        Likelihood(
            "gaussian",
            ("mean", "logvar"),
            "gaussian",
            family_alone="gaussian_unit",
            scale="logvar",
            mean=_samplers.first,
            draw=_samplers.draw_gaussian,
        ),
        Likelihood("laplace", ("loc", "log_scale"), "laplace", scale="log_std", mean=_samplers.first, draw=_samplers.draw_laplace),
        Likelihood(
            "log_normal",
            ("loc", "log_scale"),
            "log_normal",
            scale="log_std",
            mean=_samplers.mean_log_normal,
            draw=_samplers.draw_log_normal,
        ),
        Likelihood(
            "continuous_bernoulli",
            ("logits",),
            "continuous_bernoulli",
            mean=_samplers.mean_continuous_bernoulli,
            draw=_samplers.draw_continuous_bernoulli,
        ),
        # of one degree of freedom or less there is no mean, and loc is the median
        Likelihood(
            "student_t", ("df", "loc", "log_scale"), "student_t", scale="log_std", mean=lambda p: p[1], draw=_samplers.draw_student_t
        ),
        Likelihood(
            "poisson",
            ("log_rate",),
            "poisson",
            variant="log_rate",
            mean=lambda p: p[0].exp(),
            draw=lambda p, generator: torch.poisson(p[0].exp(), generator=generator),
        ),
        Likelihood(
            "negative_binomial",
            ("log_mu", "log_theta"),
            "negative_binomial",
            variant="log",
            params=(0.0,),
            mean=lambda p: p[0].exp(),
            draw=_samplers.draw_negative_binomial,
        ),
        Likelihood(
            "zero_inflated_negative_binomial",
            ("log_mu", "log_theta", "zi_logits"),
            "zero_inflated_negative_binomial",
            variant="log",
            params=(0.0,),
            mean=lambda p: p[0].exp() * (-p[2]).sigmoid(),
            draw=_samplers.draw_zero_inflated,
        ),
        Likelihood(
            "discretized_logistic",
            ("loc", "log_scale"),
            "discretized_logistic",
            params=(255.0, 1.0),
            mean=_samplers.mean_discretized,
            draw=_samplers.draw_discretized,
        ),
        Likelihood(
            "discretized_logistic_mixture",
            ("params",),
            "discretized_logistic_mixture",
            grouped_data="unit",
            mean=_samplers.mean_pixels,
            draw=_samplers.draw_pixels,
        ),
        Likelihood("categorical", ("logits",), "categorical", grouped_data="index", mean=_samplers.mean_class, draw=_samplers.draw_classes),
        Likelihood(
            "multinomial",
            ("logits",),
            "multinomial",
            grouped_data="nonnegative",
            mean=lambda p: p[0].softmax(-1),
            draw=_samplers.draw_count,
        ),
    )
}
