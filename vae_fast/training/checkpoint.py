"""Checkpoints: tensors and plain containers only, written whole or not at all, refused with a reason.

The file is torch.save's archive with a SHA-256 of all of it (:mod:`vae_fast._archive` says why not another format), and
everything in it is compared with what a run writes, and with the run that takes it up, before any of it is used. Files of format
version 1, of earlier releases, have no digest: they are read if each part's checksum and name hold, and become version 2 when they
are next written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vae_fast._archive import read_archive, write_archive
from vae_fast.errors import FileError
from vae_fast.files import atomic_write, hidden_name
from vae_fast.training.checkpoint_content import broken, check_content, compare_weights, fitting_optimizer

FORMAT = "vae_fast.checkpoint"
VERSION = 2
_VERSIONS = (1, VERSION)


def save(
    path: str | os.PathLike[str],
    *,
    model: nn.Module,
    optimizer: Optimizer,
    shuffle: torch.Generator,
    history: Sequence[Mapping[str, float]],
    config: Mapping[str, Any],
) -> None:
    """Write everything :func:`restore` needs to continue a run as if it had never stopped.

    Args:
        path: replaced in one step once the new file is complete.
        model, optimizer: their ``state_dict()`` is saved.
        shuffle: the generator of the batch order.
        history: one plain record per finished epoch.
        config: plain values (numbers, strings, None) that a resumed run must agree with, except ``epochs``.

    Raises:
        FileError: if the file cannot be written; what was at ``path`` before is untouched.
        ValueError: naming what in the states or in ``config`` is neither plain nor a dense tensor.

    Example:
        >>> import tempfile
        >>> model = torch.nn.Linear(2, 1)
        >>> adam = torch.optim.Adam(model.parameters())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "checkpoint.pt"
        ...     save(file, model=model, optimizer=adam, shuffle=torch.Generator(), history=[], config={"lr": 1e-3})
        ...     load(file)["config"]
        {'lr': 0.001}
    """
    state = snapshot(model=model, optimizer=optimizer, shuffle=shuffle.get_state(), history=history, config=config)
    write(path, state | {"rng": rng_state(device_of(model))})


def snapshot(
    *,
    model: nn.Module,
    optimizer: Optimizer,
    shuffle: Tensor,
    history: Sequence[Mapping[str, float]],
    config: Mapping[str, Any],
    partial: Mapping[str, float] | None = None,
    keep: bool = True,
) -> dict[str, Any]:
    """What a checkpoint holds, all but ``rng``; with sharded weights every process has to call it.

    A sharded model is saved whole, so that the file is the same for every number of processes.

    Args:
        model, optimizer, history, config: as in :func:`save`.
        shuffle: the state of the generator of the batch order; inside an epoch, from before its order was drawn.
        partial: inside an epoch, the ``step`` it has come to and the sums so far.
        keep: False in the processes that do not write: the whole tensors are dropped there.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> adam = torch.optim.Adam(model.parameters())
        >>> state = snapshot(model=model, optimizer=adam, shuffle=torch.Generator().get_state(), history=[], config={})
        >>> state["epoch"], sorted(state["model"])
        (0, ['bias', 'weight'])
    """
    state = {
        "format": FORMAT,
        "version": VERSION,
        "torch": str(torch.__version__),
        "model": whole(model.state_dict(), keep),
        "optimizer": whole(optimizer.state_dict(), keep),
        "shuffle": shuffle,
        "epoch": len(history),
        "history": [dict(record) for record in history],
        "config": dict(config),
    }
    return state if partial is None else state | {"partial": dict(partial)}


def write(path: str | os.PathLike[str], state: Mapping[str, Any], *, previous: bool = False) -> None:
    """Write a checkpoint's content in one step.

    Args:
        path: replaced once the new file is complete.
        state: from :func:`snapshot`, with ``rng``.
        previous: keep what was at ``path`` under the name :func:`previous_of` gives.

    Raises:
        FileError: if the file cannot be written; what was there before is untouched.
        ValueError: naming what in ``state`` is neither plain nor a dense tensor.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for _ in range(2):
        ...         write(Path(folder) / "a.pt", {}, previous=True)
        ...     sorted(file.name for file in Path(folder).iterdir())
        ['a.previous.pt', 'a.pt']
    """
    path = Path(path)
    try:
        with atomic_write(path) as file:
            write_archive(file, state)
            if previous and path.exists():
                file.flush()
                os.fsync(file.fileno())  # the new one is on the disk before the old ones are touched
                _set_aside(path, previous_of(path))
    except RuntimeError as error:  # torch's writer turns a failed write into a RuntimeError
        raise FileError(f"{path}: cannot be written: {error.__context__ or error}") from error


def _set_aside(path: Path, name: Path) -> None:
    """Give a file a second name in one step, so that it is never without one."""
    part = hidden_name(name)
    try:
        os.link(path, part, follow_symlinks=False)
    except OSError:  # a file system without links
        path.replace(name)
    else:
        part.replace(name)


def previous_of(path: str | os.PathLike[str]) -> Path:
    """Where the checkpoint before the newest is kept.

    Example:
        >>> previous_of("run/checkpoint.pt").name
        'checkpoint.previous.pt'
    """
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def newest(path: str | os.PathLike[str]) -> tuple[dict[str, Any], str | None]:
    """The newest checkpoint that can be read, and why an older one was taken, if one was.

    Raises:
        FileError: as :func:`load`, about ``path``, if the one before is of no use either.

    Example:
        >>> newest("nowhere/checkpoint.pt")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        FileError: nowhere/checkpoint.pt: cannot be read: No such file or directory
    """
    try:
        return load(path), None
    except FileError as error:
        older = previous_of(path)
        if not older.exists():
            raise
        try:
            state = load(older)
        except FileError:
            raise error from None
        return state, f"{error}: fell back on {older.name}"


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. No code in the file is run (``weights_only=True``).

    Raises:
        FileError: naming the file and why: not there, truncated, a bit flipped, holds code, not one of ours, of another
            version, holds what no run writes.
    """
    path = Path(path)
    state, verified = read_archive(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise FileError(f"{path}: not a checkpoint of vae_fast (no format={FORMAT!r} inside)")
    if type(state.get("version")) is not int or state["version"] not in _VERSIONS:
        raise FileError(f"{path}: format version {state.get('version')!r:.20}: this release reads {VERSION} and 1")
    if state["version"] == VERSION and not verified:
        raise FileError(f"{path}: not a checkpoint, broken or truncated: the checksum at its end is gone")
    check_content(path, state)
    return state


def restore(
    path: str | os.PathLike[str],
    *,
    model: nn.Module,
    optimizer: Optimizer,
    shuffle: torch.Generator,
    config: Mapping[str, Any],
) -> list[dict[str, float]]:
    """Load a checkpoint into a run: weights, optimizer, batch order and torch's random number generators.

    Everything is compared before anything is changed.

    Returns:
        The history: one record per finished epoch.

    Raises:
        FileError: naming the file and what does not fit: a setting, a weight's shape, the optimizer's state.
    """
    state = load(path)
    adopt(path, state, model=model, optimizer=optimizer, shuffle=shuffle, config=config)
    return list(state["history"])


def adopt(
    path: str | os.PathLike[str],
    state: Mapping[str, Any],
    *,
    model: nn.Module,
    optimizer: Optimizer,
    shuffle: torch.Generator,
    config: Mapping[str, Any],
    rank: int = 0,
) -> None:
    """:func:`restore` from a checkpoint that is loaded; it need not come from as many processes.

    Args:
        path: for the messages.
        state: from :func:`load`.
        model, optimizer: sharded or not.
        shuffle, config: as in :func:`restore`.
        rank: whose random number generators are set; those of rank 0 where the file holds none for it.

    Raises:
        FileError: as :func:`restore`.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> parts = {"model": model, "optimizer": torch.optim.Adam(model.parameters()), "config": {}}
        >>> state = snapshot(shuffle=torch.Generator().get_state(), history=[], **parts) | {"rng": rng_state(device_of(model))}
        >>> adopt("checkpoint.pt", state, shuffle=torch.Generator(), **parts)
    """
    path = Path(path)
    for key in sorted((config.keys() | state["config"].keys()) - {"epochs"}):
        here, there = config.get(key), state["config"].get(key)
        if here != there:
            raise FileError(f"{path}: was trained with {key}={there!r}, this run has {key}={here!r}: expected the same")
    here_weights = model.state_dict()
    compare_weights(path, state["model"], here_weights)
    moments = fitting_optimizer(path, state["optimizer"], optimizer)
    rng, device = state["rng"].get("ranks", {}).get(rank, state["rng"]), device_of(model)
    if device.type == "cuda" and "cuda" in rng:
        try:
            torch.Generator(device).set_state(rng["cuda"])
        except (RuntimeError, TypeError) as error:
            broken(path, "random number generator state", error)
    weights = dict(state["model"])
    if any(hasattr(t, "device_mesh") for t in here_weights.values()):
        weights = {name: like(value, here_weights[name]) for name, value in weights.items()}
        moments = _sharded(moments, optimizer)
    model.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    shuffle.set_state(state["shuffle"])
    torch.set_rng_state(rng["cpu"])
    if device.type == "cuda" and "cuda" in rng:
        torch.cuda.set_rng_state(rng["cuda"], device)


def world_size_of(state: Mapping[str, Any]) -> int:
    """How many processes wrote a checkpoint.

    Example:
        >>> world_size_of({"rng": {}})
        1
    """
    return 1 + len(state["rng"].get("ranks", ()))


def _sharded(state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's state with each tensor sharded as its parameter is."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    parts = {i: {k: like(v, params[i]) for k, v in values.items()} for i, values in state["state"].items()}
    return {**state, "state": parts}


# --- whole tensors and parts ------------------------------------------------------------------------------------------


def whole(value: Any, keep: bool = True) -> Any:
    """A state dict with its sharded tensors made whole, on the CPU. Every process has to call it; ``keep=False``: what is whole is dropped.

    Example:
        >>> whole({"a": [torch.ones(1), 2]})
        {'a': [tensor([1.]), 2]}
    """
    if isinstance(value, Mapping):
        parts = {k: whole(v, keep) for k, v in value.items()}
        return parts if any(parts[k] is not v for k, v in value.items()) else value
    if hasattr(value, "full_tensor"):
        full = value.full_tensor()
        return full.cpu() if keep else None
    return value


def like(value: Any, target: Tensor) -> Any:
    """A whole tensor sharded as ``target`` is, or itself; nothing is sent: every process has the whole.

    Example:
        >>> like(torch.ones(2), torch.zeros(2))
        tensor([1., 1.])
    """
    mesh: Any = getattr(target, "device_mesh", None)
    if mesh is None or not isinstance(value, Tensor) or value.shape != target.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(target.device), mesh, target.placements, src_data_rank=None)  # type: ignore[attr-defined]


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter or buffer; the CPU if it has none.

    Example:
        >>> device_of(nn.Linear(2, 1))
        device(type='cpu')
    """
    for t in (*model.parameters(), *model.buffers()):
        return t.device
    return torch.device("cpu")


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """torch's random number generators of this process: the CPU's and the device's.

    Example:
        >>> list(rng_state(torch.device("cpu")))
        ['cpu']
    """
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state
