"""The file of a checkpoint: torch.save's archive with a SHA-256 of all its bytes as the archive's comment.

Why not safetensors: the core depends on torch and numpy alone, and writes checkpoints; and a checkpoint is more than tensors (the
optimizer's groups, the history, the settings), which would go into a second, unchecked format inside the first. torch.save's archive is
as kept a format, and what it lacks is added here: a digest, without which a flipped bit in the archive's directory loads other numbers,
and a look at what came out (:mod:`vae_fast.training.checkpoint_content`) before any of it is used. Its pickle is read by torch's
``weights_only`` reader, which runs no code.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from vae_fast.errors import FileError
from vae_fast.files import open_regular

_MARK = b"vae_fast sha256 "
_COMMENT = len(_MARK) + 64  # and the digest in hexadecimal
_END = b"PK\5\6"  # opens the archive's last record: 22 bytes, of which the last two are the length of the comment that follows
_DEPTH = 8  # of containers in containers; a checkpoint has 5


def write_archive(file: IO[bytes], state: Mapping[str, Any]) -> None:
    """Write plain containers and tensors, and the digest.

    Args:
        file: empty, to be read and written.
        state: see :func:`packed`.

    Raises:
        ValueError: as :func:`packed`.
        RuntimeError: of torch's writer, if a write fails.
    """
    torch.save(packed(dict(state)), file)
    file.seek(-2, os.SEEK_END)
    file.write(struct.pack("<H", _COMMENT))
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(2**20):
        digest.update(chunk)
    file.write(_MARK + digest.hexdigest().encode())


def read_archive(path: Path) -> tuple[Any, bool]:
    """What :func:`write_archive` wrote, on the CPU, and whether it had a digest: files of the first format version have none.

    Those are read by way of Python's zipfile, which compares each part's checksum, and its name with the one in the directory: there is
    nothing more in them that could be compared.

    Raises:
        FileError: naming the file and why: not there, not an archive, damaged, holds code, claims more than it holds.
    """
    with open_regular(path) as file:
        tail = _tail(file)
        marked = tail[:4] == _END and tail[22:].startswith(_MARK)
        if not marked and tail[-22:-18] != _END:
            raise FileError(f"{path}: not a checkpoint, broken or truncated: its end is not that of an archive")
        try:
            data = file.read()
        except MemoryError:
            raise FileError(f"{path}: cannot be read: it is larger than the memory") from None
    try:
        if marked and hashlib.sha256(memoryview(data)[: len(data) - _COMMENT]).hexdigest().encode() != tail[22 + len(_MARK) :]:
            raise zipfile.BadZipFile("the checksum of the file does not match its content")
        parts = _parts(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about files it goes on to refuse
            return torch.load(io.BytesIO(data) if marked else _rewritten(parts), map_location="cpu", weights_only=True), marked
    except pickle.UnpicklingError:
        raise FileError(f"{path}: refused: it holds more than tensors and plain values (it could run code when unpickled)") from None
    except Exception as error:  # a broken file can fail anywhere inside torch's reader
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileError(f"{path}: not a checkpoint, broken or truncated: {first}") from None


def _tail(file: IO[bytes]) -> bytes:
    """The last record and the comment, or as much as there is."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 22 - _COMMENT))
    tail = file.read()
    file.seek(0)
    return tail


def _parts(data: bytes) -> dict[str, bytes]:
    """The archive's files. Nothing is unpacked that takes more room than it has in the archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = archive.infolist()
        if any(i.compress_type != zipfile.ZIP_STORED or i.file_size != i.compress_size for i in infos):
            raise zipfile.BadZipFile("it holds compressed parts, which torch.save does not write")
        if sum(i.file_size for i in infos) > len(data) or len({i.filename for i in infos}) != len(infos):
            raise zipfile.BadZipFile("its parts lie over each other")
        damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"checksum of {damaged} does not match")
        return {i.filename: archive.read(i) for i in infos}


def _rewritten(parts: Mapping[str, bytes]) -> io.BytesIO:
    """An archive of these parts and nothing else: torch's reader takes the directory at its word."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    file.seek(0)
    return file


# --- what an archive may hold -----------------------------------------------------------------------------------------------


def is_dense(t: Tensor) -> bool:
    """Whether the elements fill one piece of memory without gaps or overlaps, in any order of the dimensions.

    Example:
        >>> is_dense(torch.zeros(2, 3).T), is_dense(torch.zeros(1).expand(3)), is_dense(torch.zeros(4)[::2])
        (True, False, False)
    """
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size != 1):
        if stride != expected:
            return t.numel() == 0
        expected *= size
    return True


def packed(value: Any) -> Any:
    """``value`` itself, its tensors with gaps or overlaps made dense.

    Raises:
        ValueError: naming what is none of None, bool, int, float, str, list, tuple, dict with string or integer keys, dense tensor.

    Example:
        >>> packed({"a": [torch.zeros(1).expand(2), 3]})["a"][0].stride()
        (1,)
    """
    fault = fault_in(value, loose=True)
    if fault is not None:
        raise ValueError(f"a checkpoint cannot hold this: {fault}")
    return _dense(value)


def _dense(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if is_dense(value) else value.contiguous()
    if isinstance(value, dict):
        return {k: _dense(v) for k, v in value.items()}
    return type(value)(map(_dense, value)) if isinstance(value, list | tuple) else value


def fault_in(value: Any, where: str = "state", *, loose: bool = False, depth: int = 0) -> str | None:
    """What in ``value`` is neither plain nor a dense tensor, or None.

    Args:
        value: of a checkpoint.
        where: what it is called.
        loose: tensors may be on any device and have gaps: before they are written.
        depth: of containers around it.

    Example:
        >>> fault_in({"a": {1: torch.zeros(1).expand(3)}})
        "state['a'][1] is a tensor of shape (3,) and strides (0,): expected a dense one on the CPU"
    """
    kind = type(value)
    if value is None or kind in (bool, float, str):
        return None
    if kind is int:
        return None if abs(value) < 2**64 else f"{where} is an integer of {value.bit_length()} bits: expected 64 at most"
    if kind is Tensor:
        if value.layout != torch.strided or value.is_quantized or value.is_conj() or value.is_neg() or value.is_nested:
            return f"{where} is a tensor of another kind ({value.layout}, {value.dtype}): expected a dense one"
        if not loose and (value.device.type != "cpu" or not is_dense(value)):
            return f"{where} is a tensor of shape {tuple(value.shape)} and strides {value.stride()}: expected a dense one on the CPU"
        return None
    if kind in (list, tuple, dict, OrderedDict):
        if depth == _DEPTH:
            return f"{where} lies {_DEPTH} containers deep"
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in items:
            if type(key) not in (str, int):
                return f"{where} has a key of type {type(key).__name__}: expected strings or integers"
            fault = fault_in(part, f"{where}[{key!r}]", loose=loose, depth=depth + 1)
            if fault is not None:
                return fault
        return None
    return f"{where} is a {kind.__module__}.{kind.__qualname__}: expected numbers, strings, lists, dictionaries and plain tensors"
