"""Bad arguments of the mixture functions: an error that names the argument, what came and what was expected."""

import math

import pytest
import torch
from mixtures import problem
from oracle import assert_refused, needs_kernels

from vae_fast import mdn_log_prob, mixture_log_prob, mixture_responsibilities, mixture_statistics


def f(*shape, dtype=torch.float32, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


# N = 5, K = 3, D = 2
X, W, M, S = f(5, 2), f(3), f(3, 2), f(3, 2)
META, LONG, BYTES, SPARSE = f(5, 2, device="meta"), f(5, 2).long(), f(5, 2, dtype=torch.uint8), f(5, 2).to_sparse()
FLOATS = "expected one of bfloat16, float16, float32, float64"
ONE_DEVICE = "expected one device"
KINDS = "'diag', 'spherical', 'tied', 'full'"
LOG_STDS, FACTORS = "log standard deviations", "precision Cholesky factors"
Y, WN, MN, SN = f(5, 2), f(5, 3), f(5, 3, 2), f(5, 3, 2)


def shaped(scale, covariance_type):
    return lambda: mixture_log_prob(X, W, M, scale, covariance_type=covariance_type)


# name: (call, exception, everything its message must hold)
BAD = {
    # not tensors, and tensors of the wrong kind
    "x list": (lambda: mixture_log_prob([0.0], W, M, S), TypeError, ["x", "expected a torch.Tensor, got list"]),
    "weight_logits None": (lambda: mixture_log_prob(X, None, M, S), TypeError, ["weight_logits", "got NoneType"]),
    "means list": (lambda: mixture_responsibilities(X, W, [[0.0]], S), TypeError, ["means", "got list"]),
    "scale number": (lambda: mixture_statistics(X, W, M, 1.0), TypeError, ["scale", "got float"]),
    "x int64": (lambda: mixture_log_prob(LONG, W, M, S), TypeError, ["x has dtype int64", FLOATS]),
    "x bytes": (lambda: mixture_responsibilities(BYTES, W, M, S), TypeError, ["x has dtype uint8", FLOATS]),
    "weight_logits bool": (lambda: mixture_log_prob(X, W.bool(), M, S), TypeError, ["weight_logits has dtype bool", FLOATS]),
    "means complex": (lambda: mixture_statistics(X, W, M.cfloat(), S), TypeError, ["means has dtype complex64", FLOATS]),
    "scale int32": (lambda: mixture_log_prob(X, W, M, S.int()), TypeError, ["scale has dtype int32", FLOATS]),
    "x sparse": (lambda: mixture_log_prob(SPARSE, W, M, S), TypeError, ["x has layout torch.sparse_coo", "strided"]),
    "responsibilities list": (lambda: mixture_statistics(X, W, M, S, responsibilities=[1]), TypeError, ["responsibilities", "got list"]),
    "responsibilities int64": (
        lambda: mixture_statistics(X, W, M, S, responsibilities=f(5, 3).long()),
        TypeError,
        ["responsibilities has dtype int64", FLOATS],
    ),
    "sample_weight number": (lambda: mixture_statistics(X, W, M, S, sample_weight=2.0), TypeError, ["sample_weight", "got float"]),
    "sample_weight bool": (
        lambda: mixture_statistics(X, W, M, S, sample_weight=f(5).bool()),
        TypeError,
        ["sample_weight has dtype bool", FLOATS],
    ),
    # devices
    "x device": (lambda: mixture_log_prob(META, W, M, S), ValueError, ["weight_logits is on cpu", "x is on meta", ONE_DEVICE]),
    "scale device": (lambda: mixture_responsibilities(X, W, M, S.to("meta")), ValueError, ["scale is on meta", "x is on cpu", ONE_DEVICE]),
    "sample_weight device": (
        lambda: mixture_statistics(X, W, M, S, sample_weight=f(5, device="meta")),
        ValueError,
        ["sample_weight is on meta", "x is on cpu", ONE_DEVICE],
    ),
    "responsibilities device": (
        lambda: mixture_statistics(X, W, M, S, responsibilities=f(5, 3, device="meta")),
        ValueError,
        ["responsibilities is on meta", ONE_DEVICE],
    ),
    # shapes
    "means vector": (lambda: mixture_log_prob(X, W, f(3), S), ValueError, ["means has shape (3,)", "expected (K, D)"]),
    "means batched": (lambda: mixture_log_prob(X, W, f(1, 3, 2), S), ValueError, ["means has shape (1, 3, 2)", "expected (K, D)"]),
    "no components": (lambda: mixture_log_prob(X, f(0), f(0, 2), f(0, 2)), ValueError, ["means has shape (0, 2)", "K and D of at least 1"]),
    "no dimensions": (lambda: mixture_log_prob(f(5, 0), W, f(3, 0), f(3, 0)), ValueError, ["means has shape (3, 0)", "of at least 1"]),
    "weight_logits long": (lambda: mixture_log_prob(X, f(4), M, S), ValueError, ["weight_logits has shape (4,)", "expected (3,)"]),
    "weight_logits column": (lambda: mixture_log_prob(X, f(3, 1), M, S), ValueError, ["weight_logits has shape (3, 1)", "expected (3,)"]),
    "weight_logits scalar": (lambda: mixture_log_prob(X, f(), M, S), ValueError, ["weight_logits has shape ()", "one per row of means"]),
    "scale diag": (shaped(f(3), "diag"), ValueError, ["scale has shape (3,)", "expected (3, 2)", LOG_STDS, "covariance_type='diag'"]),
    "scale diag wide": (shaped(f(3, 1), "diag"), ValueError, ["scale has shape (3, 1)", "expected (3, 2)", LOG_STDS]),
    "scale spherical": (shaped(S, "spherical"), ValueError, ["scale has shape (3, 2)", "expected (3,)", LOG_STDS, "'spherical'"]),
    "scale tied": (shaped(f(3, 2, 2), "tied"), ValueError, ["scale has shape (3, 2, 2)", "expected (2, 2)", FACTORS, "'tied'"]),
    "scale full": (shaped(f(2, 2), "full"), ValueError, ["scale has shape (2, 2)", "expected (3, 2, 2)", FACTORS, "'full'"]),
    "x columns": (lambda: mixture_log_prob(f(5, 3), W, M, S), ValueError, ["x has shape (5, 3)", "expected (..., 2)", "means"]),
    "x never broadcasts": (lambda: mixture_responsibilities(f(5, 1), W, M, S), ValueError, ["x has shape (5, 1)", "expected (..., 2)"]),
    "x scalar": (lambda: mixture_statistics(f(), W, M, S), ValueError, ["x has shape ()", "expected (..., 2)"]),
    "responsibilities shape": (
        lambda: mixture_statistics(X, W, M, S, responsibilities=f(5, 2)),
        ValueError,
        ["responsibilities has shape (5, 2)", "expected (5, 3)"],
    ),
    "responsibilities never broadcast": (
        lambda: mixture_statistics(X, W, M, S, responsibilities=f(1, 3)),
        ValueError,
        ["responsibilities has shape (1, 3)", "expected (5, 3)"],
    ),
    "sample_weight shape": (
        lambda: mixture_statistics(X, W, M, S, sample_weight=f(5, 1)),
        ValueError,
        ["sample_weight has shape (5, 1)", "expected (5,)"],
    ),
    # names
    "covariance_type": (shaped(S, "diagonal"), ValueError, ["covariance_type='diagonal'", KINDS]),
    "covariance_type None": (
        lambda: mixture_responsibilities(X, W, M, S, covariance_type=None),
        ValueError,
        ["covariance_type=None", KINDS],
    ),
    "covariance_type of sums": (lambda: mixture_statistics(X, W, M, S, covariance_type=""), ValueError, ["covariance_type=''", KINDS]),
    # precision
    "precision": (lambda: mixture_log_prob(X, W, M, S, precision="tf32"), ValueError, ["precision='tf32'", "'float32', 'tf32x3'"]),
    "precision None": (lambda: mixture_responsibilities(X, W, M, S, precision=None), ValueError, ["precision=None", "'float32'"]),
    "precision of float64": (
        lambda: mixture_log_prob(X, W, M.double(), S, precision="tf32x3"),
        ValueError,
        ["means has dtype float64", "expected float32 or narrower", "precision='tf32x3'"],
    ),
    "precision of full": (
        lambda: mixture_statistics(X, W, M, f(3, 2, 2), covariance_type="full", precision="tf32x3"),
        ValueError,
        ["covariance_type='full'", "expected 'diag' or 'spherical'", "precision='tf32x3'"],
    ),
    "precision of tied": (
        lambda: mixture_log_prob(X, W, M, f(2, 2), covariance_type="tied", precision="tf32x3"),
        ValueError,
        ["covariance_type='tied'", "expected 'diag' or 'spherical'"],
    ),
    # mixture density networks
    "mdn y list": (lambda: mdn_log_prob([0.0], WN, MN, SN), TypeError, ["y", "got list"]),
    "mdn logits None": (lambda: mdn_log_prob(Y, None, MN, SN), TypeError, ["weight_logits", "got NoneType"]),
    "mdn y int64": (lambda: mdn_log_prob(Y.long(), WN, MN, SN), TypeError, ["y has dtype int64", FLOATS]),
    "mdn means bytes": (lambda: mdn_log_prob(Y, WN, MN.byte(), SN), TypeError, ["means has dtype uint8", FLOATS]),
    "mdn scale bool": (lambda: mdn_log_prob(Y, WN, MN, SN.bool()), TypeError, ["log_scale has dtype bool", FLOATS]),
    "mdn device": (lambda: mdn_log_prob(Y, WN, MN, SN.to("meta")), ValueError, ["log_scale is on meta", "y is on cpu", ONE_DEVICE]),
    "mdn means vector": (lambda: mdn_log_prob(Y, WN, f(3), f(3)), ValueError, ["means has shape (3,)", "expected (..., K, D)"]),
    "mdn no components": (
        lambda: mdn_log_prob(Y, f(5, 0), f(5, 0, 2), f(5, 0, 2)),
        ValueError,
        ["means has shape (5, 0, 2)", "at least 1"],
    ),
    "mdn no dimensions": (lambda: mdn_log_prob(f(5, 0), WN, f(5, 3, 0), WN), ValueError, ["means has shape (5, 3, 0)", "at least 1"]),
    "mdn y columns": (lambda: mdn_log_prob(f(5, 3), WN, MN, SN), ValueError, ["y has shape (5, 3)", "expected (..., 2)", "means"]),
    "mdn y vector of scalars": (lambda: mdn_log_prob(f(5), WN, f(5, 3, 1), WN), ValueError, ["y has shape (5,)", "expected (..., 1)"]),
    "mdn y scalar": (lambda: mdn_log_prob(f(), WN, f(5, 3, 1), WN), ValueError, ["y has shape ()", "expected (..., 1)"]),
    "mdn logits": (lambda: mdn_log_prob(Y, f(5, 4), MN, SN), ValueError, ["weight_logits has shape (5, 4)", "expected (..., 3)"]),
    "mdn logits scalar": (lambda: mdn_log_prob(Y, f(), MN, SN), ValueError, ["weight_logits has shape ()", "expected (..., 3)"]),
    "mdn scale": (
        lambda: mdn_log_prob(Y, WN, MN, f(5, 3, 1)),
        ValueError,
        ["log_scale has shape (5, 3, 1)", "expected (..., 3, 2) or (..., 3)", "means", "(5, 3, 2)"],
    ),
    "mdn shared scale": (lambda: mdn_log_prob(Y, WN, MN, f(5, 2)), ValueError, ["log_scale has shape (5, 2)", "or (..., 3)"]),
    "mdn scale too flat": (lambda: mdn_log_prob(Y, WN, MN, f(3)), ValueError, ["log_scale has shape (3,)", "batch dimensions of means"]),
    "mdn batch": (
        lambda: mdn_log_prob(Y, f(4, 3), MN, SN),
        ValueError,
        ["batch dimensions", "weight_logits has shape (4,)", "y has shape (5,)", "broadcast"],
    ),
    "mdn batch of scales": (lambda: mdn_log_prob(Y, WN, MN, f(4, 3, 2)), ValueError, ["log_scale has shape (4,)", "broadcast"]),
    "mdn min_scale negative": (lambda: mdn_log_prob(Y, WN, MN, SN, min_scale=-0.1), ValueError, ["min_scale=-0.1", "[0,"]),
    "mdn min_scale inf": (lambda: mdn_log_prob(Y, WN, MN, SN, min_scale=math.inf), ValueError, ["min_scale=inf", "finite"]),
    "mdn min_scale nan": (lambda: mdn_log_prob(Y, WN, MN, SN, min_scale=math.nan), ValueError, ["min_scale=nan", "finite"]),
    "mdn min_scale text": (lambda: mdn_log_prob(Y, WN, MN, SN, min_scale="0"), TypeError, ["min_scale='0'", "got str"]),
    "mdn min_scale tensor": (lambda: mdn_log_prob(Y, WN, MN, SN, min_scale=f()), TypeError, ["min_scale", "Python number", "got Tensor"]),
    "mdn min_scale None": (lambda: mdn_log_prob(Y, WN, MN, SN, min_scale=None), TypeError, ["min_scale=None", "got NoneType"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name, backend):
    assert_refused(*BAD[name])


@pytest.mark.parametrize("name", BAD)
def test_backends_refuse_with_the_same_words(name, plain_torch):
    assert assert_refused(*BAD[name]) == plain_torch(assert_refused, *BAD[name])


def test_options_are_keyword_only():
    for call in (
        lambda: mixture_log_prob(X, W, M, S, "diag"),
        lambda: mixture_responsibilities(X, W, M, S, "diag"),
        lambda: mixture_statistics(X, W, M, S, "diag"),
        lambda: mdn_log_prob(Y, WN, MN, SN, 0.1),
    ):
        with pytest.raises(TypeError, match="positional argument"):
            call()


@needs_kernels
def test_ops_called_directly_check_too():
    """torch.ops.vae_fast has callers that skipped the Python checks: shapes that do not fit must not be read past their ends."""
    ops = torch.ops.vae_fast
    good = problem(5, 3, 2, dtype=torch.float32)
    for i, bad in ((0, f(5, 3)), (1, f(4)), (2, f(3, 3)), (2, f(3)), (2, f(0, 2)), (3, f(4, 2)), (3, f(2, 2)), (3, f(3, 2, 2))):
        args = [bad if j == i else t for j, t in enumerate(good)]
        for call in (
            lambda a=args: ops.mixture(*a, "diag"),
            lambda a=args: ops.mixture_responsibilities(*a, "diag"),
            lambda a=args: ops.mixture_statistics(*a, None, None, "diag"),
        ):
            with pytest.raises((ValueError, RuntimeError)):
                call()
    with pytest.raises(ValueError, match="diagonal"):
        ops.mixture(*good, "diagonal")
    with pytest.raises((ValueError, RuntimeError)):
        ops.mixture_statistics(*good, f(5, 2), None, "diag")
    with pytest.raises((ValueError, RuntimeError)):
        ops.mixture_statistics(*good, None, f(4), "diag")
    with pytest.raises((TypeError, RuntimeError)):
        ops.mixture(good[0].long(), *good[1:], "diag")
    head = [f(5, 2), f(5, 3), f(5, 3, 2), f(5, 3, 2)]
    for i, bad in ((0, f(5, 3)), (1, f(5, 4)), (1, f(4, 3)), (2, f(5, 2, 2)), (2, f(3)), (3, f(5, 3, 3)), (3, f(5, 4)), (3, f(2))):
        with pytest.raises((ValueError, RuntimeError)):
            ops.mdn(*(bad if j == i else t for j, t in enumerate(head)), -math.inf)
