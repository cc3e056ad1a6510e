"""Checks of values, on request: the argument, the first element that is out of range, its value, and what was expected.

Values lie on a device that would have to be waited for, so nothing here runs unless it is asked for: by ``check_data=True`` in a call, or
by :class:`checks` around it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vae_fast._scales import scale_input, split_bounds
from vae_fast.functional._dispatch import is_dtensor
from vae_fast.terms import TERMS, in_order

if TYPE_CHECKING:
    from typing_extensions import Self

    def require(*asked: Asked) -> None:
        """See :func:`_require`, which runs outside of any graph."""


class _State(threading.local):
    on = False


#: Thread-local, and not a ContextVar: torch.compile guards an attribute of this, and compiles anew when it changes.
STATE = _State()

#: What an argument may be asked to be: in words, and as a test that NaN fails.
EXPECTED: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "unit": ("values in [0, 1]", lambda t: (t >= 0) & (t <= 1)),
    "finite": ("finite numbers", lambda t: t.abs() < torch.inf),
    "positive": ("positive finite numbers", lambda t: (t > 0) & (t < torch.inf)),
    "count": ("non-negative integers", lambda t: (t >= 0) & (t < torch.inf) & (t == t.floor())),
    "nonnegative": ("finite numbers of at least 0", lambda t: (t >= 0) & (t < torch.inf)),
    "index": ("class indices, whole numbers of at least 0", lambda t: (t >= 0) & (t < torch.inf)),
    "log weight": ("finite numbers, or -inf for a weight of zero", lambda t: t < torch.inf),
}
_SCALES = {"logvar": "finite", "log_std": "finite", "std": "positive", "var": "positive", "softplus": "finite"}
#: What is asked by variant.
_BY_VARIANT = {
    "scale": _SCALES,
    "mean": {"linear": "nonnegative", "rate": "nonnegative", "log": "finite", "log_rate": "finite"},
    "dispersion": {"linear": "positive", "log": "finite"},
}
Asked = tuple[str, Tensor | None, str]


class checks(contextlib.ContextDecorator):  # noqa: N801  used like a function, as torch.no_grad is
    """Look at the values of every argument while this is active: a debugging aid like :func:`torch.autograd.set_detect_anomaly`.

    A context manager and a decorator. Every function of this package then refuses, before it computes, targets and probabilities outside
    [0, 1], standard deviations and variances that are not positive, negative weights, and anything that is not finite where it has to be;
    the error names the argument, the first bad index and its value. Without it they compute: targets of 0..255 in a Bernoulli likelihood
    give a finite loss that means nothing.

    It holds for the calls of the same thread and may be nested: ``checks(False)`` switches it off inside. ``check_data=True`` asks for the
    same in one call, whatever is around it. Each tensor is read once and the device is waited for, which is why it is not the default.

    Under ``torch.compile`` the checks run between two parts of the graph (a graph break); with ``fullgraph=True`` torch refuses to compile
    and names them as the reason. Where a graph is traced without values (``torch.export``, ``make_fx``, ``torch.jit.trace``) a check that
    is asked for is refused, and meta tensors have no values to check.

    Args:
        enabled: False switches the checks off.

    Raises:
        TypeError: if ``enabled`` is not a bool.

    Example:
        >>> import torch, vae_fast
        >>> x = torch.tensor([[0.0, 255.0]])
        >>> with vae_fast.checks():
        ...     vae_fast.bernoulli_log_prob(x, torch.zeros(1, 2))
        Traceback (most recent call last):
        ...
        ValueError: x[0, 1] = 255.0: expected values in [0, 1], 1 of 2 is not; give bytes as torch.uint8, read as x / 255
    """

    def __init__(self, enabled: bool = True) -> None:
        """See the class."""
        if not isinstance(enabled, bool):
            raise TypeError(f"enabled: expected a bool, got {type(enabled).__name__} (a decorator is written @vae_fast.checks())")
        self.enabled = enabled
        self._before: list[bool] = []

    def _recreate_cm(self) -> Self:
        return type(self)(self.enabled)  # a decorated function may call itself, and be called in several threads

    def __enter__(self) -> None:
        """Switch the checks on, or off."""
        self._before.append(STATE.on)
        STATE.on = self.enabled

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """As it was before."""
        STATE.on = self._before.pop()


def wanted(check_data: bool = False) -> bool:
    """Whether this call is to look at values."""
    if check_data is False:
        return STATE.on
    if check_data is not True:
        raise TypeError(f"check_data: expected a bool, got {type(check_data).__name__}")
    return True


def term(name: str, inputs: Sequence[Tensor], names: Sequence[str]) -> list[Asked]:
    """What is asked of the inputs of a kernel's term, which the caller knows as ``names``."""
    name, bounds = split_bounds(name)
    family, _, variant = name.partition(".")
    if inputs[0].layout == torch.sparse_csr:  # what is not stored is 0
        inputs, names = [inputs[0].values(), *inputs[1:]], [f"{names[0]}.values()", *names[1:]]
    kinds = [_BY_VARIANT[kind][variant] if kind in _BY_VARIANT else kind for kind in TERMS[family].inputs]
    if bounds is not None:  # whose lower one makes a standard deviation positive
        kinds[scale_input(name, len(kinds))] = "finite"
    return list(zip(names, inputs, kinds, strict=False))


def gaussian(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None, scale: str, bounded: bool = False
) -> list[Asked]:
    """What is asked of a posterior, whose scale may have bounds, and its prior."""
    kind = _SCALES[scale]
    return [
        ("mu", mu, "finite"),
        ("logvar", logvar, "finite" if bounded else kind),
        ("prior_mu", prior_mu, "finite"),
        ("prior_logvar", prior_logvar, kind),
    ]


def finite(**tensors: Tensor | None) -> list[Asked]:
    """All of these have to be finite."""
    return [(name, t, "finite") for name, t in tensors.items()]


def data_names(name: str, data: Sequence[Tensor]) -> tuple[str, ...]:
    """What the caller of an ELBO knows the inputs of its likelihood, the kernels' term ``name``, as."""
    return ("x", "recon") if len(data) == 2 else ("x", *in_order(name, [f"recon[{i}]" for i in range(len(data) - 1)]))


def head(data: Sequence[Tensor], latent: Sequence[Tensor], likelihood: str, kl: str) -> list[Asked]:
    """What is asked of an ELBO's arguments, in the form in which the kernels get them."""
    return term(likelihood, data, data_names(likelihood, data)) + term(kl, latent, ("mu", "logvar", "prior_mu", "prior_logvar"))


def __getattr__(name: str) -> object:
    """``require``, made when it is first asked for: what it is decorated with imports the compiler, a second and a half."""
    if name != "require":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    why = "vae_fast.checks() and check_data=True look at values, outside the graph: use fullgraph=False, or none"
    globals()[name] = found = torch.compiler.disable(_require, reason=why)
    return found


@torch.no_grad()
def _require(*asked: Asked) -> None:
    """Refuse the first tensor with an element that is not what is asked of it.

    Raises:
        ValueError: naming the argument, the first bad index, its value and what was expected.
    """
    for name, given, kind in asked:
        t = None if given is None else _readable(name, given)
        if t is not None and not fits(t, kind):
            raise ValueError(complaint(name, t, kind))


def classes(name: str, t: Tensor, count: int, what: str = "class indices") -> None:
    """Refuse an index that is none of ``count`` classes, or whatever they are."""
    with torch.no_grad():
        given = _readable(name, t)
        if given is None or given.numel() == 0:
            return
        low, high = (int(bound) for bound in given.aminmax())
        if low < 0 or high >= count:
            raise ValueError(f"{name} holds {low if low < 0 else high}: expected {what} from 0 to {count - 1}")


def classes_at_hand(name: str, t: Tensor, count: int) -> None:
    """The same on the CPU where there are values to look at: no trace, no transform."""
    if t.device.type == "cpu" and type(t) is Tensor and not torch.compiler.is_compiling() and not _is_recorded(t):
        classes(name, t, count)


def fits(t: Tensor, kind: str) -> bool:
    """Whether all elements are what is asked of them."""
    if t.numel() == 0 or all_bytes_fit(t, kind):
        return True
    if kind == "count" and t.is_floating_point():  # an extreme says nothing of what lies between
        return bool(EXPECTED[kind][1](t).all())
    return bool(extremes_fit(torch.stack(t.aminmax()), kind))


def all_bytes_fit(t: Tensor, kind: str) -> bool:
    """Whether t holds bytes, which are read as x / 255, and each of them is what is asked."""
    return t.dtype in (torch.uint8, torch.bool) and kind != "positive"


def extremes_fit(extremes: Tensor, kind: str) -> Tensor:
    """Whether these elements are what is asked of them, as a tensor: the least and the greatest (NaN, if there is one) stand for all."""
    return EXPECTED[kind][1](extremes).all()


def complaint(name: str, t: Tensor, kind: str, first_row: int | None = None) -> str:
    """The line about a tensor that does not fit; ``first_row`` is where it begins in the data set that it is a piece of."""
    words, test = EXPECTED[kind]
    bad = ~test(t)
    place, left = list[int](), int(bad.flatten().to(torch.uint8).argmax())
    for size in reversed(t.shape):
        left, here = divmod(left, size)
        place.insert(0, here)
    value = t[tuple(place)]
    if first_row is not None:
        place[0] += first_row
    shown = str(value.item() if value.dtype == torch.float64 or not value.is_floating_point() else np.float32(value.item()))
    index = f"[{', '.join(map(str, place))}]" if place else ""
    count = int(bad.sum())
    share = f", {count:,} of {t.numel():,} {'is' if count == 1 else 'are'} not" if first_row is None else ""
    hint = "; give bytes as torch.uint8, read as x / 255" if kind == "unit" and 2.0 <= float(t.amax()) <= 255.0 else ""
    return f"{name}{index} = {shown}: expected {words}{share}{hint}"


def _is_recorded(t: Tensor) -> bool:
    """Whether a graph is traced without values."""
    from torch._subclasses.fake_tensor import is_fake
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    return is_fake(t) or get_proxy_mode() is not None or torch._C._get_tracing_state() is not None


def _readable(name: str, t: Tensor) -> Tensor | None:
    """The tensor whose values stand behind ``t``: all of a DTensor's, so that every process says the same; None for meta."""
    if _is_recorded(t):
        raise ValueError(f"{name}: its values cannot be checked while a graph is traced; trace it without checks and check_data")
    while torch._C._functorch.is_functorch_wrapped_tensor(t):
        t = torch._C._functorch.get_unwrapped(t)
    if is_dtensor(t):
        t = t.full_tensor()  # type: ignore[attr-defined]
    return None if t.is_meta else t.detach()
