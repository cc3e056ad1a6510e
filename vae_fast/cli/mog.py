"""``vae-fast mog``: a mixture of Gaussians on points or images."""

from __future__ import annotations

import argparse
import contextlib
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae_fast import __version__, build_info, models, plots, training
from vae_fast.cli import _points
from vae_fast.cli._common import MOST_SECONDS, MOST_SEED, machine_for, machine_options, named_path, number, write_csv
from vae_fast.cli._directory import FILES, begun, run_directory
from vae_fast.data import toys
from vae_fast.errors import FileError, RunError, VaeFastError
from vae_fast.files import atomic_write, write_json
from vae_fast.functional.mixture import COVARIANCE_TYPES
from vae_fast.models._em import DEAD_COUNT
from vae_fast.training import distributed
from vae_fast.training.distributed import World

Mixture = models.MixtureOfGaussians | models.BayesianMixtureOfGaussians

_WRITTEN = FILES["mog"]
_PICTURES = _WRITTEN[-4:]
_CHECKPOINT = "fit.pt"
_COLUMNS = ("start", "iteration", "log_likelihood", "seconds")  # of --bayesian: lower_bound
_MOST_IMAGES = 100
#: Options that say where and how to run, not what the result is.
_NOT_SETTINGS = (
    *("run", "interrupted", "data_dir", "out", "overwrite", "threads", "no_pictures"),
    *("resume", "save_every", "timeout"),
)


def add_command(commands: Any) -> None:
    """Add ``mog`` to the commands of the parser."""
    mog = commands.add_parser(
        "mog",
        help="fit a mixture of Gaussians",
        description="Fit a mixture of K Gaussians to points or images, by expectation maximisation or by Adam on the log-likelihood, "
        "and write the mixture, metrics and pictures.",
        epilog="Files in DIR: mixture.npz (weights (K,), means (K, D), covariances (K, D, D), (D, D), (K, D) or (K,) by --covariance, and "
        "covariance_type; numpy.load reads it), config.json, metrics.csv (one row per iteration), results.json, log_likelihood.png; "
        "density.png for points of one or two dimensions; means.png (the heaviest first) and samples.png for images. Log-likelihoods "
        "are means in nats per point; images are read in [0, 1]. A component is dead when it is responsible for less than a tenth of a "
        "training point. With --bayesian the iterations' numbers are the lower bound of all points together, and there are no criteria. "
        "FILE.npy is mapped, not loaded. Started by torchrun, the processes fit one mixture, each to its part of the rows: "
        "torchrun --nproc-per-node 2 -m vae_fast mog --data FILE.npy -k 4096. While a fit is under way, DIR holds fit.pt, from which "
        "--resume goes on. Exit code: 0, 2 for an error (one line on stderr), 130 when interrupted. "
        "Example: vae-fast mog --data galaxy -k 50 --out runs/galaxy",
    )
    mog.set_defaults(run=_mog, interrupted="the iterations there were are in metrics.csv")
    _data_options(mog)
    _mixture_options(mog)
    add = mog.add_argument
    add("--out", metavar="DIR", type=named_path, help="where to write (default: runs/mog-NAME, NAME from --data)")
    add("--overwrite", action="store_true", help="replace the run in --out")
    add("--resume", action="store_true", help="go on with the fit in --out that was cut short, with the same options (--max-iter may grow)")
    add("--save-every", metavar="N", type=number(int, 1), default=10, help="iterations between two checkpoints (default: 10)")
    text = "seconds after which a process that does not answer is lost, under torchrun (default: 600)"
    add("--timeout", metavar="S", type=number(float, 0.0, MOST_SECONDS, open_below=True), default=distributed.TIMEOUT, help=text)
    machine_options(mog)


def _data_options(mog: argparse.ArgumentParser) -> None:
    add = mog.add_argument
    text = "FILE.npy with one point per row; the images of digits, mnist or frey; or a toy: " + ", ".join(toys.TOYS)
    add("--data", metavar="DATA", required=True, help=text)
    text = f"training points, and as many test points, drawn of a toy (default: {_points.TOY_POINTS})"
    add("--points", metavar="N", type=number(int, 2), help=text)
    text = "share of the rows of FILE.npy kept for the test, below 1 (default: 0; images and toys have test points)"
    add("--holdout", metavar="X", type=number(float, 0.0), default=0.0, help=text)
    text = "where the files of mnist and frey are; missing MNIST files are downloaded there"
    add("--data-dir", metavar="DIR", type=named_path, help=f"{text} (default: $VAE_FAST_DATA, else the user's cache)")


def _mixture_options(mog: argparse.ArgumentParser) -> None:
    add, positive, share = mog.add_argument, number(int, 1), number(float, 0.0)
    add("-k", "--components", metavar="K", type=positive, required=True, help="number of Gaussians")
    text = "form of the covariances (default: full)"
    add("--covariance", choices=COVARIANCE_TYPES, default="full", help=text)
    text = "em: expectation maximisation; adam: gradient steps on the log-likelihood (default: em)"
    add("--method", choices=("em", "adam"), default="em", help=text)
    add("--max-iter", metavar="N", type=positive, default=100, help="iterations at most; of adam: passes over the data (default: 100)")
    text = "a posterior by variational inference instead, of --method em only: as many of the K are used as the data speak for"
    add("--bayesian", action="store_true", help=text)
    text = "prior of each weight, of --bayesian only: the lower, the fewer components are used (default: 1 / K)"
    add("--concentration", metavar="X", type=number(float, 0.0, open_below=True), help=text)
    text = "stop once an iteration gains less than this many nats per point (default: 0.001)"
    add("--tol", metavar="X", type=share, default=1e-3, help=text)
    add("--reg-covar", metavar="X", type=share, default=1e-6, help="added to the variances (default: 1e-06)")
    add(
        "--lr",
        metavar="X",
        type=number(float, 0.0, open_below=True),
        help="step size, of adam only, relative to the spread of the data (default: 0.05)",
    )
    add("--batch-size", metavar="B", type=positive, help="points per step, of adam only (default: all)")
    text = "move dead components to the points the mixture fits worst, of em only"
    add("--reseed-dead", action="store_true", help=text)
    add("--n-init", metavar="N", type=positive, default=1, help="starts, of which the best is kept (default: 1)")
    add("--seed", metavar="N", type=number(int, 0, MOST_SEED), default=0, help="of starts, batches, toys and the hold-out (default: 0)")
    add("--dtype", choices=("float32", "float64"), default="float32", help="(default: float32)")


# --- the run ----------------------------------------------------------------------------------------------------------


def _mog(args: argparse.Namespace) -> int:
    for name in ("lr", "batch_size"):
        if args.method == "em" and getattr(args, name) is not None:
            raise RunError(f"--{name.replace('_', '-')}: goes with --method adam only")
    if args.method == "adam" and args.reseed_dead:
        raise RunError("--reseed-dead: goes with --method em only")
    for name, given in (("--method adam", args.method == "adam"), ("--reseed-dead", args.reseed_dead)):
        if args.bayesian and given:
            raise RunError(f"{name}: goes without --bayesian")
    if args.concentration is not None and not args.bayesian:
        raise RunError("--concentration: goes with --bayesian only")
    if args.holdout >= 1.0:
        raise RunError(f"--holdout {args.holdout:g}: expected a share below 1")
    if args.resume and args.overwrite:
        raise RunError("--resume: goes without --overwrite")
    args.device = distributed.local_device(args.device)
    with contextlib.ExitStack() as held:
        with distributed.join(torch.device("cuda" if args.device.startswith("cuda") else "cpu"), timeout=args.timeout) as world:
            finish = _run(args, world, held)
        # The others are not waited for, and do not wait: what is left is the main process's.
        if world.main:
            finish()
    return 0


def _points_of(args: argparse.Namespace, dtype: torch.dtype, world: World) -> _points.Points:
    points = _points.read(args.data, dtype, data_dir=args.data_dir, n=args.points, holdout=args.holdout, seed=args.seed, world=world)
    if args.components > len(points.train):
        raise RunError(f"-k {args.components}: {points.name} has only {len(points.train):,} training points")
    if world.size > len(points.train):
        raise RunError(f"{points.name} has {len(points.train):,} training points: expected one for each of {world.size} processes")
    return points


def _run(args: argparse.Namespace, world: World, held: contextlib.ExitStack) -> Callable[[], None]:
    """Fit; returns what the main process does at the end. ``held``: what it holds until then, the run's directory."""
    device = world.together(lambda: machine_for(args, pictures=not args.no_pictures))
    dtype = torch.float64 if args.dtype == "float64" else torch.float32
    world.same({name: value for name, value in vars(args).items() if name not in ("run", "device")})
    if args.data in _points.IMAGES:
        world.on_main(lambda: _points_of(args, dtype, World()) and None)  # first, and alone: it may have to download them
    points = _points_of(args, dtype, world)
    out: Path = args.out or Path("runs") / f"mog-{Path(points.name).stem}"
    if distributed.restarts() and world.on_main(lambda: begun(out, _CHECKPOINT)):
        args.resume, args.overwrite = True, False  # torchrun gives a restarted process the same command line

    def open_directory() -> None:
        if args.resume and not (out / _CHECKPOINT).is_file():
            raise FileError(f"{out}: holds no fit that was cut short ({_CHECKPOINT}); leave out --resume")
        held.enter_context(run_directory(out, "mog", keep=args.resume, overwrite=args.overwrite))
        print(_description(args, points, device, world), flush=True)
        write_json(out / "config.json", _config(args))

    world.on_main(open_directory)
    model = _model(args, dtype, device)
    watch = _fit(args, model, points.train, out, world)
    results = _results(model, points, watch, world)

    def finish() -> None:
        _save_mixture(out / "mixture.npz", model, args.covariance)
        write_json(out / "results.json", results)
        (out / _CHECKPOINT).unlink(missing_ok=True)
        print(_summary(results), flush=True)
        if not args.no_pictures:
            _draw(out, model, points, watch, _title(args, points))
        print(f"wrote {out}: {', '.join(name for name in _WRITTEN if (out / name).exists())}", flush=True)

    return finish


def _model(args: argparse.Namespace, dtype: torch.dtype, device: torch.device) -> Mixture:
    names = ("tol", "reg_covar", "max_iter", "n_init")
    common = {name: getattr(args, name) for name in names} | {"random_state": args.seed, "dtype": dtype, "device": device}
    k, kind = args.components, args.covariance
    if args.bayesian:
        return models.BayesianMixtureOfGaussians(k, covariance_type=kind, weight_concentration_prior=args.concentration, **common)
    own = {name: getattr(args, name) for name in ("method", "lr", "batch_size", "reseed_dead")}
    return models.MixtureOfGaussians(k, covariance_type=kind, **own, **common)


class _Watch:
    """What is recorded and printed while the model is fitted; ``what`` an iteration gives, in words."""

    def __init__(self, bar: Any | None, points: int, what: str) -> None:
        self.rows: list[dict[str, float]] = []
        self.what, self.column = what, what.replace(" ", "_").replace("-", "_")
        self.columns = tuple(self.column if name == "log_likelihood" else name for name in _COLUMNS)
        self._bar, self._points = bar, points

    def __call__(self, model: Mixture, iteration: int, value: float) -> None:
        rows = model.fit_history_
        self.rows += [dict(zip(self.columns, row, strict=True)) for row in rows[len(self.rows) :]]
        start = int(self.rows[-1]["start"])
        if self._bar is not None:
            seconds = self.rows[-1]["seconds"] - (self.rows[-2]["seconds"] if len(self.rows) > 1 else 0.0)
            self._bar.set_description(f"{self.what} {value:.4f}", refresh=False)
            self._bar.set_postfix_str(f"{self._points / max(seconds, 1e-9):,.0f} rows/s", refresh=False)
            self._bar.update(len(self.rows) - self._bar.n)
        # 1 to 10, then every tenth, then every hundredth: the first iterations change most.
        if iteration % 10 ** int(math.log10(max(1, iteration))) == 0:
            begun = f"start {start}  " if start > 1 else ""
            training.say(f"{begun}iteration {iteration:>4}  {self.what} {value:.4f}")

    def starts(self) -> list[list[float]]:
        """The values of each start."""
        count = int(self.rows[-1]["start"]) if self.rows else 0
        return [[row[self.column] for row in self.rows if row["start"] == i + 1] for i in range(count)]


def _fit(args: argparse.Namespace, model: Mixture, x: _points.Rows, out: Path, world: World) -> _Watch:
    """Fit; whatever happens, the iterations there were are in metrics.csv."""
    with training.progress_bar(None if world.main else False, args.max_iter * args.n_init, 0) as bar:
        if bar is not None:
            bar.unit, bar.unit_scale = " iterations", False
            bar.set_description("looking for a start")
        watch = _Watch(bar, len(x), "lower bound" if args.bayesian else "log-likelihood")
        try:
            with warnings.catch_warnings():  # the summary says both
                warnings.simplefilter("ignore", models.ConvergenceWarning)
                warnings.simplefilter("ignore", models.DeadComponentWarning)
                model.fit(x, callback=watch, checkpoint=out / _CHECKPOINT, save_every=args.save_every, resume=args.resume)
        except VaeFastError:
            raise
        except (ValueError, ArithmeticError) as error:
            raise RunError(f"the fit failed: {error}") from error
        finally:
            if world.main:
                write_csv(out / "metrics.csv", watch.columns, watch.rows)
    return watch


def _config(args: argparse.Namespace) -> dict[str, Any]:
    settings = {name: value for name, value in vars(args).items() if name not in _NOT_SETTINGS}
    settings |= {"vae_fast": __version__, "torch": str(torch.__version__)}
    return settings if distributed.job() is None else settings | {"job": distributed.job()}


def _description(args: argparse.Namespace, points: _points.Points, device: torch.device, world: World) -> str:
    n, d = points.train.shape
    tested = "no test points" if points.test is None else f"{len(points.test):,} test points"
    return (
        f"{points.name}: {n:,} training and {tested} of dimension {d}\n"
        f"mixture: K = {args.components}, {args.covariance} covariances, by {'variational inference' if args.bayesian else args.method}; "
        f"device {device}, {args.dtype}, backend {build_info()['backend']}" + (f"; {world.size} processes" if world.size > 1 else "")
    )


def _title(args: argparse.Namespace, points: _points.Points) -> str:
    how = "variational" if args.bayesian else "EM" if args.method == "em" else "Adam"
    return f"{plots.literal(points.name)}: K = {args.components}, {args.covariance} covariances, {how}"


def _save_mixture(path: Path, model: Mixture, covariance_type: str) -> None:
    with atomic_write(path) as file:
        arrays = {name: getattr(model, f"{name}_") for name in ("weights", "means", "covariances")}
        np.savez(file, covariance_type=np.array(covariance_type), **arrays)


def _results(model: Mixture, points: _points.Points, watch: _Watch, world: World) -> dict[str, Any]:
    """Each process goes over its part of the points."""
    test = points.test
    train_total, n = model.total_log_prob(points.train, world)
    results: dict[str, Any] = {"train_log_likelihood": train_total / n}
    if test is not None:
        total, count = model.total_log_prob(test, world)
        results["test_log_likelihood"] = total / count
        if points.toy in toys.KNOWN:
            results["true_test_log_likelihood"] = toys.toy_log_prob(points.toy, _points.some(test, torch.float64)).mean().item()
    if isinstance(model, models.BayesianMixtureOfGaussians):
        results |= {"lower_bound": model.lower_bound_}
    else:
        free = model.free_parameters()
        results |= {"bic": -2.0 * train_total + free * math.log(n), "aic": -2.0 * train_total + 2.0 * free}
    return results | {
        "starts": len(watch.starts()),
        "iterations": model.n_iter_,
        "converged": model.converged_,
        "dead_components": int((model.weights_ * n < DEAD_COUNT).sum()),
        "seconds": watch.rows[-1]["seconds"] if watch.rows else 0.0,
    }


def _summary(results: dict[str, Any]) -> str:
    ended = "converged" if results["converged"] else "not converged (see --max-iter and --tol)"
    test = f", test {results['test_log_likelihood']:.4f}" if "test_log_likelihood" in results else ""
    true = f" (the true density: {results['true_test_log_likelihood']:.4f})" if "true_test_log_likelihood" in results else ""
    best = f"the best of {results['starts']} starts: " if results["starts"] > 1 else ""
    return (
        f"{best}{ended} after {results['iterations']} iterations, {results['seconds']:.1f} s in all\n"
        f"log-likelihood in nats per point: training {results['train_log_likelihood']:.4f}{test}{true}\n"
        f"{_criteria(results)}  dead components: {results['dead_components']}"
    )


def _criteria(results: dict[str, Any]) -> str:
    if "bic" not in results:
        return f"lower bound {results['lower_bound']:,.1f}"
    return f"BIC {results['bic']:,.1f}  AIC {results['aic']:,.1f}"


# --- pictures ---------------------------------------------------------------------------------------------------------


def _draw(out: Path, model: Mixture, points: _points.Points, watch: _Watch, title: str) -> None:
    curve_png, density_png, means_png, samples_png = (out / name for name in _PICTURES)
    starts = sorted(watch.starts(), key=lambda values: values[-1])
    if starts:
        how = {"label": "lower bound, nats"} if watch.column == "lower_bound" else {}
        plots.log_likelihood_curve(curve_png, starts[-1], title, starts[:-1], **how)
    weights, means, covariances = (torch.from_numpy(t) for t in (model.weights_, model.means_, model.covariances_))
    d = points.train.shape[1]
    if points.image_shape is not None:
        order = weights.argsort(descending=True)[:_MOST_IMAGES]
        plots.image_grid(means_png, list(means[order].clamp(0.0, 1.0).split(10)), points.image_shape)
        drawn, _ = model.sample(_MOST_IMAGES)
        plots.image_grid(samples_png, list(drawn.clamp(0.0, 1.0).split(10)), points.image_shape)
    elif d <= 2:
        train = _points.some(points.train, torch.float64)
        matrices = plots.covariance_matrices(covariances, model.covariance_type, len(weights), d)
        if d == 1:
            plots.density_1d(density_png, train, weights, means[:, 0], matrices[:, 0, 0], title)
        else:
            plots.density_2d(density_png, train, model.score_samples, weights, means, matrices, title)
