"""Checkpoints: tensors and plain containers only, written whole or not at all, refused with a reason."""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vae_fast._errors import FileError
from vae_fast._files import atomic_write

FORMAT = "vae_fast.checkpoint"
VERSION = 1
_FIELDS: dict[str, type] = {
    "model": dict,
    "optimizer": dict,
    "shuffle": Tensor,
    "rng": dict,
    "epoch": int,
    "history": list,
    "config": dict,
}


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
    path = Path(path)
    state = {
        "format": FORMAT,
        "version": VERSION,
        "torch": str(torch.__version__),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "shuffle": shuffle.get_state(),
        "rng": _rng_state(device_of(model)),
        "epoch": len(history),
        "history": [dict(record) for record in history],
        "config": dict(config),
    }
    try:
        with atomic_write(path) as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch's writer turns a failed write into a RuntimeError
        raise FileError(f"{path}: cannot be written: {error.__context__ or error}") from error


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. No code in the file is run (``weights_only=True``).

    Raises:
        FileError: naming the file and why: not there, truncated, a bit flipped, holds code, not one of ours, of another
            version.
    """
    path = Path(path)
    try:
        data = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        _verify(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about files it goes on to refuse
            state = torch.load(data, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise FileError(f"{path}: refused: it holds more than tensors and plain values (it could run code when unpickled)") from None
    except Exception as error:  # a broken file can fail anywhere inside torch's reader
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileError(f"{path}: not a checkpoint, broken or truncated: {first}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise FileError(f"{path}: not a checkpoint of vae_fast (no format={FORMAT!r} inside)")
    if state.get("version") != VERSION:
        raise FileError(f"{path}: format version {state.get('version')}: this release reads {VERSION}")
    for name, kind in _FIELDS.items():
        if not isinstance(state.get(name), kind):
            raise FileError(f"{path}: broken: {name!r} is {type(state.get(name)).__name__}, expected {kind.__name__}")
    if len(state["history"]) != state["epoch"] or not all(_is_record(r) for r in state["history"]):
        raise FileError(f"{path}: broken: expected 'history' to hold one record of numbers for each of {state['epoch']} epochs")
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
    path = Path(path)
    state = load(path)
    for key in sorted((config.keys() | state["config"].keys()) - {"epochs"}):
        here, there = config.get(key), state["config"].get(key)
        if here != there:
            raise FileError(f"{path}: was trained with {key}={there!r}, this run has {key}={here!r}: expected the same")
    _compare_weights(path, state["model"], model.state_dict())
    _compare_optimizer(path, state["optimizer"], optimizer)
    try:
        torch.Generator().set_state(state["shuffle"])
        torch.Generator().set_state(state["rng"]["cpu"])
    except (RuntimeError, TypeError, KeyError) as error:
        _broken(path, "random number generator state", error)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    shuffle.set_state(state["shuffle"])
    torch.set_rng_state(state["rng"]["cpu"])
    device = device_of(model)
    if device.type == "cuda" and "cuda" in state["rng"]:
        torch.cuda.set_rng_state(state["rng"]["cuda"], device)
    return list(state["history"])


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter or buffer; the CPU if it has none.

    Example:
        >>> device_of(nn.Linear(2, 1))
        device(type='cpu')
    """
    for t in (*model.parameters(), *model.buffers()):
        return t.device
    return torch.device("cpu")


def _verify(data: io.BytesIO) -> None:
    """Compare every part of the archive with its checksum: torch itself loads flipped bits without a word."""
    with zipfile.ZipFile(data) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"checksum of {damaged} does not match")
    data.seek(0)


def _is_record(value: object) -> bool:
    return (
        isinstance(value, dict)
        and {"epoch", "loss", "kl"} <= value.keys()
        and all(isinstance(number, int | float) for number in value.values())
    )


def _rng_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _broken(path: Path, what: str, why: object) -> NoReturn:
    raise FileError(f"{path}: broken: {what}: {why}") from None


def _compare_weights(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    for name in sorted(there.keys() | here.keys()):
        if name not in there or name not in here:
            where = "only in the model" if name in here else "only in the file"
            raise FileError(f"{path}: another model: {name} is {where}")
        a, b = there[name], here[name]
        if not isinstance(a, Tensor) or a.shape != b.shape or a.dtype != b.dtype:
            came = f"{tuple(a.shape)} {a.dtype}" if isinstance(a, Tensor) else type(a).__name__
            raise FileError(f"{path}: another model: {name} is {came}, expected {tuple(b.shape)} {b.dtype}")


def _compare_optimizer(path: Path, there: Mapping[str, Any], optimizer: Optimizer) -> None:
    here = optimizer.state_dict()
    try:
        counts = [[len(group["params"]) for group in d["param_groups"]] for d in (there, here)]
        state = dict(there["state"])
    except (KeyError, TypeError) as error:
        _broken(path, "optimizer state", repr(error))
    if counts[0] != counts[1]:
        raise FileError(f"{path}: another optimizer: parameter groups of {counts[0]} tensors, expected {counts[1]}")
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for index, p in enumerate(params):
        for name, value in state.get(index, {}).items():
            if isinstance(value, Tensor) and value.ndim and value.shape != p.shape:
                raise FileError(f"{path}: optimizer state {name} is {tuple(value.shape)}, expected {tuple(p.shape)}")
