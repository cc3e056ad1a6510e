"""Counts: dtypes, extremes, the limit of Poisson, what scvi-tools computes, and what is refused."""

import math

import pytest
import torch
from oracle import assert_refused, value_and_grads
from torch import nn

import vae_fast
from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.models import VAE

INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def scvi_nb(x, mu, theta, eps=1e-8):
    """log_nb_positive of scvi-tools."""
    log_theta_mu = (theta + mu + eps).log()
    gammas = (x + theta).lgamma() - theta.lgamma() - (x + 1).lgamma()
    return theta * ((theta + eps).log() - log_theta_mu) + x * ((mu + eps).log() - log_theta_mu) + gammas


def scvi_zinb(x, mu, theta, pi, eps=1e-8):
    """log_zinb_positive of scvi-tools."""
    softplus_pi = nn.functional.softplus(-pi)
    log_theta_mu = (theta + mu + eps).log()
    pi_theta_log = -pi + theta * ((theta + eps).log() - log_theta_mu)
    zero = nn.functional.softplus(pi_theta_log) - softplus_pi
    gammas = (x + theta).lgamma() - theta.lgamma() - (x + 1).lgamma()
    other = -softplus_pi + pi_theta_log + x * ((mu + eps).log() - log_theta_mu) + gammas
    return torch.where(x < eps, zero, other)


def scvi_mixture(x, mu_1, mu_2, theta_1, theta_2, pi, eps=1e-8):
    """log_mixture_nb of scvi-tools."""
    first, second = scvi_nb(x, mu_1, theta_1, eps), scvi_nb(x, mu_2, theta_1 if theta_2 is None else theta_2, eps)
    return torch.stack([first, second - pi]).logsumexp(0) - nn.functional.softplus(-pi)


def draw(shape=(6, 40), dtype=torch.float32, zeros=0.7):
    x = torch.poisson(torch.rand(shape) * 30.0) * (torch.rand(shape) > zeros)
    positive = [(torch.randn(shape) * 1.5).exp().to(dtype) for _ in range(4)]
    return x, *positive, (torch.randn(shape) * 3.0).to(dtype)


@pytest.mark.parametrize("eps", [1e-8, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eps_gives_what_scvi_tools_computes(eps, dtype, device, backend):
    x, mu, theta, mu_2, theta_2, pi = (t.to(device) for t in draw(dtype=dtype))
    wide = [t.double() for t in (x, mu, theta, mu_2, theta_2, pi)]
    calls = {
        "nb": (lambda x, m, t, *_: vae_fast.negative_binomial_log_prob(x, m, t, eps=eps), lambda x, m, t, *_: scvi_nb(x, m, t, eps)),
        "zinb": (
            lambda x, m, t, m2, t2, pi: vae_fast.zero_inflated_negative_binomial_log_prob(x, m, t, pi, eps=eps),
            lambda x, m, t, m2, t2, pi: scvi_zinb(x, m, t, pi, eps),
        ),
        "mixture": (
            lambda x, m, t, m2, t2, pi: vae_fast.negative_binomial_mixture_log_prob(x, m, m2, t, t2, pi, eps=eps),
            lambda x, m, t, m2, t2, pi: scvi_mixture(x, m, m2, t, t2, pi, eps),
        ),
        "mixture of one theta": (
            lambda x, m, t, m2, t2, pi: vae_fast.negative_binomial_mixture_log_prob(x, m, m2, t, None, pi, eps=eps),
            lambda x, m, t, m2, t2, pi: scvi_mixture(x, m, m2, t, None, pi, eps),
        ),
    }
    for name, (ours, plain) in calls.items():
        wanted = [False, True, True, "mixture" in name, name == "mixture", name != "nb"]
        value, grads = value_and_grads(ours, [x, mu, theta, mu_2, theta_2, pi], wanted=wanted)
        truth, want = value_and_grads(lambda *t, plain=plain: plain(*t).sum(-1), wide, wanted=wanted)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-11
        torch.testing.assert_close(value.double(), truth, rtol=tolerance, atol=tolerance, msg=name)
        for g, w in zip(grads, want, strict=True):
            if w is not None:
                torch.testing.assert_close(g.double(), w, rtol=10 * tolerance, atol=10 * tolerance, msg=name)


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS], ids=str)
def test_counts_of_any_dtype_are_the_same_numbers(dtype, device, backend):
    x, mu, theta, *_, pi = (t.to(device) for t in draw())
    x = x.clamp(max=200.0)  # which bytes and halves hold, and those of bfloat16 that are not are the same in both
    x = x.to(dtype).to(torch.float32)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for family in ("poisson", "negative_binomial", "zero_inflated_negative_binomial"):
        given = [t.to(wide) for t in (mu, theta, pi)][
            : ("poisson", "negative_binomial", "zero_inflated_negative_binomial").index(family) + 1
        ]
        f = getattr(vae_fast, f"{family}_log_prob")
        value, grads = value_and_grads(lambda *t, f=f: f(x.to(dtype), *t), given)
        want, want_grads = value_and_grads(lambda *t, f=f: f(x.to(wide), *t), given)
        torch.testing.assert_close(value, want, rtol=0.0, atol=0.0)
        for g, w in zip(grads, want_grads, strict=True):
            torch.testing.assert_close(g, w, rtol=0.0, atol=0.0)
        strided = torch.stack([x.to(dtype)] * 2, -1)[..., 0]
        torch.testing.assert_close(f(strided, *given), want, rtol=0.0, atol=0.0)
        torch.testing.assert_close(f(x.to(dtype), *given, event_dim=0).sum(-1), want, rtol=1e-5, atol=1e-5)


def test_theta_by_gene_and_by_group(device, backend):
    x, mu, theta, *_ = (t.to(device) for t in draw((8, 5, 30), torch.float64))
    for small in (theta[0, 0], theta[:1, :, :1], theta[0, 0, 0]):
        value, grads = value_and_grads(lambda m, t: vae_fast.negative_binomial_log_prob(x, m, t), [mu, small])
        want, want_grads = value_and_grads(lambda m, t: vae_fast.negative_binomial_log_prob(x, m, t.expand_as(m)), [mu, small])
        torch.testing.assert_close(value, want, rtol=1e-12, atol=0.0)
        for g, w in zip(grads, want_grads, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-12)


# Counts, means and dispersions at their extremes, and values and derivatives (in mu, in theta) of 50 digits' arithmetic (mpmath), rounded.
EXTREMES = [
    (0, 9.5367431640625e-07, 9.5367431640625e-07, -6.6103666358942538e-7, -0.5, -0.19314718055994531),
    (0, 9.5367431640625e-07, 0.5, -9.5367340691270471e-7, -0.99999809265500516, -1.8189847776265134e-12),
    (0, 9.5367431640625e-07, 100.0, -9.5367431185877652e-7, -0.99999999046325693, -4.5474734510405259e-17),
    (0, 9.5367431640625e-07, 134217728.0, -9.5367431640624661e-7, -0.99999999999999289, -2.5243548967072139e-29),
    (0, 1.0, 9.5367431640625e-07, -1.3220734181282776e-5, -9.5367340691241559e-7, -12.862945518546175),
    (0, 1.0, 0.5, -0.54930614433405485, -0.33333333333333333, -0.43194562200144302),
    (0, 1.0, 100.0, -0.99503308531680828, -0.9900990099009901, -4.9340754158181858e-5),
    (0, 1.0, 134217728.0, -0.99999999627470972, -0.99999999254941946, -2.7755575339902045e-17),
    (0, 1000.0, 9.5367431640625e-07, -1.9808482066282957e-5, -9.536743154967553e-10, -19.770698892088392),
    (0, 1000.0, 0.5, -3.8007011672918667, -0.00049975012493753123, -6.6019020847086709),
    (0, 1000.0, 100.0, -239.78952727983705, -0.090909090909090909, -1.4888043637074615),
    (0, 1000.0, 134217728.0, -999.99627472820515, -0.99999254947491381, -2.775529989106916e-11),
    (0, 1048576.0, 9.5367431640625e-07, -2.6441466543577883e-5, -9.0949470177210106e-13, -26.725887222399631),
    (0, 1048576.0, 0.5, -7.278045634297948, -4.7683693082955798e-7, -13.556091745432827),
    (0, 1048576.0, 100.0, -925.7868788095271, -9.5358337560886299e-5, -8.2579641464328319),
    (0, 1048576.0, 134217728.0, -1044501.2091095309, -0.99224806201550388, -3.0202457558824916e-5),
    (1, 9.5367431640625e-07, 9.5367431640625e-07, -14.556091452795515, 524287.5, 524287.80685281944),
    (1, 9.5367431640625e-07, 0.5, -13.862946472219127, 1048573.000005722, 3.814688170696486e-6),
    (1, 9.5367431640625e-07, 100.0, -13.862944574409961, 1048574.9900000096, 9.5367385256395796e-11),
    (1, 9.5367431640625e-07, 134217728.0, -13.86294456487323, 1048574.9999999925, 5.2939533959844428e-23),
    (1, 1.0, 9.5367431640625e-07, -13.862957785606949, 0.0, 1048562.1370554351),
    (1, 1.0, 0.5, -1.6479184330021645, 0.0, 0.90138771133189031),
    (1, 1.0, 100.0, -1.0049834161699764, 0.0, 4.9669146831917152e-5),
    (1, 1.0, 134217728.0, -1.0000000037252903, 0.0, 2.7755575477765479e-17),
    (1, 1000.0, 9.5367431640625e-07, -13.862963420634647, -9.5272064118125854e-10, 1048556.2283011079),
    (1, 1000.0, 0.5, -4.4943482228934631, -0.0004992503748125937, -4.602901584958546),
    (1, 1000.0, 100.0, -235.27966727365329, -0.090818181818181818, -1.4797134546165524),
    (1, 1000.0, 134217728.0, -993.08852689977586, -0.9989925569254389, -2.7699789153425127e-11),
    (1, 1048576.0, 9.5367431640625e-07, -13.862970052666359, -9.0949383441036307e-13, 1048549.2741118239),
    (1, 1048576.0, 0.5, -7.9711932916949378, -4.7683647608242393e-7, -11.556092699106689),
    (1, 1048576.0, 100.0, -921.18180398642347, -9.5358246620088912e-5, -8.2479651000162075),
    (1, 1048576.0, 134217728.0, -1044487.3539480601, -0.99224711573401163, -3.0202399802386181e-5),
    (7, 9.5367431640625e-07, 9.5367431640625e-07, -20.660882348709103, 3670015.5, -2621437.7431486029),
    (7, 9.5367431640625e-07, 0.5, -93.751751386805211, 7340017.0000286102, -10.089705786904381),
    (7, 9.5367431640625e-07, 100.0, -105.36017611405169, 7340030.9300000102, -0.0020131933973679259),
    (7, 9.5367431640625e-07, 134217728.0, -105.56576743666993, 7340030.9999999478, -1.1657337676428087e-15),
    (7, 1.0, 9.5367431640625e-07, -15.808871320204035, 5.7220404414744935e-6, 1048558.5870597349),
    (7, 1.0, 0.5, -4.950723968322587, 2.0, -1.1883447784005994),
    (7, 1.0, 100.0, -9.3842552165168179, 5.9405940594059406, -0.0013694655121673843),
    (7, 1.0, 134217728.0, -9.525161253031998, 5.9999999552965168, -8.0491165783592723e-16),
    (7, 1000.0, 9.5367431640625e-07, -15.808871238910609, -9.4699859528827801e-10, 1048558.6722996856),
    (7, 1000.0, 0.5, -5.3673623598148055, -0.00049625187406296852, -2.6986310761902861),
    (7, 1000.0, 100.0, -216.54007705177852, -0.090272727272727273, -1.4271811941360377),
    (7, 1000.0, 134217728.0, -960.16720113380331, -0.99299260162858942, -2.7367890461699149e-11),
    (7, 1048576.0, 9.5367431640625e-07, -15.808877865225733, -9.0948863023993514e-13, 1048551.7241046796),
    (7, 1048576.0, 0.5, -8.8412110393886411, -4.7683374759961965e-7, -9.6458309108823482),
    (7, 1048576.0, 100.0, -901.87092486302949, -9.5357700975304589e-5, -8.1899840155814011),
    (7, 1048576.0, 134217728.0, -1044412.7481404402, -0.99224143804505814, -3.02020532649195e-5),
    (1000000, 9.5367431640625e-07, 9.5367431640625e-07, -693174.85900104954, 524287999999.5, -524286951409.80042),
    (1000000, 9.5367431640625e-07, 0.5, -13169805.818107075, 1048574000002.8147, -1999980.4062894263),
    (1000000, 9.5367431640625e-07, 100.0, -18467105.20043499, 1048575989999.0001, -9990.7844564322928),
    (1000000, 9.5367431640625e-07, 134217728.0, -26674745.926817049, 1048575999998.9925, -2.7618450438372138e-5),
    (1000000, 1.0, 9.5367431640625e-07, -28.632127525584433, 0.95367245323900868, 48578.483452042503),
    (1000000, 1.0, 0.5, -405473.13753465562, 333333.0, -666651.31959170468),
    (1000000, 1.0, 100.0, -4614112.90558464, 990098.0198019802, -9891.7747001503787),
    (1000000, 1.0, 134217728.0, -12811803.323067758, 999998.99254942691, -2.7618394927302015e-5),
    (1000000, 1000.0, 9.5367431640625e-07, -27.679413925989081, 9.5272064118125854e-7, 1047570.6220262157),
    (1000000, 1000.0, 0.5, -511.15586316524662, 0.4992503748125937, -990.3231313757854),
    (1000000, 1000.0, 100.0, -94541.363041899976, 90.818181818181818, -901.36426525434012),
    (1000000, 1000.0, 134217728.0, -5905054.4834626142, 998.9925569254389, -2.7562967456080936e-5),
    (1000000, 1048576.0, 9.5367431640625e-07, -27.678467794152309, -4.2132963784486371e-14, 1048562.7131626153),
    (1000000, 1048576.0, 0.5, -15.235003025721109, -2.2089796783424958e-8, 1.2692549768937965),
    (1000000, 1048576.0, 100.0, -12.543473561022236, -4.4175401738716248e-6, 0.0039006782347367881),
    (1000000, 1048576.0, 134217728.0, -1142.0539698612702, -0.04596656976744186, -6.446926140636513e-8),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes(dtype, device, backend):
    for x, mu, theta, want, d_mu, d_theta in EXTREMES:
        given = [torch.tensor([v], dtype=dtype, device=device) for v in (mu, theta)]
        count = torch.tensor([x], dtype=torch.int64, device=device)
        value, grads = value_and_grads(lambda m, t, count=count: vae_fast.negative_binomial_log_prob(count, m, t), given)
        tolerance = 1e-6 if dtype == torch.float32 else 1e-8
        for got, true, size in (
            (value, want, 1.0),
            (grads[0], d_mu, x / mu + (x + theta) / (mu + theta)),
            (grads[1], d_theta, 1.0 / theta),
        ):
            assert abs(got.item() - true) <= tolerance * max(abs(true), size), (x, mu, theta, got.item(), true)


@pytest.mark.parametrize("eps", [None, 1e-8])
def test_no_nan_at_extremes(eps, device, backend):
    x = torch.tensor([0, 1, 2, 1000, 10**6], device=device)
    numbers = torch.tensor([0.0, 1e-40, 1e-20, 1e-6, 1.0, 1e6, 1e8, 1e20, 1e38], device=device)
    logs = torch.tensor([-1e30, -1e4, -100.0, -1.0, 0.0, 5.0, 100.0, 1e4, 1e30], device=device)
    for space, given in (("linear", numbers), ("log", logs)):
        grid = torch.cartesian_prod(x.float(), given, given, logs)
        count, mu, theta, logits = (t.contiguous() for t in grid.unbind(1))
        for f, parameters in (
            (vae_fast.negative_binomial_log_prob, [mu, theta]),
            (vae_fast.zero_inflated_negative_binomial_log_prob, [mu, theta, logits]),
        ):
            value, grads = value_and_grads(lambda *t, f=f, s=space, c=count: f(c, *t, space=s, eps=eps, event_dim=0), parameters)
            assert not value.isnan().any() and (value <= 0).all()
            if backend == "compiled":  # the plain formula's derivative of what is out of range is not a number
                assert not any(g.isnan().any() for g in grads)
    count, rate = (t.contiguous() for t in torch.cartesian_prod(x.float(), numbers).unbind(1))
    assert not vae_fast.poisson_log_prob(count, rate, event_dim=0).isnan().any()
    assert not vae_fast.poisson_log_prob(count, log_rate=logs.repeat(5), event_dim=0).isnan().any()


def test_nothing_of_nothing(device, backend):
    zero = torch.zeros(1, 3, device=device)
    assert vae_fast.poisson_log_prob(zero, zero).item() == 0.0
    assert vae_fast.negative_binomial_log_prob(zero, zero, zero + 2.0).item() == 0.0
    assert vae_fast.poisson_log_prob(zero + 1.0, zero).item() == -math.inf
    assert vae_fast.negative_binomial_log_prob(zero + 1.0, zero, zero + 2.0).item() == -math.inf


def test_a_large_theta_is_poisson(device, backend):
    x, mu, *_ = (t.to(device) for t in draw(dtype=torch.float64))
    mu = mu * 20.0
    want, (d_mu,) = value_and_grads(lambda m: vae_fast.poisson_log_prob(x, m), [mu])
    for theta, tolerance in ((1e8, 1e-5), (1e15, 1e-11), (math.inf, 1e-12)):
        value, (got, d_theta) = value_and_grads(
            lambda m, t: vae_fast.negative_binomial_log_prob(x, m, t), [mu, torch.tensor(theta, dtype=torch.float64, device=device)]
        )
        torch.testing.assert_close(value, want, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(got, d_mu, rtol=tolerance, atol=tolerance)
        assert d_theta.abs() < 1e-8


def test_a_logarithm_beyond_its_range_is_read_as_its_end(device, backend):
    x = torch.tensor([[0.0, 3.0]], device=device)
    at = torch.tensor([[0.5, 0.5]], device=device)
    for far, end in ((100.0, 60.0), (-100.0, -60.0)):
        value, (g,) = value_and_grads(lambda t: vae_fast.negative_binomial_log_prob(x, at, t, space="log"), [torch.full_like(at, far)])
        want = vae_fast.negative_binomial_log_prob(x, at, torch.full_like(at, end), space="log")
        torch.testing.assert_close(value, want)
        assert (g == 0).all()


# --- what is refused ---------------------------------------------------------------------------------------------------


A = torch.ones(3, 4)
REFUSED = {
    "bool": ("poisson_log_prob", {"x": A.bool(), "rate": A}, TypeError, ["x has dtype bool", "int64", "x.int()"]),
    "int8": ("poisson_log_prob", {"x": A.to(torch.int8), "rate": A}, TypeError, ["x has dtype int8"]),
    "gradient": ("negative_binomial_log_prob", {"x": A.clone().requires_grad_(), "mu": A, "theta": A}, ValueError, ["x.detach()"]),
    "both rates": ("poisson_log_prob", {"x": A, "rate": A, "log_rate": A}, ValueError, ["rate and log_rate", "both"]),
    "no rate": ("poisson_log_prob", {"x": A}, ValueError, ["rate and log_rate", "neither"]),
    "integer mu": ("negative_binomial_log_prob", {"x": A, "mu": A.int(), "theta": A}, TypeError, ["mu has dtype int32"]),
    "space": ("negative_binomial_log_prob", {"x": A, "mu": A, "theta": A, "space": "exp"}, ValueError, ["space='exp'", "'linear', 'log'"]),
    "eps": ("negative_binomial_log_prob", {"x": A, "mu": A, "theta": A, "eps": -1.0}, ValueError, ["eps=-1.0"]),
    "event": (
        "negative_binomial_log_prob",
        {"x": A[:, :3], "mu": A, "theta": A},
        ValueError,
        ["x has shape (3, 3)", "mu has shape (3, 4)"],
    ),
    "theta": ("negative_binomial_log_prob", {"x": A, "mu": A, "theta": A[:, :3]}, ValueError, ["theta has shape (3, 3)"]),
}
VALUES = {
    "half a count": ({"x": A * 0.5}, "x[0, 0] = 0.5: expected non-negative integers"),
    "between the extremes": ({"x": torch.tensor([[0.0, 1.5, 3.0, 7.0]] * 3)}, "x[0, 1] = 1.5: expected non-negative integers"),
    "negative": ({"x": -A.int()}, "x[0, 0] = -1: expected non-negative integers"),
    "infinite": ({"x": A / 0.0}, "x[0, 0] = inf: expected non-negative integers"),
    "mean": ({"mu": -A}, "mu[0, 0] = -1.0: expected finite numbers of at least 0"),
    "dispersion": ({"theta": A * 0.0}, "theta[0, 0] = 0.0: expected positive finite numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, backend):
    function, arguments, kind, words = REFUSED[name]
    assert_refused(lambda: getattr(vae_fast, function)(**arguments), kind, words)


@pytest.mark.parametrize("name", VALUES)
def test_values_are_looked_at_on_request(name, backend):
    changed, message = VALUES[name]
    arguments = {"x": A, "mu": A, "theta": A} | changed
    vae_fast.negative_binomial_log_prob(**arguments)
    assert_refused(lambda: vae_fast.negative_binomial_log_prob(**arguments, check_data=True), ValueError, [message])
    with vae_fast.checks():
        mixture = {"x": arguments["x"], "mu_1": A, "mu_2": arguments["mu"], "theta_1": A, "theta_2": arguments["theta"], "pi_logits": A}
        message = message.replace("mu[", "mu_2[").replace("theta[", "theta_2[")
        assert_refused(lambda: vae_fast.negative_binomial_mixture_log_prob(**mixture), ValueError, [message])


# --- in a model --------------------------------------------------------------------------------------------------------


class Heads(nn.Module):
    """As many parameters as a likelihood has."""

    def __init__(self, many, genes):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(3, genes) for _ in range(many))

    def forward(self, z):
        out = tuple(head(z) for head in self.heads)
        return out if len(out) > 1 else out[0]


@pytest.mark.parametrize("name", ["poisson", "negative_binomial", "zero_inflated_negative_binomial"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32], ids=str)
def test_a_vae_trains_and_generates(name, dtype, device, backend):
    genes = 12
    x = torch.poisson(torch.rand(64, genes) * 4.0).to(device, dtype)
    many = len(LIKELIHOODS[name].parameters)
    vae = VAE(nn.Linear(genes, 6), Heads(many, genes), latent_dim=3, likelihood=name).to(device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = vae.loss(x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert vae.sample(5).shape == (5, genes)
    drawn = vae.sample(5, mean=False)
    assert (drawn == drawn.floor()).all() and (drawn >= 0).all()
    assert vae.log_prob(x[:4], num_samples=3).shape == (4,)


def test_a_vae_takes_sparse_counts(backend):
    x = torch.poisson(torch.rand(6, 12) * 2.0)
    vae = VAE(nn.Linear(12, 6), Heads(2, 12), latent_dim=3, likelihood="negative_binomial")
    noise = torch.randn(6, 3)
    rows = x.to_sparse_csr()
    torch.testing.assert_close(vae.loss(rows, noise), vae.loss(x, noise), rtol=0.0, atol=0.0)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    got, want = (vae.log_prob(data, 3, generator=g) for data, g in zip((rows, x), generators, strict=True))
    torch.testing.assert_close(got, want, rtol=0.0, atol=0.0)


def test_the_elbo_holds_the_likelihood(device, backend):
    x, mu, theta, *_, pi = (t.to(device) for t in draw())
    latent = torch.zeros(6, 2, device=device)
    recon = (mu.log(), theta.log(), pi)
    for name, given in (("poisson", recon[0]), ("negative_binomial", recon[:2]), ("zero_inflated_negative_binomial", recon)):
        got = vae_fast.elbo(x.int(), given, latent, latent, likelihood=name)
        f = getattr(vae_fast, f"{name}_log_prob")
        want = f(x, log_rate=given) if name == "poisson" else f(x, *given, space="log")
        torch.testing.assert_close(got, want)
    assert_refused(
        lambda: vae_fast.elbo_loss(x, mu, latent, latent, likelihood="negative_binomial"), ValueError, ["recon", "(log_mu, log_theta) pair"]
    )
    assert_refused(
        lambda: vae_fast.elbo_loss(x, recon[:2], latent, latent, likelihood="zero_inflated_negative_binomial"),
        ValueError,
        ["recon", "(log_mu, log_theta, zi_logits) triple", "2 items"],
    )


def test_draws_have_the_moments_of_the_distribution(device):
    generator = torch.Generator(device).manual_seed(3)
    n = 200_000
    log_mu, log_theta, logits = (torch.full((n,), v, device=device) for v in (1.0, 0.3, -0.5))
    mu, theta, kept = math.exp(1.0), math.exp(0.3), 1.0 / (1.0 + math.exp(-0.5))
    variance = mu + mu**2 / theta
    for name, given, mean, var in (
        ("poisson", [log_mu], mu, mu),
        ("negative_binomial", [log_mu, log_theta], mu, variance),
        ("zero_inflated_negative_binomial", [log_mu, log_theta, logits], kept * mu, kept * (variance + mu**2) - (kept * mu) ** 2),
    ):
        entry = LIKELIHOODS[name]
        drawn = entry.draw(given, generator)
        assert abs(drawn.mean().item() - mean) < 5.0 * math.sqrt(var / n)
        assert abs(drawn.var().item() / var - 1.0) < 0.05
        torch.testing.assert_close(entry.mean(given)[0].item(), mean, rtol=1e-5, atol=0.0)


# --- sparse rows -------------------------------------------------------------------------------------------------------


def sparse(x, dtype, index):
    rows = x.to(dtype).to_sparse_csr()
    return torch.sparse_csr_tensor(rows.crow_indices().to(index), rows.col_indices().to(index), rows.values(), x.shape)


@pytest.mark.parametrize("shape", [(7, 40), (3, 2500), (2, 40_000), (5, 1), (4, 0), (0, 6)], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64], ids=str)
def test_sparse_counts_are_the_same_as_dense_ones(shape, dtype, backend):
    x, mu, theta, *_, pi = draw(shape, zeros=0.9)
    x = x.clamp(max=200.0)
    if shape[0] > 1 and shape[1] > 0:
        x[1] = 0.0
        x[0, -1] = 3.0
    for index in (torch.int32, torch.int64):
        csr = sparse(x, dtype, index)
        for name, given in (("poisson", [mu]), ("negative_binomial", [mu, theta]), ("zero_inflated_negative_binomial", [mu, theta, pi])):
            f = getattr(vae_fast, f"{name}_log_prob")
            value, grads = value_and_grads(lambda *t, f=f, x=csr: f(x, *t), given)
            want, want_grads = value_and_grads(lambda *t, f=f: f(x.to(dtype), *t), given)
            assert value.dtype == want.dtype and value.layout == torch.strided
            torch.testing.assert_close(value, want, rtol=0.0, atol=0.0)
            for g, w in zip(grads, want_grads, strict=True):
                torch.testing.assert_close(g, w, rtol=0.0, atol=0.0)


def test_stored_zeros_are_zeros(backend):
    """CSR data may hold them: to_sparse_csr of counts of which some were set to 0 afterwards."""
    x, mu, theta, *_ = draw((5, 1500), zeros=0.9)
    rows = (x + 1.0).to_sparse_csr()
    rows.values().copy_(x.flatten())
    value, grads = value_and_grads(lambda *t: vae_fast.negative_binomial_log_prob(rows, *t), [mu, theta])
    want, want_grads = value_and_grads(lambda *t: vae_fast.negative_binomial_log_prob(x, *t), [mu, theta])
    torch.testing.assert_close((value, *grads), (want, *want_grads), rtol=0.0, atol=0.0)


def test_sparse_counts_in_a_loss(backend):
    x, mu, theta, *_, pi = draw((9, 700), zeros=0.9)
    latent = torch.randn(9, 2)
    for name, given in (("poisson", [mu.log()]), ("zero_inflated_negative_binomial", [mu.log(), theta.log(), pi])):
        f = lambda rows, *t, name=name: vae_fast.elbo_loss(rows, t if len(t) > 1 else t[0], latent, latent, likelihood=name)  # noqa: E731
        value, grads = value_and_grads(lambda *t, f=f: f(sparse(x, torch.int32, torch.int64), *t), given)
        want, want_grads = value_and_grads(lambda *t, f=f: f(x, *t), given)
        torch.testing.assert_close(value, want, rtol=0.0, atol=0.0)
        for g, w in zip(grads, want_grads, strict=True):
            torch.testing.assert_close(g, w, rtol=0.0, atol=0.0)


def test_sparse_counts_have_a_second_derivative(backend):
    x, mu, theta, *_ = draw((3, 8), torch.float64)
    rows = sparse(x, torch.int64, torch.int64)
    theta = theta[0].detach()
    assert torch.autograd.gradcheck(
        lambda m, t: vae_fast.negative_binomial_log_prob(rows, m, t), (mu.requires_grad_(), theta.requires_grad_())
    )
    assert torch.autograd.gradgradcheck(lambda m, t: vae_fast.negative_binomial_log_prob(rows, m, t), (mu, theta))


def test_sparse_counts_are_checked(backend):
    x = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.5, 1.0]]).to_sparse_csr()
    one = torch.ones(2, 3)
    assert_refused(lambda: vae_fast.poisson_log_prob(x, one, check_data=True), ValueError, ["x.values()[1] = 0.5", "non-negative integers"])
    assert_refused(lambda: vae_fast.poisson_log_prob(x, one[0]), ValueError, ["x is sparse and has shape (2, 3)", "(3,)", "x.to_dense()"])
    assert_refused(lambda: vae_fast.poisson_log_prob(x, one, event_dim=2), ValueError, ["x is sparse", "event_dim=2"])
    assert_refused(lambda: vae_fast.poisson_log_prob(one.to_sparse_csc(), one), TypeError, ["x has layout torch.sparse_csc"])
    assert_refused(lambda: vae_fast.poisson_log_prob(one.bool().to_sparse_csr(), one), TypeError, ["x has dtype bool"])
    assert_refused(lambda: vae_fast.bernoulli_log_prob(x, one), TypeError, ["x has layout torch.sparse_csr"])
