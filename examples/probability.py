"""Entropy, cross-entropy and the Kullback-Leibler divergence, and the variance of Monte Carlo estimates, each checked by numbers.

    python examples/probability.py [--quick] [--out DIR]

Writes probability.png and probability.json.
"""

from typing import Any

import torch
from _common import finish, options, save, table
from matplotlib.figure import Figure
from scipy.stats import entropy, linregress
from torch import Tensor
from torch.distributions import Normal

import vae_fast

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
    h_x, h_x_given_y = torch.special.entr(x).sum((1, 2)), (joint * (y / joint.clamp(min=1e-300)).log()).sum((1, 2))
    return {
        "pairs": pairs,
        "outcomes": outcomes,
        "cross_entropy_minus_entropy_minus_kl": (cross - h - kl).abs().max().item(),
        "information_minus_entropy_difference": (information - (h_x - h_x_given_y)).abs().max().item(),
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


def main() -> None:
    """Compute, print, draw."""
    args = options(__doc__)
    figure = Figure(figsize=(8.8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    results = {
        "discrete": discrete(1000),
        "bernoulli": bernoulli_entropy(left),
        "monte_carlo": monte_carlo(right, 2000 if args.quick else 20_000),
    }
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, args.out / "probability.png")
    for part, values in results.items():
        for name, value in values.items():
            print(f"{part}: {name} {value}")
    finish(args, results, ("probability.png",))


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    d, b, m = r["discrete"], r["bernoulli"], r["monte_carlo"]
    rows = [
        ["H(p, q) = H(p) + KL[p‖q]", f"largest difference {d['cross_entropy_minus_entropy_minus_kl']:.1e}"],
        ["I(X; Y) = H(X) − H(X | Y)", f"largest difference {d['information_minus_entropy_difference']:.1e}"],
        ["KL[p‖q] ≥ 0, and 0 for p = q", f"least {d['least_kl']:.3f}; for p = q {d['kl_of_p_and_p']:.1e}"],
        ["KL is not symmetric", f"in {d['share_kl_not_symmetric']:.1%} of pairs"],
        ["the uniform distribution has the most entropy", f"{d['entropy_of_uniform']:.4f}; the most of any p {d['greatest_entropy']:.4f}"],
        ["H of a Bernoulli variable is greatest at p = 1/2", f"{b['greatest']:.4f} at {b['at']:.3f}"],
        ["Monte Carlo is unbiased", f"mean {m['means'][-1]:.4f} (N = {m['counts'][-1]:,}), {m['means'][0]:.4f} (N = 1); `gaussian_kl`"
         f" {m['kl_closed_form']:.4f}, quadrature {m['kl_quadrature']:.4f}"],
        ["its variance is Var[g(X)] / N", f"slope of log variance against log N: {m['slope']:.3f}"],
    ]  # fmt: skip
    return f"""\
## Information and Monte Carlo: `{r["command"]}`

What the probabilistic modelling lecture deck says, and {d["pairs"]:,} random pairs of distributions of {d["outcomes"]} outcomes, or two
Gaussians, in nats:

{table(["the deck", "found"], rows)}

![Entropy of a Bernoulli variable; variance of a Monte Carlo estimate](pictures/probability.png)
"""


if __name__ == "__main__":
    main()
