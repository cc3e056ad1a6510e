"""Files that are damaged or made with care: one error that names the file, and nothing allocated on their word."""

import gzip
import io
import os
import resource
import struct
import zlib

import numpy as np
import pytest
import scipy.io
from test_data import FACES, idx, tiny_mnist, write

from vae_fast import data
from vae_fast.errors import FileError


def refused(words, call, path, *rest):
    with pytest.raises(FileError, match=words) as error:
        call(path, *rest)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.fixture
def little_memory():
    """Less than half a gigabyte more than there is now."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 400 * 2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# --- .npy -------------------------------------------------------------------------------------------------------------------


def npy(header):
    text = header.encode("latin1")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(1000)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (10, 4), ",  # a token is missing
        "{'descr': '|u1', 'fortran_order': False, 'shape': (10, '''",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999, 4)}",  # no machine integer
        "{'descr': '|u1', 'fortran_order': False, 'shape': (9223372036854775807, 4)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 4294967296)}",  # a product of 0
        "{'descr': '|u1', 'fortran_order': False, 'shape': (True, 4)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-10, -4)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-10, 4)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (10.0, 4)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 4)}",
        "{'descr': '|S99999999999', 'fortran_order': False, 'shape': (10,)}",
        "{'descr': [('a', '|u1', (2147483647, 2147483647))], 'fortran_order': False, 'shape': (10,)}",
        "{'descr': 'nonsense', 'fortran_order': False, 'shape': (10, 4)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (10, 4)}",
        "[" * 900 + "]" * 900,
        "\x00\x01",
        "0" * 20000,
    ],
)
def test_npy_headers(tmp_path, header):
    path = tmp_path / "x.npy"
    path.write_bytes(npy(header))
    refused("broken or truncated .npy file|shape", data.read_npy, path)


def test_every_byte_of_an_npy_header(tmp_path):
    """Flipped, it is refused or another array of the bytes that are there."""
    path = tmp_path / "x.npy"
    np.save(path, FACES[:12])
    raw = path.read_bytes()
    handle = os.open(path, os.O_RDWR)
    refusals = 0
    for at in range(128):
        for bit in range(8):
            os.pwrite(handle, bytes([raw[at] ^ (1 << bit)]), at)
            try:
                assert data.read_npy(path).nbytes <= len(raw)
            except FileError as error:
                assert str(error).startswith(f"{path}: ")
                refusals += 1
        os.pwrite(handle, raw[at : at + 1], at)
    os.close(handle)
    assert refusals > 200


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    for name, words in (("pipe.npy", "not a file"), ("none.npy", "No such file"), (".", "Is a directory")):
        for read in (data.read_npy, data.read_idx):
            refused(f"cannot be read: {words}", read, tmp_path / name)


# --- IDX --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("test", "size"), [(0, (4, 3)), (5, (0, 3))])
def test_mnist_without_test_images_or_pixels(tmp_path, test, size):
    write(tmp_path, tiny_mnist(test=test, size=size))
    with pytest.raises(FileError, match=r"expected at least one image of at least one pixel"):
        data.load_mnist(tmp_path, download=False, validation=4)


def test_packed_gigabytes_are_refused_unread(tmp_path, little_memory):
    """Refused by the header; by the first byte too many where the header says less; plain, by what is there."""
    path = tmp_path / "images.gz"
    zeros = zlib.compressobj(9, wbits=31)
    head = bytes([0, 0, 8, 3]) + struct.pack(">3I", 60000, 280, 280)
    path.write_bytes(zeros.compress(head) + zeros.compress(bytes(2**20)) + zeros.flush())
    refused("4,704,000,000 bytes: expected at most 1,073,741,824 in a packed file", data.read_idx, path)
    path.write_bytes(gzip.compress(idx(np.zeros((2, 2), np.uint8)) + bytes(2**26)))
    refused("the file holds more", data.read_idx, path)
    path.write_bytes(bytes([0, 0, 8, 4]) + struct.pack(">4I", *[2**32 - 1] * 4) + b"abc")
    refused("the file holds only 3", data.read_idx, path)


# --- MATLAB -----------------------------------------------------------------------------------------------------------------


def mat(path, packed, **arrays):
    scipy.io.savemat(path, arrays, do_compression=packed)
    return path.read_bytes()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64", "int64"])
def test_mat_against_scipys_reader(tmp_path, packed, dtype):
    path = tmp_path / "a.mat"
    mat(path, packed, other=np.arange(3.0), ff=FACES[:3, :5, 0].astype(dtype), s="text", cell=np.array([1, "a"], dtype=object))
    got = data.read_mat(path, "ff")
    want = scipy.io.loadmat(path)["ff"]
    assert got.dtype == want.dtype
    assert (got == want).all()
    refused("holds no matrix named 'gg'", data.read_mat, path, "gg")
    refused("'s' is not a matrix of real numbers", data.read_mat, path, "s")


def test_mat_of_the_other_byte_order(tmp_path):
    """By hand, as a big-endian machine writes it."""
    element = lambda kind, content: struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)  # noqa: E731
    flags, sizes, name = struct.pack(">II", 6, 0), struct.pack(">ii", 2, 3), b"ff"
    numbers = np.arange(6, dtype=">f8").tobytes()
    matrix = element(6, flags) + element(5, sizes) + element(1, name) + element(9, numbers)
    (tmp_path / "a.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI" + element(14, matrix))
    assert data.read_mat(tmp_path / "a.mat", "ff").tolist() == [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]


@pytest.mark.parametrize("packed", [False, True])
def test_every_byte_of_a_mat_file(tmp_path, packed):
    """SciPy's reader ends the process on some of these. A packed matrix has a checksum: no other numbers come out of it."""
    path = tmp_path / "a.mat"
    raw = mat(path, packed, ff=FACES[:12, :4, :4].reshape(12, 16))
    want = data.read_mat(path, "ff")
    handle = os.open(path, os.O_RDWR)
    refusals = 0
    for at, byte in enumerate(raw):
        for bit in range(8):
            os.pwrite(handle, bytes([byte ^ (1 << bit)]), at)
            try:
                got = data.read_mat(path, "ff")
                assert not packed or (got == want).all()
                assert got.nbytes <= 8 * len(raw)
            except FileError as error:
                assert str(error).startswith(f"{path}: ")
                refusals += 1
        os.pwrite(handle, bytes([byte]), at)
    os.close(handle)
    assert refusals > 200


@pytest.mark.parametrize("packed", [False, True])
def test_mat_cut_off_anywhere(tmp_path, packed):
    """The last four bytes of a packed one are the checksum."""
    path = tmp_path / "a.mat"
    raw = mat(path, packed, ff=FACES[:12, :4, :4].reshape(12, 16))
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(FileError, match=r"MATLAB|holds no matrix"):
            data.read_mat(path, "ff")
    if packed:
        (size,) = struct.unpack_from("<I", raw, 132)
        path.write_bytes(raw[:132] + struct.pack("<I", size - 4) + raw[136:-4])
        refused("cut off before its checksum", data.read_mat, path, "ff")


def test_mat_that_claims_gigabytes(tmp_path, little_memory):
    path = tmp_path / "a.mat"
    raw = mat(path, True, ff=FACES[:3, 0])
    for size, words in ((3 * 2**30, "says it has 3,221,225,472 bytes"), (100, "before its checksum")):
        bomb = zlib.compressobj(9)
        content = bomb.compress(struct.pack("<II", 14, size)) + bomb.compress(bytes(2**28)) + bomb.flush()
        path.write_bytes(raw[:128] + struct.pack("<II", 15, len(content)) + content)
        refused(words, data.read_mat, path, "ff")
    for content in (
        struct.pack("<II", 14, 2**32 - 1),
        struct.pack("<IIII", 14, 8, 6, 2**32 - 1),
        struct.pack("<I", (9 << 16) | 1) + bytes(4),
    ):
        path.write_bytes(raw[:128] + content)
        refused("broken or truncated MATLAB file", data.read_mat, path, "ff")


def test_a_plain_npy_is_mapped_whatever_its_size(tmp_path, little_memory):
    """A file that is mostly a hole."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": (300, 2**20)})
    path = tmp_path / "x.npy"
    path.write_bytes(buffer.getvalue())
    with path.open("r+b") as file:
        file.truncate(len(buffer.getvalue()) + 300 * 2**20)
    assert data.read_npy(path).shape == (300, 2**20)
