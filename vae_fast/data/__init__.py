"""Data sets: ``images`` (digits, MNIST, Frey Faces, your own files), ``toys`` for mixtures, ``readers`` of files that are not trusted."""

from vae_fast.data.images import (
    MNIST_MD5,
    MNIST_MIRRORS,
    Dataset,
    binarized,
    default_data_dir,
    entropy_floor,
    in_model_dtype,
    load,
    load_digits,
    load_file,
    load_frey,
    load_mnist,
    mnist_file,
    spread_split,
)
from vae_fast.data.readers import read_idx, read_mat, read_npy

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
