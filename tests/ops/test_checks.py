"""Values that are looked at on request: by vae_fast.checks() around a call, or by check_data=True in it."""

import inspect
import threading

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_refused
from test_hostile_arguments import GOOD

import vae_fast
from vae_fast import checks
from vae_fast.functional import _values

NAN, INF = float("nan"), float("inf")


def with_one(t, value, place):
    t = t.clone()
    t[place] = value
    return t


def refused(function, words, **arguments):
    """The same call is refused inside checks(), and by check_data=True where the function has it; and computes otherwise."""
    f = getattr(vae_fast, function)
    f(**arguments)

    def inside():
        with checks():
            f(**arguments)

    message = assert_refused(inside, ValueError, words)
    if "check_data" in inspect.signature(f).parameters:
        assert assert_refused(lambda: f(**arguments, check_data=True), ValueError, words) == message
        with checks(False):
            assert_refused(lambda: f(**arguments, check_data=True), ValueError, words)
    return message


UNIT, FINITE, POSITIVE, WEIGHTS = "expected values in [0, 1]", "expected finite numbers", "expected positive finite", "of at least 0"
COUNTED = ("poisson", "negative_binomial", "zero_inflated_negative_binomial", "negative_binomial_mixture")
#: What each tensor argument is asked to be; everything else is asked to be finite.
ASKED = {
    ("bernoulli_log_prob", "x"): UNIT,
    ("discretized_logistic_log_prob", "x"): UNIT,
    ("discretized_logistic_mixture_log_prob", "x"): UNIT,
    ("elbo", "x"): UNIT,
    ("elbo_loss", "x"): UNIT,
    ("iwae_loss", "x"): UNIT,
    ("linear_bernoulli_log_prob", "x"): UNIT,
    **{(f"{name}_log_prob", "x"): "expected non-negative integers" for name in COUNTED},
    **{(f"{name}_log_prob", theta): POSITIVE for name in COUNTED for theta in ("theta", "theta_1", "theta_2")},
    ("continuous_bernoulli_log_prob", "x"): UNIT,
    ("log_normal_log_prob", "x"): POSITIVE,
    ("student_t_log_prob", "df"): POSITIVE,
}


def tensors():
    for function, good in GOOD.items():
        for name in inspect.signature(getattr(vae_fast, function)).parameters:
            if isinstance(good.get(name), torch.Tensor) and good[name].is_floating_point():  # no index is NaN
                yield function, name


@pytest.mark.parametrize(("function", "name"), tensors())
def test_a_nan_in_any_argument_is_named(function, name, backend):
    good = GOOD[function]
    place = tuple(n - 1 for n in good[name].shape)
    bad = with_one(good[name], NAN, place)
    words = [f"{name}[{', '.join(map(str, place))}] = nan", ASKED.get((function, name), FINITE)]
    refused(function, words, **good | {name: bad})


@pytest.mark.parametrize("function", GOOD)
def test_good_values_pass_and_give_the_same(function, backend):
    if function.startswith("reparameterize"):
        GOOD[function].setdefault("noise", torch.zeros(3, 4))
    want = getattr(vae_fast, function)(**GOOD[function])
    with checks():
        got = getattr(vae_fast, function)(**GOOD[function])
    torch.testing.assert_close(got, want, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("value", [255.0, -1.0, 1.0000001, -1e-30, NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_targets_as_binary_cross_entropy_has_them(value, dtype, backend):
    x = torch.full((5, 20), 0.5, dtype=dtype)
    x[3, 17] = value
    p = torch.full((5, 20), 0.5, dtype=dtype)
    if x[3, 17] in (0.0, 1.0):  # in this dtype it is in the range
        assert vae_fast.bernoulli_log_prob(x, p, check_data=True).shape == (5,)
        return
    with pytest.raises(RuntimeError, match="all elements of target should be between 0 and 1"):
        F.binary_cross_entropy(p.float(), x.float())
    for function, arguments in (
        ("bernoulli_log_prob", {"x": x, "logits": p}),
        ("bernoulli_log_prob", {"x": x, "probs": p, "clip": "bce"}),
        ("elbo_loss", {"x": x, "recon": p, "mu": p, "logvar": p, "likelihood": "bernoulli_probs", "clip": "bce"}),
        ("elbo_loss", {"x": x, "recon": p, "mu": p, "logvar": p, "reduction": "none"}),
    ):
        refused(function, ["x[3, 17] = ", UNIT, "1 of 100 is not"], **arguments)


def test_the_message_of_grey_values(backend):
    x = torch.zeros(4, 784)
    x[3, 17:] = 255.0
    message = refused("bernoulli_log_prob", ["x[3, 17] = 255.0", UNIT, "767 of 3,136 are not"], x=x, logits=torch.zeros(4, 784))
    assert message.endswith("; give bytes as torch.uint8, read as x / 255")


def test_bytes_and_bools_are_in_range(backend):
    logits = torch.zeros(2, 3)
    with checks():
        vae_fast.bernoulli_log_prob(torch.full((2, 3), 255, dtype=torch.uint8), logits)
        vae_fast.bernoulli_log_prob(torch.ones(2, 3, dtype=torch.bool), logits)


A = torch.full((3, 4), 0.5)
RANGES = {
    "probs above": ("bernoulli_log_prob", {"x": A, "probs": with_one(A, 1.5, (0, 1))}, ["probs[0, 1] = 1.5", UNIT]),
    "probs below, clipped": (
        "bernoulli_log_prob",
        {"x": A, "probs": with_one(A, -0.5, (2, 0)), "clip": "clamp"},
        ["probs[2, 0] = -0.5", UNIT],
    ),
    "probs of an elbo": (
        "elbo",
        {"x": A, "recon": with_one(A, 1.5, (0, 1)), "mu": A, "logvar": A, "likelihood": "bernoulli_probs"},
        ["recon[0, 1] = 1.5", UNIT],
    ),
    "mean of a pair": (
        "elbo_loss",
        {"x": A, "recon": (with_one(A, INF, (1, 1)), A), "mu": A, "logvar": A, "likelihood": "gaussian"},
        ["recon[0][1, 1] = inf", FINITE],
    ),
    "logvar of a pair": (
        "iwae_loss",
        {"x": A, "recon": (A[None], with_one(A, NAN, (2, 3))[None]), "z": A[None], "mu": A, "logvar": A, "likelihood": "gaussian"},
        ["recon[1][0, 2, 3] = nan", FINITE],
    ),
    "prior": ("elbo", {"x": A, "recon": A, "mu": A, "logvar": A, "prior_logvar": torch.tensor(INF)}, ["prior_logvar = inf", FINITE]),
    "std zero": ("gaussian_kl", {"mu": A, "logvar": with_one(A, 0.0, (1, 2)), "scale": "std"}, ["logvar[1, 2] = 0.0", POSITIVE]),
    "var negative": (
        "gaussian_log_prob",
        {"x": A, "mu": A, "logvar": with_one(A, -1.0, (1, 2)), "scale": "var"},
        ["logvar[1, 2]", POSITIVE],
    ),
    "scale of a Laplace": (
        "laplace_log_prob",
        {"x": A, "loc": A, "log_scale": with_one(A, 0.0, (1, 2)), "scale": "std"},
        ["log_scale[1, 2] = 0.0", POSITIVE],
    ),
    "mean of a count": (
        "negative_binomial_log_prob",
        {"x": torch.ones(3, 4), "mu": with_one(A, -1.0, (1, 2)), "theta": A},
        ["mu[1, 2] = -1.0", "finite numbers of at least 0"],
    ),
    "count of an elbo": (
        "elbo_loss",
        {"x": A, "recon": A, "mu": A, "logvar": A, "likelihood": "poisson"},
        ["x[0, 0] = 0.5", "non-negative integers"],
    ),
    "a log-normal x of zero": (
        "log_normal_log_prob",
        {"x": with_one(A, 0.0, (2, 1)), "loc": A, "log_scale": A},
        ["x[2, 1] = 0.0", POSITIVE],
    ),
    "a log-normal byte of zero": (
        "log_normal_log_prob",
        {"x": with_one(A, 0.0, (2, 1)).bool().byte(), "loc": A, "log_scale": A},
        ["x[2, 1] = 0", POSITIVE],
    ),
    "no degrees of freedom": (
        "elbo",
        {"x": A, "recon": (with_one(A, 0.0, (2, 1)), A, A), "mu": A, "logvar": A, "likelihood": "student_t"},
        ["recon[0][2, 1] = 0.0", POSITIVE],
    ),
    "std of a sample": (
        "reparameterize",
        {"mu": A, "logvar": with_one(A, -1.0, (0, 0)), "scale": "std"},
        ["logvar[0, 0] = -1.0", POSITIVE],
    ),
    "prior std": (
        "reparameterize_with_kl",
        {"mu": A, "logvar": A, "prior_mu": A, "prior_logvar": with_one(A, -2.0, (0, 3)), "scale": "std"},
        ["prior_logvar[0, 3] = -2.0", POSITIVE],
    ),
    "noise": ("reparameterize", {"mu": A, "logvar": A, "noise": with_one(A, INF, (0, 3))}, ["noise[0, 3] = inf", FINITE]),
    "weights": ("logsumexp", {"a": A, "weights": with_one(A, -0.25, (2, 2))}, ["weights[2, 2] = -0.25", WEIGHTS]),
    "a": ("logsumexp", {"a": with_one(A, INF, (2, 2))}, ["a[2, 2] = inf", FINITE]),
    "sample_weight": (
        "mixture_statistics",
        {**GOOD["mixture_statistics"], "sample_weight": torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0])},
        ["sample_weight[2] = -1.0", WEIGHTS],
    ),
    "responsibilities": (
        "mixture_statistics",
        {**GOOD["mixture_statistics"], "responsibilities": with_one(torch.ones(5, 3), -1.0, (4, 1))},
        ["responsibilities[4, 1] = -1.0", WEIGHTS],
    ),
}


@pytest.mark.parametrize("name", RANGES)
def test_ranges(name, backend):
    function, arguments, words = RANGES[name]
    refused(function, words, **arguments)


def test_minus_infinity_is_a_weight_of_zero(backend):
    with checks():
        vae_fast.logsumexp(with_one(A, -INF, (0, 0)))
        vae_fast.mixture_log_prob(**GOOD["mixture_log_prob"] | {"weight_logits": torch.tensor([0.0, -INF, 0.0])})


def test_nothing_is_looked_at_unless_asked(backend):
    assert vae_fast.bernoulli_log_prob(torch.full((1, 2), 255.0), torch.ones(1, 2)).isfinite().all()


def test_it_nests_and_ends_with_an_error(backend):
    bad = torch.full((1, 2), 2.0)

    def passes():
        try:
            vae_fast.bernoulli_log_prob(bad, bad)
        except ValueError:
            return False
        return True

    assert passes()
    with checks():
        assert not passes()
        with checks(False):
            assert passes()
            with checks():
                assert not passes()
            assert passes()
        assert not passes()
    assert passes()
    with pytest.raises(KeyError), checks():
        raise KeyError
    assert passes()

    @checks()
    def decorated(depth):
        return [passes(), *(decorated(depth - 1) if depth else [])]

    assert decorated(2) == [False] * 3
    assert passes()
    one = checks()
    with one, one:
        assert not passes()
    assert passes()


def test_it_is_the_threads_own():
    seen = []
    with checks():
        thread = threading.Thread(target=lambda: seen.append(_values.wanted()))
        thread.start()
        thread.join()
    assert seen == [False]


@pytest.mark.parametrize("value", [1, None, "yes", print])
def test_enabled_is_a_bool(value):
    assert_refused(lambda: checks(value), TypeError, ["enabled", "expected a bool", "@vae_fast.checks()"])


def test_broadcast_empty_and_scalar_tensors(backend):
    with checks():
        vae_fast.bernoulli_log_prob(torch.zeros(0, 4), torch.zeros(0, 4))
        vae_fast.gaussian_kl(torch.zeros(1, 4).expand(3, 4), torch.zeros(()))
    assert_refused(
        lambda: vae_fast.bernoulli_log_prob(torch.full((1, 4), 3.0).expand(3, 4), A, check_data=True),
        ValueError,
        ["x[0, 0] = 3.0", "12 of 12"],
    )


def test_gradients_flow_as_before(backend):
    logits = torch.zeros(3, 4, requires_grad=True)
    with checks():
        vae_fast.elbo_loss(A, logits, A, A).backward()
    want = torch.zeros(3, 4, requires_grad=True)
    vae_fast.elbo_loss(A, want, A, A).backward()
    assert torch.equal(logits.grad, want.grad)


def test_under_transforms_the_values_behind_are_checked(backend):
    bad = with_one(A, 2.0, (1, 1))
    for transform in (
        lambda f: torch.func.vmap(f)(bad),
        lambda f: torch.func.grad(lambda x: f(x).sum())(bad),
        lambda f: torch.func.vmap(torch.func.grad(lambda x: f(x).sum()))(bad),
        lambda f: torch.func.jvp(f, (bad,), (A,)),
    ):
        with checks(), pytest.raises(ValueError, match=r"x.*= 2\.0: expected values in"):
            transform(lambda x: vae_fast.bernoulli_log_prob(x, torch.zeros(4)))


def loss(x, logits):
    return vae_fast.elbo_loss(x, logits, logits, logits)


def test_compiled_calls_break_the_graph_only_when_asked(backend):
    bad = with_one(A, 255.0, (1, 1))
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    quiet = compiled(bad, A)
    with checks(), pytest.raises(torch._dynamo.exc.Unsupported, match=r"vae_fast\.checks\(\) and check_data=True look at values"):
        compiled(bad, A)
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="eager")
    assert torch.equal(compiled(bad, A), quiet)
    with checks():
        with pytest.raises(ValueError, match=r"x\[1, 1\] = 255\.0"):
            compiled(bad, A)
        torch.testing.assert_close(compiled(A, A), loss(A, A))
        with checks(False):
            assert torch.equal(compiled(bad, A), quiet)
    assert torch.equal(compiled(bad, A), quiet)


def test_inside_a_compiled_function(backend):
    def step(x, logits):
        with checks():
            return vae_fast.bernoulli_log_prob(x, logits)

    torch._dynamo.reset()
    with pytest.raises(ValueError, match=r"x\[1, 1\] = 255\.0"):
        torch.compile(step, backend="eager")(with_one(A, 255.0, (1, 1)), A)
    assert not _values.wanted()


def test_a_traced_graph_that_would_check_nothing_is_refused():
    from torch.fx.experimental.proxy_tensor import make_fx

    def checked(x, logits):
        return vae_fast.bernoulli_log_prob(x, logits, check_data=True)

    class Module(torch.nn.Module):
        def forward(self, x, logits):
            return checked(x, logits)

    for trace in (
        lambda: make_fx(checked)(A, A),
        lambda: make_fx(checked, tracing_mode="fake")(A, A),
        lambda: torch.jit.trace(checked, (A, A)),
        lambda: torch.export.export(Module(), (A, A), strict=False),
    ):
        with pytest.raises(ValueError, match="x: its values cannot be checked while a graph is traced"):
            trace()


def test_meta_tensors_have_no_values():
    x = torch.zeros(3, 4, device="meta")
    assert vae_fast.bernoulli_log_prob(x, x, check_data=True).shape == (3,)
