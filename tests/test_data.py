"""Data sets: what is read, how it is split, and every way a file can be broken."""

import gzip
import hashlib
import io
import math
import os
import struct
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vae_fast import data
from vae_fast.errors import FileError, MissingExtraError

NAMES = list(data.MNIST_MD5)


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def tiny_mnist(train=12, test=5, size=(4, 3)):
    rng = np.random.default_rng(0)
    draw = lambda *shape, high=256: rng.integers(0, high, shape, dtype=np.uint8)  # noqa: E731
    return dict(zip(NAMES, (draw(train, *size), draw(train, high=10), draw(test, *size), draw(test, high=10)), strict=True))


def write(folder, arrays, packed=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        file = folder / (f"{name}.gz" if packed else name)
        file.write_bytes(gzip.compress(idx(array)) if packed else idx(array))


def refused(words, call, *args, path, **kwargs):
    with pytest.raises(FileError, match=words) as error:
        call(*args, **kwargs)
    assert str(path) in str(error.value)


# --- the entropy floor ------------------------------------------------------------------------------------------------


def test_entropy_floor():
    x = torch.tensor([[0, 255, 51], [255, 255, 0]], dtype=torch.uint8)
    want = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8)) / 2
    assert data.entropy_floor(x) == pytest.approx(want, rel=1e-12)
    assert data.entropy_floor(x.double() / 255.0) == pytest.approx(want, rel=1e-12)
    assert data.entropy_floor(x > 100) == 0.0


def test_entropy_floor_is_the_least_loss():
    from vae_fast import bernoulli_log_prob

    x = torch.rand(50, 7, generator=torch.Generator().manual_seed(0)).double()
    assert -bernoulli_log_prob(x, probs=x).mean().item() == pytest.approx(data.entropy_floor(x), rel=1e-12)


# --- digits -----------------------------------------------------------------------------------------------------------


def test_digits():
    from sklearn.datasets import load_digits

    digits = data.load("digits")
    assert [len(t) for t in (digits.train, digits.valid, digits.test)] == [1439, 179, 179]
    everything = torch.cat([digits.train, digits.valid, digits.test]) * 16.0
    want = torch.from_numpy(load_digits().data).float()
    rows = lambda t: sorted(map(tuple, t.tolist()))  # noqa: E731
    assert rows(everything) == rows(want)  # every image once, values 0..16 kept exactly
    assert digits.train.dtype == torch.float32
    counts = digits.test_labels.bincount()
    assert len(counts) == 10
    assert counts.min() >= 10
    first = want[load_digits().target == int(digits.test_labels[0])] / 16.0
    assert (first == digits.test[0]).all(1).any()  # labels belong to their images


def test_missing_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"'digits' needs scikit-learn: .*vae_fast\[train\]"):
        data.load("digits")


def test_unknown_name():
    with pytest.raises(ValueError, match="name='cifar': expected one of 'digits', 'mnist', 'frey'"):
        data.load("cifar")


# --- IDX files --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.uint8, hnp.array_shapes(max_dims=4, min_side=0, max_side=6)), st.booleans())
def test_idx_round_trip(tmp_path_factory, array, packed):
    path = tmp_path_factory.mktemp("idx") / "images"
    path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    got = data.read_idx(path)
    assert got.shape == array.shape
    assert (got == array).all()


@settings(max_examples=60, deadline=None)
@given(st.floats(0.0, 1.0, exclude_max=True), st.booleans())
def test_idx_truncated_anywhere(tmp_path_factory, share, packed):
    path = tmp_path_factory.mktemp("idx") / "images"
    array = np.random.default_rng(0).integers(0, 256, (7, 5, 5), dtype=np.uint8)
    whole = gzip.compress(idx(array)) if packed else idx(array)
    path.write_bytes(whole[: int(share * len(whole))])
    refused("truncated|not an IDX file|the file holds only", data.read_idx, path, path=path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not an IDX file: it begins with nothing"),
        (b"P5 28 28 255", "not an IDX file: it begins with 50 35 20 32"),
        (b"\0\0\x0d\x03" + b"\0" * 12, "element type 0x0d: expected 0x08"),
        (b"\0\0\x08\x00", "0 dimensions"),
        (b"\0\0\x08\x09" + b"\0" * 36, "9 dimensions"),
        (b"\0\0\x08\x02\0\0", "truncated inside its header"),
        (b"\0\0\x08\x01\0\0\0\x02abc", "2 = 2 bytes, the file holds more"),
        (b"\0\0\x08\x01\0\0\0\x04abc", "4 = 4 bytes, the file holds only 3"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + b"abc", "the file holds only 3"),
        (b"\x1f\x8b\x08\0" + b"\0" * 40, "gzip"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x02ab", mtime=0)[:-6] + b"\0\0\0\0\0\0", "gzip"),
    ],
)
def test_idx_refused(tmp_path, content, words):
    path = tmp_path / "images"
    path.write_bytes(content)
    refused(words, data.read_idx, path, path=path)


def test_idx_missing(tmp_path):
    refused("No such file", data.read_idx, tmp_path / "images", path=tmp_path / "images")


# --- MNIST ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("inside", [".", "mnist"])
def testmnist_files(tmp_path, packed, inside):
    arrays = tiny_mnist()
    write(tmp_path / inside, arrays, packed)
    mnist = data.load_mnist(tmp_path, download=False, validation=4)
    images, _, test, labels = arrays.values()
    assert (mnist.valid.numpy() == images[:4].reshape(4, 12)).all()
    assert (mnist.train.numpy() == images[4:].reshape(8, 12)).all()
    assert (mnist.test.numpy() == test.reshape(5, 12)).all()
    assert mnist.test_labels.tolist() == labels.tolist()
    assert mnist.train.dtype == torch.uint8
    assert mnist.image_shape == (4, 3)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({NAMES[0]: np.zeros((12, 4), np.uint8)}, r"train-images and train-labels have shapes \(12, 4\)"),
        ({NAMES[3]: np.zeros(6, np.uint8)}, r"t10k-images and t10k-labels have shapes \(5, 4, 3\) and \(6,\)"),
        ({NAMES[2]: np.zeros((5, 3, 3), np.uint8)}, r"training images are \(4, 3\), test images \(3, 3\)"),
        ({}, "12 training images: expected more than the 5000"),
    ],
)
def testmnist_files_that_do_not_fit(tmp_path, edit, words):
    write(tmp_path, tiny_mnist() | edit)
    options = {} if "5000" in words else {"validation": 4}
    refused(words, data.load_mnist, tmp_path, path=tmp_path, download=False, **options)


def test_mnist_environment_variable(tmp_path, monkeypatch):
    write(tmp_path / "mnist", tiny_mnist())
    monkeypatch.setenv("VAE_FAST_DATA", str(tmp_path))
    assert data.load_mnist(download=False, validation=4).train.shape == (8, 12)
    monkeypatch.delenv("VAE_FAST_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data.default_data_dir() == tmp_path / "cache" / "vae_fast"


def serve(monkeypatch, files):
    """Let every mirror answer from a dictionary of url endings; what is not there cannot be reached."""
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        for ending, content in files.items():
            if url.endswith(ending):
                return io.BytesIO(content)
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return asked


def test_mnist_download(tmp_path, monkeypatch, capsys):
    arrays = tiny_mnist()
    monkeypatch.setattr(data.images, "MNIST_MD5", {k: hashlib.md5(idx(v)).hexdigest() for k, v in arrays.items()})
    asked = serve(monkeypatch, {f"{k}.gz": gzip.compress(idx(v)) for k, v in arrays.items()})
    for _ in range(2):  # the second time nothing is downloaded
        assert data.load_mnist(tmp_path, validation=4).train.shape == (8, 12)
    assert len(asked) == 4
    assert all(url.startswith("https://") for url in asked)
    assert sorted(p.name for p in (tmp_path / "mnist").iterdir()) == sorted(f"{n}.gz" for n in NAMES)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(b"something else", mtime=0), "md5 of the unpacked file is .*, expected 6bbc9ace"),
        (gzip.compress(b"something else", mtime=0)[:-9], "end-of-stream"),
        (b"<html>please log in</html>", "Not a gzipped file"),
        (None, "no route to host"),
    ],
)
def test_mnist_download_refused(tmp_path, monkeypatch, content, words):
    """Every mirror is tried, the reasons are told, and nothing is left behind."""
    asked = serve(monkeypatch, {} if content is None else {".gz": content})
    target = tmp_path / "mnist" / f"{NAMES[0]}.gz"
    refused(f"{words}.*--data-dir or VAE_FAST_DATA", data.load_mnist, tmp_path, path=target)
    assert len(asked) == len(data.MNIST_MIRRORS)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_mnist_second_mirror_serves(tmp_path, monkeypatch):
    arrays = tiny_mnist()
    monkeypatch.setattr(data.images, "MNIST_MD5", {k: hashlib.md5(idx(v)).hexdigest() for k, v in arrays.items()})
    second = data.MNIST_MIRRORS[1]
    serve(monkeypatch, {f"{second}{k}.gz": gzip.compress(idx(v)) for k, v in arrays.items()})
    assert data.load_mnist(tmp_path, validation=4).test.shape == (5, 12)


def real(name):
    folder = os.environ.get("VAE_FAST_DATA")
    return bool(folder) and (Path(folder) / name).is_dir()


@pytest.mark.skipif(not real("mnist"), reason="VAE_FAST_DATA holds no mnist directory")
def test_real_mnist():
    mnist = data.load("mnist")
    assert [len(t) for t in (mnist.train, mnist.valid, mnist.test)] == [55000, 5000, 10000]
    assert mnist.image_shape == (28, 28)
    assert round(data.entropy_floor(mnist.train), 2) == 45.75
    assert mnist.test_labels[:5].tolist() == [7, 2, 1, 0, 4]


# --- Frey Faces -------------------------------------------------------------------------------------------------------

FACES = np.random.default_rng(0).integers(0, 256, (40, 28, 20), dtype=np.uint8)


@pytest.mark.parametrize("name", ["frey/frey_faces.npy", "frey_faces.npy", "frey/frey_rawface.mat", "frey_rawface.mat"])
def test_frey_files(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, FACES)
    else:
        scipy.io.savemat(path, {"ff": FACES.reshape(40, 560).T})
    for where in (tmp_path, path):
        frey = data.load_frey(where)
        assert [len(t) for t in (frey.train, frey.valid, frey.test)] == [32, 4, 4]
        everything = torch.cat([frey.train, frey.valid, frey.test])
        assert sorted(map(tuple, everything.tolist())) == sorted(map(tuple, FACES.reshape(40, 560).tolist()))
        assert (frey.test.numpy() == FACES.reshape(40, 560)[frey.test_labels]).all()
        assert frey.image_shape == (28, 20)


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


class Touch:
    def __reduce__(self):
        return (open, (str(Path(os.environ["TOUCH"])), "w"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a .npy file"),
        (b"hello world", "not a .npy file"),
        (npy(FACES)[:40], "broken or truncated"),
        (npy(FACES)[:-1], "broken or truncated"),
        (npy(FACES).replace(b"(40, 28", b"(99999, 28"), "broken or truncated"),
        (npy(FACES.astype(np.float32)), "dtype float32: expected uint8"),
        (npy(FACES.transpose(0, 2, 1)), r"shape \(40, 20, 28\): expected"),
        (npy(FACES[:3]), "n at least 10"),
        (npy(np.uint8(3)), "shape"),
    ],
)
def test_frey_npy_refused(tmp_path, content, words):
    path = tmp_path / "frey_faces.npy"
    path.write_bytes(content)
    refused(words, data.load_frey, tmp_path, path=path)


def test_frey_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TOUCH", str(tmp_path / "mark"))
    path = tmp_path / "frey_faces.npy"
    array = np.empty(1, dtype=object)
    array[0] = Touch()
    path.write_bytes(npy(array, allow_pickle=True))
    refused("broken", data.load_frey, tmp_path, path=path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        ({"gg": FACES[0]}, "no matrix named 'ff'"),
        ({"ff": FACES[0].astype(float)}, "dtype float64"),
        (None, "not a MATLAB"),
    ],
)
def test_frey_mat_refused(tmp_path, matrix, words):
    path = tmp_path / "frey_rawface.mat"
    if matrix is None:
        path.write_bytes(b"nothing of the kind")
    else:
        scipy.io.savemat(path, matrix)
    refused(words, data.load_frey, tmp_path, path=path)


def test_frey_truncated_mat(tmp_path):
    path = tmp_path / "frey_rawface.mat"
    scipy.io.savemat(path, {"ff": FACES.reshape(40, 560).T})
    path.write_bytes(path.read_bytes()[:5000])
    refused("broken", data.load_frey, tmp_path, path=path)


def test_frey_without_scipy(tmp_path, monkeypatch):
    scipy.io.savemat(tmp_path / "frey_rawface.mat", {"ff": FACES.reshape(40, 560).T})
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    frey = data.load_frey(tmp_path)  # its reader ends the process over a flipped bit: it is not asked
    assert [len(part) for part in (frey.train, frey.valid, frey.test)] == [32, 4, 4]


def test_frey_missing(tmp_path):
    refused("holds none of frey/frey_faces.npy.*--data-dir", data.load_frey, tmp_path, path=tmp_path)


@pytest.mark.skipif(not real("frey"), reason="VAE_FAST_DATA holds no frey directory")
def test_real_frey():
    frey = data.load("frey")
    pixels = torch.cat([frey.train, frey.valid, frey.test])
    assert len(pixels) == 1965
    assert frey.train.dtype == torch.uint8
