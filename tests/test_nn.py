"""The losses as modules: the functions' values and gradients, options checked when the module is made."""

import copy
import inspect
import pickle

import pytest
import torch

import vae_fast
from vae_fast import nn

X, LOGITS = torch.rand(6, 1, 3, 3), torch.randn(6, 1, 3, 3)
MU, LOGVAR = torch.randn(6, 4), torch.randn(6, 4)
PRIOR = {"prior_mu": torch.randn(4), "prior_logvar": torch.randn(4)}
Z = torch.randn(5, 6, 4)
KINDS = [getattr(nn, name) for name in nn.__all__]


CASES = {
    "elbo": (nn.ELBOLoss, {"event_dim": 3}, vae_fast.elbo_loss, (X, LOGITS, MU, LOGVAR), {}),
    "elbo, options": (
        nn.ELBOLoss,
        {"event_dim": 3, "beta": 0.3, "free_bits": 0.1, "reduction": "sum", "clip": "clamp", "eps": 1e-3},
        vae_fast.elbo_loss,
        (X, LOGITS, MU, LOGVAR),
        PRIOR,
    ),
    "elbo, scale": (nn.ELBOLoss, {"event_dim": 3, "scale": "softplus"}, vae_fast.elbo_loss, (X, LOGITS, MU, LOGVAR), PRIOR),
    "elbo, none": (nn.ELBOLoss, {"event_dim": 3, "reduction": "none"}, vae_fast.elbo_loss, (X, LOGITS, MU, LOGVAR), {}),
    "elbo, pair": (nn.ELBOLoss, {"event_dim": 3, "likelihood": "gaussian"}, vae_fast.elbo_loss, (X, (LOGITS, LOGITS), MU, LOGVAR), {}),
    "elbo, donated": (nn.ELBOLoss, {"donate_recon": True, "event_dim": 3}, vae_fast.elbo_loss, (X, LOGITS, MU, LOGVAR), {}),
    "iwae": (nn.IWAELoss, {"event_dim": 3}, vae_fast.iwae_loss, (X, LOGITS.expand(5, 6, 1, 3, 3), Z, MU, LOGVAR), PRIOR),
    "iwae, scale": (
        nn.IWAELoss,
        {"event_dim": 3, "scale": "log_std"},
        vae_fast.iwae_loss,
        (X, LOGITS.expand(5, 6, 1, 3, 3), Z, MU, LOGVAR),
        PRIOR,
    ),
    "iwae, samples last": (
        nn.IWAELoss,
        {"event_dim": 3, "sample_dim": -1},
        vae_fast.iwae_loss,
        (X, LOGITS.unsqueeze(1).expand(6, 5, 1, 3, 3), Z.transpose(0, 1), MU, LOGVAR),
        {},
    ),
    "iwae, none": (
        nn.IWAELoss,
        {"event_dim": 3, "reduction": "none", "likelihood": "gaussian"},
        vae_fast.iwae_loss,
        (X, LOGITS.expand(5, 6, 1, 3, 3), Z, MU, LOGVAR),
        {},
    ),
    "kl": (nn.GaussianKL, {}, lambda *a, **k: vae_fast.gaussian_kl(*a, reduction="mean", **k), (MU, LOGVAR), {}),
    "kl, options": (
        nn.GaussianKL,
        {"scale": "softplus", "free_bits": 0.2, "reduction": "none", "event_dim": 0},
        vae_fast.gaussian_kl,
        (MU, LOGVAR),
        PRIOR,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_module_is_its_function(name, backend):
    kind, options, function, tensors, named = CASES[name]

    def run(call, **more):
        leaves = [t.clone().requires_grad_() for t in flat(tensors)]
        values = iter([leaf * 1.0 for leaf in leaves])
        given = [tuple(next(values) for _ in t) if isinstance(t, tuple) else next(values) for t in tensors]
        out = call(*given, **named, **more)
        return out.detach(), torch.autograd.grad(out.sum(), leaves[1:])

    out, grads = run(kind(**options))
    want, want_grads = run(function, **options)
    assert torch.equal(out, want)
    assert all(torch.equal(a, b) for a, b in zip(grads, want_grads, strict=True))


def flat(tensors):
    return [t for item in tensors for t in (item if isinstance(item, tuple) else (item,))]


def test_bernoulli_nll(backend):
    want = -vae_fast.bernoulli_log_prob(X, LOGITS, event_dim=3)
    assert torch.equal(nn.BernoulliNLLLoss(event_dim=3, reduction="none")(LOGITS, X), want)
    torch.testing.assert_close(nn.BernoulliNLLLoss(event_dim=3)(LOGITS, X), want.mean())
    bce = torch.nn.BCEWithLogitsLoss(reduction="sum")(LOGITS, X)
    torch.testing.assert_close(nn.BernoulliNLLLoss(event_dim=3, reduction="sum")(LOGITS, X), bce)


@pytest.mark.parametrize("scale", [None, "logvar", "std"])
def test_gaussian_nll(scale, backend):
    given = None if scale is None else LOGITS.exp() if scale == "std" else LOGITS
    loss = nn.GaussianNLLLoss(event_dim=3, reduction="none", **({} if scale is None else {"scale": scale}))
    sigma = torch.ones_like(LOGITS) if scale is None else LOGITS.exp() if scale == "std" else (0.5 * LOGITS).exp()
    want = -torch.distributions.Normal(LOGITS, sigma).log_prob(X).sum((1, 2, 3))
    torch.testing.assert_close(loss(LOGITS, X, given), want)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_nothing_is_learned_or_stored(kind):
    loss = kind()
    assert not loss.state_dict() and not list(loss.parameters()) and not list(loss.buffers())
    assert isinstance(loss, torch.nn.Module) and loss.to(torch.float64).eval() is loss
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(other) == repr(loss) == f"{kind.__name__}()"


def test_repr_names_what_was_chosen():
    assert repr(nn.ELBOLoss(likelihood="gaussian", free_bits=0.5)) == "ELBOLoss(likelihood='gaussian', free_bits=0.5)"
    assert repr(torch.nn.ModuleList([nn.GaussianKL(scale="std")])) == "ModuleList(\n  (0): GaussianKL(scale='std')\n)"
    assert repr(nn.ELBOLoss(beta=torch.tensor(1.0))) == "ELBOLoss(beta=tensor(1.))"


def test_options_are_attributes():
    loss = nn.ELBOLoss(event_dim=3, beta=torch.tensor(0.0))
    want = {beta: vae_fast.elbo_loss(X, LOGITS, MU, LOGVAR, event_dim=3, beta=beta) for beta in (0.0, 0.5, 1.0)}
    assert torch.equal(loss(X, LOGITS, MU, LOGVAR), want[0.0])
    loss.beta.fill_(0.5)
    assert torch.equal(loss(X, LOGITS, MU, LOGVAR), want[0.5])
    loss.beta = 1.0
    assert torch.equal(loss(X, LOGITS, MU, LOGVAR), want[1.0])
    loss.reduction = "average"
    with pytest.raises(ValueError, match="reduction='average': expected one of"):
        loss(X, LOGITS, MU, LOGVAR)


@pytest.mark.parametrize(
    ("kind", "options", "error", "words"),
    [
        (nn.ELBOLoss, {"likelihood": "poison"}, ValueError, "likelihood='poison': expected one of 'bernoulli'"),
        (nn.ELBOLoss, {"beta": "1"}, TypeError, "beta='1': expected a Python number, got str"),
        (nn.ELBOLoss, {"beta": float("nan")}, ValueError, "beta=nan: expected a finite number"),
        (nn.ELBOLoss, {"beta": torch.ones(2)}, ValueError, r"beta has shape \(2,\): expected a number"),
        (nn.ELBOLoss, {"beta": torch.ones((), requires_grad=True)}, ValueError, "beta requires grad: expected a constant"),
        (nn.ELBOLoss, {"clip": "hard"}, ValueError, "clip='hard': expected one of None, 'clamp'"),
        (nn.ELBOLoss, {"clip": "clamp", "eps": 0.7}, ValueError, "eps=0.7: expected a finite number in"),
        (nn.ELBOLoss, {"likelihood": "gaussian", "clip": "bce"}, ValueError, "clip='bce': expected None for likelihood='gaussian'"),
        (nn.ELBOLoss, {"free_bits": -0.1}, ValueError, "free_bits=-0.1: expected a finite number in"),
        (nn.ELBOLoss, {"event_dim": -1}, ValueError, "event_dim=-1: expected at least"),
        (nn.ELBOLoss, {"latent_dim": 1.0}, TypeError, "latent_dim=1.0: expected an int, got float"),
        (nn.ELBOLoss, {"reduction": "avg"}, ValueError, "reduction='avg': expected one of 'none', 'mean', 'sum'"),
        (nn.ELBOLoss, {"donate_recon": 1}, TypeError, "donate_recon=1: expected True or False"),
        (nn.ELBOLoss, {"donate_recon": True, "reduction": "none"}, ValueError, "donate_recon=True: expected reduction='mean'"),
        (nn.ELBOLoss, {"check_data": None}, TypeError, "check_data=None: expected True or False"),
        (nn.IWAELoss, {"likelihood": ["bernoulli"]}, ValueError, r"likelihood=\['bernoulli'\]: expected one of"),
        (nn.IWAELoss, {"likelihood": "gaussian", "clip": "add"}, ValueError, "clip='add': expected None for likelihood='gaussian'"),
        (nn.ELBOLoss, {"scale": "sigma"}, ValueError, "scale='sigma': expected one of 'logvar'"),
        (nn.IWAELoss, {"scale": None}, ValueError, "scale=None: expected one of 'logvar'"),
        (nn.IWAELoss, {"reduction": None}, ValueError, "reduction=None: expected one of"),
        (nn.IWAELoss, {"latent_dim": True}, TypeError, "latent_dim=True: expected an int"),
        (nn.IWAELoss, {"sample_dim": "0"}, TypeError, "sample_dim='0': expected an int"),
        (nn.IWAELoss, {"check_data": 0}, TypeError, "check_data=0: expected True or False"),
        (nn.GaussianKL, {"scale": "variance"}, ValueError, "scale='variance': expected one of"),
        (nn.GaussianKL, {"free_bits": True}, TypeError, "free_bits=True: expected a Python number"),
        (nn.GaussianKL, {"event_dim": 2**70}, ValueError, "event_dim=.*: expected at most"),
        (nn.GaussianKL, {"reduction": "batchmean"}, ValueError, "reduction='batchmean': expected one of"),
        (nn.BernoulliNLLLoss, {"clip": 1}, ValueError, "clip=1: expected one of"),
        (nn.BernoulliNLLLoss, {"event_dim": None}, TypeError, "event_dim=None: expected an int"),
        (nn.BernoulliNLLLoss, {"reduction": ""}, ValueError, "reduction='': expected one of"),
        (nn.BernoulliNLLLoss, {"check_data": "no"}, TypeError, "check_data='no': expected True or False"),
        (nn.GaussianNLLLoss, {"scale": None}, ValueError, "scale=None: expected one of"),
        (nn.GaussianNLLLoss, {"event_dim": "1"}, TypeError, "event_dim='1': expected an int"),
        (nn.GaussianNLLLoss, {"reduction": 0}, ValueError, "reduction=0: expected one of"),
        (nn.GaussianNLLLoss, {"check_data": 1.0}, TypeError, "check_data=1.0: expected True or False"),
    ],
    ids=str,
)
def test_a_bad_option_is_refused_when_the_module_is_made(kind, options, error, words):
    with pytest.raises(error, match=words) as caught:
        kind(**options)
    assert len(str(caught.value).splitlines()) == 1


def test_bad_tensors_are_refused_as_the_function_does():
    with pytest.raises(ValueError, match=r"x has shape \(6, 1, 3, 3\), recon has shape \(6, 9\)"):
        nn.ELBOLoss(event_dim=1)(X, LOGITS.flatten(1), MU, LOGVAR)
    with pytest.raises(ValueError, match="x"):
        nn.BernoulliNLLLoss(event_dim=3, check_data=True)(LOGITS, X + 7)


def test_one_graph_under_compile():
    """No graph break; and a beta that is a tensor may change without a new graph."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    beta = torch.tensor(0.25)
    loss = nn.ELBOLoss(event_dim=3, beta=beta)
    compiled = torch.compile(loss, backend=backend, fullgraph=True)
    for value in (0.25, 0.5, 1.0):
        beta.fill_(value)
        want = vae_fast.elbo_loss(X, LOGITS, MU, LOGVAR, event_dim=3, beta=value)
        torch.testing.assert_close(compiled(X, LOGITS, MU, LOGVAR), want)
    assert len(graphs) == 1
    kinds = {nn.IWAELoss: (X, LOGITS.expand(5, 6, 1, 3, 3), Z, MU, LOGVAR), nn.GaussianKL: (MU, LOGVAR)}
    kinds |= {nn.BernoulliNLLLoss: (LOGITS, X), nn.GaussianNLLLoss: (LOGITS, X)}
    for kind, tensors in kinds.items():
        loss = kind(event_dim=1 if kind is nn.GaussianKL else 3)
        torch.testing.assert_close(torch.compile(loss, backend="eager", fullgraph=True)(*tensors), loss(*tensors))
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_every_option_is_documented_and_of_the_function(kind):
    doc = inspect.getdoc(kind)
    for section in ("Args:", "Shape:", "Raises:", "Example:"):
        assert section in doc
    arguments, shapes = doc.partition("Args:")[2].partition("Shape:")[::2]
    options = inspect.signature(kind).parameters.values()
    assert all(p.kind is p.KEYWORD_ONLY and p.name in arguments for p in options)
    assert all(name in shapes for name in inspect.signature(kind.forward).parameters if name != "self")


def test_the_options_are_the_functions_with_its_defaults():
    """Where the function has the same option; a divergence is a loss here, so its default reduction is the mean."""
    for kind, function in ((nn.ELBOLoss, vae_fast.elbo_loss), (nn.IWAELoss, vae_fast.iwae_loss), (nn.GaussianKL, vae_fast.gaussian_kl)):
        theirs = {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
        ours = {p.name: p.default for p in inspect.signature(kind).parameters.values()}
        tensors = {"prior_mu", "prior_logvar"}
        assert ours == {k: v for k, v in theirs.items() if k not in tensors} | ({"reduction": "mean"} if kind is nn.GaussianKL else {})
