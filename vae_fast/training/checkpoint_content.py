"""Checks of what a checkpoint holds, and of whether it fits a run, all made before any of it is used."""

from __future__ import annotations

import copy
import inspect
import math
import struct
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vae_fast._archive import fault_in
from vae_fast.errors import FileError

_FIELDS: dict[str, type] = {
    "model": dict,
    "optimizer": dict,
    "shuffle": Tensor,
    "rng": dict,
    "epoch": int,
    "history": list,
    "config": dict,
}
#: Where a run stands inside an epoch: a field of the checkpoints that are written there.
_PARTIAL = ("step", "loss", "kl", "seconds")
#: How an optimizer computes, not what: a run takes its own.
_HOW = ("foreach", "fused", "capturable", "differentiable")
_MT19937 = 5056  # bytes of the state of torch's CPU generator


def broken(path: Path, what: str, why: object) -> NoReturn:
    """Raise the error for a file that no run can have written."""
    raise FileError(f"{path}: broken: {what}: {why}") from None


def check_content(path: Path, state: Mapping[str, Any]) -> None:
    """Check that a checkpoint holds what every run writes.

    Raises:
        FileError: naming the file and the first thing that is wrong.
    """
    for name, kind in _FIELDS.items():
        if not isinstance(state.get(name), kind) or type(state[name]) is bool:
            raise FileError(f"{path}: broken: {name!r} is {type(state.get(name)).__name__}, expected {kind.__name__}")
    fault = fault_in(state)
    if fault is not None:
        raise FileError(f"{path}: broken: {fault}")
    if len(state["history"]) != state["epoch"] or not all(_is_record(i, r) for i, r in enumerate(state["history"], 1)):
        raise FileError(f"{path}: broken: expected 'history' to hold one record of numbers for each of {state['epoch']} epochs")
    for name in ("model", "config"):
        if not all(isinstance(key, str) for key in state[name]):
            broken(path, name, "expected names as keys")
    if _holds_tensor(state["config"]):
        broken(path, "config", "expected numbers and strings, not tensors")
    _check_partial(path, state.get("partial"), state["config"])
    _check_generators(path, state["shuffle"], state["rng"])
    _check_groups(path, state["optimizer"])


def _holds_tensor(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, Tensor) or any(map(_holds_tensor, parts))


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_record(epoch: int, value: object) -> bool:
    return (
        isinstance(value, dict)
        and {"epoch", "loss", "kl"} <= value.keys()
        and all(isinstance(name, str) and _is_number(number) for name, number in value.items())
        and value["epoch"] == epoch
    )


def _check_partial(path: Path, partial: Any, config: Mapping[str, Any]) -> None:
    if partial is None:
        return
    if not (isinstance(partial, dict) and all(_is_number(partial.get(k)) for k in _PARTIAL)):
        raise FileError(f"{path}: broken: expected 'partial' to hold the numbers {', '.join(_PARTIAL)}")
    rows, size = config.get("n"), config.get("batch_size")
    most = -(-rows // size) if type(rows) is int and type(size) is int and size > 0 else math.inf
    if type(partial["step"]) is not int or not 0 < partial["step"] <= most or not 0.0 <= partial["seconds"] < math.inf:
        broken(path, "partial", f"step {partial['step']} after {partial['seconds']} s: expected a step of the epoch and a time")


def _check_generators(path: Path, shuffle: Tensor, rng: Mapping[Any, Any]) -> None:
    what = "random number generator state"
    ranks = rng.get("ranks", {})
    if not isinstance(ranks, dict) or sorted(ranks, key=str) != sorted(range(1, len(ranks) + 1), key=str):
        broken(path, what, f"expected 'ranks' to number the other processes, got {type(ranks).__name__}")
    for place, states in (("shuffle", {"cpu": shuffle}), ("rng", rng), *((f"rng of rank {r}", ranks[r]) for r in ranks)):
        if not isinstance(states, dict) or not isinstance(states.get("cpu"), Tensor):
            broken(path, what, f"{place} holds no state of the CPU's")
        try:
            check_generator(states["cpu"])
        except (RuntimeError, TypeError, ValueError) as error:
            broken(path, what, f"{place}: {error}")
        if not isinstance(states.get("cuda", shuffle), Tensor):
            broken(path, what, f"{place}: cuda is {type(states['cuda']).__name__}")


def check_generator(state: Tensor) -> None:
    """Check that torch's CPU generator can have been in this state: it reads its table at two positions that it takes from there unchecked.

    Raises:
        RuntimeError, TypeError, ValueError: saying what is wrong.
    """
    torch.Generator().set_state(state)
    if state.numel() == _MT19937:  # seed, numbers left until the table is made anew, seeded?, position; then the table of 624
        _, left, _, position = struct.unpack_from("=QiiQ", state.numpy().tobytes())
        if left + position != 625 and (left, position) != (1, 0):
            raise ValueError(f"{left} numbers left at position {position} of 624")


def _check_groups(path: Path, optimizer: Mapping[Any, Any]) -> None:
    what, groups, values = "optimizer state", optimizer.get("param_groups"), optimizer.get("state")
    if not isinstance(groups, list) or not isinstance(values, dict):
        broken(path, what, "expected 'param_groups' and 'state'")
    for group in groups:
        if not isinstance(group, dict) or not isinstance(group.get("params"), list) or not all(isinstance(k, str) for k in group):
            broken(path, what, "expected each group to hold 'params' and options by name")
    if not all(type(index) is int and isinstance(part, dict) for index, part in values.items()):
        broken(path, what, "expected a dictionary for each number of a parameter")


# --- whether it fits --------------------------------------------------------------------------------------------------------


def compare_weights(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Compare the names, shapes and dtypes of a file's weights with a model's.

    Raises:
        FileError: naming the first that differs.
    """
    for name in sorted(there.keys() | here.keys()):
        if name not in there or name not in here:
            where = "only in the model" if name in here else "only in the file"
            raise FileError(f"{path}: another model: {name} is {where}")
        a, b = _described(there[name]), _described(here[name])
        if a != b:
            raise FileError(f"{path}: another model: {name} is {a}, expected {b}")


def _described(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def fitting_optimizer(path: Path, there: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """A file's optimizer state, compared with what this optimizer's first step would create; each tensor gets its parameter's strides.

    Raises:
        FileError: naming what differs: groups, options, names, shapes or dtypes.
    """
    here = optimizer.state_dict()["param_groups"]
    counts = [[len(group["params"]) for group in groups] for groups in (there["param_groups"], here)]
    if counts[0] != counts[1]:
        raise FileError(f"{path}: another optimizer: parameter groups of {counts[0]} tensors, expected {counts[1]}")
    groups = [_fitting_group(path, a, b) for a, b in zip(there["param_groups"], here, strict=True)]
    params = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    strays = sorted(there["state"].keys() - set(range(len(params))))
    if strays:
        broken(path, "optimizer state", f"for parameter {strays[0]}: expected 0 to {len(params) - 1}")
    state = {}
    for index, values in there["state"].items():
        p, group = params[index]
        if values:
            _compare_state(path, index, values, _first_step(optimizer, group, p), p)
        state[index] = {name: _laid_out(value, p) for name, value in values.items()}
    return {"state": state, "param_groups": groups}


def _fitting_group(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    if there["params"] != here["params"]:
        broken(path, "optimizer state", f"parameters {there['params'][:3]}...: expected {here['params'][:3]}...")
    for name, value in here.items():
        if name == "params" or name in _HOW:
            continue
        if name not in there or not _alike(there[name], value):
            came = repr(there[name]) if name in there else "missing"
            raise FileError(f"{path}: another optimizer: {name} is {came:.80}, expected one like {value!r}")
    if not all(name in here or _alike(value, 0.0) for name, value in there.items()):  # a schedule of torch's leaves numbers there
        broken(path, "optimizer state", f"options {', '.join(sorted(there.keys() - here.keys()))}: expected numbers")
    return {**there, **{name: here[name] for name in _HOW if name in here}}


def _alike(a: Any, b: Any) -> bool:
    """Whether an option may be ``a`` where ours is ``b``: numbers change with a schedule, anything else is the same."""
    if isinstance(b, list | tuple):
        return isinstance(a, list | tuple) and len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(b, Tensor) or _is_number(b):  # a learning rate is a tensor in a recorded run
        a = a.item() if isinstance(a, Tensor) and a.numel() == 1 else a
        return _is_number(a) and math.isfinite(a)
    return type(a) is type(b) and bool(a == b)


@torch.no_grad()
def _first_step(optimizer: Optimizer, group: Mapping[str, Any], p: Tensor) -> Mapping[str, Any] | None:
    """The state torch's optimizers make for a parameter at their first step, tried on a copy with zeros; None for another class."""
    try:
        with torch.random.fork_rng(devices=[]):
            shadow = copy.copy(optimizer)
            zeros = nn.Parameter(torch.zeros_like(p), requires_grad=p.is_floating_point())
            zeros.grad = torch.zeros_like(p)
            shadow.state = defaultdict(dict)
            shadow.param_groups = [{**group, "params": [zeros]}]
            lists = inspect.signature(shadow._init_group).parameters  # type: ignore[attr-defined]
            shadow._init_group(shadow.param_groups[0], *([] for _ in range(len(lists) - 1)))  # type: ignore[attr-defined]
            if not shadow.state[zeros] and type(shadow) is torch.optim.SGD:  # makes its momentum while it steps
                shadow.step()
            return dict(shadow.state[zeros])
    except (AttributeError, KeyError, TypeError):
        return None


def _compare_state(path: Path, index: int, there: Mapping[Any, Any], made: Mapping[str, Any] | None, p: Tensor) -> None:
    where = f"{path}: optimizer state of parameter {index}"
    if made is not None and there.keys() != made.keys():
        raise FileError(f"{where}: holds {', '.join(map(str, there))}, expected {', '.join(made) or 'nothing'}")
    for name, value in there.items():
        if made is not None:
            a, b = value, made[name]
            # A number of steps may be a tensor of another float type, by the way the optimizer computes.
            counts = all(isinstance(t, Tensor) and t.ndim == 0 and t.is_floating_point() for t in (a, b))
            same = _described(a) == _described(b) or counts
            expected = _described(b)
        else:
            same = not isinstance(value, Tensor) or value.ndim == 0 or value.shape == p.shape
            expected = f"{tuple(p.shape)}"
        if not same:
            raise FileError(f"{where}: {name} is {_described(value)}, expected {expected}")


def _laid_out(value: Any, p: Tensor) -> Any:
    """``value`` with the strides of the parameter it belongs to: a fused step goes through both as one piece of memory."""
    if not isinstance(value, Tensor) or value.shape != p.shape or hasattr(p, "device_mesh") or value.stride() == p.stride():
        return value
    return torch.empty_like(p, dtype=value.dtype, device=value.device).copy_(value)
