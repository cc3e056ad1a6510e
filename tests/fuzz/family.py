"""What an op's family is, and how its cases begin."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from torch import Tensor

from .case import UPSTREAMS, Case, Spec, dress, is_wild

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """``call`` gives the public function's name and its keyword arguments, ``plain`` the same outputs by the plain formula."""

    name: str
    make: Callable[[Random], Case]
    call: Callable[[Case, Tensors], tuple[str, dict[str, Any]]]
    plain: Callable[[Case, Tensors], Any]
    defaults: dict[str, Any]  # the plain choice of each option
    ordinary: Callable[[Case], Tensors] | None = None  # ordinary values, where they have to fit together
    terms: Callable[[Case, Tensors, Tensor], Tensors] | None = None  # see `judge`: by argument, what its gradient is a difference of
    rounding: Callable[[Case, Tensors], Tensor] | None = None  # of the exponents l - L of a gradient's weights, where L does not tell
    exponents: Callable[[Case, Tensors], float] | None = None  # the size of the numbers that l is a sum of, where it is more than that of l
    size: Callable[[Case, Tensors], float] | None = None  # of the numbers that the results are differences of
    unsure: Callable[[Case, Tensors], list[Tensor]] | None = None  # of each result, what the rounding of its weights leaves open
    nearby: Callable[[Case], list[Case]] | None = None  # whose truths a call in its precision cannot tell from this one's
    apart: Callable[[Case, Tensors], Tensor] | None = None  # the parts of a mixture, each with all of the weight
    by_tensor: bool = False  # gradients are sums over rows: judged by the whole tensor, as the mixture tests do
    weighs: bool = False  # gradients are weighed by e^(l - L) with the L that was rounded, as in torch
    loses_rows: bool = False  # documented: a row whose density is out of range adds nothing to any gradient
    products: bool = False  # of matrices, which are a library's, in its own order
    rows: bool = True  # a row of the result depends on that row of the arguments only


MOST_ROUNDING = 0.1  # of an exponent: nothing is known of e^(l - L) beyond


def rounding_of_exponents(double: bool) -> float:
    """Of an exponent, relative to the numbers it is a difference of."""
    return 1e-15 if double else 1.2e-7


def start(rng: Random, name: str, options: dict[str, Any], sizes: dict[str, tuple[int, ...]], specs: list[Spec], **how: Any) -> Case:
    """A case of the family ``name`` with every axis drawn that all families share."""
    case = Case(
        name, options, sizes, dress(rng, specs, **how), rng.choice(UPSTREAMS), threads=rng.choice((1, 2, 2, 3)), seed=rng.getrandbits(31)
    )
    if is_wild(case) and case.upstream.startswith(("2^", "huge")):  # the order of multiplication may overflow on the way
        case = replace(case, upstream="random")
    long = math.prod(sizes.get("batch", ())) > 2**15 and rng.random() < 0.6
    return replace(case, check="threads" if long else rng.choices(CHECKS, CHECK_WEIGHTS)[0])


# Beside the truth, a case is held to one of these, see `checks`.
CHECKS = ("none", "threads", "reference", "nan", "autocast", "checkpoint", "trace", "func", "double", "repeat", "compile")
COLUMNS = 0.02  # share of long, narrow problems: where torch itself splits a sum among threads
CHECK_WEIGHTS = (60, 8, 10, 7, 3, 3, 2, 4, 3, 2, 0.15)
