"""What a mixture is fitted to: an array, a tensor, a file mapped into memory or batches that come one by one; read in blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_fast.functional import _arguments as check
from vae_fast.functional._dispatch import kernels

_MAPPED_ELEMENTS = 2**23  # elements read at once from a memory map when the caller does not say
_PLAIN_ELEMENTS = 2**22  # elements of the N x K x D intermediate of the plain-torch formulas
_SAMPLE = 50_000  # samples kept for the start when the data are not in memory


def block_rows(n_components: int, n_features: int) -> int | None:
    """How many samples the formulas are given at once: all of them on the kernels, a bounded product with K and D in plain torch."""
    return None if kernels() is not None else max(1, _PLAIN_ELEMENTS // (n_components * n_features))


class Rows:
    """Samples of shape (N, D), checked, in one dtype on one device, read as often as needed.

    Args:
        X: a NumPy array or what :func:`numpy.asarray` makes one of, a tensor, a ``np.memmap`` (read in slices, never whole), or batches: a
            ``DataLoader`` or any iterable of (batch, D) arrays or tensors that starts anew with each loop; of a tuple, the first item.
        batch_size: samples in a block; None is all of them, or what suits a memory map.
        dtype: float32 or float64; None is that of the data, with float32 for halves, float64 for other NumPy arrays and torch's default
            for other tensors.
        device: where blocks are put; None is the device of a tensor, else ``fallback``.
        fallback: the device for data that has none.
        n_features: D, if it is known.

    Raises:
        TypeError, ValueError: naming what came and what was expected.
    """

    def __init__(
        self,
        X: Any,  # noqa: N803
        *,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        fallback: torch.device | None = None,
        n_features: int | None = None,
    ) -> None:
        """See the class."""
        self.batch_size = batch_size
        self._whole: Tensor | np.ndarray[Any, Any] | None = None
        self._batches: Iterable[Any] | None = None
        first = X
        if isinstance(X, np.memmap):
            self._whole = first = X
        elif isinstance(X, Tensor | np.ndarray) or hasattr(X, "__array__"):
            self._whole = first = X if isinstance(X, Tensor) else np.asarray(X)
        elif isinstance(X, list | tuple) and not (len(X) and _is_array(X[0]) and X[0].ndim == 2):
            self._whole = first = _numbers(X)
        elif hasattr(X, "toarray"):
            raise TypeError(f"X is a sparse {type(X).__name__}: expected a dense array (X.toarray())")
        elif isinstance(X, Iterable):
            if isinstance(X, Iterator):
                raise TypeError(
                    f"X is a {type(X).__name__}, which can be read once: expected an array, a tensor or batches that start anew with each "
                    "loop (a DataLoader, a list); give a stream to partial_fit batch by batch"
                )
            self._batches = X
            first = next((_features(item) for item in X), None)
            if first is None:
                raise ValueError("X has no batches: expected at least one")
        else:
            raise TypeError(f"X: expected an array, a tensor or an iterable of batches, got {type(X).__name__}")
        if not _is_array(first):
            raise TypeError(f"a batch of X: expected an array or a tensor, got {type(first).__name__}")
        if first.ndim != 2:
            hint = "; X.reshape(-1, 1) if it is one feature" if first.ndim == 1 else ""
            raise ValueError(f"X has shape {tuple(first.shape)}: expected (n_samples, n_features){hint}")
        self.n_features = int(first.shape[1])
        if n_features is not None and self.n_features != n_features:
            raise ValueError(f"X has {self.n_features} features: expected {n_features}, as the mixture has")
        if 0 in first.shape:
            raise ValueError(f"X has shape {tuple(first.shape)}: expected at least one sample and one feature")
        self.is_numpy = not isinstance(first, Tensor)
        own = first.device if isinstance(first, Tensor) else None
        self.home = own or torch.device("cpu")
        self.device = torch.device(device) if device is not None else own or fallback or self.home
        self.dtype = dtype or _dtype_of(first)
        if self._whole is not None and not isinstance(self._whole, np.memmap):
            # Whole arrays are put on the device at once, unless the caller asks for blocks.
            self._whole = self._block(self._whole, self.device if batch_size is None else self.home)
        self._checked = False

    def _block(self, raw: Any, device: torch.device) -> Tensor:
        if not _is_array(raw):
            raise TypeError(f"a batch of X: expected an array or a tensor, got {type(raw).__name__}")
        if raw.ndim != 2 or raw.shape[1] != self.n_features:
            raise ValueError(f"a batch of X has shape {tuple(raw.shape)}: expected (batch, {self.n_features})")
        if isinstance(raw, np.ndarray):
            if raw.dtype.kind not in "fiub":
                raise TypeError(f"X has dtype {raw.dtype}: expected real numbers")
            kept = raw.dtype if raw.dtype in (np.float32, np.float64) else np.dtype(np.float64)
            copy = isinstance(raw, np.memmap) or not raw.flags.writeable or any(s < 0 for s in raw.strides) or not raw.dtype.isnative
            raw = torch.from_numpy(np.array(raw, dtype=kept) if copy else np.ascontiguousarray(raw, dtype=kept))
        elif raw.is_complex() or raw.layout != torch.strided:
            raise TypeError(f"X has dtype {raw.dtype} and layout {raw.layout}: expected a dense tensor of real numbers")
        out: Tensor = raw.detach().to(device=device, dtype=self.dtype)
        return out

    def is_batched(self) -> bool:
        """Whether the data come as batches: by ``batch_size``, or by themselves."""
        return self.batch_size is not None or self._batches is not None

    def blocks(self, at_most: int | None = None, order: torch.Generator | bool = False) -> Iterator[Tensor]:
        """All samples, block by block.

        Args:
            at_most: cut blocks to this many samples.
            order: False for the order of the data; a generator (or True for torch's own) to shuffle: samples of an array, slices of a
                memory map; batches come in an order of their own.
        """
        for block in self._read(order):
            yield from block.split(at_most) if at_most is not None and len(block) > at_most else (block,)

    def _read(self, order: torch.Generator | bool) -> Iterator[Tensor]:
        generator = order if isinstance(order, torch.Generator) else None
        if self._batches is not None:
            for item in self._batches:
                yield self._block(_features(item), self.device)
            return
        whole = self._whole
        assert whole is not None
        if isinstance(whole, Tensor) and order is not False:
            permutation = torch.randperm(len(whole), generator=generator).to(whole.device)
            for rows in permutation.split(self.batch_size or max(1, len(whole))):
                yield whole[rows].to(self.device)
            return
        step = self.batch_size or (len(whole) if isinstance(whole, Tensor) else max(1, _MAPPED_ELEMENTS // self.n_features))
        starts = list(range(0, len(whole), max(1, step)))
        if order is not False:
            starts = [starts[i] for i in torch.randperm(len(starts), generator=generator).tolist()]
        for start in starts:
            block = whole[start : start + step]
            yield block.to(self.device) if isinstance(block, Tensor) else self._block(block, self.device)

    def checked(self, at_most: int | None = None) -> Iterator[Tensor]:
        """:meth:`blocks`, refusing numbers that are not finite."""
        seen = 0
        for x in self.blocks(at_most):
            finite = x.isfinite()
            if not bool(finite.all()):
                row, column = (~finite).nonzero()[0].tolist()
                raise ValueError(f"X[{seen + row}, {column}] is {x[row, column].item()}: expected finite numbers")
            seen += len(x)
            yield x

    def survey(self, n_components: int, generator: torch.Generator | None) -> tuple[int, Tensor]:
        """Check every number; count the samples; and return all of them, or a uniform choice of 50,000 if they are not in memory.

        Raises:
            ValueError: for NaN or infinity, and for fewer samples than components.
        """
        n, kept, keys = 0, None, torch.empty(0, dtype=torch.float64)
        for x in self.checked():
            n += len(x)
            if isinstance(self._whole, Tensor):
                continue
            # The samples with the smallest of independent uniform keys are a uniform choice.
            keys = torch.cat([keys, torch.rand(len(x), generator=generator, dtype=torch.float64)])
            kept = x if kept is None else torch.cat([kept, x])
            if len(keys) > _SAMPLE:
                keys, chosen = keys.topk(_SAMPLE, largest=False)
                kept = kept[chosen.to(kept.device)]
        if n < n_components:
            raise ValueError(f"X has {n} samples: expected at least n_components={n_components}")
        sample = self._whole if isinstance(self._whole, Tensor) else kept
        assert sample is not None
        return n, sample

    def back(self, blocks: list[Tensor]) -> Any:
        """Blocks of results, joined: a NumPy array if the data were one, else a tensor on the device of the data."""
        joined = torch.cat(blocks)
        return joined.detach().cpu().numpy() if self.is_numpy else joined.to(self.home)


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _numbers(values: Any) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError("X: expected rows of numbers, all of one length, or a list of (batch, D) arrays") from None


def _features(item: Any) -> Any:
    """Of a batch with labels, the samples."""
    return item[0] if isinstance(item, tuple | list) and len(item) else item


def _dtype_of(first: Any) -> torch.dtype:
    if isinstance(first, Tensor):
        if first.dtype not in check.FLOATS:
            return torch.get_default_dtype()
        return torch.float64 if first.dtype == torch.float64 else torch.float32
    return torch.float32 if first.dtype in (np.float16, np.float32) else torch.float64
