"""Bad arguments: an error that names the argument, what came and what was expected, the same from every backend."""

import pytest
import torch
from oracle import assert_refused, needs_kernels

import vae_fast
from vae_fast import bernoulli_log_prob, elbo, elbo_loss, gaussian_kl, gaussian_log_prob, iwae_bound, logsumexp, reparameterize
from vae_fast import reparameterize_with_kl as sample_with_kl


def f(*shape, dtype=torch.float32, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


A, B, ROW = f(3, 4), f(3, 5), f(4)
META, LONG, COMPLEX = f(3, 4, device="meta"), f(3, 4, dtype=torch.int64), f(3, 4, dtype=torch.complex64)
BYTES, SPARSE = f(3, 4, dtype=torch.uint8), f(3, 4).to_sparse()
FLOATS = "expected one of bfloat16, float16, float32, float64"
TARGETS = "expected one of bfloat16, bool, float16, float32, float64, uint8"
ONE_DEVICE = "expected one device"
GENERATOR = torch.Generator()

# name: (call, exception, everything its message must hold)
BAD = {
    # not tensors, and tensors of the wrong kind
    "kl mu list": (lambda: gaussian_kl([1.0], A), TypeError, ["mu", "expected a torch.Tensor, got list"]),
    "kl logvar None": (lambda: gaussian_kl(A, None), TypeError, ["logvar", "expected a torch.Tensor, got NoneType"]),
    "kl prior text": (lambda: gaussian_kl(A, A, "0"), TypeError, ["prior_mu='0'", "got str"]),
    "kl prior_logvar True": (lambda: gaussian_kl(A, A, A, True), TypeError, ["prior_logvar=True", "got bool"]),
    "kl mu int64": (lambda: gaussian_kl(LONG, A), TypeError, ["mu has dtype int64", FLOATS]),
    "kl logvar bytes": (lambda: gaussian_kl(A, BYTES), TypeError, ["logvar has dtype uint8", FLOATS]),
    "kl prior complex": (lambda: gaussian_kl(A, A, COMPLEX, A), TypeError, ["prior_mu has dtype complex64", FLOATS]),
    "kl prior_logvar bool": (lambda: gaussian_kl(A, A, A, A.bool()), TypeError, ["prior_logvar has dtype bool", FLOATS]),
    "kl sparse": (lambda: gaussian_kl(SPARSE, A), TypeError, ["mu has layout torch.sparse_coo", "strided"]),
    "bernoulli x list": (lambda: bernoulli_log_prob([0, 1], A), TypeError, ["x", "got list"]),
    "bernoulli x int64": (lambda: bernoulli_log_prob(LONG, A), TypeError, ["x has dtype int64", TARGETS]),
    "bernoulli logits bytes": (lambda: bernoulli_log_prob(A, BYTES), TypeError, ["logits has dtype uint8", FLOATS]),
    "bernoulli probs bool": (lambda: bernoulli_log_prob(A, probs=A > 0), TypeError, ["probs has dtype bool", FLOATS]),
    "bernoulli sparse": (lambda: bernoulli_log_prob(A, SPARSE), TypeError, ["logits has layout", "strided"]),
    "gaussian x int64": (lambda: gaussian_log_prob(LONG, A), TypeError, ["x has dtype int64", TARGETS]),
    "gaussian mu int64": (lambda: gaussian_log_prob(A, LONG), TypeError, ["mu has dtype int64", FLOATS]),
    "gaussian logvar float": (lambda: gaussian_log_prob(A, A, 0.0), TypeError, ["logvar", "got float"]),
    "elbo x None": (lambda: elbo(None, A, B, B), TypeError, ["x", "got NoneType"]),
    "elbo recon int64": (lambda: elbo(A, LONG, B, B), TypeError, ["recon has dtype int64", FLOATS]),
    "elbo recon tuple": (lambda: elbo(A, (A, A), B, B), TypeError, ["recon", "expected a torch.Tensor, got tuple"]),
    "elbo recon triple": (lambda: elbo(A, (A, A, A), B, B, likelihood="gaussian"), ValueError, ["recon", "pair", "got 3 items"]),
    "elbo recon pair": (lambda: elbo(A, (A, 0.0), B, B, likelihood="gaussian"), TypeError, ["recon[1]", "got float"]),
    "elbo recon mean": (lambda: elbo(A, (LONG, A), B, B, likelihood="gaussian"), TypeError, ["recon[0] has dtype int64", FLOATS]),
    "elbo recon None": (lambda: elbo(A, None, B, B), TypeError, ["recon", "got NoneType"]),
    "elbo mu int64": (lambda: elbo(A, A, LONG, B), TypeError, ["mu has dtype int64", FLOATS]),
    "elbo prior": (lambda: elbo(A, A, A, A, prior_mu=[1.0]), TypeError, ["prior_mu=[1.0]", "got list"]),
    "sample mu list": (lambda: reparameterize([0.0], A), TypeError, ["mu", "got list"]),
    "sample logvar int64": (lambda: reparameterize(A, LONG), TypeError, ["logvar has dtype int64", FLOATS]),
    "sample noise list": (lambda: reparameterize(A, A, noise=[0.0]), TypeError, ["noise", "got list"]),
    "sample noise int64": (lambda: reparameterize(A, A, noise=LONG), TypeError, ["noise has dtype int64", FLOATS]),
    "logsumexp list": (lambda: logsumexp([0.0]), TypeError, ["a", "got list"]),
    "logsumexp int64": (lambda: logsumexp(LONG), TypeError, ["a has dtype int64", FLOATS]),
    "logsumexp weights": (lambda: logsumexp(A, -1, [1.0]), TypeError, ["weights", "got list"]),
    "logsumexp weights int64": (lambda: logsumexp(A, -1, LONG), TypeError, ["weights has dtype int64", FLOATS]),
    "iwae int64": (lambda: iwae_bound(LONG), TypeError, ["has dtype int64", FLOATS]),
    # shapes
    "kl shapes": (lambda: gaussian_kl(A, B), ValueError, ["mu has shape (3, 4)", "logvar has shape (3, 5)", "broadcast"]),
    "kl prior shapes": (lambda: gaussian_kl(A, A, A, B), ValueError, ["prior_logvar has shape (3, 5)", "mu has shape (3, 4)", "broadcast"]),
    "bernoulli events": (
        lambda: bernoulli_log_prob(A, B),
        ValueError,
        ["x has shape (3, 4)", "logits has shape (3, 5)", "last 1 dimension"],
    ),
    "bernoulli never broadcasts events": (
        lambda: bernoulli_log_prob(f(3, 1), A),
        ValueError,
        ["x has shape (3, 1)", "logits has shape (3, 4)", "event_dim=1"],
    ),
    "bernoulli images": (
        lambda: bernoulli_log_prob(f(2, 3, 8, 8), f(2, 1, 8, 8), event_dim=3),
        ValueError,
        ["x has shape (2, 3, 8, 8)", "logits has shape (2, 1, 8, 8)", "last 3 dimensions", "event_dim=3"],
    ),
    "bernoulli batch": (lambda: bernoulli_log_prob(f(2, 4), A), ValueError, ["x has shape (2, 4)", "logits has shape (3, 4)", "broadcast"]),
    "bernoulli short": (lambda: bernoulli_log_prob(ROW, f(2, 4), event_dim=2), ValueError, ["x has shape (4,)", "event_dim=2"]),
    "gaussian events": (lambda: gaussian_log_prob(A, B), ValueError, ["x has shape (3, 4)", "mu has shape (3, 5)", "last 1 dimension"]),
    "gaussian scale": (lambda: gaussian_log_prob(A, A, B), ValueError, ["logvar has shape (3, 5)", "mu has shape (3, 4)", "broadcast"]),
    "elbo events": (lambda: elbo(A, B, A, A), ValueError, ["x has shape (3, 4)", "recon has shape (3, 5)", "last 1 dimension"]),
    "elbo pair": (lambda: elbo(A, (A, B), A, A, likelihood="gaussian"), ValueError, ["recon[1] has shape (3, 5)", "broadcast"]),
    "elbo latent": (lambda: elbo(A, A, A, B), ValueError, ["mu has shape (3, 4)", "logvar has shape (3, 5)", "broadcast"]),
    "elbo batch": (
        lambda: elbo(A, A, f(2, 4), f(2, 4)),
        ValueError,
        ["recon has batch shape (3,)", "mu has batch shape (2,)", "broadcast"],
    ),
    "elbo_loss batch": (lambda: elbo_loss(A, A, f(2, 4), f(2, 4)), ValueError, ["batch shape (3,)", "batch shape (2,)", "latent_dim=1"]),
    "sample shapes": (lambda: reparameterize(A, B), ValueError, ["mu has shape (3, 4)", "logvar has shape (3, 5)", "broadcast"]),
    "noise shape": (lambda: reparameterize(A, A, noise=B), ValueError, ["noise has shape (3, 5)", "expected (3, 4)"]),
    "noise never broadcasts": (lambda: reparameterize(A, A, noise=f(1, 4)), ValueError, ["noise has shape (1, 4)", "expected (3, 4)"]),
    "noise samples": (lambda: sample_with_kl(A, A, noise=A, num_samples=2), ValueError, ["noise has shape (3, 4)", "expected (2, 3, 4)"]),
    "sample prior": (lambda: sample_with_kl(A, A, B, A), ValueError, ["prior_mu has shape (3, 5)", "broadcast"]),
    "weights shape": (lambda: logsumexp(A, -1, B), ValueError, ["weights has shape (3, 5)", "a has shape (3, 4)", "broadcast"]),
    "iwae empty": (lambda: iwae_bound(f(0, 4)), ValueError, ["log_w has shape (0, 4)", "at least one sample", "dim=0"]),
    # shapes that are the same numbers otherwise: how to get there
    "flat reconstruction": (
        lambda: elbo_loss(f(6, 1, 28, 28), f(6, 784), f(6, 2), f(6, 2)),
        ValueError,
        ["x has shape (6, 1, 28, 28)", "recon has shape (6, 784)", "flatten x to (6, 784): x.view(-1, 784)"],
    ),
    "flat data": (
        lambda: bernoulli_log_prob(f(6, 12), f(6, 3, 2, 2), event_dim=3),
        ValueError,
        ["reshape x to (6, 3, 2, 2): x.view(-1, 3, 2, 2)"],
    ),
    "data that cannot be viewed": (
        lambda: gaussian_log_prob(f(6, 2, 5).mT, f(6, 10)),
        ValueError,
        ["flatten x to (6, 10): x.reshape(-1, 10)"],
    ),
    "images summed over rows": (
        lambda: elbo_loss(f(6, 1, 28, 28), f(6, 1, 28, 28), f(6, 2), f(6, 2)),
        ValueError,
        ["recon has batch shape (6, 1, 28)", "mu has batch shape (6,)", "event_dim=3 sums all of one sample"],
    ),
    "integers as targets": (
        lambda: elbo_loss(LONG, A, A, A),
        TypeError,
        ["x has dtype int64", "x.float()", "0 to 255", "x.to(torch.uint8)"],
    ),
    "integers as parameters": (lambda: gaussian_kl(LONG, A), TypeError, ["mu has dtype int64", "; mu.float()"]),
    # devices
    "kl device": (lambda: gaussian_kl(A, META), ValueError, ["logvar is on meta", "mu is on cpu", ONE_DEVICE]),
    "kl prior device": (lambda: gaussian_kl(A, A, META, A), ValueError, ["prior_mu is on meta", "mu is on cpu", ONE_DEVICE]),
    "bernoulli device": (lambda: bernoulli_log_prob(META, A), ValueError, ["x is on meta", "logits is on cpu", ONE_DEVICE]),
    "probs device": (lambda: bernoulli_log_prob(A, probs=META), ValueError, ["probs is on meta", "x is on cpu", ONE_DEVICE]),
    "gaussian device": (lambda: gaussian_log_prob(A, A, META), ValueError, ["logvar is on meta", ONE_DEVICE]),
    "elbo device": (lambda: elbo(A, A, META, META), ValueError, ["mu is on meta", "recon is on cpu", ONE_DEVICE]),
    "elbo recon device": (lambda: elbo(A, META, A, A), ValueError, ["recon is on meta", "x is on cpu", ONE_DEVICE]),
    "elbo logvar device": (lambda: elbo_loss(A, A, A, META), ValueError, ["logvar is on meta", "mu is on cpu", ONE_DEVICE]),
    "noise device": (lambda: reparameterize(A, A, noise=META), ValueError, ["noise is on meta", "mu is on cpu", ONE_DEVICE]),
    "weights device": (lambda: logsumexp(A, -1, META), ValueError, ["meta", "cpu", "weights", ONE_DEVICE]),
    "generator device": (lambda: reparameterize(META, META, generator=GENERATOR), ValueError, ["generator is on cpu", "mu is on meta"]),
    # names
    "kl scale": (lambda: gaussian_kl(A, A, scale="sigma"), ValueError, ["scale='sigma'", "'logvar', 'log_std', 'std', 'var', 'softplus'"]),
    "kl scale None": (lambda: gaussian_kl(A, A, scale=None), ValueError, ["scale=None", "'logvar'"]),
    "gaussian scale name": (lambda: gaussian_log_prob(A, A, A, scale=""), ValueError, ["scale=''", "'softplus'"]),
    "sample scale": (lambda: reparameterize(A, A, scale="logstd"), ValueError, ["scale='logstd'", "'log_std'"]),
    "sample_with_kl scale": (lambda: sample_with_kl(A, A, scale="logstd"), ValueError, ["scale='logstd'", "'log_std'"]),
    "kl reduction": (lambda: gaussian_kl(A, A, reduction="avg"), ValueError, ["reduction='avg'", "'none', 'mean', 'sum'"]),
    "sample reduction": (lambda: sample_with_kl(A, A, reduction=None), ValueError, ["reduction=None", "'none', 'mean', 'sum'"]),
    "loss reduction": (lambda: elbo_loss(A, A, A, A, reduction="batchmean"), ValueError, ["reduction='batchmean'", "'mean'"]),
    "clip": (lambda: bernoulli_log_prob(A, A, clip="clip"), ValueError, ["clip='clip'", "None, 'clamp', 'add', 'bce'"]),
    "clip none": (lambda: bernoulli_log_prob(A, A, clip="none"), ValueError, ["clip='none'", "None, 'clamp'"]),
    "elbo clip": (lambda: elbo(A, A, A, A, clip=True), ValueError, ["clip=True", "'bce'"]),
    "gaussian clip": (lambda: elbo(A, A, A, A, likelihood="gaussian", clip="add"), ValueError, ["clip='add'", "likelihood='gaussian'"]),
    "likelihood": (
        lambda: elbo(A, A, A, A, likelihood="bce"),
        ValueError,
        ["likelihood='bce'", "'bernoulli', 'bernoulli_probs', 'gaussian'"],
    ),
    "elbo scale": (lambda: elbo(A, A, A, A, scale="sigma"), ValueError, ["scale='sigma'", "'softplus'"]),
    "elbo_loss scale of a function": (
        lambda: elbo_loss(A, A, A, A, likelihood=lambda x, a: a.sum(-1), scale=None, check_data=True),
        ValueError,
        ["scale=None", "'softplus'"],
    ),
    "likelihood None": (lambda: elbo_loss(A, A, A, A, likelihood=None), ValueError, ["likelihood=None", "'gaussian'"]),
    # exactly one of two
    "neither": (lambda: bernoulli_log_prob(A), ValueError, ["logits, probs", "exactly one", "neither"]),
    "both": (lambda: bernoulli_log_prob(A, A, probs=A), ValueError, ["logits, probs", "exactly one", "both"]),
    "noise and generator": (lambda: reparameterize(A, A, noise=A, generator=GENERATOR), ValueError, ["noise, generator", "both"]),
    # numbers
    "eps zero": (lambda: bernoulli_log_prob(A, A, clip="clamp", eps=0.0), ValueError, ["eps=0.0", "in ["]),
    "eps half": (lambda: bernoulli_log_prob(A, A, clip="add", eps=0.5), ValueError, ["eps=0.5", "in ["]),
    "eps nan": (lambda: bernoulli_log_prob(A, A, clip="clamp", eps=float("nan")), ValueError, ["eps=nan"]),
    "eps text": (lambda: bernoulli_log_prob(A, A, clip="clamp", eps="1e-9"), TypeError, ["eps='1e-9'", "got str"]),
    "eps tensor": (lambda: elbo(A, A, A, A, clip="clamp", eps=torch.tensor(0.1)), TypeError, ["eps", "Python number", "got Tensor"]),
    "beta inf": (lambda: elbo(A, A, A, A, beta=float("inf")), ValueError, ["beta=inf", "finite"]),
    "beta nan": (lambda: elbo_loss(A, A, A, A, beta=float("nan")), ValueError, ["beta=nan", "finite"]),
    "beta None": (lambda: elbo(A, A, A, A, beta=None), TypeError, ["beta=None", "got NoneType"]),
    "beta of two": (lambda: elbo(A, A, A, A, beta=torch.ones(2)), ValueError, ["beta has shape (2,)", "no dimensions"]),
    "beta complex": (lambda: elbo(A, A, A, A, beta=torch.tensor(1j)), TypeError, ["beta has dtype complex64", "real number"]),
    "beta learned": (lambda: elbo(A, A, A, A, beta=torch.ones((), requires_grad=True)), ValueError, ["beta requires grad", "detach"]),
    "free_bits of two": (lambda: gaussian_kl(A, A, free_bits=torch.ones(2)), ValueError, ["free_bits has shape (2,)", "no dimensions"]),
    "free_bits negative": (lambda: gaussian_kl(A, A, free_bits=-0.1), ValueError, ["free_bits=-0.1", "[0,"]),
    "free_bits text": (lambda: gaussian_kl(A, A, free_bits="1"), TypeError, ["free_bits='1'", "got str"]),
    "free_bits inf": (lambda: sample_with_kl(A, A, free_bits=float("inf")), ValueError, ["free_bits=inf", "finite"]),
    "elbo free_bits": (lambda: elbo_loss(A, A, A, A, free_bits=-1), ValueError, ["free_bits=-1"]),
    "num_samples zero": (lambda: reparameterize(A, A, num_samples=0), ValueError, ["num_samples=0", "at least 1"]),
    "num_samples negative": (lambda: sample_with_kl(A, A, num_samples=-2), ValueError, ["num_samples=-2", "at least 1"]),
    "num_samples float": (lambda: reparameterize(A, A, num_samples=2.0), TypeError, ["num_samples=2.0", "got float"]),
    "num_samples bool": (lambda: reparameterize(A, A, num_samples=True), TypeError, ["num_samples=True", "got bool"]),
    "event_dim negative": (lambda: gaussian_kl(A, A, event_dim=-1), ValueError, ["event_dim=-1", "expected 0 to 2", "shape (3, 4)"]),
    "event_dim large": (lambda: gaussian_kl(A, A, event_dim=3), ValueError, ["event_dim=3", "expected 0 to 2"]),
    "event_dim float": (lambda: bernoulli_log_prob(A, A, event_dim=1.0), TypeError, ["event_dim=1.0", "got float"]),
    "event_dim bool": (lambda: gaussian_log_prob(A, A, event_dim=True), TypeError, ["event_dim=True", "got bool"]),
    "bernoulli event_dim": (lambda: bernoulli_log_prob(A, A, event_dim=3), ValueError, ["event_dim=3", "expected 0 to 2", "logits"]),
    "gaussian event_dim": (lambda: gaussian_log_prob(A, A, event_dim=4), ValueError, ["event_dim=4", "expected 0 to 2", "mu"]),
    "elbo event_dim": (lambda: elbo(A, A, A, A, event_dim=3), ValueError, ["event_dim=3", "expected 0 to 2", "recon"]),
    "elbo latent_dim": (lambda: elbo(A, A, A, A, latent_dim=3), ValueError, ["latent_dim=3", "expected 0 to 2", "mu"]),
    "latent_dim text": (lambda: elbo(A, A, A, A, latent_dim="1"), TypeError, ["latent_dim='1'", "got str"]),
    "scalar event_dim": (lambda: gaussian_kl(f(), f()), ValueError, ["event_dim=1", "expected 0 to 0"]),
    "sample event_dim": (lambda: sample_with_kl(A, A, event_dim=5), ValueError, ["event_dim=5", "expected 0 to 2"]),
    "dim large": (lambda: logsumexp(A, 2), IndexError, ["dim=2", "expected -2 to 1", "(3, 4)"]),
    "dim negative": (lambda: logsumexp(A, -3), IndexError, ["dim=-3", "expected -2 to 1"]),
    "dim tuple": (lambda: logsumexp(A, (0, 1)), TypeError, ["dim=(0, 1)", "got tuple"]),
    "dim None": (lambda: logsumexp(A, None), TypeError, ["dim=None", "got NoneType"]),
    "iwae dim": (lambda: iwae_bound(A, 4), IndexError, ["dim=4", "expected -2 to 1"]),
    "generator": (lambda: reparameterize(A, A, generator=3), TypeError, ["generator", "torch.Generator", "got int"]),
    # names of arguments that the caller wrote, not those of an inner function
    "iwae names its own argument": (lambda: iwae_bound([0.0]), TypeError, ["log_w", "got list"]),
    "iwae dtype names its own argument": (lambda: iwae_bound(LONG), TypeError, ["log_w has dtype int64"]),
    "iwae dim names its own argument": (lambda: iwae_bound(A, 4), IndexError, ["log_w"]),
    "latent_dim beside a wide prior": (
        lambda: elbo(A, A, ROW, ROW, prior_mu=A, prior_logvar=A, latent_dim=3),
        ValueError,
        ["latent_dim=3"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name, backend):
    assert_refused(*BAD[name])


@pytest.mark.parametrize("name", BAD)
def test_backends_refuse_with_the_same_words(name, plain_torch):
    assert assert_refused(*BAD[name]) == plain_torch(assert_refused, *BAD[name])


def test_a_refused_call_draws_no_noise():
    before = torch.get_rng_state()
    for name in (
        "sample shapes",
        "noise shape",
        "num_samples zero",
        "sample_with_kl scale",
        "sample reduction",
        "free_bits inf",
        "sample event_dim",
    ):
        call, kind, _ = BAD[name]
        with pytest.raises(kind):
            call()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", vae_fast.__all__)
def test_unknown_keywords_are_refused(name):
    with pytest.raises(TypeError, match="unexpected keyword argument 'event_dims'"):
        getattr(vae_fast, name)(event_dims=1)


def test_options_are_keyword_only():
    for call in (
        lambda: gaussian_kl(A, A, A, A, "std"),
        lambda: reparameterize(A, A, "std"),
        lambda: bernoulli_log_prob(A, A, A),
        lambda: elbo(A, A, A, A, "gaussian"),
        lambda: gaussian_log_prob(A, A, A, "std"),
    ):
        with pytest.raises(TypeError, match="positional argument"):
            call()


def test_eps_is_ignored_where_nothing_clips_with_it(backend):
    for clip in (None, "bce"):
        assert torch.equal(bernoulli_log_prob(A, A, clip=clip, eps=0.0), bernoulli_log_prob(A, A, clip=clip))


@needs_kernels
def test_ops_called_directly_check_too():
    """torch.ops.vae_fast has callers that skipped the Python checks."""
    ops, none = torch.ops.vae_fast, -float("inf")
    with pytest.raises(ValueError, match=r"term='kl\.sigma': expected one of"):
        ops.term([A, A], "kl.sigma", [none], None, 1)
    with pytest.raises(ValueError, match="takes 2 inputs, got 3"):
        ops.term([A, A, A], "kl.logvar", [none], None, 1)
    with pytest.raises(ValueError, match=r"term 'kl.logvar' takes 1 parameters, got 0"):
        ops.term([A, A], "kl.logvar", [], None, 1)
    with pytest.raises(ValueError, match="event_dim=3"):
        ops.term([A, A], "kl.logvar", [none], None, 3)
    with pytest.raises(RuntimeError, match=r"must match|broadcast"):
        ops.term([A, B], "kl.logvar", [none], None, 1)
    with pytest.raises(TypeError, match="expected float16, bfloat16"):
        ops.term([LONG, A], "kl.logvar", [none], None, 1)
    with pytest.raises(ValueError, match="scale='sigma'"):
        ops.reparameterize([A, A], A, None, "sigma", 0)
    with pytest.raises(ValueError, match="noise or gradient has shape"):
        ops.reparameterize([A, A], B, None, "logvar", 0)
    with pytest.raises(ValueError, match="expected a likelihood and a KL"):
        ops.elbo([A, A], [A, A], "kl.logvar", [none], "kl.logvar", none, None, 1.0, None, 1, 1)
    with pytest.raises(IndexError, match="out of range"):
        ops.logsumexp(A, None, 5)


@needs_kernels
def test_an_op_with_neither_noise_nor_a_seed_is_refused():
    """Rather than drawing the same noise each time."""
    for call in (
        lambda: torch.ops.vae_fast.reparameterize([A, A], None, None, "logvar", 0),
        lambda: torch.ops.vae_fast.reparameterize_with_kl([A, A], None, None, "kl.logvar", 0, -float("inf"), 1),
    ):
        with pytest.raises(ValueError, match="rng_state"):
            call()
