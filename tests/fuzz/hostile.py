"""Arguments that nobody should pass: each is refused in one line that names it, by a TypeError or a ValueError, or does what it says."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

import numpy
import torch

import vae_fast

from .judge import Finding
from .runs import reference_backend

_MU = {"mu": "torch.zeros(3, 2)", "logvar": "torch.zeros(3, 2)"}
_PRIOR = {"prior_mu": "torch.zeros(3, 2)", "prior_logvar": "torch.zeros(3, 2)"}
_X = {"x": "torch.rand(3, 5)"}
_COUNTS = {"x": "torch.ones(3, 5)"}
_NB = {"mu": "torch.ones(3, 5)", "theta": "torch.ones(5)"}
_INDICES = "torch.zeros((3, 5), dtype=torch.int64)"
_CLIP = {"clip": "'add'", "eps": "1e-3"}
_BOUNDS = {"scale_bounds": "(0.1, 2.0, 'softclip')"}
_LIKELIHOOD = {"likelihood": "'bernoulli'", **_CLIP, **_PRIOR, "scale": "'std'", "event_dim": "1", "latent_dim": "1", **_BOUNDS}
_KL = {"scale": "'logvar'", **_BOUNDS, "event_dim": "1", "free_bits": "0.1", "reduction": "'mean'"}
_MIXTURE = {"x": "torch.zeros(3, 2)", "weight_logits": "torch.zeros(4)", "means": "torch.zeros(4, 2)", "scale": "torch.zeros(4, 2)"}
_OPTIONS = {"covariance_type": "'diag'", "precision": "'float32'"}
CALLS = {
    "gaussian_kl": {**_MU, **_PRIOR, **_KL},
    "reparameterize": {**_MU, "scale": "'logvar'", "num_samples": "2", "noise": "torch.zeros(2, 3, 2)", "generator": "None"},
    "reparameterize_with_kl": {**_MU, **_PRIOR, **_KL, "num_samples": "2", "generator": "None"},
    "bernoulli_log_prob": {**_X, "logits": "torch.zeros(3, 5)", **_CLIP, "event_dim": "1"},
    "laplace_log_prob": {**_X, "loc": "torch.zeros(3, 5)", "log_scale": "torch.zeros(3, 5)", "scale": "'std'", **_BOUNDS, "event_dim": "1"},
    "poisson_log_prob": {**_COUNTS, "rate": "torch.ones(3, 5)", "event_dim": "1"},
    "negative_binomial_log_prob": {**_COUNTS, **_NB, "space": "'linear'", "eps": "1e-8", "event_dim": "1"},
    "zero_inflated_negative_binomial_log_prob": {
        **_COUNTS,
        **_NB,
        "zi_logits": "torch.zeros(3, 5)",
        "space": "'log'",
        "eps": "1e-8",
        "event_dim": "1",
    },
    "negative_binomial_mixture_log_prob": {
        **_COUNTS,
        "mu_1": "torch.ones(3, 5)",
        "mu_2": "torch.ones(3, 5)",
        "theta_1": "torch.ones(5)",
        "theta_2": "torch.ones(5)",
        "pi_logits": "torch.zeros(3, 5)",
        "event_dim": "1",
    },
    "log_normal_log_prob": {
        **_X,
        "loc": "torch.zeros(3, 5)",
        "log_scale": "torch.zeros(3, 5)",
        "scale": "'std'",
        **_BOUNDS,
        "event_dim": "1",
    },
    "continuous_bernoulli_log_prob": {**_X, "logits": "torch.zeros(3, 5)", "event_dim": "1"},
    "student_t_log_prob": {
        **_X,
        "df": "torch.ones(5)",
        "loc": "torch.zeros(3, 5)",
        "log_scale": "torch.zeros(3, 5)",
        "scale": "'std'",
        "event_dim": "1",
    },
    "gaussian_log_prob": {**_X, "mu": "torch.zeros(3, 5)", "logvar": "torch.zeros(3, 5)", "scale": "'logvar'", **_BOUNDS, "event_dim": "1"},
    "elbo": {**_X, "recon": "torch.zeros(3, 5)", **_MU, **_LIKELIHOOD, "beta": "1.0", "free_bits": "0.1"},
    "elbo_loss": {**_X, "recon": "torch.zeros(3, 5)", **_MU, **_LIKELIHOOD, "beta": "1.0", "free_bits": "0.1", "reduction": "'sum'"},
    "iwae_loss": {
        **_X,
        "recon": "torch.zeros(4, 3, 5)",
        "z": "torch.zeros(4, 3, 2)",
        **_MU,
        **_LIKELIHOOD,
        "sample_dim": "0",
        "reduction": "'sum'",
    },
    "iwae_bound": {"log_w": "torch.zeros(3, 2)", "dim": "0"},
    "logsumexp": {"a": "torch.zeros(3, 2)", "dim": "0", "weights": "torch.ones(3, 2)"},
    "linear_bernoulli_log_prob": {
        **_X,
        "h": "torch.zeros(3, 2)",
        "weight": "torch.zeros(5, 2)",
        "bias": "torch.zeros(5)",
        **_CLIP,
        "reduction": "'sum'",
    },
    "categorical_log_prob": {"x": _INDICES, "logits": "torch.zeros(3, 5, 4)", "dim": "-1", "event_dim": "1"},
    "multinomial_log_prob": {**_COUNTS, "logits": "torch.zeros(3, 5)", "coefficient": "True"},
    "linear_multinomial_log_prob": {
        **_COUNTS,
        "h": "torch.zeros(3, 2)",
        "weight": "torch.zeros(5, 2)",
        "bias": "torch.zeros(5)",
        "coefficient": "True",
        "reduction": "'sum'",
    },
    "discretized_logistic_log_prob": {
        **_X,
        "loc": "torch.zeros(3, 5)",
        "log_scale": "torch.zeros(3, 5)",
        "bits": "8",
        "event_dim": "1",
    },
    "discretized_logistic_mixture_log_prob": {
        "x": "torch.rand(3, 2, 2, 3)",
        "params": "torch.zeros(3, 2, 2, 20)",
        "bits": "8",
        "layout": "'nhwc'",
        "convention": "'vdvae'",
    },
    "aggregate_log_prob": {"z": "torch.zeros(3, 2)", **_MU, "factorized": "'both'"},
    "total_correlation": {
        "z": "torch.zeros(3, 2)",
        **_MU,
        "dataset_size": "100",
        "estimator": "'mss'",
        "formula": "'beta-tcvae'",
        "reduction": "'sum'",
    },
    "mmd": {"z": "torch.zeros(3, 2)", "prior": "torch.zeros(4, 2)", "kernel": "'rbf'", "bandwidth": "1.0", "scales": "[1.0, 2.0]"},
    "mixture_log_prob": {**_MIXTURE, **_OPTIONS, "factorized": "'both'"},
    "mixture_responsibilities": {**_MIXTURE, **_OPTIONS},
    "mixture_statistics": {**_MIXTURE, **_OPTIONS, "responsibilities": "torch.rand(3, 4)", "sample_weight": "torch.ones(3)"},
    "mdn_log_prob": {
        "y": "torch.zeros(3, 2)",
        "weight_logits": "torch.zeros(3, 4)",
        "means": "torch.zeros(3, 4, 2)",
        "log_scale": "torch.zeros(3, 4)",
        "min_scale": "0.1",
    },
}
OPTIONAL = {
    "prior_mu",
    "prior_logvar",
    "free_bits",
    "clip",
    "num_samples",
    "noise",
    "generator",
    "bias",
    "weights",
    "responsibilities",
    "sample_weight",
    "scales",
    "scale_bounds",
}

# Tensors that are not what they should be; "SHAPE" is the right shape.
_SHAPES = (
    "torch.zeros(())",
    "torch.zeros(0)",
    "torch.zeros(7)",
    "torch.zeros(3, 7)",
    "torch.zeros(7, 2)",
    "torch.zeros(3, 0)",
    "torch.zeros((1,) * 12)",
    "torch.zeros(2, 3, 4, 5)",
)
_TENSORS = (
    *_SHAPES,
    "None",
    "1.0",
    "'x'",
    "[[0.0, 0.0]]",
    "numpy.zeros((3, 2), dtype='float32')",
    "torch.zeros(SHAPE, dtype=torch.int64)",
    "torch.zeros(SHAPE, dtype=torch.int32)",
    "torch.zeros(SHAPE, dtype=torch.complex64)",
    "torch.zeros(SHAPE, dtype=torch.float8_e4m3fn)",
    "torch.zeros(SHAPE).to_sparse()",
    "torch.zeros(SHAPE, device='meta')",
    "torch.zeros(SHAPE, device='meta', requires_grad=True)",
    "torch.zeros(SHAPE, dtype=torch.float64, device='meta')",
    "torch.zeros(SHAPE).to_mkldnn()",
    "torch.quantize_per_tensor(torch.zeros(SHAPE), 0.1, 0, torch.quint8)",
    "torch.nested.nested_tensor([torch.zeros(2), torch.zeros(1)])",
    "torch.nested.nested_tensor([torch.zeros(2), torch.zeros(1)], layout=torch.jagged)",
    "torch.zeros(SHAPE, dtype=torch.complex64).conj().imag",  # float32 with a negative bit: as good as any
    "(torch.zeros(SHAPE), torch.zeros(SHAPE))",
)
_LARGE = ("2**31", "2**32", "2**63", "-2**63", "2**64", "10**400", "-10**400")
_WORDS = (
    "None",
    "True",
    "False",
    "'no'",
    "''",
    "'x\\ny'",
    "b'x'",
    "[]",
    "['none']",
    "{}",
    "()",
    "set()",
    "object()",
    "1j",
    "type",
    "print",
)
_NUMBERS = (
    "-1",
    "0",
    "1.5",
    "float('nan')",
    "float('inf')",
    "-float('inf')",
    "1e-400",
    "torch.tensor(1.0)",
    "torch.tensor([1.0, 2.0])",
    "numpy.float64(0.5)",
    "numpy.int64(1)",
    "numpy.array([1.0, 2.0])",
)
# What an option may well be, beside the words that its own call has.
_FINE = {
    "beta": {
        "-1",
        "0",
        "1.5",
        "1e-400",
        "2**31",
        "2**32",
        "2**63",
        "-2**63",
        "2**64",
        "torch.tensor(1.0)",
        "numpy.float64(0.5)",
        "numpy.int64(1)",
    },
    "free_bits": {"0", "1.5", "1e-400", "2**31", "2**32", "2**63", "2**64", "torch.tensor(1.0)", "numpy.float64(0.5)", "numpy.int64(1)"},
    "min_scale": {"0", "1.5", "1e-400", "2**31", "2**32", "2**63", "2**64", "numpy.float64(0.5)", "numpy.int64(1)"},
    "eps": {"torch.tensor(1.0)", "numpy.float64(0.5)"},
    "event_dim": {"0", "numpy.int64(1)"},
    "latent_dim": {"0", "numpy.int64(1)"},
    "dim": {"-1", "0", "numpy.int64(1)"},
    "num_samples": {"numpy.int64(1)"},
    "bits": {"numpy.int64(1)"},
    "dataset_size": {"numpy.int64(1)", "2**31", "2**32", "2**63", "2**64", "10**400"},
    "bandwidth": {"1.5", "2**31", "2**32", "numpy.float64(0.5)", "numpy.int64(1)"},
}
_COUNTED = {name for name, arguments in CALLS.items() if arguments.get("x") == _COUNTS["x"]}
NUMERIC = set(_FINE)
LONGEST = 1000  # characters of a message: a number of 400 digits may be in it twice


@dataclass(frozen=True)
class Hostile:
    """One call with one argument, or two, replaced."""

    function: str
    replaced: tuple[tuple[str, str], ...]
    reference: bool = False


def make(rng: Random) -> Hostile:
    function = rng.choice(tuple(CALLS))
    names = rng.sample(tuple(CALLS[function]), 1 if rng.random() < 0.85 else 2)
    return Hostile(function, tuple((n, _value(rng, function, n)) for n in names), rng.random() < 0.3)


def _value(rng: Random, function: str, name: str) -> str:
    usual = CALLS[function][name]
    if usual == _INDICES:
        return rng.choice(_TENSORS).replace("SHAPE", "(3, 5)")
    if usual.startswith("torch."):
        shape = usual[usual.index("(") + 1 : -1]
        return rng.choice(_TENSORS).replace("SHAPE", f"({shape},)")
    pool = _WORDS + _NUMBERS + _LARGE
    while (value := rng.choice(pool)) in ("2**31", "2**32") and name == "num_samples":  # would be allocated
        pass
    return value


def source(case: Hostile) -> str:
    arguments = CALLS[case.function] | dict(case.replaced)
    return f"vae_fast.{case.function}({', '.join(f'{k}={v}' for k, v in arguments.items())})"


def snippet(case: Hostile) -> str:
    return f"import numpy\nimport torch\nimport vae_fast\n\nprint({source(case)})"


def examine(case: Hostile) -> Finding | None:
    scope = {"torch": torch, "vae_fast": vae_fast, "numpy": numpy}
    where = case.function + " on the reference backend" * case.reference
    what = ", ".join(f"{n}={v}" for n, v in case.replaced)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if case.reference:
                with reference_backend():
                    eval(source(case), scope)
            else:
                eval(source(case), scope)
    except Exception as error:
        return _refusal(case, error, where, what)
    if any(
        _must_be_refused(case.function, name, value)
        for name, value in case.replaced
        if not (name == "eps" and ("clip", "None") in case.replaced)
    ):
        return Finding("accepted", what, f"{where}: {what} is accepted")
    return None


def _refusal(case: Hostile, error: Exception, where: str, what: str) -> Finding | None:
    message = str(error)
    first = (message.splitlines() or [""])[0]
    said = f"{where}: {what}: {type(error).__name__}: {first}"
    single = case.replaced[0] if len(case.replaced) == 1 else ("several", "")
    allowed = (TypeError, ValueError, *((IndexError,) if "dim" in CALLS[case.function] else ()))
    if not isinstance(error, allowed) or isinstance(error, UnicodeError):
        return Finding("not a TypeError or ValueError", f"{type(error).__name__} {single[1] or ''}", said)
    if "\n" in message or len(message) > LONGEST or "INTERNAL" in message or "nternal error" in message or "incompatible" in message:
        return Finding("not one plain line", single[1], said)
    if not any(re.search(rf"\b{n}\b", message) for n in _names(case)):
        return Finding("does not name the argument", single[1], said)
    return None


def _names(case: Hostile) -> Iterator[str]:
    for name, value in case.replaced:
        yield name
        if (
            "zeros(" in value or value == "None" or name in ("num_samples", "event_dim", "latent_dim", "sample_dim")
        ):  # at odds with others' shapes
            yield from (n for n, v in CALLS[case.function].items() if v.startswith("torch."))


def _must_be_refused(function: str, name: str, value: str) -> bool:
    if function in _COUNTED and (name, value) in (("eps", "None"), ("eps", "0"), ("eps", "numpy.int64(1)"), ("theta_2", "None")):
        return False
    if (name, value) in (("prior_mu", "1.0"), ("prior_logvar", "1.0")):
        return False
    usual = CALLS[function][name]
    if usual in (_INDICES, _COUNTS["x"]) and name == "x" and ("torch.int64" in value or "torch.int32" in value):
        return False
    if value == "None":
        return name not in OPTIONAL and name != "logvar"
    if name in NUMERIC:
        return value not in _FINE[name]
    if name in ("scale_bounds", "layout", "convention", "kernel", "estimator", "formula"):
        return True
    if name in ("coefficient", "factorized"):
        return value not in ("True", "False")
    if name == "clip" or (name == "scale" and value in _WORDS) or name in ("likelihood", "reduction", "covariance_type", "precision"):
        return value in _WORDS + _NUMBERS + _LARGE
    if value.endswith(".imag"):
        return False
    return value in ("1.0", "'x'", "[[0.0, 0.0]]") or any(
        w in value for w in ("torch.int64", "torch.int32", "dtype=torch.complex64)", "float8", "sparse", "quantize", "mkldnn")
    )


def simpler(case: Hostile) -> Iterator[Hostile]:
    if len(case.replaced) > 1:
        yield from (replace(case, replaced=(r,)) for r in case.replaced)
    if case.reference:
        yield replace(case, reference=False)
