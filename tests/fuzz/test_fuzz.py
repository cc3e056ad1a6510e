"""A short round of the fuzzer: the same cases every time; ``make fuzz`` looks further."""

import math
from dataclasses import replace
from random import Random

import pytest

from . import checks, rounds, runs
from .case import is_wild, shape_of
from .families import FAMILIES
from .judge import Finding

SEED = 0
ROUNDS = 22  # of every sort; about 20 s on two cores


@pytest.mark.parametrize("name", rounds.NAMES)
def test_a_short_round(name):
    first = rounds.NAMES.index(name)
    indices = range(first, first + ROUNDS * len(rounds.NAMES), len(rounds.NAMES))
    failures = {f.key: f for i in indices if (f := rounds.run(SEED, i)) is not None}
    assert not failures, "\n\n".join(["", *(f.report(seconds=1.0) for f in list(failures.values())[:5])])


def test_a_case_is_a_function_of_its_seed_and_number():
    for index in range(3 * len(rounds.NAMES)):
        assert rounds.make(5, index) == rounds.make(5, index)
    assert rounds.make(5, 0) != rounds.make(6, 0)


# What was found once, by family and "seed/case", looked into, and is right: a true value that float64 had not given, a plain formula that
# was another one, or a limit that docs/numerics.md tells.
LOOKED_INTO = {
    "bernoulli": ["733/1811"],  # 1 - (1 - 1e-9) is not 1e-9
    "counts": ["521/6685"],  # 1 / theta - 1 / theta
    "mixed_counts": ["521/1061", "521/5111", "521/7836", "301/5786"],  # a derivative out of range times a small share
    "multinomial": ["521/1564"],  # a coefficient that makes up for 4e10 nats
    "kl": ["521/3875", "521/10575"],  # the rounding of a scale between bounds
    "mixture": ["521/1558", "521/8658", "521/12058", "301/13508"],  # weights whose exponents are differences of 1e30
    "mmd": ["301/9671"],  # pulls that cancel
    "linear_multinomial": ["521/7715"],  # F.linear of the same layout
    "iwae": ["521/8705"],  # log p(z) - log q(z) of a posterior that is the prior
    "correlation": ["521/9395", "521/10995"],  # torch's order of a sum in a trace
    "images": ["401/567", "301/9517"],  # F.softplus is linear from 20 on
    "elbo": ["401/854"],  # a broadcast x whose elements cancel
}


@pytest.mark.parametrize(("name", "at"), [(name, at) for name, cases in LOOKED_INTO.items() for at in cases])
def test_what_was_looked_into_is_right(name, at):
    generator = rounds.GENERATORS[name]
    case = generator.make(Random(at))
    assert generator.examine(case) is None


def test_every_public_function_has_a_family():
    import vae_fast.functional

    public = {n for n in vae_fast.functional.__all__ if n != "checks" and not isinstance(getattr(vae_fast, n), type)}
    called = set()
    for name, family in FAMILIES.items():
        for i in range(60):
            case = family.make(Random(f"{name}/{i}"))
            if sum(math.prod(shape_of(case, s)) for s in case.specs) < 10_000:
                called.add(family.call(case, runs.numbers_of(case))[0])
    assert called == public


# --- that the fuzzer sees what it looks for ----------------------------------------------------------------------------


def planted(monkeypatch, change):
    """The public KL with a fault in its value."""
    import vae_fast

    right = vae_fast.gaussian_kl
    monkeypatch.setattr(vae_fast, "gaussian_kl", lambda *a, **kw: change(right(*a, **kw)))
    return {f.finding.kind for i in range(0, 40 * len(rounds.NAMES), len(rounds.NAMES)) if (f := rounds.run(1, i)) is not None}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda t: t * (1 + 1e-4), "error"),
        (lambda t: t * float("nan"), "nan"),
        (lambda t: t / 0.0, "inf"),
        (lambda t: t.double(), "dtype"),
        (lambda t: t[None], "shape"),
    ],
    ids=["error", "nan", "inf", "dtype", "shape"],
)
def test_a_planted_fault_is_found(monkeypatch, change, kind):
    assert kind in planted(monkeypatch, change)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("gaussian_kl", "kl"),
        ("negative_binomial_log_prob", "counts"),
        ("negative_binomial_mixture_log_prob", "mixed_counts"),
        ("multinomial_log_prob", "multinomial"),
        ("linear_bernoulli_log_prob", "linear"),
        ("linear_multinomial_log_prob", "linear_multinomial"),
        ("elbo_loss", "elbo"),
        ("iwae_loss", "iwae"),
        ("mmd", "mmd"),
        ("mixture_log_prob", "mixture"),
        ("mixture_responsibilities", "mixture"),
    ],
)
def test_a_gradient_that_is_off_by_a_thousandth_is_found(monkeypatch, name, family):
    import vae_fast

    right, calls = getattr(vae_fast, name), []

    def planted(*args, **kwargs):
        value = right(*args, **kwargs)
        calls.append(value.requires_grad)
        return value + 1e-3 * (value - value.detach()) if value.isfinite().all() else value

    monkeypatch.setattr(vae_fast, name, planted)
    able = found = 0
    for i in range(200):
        case = replace(FAMILIES[family].make(Random(f"planted/{i}")), check="none")
        halves = any(s.grad and s.dtype in ("float16", "bfloat16") for s in case.specs)
        if case.upstream == "zeros" or is_wild(case) or halves or case.sizes.get("k") == (1,) or able == 12:
            continue  # whose gradients may be 0, or have no more digits
        calls.clear()
        finding = checks.examine(case)
        able += any(calls)
        found += any(calls) and finding is not None
    assert able > 5
    assert 2 * found > able, f"{found} of {able}"


def test_a_failure_is_made_simple_and_printed(monkeypatch):
    import vae_fast

    right = vae_fast.gaussian_kl
    monkeypatch.setattr(vae_fast, "gaussian_kl", lambda *a, **kw: right(*a, **kw) * 1.01)
    failure = next(f for i in range(0, 99 * len(rounds.NAMES), len(rounds.NAMES)) if (f := rounds.run(1, i)) and f.finding.kind == "error")
    report = failure.report(seconds=2.0)
    assert f"python -m tests.fuzz --seed 1 --case {failure.index}" in report
    code = report[report.index("    import torch") :]
    scope = {}
    exec("\n".join(line[4:] for line in code.splitlines()), scope)
    assert isinstance(scope["out"], vae_fast.functional.gaussian.torch.Tensor)


def test_findings_of_one_kind_are_one_fault():
    from .shrink import same

    assert same(Finding("nan", "out0", "a"), Finding("nan", "grad mu", "b"))
    assert not same(Finding("exception", "TypeError@a.py", ""), Finding("exception", "ValueError@a.py", ""))
