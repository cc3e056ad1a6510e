"""Every argument of every public function, and of every model's constructor, given what it cannot be: one line that names it."""

import contextlib
import inspect
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

import vae_fast
from vae_fast import models, training
from vae_fast.training import settings


def f(*shape, dtype=torch.float32):
    return torch.full(shape, 0.5, dtype=dtype)


@contextlib.contextmanager
def subtest(label):
    """Says which of many values it was."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"with {label}")
        raise


class Unprintable:
    """Neither to be compared nor to be printed."""

    __hash__ = None

    def __eq__(self, other):
        raise RuntimeError("no ==")

    def __repr__(self):
        raise RuntimeError("no repr")


ODD = {
    "list": [1.0],
    "dict": {"a": 1},
    "text": "nonsense",
    "bytes": b"mean",
    "complex": 1j,
    "array": np.array([1.0, 2.0]),
    "texts": np.array(["none", "mean"]),
    "tensor of two": torch.ones(2),
    "large tensor": torch.ones(40, 40),
    "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "function": print,
    "unprintable": Unprintable(),
    "lines": "a\nb",
}
NUMBERS = {
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "above float": 10**400,
    "below float": -(10**400),
    "unprintable int": 10**5000,
    "NumPy inf": np.float32("inf"),
}
BOOLS = {"True": True, "False": False, "NumPy bool": np.bool_(True)}
ALL = {
    "tensor": {k: v for k, v in ODD.items() if k not in ("tensor of two", "large tensor")}
    | BOOLS
    | {
        "float": 0.5,
        "int64": f(3, 4).long(),
        "complex tensor": f(3, 4, dtype=torch.complex64),
        "sparse": f(3, 4).to_sparse(),
        "csr": f(3, 4).to_sparse_csr(),
        "jagged": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "meta": f(3, 4).to("meta"),
        "quantized": torch.quantize_per_tensor(f(3, 4), 0.1, 0, torch.quint8),
    },
    "name": ODD | BOOLS | NUMBERS | {"empty": "", "upper case": "MEAN"},
    "real": ODD | BOOLS | NUMBERS,
    "int": ODD | BOOLS | NUMBERS | {"float": 1.0, "2**63": 2**63, "2**64": 2**64, "-2**63-1": -(2**63) - 1, "NumPy float": np.float64(1.0)},
    "bounds": ODD | {"float": 1.0, "name": "clamp", "pair": (0.0, 1.0), "turned": (1.0, 0.0, "clamp"), "mode": (0.0, 1.0, "clip")},
    "generator": ODD | {"int": 3, "NumPy generator": np.random.default_rng(0)},
    "flag": ODD | NUMBERS | {"None": None, "0": 0, "1": 1},
}
ALL["scales"] = {k: v for k, v in ODD.items() if k != "list"} | NUMBERS | {"empty": [], "of zero": [1.0, 0.0], "of text": ["1"]}
ALL["tensor or real"] = {k: v for k, v in ALL["tensor"].items() if k != "float"} | NUMBERS
NONE = {"None": None}
COUNTED = {f"{name}_log_prob" for name in ("poisson", "negative_binomial", "zero_inflated_negative_binomial", "negative_binomial_mixture")}
NAMES = ("space", "clip", "likelihood", "reduction", "covariance_type", "precision", "layout", "convention")
NAMES += ("kernel", "estimator", "formula")
INTS = ("event_dim", "latent_dim", "sample_dim", "num_samples", "dim", "bits", "dataset_size")
REALS = ("eps", "beta", "free_bits", "min_scale", "bandwidth")
FLAGS = ("check_data", "donate_recon", "return_parts", "coefficient", "factorized")
OPTIONAL = {"clip", "free_bits", "num_samples", "generator", "noise", "bias", "prior_mu", "prior_logvar", "weights"}
OPTIONAL |= {"responsibilities", "sample_weight", "scales", "scale_bounds", "recon_scale_bounds"}

A, D, N = f(3, 4), f(3, 2), torch.ones(3, 4)
SAMPLE = {"mu": A, "logvar": A}
LATENT = {"mu": D, "logvar": D}
MIXTURE = {"x": f(5, 2), "weight_logits": f(3), "means": f(3, 2), "scale": f(3, 2)}
PRIOR = {"prior_mu": A, "prior_logvar": A}
GOOD = {
    "aggregate_log_prob": {"z": D, **LATENT},
    "bernoulli_log_prob": {"x": A, "logits": A},
    "continuous_bernoulli_log_prob": {"x": A, "logits": A},
    "categorical_log_prob": {"x": f(3, 4).long(), "logits": f(3, 4, 5)},
    "discretized_logistic_log_prob": {"x": A, "loc": A, "log_scale": A},
    "discretized_logistic_mixture_log_prob": {"x": f(2, 2, 3), "params": f(2, 2, 20)},
    "multinomial_log_prob": {"x": A, "logits": A},
    "linear_multinomial_log_prob": {"x": A, "h": D, "weight": f(4, 2), "bias": f(4)},
    "elbo": {"x": A, "recon": A, **LATENT},
    "elbo_loss": {"x": A, "recon": A, **LATENT},
    "gaussian_kl": {**SAMPLE},
    "gaussian_log_prob": {"x": A, **SAMPLE},
    "laplace_log_prob": {"x": A, "loc": A, "log_scale": A},
    "log_normal_log_prob": {"x": A, "loc": A, "log_scale": A},
    "poisson_log_prob": {"x": N, "rate": A},
    "negative_binomial_log_prob": {"x": N, "mu": A, "theta": A},
    "zero_inflated_negative_binomial_log_prob": {"x": N, "mu": A, "theta": A, "zi_logits": A},
    "negative_binomial_mixture_log_prob": {"x": N, "mu_1": A, "mu_2": A, "theta_1": A, "theta_2": A, "pi_logits": A},
    "iwae_bound": {"log_w": A},
    "iwae_loss": {"x": A, "recon": f(5, 3, 4), "z": f(5, 3, 2), **LATENT},
    "linear_bernoulli_log_prob": {"x": A, "h": D, "weight": f(4, 2), "bias": f(4)},
    "logsumexp": {"a": A},
    "mdn_log_prob": {"y": f(5, 2), "weight_logits": f(5, 3), "means": f(5, 3, 2), "log_scale": f(5, 3, 2)},
    "mixture_log_prob": MIXTURE,
    "mmd": {"z": D, "prior": D},
    "mixture_responsibilities": MIXTURE,
    "mixture_statistics": MIXTURE,
    "reparameterize": SAMPLE,
    "reparameterize_with_kl": SAMPLE,
    "total_correlation": {"z": D, **LATENT, "dataset_size": 100},
    "student_t_log_prob": {"x": A, "df": A.abs() + 1, "loc": A, "log_scale": A},
}


#: What x may be of functions over classes.
COUNTS = {"categorical_log_prob": ("int64",), "multinomial_log_prob": ("int64", "csr"), "linear_multinomial_log_prob": ("int64", "csr")}


def kind_of(function, name):
    if name == "scale":
        return "tensor" if function.startswith("mixture") else "name"
    groups = {
        "tensor or real": ("prior_mu", "prior_logvar"),
        "name": NAMES,
        "int": INTS,
        "real": REALS,
        "flag": FLAGS,
        "generator": ("generator",),
        "scales": ("scales",),
        "bounds": ("scale_bounds", "recon_scale_bounds"),
    }
    return next((kind for kind, names in groups.items() if name in names), "tensor")


def hostile_values(function, name):
    """Label and value of what this argument of this function cannot be."""
    values = dict(ALL[kind_of(function, name)])
    of_counts = function in COUNTED
    optional = name in OPTIONAL or (function, name) in {("gaussian_log_prob", "logvar"), ("bernoulli_log_prob", "probs")}
    optional = optional or (of_counts and name in ("log_rate", "theta_2", "eps"))
    if of_counts and name == "x":
        del values["int64"], values["csr"]
    if not optional:
        values |= NONE
    if name == "x" and function in COUNTS:
        values = {label: v for label, v in values.items() if label not in COUNTS[function]}
    if function in ("iwae_bound", "logsumexp") and name in ("a", "log_w"):
        del values["meta"]  # the only tensor: nothing else says which device is meant
    return values.items()


def arguments():
    for function in GOOD:
        for name in inspect.signature(getattr(vae_fast, function)).parameters:
            yield function, name


def assert_refused_in_one_line(name, call):
    with pytest.raises((ValueError, TypeError, IndexError)) as caught:
        call()
    message = str(caught.value)
    assert re.search(rf"(?<![\w.]){name}\b", message), message
    assert "\n" not in message, message
    assert len(message) < 400, message
    assert "Internal" not in message, message


def test_every_function_is_here():
    assert set(GOOD) == {n for n in vae_fast.functional.__all__ if inspect.isfunction(getattr(vae_fast, n))}


def test_the_good_arguments_are_good(backend):
    for function, good in GOOD.items():
        getattr(vae_fast, function)(**good)


@pytest.mark.parametrize(("function", "name"), arguments())
def test_functions_refuse(function, name, backend):
    good = dict(GOOD[function])
    if name == "probs":
        del good["logits"]
    if name == "eps" and function not in COUNTED:
        good["clip"] = "clamp"
    for label, value in hostile_values(function, name):
        with subtest(label):
            assert_refused_in_one_line(name, lambda v=value: getattr(vae_fast, function)(**good | {name: v}))


@pytest.mark.parametrize("function", ["elbo", "elbo_loss", "bernoulli_log_prob", "linear_bernoulli_log_prob"])
def test_eps_that_clips_nothing_has_to_be_a_number_too(function, backend):
    for label, value in ALL["real"].items():
        with subtest(label):
            assert_refused_in_one_line("eps", lambda v=value: getattr(vae_fast, function)(**GOOD[function], eps=v))


# --- training ---------------------------------------------------------------------------------------------------------

FUNCTION = {k: v for k, v in ODD.items() if k != "function"}
YES_NO = {k: v for k, v in ALL["flag"].items() if k != "None"}
FIT = {
    "model": ODD | NONE,
    "train": ALL["tensor"] | NONE,
    "valid": {k: v for k, v in ALL["tensor"].items() if k != "meta"},
    "checkpoint": {k: v for k, v in ODD.items() if k not in ("text", "lines")},
    "optimizer": ODD,
    "schedule": FUNCTION,
    "transform": FUNCTION,
    "callbacks": ODD | NONE,
    "config": {k: v for k, v in ODD.items() if k != "dict"},
    "distributed": ALL["name"] | NONE,
    "amp": ALL["name"],
    "checkpoint_every": ALL["int"],
    "max_grad_norm": ALL["real"],
    "progress": YES_NO,
    "keep_previous": YES_NO,
}
FIT |= {name: ALL["int"] | NONE for name in ("epochs", "batch_size", "seed", "accumulate")}
FIT |= {name: ALL["real"] | NONE for name in ("lr", "timeout")}
FIT |= {name: ALL["flag"] for name in ("drop_last", "resume", "resident", "shard", "capture", "check_data")}
FIT["seed"] = {k: v for k, v in FIT["seed"].items() if k != "2**63"}


#: The groups of settings, each by fit's argument for it.
GROUPS = {name: ODD for name in settings.GROUPS}


def test_every_argument_of_fit_is_here():
    own = set(inspect.signature(training.fit).parameters) - {"keywords"}
    assert set(FIT) == (own | set(training.Keywords.__annotations__)) - set(GROUPS)
    assert set(GROUPS) <= own


@pytest.mark.parametrize("name", FIT)
def test_fit_refuses(name):
    good = {"model": models.MLPVAE(2, 16, 4), "train": torch.rand(40, 16), "epochs": 1, "batch_size": 10, "progress": False}
    for label, value in FIT[name].items():
        with subtest(label):
            assert_refused_in_one_line(name, lambda v=value: training.fit(**good | {name: v}))


@pytest.mark.parametrize("name", GROUPS)
def test_fit_refuses_what_is_no_group(name):
    for label, value in GROUPS[name].items():
        with subtest(label):
            refused = lambda v=value: training.fit(models.MLPVAE(2, 16, 4), torch.rand(40, 16), **{name: v})  # noqa: E731
            assert_refused_in_one_line(name, refused)


@pytest.mark.parametrize(("group", "name"), [(g, n) for g, names in settings.FIELDS.items() for n in names])
def test_a_group_refuses_what_fit_does(group, name):
    """When it is made, but for the directories, sizes and weights that are to fit the run."""
    for label, value in FIT[name].items():
        with subtest(label):
            assert_refused_in_one_line(name, lambda v=value: settings.GROUPS[group](**{name: v}))


# --- the models' constructors -----------------------------------------------------------------------------------------

TENSOR_OR_NONE = {k: v for k, v in ALL["tensor"].items() if k != "meta"}
PRIOR_OF_MODEL = {k: v for k, v in ALL["tensor or real"].items() if k != "meta"}
SIZE = ALL["int"] | {"0": 0, "-1": -1}
SHAPE = {k: v for k, v in SIZE.items() if k != "list"} | {"list of float": [1.0], "pair with 0": (2, 0)}
GENERATOR = ALL["generator"]
MODULE = {k: v for k, v in ODD.items() if k != "function"} | {"int": 3} | NONE
FLAG = {k: v for k, v in ALL["flag"].items() if k not in ("0", "1")}
CONSTRUCTORS = {
    models.VAE: (
        {"encoder": nn.Linear(4, 4), "decoder": nn.Linear(2, 4), "clip": "clamp"},
        {"encoder": MODULE, "decoder": MODULE, "latent_dim": SHAPE, "likelihood": ALL["name"] | NONE, "clip": ALL["name"]}
        | {"eps": ALL["real"] | NONE, "beta": ALL["real"] | NONE, "free_bits": ALL["real"], "event_dim": SIZE | NONE}
        | {"prior_mu": PRIOR_OF_MODEL, "prior_logvar": PRIOR_OF_MODEL, "scale": ALL["tensor"]}
        | {"scale_bounds": ALL["bounds"], "recon_scale_bounds": ALL["bounds"], "num_samples": SIZE | NONE, "kl": ALL["name"]}
        | {name: {k: v for k, v in MODULE.items() if v is not None} for name in ("prior", "regularizer")},
    ),
    models.MLPVAE: (
        {"latent_dim": 2, "data_dim": 4, "hidden_dim": 3},
        {"latent_dim": SIZE | NONE, "data_dim": SIZE | NONE, "hidden_dim": SIZE | NONE, "beta": ALL["real"] | NONE, "generator": GENERATOR},
    ),
    models.VampPrior: (
        {"encoder": nn.Linear(4, 4), "n_pseudo": 3, "input_shape": 4},
        {"encoder": MODULE, "n_pseudo": SIZE | NONE, "input_shape": SHAPE | NONE, "latent_ndim": SIZE | NONE, "generator": GENERATOR}
        | {"bounds": {k: v for k, v in ODD.items() if k != "function"} | {"int": 3, "falling": (1.0, 0.0), "infinite": (0.0, float("inf"))}}
        | {"pseudo_inputs": TENSOR_OR_NONE, "factorized": FLAG},
    ),
    models.MixtureDensityNetwork: (
        {"trunk": nn.Identity(), "hidden_dim": 3, "n_components": 2},
        {"trunk": MODULE, "hidden_dim": SIZE | NONE, "n_components": SIZE | NONE, "target_dim": SIZE | NONE}
        | {"min_scale": ALL["real"] | NONE, "shared_scale": FLAG},
    ),
    models.MixtureDistribution: (
        {"weight_logits": f(3), "means": f(3, 2), "scale": f(3, 2)},
        {name: TENSOR_OR_NONE | NONE for name in ("weight_logits", "means", "scale")}
        | {"covariance_type": ALL["name"] | NONE}
        | {"validate_args": {k: v for k, v in FLAG.items() if v is not None}},
    ),
    models.MixtureOfGaussians: (
        {},
        {"n_components": SIZE | NONE, "covariance_type": ALL["name"] | NONE, "tol": ALL["real"] | NONE, "reg_covar": ALL["real"] | NONE}
        | {"max_iter": ALL["int"] | NONE, "n_init": SIZE | NONE, "init_params": ALL["name"] | NONE, "method": ALL["name"] | NONE}
        | {"random_state": ODD | {"float": 1.0, "True": True, "2**64": 2**64}, "warm_start": FLAG, "verbose": ODD | NUMBERS | NONE}
        | {"verbose_interval": SIZE | NONE, "lr": ALL["real"], "batch_size": SIZE, "reseed_dead": FLAG, "n_features": SIZE}
        | {"dtype": ALL["name"] | {"int64": torch.int64}, "device": ODD | NUMBERS, "n_iter_no_change": SIZE | NONE}
        | {"learning_decay": ALL["real"] | NONE, "learning_offset": ALL["real"] | NONE, "distributed": ALL["name"] | NONE},
    ),
    models.BayesianMixtureOfGaussians: (
        {},
        {"n_components": SIZE | NONE, "covariance_type": ALL["name"] | NONE, "tol": ALL["real"] | NONE, "reg_covar": ALL["real"] | NONE}
        | {"max_iter": ALL["int"] | NONE, "n_init": SIZE | NONE, "init_params": ALL["name"] | NONE, "warm_start": FLAG}
        | {"weight_concentration_prior_type": ALL["name"] | NONE, "weight_concentration_prior": ALL["real"]}
        | {"mean_precision_prior": ALL["real"], "degrees_of_freedom_prior": ALL["real"], "verbose": ODD | NUMBERS | NONE}
        | {"random_state": ODD | {"float": 1.0, "True": True, "2**64": 2**64}, "verbose_interval": SIZE | NONE, "batch_size": SIZE}
        | {"dtype": ALL["name"] | {"int64": torch.int64}, "device": ODD | NUMBERS, "distributed": ALL["name"] | NONE},
    ),
    models.DistributionPrior: (
        {"distribution": Independent(Normal(f(2), torch.ones(2)), 1)},
        {"distribution": ODD | NUMBERS | NONE | {"of a batch": Normal(f(2), torch.ones(2)), "of a number": Normal(0.0, 1.0)}},
    ),
}


#: What is looked at beside the samples, by a fit.
FITTED = {
    models.MixtureOfGaussians: {"weights_init", "means_init", "precisions_init"},
    models.BayesianMixtureOfGaussians: {"means_init", "mean_prior", "covariance_prior"},
}


def test_every_model_is_here():
    found = {getattr(models, n) for n in models.__all__ if not issubclass(getattr(models, n), Exception | tuple)}
    assert found == set(CONSTRUCTORS)
    for model, (_, hostile) in CONSTRUCTORS.items():
        assert set(hostile) | FITTED.get(model, set()) == set(inspect.signature(model).parameters), model


@pytest.mark.parametrize(("model", "name"), [(m, n) for m, (_, hostile) in CONSTRUCTORS.items() for n in hostile], ids=str)
def test_models_refuse(model, name):
    good, hostile = CONSTRUCTORS[model]
    for label, value in hostile[name].items():
        with subtest(label):
            assert_refused_in_one_line(name, lambda v=value: model(**good | {name: v}))


@pytest.mark.parametrize(("model", "name"), [(m, n) for m, names in FITTED.items() for n in sorted(names)], ids=str)
def test_a_fit_refuses_an_explicit_start(model, name):
    for label, value in (ODD | BOOLS | {"float": 0.5, "nan": [float("nan")]}).items():
        with subtest(label):
            mixture = model(2, **{name: value})
            assert_refused_in_one_line(name, lambda m=mixture: m.fit(np.random.default_rng(0).normal(size=(20, 3))))
