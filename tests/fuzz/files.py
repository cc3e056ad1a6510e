"""Damaged and forged files: each reader gives the right values or a FileError of one line that names the file, and adopts nothing else."""

from __future__ import annotations

import functools
import gzip
import io
import re
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from vae_fast import data
from vae_fast.errors import FileError
from vae_fast.training import checkpoint

from .judge import Finding, same_bits

# --- whole files ------------------------------------------------------------------------------------------------------


def _parts() -> dict[str, Any]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), fused=True), "config": {"lr": 1e-3, "data": "noise"}}


@functools.cache
def _checkpoint() -> bytes:
    parts = _parts()
    parts["model"](torch.rand(4, 3)).square().sum().backward()
    parts["optimizer"].step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        checkpoint.save(path, shuffle=torch.Generator(), history=[{"epoch": 1, "loss": 2.5, "kl": 0.5}], **parts)
        return path.read_bytes()


def _array() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (24, 4, 3), dtype=np.uint8)


@functools.cache
def _npy(version: int = 1) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, _array(), version=(version, 0))
    return out.getvalue()


@functools.cache
def _idx() -> bytes:
    return bytes([0, 0, 8, 3]) + struct.pack(">3I", *_array().shape) + _array().tobytes()


WHOLE: dict[str, Callable[[], bytes]] = {
    "checkpoint": _checkpoint,
    "npy": _npy,
    "npy2": functools.partial(_npy, 2),
    "load_file": _npy,
    "idx": _idx,
    "idx.gz": lambda: gzip.compress(_idx(), mtime=0),
    "forged npy": _npy,
    "forged checkpoint": _checkpoint,
}

# --- damage -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """A whole file of a format and what is done to it: (kind, where in [0, 1), value)."""

    format: str
    damage: tuple[tuple[str, float, int], ...]


KINDS = ("flip", "flip", "flip", "byte", "truncate", "zeros", "insert", "remove", "repeat", "number")


def make(rng: Random) -> File:
    form = rng.choice((*WHOLE, "checkpoint"))
    if form.startswith("forged"):
        pool = FORGED_NPY if form == "forged npy" else FORGED_STATES
        return File(form, (("forge", 0.0, rng.randrange(len(pool))),))
    if form == "checkpoint" and rng.random() < 0.5:
        return File(form, (("directory flip", rng.random(), rng.getrandbits(31)),))
    # beginnings and ends hold headers and directories
    where = lambda: rng.choice((rng.random(), rng.random() * 0.05, 1 - rng.random() * 0.1, 1 - rng.random() * 0.35))  # noqa: E731
    return File(
        form, tuple((rng.choice(KINDS), where(), rng.getrandbits(31)) for _ in range(1 if rng.random() < 0.8 else rng.randint(2, 4)))
    )


def content(case: File) -> bytes:
    whole = WHOLE[case.format]()
    if case.format == "forged npy":
        return _npy_with(FORGED_NPY[case.damage[0][2]])
    if case.format == "forged checkpoint":
        state = torch.load(io.BytesIO(whole), weights_only=True)
        FORGED_STATES[case.damage[0][2]](state)
        out = io.BytesIO()
        torch.save(state, out)
        return out.getvalue()
    body = bytearray(whole)
    for kind, where, value in case.damage:
        at = min(int(where * len(body)), max(0, len(body) - 1))
        if not body:
            break
        if kind == "flip":
            body[at] ^= 1 << value % 8
        elif kind == "directory flip":  # in the 46 bytes of one of zip's entries that say what a part is and where
            entries = [m.start() for m in re.finditer(b"PK\x01\x02", body)]
            body[entries[value // 8 % len(entries)] + int(46 * where)] ^= 1 << value % 8
        elif kind == "byte":
            body[at] = value % 256
        elif kind == "truncate":
            del body[at:]
        elif kind == "zeros":
            body[at : at + value % 64] = bytes(len(body[at : at + value % 64]))
        elif kind == "insert":
            body[at:at] = value.to_bytes(4, "little")[: 1 + value % 4]
        elif kind == "remove":
            del body[at : at + 1 + value % 8]
        elif kind == "repeat":
            body[at:at] = body[at : at + 1 + value % 64]
        else:  # a number in the format's place for one
            body[at : at + 4] = (0xFFFFFFFF, 0x80000000, 0x7FFFFFFF, 0, 1)[value % 5].to_bytes(4, "little")[: len(body[at : at + 4])]
    return bytes(body)


def _npy_with(header: str) -> bytes:
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + _array().tobytes()


_U1 = "{'descr': '|u1', 'fortran_order': False, 'shape': %s, }"
FORGED_NPY = (
    *(_U1 % s for s in ("(24, 12)", "(-24, -12)", "(-1, 12)", "(True, 12)", "(24.0, 12)", "(2**70,)", "(1180591620717411303424, 1)")),
    *(
        _U1 % s
        for s in ("(4294967296, 4294967296)", "(9223372036854775807,)", "24", "None", "(24, 'a')", "(0, 12)", "(24, 0)", "()", "(" * 90)
    ),
    *(_U1.replace("|u1", d) % "(24, 12)" for d in ("|O", "<f4", ">f8", "<U3", "|V12", "", "zz", "<M8[s]", "|S0", "<f16")),
    _U1.replace("False", "True") % "(24, 12)",
    _U1.replace("False", "1") % "(24, 12)",
    "{'descr': [('a', '|u1'), ('b', '|u1')], 'fortran_order': False, 'shape': (24, 6), }",
    "{'descr': '|u1', 'fortran_order': False}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (24, 12), 'more': 1}",
    "[1, 2]",
    "",
    "{",
    "'" * 7,
    "{'descr': '|u1', 'fortran_order': False, 'shape': (24, 12), }\\",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (0x18, 1_2), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (24L, 12L), }",
    "\x00\xff\xfe",
    "\t{'descr': '|u1'\n, 'fortran_order': False, 'shape': (24, 12)}",
    "__import__('os').getcwd()",
    "[" * 9000,
    "-" * 9000 + "1",
)


def _moment(edit: Callable[[torch.Tensor], Any], key: str = "exp_avg") -> Callable[[dict[str, Any]], None]:
    def forge(state: dict[str, Any]) -> None:
        state["optimizer"]["state"][0][key] = edit(state["optimizer"]["state"][0][key])

    return forge


def _weight(edit: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    def forge(state: dict[str, Any]) -> None:
        state["model"]["weight"] = edit(state["model"]["weight"])

    return forge


def _set(value: Any, *keys: Any) -> Callable[[dict[str, Any]], None]:
    def forge(state: dict[str, Any]) -> None:
        for k in keys[:-1]:
            state = state[k]
        state[keys[-1]] = value

    return forge


_EDITS: tuple[Callable[[torch.Tensor], Any], ...] = (
    lambda t: t.sum(),
    lambda t: t.flatten()[0].clone().expand(t.shape),
    lambda t: t[:1].expand(t.shape),
    lambda t: t.T.contiguous(),
    lambda t: t.T.contiguous().T,
    lambda t: t.double(),
    lambda t: t.half(),
    lambda t: t.to(torch.int64),
    lambda t: t.to(torch.complex64),
    lambda t: t[:0],
    lambda t: t.flatten(),
    lambda t: t.flatten()[:1].as_strided(t.shape, (0, 0)),
    lambda t: torch.zeros(t.shape, device="meta"),
    lambda t: t.to_sparse(),
    lambda t: t.tolist(),
    lambda t: None,
    lambda t: 1.0,
    lambda t: "weights",
    lambda t: t.clone().requires_grad_(),
    lambda t: torch.nn.Parameter(t),
    lambda t: torch._neg_view(t),
    lambda t: torch.full_like(t, float("nan")),
)
FORGED_STATES: tuple[Callable[[dict[str, Any]], Any], ...] = (
    *(_moment(e) for e in _EDITS),
    *(_moment(e, "exp_avg_sq") for e in _EDITS[:4]),
    *(_weight(e) for e in _EDITS),
    *(
        _moment(e, "step")
        for e in (lambda t: t.expand(3), lambda t: t.double(), lambda t: t - 5, lambda t: -1, lambda t: "1", lambda t: t * float("nan"))
    ),
    *(_set(v, "optimizer", "param_groups", 0, "lr") for v in ("1", None, -1.0, float("nan"), torch.zeros(3), True)),
    *(_set(v, "optimizer", "param_groups", 0, "betas") for v in ((0.9,), None, (2.0, 2.0), [0.9, 0.999, 0.5])),
    *(_set(v, "optimizer", "param_groups") for v in ([], None, {}, [[]], [None])),
    *(_set(v, "optimizer", "state") for v in ([], None, {0: None}, {0: {}}, {9: {}}, {"a": {}})),
    *(_set(v, "model") for v in ({}, {"weight": 1}, {1: torch.zeros(2)}, {"weight": torch.zeros(2, 3), "bias": None})),
    *(
        _set(v, "history")
        for v in ([None], [{"epoch": 1}], [{"epoch": "1", "loss": 1, "kl": 1}], [{}], [{"epoch": 1, "loss": True, "kl": float("nan")}])
    ),
    *(_set(v, "epoch") for v in (True, -1, 2**70, 1.0, 0)),
    *(
        _set(v, "rng")
        for v in (
            {},
            {"cpu": 1},
            {"cpu": torch.zeros(5056)},
            {"cpu": torch.zeros(5056, dtype=torch.uint8)},
            {"ranks": 3},
            {"ranks": {0: 3}},
        )
    ),
    *(
        _set(v, "shuffle")
        for v in (torch.zeros(3), torch.zeros(5056, dtype=torch.uint8), torch.zeros(()), torch.zeros(16, dtype=torch.uint8))
    ),
    *(
        _set(v, "config")
        for v in ({}, {"lr": torch.zeros(3), "data": "noise"}, {1: 2}, {"lr": [1], "data": "noise"}, {("a", 1): 2, "b": 3})
    ),
    *(_set(v, "partial") for v in (3, {}, {"step": "x"}, {"step": 1, "loss": 1, "kl": 1, "seconds": None})),
    *(_set(v, "version") for v in (2, "1", None, 1.0, True)),
    _set("other", "format"),
    lambda s: s.clear(),
)

# --- the verdict ------------------------------------------------------------------------------------------------------


def examine(case: File) -> Finding | None:
    body = content(case)
    with tempfile.TemporaryDirectory() as folder:
        path = (
            Path(folder) / f"file.{case.format.split()[-1].replace('checkpoint', 'pt').replace('load_file', 'npy').replace('npy2', 'npy')}"
        )
        path.write_bytes(body)
        what = f"{case.format}: {', '.join(k for k, *_ in case.damage)}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                right = READERS[case.format](path, body)
        except FileError as error:
            message = str(error)
            if "\n" in message or str(path) not in message:
                return Finding("message", case.format, f"{what}: not one line that names the file: {message!r}"[:400])
            return None
        except Exception as error:
            first = (str(error).splitlines() or [""])[0][:200]
            return Finding("exception", f"{type(error).__name__} {case.format}", f"{what}: {type(error).__name__}: {first}")
        return None if right else Finding("wrong values", case.format, f"{what}: loads without a word, and not what was saved")


def _read_checkpoint(path: Path, body: bytes) -> bool:
    return _equal(checkpoint.load(path), torch.load(io.BytesIO(_checkpoint()), weights_only=True))


def _restore(path: Path, body: bytes) -> bool:
    """Adopted is only what fits the parameters, one number of memory for each element."""
    parts = _parts()
    kept = [p.detach().clone() for p in parts["model"].parameters()]
    try:
        checkpoint.restore(path, shuffle=torch.Generator(), **parts)
    except FileError:
        if not all(torch.equal(a, b) for a, b in zip(kept, parts["model"].parameters(), strict=True)):
            return False
        raise
    for p, state in parts["optimizer"].state.items():
        for name, t in state.items():
            fits = t.shape == (torch.Size() if name == "step" else p.shape) and t.dtype == torch.float32 and t.device == p.device
            if not fits or t.layout != torch.strided or t.untyped_storage().nbytes() < 4 * t.numel() or 0 in t.stride():
                return False
    group = parts["optimizer"].param_groups[0]
    return (
        isinstance(group["lr"], float) and 0 <= group["lr"] < 1e3 and len(group["betas"]) == 2 and all(0 <= b < 1 for b in group["betas"])
    )


def _read_npy(path: Path, body: bytes) -> bool:
    return _as_the_file_says(np.array(data.read_npy(path)), body)


def _load_file(path: Path, body: bytes) -> bool:
    found = data.load_file(path)
    rows = torch.cat([found.train, found.valid, found.test]) if found.train.dtype == found.valid.dtype else found.valid
    return found.train.dtype != torch.uint8 or _as_the_file_says(rows.numpy(), body)


def _as_the_file_says(array: np.ndarray[Any, Any], body: bytes) -> bool:
    """What lies behind the header, all of it or its beginning."""
    if array.dtype != np.uint8 or array.flags.f_contiguous:
        return array.nbytes <= len(body)
    return array.tobytes() in body


def _read_idx(path: Path, body: bytes) -> bool:
    array = data.read_idx(path)
    try:
        plain = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
    except (OSError, EOFError, zlib.error):
        return np.array_equal(array, _array())
    return array.tobytes() == plain[4 + 4 * plain[3] :] and array.shape == struct.unpack(f">{plain[3]}I", plain[4 : 4 + 4 * plain[3]])


READERS: dict[str, Callable[[Path, bytes], bool]] = {
    "checkpoint": _read_checkpoint,
    "forged checkpoint": _restore,
    "npy": _read_npy,
    "npy2": _read_npy,
    "forged npy": _load_file,
    "load_file": _load_file,
    "idx": _read_idx,
    "idx.gz": _read_idx,
}


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return same_bits(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return type(a) is type(b) and a == b


def simpler(case: File) -> Iterator[File]:
    if len(case.damage) > 1:
        yield from (replace(case, damage=(d,)) for d in case.damage)


def snippet(case: File) -> str:
    if case.format == "forged npy":
        return f"open('x.npy', 'wb').write({content(case)[:200]!r})\nvae_fast.data.load_file('x.npy')"
    if case.format == "forged checkpoint":
        return f"# FORGED_STATES[{case.damage[0][2]}] of tests/fuzz/files.py, then vae_fast.training.checkpoint.restore"
    size = len(WHOLE[case.format]())
    return f"# a whole {case.format} of {size} bytes with " + ", ".join(
        f"{k} at byte {int(w * size)} (value {v})" for k, w, v in case.damage
    )
