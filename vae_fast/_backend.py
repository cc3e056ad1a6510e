"""Finds the compiled extension, says once when there is none, and knows which backend a call uses."""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import warnings
from types import ModuleType
from typing import Any

import torch
from torch.autograd import forward_ad

from vae_fast.errors import ExtensionError, SettingError

_BACKENDS = ("auto", "compiled", "reference")
_PRODUCTS = ("auto", "blas", "onednn")


def _built_for() -> ModuleType:
    """What setup.py wrote beside the extension."""
    return importlib.import_module("vae_fast._built_for")


def _extension() -> ModuleType:
    """The extension beside this file: never that of another copy of the package, which an editable install would offer."""
    name = "vae_fast._C"
    if importlib.machinery.PathFinder.find_spec(name, [os.path.dirname(__file__)]) is None:
        raise ModuleNotFoundError(f"no {name} beside {__file__}", name=name)
    return importlib.import_module(name)


def _checked(extension: ModuleType) -> ModuleType:
    """The extension, once VAE_FAST_ISA is known to be one it has: its first kernel call would refuse it, in the middle of a run."""
    wanted, available = os.environ.get("VAE_FAST_ISA", ""), extension.isa_available()
    if wanted and wanted not in available:
        raise SettingError(f"VAE_FAST_ISA={wanted}: expected one of {', '.join(available)} on this processor")
    return extension


def _load() -> tuple[ModuleType | None, str]:
    """The extension module, or None and the reason."""
    choice = os.environ.get("VAE_FAST_BACKEND", "auto").lower()
    if choice not in _BACKENDS:
        raise SettingError(f"VAE_FAST_BACKEND={choice!r}: expected one of {', '.join(_BACKENDS)}")
    if choice == "reference":
        return None, "VAE_FAST_BACKEND=reference"
    reason, wheel = "the extension was not built", ""
    try:
        built, here = _built_for().TORCH, str(torch.__version__)
        # The C++ ABI of torch holds within a minor release: 2.13.0 and 2.13.1, CPU or CUDA builds apart.
        if built is None:
            reason += f": {_built_for().REASON}"
        elif _abi(built) != _abi(here):
            reason = f"the extension was built for torch {built} and this is torch {here}"
            number, kind = _abi(here)
            wheel = f"install the wheel with +torch{'.'.join(number)}.{kind} in its name, or " if kind == "cpu" else ""
        else:
            return _checked(_extension()), ""
    except ModuleNotFoundError as error:
        if error.name not in ("vae_fast._C", "vae_fast._built_for"):
            raise
    except ImportError as error:
        reason = f"the extension does not load: {error}"
    again = f"For the kernels, {wheel}reinstall with: pip install --no-build-isolation --force-reinstall --no-deps ."
    if choice == "compiled":
        raise ExtensionError(f"vae_fast: {reason}. {again}")
    warnings.warn(f"vae_fast: {reason}; every function runs, slower, in plain torch (backend 'reference'). {again}", stacklevel=4)
    return None, reason


def _abi(version: str) -> tuple[list[str], str]:
    """The minor release, and "cpu", "cuda" or what else the build is named."""
    number, _, local = version.partition("+")
    return number.split(".")[:2], "cuda" if local.startswith("cu") else local


def _products_mode() -> str:
    """Which library multiplies matrices on the CPU: the faster, found by trying both, or the one named."""
    mode = os.environ.get("VAE_FAST_PRODUCTS", "auto").lower()
    if mode not in _PRODUCTS:
        raise ValueError(f"VAE_FAST_PRODUCTS={mode!r}: expected one of {', '.join(_PRODUCTS)}")
    return mode


C, reason_missing = _load()
products_mode = _products_mode()
if C is not None:
    C.set_product_mode(products_mode)
    from vae_fast import _library  # noqa: F401  registers fake tensors and second derivatives


def kernels_apply() -> bool:
    """Whether this call runs on the kernels: the extension is there, no ``torch.func`` transform or forward-mode level is active, and no
    ONNX graph is being made.

    Those (grad, vmap, jvp, dual numbers, ...) go through the plain-torch formula, which all of them understand.
    """
    return (
        C is not None
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not torch.onnx.is_in_onnx_export()
    )


def build_info() -> dict[str, Any]:
    """What was built and what is in use.

    Returns:
        ``backend`` ("compiled" or "reference"), ``reason`` (why not compiled, else ""), ``torch_built`` and ``torch``, ``cuda`` (the
        toolkit the CUDA kernels were built with, or None), ``arch_list``, ``isa`` (the instruction sets built in that this processor
        runs), ``isa_in_use`` and ``commit``.

    Example:
        >>> import vae_fast
        >>> vae_fast.build_info()["backend"] in ("compiled", "reference")
        True
    """
    info: dict[str, Any] = {"backend": "reference" if C is None else "compiled", "reason": reason_missing}
    info |= {"torch_built": None, "torch": str(torch.__version__), "cuda": None, "arch_list": []}
    info |= {"isa": [], "isa_in_use": None, "commit": None}
    if C is not None:
        built = _built_for()
        info |= {"torch_built": built.TORCH, "cuda": built.CUDA, "arch_list": list(built.ARCH_LIST)}
        info |= {"isa": list(C.isa_available()), "isa_in_use": C.isa_in_use(), "commit": built.COMMIT}
    return info
