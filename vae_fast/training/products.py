"""A run's linear layers on the CPU: on the faster of torch's two libraries, by measurement; in bfloat16, with copies of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vae_fast import _backend
from vae_fast._processor import processor
from vae_fast.errors import FileError

#: What was chosen, "blas" or "onednn" by product.
Record = dict[str, str]
_LIBRARIES = ("blas", "onednn")


class Copies:
    """bfloat16 copies of float32 tensors, cast on first use and again when the tensor has changed.

    Example:
        >>> weight = torch.ones(2, 3)
        >>> copies = Copies([weight])
        >>> copies.of(weight).dtype, copies.of(weight) is copies.of(weight)
        (torch.bfloat16, True)
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        """Nothing is cast yet. Tensors other than these are cast at every use."""
        # They are held, so that no other tensor gets the id. (A tensor made in inference mode has no version.)
        self._known = {id(t): t for t in tensors if t.dtype == torch.float32 and not t.is_inference()}
        self._copies: dict[int, Tensor] = {}
        self._versions: dict[int, int] = {}

    def of(self, tensor: Tensor) -> Tensor:
        """A copy of the tensor's current values; it is overwritten later, as the optimizer overwrites the tensor itself."""
        key = id(tensor)
        if key not in self._known:
            return tensor.detach().to(torch.bfloat16)
        if self._versions.get(key) != tensor._version:
            if key in self._copies:
                self._copies[key].copy_(tensor.detach())
            else:
                self._copies[key] = tensor.detach().to(torch.bfloat16)
            self._versions[key] = tensor._version
        return self._copies[key]

    def forget(self) -> None:
        """Cast every tensor again at its next use: it may have changed without a new version (through ``.data``)."""
        self._versions.clear()


class Products:
    """A context in which ``torch.nn.functional.linear``, whichever model calls it, runs ``csrc/ops/linear.cpp`` on the CPU.

    It is entered for the forward and backward passes, not for the optimizer's step: a torch function mode sees all its small calls.

    The library is chosen by measurement at the first product of a shape and number of threads, once per process, without random numbers;
    ``VAE_FAST_PRODUCTS=blas`` (torch's own) or ``onednn`` fixes it, and under ``torch.use_deterministic_algorithms`` it is torch's own.
    On other devices, and without the compiled kernels, the context does nothing.

    Args:
        device: the model's.
        amp: ``torch.bfloat16``, under autocast: the parameters are cast once each time the context is entered; or None.
        parameters: with ``amp``, the parameters to copy; other weights are cast at each call.

    Example:
        >>> layer = torch.nn.Linear(3, 2)
        >>> with Products(torch.device("cpu")):
        ...     layer(torch.zeros(4, 3)).shape
        torch.Size([4, 2])
    """

    def __init__(self, device: torch.device, amp: torch.dtype | None = None, parameters: Iterable[Tensor] = ()) -> None:
        """See the class."""
        self._applies = device.type == "cpu" and _backend.C is not None
        self._copies = Copies(parameters) if self._applies and amp == torch.bfloat16 else None
        self._run = None if _backend.C is None else _backend.C.ProductRun({})
        self._inside: list[tuple[Any, _Linear]] = []

    def record(self) -> Record:
        """The choices so far, by product, for :meth:`adopt`; empty if there was nothing to choose."""
        return dict(self._run.table()) if self._run is not None else {}

    def adopt(self, record: Mapping[str, str]) -> None:
        """Use the choices of an earlier run instead of measuring again.

        Example:
            >>> Products(torch.device("cpu")).adopt({})
        """
        if _backend.C is not None:
            self._run = _backend.C.ProductRun(dict(record))

    def __enter__(self) -> Products:
        """Route linear layers to the kernels, with this run's choices in this thread."""
        if self._applies:
            if self._copies is not None and not self._inside:
                self._copies.forget()
            mode = _Linear(self._copies)
            mode.__enter__()  # type: ignore[no-untyped-call]
            self._inside.append((_kernels().enter_product_run(self._run), mode))
        return self

    def __exit__(self, *error: object) -> None:
        """Restore what was there before."""
        if self._applies:
            before, mode = self._inside.pop()
            _kernels().enter_product_run(before)
            mode.__exit__(*error)  # type: ignore[no-untyped-call]


class _Linear(TorchFunctionMode):
    """``torch.nn.functional.linear`` by the kernels' module."""

    def __init__(self, copies: Copies | None) -> None:
        super().__init__()
        self.copies = copies

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # types: of the arguments that override functions themselves
        ours = func is F.linear and not types and _backend.kernels_apply() and not torch.compiler.is_compiling()
        # What is checkpointed runs again in the backward pass, where the mode is off, and has to save as many tensors then.
        if ours and torch._C._autograd._top_saved_tensors_default_hooks(False) is None:
            return self._linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        out: Tensor
        if self.copies is None or not (torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16):
            out = _kernels().linear(input, weight, bias)
        else:
            copies = self.copies.of(weight), None if bias is None else self.copies.of(bias)
            out = _kernels().linear_bfloat16(input, weight, bias, *copies)
        return out


def _kernels() -> Any:
    return _backend.C


def kept(records: Sequence[Record]) -> dict[str, Any]:
    """The choices of every process, as a checkpoint stores them.

    Example:
        >>> sorted(kept([{}]))
        ['processor', 'ranks']
    """
    return {"processor": processor()["processor"], "ranks": [dict(record) for record in records]}


def found(path: object, value: Any, rank: int) -> tuple[Record, str]:
    """The choices that a checkpoint stores for a process (rank 0's if there are none for it), and a line about them or ``""``.

    Raises:
        FileError: if ``value`` did not come from :func:`kept`. None is accepted: checkpoints of earlier releases have no choices.

    Example:
        >>> found("checkpoint.pt", kept([{}]), 0)
        ({}, '')
    """
    if value is None:
        return {}, ""
    ranks = value.get("ranks") if isinstance(value, dict) else None
    if not isinstance(ranks, list) or not ranks or not all(isinstance(r, dict) and all(v in _LIBRARIES for v in r.values()) for r in ranks):
        raise FileError(f"{path}: broken: expected 'products' to hold, for each process, {' or '.join(_LIBRARIES)} by product")
    record = {str(k): str(v) for k, v in ranks[rank if rank < len(ranks) else 0].items()}
    fixed = _backend.products_mode
    if fixed != "auto" and set(record.values()) - {fixed}:
        return record, f"VAE_FAST_PRODUCTS={fixed}: {path} used the other library; results differ in rounding"
    where = value.get("processor")
    return record, f"linear layers use the libraries chosen on {where}" if record and where != processor()["processor"] else ""
