"""Metropolis-Hastings beside Hamiltonian Monte Carlo and the variational posterior, on one Bayesian neural network and several data sets.

    pip install vae_fast[experiments]
    python examples/metropolis_hastings.py [--quick] [--out DIR]

The deep probabilistic models deck names both ways to walk through a posterior. Writes metropolis_hastings.png and
metropolis_hastings.json.
"""

import time
from typing import Any

import torch
from _common import finish, options, save, table
from bayesian_neural_networks import METHODS, Problem, classification, fit_hmc, fit_map, fit_variational, network, pyro
from matplotlib.figure import Figure
from torch import Tensor

NAMES = METHODS | {"mh": "Metropolis-Hastings"}
ACCEPTED = 0.234  # the best share for a random walk in many dimensions: Roberts, Gelman and Gilks (1997)


@torch.no_grad()
def walk(problem: Problem, warmup: int, draws: int, thin: int, chains: int) -> tuple[Tensor, float]:
    """Random-walk Metropolis, all chains at once: draws ``(chains, draws, P)``, one of every ``thin`` steps, and the share accepted.

    theta' = theta + s eps is taken with probability min(1, p(theta' | data) / p(theta | data)), as the walk is as probable either way; in
    the warm-up log s moves towards the share ``ACCEPTED`` (Robbins and Monro), and then it stays.
    """
    theta = 0.5 * torch.randn(chains, problem.size)
    now, log_step = problem.log_joint(theta), torch.full((chains, 1), -2.5)
    kept, taken = [], torch.zeros(())
    for i in range(-warmup, draws * thin):
        proposed = theta + log_step.exp() * torch.randn_like(theta)
        then = problem.log_joint(proposed)
        accept = torch.rand(chains).log() < then - now
        theta, now = torch.where(accept[:, None], proposed, theta), torch.where(accept, then, now)
        if i < 0:
            log_step += (accept.float() - ACCEPTED)[:, None] / (1 + i + warmup) ** 0.6
        else:
            taken += accept.float().mean()
            if (i + 1) % thin == 0:
                kept.append(theta)
    return torch.stack(kept, 1), (taken / (draws * thin)).item()


def mixing(outputs: Tensor) -> dict[str, float]:
    """Of outputs ``(chains, draws, inputs)``: medians over the inputs of R-hat and of the effective number of draws."""
    p = pyro()
    return {
        "r_hat": p.gelman_rubin(outputs).median().item(),
        "effective": p.effective_sample_size(outputs).median().item(),
    }


def autocorrelation(outputs: Tensor, most: int) -> list[float]:
    """Of the draws of each chain and input, by lag, averaged: ``(chains, draws, inputs)`` to ``most + 1`` numbers."""
    centred = outputs - outputs.mean((0, 1))
    variance = centred.square().mean((0, 1))
    n = outputs.shape[1]
    return [((centred[:, : n - lag] * centred[:, lag:]).mean((0, 1)) / variance).mean().item() for lag in range(most + 1)]


def main() -> None:
    """Walk, compare, print, draw."""
    args = options(__doc__)
    pyro()
    sets, steps, warmup, draws, chains, thin, lags = (1, 300, 50, 50, 2, 20, 20) if args.quick else (5, 1500, 150, 150, 2, 100, 60)
    results: dict[str, Any] = {"sets": sets, "warmup": warmup, "draws": draws, "chains": chains, "thin": thin, "accepted": ACCEPTED}
    results["fits"] = []
    curves: dict[str, list[list[float]]] = {"hmc": [], "mh": []}
    for number in range(sets):
        torch.manual_seed(args.seed + number)
        problem = classification(args.seed + 2 * number)
        for method in NAMES:
            begin, found, row = time.perf_counter(), None, {"set": number, "method": method}
            if method == "map":
                theta = fit_map(problem, steps)
            elif method == "variational":
                theta = fit_variational(problem, steps, chains * draws)
            elif method == "hmc":
                theta, chain = fit_hmc(problem, warmup, draws, chains, args.seed + 100 * number)
                row |= {key: chain[key] for key in ("leapfrog_least", "leapfrog_most")}
                found = theta.unflatten(0, (chains, draws))
            else:
                found, row["accepted"] = walk(problem, warmup * thin, draws, thin, chains)
                theta = found.flatten(0, 1)
            seconds = time.perf_counter() - begin
            with torch.no_grad():
                row |= problem.score(theta)
                if found is not None:
                    outputs = network(found.flatten(0, 1), problem.test_x[:50]).unflatten(0, (chains, draws))
                    row |= mixing(outputs)
                    row["effective_per_second"] = row["effective"] / seconds
                    curves[method].append(autocorrelation(outputs, lags))
            results["fits"].append(row)
            print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
    results["autocorrelation"] = {m: torch.tensor(c).mean(0).tolist() for m, c in curves.items()}
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for method, colour in (("hmc", "#1f5fa8"), ("mh", "#d9772b")):
        label = NAMES[method] + (f", a draw in {thin} steps" if method == "mh" else ", a draw in a trajectory")
        axes.plot(results["autocorrelation"][method], "o-", markersize=3, color=colour, label=label)
    axes.axhline(0.0, color="#999999", linewidth=0.8)
    axes.set(xlabel="draws apart", ylabel="autocorrelation of the network's outputs")
    axes.legend(frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, args.out / "metropolis_hastings.png")
    finish(args, results, ("metropolis_hastings.png",))


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""

    def mean(method: str, key: str) -> float:
        values = [f[key] for f in r["fits"] if f["method"] == method]
        return sum(values) / len(values)

    rows = []
    for method, name in NAMES.items():
        row = [name, f"{mean(method, 'test_log_likelihood'):.3f}", f"{mean(method, 'error_rate'):.1%}"]
        walked = method in ("hmc", "mh")
        row += [f"{mean(method, 'effective'):.0f}", f"{mean(method, 'effective_per_second'):.1f}", f"{mean(method, 'r_hat'):.2f}"] * walked
        rows.append(row + [""] * (6 - len(row)))
    head = ["method", "test log-likelihood", "errors", "effective draws", "effective draws per second", "R̂"]
    by_set = [{f["method"]: f["test_log_likelihood"] for f in r["fits"] if f["set"] == i} for i in range(r["sets"])]
    wins = sum(s["hmc"] > s["map"] for s in by_set)
    least, most = (f([r_[k] for r_ in r["fits"] if r_["method"] == "hmc"]) for f, k in ((min, "leapfrog_least"), (max, "leapfrog_most")))
    faster = mean("hmc", "effective_per_second") / mean("mh", "effective_per_second")
    verdict = "much more adequate, as the deck says" if faster > 2.0 else "the deck's verdict is not seen in a network as small as this"
    return f"""\
## Metropolis-Hastings: `{r["command"]}`

*Very useful with simple distributions; not the case of Bayesian networks*, says the deck of Metropolis-Hastings, and of HMC *much more
adequate*. The classification above, its network and {r["sets"]} data sets of their own; means over them. A random walk whose step was tuned
to {r["accepted"]:.3f} accepted (found: {mean("mh", "accepted"):.3f}), all chains at once, and HMC as above ({least} to {most} leapfrog
steps), a chain after the other: {r["chains"]} chains of {r["draws"]} draws each, of the walk one of every {r["thin"]} steps. Effective
draws and R̂: medians of the network's outputs at 50 test inputs; seconds include the warm-up.

{table(head, rows)}

HMC has {faster:.2g} times as many effective draws per second as the walk: {verdict}. *In simple tasks HMC can beat MAP*: here it has the
higher test log-likelihood in {wins} of {r["sets"]} data sets.

![Autocorrelation of the draws](pictures/metropolis_hastings.png)
"""


if __name__ == "__main__":
    main()
