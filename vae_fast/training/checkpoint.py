"""Checkpoints: tensors and plain containers only, written atomically; a file that is damaged or does not fit is refused with the reason.

The file is a ``torch.save`` archive with a SHA-256 digest of its content (:mod:`vae_fast._archive` says why this format). Its content is
checked against what a run writes, and against the run that resumes from it, before any of it is used. Format version 1, written by
earlier releases, has no digest: such a file is read if the checksum and name of each part are right, and is written as version 2 the
next time.
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
        path: replaced atomically once the new file is complete.
        model, optimizer: their ``state_dict()`` is saved.
        shuffle: the generator of the batch order.
        history: one plain record per finished epoch.
        config: plain values (numbers, strings, None) that a resumed run must agree with, except ``epochs``.

    Raises:
        FileError: if the file cannot be written; what was at ``path`` before is untouched.
        ValueError: naming the entry of a state or of ``config`` that is neither a plain value nor a dense tensor.

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
    """The content of a checkpoint, except for ``rng``. With sharded weights every process has to call it.

    The weights of a sharded model are gathered, so that the file does not depend on the number of processes.

    Args:
        model, optimizer, history, config: as in :func:`save`.
        shuffle: state of the generator of the batch order; inside an epoch, the state before the epoch's order was drawn.
        partial: inside an epoch, the number of steps taken (``step``) and the sums so far.
        keep: False in the processes that do not write: they drop the gathered tensors.

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
    """Write the content of a checkpoint atomically.

    Args:
        path: replaced once the new file is complete.
        state: from :func:`snapshot`, with ``rng``.
        previous: keep the file that was at ``path``, under the name that :func:`previous_of` gives.

    Raises:
        FileError: if the file cannot be written; what was there before is untouched.
        ValueError: naming the entry of ``state`` that is neither a plain value nor a dense tensor.

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
    """The path of the checkpoint before the newest.

    Example:
        >>> previous_of("run/checkpoint.pt").name
        'checkpoint.previous.pt'
    """
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def newest(path: str | os.PathLike[str]) -> tuple[dict[str, Any], str | None]:
    """The newest checkpoint that can be read: the one at ``path``, otherwise the previous one.

    Returns:
        The checkpoint as :func:`load` gives it, and None or the line that says why the previous one was taken.

    Raises:
        FileError: as :func:`load`, about ``path``, if the previous checkpoint cannot be read either.

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
        return state, f"{error}: fell back to {older.name}"


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. No code in the file is run (``weights_only=True``).

    Raises:
        FileError: naming the file and the reason: it is missing, truncated or damaged, contains code, is not a checkpoint of vae_fast,
            has an unknown format version, or holds something that no run writes.

    Example:
        >>> load("nowhere/checkpoint.pt")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        FileError: nowhere/checkpoint.pt: cannot be read: No such file or directory
    """
    path = Path(path)
    state, verified = read_archive(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise FileError(f"{path}: not a checkpoint of vae_fast (no format={FORMAT!r} inside)")
    if type(state.get("version")) is not int or state["version"] not in _VERSIONS:
        raise FileError(f"{path}: format version {state.get('version')!r:.20}: this release reads {VERSION} and 1")
    if state["version"] == VERSION and not verified:
        raise FileError(f"{path}: not a checkpoint, broken or truncated: the checksum at its end is missing")
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

    Everything is checked before anything is changed.

    Args:
        path: a file that :func:`save` wrote.
        model, optimizer, shuffle: changed in place.
        config: as in :func:`save`; every value except ``epochs`` has to equal the stored one.

    Returns:
        The history: one record per finished epoch.

    Raises:
        FileError: as :func:`load`; or naming the file and what does not fit: a setting, the shape of a weight, the optimizer's state.

    Example:
        >>> import tempfile
        >>> model = torch.nn.Linear(2, 1)
        >>> adam = torch.optim.Adam(model.parameters())
        >>> run = {"model": model, "optimizer": adam, "shuffle": torch.Generator(), "config": {"lr": 1e-3}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "checkpoint.pt"
        ...     save(file, history=[{"epoch": 1, "loss": 2.0, "kl": 0.5}], **run)
        ...     restore(file, **run)
        [{'epoch': 1, 'loss': 2.0, 'kl': 0.5}]
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
    """:func:`restore` from a checkpoint that is already loaded; the number of processes may have been another.

    Args:
        path: for error messages.
        state: from :func:`load`.
        model, optimizer: sharded or not.
        shuffle, config: as in :func:`restore`.
        rank: the rank whose random number generator states are restored; those of rank 0 if the file holds none for it.

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
    """A state dict with its sharded tensors gathered on the CPU, by every process; with ``keep=False`` they are then dropped.

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
    """A full tensor sharded as ``target`` is, or unchanged if that is not sharded. Nothing is sent: every process holds the full tensor.

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
