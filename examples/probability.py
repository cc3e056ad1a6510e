"""Probability, information, Monte Carlo and maximum likelihood: what the decks say of them, each checked by numbers.

    python examples/probability.py [--quick] [--out DIR]

Writes probability.png, maximum_likelihood.png and probability.json.
"""

import math
from typing import Any

import torch
from _common import finish, options, save, table
from matplotlib.figure import Figure
from scipy.stats import entropy, linregress
from torch import Tensor
from torch.distributions import Normal

import vae_fast

#: Draws that the maximum likelihood is taken of.
COUNTS = (10, 100, 1000, 10_000)
#: The data of the maximum likelihood: 0.3 N(-1, 0.5^2) + 0.7 N(1, 0.4^2), by its weights' logits, means and log standard deviations.
DATA = (torch.tensor([0.3, 0.7]).log(), torch.tensor([[-1.0], [1.0]]), torch.tensor([[0.5], [0.4]]).log())
P, Q = Normal(0.5, 0.8), Normal(0.0, 1.0)


def discrete(pairs: int, outcomes: int = 10) -> dict[str, float]:
    """The deck's identities for random distributions of ten outcomes, each side computed by itself."""
    p, q = (torch.distributions.Dirichlet(torch.ones(outcomes, dtype=torch.float64)).sample((pairs,)) for _ in range(2))
    kl, h = torch.from_numpy(entropy(p.T, q.T)), torch.from_numpy(entropy(p.T))
    cross = -(p * q.log()).sum(1)
    back = torch.from_numpy(entropy(q.T, p.T))
    joint = (
        torch.distributions.Dirichlet(torch.full((outcomes**2,), 0.3, dtype=torch.float64)).sample((pairs,)).unflatten(1, (outcomes, -1))
    )
    x, y = joint.sum(2, keepdim=True), joint.sum(1, keepdim=True)
    information = (joint * (joint / (x * y)).clamp(min=1e-300).log()).sum((1, 2))
    p_x, p_y = joint.sum(2), joint.sum(1)
    x_given_y, y_given_x = joint / p_y[:, None], joint / p_x[:, :, None]
    itself = torch.diag_embed(p)  # the joint distribution of X and X
    of_itself = (itself * (itself / (p[:, :, None] * p[:, None])).clamp(min=1e-300).log()).sum((1, 2))
    product = p[:, :, None] * q[:, None]
    of_independent = (product * (product / (product.sum(2, keepdim=True) * product.sum(1, keepdim=True))).log()).sum((1, 2))
    third = torch.distributions.Dirichlet(torch.ones(outcomes, dtype=torch.float64)).sample((pairs,))
    detour = torch.from_numpy(entropy(p.T, third.T) + entropy(third.T, q.T))
    one = torch.eye(outcomes, dtype=torch.float64)
    h_x, h_x_given_y = torch.special.entr(x).sum((1, 2)), (joint * (y / joint.clamp(min=1e-300)).log()).sum((1, 2))
    return {
        "pairs": pairs,
        "outcomes": outcomes,
        "cross_entropy_minus_entropy_minus_kl": (cross - h - kl).abs().max().item(),
        "information_minus_entropy_difference": (information - (h_x - h_x_given_y)).abs().max().item(),
        "product_rule": ((x_given_y * p_y[:, None]) - (y_given_x * p_x[:, :, None])).abs().max().item(),
        "bayes_rule": (x_given_y * p_y[:, None] / p_x[:, :, None] - y_given_x).abs().max().item(),
        "conditionals_sum_to_one": (y_given_x.sum(2) - 1.0).abs().max().item(),
        "information_of_itself_minus_entropy": (of_itself - h).abs().max().item(),
        "information_of_independent": of_independent.abs().max().item(),
        "entropy_of_delta": torch.special.entr(one).sum(1).max().item(),
        "share_kl_longer_than_detour": (kl > detour).double().mean().item(),
        "least_kl": kl.min().item(),
        "kl_of_p_and_p": float(entropy(p.T, p.T).max()),
        "share_kl_not_symmetric": ((kl - back).abs() > 1e-6).double().mean().item(),
        "greatest_entropy": h.max().item(),
        "entropy_of_uniform": float(entropy(torch.ones(outcomes))),
    }


def bernoulli_entropy(axes: Any) -> dict[str, float]:
    """H(p) of a Bernoulli variable: greatest at 1/2."""
    p = torch.linspace(0.0, 1.0, 1001, dtype=torch.float64)
    h = torch.special.entr(p) + torch.special.entr(1.0 - p)
    axes.plot(p, h, color="#1f5fa8")
    axes.axhline(torch.tensor(2.0).log(), color="#8a8a8a", linestyle=":", linewidth=1.2)
    axes.text(0.02, 0.71, "log 2", color="#555555", fontsize="small")
    axes.set(xlabel="$p$", ylabel="$H$ in nats", ylim=(0.0, 0.8))
    axes.set_title("Entropy of a Bernoulli variable", loc="left", fontsize="medium")
    return {"greatest": h.max().item(), "at": p[h.argmax()].item()}


def log_ratio(x: Tensor) -> Tensor:
    """log p(x) - log q(x), whose mean under p is the divergence."""
    return P.log_prob(x) - Q.log_prob(x)


def monte_carlo(axes: Any, repeats: int) -> dict[str, Any]:
    """KL(P || Q) of two Gaussians by Monte Carlo: mean and variance of the estimate for N = 1 to 4096."""
    exact = vae_fast.gaussian_kl(P.loc.reshape(1, 1), P.scale.reshape(1, 1), Q.loc.reshape(1, 1), Q.scale.reshape(1, 1), scale="std").item()
    t = torch.linspace(-12.0, 12.0, 200_001, dtype=torch.float64)
    quadrature = torch.trapezoid(log_ratio(t) * P.log_prob(t).exp(), t).item()
    one = torch.trapezoid((log_ratio(t) - quadrature).square() * P.log_prob(t).exp(), t).item()
    counts = [4**i for i in range(7)]
    means, variances = [], []
    for n in counts:
        estimates = torch.cat([log_ratio(P.sample((100, n))).mean(1) for _ in range(repeats // 100)])
        means.append(estimates.mean().item())
        variances.append(estimates.var().item())
    slope = linregress(torch.tensor(counts).log2(), torch.tensor(variances).log2()).slope
    axes.loglog(counts, variances, "o", color="#1f5fa8", label=f"{repeats:,} estimates")
    axes.loglog(counts, [one / n for n in counts], color="#d9772b", label="Var[g(X)] / N")
    axes.set(xlabel="samples $N$", ylabel="variance of the estimate")
    axes.set_title("Monte Carlo estimate of $KL[p \\| q]$", loc="left", fontsize="medium")
    axes.legend(frameon=False)
    found = {"repeats": repeats, "counts": counts, "means": means, "variances": variances, "slope": float(slope)}
    return found | {"variance_of_one_sample": one, "kl_closed_form": exact, "kl_quadrature": quadrature}


def data_log_prob(x: Tensor) -> Tensor:
    """log p(x) of the data, ``(...)`` to ``(...)``."""
    return vae_fast.mixture_log_prob(x[..., None], DATA[0].to(x), DATA[1].to(x), DATA[2].to(x))


def draws(*shape: int) -> Tensor:
    """Of the data."""
    k = torch.multinomial(DATA[0].exp(), torch.Size(shape).numel(), replacement=True)
    return (DATA[1][k, 0] + DATA[2][k, 0].exp() * torch.randn(len(k))).double().reshape(shape)


def divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL[p_data || N(mu, sigma^2)] by quadrature, ``(...)`` to ``(...)``."""
    t = torch.linspace(-8.0, 8.0, 4001, dtype=torch.float64)
    log_p = data_log_prob(t)
    ratio = log_p - vae_fast.gaussian_log_prob(t[:, None], mu[..., None, None], logvar[..., None, None])
    return torch.trapezoid(log_p.exp() * ratio, t)


def least(x: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum-likelihood Gaussian of each row: mean and log-variance."""
    return x.mean(-1), x.var(-1, unbiased=False).log()


def maximum_likelihood(axes: Any, repeats: int) -> dict[str, Any]:
    """The likelihood of ever more draws has its maximum where KL[p_data || p_theta] has its minimum."""
    t = torch.linspace(-8.0, 8.0, 4001, dtype=torch.float64)
    p = data_log_prob(t).exp()
    mean = torch.trapezoid(p * t, t)
    best = (mean, torch.trapezoid(p * (t - mean) ** 2, t).log())
    leaves = tuple(v.clone().requires_grad_() for v in best)
    slope_there = max(g.abs().item() for g in torch.autograd.grad(divergence(*leaves), leaves))
    least_kl = divergence(*best)
    h = -torch.trapezoid(p * p.log(), t)
    mus = torch.linspace(-1.2, 1.8, 121, dtype=torch.float64)
    kl = divergence(mus, best[1].expand_as(mus))
    for n, colour in ((10, "#d9772b"), (1000, "#5a8f3c")):
        x = draws(n)
        each = [-vae_fast.gaussian_log_prob(x[:, None], mu.reshape(1), best[1].reshape(1)).mean() for mu in mus]
        axes.plot(mus, each, color=colour, label=f"cross-entropy from {n:,} draws")
        axes.plot(x.mean(), min(each), "v", color=colour)
    axes.plot(mus, kl + h, color="#1f5fa8", lw=2, label="KL + entropy of the data")
    axes.plot(mean, least_kl + h, "v", color="#1f5fa8")
    axes.set(xlabel="mean of the model", ylabel="nats", title="Likelihood and divergence")
    axes.legend(frameon=False, fontsize="small")
    gaps = [(divergence(*least(draws(repeats, n))) - least_kl).mean().item() for n in COUNTS]
    slope = linregress(torch.tensor(COUNTS).log(), torch.tensor(gaps).log()).slope
    found = {"counts": COUNTS, "kl_above_least": gaps, "slope": float(slope), "repeats": repeats}
    return found | {"least_kl": least_kl.item(), "gradient_of_kl_at_moments": slope_there}


def minibatches(axes: Any, repeats: int) -> dict[str, Any]:
    """The gradient of a minibatch's mean -log p is, in the mean, that of the whole cost: here the divergence's, at the model N(0, 1)."""
    leaf = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    exact = torch.autograd.grad(divergence(leaf, torch.zeros(1, dtype=torch.float64)).sum(), leaf)[0].item()
    counts, means, variances, off = (1, 10, 100), [], [], []
    for b, colour in zip(counts, ("#b9c9dd", "#6f96c4", "#1f5fa8"), strict=True):
        mu = torch.zeros(repeats, 1, dtype=torch.float64, requires_grad=True)  # a leaf for each minibatch: its gradient is its own
        cost = -vae_fast.gaussian_log_prob(draws(repeats, b), mu.expand(-1, b), torch.zeros(b, dtype=torch.float64)) / b
        g = torch.autograd.grad(cost.sum(), mu)[0].flatten()
        means.append(g.mean().item())
        variances.append(g.var().item())
        off.append(((g.mean() - exact).abs() / (g.std() / repeats**0.5)).item())
        axes.hist(g.numpy(), bins=80, range=(-2.6, 2.6), density=True, histtype="stepfilled", color=colour, label=f"b = {b}")
    axes.axvline(exact, color="#d9772b", lw=2, label="of the divergence")
    axes.set(xlabel="gradient of a minibatch", ylabel="density", title="Minibatches are unbiased")
    axes.legend(frameon=False, fontsize="small")
    slope = linregress(torch.tensor(counts).log(), torch.tensor(variances).log()).slope
    return {
        "repeats": repeats,
        "counts": counts,
        "exact": exact,
        "means": means,
        "largest_bias_in_standard_errors": max(off),
        "slope": float(slope),
    }


def decoders() -> dict[str, float]:
    """-log p(x|z) of each kind of decoder against the loss that it is, of 100 rows of 8 numbers."""
    a, x, labels = torch.randn(100, 8), torch.rand(100, 8), torch.randint(5, (100, 8))
    logits = torch.randn(100, 8, 5)
    f = torch.nn.functional
    found = {
        "normal": -vae_fast.gaussian_log_prob(x, a) - 0.5 * f.mse_loss(a, x, reduction="none").sum(1) - 4.0 * math.log(2.0 * math.pi),
        "bernoulli": -vae_fast.bernoulli_log_prob(x, a) - f.binary_cross_entropy_with_logits(a, x, reduction="none").sum(1),
        "categorical": -vae_fast.categorical_log_prob(labels, logits) - f.cross_entropy(logits.mT, labels, reduction="none").sum(1),
    }
    return {name: difference.abs().max().item() for name, difference in found.items()}


def main() -> None:
    """Compute, print, draw."""
    args = options(__doc__)
    figure = Figure(figsize=(8.8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    results = {
        "discrete": discrete(1000),
        "bernoulli": bernoulli_entropy(left),
        "monte_carlo": monte_carlo(right, 2000 if args.quick else 20_000),
        "decoders": decoders(),
    }
    second = Figure(figsize=(8.8, 3.8), layout="constrained")
    first_axes, second_axes = second.subplots(1, 2)
    results["maximum_likelihood"] = maximum_likelihood(first_axes, 50 if args.quick else 500)
    results["minibatches"] = minibatches(second_axes, 5000 if args.quick else 50_000)
    for axes in (left, right, first_axes, second_axes):
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, args.out / "probability.png")
    save(second, args.out / "maximum_likelihood.png")
    for part, values in results.items():
        for name, value in values.items():
            print(f"{part}: {name} {value}")
    finish(args, results, ("probability.png", "maximum_likelihood.png"))


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    d, b, m, e, g, likely = (r[k] for k in ("discrete", "bernoulli", "monte_carlo", "decoders", "minibatches", "maximum_likelihood"))
    rows = [
        ["p(x, y) = p(x | y) p(y) = p(y | x) p(x)", f"largest difference {d['product_rule']:.1e}"],
        ["Bayes: p(y | x) = p(x | y) p(y) / p(x)", f"largest difference {d['bayes_rule']:.1e}; Σ p(y | x) = 1 to"
         f" {d['conditionals_sum_to_one']:.1e}"],
        ["H(p, q) = H(p) + KL[p‖q]", f"largest difference {d['cross_entropy_minus_entropy_minus_kl']:.1e}"],
        ["I(X; Y) = H(X) − H(X | Y)", f"largest difference {d['information_minus_entropy_difference']:.1e}"],
        ["I(X; X) = H(X)", f"largest difference {d['information_of_itself_minus_entropy']:.1e}"],
        ["I(X; Y) = 0 of independent X and Y", f"largest {d['information_of_independent']:.1e}"],
        ["a delta has no entropy", f"{d['entropy_of_delta']:.1f}"],
        ["KL[p‖q] ≥ 0, and 0 for p = q", f"least {d['least_kl']:.3f}; for p = q {d['kl_of_p_and_p']:.1e}"],
        ["KL is not symmetric", f"in {d['share_kl_not_symmetric']:.1%} of pairs"],
        ["KL has no triangle inequality", f"KL[p‖q] > KL[p‖r] + KL[r‖q] for {d['share_kl_longer_than_detour']:.1%} of (p, q, r)"],
        ["the uniform distribution has the most entropy", f"{d['entropy_of_uniform']:.4f}; the most of any p {d['greatest_entropy']:.4f}"],
        ["H of a Bernoulli variable is greatest at p = 1/2", f"{b['greatest']:.4f} at {b['at']:.3f}"],
        ["Monte Carlo is unbiased", f"mean {m['means'][-1]:.4f} (N = {m['counts'][-1]:,}), {m['means'][0]:.4f} (N = 1); `gaussian_kl`"
         f" {m['kl_closed_form']:.4f}, quadrature {m['kl_quadrature']:.4f}"],
        ["its variance is Var[g(X)] / N", f"slope of log variance against log N: {m['slope']:.3f}"],
        ["a normal decoder's loss is the square error, a Bernoulli one's BCE, a categorical one's cross-entropy", "largest difference"
         f" {e['normal']:.1e}, {e['bernoulli']:.1e}, {e['categorical']:.1e} (float32)"],
    ]  # fmt: skip
    return f"""\
## Information and Monte Carlo: `{r["command"]}`

What the probabilistic modelling lecture deck says, and {d["pairs"]:,} random pairs of distributions of {d["outcomes"]} outcomes, or two
Gaussians, in nats:

{table(["the deck", "found"], rows)}

![Entropy of a Bernoulli variable; variance of a Monte Carlo estimate](pictures/probability.png)

*Maximum likelihood is the least divergence.* Data from a mixture of two Gaussians, a model that is one: KL[p_data‖p_θ] is least
({likely["least_kl"]:.4f}) at the data's mean and variance (its gradient there is {likely["gradient_of_kl_at_moments"]:.0e}), and the
maximum of the likelihood of N draws comes to it: it is {likely["kl_above_least"][0]:.3f} nats above it with
{likely["counts"][0]} draws and {likely["kl_above_least"][-1]:.5f} with {likely["counts"][-1]:,} (slope {likely["slope"]:.2f} of the
logarithms; means of {likely["repeats"]} data sets). *A minibatch's gradient is unbiased*: over {g["repeats"]:,} minibatches of
{", ".join(map(str, g["counts"]))} draws its mean is {", ".join(f"{v:.4f}" for v in g["means"])}, that of the divergence {g["exact"]:.4f}
(no more than {g["largest_bias_in_standard_errors"]:.1f} standard errors away); the variance falls with the slope {g["slope"]:.2f}.

![Cross-entropy of 10 and of 1,000 draws beside the divergence; gradients of minibatches](pictures/maximum_likelihood.png)
"""


if __name__ == "__main__":
    main()
