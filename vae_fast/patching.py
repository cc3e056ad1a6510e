"""Run other packages on our kernels without changing the code that uses them: ``with vae_fast.patched("torch.distributions"):``.

This replaces methods of the packages' own classes, and functions in the modules that look them up, but never a class. So ``isinstance``
holds; objects, subclasses and imported names from before the scope use our kernels too; and what is pickled inside a scope loads outside
it. Draws are left to the package: with the same seed, the noise is the same inside and outside a scope.

A scope covers the whole process, all threads included, until the last open scope ends; then every attribute is the original object again.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from vae_fast import functional as F
from vae_fast.errors import MissingExtraError, UnknownVersionError

_MISSING = object()


@dataclass(frozen=True)
class _Change:
    """One attribute of a module or class, or one entry of a dict, and its value inside a scope."""

    name: str
    owner: Any
    key: Any
    new: Any
    #: Whether it is inherited there, and so taken away again at the end.
    inherited: bool = False

    def now(self) -> Any:
        """The current value, unless it is inherited."""
        return (self.owner if isinstance(self.owner, dict) else vars(self.owner)).get(self.key, _MISSING)

    def put(self, value: Any) -> None:
        """Replace it."""
        if value is _MISSING:
            delattr(self.owner, self.key)
        elif isinstance(self.owner, dict):
            self.owner[self.key] = value
        else:
            setattr(self.owner, self.key, value)


@dataclass(frozen=True)
class _Target:
    """A package, the versions that were tested, and what is replaced in them."""

    package: str
    #: A version is known if it is one of these, or begins with one and a dot.
    versions: tuple[str, ...]
    changes: Callable[[], list[_Change]]
    #: Called after something was replaced or put back.
    after: Callable[[], None] = lambda: None


# --- torch.distributions ----------------------------------------------------------------------------------------------


def _torch_changes() -> list[_Change]:
    from torch.distributions import kl

    from vae_fast import distributions as ours

    theirs, inheriting = torch.distributions, ("LogNormal",)
    methods = [(name, "log_prob") for name in ours.__all__ if hasattr(theirs, name)] + [("MixtureSameFamily", "expand")]
    found = [
        _Change(
            f"torch.distributions.{name}.{method}", getattr(theirs, name), method, vars(getattr(ours, name))[method], name in inheriting
        )
        for name, method in methods
    ]
    for name in ("Normal", "Independent"):
        pair = (getattr(theirs, name),) * 2
        function = kl._KL_REGISTRY[(getattr(ours, name),) * 2]
        found.append(_Change(f"torch.distributions.kl_divergence({name}, {name})", kl._KL_REGISTRY, pair, function))
    return found


def _torch_after() -> None:
    from torch.distributions import kl

    kl._KL_MEMOIZE.clear()  # of what was looked up in the registry


# --- pythae -----------------------------------------------------------------------------------------------------------


def _pythae_changes() -> list[_Change]:
    found = []
    for model in ("VAE", "BetaVAE"):
        owner = getattr(importlib.import_module("pythae.models"), model)
        found.append(_Change(f"pythae.models.{model}.loss_function", owner, "loss_function", _pythae_loss(vars(owner)["loss_function"])))
    return found


def _pythae_loss(original: Callable[..., Any]) -> Callable[..., Any]:
    """``loss_function`` of pythae's VAE and, with its ``beta``, of its BetaVAE: (loss, reconstruction, KL), means over the batch."""

    def loss_function(self: Any, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor) -> Any:
        form = self.model_config.reconstruction_loss
        if form not in ("mse", "bce") or not x.is_floating_point():
            return original(self, recon_x, x, mu, log_var, z)
        recon_x, x = recon_x.reshape(x.shape[0], -1), x.reshape(x.shape[0], -1)
        if form == "mse":  # half the squared distance is the KL of unit normals, without a constant to be taken away again
            recon_loss = F.gaussian_kl(recon_x, recon_x.new_zeros(()), x, scale="logvar")
        else:  # where torch's raises for data outside [0, 1], so does this
            recon_loss = -F.bernoulli_log_prob(x, probs=recon_x, clip="bce", check_data=True)
        kl = F.gaussian_kl(mu, log_var)
        return (recon_loss + getattr(self, "beta", 1.0) * kl).mean(dim=0), recon_loss.mean(dim=0), kl.mean(dim=0)

    return loss_function


# --- scvi-tools -------------------------------------------------------------------------------------------------------


def _scvi_changes() -> list[_Change]:
    name = "scvi.distributions._negative_binomial"
    module = importlib.import_module(name)
    new = {
        "log_nb_positive": _scvi_negative_binomial(module.log_nb_positive),
        "log_zinb_positive": _scvi_zero_inflated(module.log_zinb_positive),
        "log_mixture_nb": _scvi_mixture(module.log_mixture_nb),
    }
    return [_Change(f"{name}.{function}", module, function, ours) for function, ours in new.items()]


def _scvi_negative_binomial(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(original)
    def log_nb_positive(x: Any, mu: Any, theta: Any, eps: float = 1e-8, log_fn: Any = torch.log, lgamma_fn: Any = torch.lgamma) -> Tensor:
        if log_fn is not torch.log or lgamma_fn is not torch.lgamma:  # those of JAX, or of another device
            return original(x, mu, theta, eps, log_fn, lgamma_fn)
        return F.negative_binomial_log_prob(x, mu, theta, eps=eps, event_dim=0)

    return log_nb_positive


def _scvi_zero_inflated(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(original)
    def log_zinb_positive(
        x: Any, mu: Any, theta: Any, pi: Any, eps: float = 1e-8, log_fn: Any = torch.log, lgamma_fn: Any = torch.lgamma
    ) -> Tensor:
        if log_fn is not torch.log or lgamma_fn is not torch.lgamma:
            return original(x, mu, theta, pi, eps, log_fn, lgamma_fn)
        return F.zero_inflated_negative_binomial_log_prob(x, mu, theta, pi, eps=eps, event_dim=0)

    return log_zinb_positive


def _scvi_mixture(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(original)
    def log_mixture_nb(
        x: Any,
        mu_1: Any,
        mu_2: Any,
        theta_1: Any,
        theta_2: Any,
        pi_logits: Any,
        eps: float = 1e-8,
        log_fn: Any = torch.log,
        lgamma_fn: Any = torch.lgamma,
    ) -> Tensor:
        if log_fn is not torch.log or lgamma_fn is not torch.lgamma:
            return original(x, mu_1, mu_2, theta_1, theta_2, pi_logits, eps, log_fn, lgamma_fn)
        eps = eps if theta_2 is None else 1e-8  # with two dispersions scvi-tools calls log_nb_positive, and hands it no eps
        return F.negative_binomial_mixture_log_prob(x, mu_1, mu_2, theta_1, theta_2, pi_logits, eps=eps, event_dim=0)

    return log_mixture_nb


# --- scopes -----------------------------------------------------------------------------------------------------------

TARGETS = {
    "torch.distributions": _Target("torch", ("2.11", "2.13"), _torch_changes, _torch_after),
    "pythae": _Target("pythae", ("0.1.2",), _pythae_changes),
    "scvi": _Target("scvi-tools", ("1.4.2",), _scvi_changes),
}

_lock = threading.RLock()
#: By target: how many scopes are open, what was replaced, and what was there.
_open: dict[str, tuple[int, list[tuple[_Change, Any]]]] = {}


def _known(target: str) -> _Target:
    """The target; raises unless it exists and is installed in a version that was tested."""
    if not isinstance(target, str):
        raise TypeError(f"target: expected a str, got {type(target).__name__}")
    if target not in TARGETS:
        raise ValueError(f"target={target!r}: expected one of {', '.join(map(repr, TARGETS))}")
    found = TARGETS[target]
    try:
        version = metadata.version(found.package)
    except metadata.PackageNotFoundError:
        raise MissingExtraError(f"patching {target} needs {found.package}: install it with `pip install {found.package}`") from None
    if not any(version.partition("+")[0] == known or version.startswith(f"{known}.") for known in found.versions):
        known = " or ".join(found.versions)
        raise UnknownVersionError(f"{found.package} {version} has not been tested with vae_fast.patch({target!r}): expected {known}")
    return found


def patch(target: str) -> tuple[str, ...]:
    """Replace arithmetic of another package with our kernels, until :func:`unpatch`; :func:`patched` does both around a block.

    ===================  ==========  ============================================================================================
    target               version     what is replaced
    ===================  ==========  ============================================================================================
    torch.distributions  torch 2.11  ``log_prob`` of the classes that :mod:`vae_fast.distributions` has, ``MixtureSameFamily.expand``
                         or 2.13     and the KL between two Normals and between two Independents
    pythae               0.1.2       ``loss_function`` of ``VAE`` and ``BetaVAE``
    scvi                 scvi-tools  the log-probabilities of ``scvi.distributions.NegativeBinomial``, of its zero-inflated form and of
                         1.4.2       the mixture of two: ``log_nb_positive``, ``log_zinb_positive``, ``log_mixture_nb``
    ===================  ==========  ============================================================================================

    Values and gradients are the same to rounding, from the same draws. It may be called more than once, in any thread, and stays in effect
    for the whole process until :func:`unpatch` has been called as often.

    Args:
        target: ``"torch.distributions"``, ``"pythae"`` or ``"scvi"``.

    Returns:
        The names of what is replaced, a tuple of str.

    Raises:
        TypeError, ValueError: if there is no such target.
        MissingExtraError: if its package is not installed.
        UnknownVersionError: if the installed version of its package was not tested.

    Example:
        >>> import torch, vae_fast
        >>> "torch.distributions.Normal.log_prob" in vae_fast.patch("torch.distributions")
        True
        >>> torch.distributions.Normal(0.0, 1.0).log_prob(torch.zeros(()))  # by our kernel
        tensor(-0.9189)
        >>> vae_fast.unpatch("torch.distributions")
    """
    found = _known(target)
    with _lock:
        count, done = _open.get(target, (0, []))
        if count == 0:
            done = [(change, change.now()) for change in found.changes()]
            absent = [change.name for change, before in done if (before is _MISSING) != change.inherited]
            if absent:
                raise UnknownVersionError(f"{found.package} does not have {absent[0]} where vae_fast.patch({target!r}) would replace it")
            for change, _ in done:
                change.put(change.new)
            found.after()
        _open[target] = count + 1, done
    return tuple(change.name for change, _ in done)


def unpatch(target: str) -> None:
    """Undo one :func:`patch`; after the last one every attribute is the original object again.

    If other code has replaced one of our functions in the meantime, its replacement stays, and a RuntimeWarning names it.

    Args:
        target: as in :func:`patch`.

    Returns:
        None.

    Raises:
        TypeError, ValueError: if there is no such target, or if it is not patched.

    Example:
        >>> import vae_fast
        >>> names = vae_fast.patch("torch.distributions")
        >>> vae_fast.unpatch("torch.distributions")
    """
    if not isinstance(target, str):
        raise TypeError(f"target: expected a str, got {type(target).__name__}")
    with _lock:
        if target not in _open:
            raise ValueError(f"target={target!r}: expected a patched target; patched now: {', '.join(map(repr, _open)) or 'none'}")
        count, done = _open.pop(target)
        if count > 1:
            _open[target] = count - 1, done
            return
        foreign = [change.name for change, _ in done if change.now() is not change.new]
        for change, before in done:
            if change.now() is change.new:
                change.put(before)
        TARGETS[target].after()
    if foreign:
        words = f"{', '.join(foreign)}: replaced by other code while vae_fast had patched {target}; the replacement stays"
        warnings.warn(words, RuntimeWarning, stacklevel=2)


class patched(contextlib.ContextDecorator):  # noqa: N801  used like a function, as torch.no_grad is
    """:func:`patch` around a block or a function; ``with patched(target) as names`` gives the names of what is replaced.

    Scopes may nest and overlap, in one thread or in several; the originals come back when the last one ends, after an exception too.

    Args:
        target: as in :func:`patch`.

    Raises:
        TypeError, ValueError, MissingExtraError, UnknownVersionError: as :func:`patch`, when the scope begins.

    Example:
        >>> import torch, vae_fast
        >>> p = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
        >>> with vae_fast.patched("torch.distributions"):
        ...     p.log_prob(torch.zeros(3))
        tensor([-0.9189, -0.9189, -0.9189])
    """

    def __init__(self, target: str) -> None:
        """See the class."""
        self.target = target

    def __enter__(self) -> tuple[str, ...]:
        """Replace."""
        return patch(self.target)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Put back."""
        unpatch(self.target)
