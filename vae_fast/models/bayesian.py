"""A variational mixture of Gaussians: an estimator in scikit-learn's manner."""

# ruff: noqa: N803  scikit-learn names the data X

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vae_fast import functional as F
from vae_fast._world import World, current
from vae_fast.errors import ConvergenceWarning
from vae_fast.functional import _arguments as check
from vae_fast.functional.mixture import has_factors
from vae_fast.models import _em, _mixture_start, _variational
from vae_fast.models._em import Parameters, Run
from vae_fast.models._estimator import RandomState, generator_of
from vae_fast.models._mixture_data import Rows, block_rows, digest_of
from vae_fast.models._mixture_journal import Journal, settings_of
from vae_fast.models._mixture_module import MixtureModule
from vae_fast.models._progress import Progress
from vae_fast.models._variational import Posterior, Prior

if TYPE_CHECKING:
    from typing_extensions import Self

Callback = Callable[["BayesianMixtureOfGaussians", int, float], object]


def _on(tensors: dict[str, Tensor], device: torch.device) -> Posterior:
    return Posterior(**{name: t.to(device) for name, t in tensors.items()})


class BayesianMixtureOfGaussians(MixtureModule):
    """A mixture of Gaussians with a posterior over weights, means and precisions, by variational inference.

    It uses as many components as it needs. It is an estimator with the arguments, methods and attributes of
    :class:`sklearn.mixture.BayesianGaussianMixture`, which from the same start it follows iteration by iteration, on the kernels of
    :class:`MixtureOfGaussians`: nothing of size N x K is formed, data may come in batches or lie in a file, and in a process group all
    processes make one fit. As a module (:meth:`log_prob`, :meth:`distribution`, :meth:`sample`) it is the mixture at the posterior's
    means; :meth:`score_samples` and :meth:`predict_proba` are scikit-learn's, with the expected log-densities (Bishop 2006, section
    10.2; Blei and Jordan 2006 for the process).

    Args:
        n_components: K, the most components.
        covariance_type, reg_covar, max_iter, n_init, init_params, random_state, warm_start, verbose, verbose_interval, batch_size, dtype,
            device, distributed: as in :class:`MixtureOfGaussians`.
        tol: it has converged when the lower bound, of all samples together, changes by less than this (nats) in one iteration.
        weight_concentration_prior_type: ``"dirichlet_process"`` (truncated stick-breaking) or ``"dirichlet_distribution"``.
        weight_concentration_prior: of each weight or stick; the lower, the fewer components. None is ``1 / K``.
        mean_precision_prior: how many samples the prior's mean is worth; None is 1.
        mean_prior: ``(D,)``; None is the mean of the data.
        degrees_of_freedom_prior: above ``D - 1``; None is D.
        covariance_prior: ``(D, D)`` for full and tied, ``(D,)`` for diag, a number for spherical; None is that of the data.
        means_init: ``(K, D)``: centres to start from, each sample assigned to the nearest.

    Attributes of a fit: those of :class:`MixtureOfGaussians`, ``weight_concentration_`` (a pair for the process), ``mean_precision_``,
    ``degrees_of_freedom_`` and the priors as they were used, ``weight_concentration_prior_``, ``mean_precision_prior_``, ``mean_prior_``,
    ``degrees_of_freedom_prior_``, ``covariance_prior_``.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.
        SingularCovarianceError: (a ValueError) by a fit, naming the components.
        NotFittedError: (a ValueError) before a fit.

    Example:
        >>> import torch
        >>> from vae_fast.models import BayesianMixtureOfGaussians
        >>> _ = torch.manual_seed(0)
        >>> x = torch.cat([torch.randn(200, 1) - 4.0, torch.randn(200, 1) + 4.0]).double()
        >>> mixture = BayesianMixtureOfGaussians(5, weight_concentration_prior=1e-3, max_iter=1000, random_state=0).fit(x)
        >>> int((mixture.weights_ > 0.01).sum())
        2
    """

    _learned = MixtureModule._learned | {
        *("weight_concentration_", "mean_precision_", "degrees_of_freedom_", "weight_concentration_prior_", "mean_precision_prior_"),
        *("mean_prior_", "degrees_of_freedom_prior_", "covariance_prior_"),
    }
    expected_logits: Tensor | None

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weight_concentration_prior_type: str = "dirichlet_process",
        weight_concentration_prior: float | None = None,
        mean_precision_prior: float | None = None,
        mean_prior: Any = None,
        degrees_of_freedom_prior: float | None = None,
        covariance_prior: Any = None,
        random_state: RandomState = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        means_init: Any = None,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        distributed: str = "auto",
    ) -> None:
        """See the class."""
        super().__init__()
        given = locals()
        for name in self._parameter_names():
            self._store(name, given[name])
        self._check_settings()
        for name in ("weight_logits", "means", "scale"):
            self.register_parameter(name, None)
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("expected_logits", None)
        self._from_data, self._gives_numpy = False, False

    def _check_settings(self) -> None:
        super()._check_settings()
        check.one_of("weight_concentration_prior_type", self.weight_concentration_prior_type, _variational.WEIGHTS)
        for name in ("weight_concentration_prior", "mean_precision_prior", "degrees_of_freedom_prior"):
            value = getattr(self, name)
            if value is not None:
                check.real(name, value, 0.0)
                if value == 0.0:
                    raise ValueError(f"{name}={value!r}: expected a number above 0")

    # --- fitting ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit(
        self,
        X: Any,
        y: object = None,
        *,
        callback: Callback | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        save_every: int = 10,
        resume: bool = False,
    ) -> Self:
        """Find the posterior.

        Args:
            X: samples ``(N, D)``, as for :meth:`MixtureOfGaussians.fit`; in a process group likewise.
            y: ignored.
            callback: ``callback(mixture, iteration, lower_bound)`` after each iteration, with the parameters of that iteration in place.
            checkpoint, save_every, resume: as for :meth:`MixtureOfGaussians.fit`: what is killed goes on from the file, to the same bits.

        Raises:
            FileError: (a ValueError) if ``checkpoint`` cannot be written, or with ``resume`` not be read, or is of another fit.
            ValueError: for NaN or infinity in X, fewer samples than components or than two, or a shape that does not fit.
            SingularCovarianceError: (a ValueError) naming the components and what to change.

        Warns:
            ConvergenceWarning: if ``max_iter`` was reached first.
        """
        check.positive_int("save_every", save_every)
        check.flag("resume", resume)
        if resume and checkpoint is None:
            raise ValueError("resume=True, checkpoint=None: expected the checkpoint to go on from")
        self._check_settings()
        resumes = bool(self.warm_start) and self._from_data
        world = current() if self.distributed == "auto" else World()
        how: dict[str, Any] = {
            "batch_size": self.batch_size,
            "dtype": self.dtype,
            "device": self.device,
            "fallback": self.n_steps.device,
            "world": world,
        }
        rows: Rows = world.together(lambda: Rows(X, n_features=self._now().means.shape[1] if resumes else None, **how))
        world.same({"n_components": self.n_components} | rows.described())
        random = generator_of(self.random_state, torch.device("cpu"))
        journal = self._journal(rows, None if checkpoint is None else Path(checkpoint), save_every)
        journal.seed = world.on_main(lambda: int(torch.randint(2**62, (), generator=random)))
        if resume:
            journal.read()
        generator = torch.Generator().manual_seed(journal.seed)
        samples, sample = rows.survey(self.n_components, generator)
        if samples < 2:
            raise ValueError(f"X has {samples} samples: expected at least 2")
        journal.check_data(digest_of(sample) if rows.has_places() else None, samples)
        if journal.generator is not None:
            generator.set_state(journal.generator)
        self.fit_history_ = journal.history
        prior = self._prior(rows, sample, samples)
        for _ in range(journal.init, 1 if resumes else self.n_init):
            self._run(rows, samples, sample, prior, generator, resumes, callback, journal)
        run = journal.best
        assert run is not None
        self._adopt(_on(run.tensors, rows.device), rows.dtype)
        self.converged_, self.n_iter_ = run.converged, len(run.lower_bounds)
        self.lower_bound_, self.lower_bounds_ = run.lower_bound, run.lower_bounds
        self._from_data, self._gives_numpy = True, rows.is_numpy
        self._tell(prior)
        self.n_steps.fill_(1)
        if not run.converged and self.max_iter > 0:
            advice = "raise max_iter or tol, or look for degenerate data"
            warnings.warn(f"the fit did not converge in max_iter={self.max_iter} iterations: {advice}", ConvergenceWarning, stacklevel=2)
        return self

    def fit_predict(self, X: Any, y: object = None, *, callback: Callback | None = None) -> Any:
        """:meth:`fit`, then :meth:`predict` for the same samples."""
        return self.fit(X, callback=callback).predict(X)

    def _journal(self, rows: Rows, path: Path | None, save_every: int) -> Journal:
        config = settings_of(self.get_params(), rows.described() | {"method": "variational"})
        for name in ("max_iter", "verbose", "verbose_interval", "warm_start", "distributed", "dtype", "device"):
            config.pop(name, None)
        return Journal(path, save_every, config, rows.world)

    def _run(
        self,
        rows: Rows,
        samples: int,
        sample: Tensor,
        prior: Prior,
        generator: torch.Generator,
        resumes: bool,
        callback: Callback | None,
        journal: Journal,
    ) -> None:
        """One start, from its beginning or from where the journal has it."""
        world, kind, at_most = rows.world, self.covariance_type, block_rows(self.n_components, rows.n_features)
        process = self.weight_concentration_prior_type == "dirichlet_process"
        now: Posterior

        def step(old: Parameters, sums: _em.Sums, when: str) -> Posterior:
            found = world.together(lambda: _variational.posterior(old, sums, prior, self.reg_covar, kind, process, when))
            return Posterior(*world.of_main(found))

        def show(_: Parameters, iteration: int, bound: float) -> None:
            journal.note(iteration, bound)
            if callback is not None:
                self._adopt(now, rows.dtype)
                world.on_main(lambda: callback(self, iteration, bound) and None)

        progress = Progress(journal.init, self.verbose if world.main else 0, self.verbose_interval, show)
        bounds, previous, converged = list[float](), -math.inf, False
        loop, journal.loop = journal.loop, None
        if loop is not None:
            now, bounds, previous = _on(loop["parameters"], rows.device), list(loop["bounds"]), loop["previous"]
        elif resumes:
            now, previous = self._posterior, self.lower_bound_
        else:
            means = _mixture_start.given("means_init", self.means_init, (self.n_components, rows.n_features), rows)
            how = (rows, sample, samples, self.n_components, kind, self.init_params, generator, means)
            now = step(*_mixture_start.first_sums(*how), f"start from init_params={self.init_params!r}")

        def kept() -> dict[str, Any]:
            return {"parameters": now._asdict(), "bounds": bounds, "previous": previous}

        if loop is None:
            journal.keep(0, kept, generator)
        for iteration in range(len(bounds) + 1, self.max_iter + 1):
            old = _variational.expected(now, kind, rows.dtype)
            sums = _em.expectation(lambda: rows.blocks(at_most), old, kind, world=world)
            _em.finite_bound(sums, iteration)
            now = step(old, sums, f"iteration {iteration}")
            bound = _variational.bound(old, sums, now, kind)
            change, previous = bound - previous, bound
            bounds.append(bound)
            progress(old, iteration, bound, change)
            if abs(change) < self.tol:
                converged = True
                break
            journal.keep(iteration, kept, generator)
        progress.end(Run(_variational.expected(now, kind, rows.dtype), bounds, previous, converged))
        journal.ended(now._asdict(), bounds, previous, converged, generator)

    def _prior(self, rows: Rows, sample: Tensor, samples: int) -> Prior:
        """The prior, with the data's own mean and covariance where none are given; these are summed about a sample's mean."""
        d, kind = rows.n_features, self.covariance_type
        matrix = has_factors(kind)
        freedom = float(d if self.degrees_of_freedom_prior is None else self.degrees_of_freedom_prior)
        if not freedom > d - 1:
            raise ValueError(f"degrees_of_freedom_prior={self.degrees_of_freedom_prior!r}: expected a number above {d - 1}, D - 1")
        mean, covariance = self.mean_prior, self.covariance_prior
        if mean is None or covariance is None:
            centre = sample.mean(0, keepdim=True)
            unit = torch.eye(d).to(centre) if matrix else centre.new_zeros((1, d))
            around = Parameters(centre.new_zeros(1), centre, unit)
            at_most = block_rows(1, d)
            sums = _em.expectation(lambda: rows.blocks(at_most), around, "tied" if matrix else "diag", world=rows.world)
            shift = sums.first[0] / samples
            own = centre[0].double() + shift
            if matrix:
                spread = sums.second - samples * torch.outer(shift, shift)
            else:
                spread = (sums.second[0] - samples * shift * shift).clamp(min=0.0)
            spread = spread / (samples - 1)
            spread = spread.mean() if kind == "spherical" else spread
        else:
            own, spread = torch.empty(0), torch.empty(0)
        if mean is not None:
            own = self._array_like("mean_prior", mean, (d,), rows)
        if covariance is not None:
            shape = {"full": (d, d), "tied": (d, d), "diag": (d,), "spherical": ()}[kind]
            spread = self._array_like("covariance_prior", covariance, shape, rows)
            if matrix:
                good = torch.allclose(spread, spread.mT) and bool((torch.linalg.eigvalsh(spread) > 0.0).all())
            else:
                good = bool((spread > 0.0).all())
            if not good:
                expected = "a symmetric positive-definite matrix" if matrix else "positive numbers"
                raise ValueError(f"covariance_prior: expected {expected}")
        concentration = 1.0 / self.n_components if self.weight_concentration_prior is None else float(self.weight_concentration_prior)
        precision = 1.0 if self.mean_precision_prior is None else float(self.mean_precision_prior)
        return Prior(concentration, precision, own, freedom, spread)

    @staticmethod
    def _array_like(name: str, value: Any, shape: tuple[int, ...], rows: Rows) -> Tensor:
        """A prior in float64; the same for all processes."""
        found = _mixture_start.given(name, value, shape, rows, torch.float64)
        assert found is not None
        return found

    # --- using it -----------------------------------------------------------------------------------------------------

    def _adopt(self, p: Posterior, dtype: torch.dtype) -> None:
        """Take over a posterior: the mixture at its means, and what the E-step scores with."""
        self._posterior = p
        self._set(Parameters(_variational.weights(p).log().to(dtype), p.means.to(dtype), p.scale.to(dtype)))
        self.expected_logits = _variational.expected(p, self.covariance_type, dtype).weight_logits

    def _tell(self, prior: Prior) -> None:
        """The posterior and the prior as NumPy arrays in scikit-learn's shapes."""
        p = self._posterior
        concentration = self._array(p.concentration)
        self.weight_concentration_ = (concentration[0], concentration[1]) if concentration.ndim == 2 else concentration
        self.mean_precision_ = self._array(p.mean_precision)
        freedom = self._array(p.degrees_of_freedom)
        self.degrees_of_freedom_ = freedom if freedom.ndim else freedom.item()
        self.weight_concentration_prior_, self.mean_precision_prior_ = prior.weight_concentration, prior.mean_precision
        self.degrees_of_freedom_prior_, self.mean_prior_ = prior.degrees_of_freedom, self._array(prior.mean)
        covariance = self._array(prior.covariance)
        self.covariance_prior_ = covariance if covariance.ndim else covariance.item()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(prefix + "expected_logits")
        if saved is not None and self.expected_logits is None:
            self.expected_logits = torch.empty_like(saved, dtype=self.dtype or saved.dtype, device=self.n_steps.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _scored(self) -> Parameters:
        now = self._now()
        if self.expected_logits is None:
            self._not_fitted("expected_logits")
        return now._replace(weight_logits=nn.Parameter(self.expected_logits, requires_grad=False))

    def _log_prob_of(self, x: Tensor, now: Parameters) -> Tensor:
        """The kernels normalise the weights, and the expected log weights are not normalised."""
        return F.mixture_log_prob(x, *now, covariance_type=self.covariance_type) + now.weight_logits.logsumexp(0)
