"""Fused kernels for the arithmetic of variational autoencoders and Gaussian mixtures.

``vae_fast.models``, ``vae_fast.nn``, ``vae_fast.distributions``, ``vae_fast.training``, ``vae_fast.data`` and the other public modules are
imported when they are first named. Each part of the package imports only from those to the right of its arrow, which a test compares with
the files. ``base`` is errors, files and what has to be there first; ``backend`` loads the kernels;
``vae_fast`` is this file.

    base       <- nothing
    reference  <- nothing
    backend    <- base, reference
    functional <- reference, backend
    data       <- base, reference, functional
    models     <- base, reference, functional
    nn         <- reference, functional
    distributions <- reference, functional
    patching   <- base, functional, distributions
    plots      <- base, reference, functional, models
    vae_fast   <- base, backend, functional, patching
    training   <- base, backend, functional, data, models
    bench      <- base, backend, data, models, plots, vae_fast, training
    cli        <- base, functional, data, models, plots, vae_fast, training, bench
"""

import importlib as _importlib
import pkgutil as _pkgutil
import typing as _typing

from vae_fast import _as_command as _as_command  # first: it has to be there before torch is imported
from vae_fast._backend import build_info
from vae_fast._moved import MOVED as _MOVED
from vae_fast._moved import install as _install
from vae_fast.functional import *  # noqa: F403
from vae_fast.functional import __all__ as _functional
from vae_fast.patching import patch, patched, unpatch

__version__ = "0.2.0"
__all__ = [*_functional, "build_info", "patch", "patched", "unpatch"]  # noqa: PLE0604

_install()

if _typing.TYPE_CHECKING:  # for type checkers, which a __getattr__ would let every wrong name pass
    from vae_fast import bench as bench
    from vae_fast import cli as cli
    from vae_fast import data as data
    from vae_fast import distributions as distributions
    from vae_fast import errors as errors
    from vae_fast import files as files
    from vae_fast import functional as functional
    from vae_fast import likelihoods as likelihoods
    from vae_fast import models as models
    from vae_fast import nn as nn
    from vae_fast import patching as patching
    from vae_fast import plots as plots
    from vae_fast import reference as reference
    from vae_fast import terms as terms
    from vae_fast import training as training
    from vae_fast.data import toys as toys
    from vae_fast.training import checkpoint as checkpoint
    from vae_fast.training import distributed as distributed
else:
    _submodules = {module.name for module in _pkgutil.iter_modules(__path__) if module.name[0] != "_"}  # noqa: F405

    def __getattr__(name):
        path = f"{__name__}.{name}"
        if name in _submodules or path in _MOVED:
            return _importlib.import_module(path)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *_submodules})
