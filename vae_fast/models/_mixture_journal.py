"""The file in which the fit of a mixture writes how far it has come, and from which it goes on."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae_fast._archive import read_archive, write_archive
from vae_fast._world import World
from vae_fast.errors import FileError
from vae_fast.files import atomic_write
from vae_fast.models._mixture_start import numbers

FORMAT = "vae_fast.mixture_fit"
VERSION = 1
_KEYS = frozenset(("format", "version", "torch", "config", "seed", "generator", "init", "best", "loop", "history", "data"))


class Best(NamedTuple):
    """The best start so far: where it ended, by name, and what a fit tells of it."""

    tensors: dict[str, Tensor]
    lower_bounds: list[float]
    lower_bound: float
    converged: bool


class Journal:
    """How far a fit has come, for one that is killed: the file is replaced in one step, by the main process.

    Args:
        path: None writes nothing.
        every: iterations between two checkpoints; the ends of starts have one of their own.
        config: what a fit that goes on must have in common with the one that wrote.
        world: the processes of the fit.

    Attributes:
        seed, init, best, loop: of :meth:`read`: what all that is drawn follows from, the start that is under way, the best one before it,
            and where its loop had come to (None: at its beginning).
        history: for each iteration of each start: start (from 1), iteration, lower bound, seconds since the fit began.
        generator: the generator's state.
    """

    def __init__(self, path: Path | None, every: int, config: dict[str, Any], world: World) -> None:
        """See the class."""
        self.path, self.every, self.config, self.world = path, every, config, world
        self.seed, self.init = 0, 0
        self.best: Best | None = None
        self.loop: dict[str, Any] | None = None
        self.generator: Tensor | None = None
        self.digest: list[Any] | None = None
        self.history: list[list[float]] = []
        self._began = time.perf_counter()

    def seconds(self) -> float:
        """Since the fit began, the time that a run before has taken included."""
        return time.perf_counter() - self._began

    def read(self) -> None:
        """Take up what the file holds, in every process.

        Raises:
            FileError: naming the file and why it cannot be used: damaged, no such checkpoint, of another fit.
        """
        assert self.path is not None
        path = self.path
        state = self.world.on_main(lambda: _read(path, self.config))
        self.seed, self.init, self.loop, self.generator = state["seed"], state["init"], state["loop"], state["generator"]
        self.digest = state["data"]
        best = state["best"]
        if best is not None:
            self.best = Best(best["parameters"], best["bounds"], best["bound"], best["converged"])
        self.history = [list(row) for row in state["history"]]
        self._began -= self.history[-1][3] if self.history else 0.0

    def check_data(self, digest: str | None, samples: int) -> None:
        """Compare the data with those of the fit that is taken up, if one is; note them else.

        Raises:
            FileError: naming the file.
        """
        taken = self.digest is not None
        if taken and (digest, samples) != tuple(self.digest or ()):
            raise FileError(f"{self.path}: was fitted to other data: expected the same samples")
        self.digest = [digest, samples]

    def ended(self, tensors: Mapping[str, Tensor], bounds: list[float], bound: float, converged: bool, generator: torch.Generator) -> None:
        """A start is at its end; the best of those there were is kept, of equal ones the first.

        Starts that end at the same fit, its components in another order, differ by rounding, which a number of processes or another
        processor changes: it must not choose.
        """
        rounding = 2**10 * max(torch.finfo(t.dtype).eps for t in tensors.values() if t.is_floating_point())
        same = self.best is not None and math.isclose(bound, self.best.lower_bound, rel_tol=rounding, abs_tol=rounding)
        if self.best is None or (bound > self.best.lower_bound and not same):
            self.best = Best(dict(tensors), bounds, bound, converged)
        self.init += 1
        self.keep(0, None, generator)

    def note(self, iteration: int, bound: float) -> None:
        """An iteration has been made."""
        self.history.append([self.init + 1, iteration, bound, self.seconds()])

    def keep(self, iteration: int, loop: Callable[[], dict[str, Any]] | None, generator: torch.Generator) -> None:
        """Write, if it is time to: with ``loop`` None the start is at its end."""
        if self.path is None or (loop is not None and iteration % self.every):
            return
        self.world.on_main(lambda: self._write(None if loop is None else loop(), generator))

    def _write(self, loop: dict[str, Any] | None, generator: torch.Generator) -> None:
        assert self.path is not None
        best = None
        if self.best is not None:
            tensors, bounds, bound, converged = self.best
            best = {"parameters": tensors, "bounds": bounds, "bound": bound, "converged": converged}
        state = {"format": FORMAT, "version": VERSION, "torch": str(torch.__version__), "config": self.config, "data": self.digest}
        state |= {"seed": self.seed, "generator": generator.get_state(), "history": self.history}
        state |= {"init": self.init, "best": best, "loop": loop}
        try:
            with atomic_write(self.path) as file:
                write_archive(file, _on_cpu(state))
        except RuntimeError as error:  # torch's writer turns a failed write into a RuntimeError
            raise FileError(f"{self.path}: cannot be written: {error.__context__ or error}") from error


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {k: _on_cpu(v) for k, v in value.items()}
    return [_on_cpu(v) for v in value] if isinstance(value, list | tuple) else value


def settings_of(params: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments as plain values: arrays by a digest, generators not at all."""
    config: dict[str, Any] = {}
    for name, value in params.items():
        if value is None or isinstance(value, bool | int | float | str):
            config[name] = value
        elif isinstance(value, torch.dtype):
            config[name] = str(value)
        elif name.endswith(("_init", "_prior")):
            config[name] = hashlib.sha256(numbers(name, value).double().cpu().contiguous().numpy().tobytes()).hexdigest()
    return config | dict(more)


def _read(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    state, verified = read_archive(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise FileError(f"{path}: not a checkpoint of a mixture's fit (no format={FORMAT!r} inside)")
    if type(state.get("version")) is not int or state["version"] != VERSION:
        raise FileError(f"{path}: format version {state.get('version')!r:.20}: this release reads {VERSION}")
    fault = "the checksum at its end is missing" if not verified else _fault(state)
    if fault is not None:
        raise FileError(f"{path}: broken checkpoint: {fault}")
    for key in sorted(config.keys() | state["config"].keys()):
        here, there = config.get(key), state["config"].get(key)
        if here != there:
            raise FileError(f"{path}: was fitted with {key}={there!r}, this run has {key}={here!r}: expected the same")
    fault = _misfit(state, config)
    if fault is not None:
        raise FileError(f"{path}: broken checkpoint: {fault}")
    return state


def _fault(state: Mapping[str, Any]) -> str | None:
    """What in a checkpoint no fit writes."""
    if state.keys() != _KEYS:
        return f"it holds {', '.join(map(str, sorted(state, key=str)))}"
    if not isinstance(state["config"], dict):
        return "config is no dictionary"
    if not all(type(state[name]) is int and state[name] >= 0 for name in ("seed", "init")):
        return "seed and init are no counts"
    data = state["data"]
    if not (isinstance(data, list) and [type(v) for v in data] in ([str, int], [type(None), int])):
        return "data is no digest and count"
    rows = state["history"]
    if not isinstance(rows, list) or not all(isinstance(r, list) and len(r) == 4 and all(type(v) in (int, float) for v in r) for r in rows):
        return "history is no list of rows of four numbers"
    try:
        torch.Generator().set_state(state["generator"])
    except (RuntimeError, TypeError) as error:
        return f"generator: {str(error).splitlines()[0]}"
    if not all(state[name] is None or isinstance(state[name], dict) for name in ("best", "loop")):
        return "best and loop are no dictionaries"
    return None


def _misfit(state: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """What does not fit the mixture, of what its loop is to go on with."""
    k, d = config["n_components"], config["n_features"]
    scale = {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}[config["covariance_type"]]
    shapes: dict[str, tuple[int, ...]] = {"weight_logits": (k,), "means": (k, d), "scale": scale}
    if config["method"] == "variational":
        process = config["weight_concentration_prior_type"] == "dirichlet_process"
        shapes = {"concentration": (2, k) if process else (k,), "mean_precision": (k,), "means": (k, d), "scale": scale}
        shapes["degrees_of_freedom"] = () if config["covariance_type"] == "tied" else (k,)
    dtype = str(torch.float64) if config["method"] == "variational" else config["computed_in"]
    loop, best = state["loop"] or {}, state["best"] or {}
    wanted = {"parameters": dict, "bounds": list, "previous": float}
    if config["method"] == "adam":
        wanted |= {"best_parameters": dict, "optimizer": dict, "best": float, "reached": float, "since": int, "cuts": int}
    if state["loop"] is not None and {name: type(value) for name, value in loop.items()} != wanted:
        return "loop holds other things than a fit's"
    if state["best"] is not None and {n: type(v) for n, v in best.items()} != {
        "parameters": dict,
        "bounds": list,
        "bound": float,
        "converged": bool,
    }:
        return "best holds other things than a fit's"
    for part in (loop, best):
        if not all(type(b) is float and math.isfinite(b) for b in part.get("bounds", ())):
            return "a bound is no finite number"
        for tensors in (part[name] for name in ("parameters", "best_parameters") if name in part):
            if {n: tuple(t.shape) if isinstance(t, Tensor) else None for n, t in tensors.items()} != shapes:
                return "its parameters have other shapes"
            if any(str(t.dtype) != dtype for t in tensors.values()):
                return "its parameters have another dtype"
    return None
