"""The distributions that the tests of vae_fast.distributions go through, each made in our namespace or in torch's."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.distributions as T

from vae_fast import _backend
from vae_fast import distributions as D

needs_kernels = pytest.mark.skipif(_backend.C is None, reason="the extension was not built")


def real(*shape):
    return lambda: torch.randn(shape)


def positive(*shape):
    return lambda: torch.rand(shape) + 0.3


def heavy(*shape):
    return lambda: torch.rand(shape) * 5.0 + 5.0  # with a variance, and one that draws can tell


def unit(*shape):
    return lambda: torch.rand(shape) * 0.8 + 0.1


def bits(*shape):
    return lambda: torch.randint(0, 2, shape).float()


def counts(*shape):
    return lambda: torch.poisson(torch.rand(shape) * 4.0)


def classes(*shape, of=5):
    return lambda: torch.randint(of, shape).float()


def trials(*shape, total=10):
    return lambda: T.Multinomial(total, torch.ones(shape)).sample()


def by_mean(lib, mu, theta, **options):
    """A negative binomial distribution by mean and inverse dispersion, which torch's class is not given by."""
    if lib is D:
        return D.NegativeBinomial(mu=mu, theta=theta, **options)
    return T.NegativeBinomial(theta, logits=mu.log() - theta.log(), **options)


@dataclass(frozen=True)
class Case:
    """One distribution: its parameters, how either namespace makes it of them, and a value that fits."""

    make: Callable
    parameters: dict
    value: Callable
    row: bool = True  # whether log_prob is one call of a kernel and no other pass
    counts: bool = False  # of which there is no gradient

    def drawn(self, dtype=torch.float64, grad=False):
        wide = torch.promote_types(dtype, torch.float32)  # of weights: a Categorical normalises them in their own dtype
        return {name: draw().to(wide if name == "w" else dtype).requires_grad_(grad) for name, draw in self.parameters.items()}


def mixture(lib, component, w, **options):
    return lib.MixtureSameFamily(T.Categorical(logits=w, validate_args=False), component, **options)


LOC_SCALE = {"loc": real(4, 3), "scale": positive(4, 3)}
CASES = {
    "Normal": Case(lambda lib, loc, scale, **o: lib.Normal(loc, scale, **o), LOC_SCALE, real(4, 3)),
    "Normal, broadcast": Case(
        lambda lib, loc, scale, **o: lib.Normal(loc, scale, **o), {"loc": real(3), "scale": positive(4, 1)}, real(4, 3)
    ),
    "Normal, scalar": Case(lambda lib, loc, scale, **o: lib.Normal(loc, scale, **o), {"loc": real(), "scale": positive()}, real()),
    "Laplace": Case(lambda lib, loc, scale, **o: lib.Laplace(loc, scale, **o), LOC_SCALE, real(4, 3)),
    "Bernoulli, logits": Case(lambda lib, p, **o: lib.Bernoulli(logits=p, **o), {"p": real(4, 3)}, bits(4, 3)),
    "Bernoulli, probs": Case(lambda lib, p, **o: lib.Bernoulli(probs=p, **o), {"p": unit(4, 3)}, bits(4, 3)),
    "StudentT": Case(lambda lib, df, loc, scale, **o: lib.StudentT(df, loc, scale, **o), {"df": heavy(4, 3), **LOC_SCALE}, real(4, 3)),
    "LogNormal": Case(lambda lib, loc, scale, **o: lib.LogNormal(loc, scale, **o), LOC_SCALE, positive(4, 3)),
    "ContinuousBernoulli, logits": Case(lambda lib, p, **o: lib.ContinuousBernoulli(logits=p, **o), {"p": real(4, 3)}, unit(4, 3)),
    "ContinuousBernoulli, probs": Case(lambda lib, p, **o: lib.ContinuousBernoulli(probs=p, **o), {"p": unit(4, 3)}, unit(4, 3)),
    "Poisson": Case(lambda lib, rate, **o: lib.Poisson(rate, **o), {"rate": positive(4, 3)}, counts(4, 3), counts=True),
    "NegativeBinomial, logits": Case(
        lambda lib, r, p, **o: lib.NegativeBinomial(r, logits=p, **o),
        {"r": positive(4, 3), "p": real(4, 3)},
        counts(4, 3),
        counts=True,
        row=False,
    ),
    "NegativeBinomial, probs": Case(
        lambda lib, r, p, **o: lib.NegativeBinomial(r, probs=p, **o),
        {"r": positive(4, 1), "p": unit(4, 3)},
        counts(4, 3),
        counts=True,
        row=False,
    ),
    "NegativeBinomial, mean": Case(by_mean, {"mu": positive(4, 3), "theta": positive(3)}, counts(4, 3), counts=True),
    # "w": the constructor normalises them in their own dtype
    "Categorical, logits": Case(lambda lib, w, **o: lib.Categorical(logits=w, **o), {"w": real(4, 3, 5)}, classes(4, 3), counts=True),
    "Categorical, probs": Case(lambda lib, w, **o: lib.Categorical(probs=w, **o), {"w": positive(3, 5)}, classes(3), counts=True),
    "Multinomial, logits": Case(
        lambda lib, w, **o: lib.Multinomial(10, logits=w, **o), {"w": real(4, 5)}, trials(4, 5), counts=True, row=False
    ),
    "Multinomial, probs": Case(
        lambda lib, w, **o: lib.Multinomial(10, probs=w, **o), {"w": positive(4, 5)}, trials(4, 5), counts=True, row=False
    ),
    "Independent Categorical": Case(
        lambda lib, w, **o: lib.Independent(lib.Categorical(logits=w, **o), 1), {"w": real(4, 3, 5)}, classes(4, 3), counts=True
    ),
    "Independent Poisson": Case(
        lambda lib, rate, **o: lib.Independent(lib.Poisson(rate, **o), 1), {"rate": positive(4, 3)}, counts(4, 3), counts=True
    ),
    "Independent NegativeBinomial": Case(
        lambda lib, **o: lib.Independent(by_mean(lib, **o), 1), {"mu": positive(4, 3), "theta": positive(4, 1)}, counts(4, 3), counts=True
    ),
    "Independent StudentT": Case(
        lambda lib, df, loc, scale, **o: lib.Independent(lib.StudentT(df, loc, scale, **o), 1), {"df": heavy(1), **LOC_SCALE}, real(4, 3)
    ),
    "Independent LogNormal": Case(
        lambda lib, loc, scale, **o: lib.Independent(lib.LogNormal(loc, scale, **o), 1), LOC_SCALE, positive(4, 3)
    ),
    "Independent Normal": Case(lambda lib, loc, scale, **o: lib.Independent(lib.Normal(loc, scale, **o), 1), LOC_SCALE, real(4, 3)),
    "Independent Normal, all": Case(lambda lib, loc, scale, **o: lib.Independent(lib.Normal(loc, scale, **o), 2), LOC_SCALE, real(4, 3)),
    "Independent of none": Case(lambda lib, loc, scale, **o: lib.Independent(lib.Normal(loc, scale, **o), 0), LOC_SCALE, real(4, 3)),
    "Independent twice": Case(
        lambda lib, loc, scale, **o: lib.Independent(lib.Independent(lib.Normal(loc, scale, **o), 1), 1), LOC_SCALE, real(4, 3)
    ),
    "Independent of torch's": Case(lambda lib, loc, scale, **o: lib.Independent(T.Normal(loc, scale, **o), 1), LOC_SCALE, real(4, 3)),
    "Independent Laplace": Case(lambda lib, loc, scale, **o: lib.Independent(lib.Laplace(loc, scale, **o), 1), LOC_SCALE, real(4, 3)),
    "Independent Bernoulli": Case(lambda lib, p, **o: lib.Independent(lib.Bernoulli(logits=p, **o), 1), {"p": real(4, 3)}, bits(4, 3)),
    "Independent Gamma": Case(
        lambda lib, a, b, **o: lib.Independent(T.Gamma(a, b, **o), 1), {"a": positive(4, 3), "b": positive(4, 3)}, positive(4, 3), row=False
    ),
    "mixture": Case(
        lambda lib, w, loc, scale, **o: mixture(lib, lib.Independent(lib.Normal(loc, scale, **o), 1), w, **o),
        {"w": real(4), **LOC_SCALE},
        real(3),
    ),
    "mixture of numbers": Case(
        lambda lib, w, loc, scale, **o: mixture(lib, lib.Normal(loc, scale, **o), w, **o),
        {"w": real(5), "loc": real(5), "scale": positive(5)},
        real(),
    ),
    "mixture of images": Case(
        lambda lib, w, loc, scale, **o: mixture(lib, lib.Independent(lib.Normal(loc, scale, **o), 2), w, **o),
        {"w": real(5), "loc": real(5, 2, 3), "scale": positive(5, 2, 3)},
        real(2, 3),
    ),
    "mixtures": Case(
        lambda lib, w, loc, scale, **o: mixture(lib, lib.Independent(lib.Normal(loc, scale, **o), 1), w, **o),
        {"w": real(2, 5), "loc": real(2, 5, 3), "scale": positive(2, 5, 3)},
        real(2, 3),
    ),
    "mixture, expanded": Case(
        lambda lib, w, loc, scale, **o: mixture(lib, lib.Independent(lib.Normal(loc, scale, **o), 1), w, **o).expand((2,)),
        {"w": real(5), "loc": real(5, 3), "scale": positive(5, 3)},
        real(2, 3),
    ),
    "mixture of Laplaces": Case(
        lambda lib, w, loc, scale, **o: mixture(lib, lib.Independent(lib.Laplace(loc, scale, **o), 1), w, **o),
        {"w": real(4), **LOC_SCALE},
        real(3),
        row=False,
    ),
    "Independent mixtures": Case(
        lambda lib, w, loc, scale, **o: lib.Independent(mixture(lib, lib.Normal(loc, scale, **o), w, **o), 1),
        {"w": real(2, 5), "loc": real(2, 5), "scale": positive(2, 5)},
        real(2),
        row=False,
    ),
}
every = pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
NORMALS = [name for name in CASES if "Normal" in name and "Log" not in name]


def pair(case, dtype=torch.float64, grad=False, **options):
    """Ours and torch's of the same numbers, each with its parameters."""
    ours = case.drawn(dtype, grad)
    torchs = {name: t.detach().clone().requires_grad_(grad) for name, t in ours.items()}
    return case.make(D, **ours, **options), case.make(T, **torchs, **options), ours, torchs


def message_of(call):
    with pytest.raises(Exception) as caught:
        call()
    return type(caught.value), str(caught.value)
