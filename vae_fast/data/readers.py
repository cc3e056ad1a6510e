"""Arrays from untrusted files: IDX, .npy, MATLAB's .mat. A bad file is refused with the reason; sizes in headers are not trusted."""

from __future__ import annotations

import gzip
import math
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vae_fast.errors import FileError
from vae_fast.files import open_regular

Array = np.ndarray[Any, Any]
Order = Literal["<", ">"]
#: Of one array from a packed file, unpacked: a few kilobytes can claim gigabytes there. (MNIST's largest has 47 MB.)
MOST_UNPACKED = 2**30


def read_idx(path: str | os.PathLike[str]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An IDX file of unsigned bytes, gzip or plain, as an array.

    Raises:
        FileError: naming the file and the reason: not IDX, another element type, truncated, longer than its header says, damaged gzip,
            or more than 1 GiB when unpacked.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a-idx1-ubyte"
        ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
        ...     read_idx(path)
        array([7, 8, 9], dtype=uint8)
    """
    path = Path(path)
    with open_regular(path) as probe:
        packed = probe.read(2) == b"\x1f\x8b"
        here = probe.seek(0, os.SEEK_END)
        probe.seek(0)
        try:
            with gzip.open(probe) if packed else probe as file:
                return _idx(path, file, MOST_UNPACKED if packed else here)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise FileError(f"{path}: broken or truncated gzip file: {error}") from None


def _idx(path: Path, file: Any, most: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise FileError(f"{path}: not an IDX file: it begins with {magic.hex(' ') or 'nothing'}, expected 00 00 08")
    if magic[2] != 0x08:
        raise FileError(f"{path}: element type 0x{magic[2]:02x}: expected 0x08, unsigned bytes")
    if not 1 <= magic[3] <= 4:
        raise FileError(f"{path}: {magic[3]} dimensions: expected 1 to 4")
    header = file.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise FileError(f"{path}: truncated inside its header")
    shape = struct.unpack(f">{magic[3]}I", header)
    size = math.prod(shape)
    claim = f"{path}: the header says {' x '.join(map(str, shape))} = {size:,} bytes"
    if size > most and most == MOST_UNPACKED:
        raise FileError(f"{claim}: expected at most {most:,} in a packed file; unpack it first")
    body = bytearray()
    while len(body) <= size and (chunk := file.read(min(2**20, size + 1 - len(body)))):
        body += chunk
    if len(body) != size:
        came = "more" if len(body) > size else f"only {len(body):,}"
        raise FileError(f"{claim}, the file holds {came}")
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npy(path: Path) -> Array:
    """The array of a ``.npy`` file, memory-mapped, never unpickled.

    Raises:
        FileError: if the file is missing, is not a ``.npy`` file, is truncated, holds a pickle, or has an invalid header.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> np.save(folder / "x.npy", np.zeros((3, 2)))
        >>> read_npy(folder / "x.npy").shape
        (3, 2)
    """
    with open_regular(path) as file:
        if file.read(6) != b"\x93NUMPY":
            raise FileError(f"{path}: not a .npy file")
        file.seek(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # NumPy's, about headers that Python 2 wrote
                warnings.simplefilter("error", RuntimeWarning)  # and about a size that overflows
                header = _HEADERS.get(np.lib.format.read_magic(file))
                if header is not None and bool in map(type, header(file)[0]):
                    raise ValueError("True or False in the shape")
                # Mapped, so that a header that lies about its size is refused before memory is asked for.
                array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # the header is Python source: what is wrong in it can fail anywhere in NumPy's reader
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise FileError(f"{path}: broken or truncated .npy file: {first}") from None
    return array


# --- MATLAB -----------------------------------------------------------------------------------------------------------------
# Level 5 MAT-files (The MathWorks, "MAT-File Format", 2022): a header of 128 bytes, then elements, each a type, a length and its bytes,
# padded to 8; an element of type 15 is a packed one. SciPy's reader is not used: a flipped bit in a length ends the process in it.

_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _PACKED = 14, 15
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = 0x0800


def read_mat(path: Path, name: str) -> Array:
    """A matrix of real numbers from a MATLAB file of version 5 to 7.

    A compressed matrix (MATLAB's default) carries a checksum, which is verified. An uncompressed one has none: damage to its structure is
    refused, damage to its numbers cannot be detected.

    Raises:
        FileError: naming the file and the reason: not such a file, damaged, truncated, no such matrix, or more than 1 GiB when unpacked.

    Example:
        >>> read_mat(Path("nowhere.mat"), "ff")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        FileError: nowhere.mat: cannot be read: No such file or directory
    """
    with open_regular(path) as file:
        header = file.read(128)
        if len(header) < 128 or header[124:] not in (b"\x00\x01IM", b"\x01\x00MI"):
            raise FileError(f"{path}: broken or not a MATLAB file: expected one of version 5 to 7 (save it with -v7)")
        order: Order = "<" if header[126:] == b"IM" else ">"
        body = file.read()
    try:
        for kind, content in _elements(memoryview(body), order, padded=False):
            matrix = _unpacked(content, order) if kind == _PACKED else content
            if kind in (_MATRIX, _PACKED) and (found := _matrix(matrix, order, name)) is not None:
                return found
    except (ValueError, struct.error, zlib.error) as error:
        raise FileError(f"{path}: broken or truncated MATLAB file: {error}") from None
    raise FileError(f"{path}: holds no matrix named {name!r}")


def _elements(data: memoryview, order: Order, padded: bool = True) -> Iterator[tuple[int, memoryview]]:
    """Type and content of one element after the other; a small one has both lengths in its first word. Packed elements have no padding."""
    at = 0
    while at < len(data):
        if len(data) - at < 8:
            raise ValueError("an element is cut off")
        kind, length = struct.unpack_from(f"{order}II", data, at)
        start = at + 8
        if kind >> 16:
            kind, length, start = kind & 0xFFFF, kind >> 16, at + 4
            if length > 4:
                raise ValueError(f"a small element of {length} bytes")
        if length > len(data) - start:
            raise ValueError(f"an element says it has {length:,} bytes, {len(data) - start:,} are left")
        yield kind, data[start : start + length]
        at = at + 8 if start == at + 4 else start + length + (-length % 8 if padded or kind != _PACKED else 0)


def _unpacked(packed: memoryview, order: Order) -> memoryview:
    """The content of the one element that is packed there, compared with its checksum."""
    stream = zlib.decompressobj()
    _, size = struct.unpack(f"{order}II", stream.decompress(packed, 8))
    if size > MOST_UNPACKED:
        raise ValueError(f"a packed element says it has {size:,} bytes: expected at most {MOST_UNPACKED:,}; save it with -v6")
    data = stream.decompress(stream.unconsumed_tail, size + 1)
    if len(data) != size or not stream.eof or stream.unused_data:
        raise ValueError("a packed element is cut off before its checksum")
    return memoryview(data)


def _matrix(data: memoryview, order: Order, name: str) -> Array | None:
    """The matrix, if it has that name."""
    parts = _elements(data, order)
    try:
        (_, flags), (_, sizes), (_, title) = next(parts), next(parts), next(parts)
    except StopIteration:
        raise ValueError("a matrix has no name") from None
    if bytes(title) != name.encode():
        return None
    (word,) = struct.unpack_from(f"{order}I", flags)
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    kind, numbers = next(parts, (0, memoryview(b"")))
    if word & 0xFF not in _CLASSES or word & _COMPLEX or kind not in _NUMBERS or len(shape) != 2 or min(shape) < 0:
        raise ValueError(f"{name!r} is not a matrix of real numbers")
    stored = np.dtype(_NUMBERS[kind]).newbyteorder(order)
    if math.prod(shape) * stored.itemsize != len(numbers):
        raise ValueError(f"{name!r} says it is {shape[0]} x {shape[1]}, {len(numbers):,} bytes are there")
    values = np.frombuffer(numbers, stored).reshape(shape, order="F")
    return values.astype(_CLASSES[word & 0xFF])  # MATLAB stores whole numbers in as few bytes as they need
