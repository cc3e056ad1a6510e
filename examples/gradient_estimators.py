"""Two ways to the gradient of an expectation: the score function and reparameterisation, held against the exact gradient of one ELBO.

    python examples/gradient_estimators.py [--quick] [--out DIR]

The ELBO is that of evidence.py's linear Gaussian model, whose gradient is known; the thesis (section 3.3.3) names both estimators. Writes
gradient_estimators.png and gradient_estimators.json.
"""

from typing import Any

import torch
from _common import finish, options, save, table
from evidence import LATENT, LinearGaussian
from matplotlib.figure import Figure
from scipy.stats import linregress
from torch import Tensor

import vae_fast

ESTIMATORS = {
    "score": "score function",
    "baseline": "score function, mean of the other samples as baseline",
    "joint": "reparameterised, log q(z) sampled (SGVB A)",
    "kl": "reparameterised, KL in closed form (SGVB B)",
}
COUNTS = [1, 2, 4, 8, 16, 32, 64]


def per_sample(model: LinearGaussian, x: Tensor, mu: Tensor, logvar: Tensor, samples: int) -> dict[str, Tensor]:
    """Of each estimator, gradients in (mu, logvar) of one sample each, ``(samples, 2 LATENT)``; of "score" the weights f beside them.

    One leaf for each sample, so that the gradient of a sum is every sample's own.
    """
    noise = torch.randn(samples, LATENT, dtype=torch.float64)
    zero = torch.zeros(LATENT, dtype=torch.float64)

    def leaves() -> tuple[Tensor, Tensor]:
        return tuple(t.expand(samples, LATENT).clone().requires_grad_() for t in (mu, logvar))  # type: ignore[return-value]

    def fit(z: Tensor) -> Tensor:
        return vae_fast.gaussian_log_prob(x, z @ model.w.T, model.logvar)

    def gradient(value: Tensor, at: tuple[Tensor, Tensor]) -> Tensor:
        return torch.cat(torch.autograd.grad(value.sum(), at), 1)

    a = leaves()
    z = vae_fast.reparameterize(*a, noise=noise)
    found = {"joint": gradient(fit(z) + vae_fast.gaussian_log_prob(z, zero, zero) - vae_fast.gaussian_log_prob(z, *a), a)}
    a = leaves()
    found["kl"] = gradient(fit(vae_fast.reparameterize(*a, noise=noise)) - vae_fast.gaussian_kl(*a), a)
    a = leaves()
    z = vae_fast.reparameterize(*a, noise=noise).detach()
    log_q = vae_fast.gaussian_log_prob(z, *a)
    found["weight"] = (fit(z) + vae_fast.gaussian_log_prob(z, zero, zero) - log_q).detach()[:, None]
    found["of_log_q"] = gradient(log_q, a)
    return found


def estimates(found: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Each estimator from ``count`` samples at a time: ``(repeats, 2 LATENT)``."""

    def groups(t: Tensor) -> Tensor:
        return t[: len(t) // count * count].unflatten(0, (-1, count))

    weight, of_log_q = groups(found["weight"]), groups(found["of_log_q"])
    made = {"joint": groups(found["joint"]).mean(1), "kl": groups(found["kl"]).mean(1), "score": (weight * of_log_q).mean(1)}
    if count > 1:
        others = (weight.sum(1, keepdim=True) - weight) / (count - 1)
        made["baseline"] = ((weight - others) * of_log_q).mean(1)
    return made


def main() -> None:
    """Draw, compare, print."""
    args = options(__doc__)
    model = LinearGaussian()
    x = model.marginal.sample()
    mean, best = model.gain @ x, -model.precision.diagonal().log()
    start = torch.zeros(LATENT, dtype=torch.float64)
    places = {"at the prior": (start, start), "near the optimum": (mean + 0.05, best + 0.05)}
    samples = 64_000 if args.quick else 1_024_000
    results: dict[str, Any] = {"samples": samples, "latent": LATENT, "counts": COUNTS, "places": []}
    figure = Figure(figsize=(8.0, 4.4), layout="constrained")
    colours = {"score": "#b3352c", "baseline": "#d9772b", "joint": "#5a8f3c", "kl": "#1f5fa8"}
    for axes, (place, (mu, logvar)) in zip(figure.subplots(1, 2, sharey=True), places.items(), strict=True):
        leaves = (mu.clone().requires_grad_(), logvar.clone().requires_grad_())
        exact = torch.cat(torch.autograd.grad(model.elbo(x, *leaves), leaves))
        found = per_sample(model, x, mu, logvar, samples)
        variance: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
        bias = {}
        for count in COUNTS:
            for name, values in estimates(found, count).items():
                variance[name].append(values.var(0).sum().item())
                error = (values.mean(0) - exact).abs() / (values.std(0) / len(values) ** 0.5).clamp(min=1e-12)
                bias[name] = max(bias.get(name, 0.0), error.max().item())
        rows = []
        for name, values in variance.items():
            at = COUNTS[-len(values) :]
            axes.loglog(at, values, "o-", color=colours[name], label=ESTIMATORS[name], markersize=4)
            slope = float(linregress(torch.tensor(at).log(), torch.tensor(values).log()).slope)
            rows.append({"name": name, "variance": values, "slope": slope, "largest_bias_in_standard_errors": bias[name]})
            print(f"{place}: {ESTIMATORS[name]}: variance {values[-1]:.3g} from {COUNTS[-1]} samples, slope {slope:.2f}")
        results["places"].append({"name": place, "squared_gradient": exact.square().sum().item(), "estimators": rows})
        axes.set(xlabel="samples $L$", title=place)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("variance, summed over the gradient")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize="small", loc="outside lower center", ncols=2)
    save(figure, args.out / "gradient_estimators.png")
    finish(args, results, ("gradient_estimators.png",))


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    last = r["counts"][-1]
    rows = []
    for name, label in ESTIMATORS.items():
        each = [next(e for e in p["estimators"] if e["name"] == name) for p in r["places"]]
        rows.append([label, *(f"{e['variance'][-1]:.3g}" for e in each), *(f"{e['slope']:.2f}" for e in each)])
    ratios = []
    for place in r["places"]:
        by = {e["name"]: e["variance"][-1] for e in place["estimators"]}
        ratios.append(f"{by['score'] / by['kl']:,.0f} ({place['name']})")
    worst = max(e["largest_bias_in_standard_errors"] for p in r["places"] for e in p["estimators"])
    first, second = (p["name"] for p in r["places"])
    head = ["estimator", f"variance, {first}", f"{second}", f"slope, {first}", f"{second}"]
    return f"""\
## Score function or reparameterisation: `{r["command"]}`

The thesis (section 3.3.3) needs the gradient of E_q[f(z)] in the parameters of q, and takes z = μ + σε because the general
estimator, E_q[f(z) ∇ log q(z)], varies too much. How much? The ELBO of the linear Gaussian model above and its exact gradient in
μ and log σ² ({2 * r["latent"]} numbers); {r["samples"]:,} draws. All are unbiased (no mean is more than {worst:.1f} standard errors
from the exact gradient), and their variance falls as 1 / L. From {last} samples:

{table(head, rows)}

The score function needs {" or ".join(ratios)} times as many samples as reparameterisation with the KL in closed form, which is what
`vae_fast.elbo_loss` does. A baseline, the mean of f over the other samples, helps most where f(z) = log p(x, z) − log q(z) is nearly the
same for every z, which is near the optimum.

![Variance against the number of samples](pictures/gradient_estimators.png)
"""


if __name__ == "__main__":
    main()
