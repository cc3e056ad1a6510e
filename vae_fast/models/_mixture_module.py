"""A mixture of Gaussians as a module: its parameters, and all that is read off them."""

# ruff: noqa: N803  scikit-learn names the data X

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from vae_fast import functional as F
from vae_fast._optional import optional_import
from vae_fast._world import World
from vae_fast.functional import _arguments as check
from vae_fast.functional.mixture import COVARIANCE_TYPES, has_factors
from vae_fast.models import _em
from vae_fast.models._ascent import constrain, unconstrain
from vae_fast.models._em import Parameters
from vae_fast.models._estimator import Estimator, RandomState, check_random_state, generator_of
from vae_fast.models._mixture_data import Rows, block_rows
from vae_fast.models._mixture_distribution import MixtureDistribution
from vae_fast.models._mixture_start import INIT_PARAMS

Array = np.ndarray[Any, Any]
Result = TypeVar("Result")
_NAMES = ("weight_logits", "means", "scale")


def _largest(q: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The columns of the ``top`` largest of each row, ascending, and what stands there."""
    columns = q.topk(top, 1, sorted=False)[1].sort(1)[0]
    return columns, q.gather(1, columns)


class MixtureModule(Estimator):
    """Everything of :class:`vae_fast.models.MixtureOfGaussians` that does not change the parameters."""

    n_components: int
    covariance_type: str
    random_state: RandomState
    batch_size: int | None
    dtype: torch.dtype | None
    device: torch.device | str | None
    init_params: str
    distributed: str
    n_init: int
    max_iter: int
    tol: float
    reg_covar: float
    warm_start: bool
    verbose: int
    verbose_interval: int
    _from_data: bool  # whether the parameters come of data or of a state_dict: else they are a random start
    _gives_numpy: bool
    weight_logits: nn.Parameter | None
    means: nn.Parameter | None
    scale: nn.Parameter | None
    n_steps: Tensor

    _learned = frozenset(
        {"weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_", "n_features_in_"}
        | {"converged_", "n_iter_", "lower_bound_", "lower_bounds_", "fit_history_"}
    )

    # --- the settings -------------------------------------------------------------------------------------------------

    def _check_settings(self) -> None:
        """Refuse constructor arguments that no mixture takes; one that has more of them checks those, too."""
        check.one_of("covariance_type", self.covariance_type, COVARIANCE_TYPES)
        check.one_of("init_params", self.init_params, INIT_PARAMS)
        check.one_of("distributed", self.distributed, ("auto", "none"))
        check.one_of("dtype", self.dtype, (None, torch.float32, torch.float64))
        for name in ("n_components", "n_init", "verbose_interval"):
            check.positive_int(name, getattr(self, name))
        if self.batch_size is not None:
            check.positive_int("batch_size", self.batch_size)
        check.count("max_iter", self.max_iter)
        check.count("verbose", int(self.verbose) if isinstance(self.verbose, bool) else self.verbose)
        check.flag("warm_start", self.warm_start)
        check.device("device", self.device)
        check_random_state(self.random_state)
        check.real("tol", self.tol, 0.0)
        check.real("reg_covar", self.reg_covar, 0.0)

    # --- the module ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _set(self, parameters: Parameters) -> None:
        """Take over parameters; in place where shape, dtype and device are those of now, so that optimisers keep theirs."""
        free = parameters._replace(scale=unconstrain(parameters.scale, self.covariance_type))
        for name, value in zip(_NAMES, free, strict=True):
            old = getattr(self, name)
            if old is not None and (old.shape, old.dtype, old.device) == (value.shape, value.dtype, value.device):
                old.copy_(value)
            else:
                setattr(self, name, nn.Parameter(value.clone(memory_format=torch.contiguous_format)))
        self.n_steps = self.n_steps.to(parameters.means.device)

    def _now(self) -> Parameters:
        """The arguments of :func:`vae_fast.mixture_log_prob`, with gradients."""
        if self.weight_logits is None or self.means is None or self.scale is None:
            self._not_fitted("parameters")
        return Parameters(self.weight_logits, self.means, constrain(self.scale, self.covariance_type))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = {name: state_dict[prefix + name] for name in _NAMES if prefix + name in state_dict}
        if self.means is None and len(saved) == len(_NAMES) and len(saved["means"]) == self.n_components:
            for name, t in saved.items():
                setattr(self, name, nn.Parameter(torch.empty_like(t, dtype=self.dtype or t.dtype, device=self.n_steps.device)))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._from_data = self._from_data or (bool(saved) and self.means is not None)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats, ``(..., D)`` to ``(...)``: :func:`vae_fast.mixture_log_prob` of the parameters, differentiable in all.

        Example:
            >>> import torch
            >>> from vae_fast.models import MixtureOfGaussians
            >>> prior = MixtureOfGaussians(10, covariance_type="diag", n_features=2)
            >>> prior.log_prob(torch.zeros(5, 3, 2)).shape
            torch.Size([5, 3])
        """
        return F.mixture_log_prob(x, *self._now(), covariance_type=self.covariance_type)

    def forward(self, x: Tensor) -> Tensor:
        """:meth:`log_prob`."""
        return self.log_prob(x)

    def distribution(self) -> MixtureDistribution:
        """The mixture as a :class:`torch.distributions.Distribution` over ``(D,)``; gradients of ``log_prob`` reach the parameters."""
        return MixtureDistribution(*self._now(), covariance_type=self.covariance_type)

    def extra_repr(self) -> str:
        """What identifies the mixture."""
        shown = ["n_components", "covariance_type"] + ["method"] * (getattr(self, "method", "em") != "em")
        dim = "" if self.means is None else f", n_features={self.means.shape[1]}"
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown) + dim

    # --- using it -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _map(self, X: Any, f: Callable[[Tensor, Parameters], Result], world: World | None = None) -> tuple[Rows, Iterator[Result]]:
        now = Parameters(*(t.detach() for t in self._scored()))
        k, d = now.means.shape
        rows = Rows(X, batch_size=self.batch_size, device=now.means.device, n_features=d, world=world)
        limit = max(1, 2**24 // k)  # rows of K responsibilities
        return rows, (f(x, now) for x in rows.checked(min(limit, block_rows(k, d) or limit)))

    def _scored(self) -> Parameters:
        """The parameters that samples are scored and assigned with."""
        return self._now()

    def _log_prob_of(self, x: Tensor, now: Parameters) -> Tensor:
        return F.mixture_log_prob(x, *now, covariance_type=self.covariance_type)

    def score_samples(self, X: Any) -> Any:
        """The log-likelihood of each sample, ``(N,)``, in nats."""
        rows, blocks = self._map(X, self._log_prob_of)
        return rows.back(list(blocks))

    def predict_proba(self, X: Any, *, top: int | None = None) -> Any:
        """The responsibilities ``p(k | x)``, ``(N, K)``.

        With ``top`` the largest ``top`` of each row, as they are: they are not made to sum to one, so that what a row's sum lacks of one
        is what the components left out would have. The result is sparse (CSR, columns ascending) and takes O(N top) memory: a
        ``scipy.sparse.csr_array`` for arrays, a tensor of layout ``torch.sparse_csr`` for tensors.

        Args:
            X: samples, ``(N, D)``.
            top: how many of each row, at most K; None is all of them, dense.

        Raises:
            TypeError, ValueError: naming the argument, the value given and what was expected.
            MissingExtraError: without SciPy, for arrays with ``top``.

        Example:
            >>> import torch
            >>> from vae_fast.models import MixtureOfGaussians
            >>> mixture = MixtureOfGaussians(100, covariance_type="diag", n_features=2)
            >>> q = mixture.predict_proba(torch.zeros(5, 2), top=3)
            >>> q.shape, q.values().shape
            (torch.Size([5, 100]), torch.Size([15]))
        """
        if top is None:
            rows, blocks = self._map(X, self._responsibilities)
            return rows.back(list(blocks))
        check.positive_int("top", top)
        if top > self.n_components:
            raise ValueError(f"top={top}: expected at most the number of components, {self.n_components}")
        rows, pairs = self._map(X, lambda x, now: _largest(self._responsibilities(x, now), top))
        columns, values = (rows.back(list(part)) for part in zip(*pairs, strict=True))
        shape = (len(values), self.n_components)
        if rows.is_numpy:
            sparse = optional_import("scipy.sparse", "scipy", "predict_proba(top=) of an array")
            return sparse.csr_array((values.ravel(), columns.ravel(), top * np.arange(len(values) + 1)), shape=shape)
        starts = top * torch.arange(len(values) + 1, device=values.device)
        return torch.sparse_csr_tensor(starts, columns.flatten(), values.flatten(), shape, check_invariants=False)

    def predict(self, X: Any) -> Any:
        """The most probable component of each sample, int64 ``(N,)``."""
        rows, blocks = self._map(X, lambda x, now: self._responsibilities(x, now).argmax(1))
        return rows.back(list(blocks))

    def _responsibilities(self, x: Tensor, now: Parameters) -> Tensor:
        return F.mixture_responsibilities(x, *now, covariance_type=self.covariance_type)

    def total_log_prob(self, X: Any, world: World | None = None) -> tuple[float, int]:
        """The log-likelihood of all samples together, and their number; in a world of processes each goes over its part of X."""
        _, blocks = self._map(X, self._log_prob_of, world)
        world = world or World()

        def own() -> tuple[float, int]:
            total, n = 0.0, 0
            for log_prob in blocks:
                total, n = total + log_prob.double().sum().item(), n + len(log_prob)
            return total, n

        parts = world.gather(world.together(own))
        return sum(part[0] for part in parts), sum(part[1] for part in parts)

    def score(self, X: Any, y: object = None) -> float:
        """The mean log-likelihood of the samples, in nats; ``y`` is ignored."""
        total, n = self.total_log_prob(X)
        return total / n

    def sample(self, n_samples: int = 1, *, generator: torch.Generator | None = None) -> tuple[Any, Any]:
        """Independent draws ``(n_samples, D)`` and the component of each ``(n_samples,)``.

        NumPy arrays if the mixture was fitted to one, else tensors on its device. Without ``generator`` they are drawn from
        ``random_state``: with an int, the same each time. (:meth:`distribution` has any shape of sample.)

        Example:
            >>> from vae_fast.models import MixtureOfGaussians
            >>> x, component = MixtureOfGaussians(3, n_features=2).sample(5)
            >>> x.shape, component.shape
            (torch.Size([5, 2]), torch.Size([5]))
        """
        check.positive_int("n_samples", n_samples)
        now = self._now()
        check.generator(generator, now.means.device, "the mixture")
        generator = generator_of(self.random_state, now.means.device) if generator is None else generator
        x, component = self.distribution().sample_with_component((n_samples,), generator=generator)
        return (x.cpu().numpy(), component.cpu().numpy()) if self._gives_numpy else (x, component)

    # --- results in scikit-learn's form -------------------------------------------------------------------------------

    def __sklearn_is_fitted__(self) -> bool:
        """For scikit-learn's check_is_fitted."""
        return self.means is not None

    def _array(self, t: Tensor) -> Array:
        out: Array = t.detach().to(self._now().means.dtype).cpu().numpy()
        return out

    @property
    def n_features_in_(self) -> int:
        """D."""
        return self._now().means.shape[1]

    @property
    def weights_(self) -> Array:
        """``(K,)``."""
        return self._array(self._now().weight_logits.double().softmax(0))

    @property
    def means_(self) -> Array:
        """``(K, D)``."""
        return self._array(self._now().means.clone())

    @property
    def covariances_(self) -> Array:
        """``(K, D, D)``, ``(D, D)``, ``(K, D)`` or ``(K,)`` for full, tied, diag or spherical."""
        return self._array(_em.covariances_of(self._now(), self.covariance_type))

    @property
    def precisions_cholesky_(self) -> Array:
        """Upper triangular ``P`` with precision ``P P^T``, or the inverse standard deviations; the shape of ``covariances_``."""
        scale = self._now().scale
        return self._array(scale.clone() if has_factors(self.covariance_type) else (-scale.double()).exp())

    @property
    def precisions_(self) -> Array:
        """The inverses of ``covariances_``."""
        scale = self._now().scale.double()
        return self._array(scale @ scale.mT if has_factors(self.covariance_type) else (-2.0 * scale).exp())


class Criteria(MixtureModule):
    """Information criteria, for parameters of highest likelihood."""

    def free_parameters(self) -> int:
        """How many numbers the mixture is free to choose."""
        k, d = self._now().means.shape
        scale = {"full": k * d * (d + 1) // 2, "tied": d * (d + 1) // 2, "diag": k * d, "spherical": k}[self.covariance_type]
        return scale + k * d + k - 1

    def bic(self, X: Any) -> float:
        """The Bayesian information criterion, ``-2 log L + p log N`` for p free parameters; the lower the better."""
        total, n = self.total_log_prob(X)
        return -2.0 * total + self.free_parameters() * math.log(n)

    def aic(self, X: Any) -> float:
        """Akaike's information criterion, ``-2 log L + 2 p`` for p free parameters; the lower the better."""
        return -2.0 * self.total_log_prob(X)[0] + 2.0 * self.free_parameters()
