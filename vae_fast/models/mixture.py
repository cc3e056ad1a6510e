"""A mixture of Gaussians: an estimator in scikit-learn's manner and a module with parameters."""

# ruff: noqa: N803  scikit-learn names the data X

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vae_fast._world import World, current
from vae_fast.errors import ConvergenceWarning, DeadComponentWarning
from vae_fast.functional import _arguments as check
from vae_fast.functional.mixture import has_factors
from vae_fast.models import _em, _mixture_start
from vae_fast.models._ascent import gradient_ascent
from vae_fast.models._em import Parameters, Run
from vae_fast.models._em_fit import expectation_maximisation
from vae_fast.models._estimator import RandomState, generator_of
from vae_fast.models._mixture_data import Rows, block_rows, digest_of
from vae_fast.models._mixture_journal import Journal, settings_of
from vae_fast.models._mixture_module import Criteria
from vae_fast.models._progress import Progress

if TYPE_CHECKING:
    from typing_extensions import Self

Callback = Callable[["MixtureOfGaussians", int, float], object]
_METHODS = ("em", "adam")


class MixtureOfGaussians(Criteria):
    r"""``p(x) = sum_k w_k N(x; mu_k, Sigma_k)``, fitted by expectation maximisation or by gradient ascent.

    It is an estimator with the arguments, methods and attributes of :class:`sklearn.mixture.GaussianMixture`, which from the same explicit
    start it follows iteration by iteration; and an :class:`torch.nn.Module` whose parameters can sit in a larger model: as the prior of a
    :class:`vae_fast.models.VAE`, say. NumPy arrays give NumPy arrays, tensors give tensors on their own device.

    Both ways to fit maximise the mean log-likelihood (nats per sample)

    .. math:: \frac1N \sum_n \log \sum_k \exp\bigl(\log w_k + \log N(x_n; \mu_k, \Sigma_k)\bigr).

    ``method="em"`` (Dempster, Laird and Rubin 1977; Bishop 2006, section 9.2.2) takes both steps from one pass over the data
    (:func:`vae_fast.mixture_statistics`; nothing of size N x K is formed), whether they are in memory or come in batches: the sums over
    batches are those of all samples. ``method="adam"`` steps along the gradient, for all samples or for each batch.
    :meth:`partial_fit` is EM for data that are seen once.

    Args:
        n_components: K.
        covariance_type: ``"full"``, ``"tied"`` (one matrix for all), ``"diag"`` or ``"spherical"`` (one variance for each component).
        tol: EM has converged when the mean log-likelihood changes by less than this in one iteration. With Adam, ``n_iter_no_change``
            iterations in a row that did not raise the best one by as much send it back to the best with a quarter of the step; it has
            converged when that has happened four times.
        reg_covar: added to the diagonal of every covariance by EM; with Adam the least variance (for ``"full"`` and ``"tied"``: of a
            feature given those before it).
        max_iter: most iterations over the data. 0 only computes the start.
        n_init: number of starts; the best fit is kept, of those that are equal to rounding the first.
        init_params: ``"kmeans"``, ``"k-means++"`` or ``"random_from_data"`` find centres, every sample is assigned to the nearest one and
            an M-step follows; ``"random"`` draws responsibilities. Centres are looked for in 50,000 samples (32 for each component, if
            that is more) where there are more; ``"k-means++"`` then reads all of an array or a file, by k-means||. Where samples are
            many, a start costs as much as a few iterations.
        weights_init, means_init, precisions_init: an explicit start, all or part of it: ``(K,)``, ``(K, D)`` and, by ``covariance_type``,
            ``(K, D, D)``, ``(D, D)``, ``(K, D)`` or ``(K,)``. Given means are the centres that the rest is derived from.
        random_state: None (torch's generator), an int, a ``torch.Generator`` or a NumPy generator.
        warm_start: start where the last fit ended.
        verbose: 1 prints iterations, 2 also times and changes.
        verbose_interval: iterations between two lines.
        method: ``"em"`` or ``"adam"``.
        lr: step size of Adam, relative to the spread of the data; None is 0.05.
        batch_size: samples read at once. For EM it changes memory alone, for Adam each batch is a step (None: one step on all samples in
            each iteration). A ``np.memmap`` is read in slices anyhow, a ``DataLoader`` has batches of its own.
        reseed_dead: EM moves components with less than a tenth of a sample to the samples of lowest likelihood.
        n_features: D, for a mixture that is used as a module without a fit: weights are then equal, means standard normal, scales one.
        dtype: ``torch.float32`` or ``torch.float64``; None is that of the data.
        device: where the parameters live and the work is done; None is that of the data.
        n_iter_no_change: see ``tol``.
        learning_decay, learning_offset: the step size of :meth:`partial_fit`.
        distributed: ``"auto"``: where ``torch.distributed`` has a process group, :meth:`fit` and :meth:`partial_fit` are made by all its
            processes together (all have to call them). ``"none"``: by this process alone.

    Parameters of the module, with ``n_features`` or after a fit: ``weight_logits (K,)``, ``means (K, D)`` and ``scale``: log standard
    deviations ``(K, D)`` or ``(K,)``, or for ``"full"`` and ``"tied"`` the upper triangular factor ``P`` of the precision ``P P^T``
    with the logarithm of its diagonal in place of the diagonal (what is below is not used). Any numbers are valid.

    Attributes of a fit, NumPy arrays in scikit-learn's shapes: ``weights_``, ``means_``, ``covariances_``, ``precisions_``,
    ``precisions_cholesky_``; ``converged_``, ``n_iter_``, ``lower_bounds_`` (the mean log-likelihood of each iteration before its
    M-step, nats), ``lower_bound_`` (the last of them; with Adam the best), ``n_features_in_``; ``fit_history_`` (for each iteration of each
    start: start from 1, iteration, lower bound, seconds since the fit began).

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.
        SingularCovarianceError: (a ValueError) by a fit, naming the components and what to change.
        NotFittedError: (a ValueError) if there are no parameters yet.

    Example:
        >>> import numpy as np
        >>> from vae_fast.models import MixtureOfGaussians
        >>> X = np.array([[1.0, 2.0], [1.0, 4.0], [1.0, 0.0], [10.0, 2.0], [10.0, 4.0], [10.0, 0.0]])
        >>> mixture = MixtureOfGaussians(n_components=2, random_state=0).fit(X)
        >>> np.sort(mixture.means_[:, 0])
        array([ 1., 10.])
        >>> labels = mixture.predict([[0.0, 0.0], [12.0, 3.0]])
        >>> bool(labels[0] != labels[1])
        True
    """

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
        weights_init: Any = None,
        means_init: Any = None,
        precisions_init: Any = None,
        random_state: RandomState = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        method: str = "em",
        lr: float | None = None,
        batch_size: int | None = None,
        reseed_dead: bool = False,
        n_features: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        n_iter_no_change: int = 10,
        learning_decay: float = 0.6,
        learning_offset: float = 1.0,
        distributed: str = "auto",
    ) -> None:
        """See the class."""
        super().__init__()
        given = locals()
        for name in self._parameter_names():
            self._store(name, given[name])
        self._check_settings()
        n_components, n_features = self.n_components, self.n_features
        for name in ("weight_logits", "means", "scale"):
            self.register_parameter(name, None)
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64, device=device))
        self._from_data, self._gives_numpy = False, False
        if n_features is not None:
            kind: dict[str, Any] = {"dtype": dtype or torch.get_default_dtype(), "device": self.n_steps.device}
            drawn = torch.randn((n_components, n_features), generator=generator_of(random_state, torch.device("cpu")), dtype=torch.float64)
            means = drawn.to(**kind)
            self._set(Parameters(means.new_zeros(n_components), means, self._unit_scale(means)))

    def _unit_scale(self, means: Tensor) -> Tensor:
        k, d = means.shape
        if not has_factors(self.covariance_type):
            return means.new_zeros((k, d) if self.covariance_type == "diag" else (k,))
        eye = torch.eye(d, dtype=means.dtype, device=means.device)
        return eye if self.covariance_type == "tied" else eye.expand(k, d, d)

    def _check_settings(self) -> None:
        super()._check_settings()
        check.one_of("method", self.method, _METHODS)
        check.positive_int("n_iter_no_change", self.n_iter_no_change)
        if self.n_features is not None:
            check.positive_int("n_features", self.n_features)
        check.flag("reseed_dead", self.reseed_dead)
        for name in ("learning_offset", "learning_decay"):
            check.real(name, getattr(self, name), 0.0)
        if not 0.5 < self.learning_decay <= 1.0:
            raise ValueError(f"learning_decay={self.learning_decay!r}: expected a number in (0.5, 1]")
        if self.lr is not None:
            check.real("lr", self.lr, 0.0)
        if self.reseed_dead and self.method != "em":
            raise ValueError(f"reseed_dead=True, method={self.method!r}: expected method='em' to reseed components")

    # --- fitting ------------------------------------------------------------------------------------------------------

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
        """Estimate the parameters.

        In a process group (see ``distributed``) all processes call it with the same array, tensor or file, of which each reads its part, or
        each with batches of its own (for ``method="em"``). Sums are gathered and added in float64 in the order of the processes: the result
        does not depend on their number beyond rounding, and is the same in all. The main process calls ``callback`` and writes.

        Args:
            X: samples ``(N, D)``: an array, a tensor, a ``np.memmap``, or batches: a ``DataLoader`` or another iterable that starts anew
                with each loop and gives ``(batch, D)`` arrays or tensors (or tuples that begin with one). What is not in memory is never
                loaded whole; it is read once per iteration, and once or twice before the first.
            y: ignored.
            callback: ``callback(mixture, iteration, lower_bound)`` after each iteration, with the parameters of that iteration in place.
            checkpoint: a file that is replaced at every start, after every ``save_every`` iterations and at the end.
            save_every: iterations between two checkpoints.
            resume: go on from ``checkpoint``, to the very parameters that an unbroken fit ends at (with as many processes; with another
                number, up to rounding). The settings, all but ``max_iter``, and the data have to be the same.

        Raises:
            FileError: (a ValueError) if ``checkpoint`` cannot be written, or with ``resume`` not be read, or is of another fit.
            RunError: if another process of the group fails.
            ValueError: for NaN or infinity in X, fewer samples than components, or a shape that does not fit.
            SingularCovarianceError: (a ValueError) naming the components and what to change.
            DivergedError: if gradient ascent leaves the range of numbers.

        Warns:
            ConvergenceWarning: if ``max_iter`` was reached first. DeadComponentWarning: naming components without samples.

        Example:
            >>> import torch
            >>> from vae_fast.models import MixtureOfGaussians
            >>> _ = torch.manual_seed(0)
            >>> x = torch.cat([torch.randn(100, 1) - 4.0, torch.randn(100, 1) + 4.0])
            >>> MixtureOfGaussians(2).fit(x).weights_.round(2)
            array([0.5, 0.5], dtype=float32)
        """
        check.positive_int("save_every", save_every)
        if resume and checkpoint is None:
            raise ValueError("resume=True, checkpoint=None: expected the checkpoint to go on from")
        rows = self._rows(X, resume=self._resumes())
        self._fit(rows, callback, None if checkpoint is None else Path(checkpoint), save_every, resume)
        return self

    def fit_predict(self, X: Any, y: object = None, *, callback: Callback | None = None) -> Any:
        """:meth:`fit`, then :meth:`predict` for the same samples."""
        return self.fit(X, callback=callback).predict(X)

    def _resumes(self) -> bool:
        return bool(self.warm_start) and self._from_data

    def _rows(self, X: Any, *, resume: bool) -> Rows:
        """The samples of a fit, in the dtype and on the device of the parameters-to-be."""
        self._check_settings()
        world = current() if self.distributed == "auto" else World()
        own = self.means if self.means is not None and (resume or self.n_features is not None) else None
        dim = self.n_features if own is None else own.shape[1]
        rows = world.together(
            lambda: Rows(
                X,
                batch_size=self.batch_size,
                dtype=self.dtype or (None if own is None else own.dtype),
                device=self.device if own is None else own.device,
                fallback=self.n_steps.device,
                n_features=dim,
                world=world,
            )
        )
        world.same({"n_components": self.n_components} | rows.described())
        return rows

    def _seed(self, world: World) -> int:
        """What all that is drawn in a fit follows from: the same in every process."""
        generator = generator_of(self.random_state, torch.device("cpu"))
        return world.on_main(lambda: int(torch.randint(2**62, (), generator=generator)))

    def _fit(self, rows: Rows, callback: Callback | None, path: Path | None, save_every: int, resume: bool) -> None:
        world = rows.world
        if self.method == "adam" and not rows.has_places() and world.size > 1:
            raise ValueError("X comes in batches, method='adam': expected an array, a tensor or a file in a group of processes")
        config = settings_of(self.get_params(), rows.described())
        for name in ("max_iter", "verbose", "verbose_interval", "warm_start", "distributed", "dtype", "device"):
            config.pop(name, None)
        journal = Journal(path, save_every, config, world)
        journal.seed = self._seed(world)
        if resume:
            journal.read()
        generator = torch.Generator().manual_seed(journal.seed)
        samples, sample = rows.survey(self.n_components, generator)
        journal.check_data(digest_of(sample) if rows.has_places() else None, samples)
        if journal.generator is not None:
            generator.set_state(journal.generator)
        self.fit_history_ = journal.history

        def show(parameters: Parameters, iteration: int, bound: float) -> None:
            journal.note(iteration, bound)
            if callback is not None:
                self._set(parameters)
                world.on_main(lambda: callback(self, iteration, bound) and None)

        resumes = self._resumes()
        for init in range(journal.init, 1 if resumes else self.n_init):
            progress = Progress(init, self.verbose if world.main else 0, self.verbose_interval, show)
            loop, journal.loop = journal.loop, None
            start = self._began(rows, samples, sample, generator, loop)
            before = self.__dict__.get("lower_bound_", -math.inf) if resumes else -math.inf
            run = self._run(rows, samples, sample, start, before, generator, progress, journal, loop)
            progress.end(run)
            journal.ended(run.parameters._asdict(), run.lower_bounds, run.lower_bound, run.converged, generator)
        best = journal.best
        assert best is not None
        parameters = Parameters(**best.tensors)
        self._set(parameters.on(rows.device))
        self.converged_, self.n_iter_ = best.converged, len(best.lower_bounds)
        self.lower_bound_, self.lower_bounds_ = best.lower_bound, best.lower_bounds
        self._from_data, self._gives_numpy = True, rows.is_numpy
        self.n_steps.fill_(1)
        if not best.converged and self.max_iter > 0:
            advice = "raise max_iter or tol, or look for degenerate data"
            warnings.warn(f"the fit did not converge in max_iter={self.max_iter} iterations: {advice}", ConvergenceWarning, stacklevel=3)
        self._warn_of_dead(parameters.weight_logits.softmax(0) * samples)

    def _began(self, rows: Rows, samples: int, sample: Tensor, generator: torch.Generator, loop: dict[str, Any] | None) -> Parameters:
        """Where a start begins; where one has begun already that does not matter."""
        if loop is not None:
            return Parameters(**loop["parameters"]).on(rows.device)
        if self._resumes():
            return self._resume()
        world = rows.world
        return Parameters(*world.of_main(self._start(rows, samples, sample, generator)))

    def _run(
        self,
        rows: Rows,
        samples: int,
        sample: Tensor,
        start: Parameters,
        before: float,
        generator: torch.Generator,
        report: _em.Report,
        journal: Journal,
        loop: dict[str, Any] | None,
    ) -> Run:
        at_most = block_rows(self.n_components, rows.n_features)
        how: dict[str, Any] = {"tol": self.tol, "max_iter": self.max_iter, "reg_covar": self.reg_covar, "before": before, "report": report}
        how |= {"world": rows.world, "state": loop, "keep": lambda iteration, state: journal.keep(iteration, state, generator)}
        if self.method == "em":
            return expectation_maximisation(lambda: rows.blocks(at_most), start, self.covariance_type, reseed_dead=self.reseed_dead, **how)
        spread = sample.double().std(0, correction=0)
        return gradient_ascent(
            (lambda: rows.shuffled(generator)) if rows.is_batched() else (lambda: rows.blocks(at_most)),
            samples,
            torch.where(spread > 0.0, spread, 1.0).to(start.means),
            start,
            self.covariance_type,
            step_per_block=rows.is_batched(),
            lr=0.05 if self.lr is None else self.lr,
            patience=self.n_iter_no_change,
            **how,
        )

    def _resume(self) -> Parameters:
        now = Parameters(*(t.detach().clone() for t in self._now()))
        if len(now.means) != self.n_components:
            raise ValueError(f"n_components={self.n_components}: expected {len(now.means)}, as the mixture has, to start where it ended")
        return now

    def _start(self, rows: Rows, samples: int, sample: Tensor, generator: torch.Generator) -> Parameters:
        k, d, matrix = self.n_components, rows.n_features, self.covariance_type
        shapes = {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}
        weights = _mixture_start.given("weights_init", self.weights_init, (k,), rows)
        if weights is not None:
            total = weights.double().sum().item()
            if bool((weights < 0.0).any()) or abs(total - 1.0) > (1e-8 if weights.dtype == torch.float64 else 1e-5):
                raise ValueError(
                    f"weights_init sums to {total:g} with least entry {weights.min().item():g}: expected weights that sum to 1"
                )
        means = _mixture_start.given("means_init", self.means_init, (k, d), rows)
        precisions = _mixture_start.given("precisions_init", self.precisions_init, shapes[matrix], rows)
        scale = None if precisions is None else _em.scale_from_precisions(precisions, matrix)
        given = (weights, means, scale)
        return _mixture_start.start(rows, sample, samples, k, matrix, self.init_params, self.reg_covar, generator, given)

    def _warn_of_dead(self, counts: Tensor) -> None:
        dead = counts < _em.DEAD_COUNT
        if bool(dead.any()):
            what = f"{_em.named(dead)} of {self.n_components}: fewer than {_em.DEAD_COUNT} samples"
            advice = "ask for fewer components, try another start, or set reseed_dead=True"
            warnings.warn(f"{what}: {advice}", DeadComponentWarning, stacklevel=4)

    @torch.no_grad()
    def partial_fit(self, X: Any, y: object = None) -> Self:
        r"""One step of online EM (Cappe and Moulines 2009, eq. 9 and 10) with the samples X, all of which are used at once.

        The sums of the E-step, per sample, are averaged over the batches that came before: ``s <- (1 - g) s + g s(X)``,
        ``g = (t - 1 + learning_offset) ** -learning_decay`` (1 at most) for batch t, and an M-step follows. The running sums are those that
        the present parameters came from, so nothing else is stored; ``n_steps`` (in the ``state_dict``) counts batches, and a :meth:`fit`
        as one. The first batch, which must have K samples or more, is also where the start is found.

        Args:
            X: samples ``(N, D)``, or batches of them, as for :meth:`fit`; in a process group too.
            y: ignored.

        Raises:
            ValueError, SingularCovarianceError: as :meth:`fit`.

        Example:
            >>> import torch
            >>> from vae_fast.models import MixtureOfGaussians
            >>> mixture = MixtureOfGaussians(1, covariance_type="spherical", dtype=torch.float64)
            >>> for batch in torch.arange(8.0).reshape(2, 4, 1):
            ...     mixture = mixture.partial_fit(batch)
            >>> int(mixture.n_steps), mixture.means_.round(2)
            (2, array([[4.14]]))
        """
        rows = self._rows(X, resume=self._from_data)
        if self._from_data:
            old = self._resume()
            rows.world.together(lambda: [None for _ in rows.checked()] and None)
        else:
            generator = torch.Generator().manual_seed(self._seed(rows.world))
            old = Parameters(*rows.world.of_main(self._start(rows, *rows.survey(self.n_components, generator), generator)))
        kind, steps, at_most = self.covariance_type, int(self.n_steps) + 1, block_rows(self.n_components, rows.n_features)
        new = _em.expectation(lambda: rows.blocks(at_most), old, kind, self.n_components if self.reseed_dead else 0, rows.world)
        bound = _em.finite_bound(new, steps)
        gamma = max(steps - 1 + self.learning_offset, 1.0) ** -self.learning_decay
        sums = _em.blend(old, new, gamma, self.reg_covar, kind)
        parameters = _em.maximise(old, sums, self.reg_covar, kind, f"batch {steps}")
        seen = sums.counts * steps
        if self.reseed_dead and bool((seen < _em.DEAD_COUNT).any()):
            parameters = _em.reseed(parameters, seen < _em.DEAD_COUNT, new.worst, kind)
        parameters = Parameters(*rows.world.of_main(parameters))
        self._set(parameters)
        self.n_steps.fill_(steps)
        self.lower_bounds_ = [*self.__dict__.get("lower_bounds_", []), bound]
        self.converged_, self.n_iter_, self.lower_bound_ = False, steps, bound
        self._from_data, self._gives_numpy = True, rows.is_numpy
        self._warn_of_dead(parameters.weight_logits.softmax(0) * new.samples * steps)
        return self
