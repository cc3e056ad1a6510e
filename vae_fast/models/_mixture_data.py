"""What a mixture is fitted to: an array, a tensor, a file mapped into memory or batches that come one by one; read in blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from vae_fast._world import World
from vae_fast.functional import _arguments as check
from vae_fast.functional._dispatch import kernels

T = TypeVar("T")
_MAPPED_ELEMENTS = 2**23  # elements read at once from a memory map when the caller does not say
_LEAST_ELEMENTS = 2**16  # and at least, where the file is small: a block costs some 0.2 ms
_BLOCKS = 64  # of a file, where both allow: whole blocks are dealt out to processes
_PLAIN_ELEMENTS = 2**22  # elements of the N x K x D intermediate of the plain-torch formulas
_SAMPLE = 50_000  # samples that a start is looked for in
_SAMPLE_PER_COMPONENT = 32


def block_rows(n_components: int, n_features: int) -> int | None:
    """How many samples the formulas are given at once: all of them on the kernels, a bounded product with K and D in plain torch."""
    return None if kernels() is not None else max(1, _PLAIN_ELEMENTS // (n_components * n_features))


def sample_rows(n_components: int) -> int:
    """How many samples a start is looked for in, where there are more."""
    return max(_SAMPLE, _SAMPLE_PER_COMPONENT * n_components)


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each read by a thread while the caller is busy with the one before."""
    end = object()
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, items, end)
        while (item := following.result()) is not end:
            following = reader.submit(next, items, end)
            yield item  # type: ignore[misc]


class Chosen:
    """Some rows of a mapped file, as if they were a file of their own; nothing is read before it is asked for.

    Args:
        array: ``(n, d)``.
        rows: the numbers of the rows, ascending.
    """

    ndim = 2

    def __init__(self, array: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> None:
        """See the class."""
        self._array, self._rows = array, rows
        self.shape, self.dtype = (len(rows), array.shape[1]), array.dtype

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def __getitem__(self, which: Any) -> np.ndarray[Any, Any]:
        """The rows that a slice or an array of numbers chooses, in memory."""
        out: np.ndarray[Any, Any] = np.asarray(self._array[self._rows[which]])
        return out


def digest_of(sample: Tensor) -> str:
    """A SHA-256 of at most 1,024 samples, by which a fit that goes on knows its data again."""
    some = sample[:: 1 + len(sample) // 1024].cpu().contiguous()
    return hashlib.sha256(some.numpy().tobytes()).hexdigest()


class Rows:
    """Samples of shape (N, D), checked, in one dtype on one device, read as often as needed.

    In a group of processes each reads its share: of an array, a tensor or a file that is the same in all, whole blocks, which are those of
    a single process as long as there are as many as processes; of batches, the ones it has.

    Args:
        X: a NumPy array or what :func:`numpy.asarray` makes one of, a tensor, a ``np.memmap`` or :class:`Chosen` rows of one (read in
            slices, never whole), or batches: a ``DataLoader`` or any iterable of (batch, D) arrays or tensors that starts anew with each
            loop; of a tuple, the first item.
        batch_size: samples in a block; None is all of them, or what suits a memory map.
        dtype: float32 or float64; None is that of the data, with float32 for halves, float64 for other NumPy arrays and torch's default
            for other tensors.
        device: where blocks are put; None is the device of a tensor, else ``fallback``.
        fallback: the device for data that has none.
        n_features: D, if it is known.
        world: the processes that share the samples.

    Raises:
        TypeError, ValueError: naming X or the option, the value given and what was expected.
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
        world: World | None = None,
    ) -> None:
        """See the class."""
        self.batch_size, self.world = batch_size, world or World()
        self._whole: Tensor | np.ndarray[Any, Any] | Chosen | None = None
        self._batches: Iterable[Any] | None = None
        first = X
        if isinstance(X, np.memmap | Chosen):
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
            hint = ". Reshape your data: X.reshape(-1, 1) if it is one feature" if first.ndim == 1 else ""
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
        if self._whole is not None and not isinstance(self._whole, np.memmap | Chosen):
            # Whole arrays are put on the device at once, unless the caller asks for blocks.
            self._whole = self._block(self._whole, self.device if batch_size is None else self.home)
        if self._whole is not None and len(self._whole) < self.world.size:
            raise ValueError(f"X has {len(self._whole)} samples: expected at least one for each of {self.world.size} processes")

    def _block(self, raw: Any, device: torch.device) -> Tensor:
        if not _is_array(raw):
            raise TypeError(f"a batch of X: expected an array or a tensor, got {type(raw).__name__}")
        if raw.ndim != 2 or raw.shape[1] != self.n_features:
            raise ValueError(f"a batch of X has shape {tuple(raw.shape)}: expected (batch, {self.n_features})")
        if isinstance(raw, np.ndarray):
            if raw.dtype.kind not in "fiub":
                raise TypeError(f"X has dtype {raw.dtype}: expected real numbers")
            kept = np.float64 if self.dtype == torch.float64 else np.float32
            copy = isinstance(raw, np.memmap) or not raw.flags.writeable or any(s < 0 for s in raw.strides) or not raw.dtype.isnative
            with np.errstate(over="ignore"):  # infinity is refused by name
                raw = torch.from_numpy(np.array(raw, dtype=kept) if copy else np.ascontiguousarray(raw, dtype=kept))
        elif raw.is_complex() or raw.layout != torch.strided:
            raise TypeError(f"X has dtype {raw.dtype} and layout {raw.layout}: expected a dense tensor of real numbers")
        out: Tensor = raw.detach().to(device=device, dtype=self.dtype)
        return out

    def described(self) -> dict[str, Any]:
        """What is known before anything is read."""
        samples = None if self._whole is None else len(self._whole)
        return {"samples": samples, "n_features": self.n_features, "computed_in": str(self.dtype)}

    def is_batched(self) -> bool:
        """Whether the data come as batches: by ``batch_size``, or by themselves."""
        return self.batch_size is not None or self._batches is not None

    def has_places(self) -> bool:
        """Whether a sample has a place where it can be found again: in an array, a tensor or a file."""
        return self._whole is not None

    def is_mapped(self) -> bool:
        """Whether the data lie in a file."""
        return isinstance(self._whole, np.memmap | Chosen)

    @property
    def own(self) -> range:
        """The numbers of the blocks of an array, a tensor or a file that this process reads."""
        assert self._whole is not None
        count, size = -(-len(self._whole) // self._step()), self.world.size
        return range(count * self.world.rank // size, count * (self.world.rank + 1) // size)

    def _step(self) -> int:
        """Rows of a block. Those of a file do not depend on the number of processes while there is a block for each."""
        whole = self._whole
        assert whole is not None
        if self.batch_size is not None:
            step = self.batch_size
        elif isinstance(whole, Tensor) and not self.world.joined:
            return len(whole)
        else:
            fine = max(-(-len(whole) // _BLOCKS), _LEAST_ELEMENTS // self.n_features, 1)
            step = min(max(1, _MAPPED_ELEMENTS // self.n_features), fine)
        return step if -(-len(whole) // step) >= self.world.size else len(whole) // self.world.size

    def blocks(self, at_most: int | None = None) -> Iterator[Tensor]:
        """All samples of this process, block by block, cut to ``at_most`` samples."""
        for _, block in self.numbered():
            yield from block.split(at_most) if at_most is not None and len(block) > at_most else (block,)

    def numbered(self) -> Iterator[tuple[int, Tensor]]:
        """All samples of this process, in blocks with a number that is theirs for any number of processes (not so for batches)."""
        if self._batches is not None:
            for i, item in enumerate(self._batches):
                yield i * self.world.size + self.world.rank, self._block(_features(item), self.device)
            return
        read = ((i, self._rows(i * self._step(), self._step())) for i in self.own)
        yield from ahead(read) if self.is_mapped() else read

    def shuffled(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Batches in an order that ``generator`` decides, of each the part that is this process's, which may be empty.

        Of an array the samples are shuffled, of a file the slices; batches come in an order of their own.
        """
        whole = self._whole
        if whole is None:
            yield from (block for _, block in self.numbered())
        elif isinstance(whole, Tensor):
            permutation = torch.randperm(len(whole), generator=generator).to(whole.device)
            for rows in permutation.split(self.batch_size or len(whole)):
                yield whole[rows.tensor_split(self.world.size)[self.world.rank]].to(self.device)
        else:
            step = self._step()
            starts = torch.randperm(-(-len(whole) // step), generator=generator).tolist()
            yield from ahead(self._part(start * step, step) for start in starts)

    def _part(self, start: int, length: int) -> Tensor:
        assert self._whole is not None
        length, rank, size = min(length, len(self._whole) - start), self.world.rank, self.world.size
        return self._rows(start + length * rank // size, length * (rank + 1) // size - length * rank // size)

    def _rows(self, start: int, length: int) -> Tensor:
        assert self._whole is not None
        block = self._whole[start : start + length]
        return block.to(self.device) if isinstance(block, Tensor) else self._block(block, self.device)

    def at(self, number: int, places: Tensor) -> Tensor:
        """Rows of one block of an array, a tensor or a file, by their places in it."""
        assert self._whole is not None
        places = number * self._step() + places
        if isinstance(self._whole, Tensor):
            return self._whole[places.to(self._whole.device)].to(self.device)
        return self._block(np.asarray(self._whole[places.numpy()]), self.device)

    def checked(self, at_most: int | None = None) -> Iterator[Tensor]:
        """:meth:`blocks`, refusing numbers that are not finite."""
        seen = self.own.start * self._step() if self._whole is not None else 0
        for x in self.blocks(at_most):
            finite = x.isfinite()
            if not bool(finite.all()):
                row, column = (~finite).nonzero()[0].tolist()
                raise ValueError(f"X[{seen + row}, {column}] is {x[row, column].item()}: expected finite numbers, neither NaN nor inf")
            seen += len(x)
            yield x

    def survey(self, n_components: int, generator: torch.Generator) -> tuple[int, Tensor]:
        """Check every number, count the samples, and return some for the start: all, or uniformly :func:`sample_rows` if there are more.

        The choice among the rows of an array, a tensor or a file is the same for any number of processes.

        Raises:
            ValueError: for NaN or infinity, and for fewer samples than components.
        """
        most = sample_rows(n_components)
        known = None if self._whole is None else len(self._whole)
        if known is not None and known < n_components:
            raise ValueError(f"X has {known} samples: expected at least n_components={n_components}")
        kept = self.world.together(lambda: self._batch_sample(most, generator) if known is None else self._choose(known, most, generator))
        parts = self.world.gather((kept[0], kept[1].cpu(), kept[2].cpu()))
        n, sample = sum(part[0] for part in parts), kept[1]
        if self.world.size > 1:
            sample = torch.cat([part[1] for part in parts])
        if known is None and self.world.size > 1:
            sample = sample[torch.cat([part[2] for part in parts]).topk(min(most, len(sample)), largest=False)[1]]
        if n < n_components:
            raise ValueError(f"X has {n} samples: expected at least n_components={n_components}")
        return n, sample.to(self.device)

    def _choose(self, n: int, most: int, generator: torch.Generator) -> tuple[int, Tensor, Tensor]:
        """The chosen rows among those of this process."""
        chosen = None if n <= most else _distinct(n, most, generator)
        if chosen is None and self.world.size == 1 and isinstance(self._whole, Tensor):
            for _ in self.checked():
                pass
            return n, self._whole, torch.empty(0)
        first, kept = self.own.start * self._step(), list[Tensor]()
        for x in self.checked():
            here = slice(None) if chosen is None else chosen[(chosen >= first) & (chosen < first + len(x))] - first
            kept.append(x[here])
            first += len(x)
        count = first - self.own.start * self._step()
        return count, torch.cat(kept), torch.empty(0)

    def _batch_sample(self, most: int, generator: torch.Generator) -> tuple[int, Tensor, Tensor]:
        """The samples with the smallest of independent uniform keys, which are a uniform choice, and their keys."""
        if self.world.size > 1:
            generator = torch.Generator().manual_seed((generator.initial_seed() + 0x9E3779B97F4A7C15 * self.world.rank) % 2**63)
        n, kept, keys = 0, torch.empty((0, self.n_features), dtype=self.dtype, device=self.device), torch.empty(0, dtype=torch.float64)
        for x in self.checked():
            n += len(x)
            keys = torch.cat([keys, torch.rand(len(x), generator=generator, dtype=torch.float64)])
            kept = torch.cat([kept, x])
            if len(keys) > most:
                keys, chosen = keys.topk(most, largest=False)
                kept = kept[chosen.to(kept.device)]
        return n, kept, keys

    def back(self, blocks: list[Tensor]) -> Any:
        """Blocks of results, joined: a NumPy array if the data were one, else a tensor on the device of the data."""
        joined = torch.cat(blocks)
        return joined.detach().cpu().numpy() if self.is_numpy else joined.to(self.home)


def _distinct(n: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` different numbers below n, ascending; uniform, and without a permutation of all where there are many."""
    if n < 4 * count:
        return torch.randperm(n, generator=generator)[:count].sort()[0]
    found = torch.empty(0, dtype=torch.int64)
    while len(found) < count:
        found = torch.cat([found, torch.randint(n, (count,), generator=generator)]).unique()
    return found[torch.randperm(len(found), generator=generator)[:count]].sort()[0]


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor | np.ndarray | Chosen)


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
