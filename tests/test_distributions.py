"""vae_fast.distributions against torch's own: every class times every property of the class pattern, as torch's tests have it."""

import math

import pytest
import torch
import torch.distributions as T
from distribution_cases import CASES, every, message_of, mixture, needs_kernels, pair
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from vae_fast import distributions as D
from vae_fast.bench.measure import Work, peak_memory

# --- the properties of the class pattern ------------------------------------------------------------------------------


@every
def test_properties_are_those_of_torch(case):
    ours, torchs, *_ = pair(case)
    assert isinstance(ours, type(torchs))
    assert type(ours).__module__.startswith("vae_fast.distributions")
    assert getattr(D, type(ours).__name__) is type(ours)
    for name in ("batch_shape", "event_shape", "has_rsample", "has_enumerate_support"):
        assert getattr(ours, name) == getattr(torchs, name), name
    assert torchs.arg_constraints.items() <= ours.arg_constraints.items()
    assert repr(ours.support) == repr(torchs.support)
    if "mu" not in case.parameters:
        assert ours.arg_constraints.keys() - torchs.arg_constraints.keys() <= {"mu", "theta"}
        assert repr(ours) == repr(torchs)
    for name in ("mean", "variance", "stddev", "mode"):
        try:
            wanted = getattr(torchs, name)
        except NotImplementedError:
            with pytest.raises(NotImplementedError):
                getattr(ours, name)
        else:
            torch.testing.assert_close(getattr(ours, name), wanted, equal_nan=True)


@every
@pytest.mark.parametrize("method", ["cdf", "icdf", "entropy", "perplexity", "enumerate_support"])
def test_methods_that_are_inherited_answer_as_torchs(case, method):
    ours, torchs, *_ = pair(case)
    given = [torch.rand(ours.batch_shape + ours.event_shape).double()] if method in ("cdf", "icdf") else []
    try:
        wanted = getattr(torchs, method)(*given)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        assert message_of(lambda: getattr(ours, method)(*given)) == (type(error), str(error))
    else:
        torch.testing.assert_close(getattr(ours, method)(*given), wanted)


@every
@pytest.mark.parametrize("shape", [(2,), (3, 1), (0,)])
def test_expand(case, shape):
    ours, torchs, *_ = pair(case)
    more, wanted = (d.expand(torch.Size(shape) + d.batch_shape) for d in (ours, torchs))
    assert type(more) is type(ours)
    assert (more.batch_shape, more.event_shape) == (wanted.batch_shape, wanted.event_shape)
    value = case.value().double()
    out = more.log_prob(value)
    assert out.shape == wanted.batch_shape
    if 0 not in shape:  # of nothing, torch's sum over an event fails
        torch.testing.assert_close(out, wanted.log_prob(value))
    again = more.expand(torch.Size((2,)) + more.batch_shape)
    assert again.log_prob(value).shape == again.batch_shape
    assert more.sample((2,)).shape == wanted.sample((2,)).shape


@every
@pytest.mark.parametrize("lead", [(), (1,), (6,), (2, 3)])
def test_log_prob_and_gradients_are_those_of_torch_in_float64(case, lead, backend):
    ours, torchs, mine, theirs = pair(case, grad=True)
    value = torch.stack([case.value() for _ in range(math.prod(lead))]).double() if lead else case.value().double()
    value = value.reshape(lead + case.value().shape).requires_grad_(not case.counts)
    copied = value.detach().clone().requires_grad_(not case.counts)
    out, wanted = ours.log_prob(value), torchs.log_prob(copied)
    assert out.shape == wanted.shape
    torch.testing.assert_close(out, wanted, rtol=1e-9, atol=1e-9)
    upstream = torch.randn_like(wanted)
    out.backward(upstream)
    wanted.backward(upstream)
    if not case.counts:
        torch.testing.assert_close(value.grad, copied.grad, rtol=1e-8, atol=1e-8)
    for name in mine:
        torch.testing.assert_close(mine[name].grad, theirs[name].grad, rtol=1e-8, atol=1e-8)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_dtypes_against_float64(case, dtype, backend):
    """The result is float32, and no further from the truth than its rounding."""
    parameters, value = case.drawn(dtype), case.value().to(dtype)
    wide = case.make(T, **{name: t.double() for name, t in parameters.items()})
    out = case.make(D, **parameters).log_prob(value)
    if case.row:
        assert out.dtype == torch.float32
    tolerance = 1e-5 if case.row or dtype == torch.float32 else 0.1
    torch.testing.assert_close(out.double(), wide.log_prob(value.double()), rtol=tolerance, atol=tolerance)


@every
def test_log_prob_is_one_kernel(case, backend):
    """No element-wise pass and then a sum: the only other ops are views, and the logarithm of a mixture's small scales."""
    if backend == "reference":
        return
    called = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(function.name())
            return function(*args, **(kwargs or {}))

    d, value = case.make(D, **case.drawn(torch.float32), validate_args=False), torch.stack([case.value()] * 5)
    with Seen():
        d.log_prob(value)
    kernels = [name for name in called if name.startswith("vae_fast::")]
    passes = [name for name in called if name.startswith("aten::") and not name.startswith(("aten::view", "aten::_unsafe", "aten::expand"))]
    if case.row:
        assert len(kernels) == 1
        assert not {name for name in passes if name.split(".")[0] in ("aten::sum", "aten::add", "aten::logsumexp", "aten::_log_softmax")}
    else:
        assert any(name.startswith("aten::") for name in passes)


@needs_kernels
@pytest.mark.parametrize("case", [pytest.param(CASES[name], id=name) for name in ("mixture", "mixture, expanded")])
def test_memory_of_a_mixture_is_not_that_of_all_pairs(case, device):
    n, k, d = 20_000, 64, 8
    leaves = [torch.randn(k), torch.randn(k, d), torch.rand(k, d) + 0.5]
    leaves = [t.to(device).requires_grad_() for t in leaves]
    x = torch.randn(n, d, device=device)

    def loss(w, loc, scale):
        p = mixture(D, D.Independent(D.Normal(loc, scale), 1), w)
        return (p.expand((n,)) if case is CASES["mixture, expanded"] else p).log_prob(x).sum()

    work = Work(loss, [tuple(leaves)], None)
    work()
    assert peak_memory(work, device) < n * k * 4 / 4 < x.nbytes * k / 8


# --- validate_args ----------------------------------------------------------------------------------------------------

BAD_PARAMETERS = {
    "Normal": {"loc": lambda: torch.full((4, 3), math.nan), "scale": lambda: torch.full((4, 3), -1.0)},
    "Laplace": {"loc": lambda: torch.full((4, 3), math.nan), "scale": lambda: torch.zeros(4, 3)},
    "Bernoulli, logits": {"p": lambda: torch.full((4, 3), math.nan)},
    "Bernoulli, probs": {"p": lambda: torch.full((4, 3), 1.5)},
    "Independent Normal": {"scale": lambda: torch.full((4, 3), -1.0)},
}


@pytest.mark.parametrize(("name", "parameter"), [(n, p) for n, bad in BAD_PARAMETERS.items() for p in bad])
def test_bad_parameters_are_refused_in_torchs_words(name, parameter):
    case = CASES[name]
    given = case.drawn() | {parameter: BAD_PARAMETERS[name][parameter]().double()}
    wanted = message_of(lambda: case.make(T, **given, validate_args=True))
    assert wanted[0] is ValueError
    assert message_of(lambda: case.make(D, **given, validate_args=True)) == wanted
    case.make(D, **given, validate_args=False)


@every
@pytest.mark.parametrize("value", ["nan", "shape", "number", "support"])
def test_bad_values_are_refused_in_torchs_words(case, value):
    ours, torchs, *_ = pair(case, validate_args=True)
    if value == "shape" and not case.value().shape:
        return
    bad = {
        "nan": torch.full_like(case.value().double(), math.nan),
        "shape": torch.zeros(*case.value().shape[:-1], 7).double(),
        "number": 0.5,
        "support": torch.full_like(case.value().double(), -3.5),
    }[value]
    try:
        wanted = torchs.log_prob(bad)
    except (ValueError, RuntimeError) as error:
        kind, words = message_of(lambda: ours.log_prob(bad))
        upto = "of the distribution" if "mu" in case.parameters else None  # what torch's class is made of
        assert (kind, words.partition(upto)[0] if upto else words) == (type(error), str(error).partition(upto)[0] if upto else str(error))
    else:
        torch.testing.assert_close(ours.log_prob(bad), wanted)


def test_the_default_of_validate_args_is_torchs():
    before = T.Distribution._validate_args  # torch.compile switches it off
    try:
        T.Distribution.set_default_validate_args(True)
        with pytest.raises(ValueError, match="to satisfy the constraint"):
            D.Normal(0.0, -1.0)
        T.Distribution.set_default_validate_args(False)
        D.Normal(0.0, -1.0)
    finally:
        T.Distribution.set_default_validate_args(before)


def test_the_constructors_refuse_what_torchs_do():
    for make in (
        lambda lib: lib.Bernoulli(),
        lambda lib: lib.Bernoulli(probs=0.5, logits=0.0),
        lambda lib: lib.Independent(lib.Normal(0.0, 1.0), 1),
        lambda lib: lib.Normal("0", 1.0),
        lambda lib: lib.MixtureSameFamily(lib.Normal(0.0, 1.0), lib.Normal(0.0, 1.0)),
        lambda lib: mixture(lib, lib.Normal(torch.zeros(3), 1.0), torch.zeros(4)),
    ):
        assert message_of(lambda make=make: make(D)) == message_of(lambda make=make: make(T))


# --- numbers that are not floats, extremes ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_integers_are_numbers(dtype, backend):
    """A byte too, which elsewhere is read as x / 255."""
    x = torch.tensor([0, 1, 3], dtype=dtype)
    for d in (D.Normal(0.5, 2.0), D.Laplace(0.5, 2.0), D.Normal(torch.tensor(1), torch.tensor(2))):
        torch.testing.assert_close(d.log_prob(x), type(d).__bases__[0].log_prob(d, x.float()))
    ones = torch.tensor([0, 1, 1], dtype=dtype)
    torch.testing.assert_close(D.Bernoulli(probs=0.3).log_prob(ones), T.Bernoulli(probs=0.3).log_prob(ones.float()))
    torch.testing.assert_close(D.Bernoulli(probs=0.3).log_prob(ones.bool()), T.Bernoulli(probs=0.3).log_prob(ones.float()))


def test_a_python_number_as_value(backend):
    assert D.Normal(torch.zeros(2), 1.0, validate_args=False).log_prob(0.5).shape == (2,)


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_probability_of_nothing_counts_as_torchs(p, dtype, backend):
    probs = torch.full((2,), p, dtype=dtype, requires_grad=True)
    x = torch.tensor([0.0, 1.0], dtype=dtype)
    out = D.Bernoulli(probs=probs).log_prob(x)
    torch.testing.assert_close(out, T.Bernoulli(probs=probs).log_prob(x), rtol=1e-6, atol=1e-6)
    assert torch.autograd.grad(out.sum(), probs)[0].tolist() == [0.0, 0.0]


def test_logits_far_out(backend):
    d = D.Bernoulli(logits=torch.tensor([1e4, -1e4]))
    assert d.log_prob(torch.tensor([0.0, 1.0])).tolist() == [-1e4, -1e4]
    assert d.log_prob(torch.tensor([1.0, 0.0])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("event", [(1,), (5,)])
def test_event_dimensions_broadcast_as_in_torch(event, backend):
    """torch's Independent does not look at them, and sums what comes out."""
    loc = torch.randn(5 if event == (1,) else 1).double()
    x = torch.randn(3, *event).double()
    torch.testing.assert_close(D.Independent(D.Normal(loc, 1.0), 1).log_prob(x), T.Independent(T.Normal(loc, 1.0), 1).log_prob(x))


# --- shapes at random -------------------------------------------------------------------------------------------------

SIZES = st.lists(st.integers(1, 4), min_size=0, max_size=3)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(sample=SIZES, batch=SIZES, event=SIZES, data=st.data())
def test_any_shapes(sample, batch, event, data):
    def some(shape):
        return [1 if data.draw(st.booleans()) else n for n in shape]

    loc, scale = torch.randn(batch + event).double(), torch.rand(some(batch + event)).double() + 0.3
    value = torch.randn(sample + some(batch) + event).double()
    mine, theirs = (lib.Independent(lib.Normal(loc, scale), len(event)) for lib in (D, T))
    torch.testing.assert_close(mine.log_prob(value), theirs.log_prob(value), rtol=1e-9, atol=1e-9)
    assert mine.rsample(torch.Size(sample)).shape == torch.Size(sample + batch + event)
    k = data.draw(st.integers(1, 4))
    loc, scale = torch.randn([*batch, k, *event]).double(), torch.rand(k, *event).double() + 0.3
    w = torch.randn([*data.draw(st.sampled_from([batch, []])), k]).double()
    mine, theirs = (mixture(lib, lib.Independent(lib.Normal(loc, scale), len(event)), w) for lib in (D, T))
    torch.testing.assert_close(mine.log_prob(value), theirs.log_prob(value), rtol=1e-9, atol=1e-9)
    assert mine.sample(torch.Size(sample)).shape == torch.Size(sample + batch + event)


# --- documentation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", D.__all__)
def test_every_class_is_in_the_table_and_has_a_method_of_its_own(name):
    assert f"\n{name} " in D.__doc__ or (name == "ZeroInflatedNegativeBinomial" and "\nZeroInflated- " in D.__doc__)
    kind = getattr(D, name)
    assert "log_prob" in vars(kind)
    assert issubclass(kind, getattr(T, name, T.Distribution))
    for section in ("Args:", "Raises:", "Example:"):
        assert section in kind.__doc__
