"""A short round of the fuzzer: the same cases every time; ``make fuzz`` looks further."""

import pytest

from . import rounds
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
