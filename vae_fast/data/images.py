"""Data sets for training: scikit-learn's digits, MNIST and Frey Faces, read from untrusted files."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import sys
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_fast._optional import optional_import
from vae_fast.data.readers import read_idx, read_mat, read_npy
from vae_fast.errors import FileError
from vae_fast.files import atomic_write

__all__ = [
    "MNIST_MD5",
    "MNIST_MIRRORS",
    "Dataset",
    "binarized",
    "default_data_dir",
    "entropy_floor",
    "in_model_dtype",
    "load",
    "load_digits",
    "load_file",
    "load_frey",
    "load_mnist",
    "mnist_file",
    "read_idx",
    "read_mat",
    "read_npy",
    "spread_split",
]
#: md5 of the four unpacked MNIST files.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://raw.githubusercontent.com/fgnt/mnist/master/",
)
_MOST_BYTES = 64 * 2**20  # of one download, packed or unpacked; the largest MNIST file has 47 MB


@dataclass(frozen=True)
class Dataset:
    """Flattened greyscale images with a fixed split.

    Attributes:
        name: name of the data set.
        train, valid, test: ``(n, height * width)``; uint8 (the models and kernels read ``x / 255``) or float32 in [0, 1].
        test_labels: ``(n,)`` int64, one per test image: the class, or the position in the film for Frey Faces.
        label_name: what the labels are, for a legend.
        image_shape: ``(height, width)``.
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    test_labels: Tensor
    label_name: str
    image_shape: tuple[int, int]


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """A data set by name.

    Args:
        name: ``"digits"``, ``"mnist"`` or ``"frey"``.
        data_dir: directory of its files, see :func:`load_mnist` and :func:`load_frey`; None: :func:`default_data_dir`.

    Raises:
        ValueError: if ``name`` is unknown.
        FileError: naming the file and why it cannot be used.
        MissingExtraError: for ``"digits"``, if scikit-learn is not installed.

    Example:
        >>> load("digits").train.shape
        torch.Size([1439, 64])
    """
    if name == "digits":
        return load_digits()
    if name == "mnist":
        return load_mnist(data_dir)
    if name == "frey":
        return load_frey(data_dir)
    raise ValueError(f"name={name!r}: expected one of 'digits', 'mnist', 'frey'")


def default_data_dir() -> Path:
    """``$VAE_FAST_DATA`` if set, else a directory in the user's cache.

    Example:
        >>> default_data_dir().name != ""
        True
    """
    given = os.environ.get("VAE_FAST_DATA")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vae_fast"


def entropy_floor(x: Tensor) -> float:
    r"""The lowest Bernoulli loss that any model can reach on greyscale targets, in nats per image.

    .. math:: -\frac1N \sum_n \sum_i x_{ni} \log x_{ni} + (1 - x_{ni}) \log(1 - x_{ni})

    It is 0 for black-and-white images and 45.75 for the 55,000 MNIST training images.

    Args:
        x: ``(n, *event)``, uint8 (read as ``x / 255``), bool or floating in [0, 1].

    Example:
        >>> round(entropy_floor(torch.full((3, 2), 0.5)), 4)
        1.3863
    """
    if x.dtype in (torch.uint8, torch.bool):
        counts = torch.bincount(x.flatten().to(torch.uint8).cpu(), minlength=256).double()
        levels = torch.arange(256, dtype=torch.float64) / (255.0 if x.dtype == torch.uint8 else 1.0)
        total = float((counts * _entropy(levels.clamp(max=1.0))).sum())
    else:
        total = sum(float(_entropy(part.double()).sum()) for part in x.split(4096))
    return total / max(1, x.shape[0])


def _entropy(p: Tensor) -> Tensor:
    both: Tensor = torch.special.entr(p) + torch.special.entr(1.0 - p)
    return both


# --- digits -----------------------------------------------------------------------------------------------------------


def load_digits() -> Dataset:
    """The 1,797 handwritten digits of 8 x 8 pixels bundled with scikit-learn: no file, no network. Values 0..16 are divided by 16; float32.

    The split (80 / 10 / 10 per cent) is fixed; each part is spread evenly over the whole set.

    Raises:
        MissingExtraError: if scikit-learn is not installed.

    Example:
        >>> load_digits().test.shape
        torch.Size([179, 64])
    """
    sklearn = optional_import("sklearn.datasets", "scikit-learn", "the data set 'digits'")
    images, labels = sklearn.load_digits(return_X_y=True)
    x = torch.from_numpy(np.asarray(images, dtype=np.float32) / np.float32(16.0))
    return spread_split("digits", x, torch.from_numpy(np.asarray(labels, dtype=np.int64)), "digit", (8, 8))


def spread_split(name: str, x: Tensor, labels: Tensor, label_name: str, shape: tuple[int, int]) -> Dataset:
    """Split 80 / 10 / 10 per cent by a golden-ratio walk through the indices: the same every time, without random numbers.

    Args:
        name, label_name, shape: the data set's ``name``, ``label_name`` and ``image_shape``.
        x: ``(n, height * width)``, n at least 10.
        labels: ``(n,)``.

    Example:
        >>> split = spread_split("rows", torch.zeros(30, 4), torch.arange(30), "row", (2, 2))
        >>> len(split.train), split.test_labels
        (24, tensor([27, 16,  5]))
    """
    n = len(x)
    stride = max(1, round(n * 0.6180339887))
    while math.gcd(stride, n) != 1:
        stride += 1
    order = torch.arange(n) * stride % n
    held = n // 10
    valid, test, train = order[:held], order[held : 2 * held], order[2 * held :].sort().values
    return Dataset(name, x[train], x[valid], x[test], labels[test], label_name, shape)


# --- MNIST ------------------------------------------------------------------------------------------------------------


def load_mnist(data_dir: str | os.PathLike[str] | None = None, *, download: bool = True, validation: int = 5000) -> Dataset:
    """MNIST: the first 5,000 training images are for validation, the other 55,000 for training.

    The four IDX files (``train-images-idx3-ubyte`` and so on, gzip or plain) are looked for in ``data_dir`` and in
    ``data_dir/mnist``. Missing files are downloaded to the latter over https; a file gets its name only after its
    checksum has been verified.

    Args:
        data_dir: None: :func:`default_data_dir`.
        download: False: a missing file is an error.
        validation: number of training images held out for validation.

    Raises:
        FileError: naming the file and why it cannot be used.

    Example:
        >>> load_mnist("nowhere", download=False)  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        FileError: nowhere: train-images-idx3-ubyte[.gz] is neither here nor in nowhere/mnist
    """
    folder = default_data_dir() if data_dir is None else Path(data_dir)
    arrays = {name: read_idx(mnist_file(folder, name, download)) for name in MNIST_MD5}
    images, labels, test_images, test_labels = arrays.values()
    for split, data, classes in (("train", images, labels), ("t10k", test_images, test_labels)):
        where = f"{folder}: {split}-images and {split}-labels"
        if data.ndim != 3 or classes.ndim != 1 or len(data) != len(classes):
            raise FileError(f"{where} have shapes {data.shape} and {classes.shape}: expected (n, rows, columns) and (n,)")
        if 0 in data.shape:
            raise FileError(f"{where} have shapes {data.shape} and {classes.shape}: expected at least one image of at least one pixel")
    if images.shape[1:] != test_images.shape[1:]:
        raise FileError(f"{folder}: training images are {images.shape[1:]}, test images {test_images.shape[1:]}")
    if len(images) <= validation:
        raise FileError(f"{folder}: {len(images)} training images: expected more than the {validation} held out for validation")
    x, test = _flat(images), _flat(test_images)
    rows, columns = images.shape[1:]
    digits = torch.from_numpy(test_labels.astype(np.int64))
    return Dataset("mnist", x[validation:], x[:validation], test, digits, "digit", (rows, columns))


def _flat(images: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(images.reshape(len(images), -1))


def mnist_file(folder: Path, name: str, download: bool) -> Path:
    """One of the four files of :func:`load_mnist`, gzip or plain, in ``folder/mnist`` or ``folder``; downloaded if missing and wanted.

    Raises:
        FileError: naming the file and why it is missing.

    Example:
        >>> mnist_file(Path("nowhere"), "t10k-labels-idx1-ubyte", download=False)  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        FileError: nowhere: t10k-labels-idx1-ubyte[.gz] is neither here nor in nowhere/mnist
    """
    for where in (folder / "mnist", folder):
        for candidate in (where / name, where / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    if not download:
        raise FileError(f"{folder}: {name}[.gz] is neither here nor in {folder / 'mnist'}")
    return _download(name, folder / "mnist" / f"{name}.gz")


def _download(name: str, target: Path) -> Path:
    import urllib.request  # here: it brings http, ssl and email, which nobody needs who has the files

    reasons = []
    for mirror in MNIST_MIRRORS:
        url = f"{mirror}{name}.gz"
        print(f"downloading {url}", file=sys.stderr)
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                packed = response.read(_MOST_BYTES + 1)
            with gzip.open(io.BytesIO(packed)) as file:
                plain = file.read(_MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:  # URLError and BadGzipFile are OSErrors
            reasons.append(f"{url}: {getattr(error, 'reason', None) or error}")
            continue
        md5 = hashlib.md5(plain, usedforsecurity=False).hexdigest()
        if md5 != MNIST_MD5[name]:
            reasons.append(f"{url}: md5 of the unpacked file is {md5}, expected {MNIST_MD5[name]}")
            continue
        with atomic_write(target) as out:
            out.write(packed)
        return target
    raise FileError(
        f"{target}: missing, and no mirror provided it ({'; '.join(reasons)}). "
        f"Without a network, put the four MNIST files in a directory and name it with --data-dir or VAE_FAST_DATA"
    )


# --- Frey Faces -------------------------------------------------------------------------------------------------------

_FREY_NAMES = ("frey/frey_faces.npy", "frey_faces.npy", "frey/frey_rawface.mat", "frey_rawface.mat")


def load_frey(data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Frey Faces: 1,965 frames of 28 x 20 from one film; the label of a frame is its position in the film.

    Reads ``frey_faces.npy`` (uint8, ``(n, 28, 20)`` or ``(n, 560)``) or ``frey_rawface.mat`` (key ``ff``, ``(560, n)``;
    :func:`read_mat` says which damage it detects) in ``data_dir`` or ``data_dir/frey``, or the file that ``data_dir``
    names. The split is 80 / 10 / 10 per cent; each part is spread evenly over the film.

    Raises:
        FileError: naming the file and why it cannot be used.

    Example:
        >>> load_frey("nowhere")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        FileError: nowhere: holds none of frey/frey_faces.npy, frey_faces.npy, ...
    """
    folder = default_data_dir() if data_dir is None else Path(data_dir)
    path = folder if folder.is_file() else next((folder / n for n in _FREY_NAMES if (folder / n).is_file()), None)
    if path is None:
        raise FileError(
            f"{folder}: holds none of {', '.join(_FREY_NAMES)}. Get frey_rawface.mat from "
            "https://cs.nyu.edu/~roweis/data.html and name its directory with --data-dir or VAE_FAST_DATA"
        )
    frames = read_mat(path, "ff").T if path.suffix == ".mat" else read_npy(path)
    if frames.dtype != np.uint8:
        raise FileError(f"{path}: dtype {frames.dtype}: expected uint8")
    if frames.shape[1:] not in ((28, 20), (560,)) or len(frames) < 10:
        raise FileError(f"{path}: shape {frames.shape}: expected (n, 28, 20) or (n, 560) with n at least 10")
    flat = np.array(frames, order="C").reshape(len(frames), 560)
    return spread_split("frey", torch.from_numpy(flat), torch.arange(len(flat)), "frame", (28, 20))


def load_file(path: str | os.PathLike[str], *, held: int = 10_000) -> Dataset:
    """The images of a ``.npy`` file, also one larger than memory: the training rows stay memory-mapped, only indexed rows are read.

    The last tenth of the rows is held out, at most ``held`` for validation and as many for testing; these are loaded.

    Args:
        path: ``(n, height, width)`` or ``(n, d)``, n at least 10; uint8 (read as ``x / 255``), bool or floating in [0, 1].
        held: largest number of rows of each held-out part.

    Raises:
        FileError: naming the file and why it cannot be used. Of floating values, only those held out are checked.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "x.npy"
        >>> np.save(file, np.zeros((40, 4, 4), dtype=np.uint8))
        >>> load_file(file).train.shape
        torch.Size([36, 16])
    """
    path = Path(path)
    array = read_npy(path)
    if array.dtype not in (np.uint8, np.bool_, np.float16, np.float32, np.float64):
        raise FileError(f"{path}: dtype {array.dtype}: expected uint8, bool, float16, float32 or float64")
    if array.ndim not in (2, 3) or len(array) < 10 or array[0].size == 0 or not array.flags.c_contiguous:
        raise FileError(f"{path}: shape {array.shape}: expected (n, height, width) or (n, d) in C order, with n at least 10")
    side = math.isqrt(array[0].size)
    shape = array.shape[1:] if array.ndim == 3 else (side, side) if side**2 == array.shape[1] else (1, array.shape[1])
    flat = array.reshape(len(array), -1)
    part = max(1, min(held, len(flat) // 20))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about a tensor that must not be written to
        train = torch.from_numpy(flat[: -2 * part])
    valid, test = torch.from_numpy(np.array(flat[-2 * part :])).split(part)
    if train.is_floating_point() and not ((valid >= 0) & (valid <= 1)).all():
        raise FileError(f"{path}: holds values that are not in [0, 1]")
    return Dataset(path.stem, train, in_model_dtype(valid), in_model_dtype(test), torch.arange(part), "row", (int(shape[0]), int(shape[1])))


def in_model_dtype(x: Tensor) -> Tensor:
    """A batch in a dtype that the models take: floating values become float32, uint8 and bool stay.

    Example:
        >>> in_model_dtype(torch.zeros(2, dtype=torch.float64)).dtype
        torch.float32
    """
    return x.float() if x.is_floating_point() else x


def binarized(x: Tensor) -> Tensor:
    """Dynamic binarisation: a fresh bool draw, True with probability x (x / 255 for uint8), from torch's default generator.

    Args:
        x: any shape; floating in [0, 1], uint8, or bool, which is returned as it is.

    Example:
        >>> binarized(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([False,  True])
    """
    if x.dtype == torch.uint8:
        return torch.randint(0, 255, x.shape, dtype=torch.uint8, device=x.device) < x  # u < x for x of the 255 values of u
    return x if x.dtype == torch.bool else torch.rand(x.shape, device=x.device) < x
