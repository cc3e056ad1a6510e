"""Mixtures of Gaussians: more components, by gradient and by EM, on a density of the plane; and the weight of cats.

    python examples/mixtures.py [--quick] [--out DIR]

Writes mixtures.png, cats.png and mixtures.json.
"""

import time
import warnings
from pathlib import Path
from typing import Any

import torch
from _common import finish, options, save, table
from matplotlib.figure import Figure

from vae_fast import plots
from vae_fast.data.toys import CATS, toy, toy_log_prob
from vae_fast.models import ConvergenceWarning, MixtureOfGaussians

COMPONENTS = (2, 12, 50, 100)
METHODS = {"adam": "gradient", "em": "EM"}


def fit(x: torch.Tensor, k: int, method: str, iterations: int) -> tuple[MixtureOfGaussians, float]:
    """A mixture of k Gaussians with full covariances, and the seconds it took."""
    lr = 0.02 if method == "adam" else None
    batch = 1000 if method == "adam" else None
    model = MixtureOfGaussians(k, method=method, max_iter=iterations, tol=1e-5, reg_covar=1e-5, lr=lr, batch_size=batch, random_state=0)
    begin = time.perf_counter()
    model.fit(x)
    return model, time.perf_counter() - begin


def galaxy(out: Path, quick: bool, seed: int) -> dict[str, object]:
    """K = 2, 12, 50, 100 by both methods: one picture of densities, one row of figures per fit."""
    n, iterations = (1000, 5) if quick else (20_000, 500)
    train, test = toy("galaxy", n, seed=seed), toy("galaxy", n, seed=seed + 1)
    truth = toy_log_prob("galaxy", test).mean().item()
    print(f"galaxy: {n:,} training and {n:,} test points; the true density: {truth:.3f} nats per test point")
    peak = toy_log_prob("galaxy", train).max().exp().item()
    figure = Figure(figsize=(5.2, 10.6), layout="constrained")
    panels = figure.subplots(4, 2, sharex=True, sharey=True)
    fits = []
    for row, (method, name) in zip(panels.T, METHODS.items(), strict=True):
        for axes, k in zip(row, COMPONENTS, strict=True):
            model, seconds = fit(train, k, method, iterations)
            found = {"train_log_likelihood": model.score(train), "test_log_likelihood": model.score(test)}
            ended = {"iterations": model.n_iter_, "converged": model.converged_}
            fits.append({"components": k, "method": method} | found | ended)
            plots.draw_density(axes, model.score_samples, plots.bounds_of(train), peak=peak)
            axes.set(xlabel="$x_1$", ylabel="$x_2$")
            axes.label_outer()
            axes.set_title(f"{name}, K = {k}: {found['test_log_likelihood']:.3f}", fontsize=11)
            axes.spines[["top", "right"]].set_visible(False)
            fitted, tested = found.values()
            print(f"{name:>8}  K = {k:>3}  training {fitted:.3f}  test {tested:.3f}  {seconds:.1f} s")
    figure.suptitle(f"Mean log-likelihood of test points, nats;\nthe true density reaches {truth:.3f}", fontsize=12)
    save(figure, out / "mixtures.png", dpi=120)
    return {"points": n, "true_test_log_likelihood": truth, "fits": fits}


def cats(out: Path, quick: bool, seed: int) -> dict[str, object]:
    """The weight of cats: a latent Bernoulli variable chooses one of two Gaussians, and EM finds both without being told the sex."""
    n = 500 if quick else 5000
    x = toy("cats", n, seed=seed)
    model = MixtureOfGaussians(2, tol=1e-7, max_iter=1000, random_state=0).fit(x)
    order = model.means_.flatten().argsort()
    weights, means, variances = (torch.from_numpy(t.flatten()[order]) for t in (model.weights_, model.means_, model.covariances_))
    plots.density_1d(out / "cats.png", x, weights, means, variances, "Weight of cats: two Gaussians found by EM", "kg")
    found = described(dict(zip(CATS, zip(weights.tolist(), means.tolist(), variances.sqrt().tolist(), strict=True), strict=True)))
    for f in found:
        print(f"cats: {f['name']:>6}: weight {f['weight']:.3f}, N({f['mean_kg']:.2f} kg, ({f['std_kg']:.2f} kg)^2)")
    fitted, truth = model.score(x), toy_log_prob("cats", x).mean().item()
    print(f"cats: log-likelihood {fitted:.4f} nats per cat; the true density: {truth:.4f}")
    return {"points": n, "log_likelihood": fitted, "true_log_likelihood": truth, "found": found, "true": described(CATS)}


def described(parts: dict[str, tuple[float, float, float]]) -> list[dict[str, object]]:
    """The Gaussians by name, for the JSON file."""
    return [{"name": name, "weight": w, "mean_kg": mean, "std_kg": std} for name, (w, mean, std) in parts.items()]


def main() -> None:
    """Fit, print, draw."""
    args = options(__doc__)
    warnings.simplefilter("ignore", ConvergenceWarning)  # mixtures.json says which fits converged
    results = {"galaxy": galaxy(args.out, args.quick, args.seed), "cats": cats(args.out, args.quick, args.seed)}
    finish(args, results, ("mixtures.png", "cats.png"))


def gaussians(parts: list[dict[str, float]]) -> str:
    """The components of a mixture on the line, in words."""
    return " and ".join(f"{p['weight']:.2f} N({p['mean_kg']:.2f} kg, ({p['std_kg']:.2f} kg)²)" for p in parts)


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    galaxy, cats = r["galaxy"], r["cats"]
    fits = {(fit["components"], fit["method"]): fit for fit in galaxy["fits"]}
    rows = [
        [k, *(f"{fits[k, method][f'{part}_log_likelihood']:.3f}" for method in METHODS for part in ("train", "test"))] for k in COMPONENTS
    ]
    head = ["K", "gradient: training", "gradient: test", "EM: training", "EM: test"]
    return f"""\
## Mixtures of Gaussians: `{r["command"]}`

![Densities of eight mixtures](pictures/mixtures.png)

Mixtures with full covariances fitted to {galaxy["points"]:,} points of the toy density `galaxy`, by Adam on the log-likelihood (left) and
by expectation maximisation (right). Of {galaxy["points"]:,} test points the true density has the mean log-likelihood
{galaxy["true_test_log_likelihood"]:.3f}.

{table(head, rows)}

![Histogram of weights with two Gaussians](pictures/cats.png)

The weight of {cats["points"]:,} (simulated) cats. A latent Bernoulli variable says female or male and each sex has a Gaussian; EM, which is
not told the sex, finds {gaussians(cats["found"])}, where the truth is {gaussians(cats["true"])}. Mean log-likelihood
{cats["log_likelihood"]:.4f}, of the true density {cats["true_log_likelihood"]:.4f}.

The same from the command line: `vae-fast mog --data galaxy -k 50`, `vae-fast mog --data cats -k 2`.
"""


if __name__ == "__main__":
    main()
