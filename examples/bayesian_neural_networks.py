"""Bayesian neural networks: Hamiltonian Monte Carlo, against one network (MAP) and independent Gaussian weights (variational).

    pip install vae_fast[experiments]
    python examples/bayesian_neural_networks.py [--quick] [--out DIR]

Pyro draws from the posterior; the variational weights are drawn and penalised by vae_fast.reparameterize_with_kl. Writes
bayesian_regression.png, bayesian_classification.png and bayesian_neural_networks.json.
"""

import math
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from _common import finish, options, save, table
from matplotlib.figure import Figure
from torch import Tensor

from vae_fast import bernoulli_log_prob, gaussian_log_prob, iwae_bound, reparameterize_with_kl
from vae_fast.data.toys import toy

NOISE, HIDDEN = 0.1, 20
#: Of a trajectory of HMC, which Pyro divides into steps of the size that it adapts: shorter where the data narrow the posterior.
LENGTHS = {"regression": 0.4, "classification": 2.0}
METHODS = {"map": "one network (MAP)", "variational": "independent Gaussians (variational)", "hmc": "Hamiltonian Monte Carlo"}
#: The same over a panel, in two lines where one is too long.
TITLES = {"map": "one network\n(MAP)", "variational": "independent Gaussians\n(variational)", "hmc": "Hamiltonian\nMonte Carlo"}


def pyro() -> SimpleNamespace:
    """What is used of Pyro, or one line that says how to get it."""
    try:
        from pyro.infer import HMC, MCMC
        from pyro.ops.stats import effective_sample_size, gelman_rubin
    except ModuleNotFoundError:
        sys.exit("error: Hamiltonian Monte Carlo needs Pyro: install it with `pip install vae_fast[experiments]` or `pip install pyro-ppl`")
    return SimpleNamespace(HMC=HMC, MCMC=MCMC, effective_sample_size=effective_sample_size, gelman_rubin=gelman_rubin)


def network(theta: Tensor, x: Tensor) -> Tensor:
    """Outputs ``(S, N)`` of S networks with one hidden layer of tanh units at N inputs; every weight has the prior N(0, 1).

    The scales that other priors would have are written here: inputs count 2 times, the output is divided by the root of the width.
    """
    inputs = x.shape[1]
    w1, b1, w2, b2 = theta.split((inputs * HIDDEN, HIDDEN, HIDDEN, 1), dim=-1)
    hidden = torch.tanh(2.0 * (x @ w1.unflatten(-1, (inputs, HIDDEN))) + 2.0 * b1.unsqueeze(-2))
    return 2.0 * (hidden @ w2.unsqueeze(-1)).squeeze(-1) / HIDDEN**0.5 + b2


@dataclass
class Problem:
    """Data, and the log-likelihood of outputs of networks."""

    name: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def size(self) -> int:
        """The number of weights."""
        return (self.x.shape[1] + 2) * HIDDEN + 1

    def log_likelihood(self, outputs: Tensor, y: Tensor, event_dim: int) -> Tensor:
        """log p(y | outputs), ``(S, N)``, or its sum over the data, ``(S,)``."""
        if self.name == "regression":
            return gaussian_log_prob(y.expand_as(outputs), outputs, torch.full_like(y, 2.0 * math.log(NOISE)), event_dim=event_dim)
        return bernoulli_log_prob(y.expand_as(outputs), outputs, event_dim=event_dim)

    def log_joint(self, theta: Tensor) -> Tensor:
        """log p(y | x, theta) + log p(theta), up to a constant."""
        return self.log_likelihood(network(theta, self.x), self.y, 1) - 0.5 * theta.square().sum(-1)

    def score(self, theta: Tensor) -> dict[str, float]:
        """How the average over the networks predicts the test data."""
        outputs = network(theta, self.test_x)
        each = self.log_likelihood(outputs, self.test_y, 0)
        found = {"test_log_likelihood": iwae_bound(each).mean().item()}
        if self.name == "regression":
            mean, std = outputs.mean(0), (outputs.var(0, correction=0) + NOISE**2).sqrt()
            error = self.test_y - mean
            return found | {"rmse": error.square().mean().sqrt().item(), "within_95": (error.abs() < 1.96 * std).double().mean().item()}
        probability = outputs.sigmoid().mean(0)
        return found | {"error_rate": ((probability > 0.5) != (self.test_y > 0.5)).double().mean().item()}


def regression() -> Problem:
    """A curve seen on two intervals, with noise; tested between and beside them too."""

    def f(x: Tensor) -> Tensor:
        return 0.6 * torch.sin(2.5 * x) + 0.2 * x

    x = torch.cat((torch.empty(12, 1).uniform_(-2.0, -0.6), torch.empty(12, 1).uniform_(0.6, 1.5)))
    test = torch.empty(1000, 1).uniform_(-2.4, 2.0)
    return Problem("regression", x, (f(x) + NOISE * torch.randn_like(x))[:, 0], test, (f(test) + NOISE * torch.randn_like(test))[:, 0])


def classification(seed: int) -> Problem:
    """Two moons with much noise, few of them."""

    def moons(n: int, seed: int) -> tuple[Tensor, Tensor]:
        x = toy("two-moons", n, seed=seed)
        x = x - torch.tensor([0.5, 0.25])
        # the upper moon is the half of the circle around the first centre: the nearer of the two noiseless arcs
        angle = torch.linspace(0.0, math.pi, 200)
        arcs = [torch.stack((angle.cos() - 0.5, angle.sin() - 0.25), 1), torch.stack((0.5 - angle.cos(), 0.25 - angle.sin()), 1)]
        upper, lower = (torch.cdist(x, arc).min(1).values for arc in arcs)
        return x + 0.2 * torch.randn_like(x), (upper > lower).float()

    return Problem("classification", *moons(40, seed), *moons(2000, seed + 1))


# --- three ways to fit ----------------------------------------------------------------------------------------------------


def ascend(objective: Any, parameters: list[Tensor], steps: int, lr: float) -> None:
    """Maximise with Adam, its step falling to zero along a cosine."""
    optimizer = torch.optim.Adam(parameters, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (-objective()).backward()
        optimizer.step()
        schedule.step()


def fit_map(problem: Problem, steps: int) -> Tensor:
    """The weights of highest posterior density that were found, ``(1, P)``."""
    theta = (0.5 * torch.randn(1, problem.size)).requires_grad_()
    ascend(lambda: problem.log_joint(theta).sum(), [theta], steps, 0.02)
    return theta.detach()


def fit_variational(problem: Problem, steps: int, draws: int) -> Tensor:
    """Maximise the ELBO of N(mu, diag(exp(logvar))) over the weights, 8 draws a step; draws of the result, ``(draws, P)``."""
    mu = (0.5 * torch.randn(problem.size)).requires_grad_()
    logvar = torch.full((problem.size,), -5.0).requires_grad_()

    def elbo() -> Tensor:
        theta, kl = reparameterize_with_kl(mu, logvar, num_samples=8)
        return problem.log_likelihood(network(theta, problem.x), problem.y, 1).mean() - kl

    ascend(elbo, [mu, logvar], steps, 0.02)
    return reparameterize_with_kl(mu.detach(), logvar.detach(), num_samples=draws)[0]


def fit_hmc(problem: Problem, warmup: int, draws: int, chains: int, seed: int, length: float) -> tuple[Tensor, dict[str, float]]:
    """Draws of the posterior by Pyro, the chains one after another, ``(chains * draws, P)``; how well they mix at the test inputs."""
    p, found, leapfrog = pyro(), [], []
    for chain in range(chains):
        torch.manual_seed(seed + chain)
        kernel = p.HMC(
            potential_fn=lambda named: -problem.log_joint(named["theta"][None])[0],
            trajectory_length=length,
            step_size=0.02,
            target_accept_prob=0.8,
        )
        start = {"theta": 0.5 * torch.randn(problem.size)}
        run = p.MCMC(kernel, num_samples=draws, warmup_steps=warmup, initial_params=start, disable_progbar=True)
        run.run()
        found.append(run.get_samples()["theta"])
        leapfrog.append(kernel.num_steps)
    theta = torch.stack(found)
    outputs = network(theta.flatten(0, 1), problem.test_x[:50]).unflatten(0, (chains, draws))
    mixing = {"r_hat_median": p.gelman_rubin(outputs).median().item(), "r_hat_largest": p.gelman_rubin(outputs).max().item()}
    mixing |= {"leapfrog_least": min(leapfrog), "leapfrog_most": max(leapfrog)}
    mixing["effective_samples_median"] = p.effective_sample_size(outputs).median().item()
    return theta.flatten(0, 1), mixing


# --- pictures -------------------------------------------------------------------------------------------------------------


def picture(path: Any, problem: Problem, thetas: dict[str, Tensor]) -> None:
    """Predictive bands (regression), or the probability of a class (classification): a panel for each method, and the key."""
    figure = Figure(figsize=(5.2, 5.6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True).flatten()
    panels[-1].set_axis_off()
    for axes, (method, theta) in zip(panels[:-1], thetas.items(), strict=True):
        if problem.name == "regression":
            line = torch.linspace(-2.4, 2.0, 300)[:, None]
            outputs = network(theta, line)
            mean, std = outputs.mean(0), (outputs.var(0, correction=0) + NOISE**2).sqrt()
            axes.fill_between(line[:, 0], mean - 1.96 * std, mean + 1.96 * std, color="#1f5fa8", alpha=0.2, linewidth=0, label="95%")
            axes.plot(line, 0.6 * torch.sin(2.5 * line) + 0.2 * line, color="#d9772b", linestyle="--", label="truth")
            axes.plot(line, mean, color="#1f5fa8", label="mean")
            axes.plot(problem.x, problem.y, "o", color="#222222", markersize=3, label="data")
            axes.set(ylim=(-2.2, 2.2))
        else:
            side = torch.linspace(-2.5, 2.5, 120)
            grid = torch.cartesian_prod(side, side)
            probability = torch.cat([network(theta, part).sigmoid().mean(0) for part in grid.split(2000)]).reshape(120, 120).T
            shade = axes.contourf(side, side, probability, levels=torch.linspace(0.0, 1.0, 11), cmap="RdBu_r", alpha=0.8)
            axes.contour(side, side, probability, levels=[0.5], colors="#222222", linewidths=1.0)
            axes.scatter(*problem.x.T, c=["#b2182b" if c else "#2166ac" for c in problem.y], s=16, edgecolors="white", linewidths=0.6)
            axes.set_aspect("equal")
        axes.set_title(TITLES[method], loc="left", fontsize=11)
        axes.tick_params(labelsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    of_x, of_y = ("$x$", "$y$") if problem.name == "regression" else ("$x_1$", "$x_2$")
    for axes, left, lowest in zip(panels[:-1], (True, False, True), (False, True, True), strict=True):
        axes.set_xlabel(of_x if lowest else "", fontsize=12)
        axes.set_ylabel(of_y if left else "", fontsize=12)
        axes.tick_params(labelbottom=lowest, labelleft=left)
    if problem.name == "regression":
        panels[-1].legend(*panels[0].get_legend_handles_labels(), frameon=False, fontsize=12, loc="center")
    else:
        bar = figure.colorbar(shade, cax=panels[-1].inset_axes([0.05, 0.5, 0.9, 0.1]), orientation="horizontal", ticks=[0.0, 0.5, 1.0])
        bar.set_label("probability of red", fontsize=12)
        bar.ax.tick_params(labelsize=11)
    save(figure, path, dpi=150)


def main() -> None:
    """Fit, print, draw."""
    args = options(__doc__)
    pyro()
    steps, warmup, draws, chains = (500, 50, 50, 2) if args.quick else (5000, 500, 500, 4)
    results: dict[str, Any] = {"steps": steps, "warmup": warmup, "draws": draws, "chains": chains, "hidden": HIDDEN, "noise": NOISE}
    for problem in (regression(), classification(args.seed)):
        seconds, thetas = {}, {}
        for method in METHODS:
            begin = time.perf_counter()
            if method == "map":
                thetas[method] = fit_map(problem, steps)
            elif method == "variational":
                thetas[method] = fit_variational(problem, steps, chains * draws)
            else:
                thetas[method], mixing = fit_hmc(problem, warmup, draws, chains, args.seed, LENGTHS[problem.name])
            seconds[method] = time.perf_counter() - begin
        part = {"points": len(problem.x), "test_points": len(problem.test_x), "weights": problem.size} | mixing
        with torch.no_grad():
            part["fits"] = [{"method": method} | problem.score(theta) for method, theta in thetas.items()]
            picture(args.out / f"bayesian_{problem.name}.png", problem, thetas)
        results[problem.name] = part
        for fit in part["fits"]:
            values = "  ".join(f"{key} {value:.3f}" for key, value in fit.items() if key != "method")
            print(f"{problem.name}, {METHODS[fit['method']]}: {values}  {seconds[fit['method']]:.1f} s")
        print(f"{problem.name}: " + ", ".join(f"{key} {value:.3f}" for key, value in mixing.items()))
    finish(args, results, ("bayesian_regression.png", "bayesian_classification.png"))


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    tables = []
    for name, columns in (("regression", ("rmse", "within_95")), ("classification", ("error_rate",))):
        formats = {"rmse": ".3f", "within_95": ".1%", "error_rate": ".1%"}
        heads = {"rmse": "root mean square error", "within_95": "inside the 95% band", "error_rate": "errors"}
        rows = [
            [METHODS[f["method"]], f"{f['test_log_likelihood']:.3f}", *(format(f[c], formats[c]) for c in columns)] for f in r[name]["fits"]
        ]
        tables.append(table([name, "test log-likelihood", *(heads[c] for c in columns)], rows))
    a, b = r["regression"], r["classification"]
    verdicts = []
    for name in ("regression", "classification"):
        one, _, hmc = (f["test_log_likelihood"] for f in r[name]["fits"])
        verdicts.append(f"{'does' if hmc > one else 'does not'} in the {name} ({hmc:.3f} against {one:.3f} nats per test point)")
    leapfrogs = [" to ".join(str(n) for n in sorted({part["leapfrog_least"], part["leapfrog_most"]})) for part in (a, b)]
    return f"""\
## Bayesian neural networks: `{r["command"]}`

The deep probabilistic models deck: the posterior of a network's weights is not tractable, *variational inference is a very simple
approximation*, Hamiltonian Monte Carlo draws from it, and *in simple tasks Bayesian networks with HMC can beat MAP networks*. Here HMC
{" and ".join(verdicts)}. One hidden layer of {r["hidden"]} tanh units, prior N(0, 1) on every weight
({a["weights"]} and {b["weights"]} of them); {a["points"]} points of a curve with noise {r["noise"]} and a gap, {b["points"]} points of two
noisy moons. HMC: Pyro, {r["chains"]} chains of {r["draws"]} draws after {r["warmup"]} steps of adaptation, trajectories of length
{LENGTHS["regression"]} and {LENGTHS["classification"]}, in steps of the size that was adapted ({" and ".join(leapfrogs)} of them); of the
predictions at 50 test inputs the median R̂ is {a["r_hat_median"]:.3f} and {b["r_hat_median"]:.3f}
(largest {a["r_hat_largest"]:.3f} and {b["r_hat_largest"]:.3f}), the median of effective draws
{a["effective_samples_median"]:,.0f} and {b["effective_samples_median"]:,.0f}.

{tables[0]}

![Predictive bands of three methods](pictures/bayesian_regression.png)

{tables[1]}

![Probabilities of a class by three methods](pictures/bayesian_classification.png)
"""


if __name__ == "__main__":
    main()
