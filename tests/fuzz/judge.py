"""The numerical contract as a verdict about one tensor.

    No NaN; infinite only, and always, where the true value is out of range; otherwise an error of at most that of the plain float32
    formula + 1e-6, relative to the element or, for elements near zero, to the typical one (as in ``oracle.relative_error``).

A gradient that is a difference of terms known to rounding, be it zero, is so to the rounding of those: ``terms`` is their size. What the
rounding of an argument on its way leaves open of the truth itself, is ``unsure``.

Halves may add a rounding of theirs (and one more for a gradient that was rounded before it was scaled). A plain formula may be exact at
one point by luck, so that whoever fails is judged again by the plain formula's worst error over neighbours a few units in the last place
away (``neighbours``). Where the plain formula itself leaves float32's range, 2e-5 are granted, the figure of ``test_extremes``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
WITHOUT_A_PLAIN_NUMBER = 2e-5
NEIGHBOURS = 6


@dataclass(frozen=True)
class Finding:
    """What is wrong: a kind for telling findings apart, the tensor, and a line for people."""

    kind: str
    what: str
    line: str


class Judge:
    """Of one tensor: the truth, and the plain formula's number if it counts."""

    def __init__(
        self,
        what: str,
        want: Tensor,
        plain: Tensor | None,
        slack: float,
        unit: float = 1.0,
        by_tensor: bool = False,
        terms: Tensor | None = None,
    ):
        """``unit`` is the size of the upstream gradient: what is small beside it is zero, to the truth's own rounding."""
        self.what, self.want, self.slack, self.by_tensor = what, want.detach().double(), slack, by_tensor
        self.plain = None if plain is None else plain.detach().double()
        self.floor = unit * (1e-4 if slack < 5e-7 else 1e-9 if self.plain is None or self.plain.isfinite().all() else 1e-2)
        self.plain_error = 0.0
        self.terms = torch.zeros_like(self.want) if terms is None else terms
        self.unsure = torch.zeros_like(self.want)

    def verdict(self, got: Tensor) -> Finding | None:
        want, what = self.want, self.what
        if got.shape != want.shape:
            return Finding("shape", what, f"has shape {tuple(got.shape)}, expected {tuple(want.shape)}")
        if not want.numel():
            return None
        value, info = got.detach().resolve_neg().double(), torch.finfo(got.dtype)
        known = ~want.isnan()
        edge = (want.abs() / info.max - 1).abs() < 4 * max(info.eps, 1e-6)
        beyond = known & (want.abs() > info.max) & ~edge
        inside = known & ~beyond & ~edge
        if (bad := value.isnan() & known).any():
            return self._finding("nan", bad, value)
        if (bad := beyond & (value != want.sign() * torch.inf)).any():
            return self._finding("range", bad, value)
        if not inside.any():
            return None
        if not self.plain_error:
            self.plain_error = self._error_of_plain(inside)
        scale = self._scale(inside)
        allowed = (self.slack + self.plain_error) * scale + self._rounding(info) * self._size() + self._tiny(info) + self.unsure
        # what is allowed may be out of a half's range: a gradient that is left over from terms far out of it
        if (bad := inside & value.isinf() & (want.abs() + allowed < info.max)).any():
            return self._finding("inf", bad, value)
        inside = inside & value.isfinite()
        error = (value - want).abs()
        if (bad := inside & (error > allowed)).any():
            ratio = torch.where(inside, (error - allowed) / scale, 0.0).max().item()
            worst = (error / scale)[bad].max().item()
            return self._finding("error", bad, value, f"relative error {worst:.3g}, allowed {worst - ratio:.3g}")
        return None

    def appeal(self, want: Tensor, plain: Tensor) -> None:
        """Another pair of truth and plain formula: its error counts too."""
        other = Judge(self.what, want, plain, self.slack, by_tensor=self.by_tensor, terms=self.terms)
        other.floor = self.floor
        inside = other.want.isfinite() & (other.want.abs() < 3.4e38)
        if inside.any() and other.want.shape == self.want.shape:
            self.plain_error = max(self.plain_error, other._error_of_plain(inside))

    def _scale(self, inside: Tensor) -> Tensor:
        within = self.want[inside]
        typical = within.abs().max() if self.by_tensor else within.square().mean().sqrt()
        return torch.maximum(self.want.abs(), self.terms).clamp(min=max(typical.item(), self.floor, 1e-300))

    def _size(self) -> Tensor:
        """Of what is rounded to the tensor's dtype: the truth, or the number that the plain formula has for it."""
        return self.want.abs() if self.plain is None else torch.maximum(self.want.abs(), self.plain.nan_to_num(0.0, 0.0, 0.0).abs())

    def _error_of_plain(self, inside: Tensor) -> float:
        if self.plain is None:
            return 0.0
        finite = inside & self.plain.isfinite()
        error = ((self.plain - self.want).abs() / self._scale(inside))[finite]
        return (error.max().item() if error.numel() else 0.0) + (0.0 if torch.equal(finite, inside) else WITHOUT_A_PLAIN_NUMBER)

    def _rounding(self, info: torch.finfo) -> float:
        return 1.1 * info.eps if info.bits == 16 else 1.2 * info.eps if info.bits == 32 and self.slack < info.eps else 0.0

    def _tiny(self, info: torch.finfo) -> float:
        return info.smallest_normal * (info.eps if info.bits == 16 else 2.0)

    def _finding(self, kind: str, bad: Tensor, value: Tensor, line: str = "") -> Finding:
        at = tuple(bad.nonzero()[0].tolist())
        plain = "" if self.plain is None else f", the plain formula's {self.plain[at].item():.9g}"
        number = f"{self.what}{list(at)} is {value[at].item():.9g}, the true value {self.want[at].item():.9g}{plain}"
        return Finding(kind, self.what, f"{number}; {int(bad.sum())} of {bad.numel()}" + (f"; {line}" if line else ""))


def neighbour(t: Tensor, seed: int, reach: int = 4) -> Tensor:
    """The same numbers up to ``reach`` units in the last place away, or a thousandth, still of the dtype; integers as they are.

    Four are too few where a formula is flat: sigmoid(0.03) + 4 units is rounded the same way.
    """
    if not t.is_floating_point():
        return t
    reach = min(reach, max(4, int(1e-3 / torch.finfo(t.dtype).eps)))
    steps = torch.randint(-reach, reach + 1, t.shape, generator=torch.Generator().manual_seed(seed))
    largest = torch.finfo(t.dtype).max
    return (t.double() * (1 + steps * torch.finfo(t.dtype).eps)).clamp(-largest, largest).to(t.dtype)


def same_bits(a: Tensor | None, b: Tensor | None) -> bool:
    """Equal, NaN where the other is NaN, and of one dtype."""
    if a is None or b is None:
        return a is b
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and bool(torch.equal(a.nan_to_num(123.25), b.nan_to_num(123.25)) and torch.equal(a.isnan(), b.isnan()))
    )
