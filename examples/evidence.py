"""log p(x) = ELBO + KL, in a model whose evidence is known, and the importance-weighted bound that closes the gap.

    python examples/evidence.py [--quick] [--out DIR]

The model is linear and Gaussian: z ~ N(0, I), x given z ~ N(W z, diag(s^2)). Writes evidence.png and evidence.json.
"""

import math
from typing import Any

import torch
from _common import finish, options, save, table
from matplotlib.figure import Figure
from scipy.stats import linregress
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

import vae_fast

LATENT, DIM = 4, 10


class LinearGaussian:
    """The model, its evidence, its posterior, and the bound of a Gaussian q(z) = N(mu, diag(exp(logvar)))."""

    def __init__(self, noise: float = 0.8) -> None:
        """Draw W; all in float64."""
        self.w = torch.randn(DIM, LATENT, dtype=torch.float64) / LATENT**0.5
        self.logvar = torch.full((DIM,), 2.0 * math.log(noise), dtype=torch.float64)
        covariance = self.w @ self.w.T + self.logvar.exp().diag()
        self.marginal = MultivariateNormal(torch.zeros(DIM, dtype=torch.float64), covariance)
        self.precision = torch.eye(LATENT, dtype=torch.float64) + self.w.T @ (self.w / self.logvar.exp()[:, None])
        self.gain = torch.linalg.solve(self.precision, self.w.T / self.logvar.exp())

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """p(z | x)."""
        return MultivariateNormal(x @ self.gain.T, precision_matrix=self.precision)

    def elbo(self, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        """E_q[log p(x | z)] in closed form, by the mean and a trace, less KL(q || prior)."""
        trace = (self.w.square() / self.logvar.exp()[:, None]).sum(0)
        fit = vae_fast.gaussian_log_prob(x, mu @ self.w.T, self.logvar) - 0.5 * (logvar.exp() * trace).sum(-1)
        return fit - vae_fast.gaussian_kl(mu, logvar)

    def sampled_elbo(self, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        """The same by one sample of z, as a VAE does it."""
        z = vae_fast.reparameterize(mu, logvar)
        return vae_fast.elbo(x, (z @ self.w.T, self.logvar.expand_as(x)), mu, logvar, likelihood="gaussian")

    def log_weights(self, x: Tensor, mu: Tensor, logvar: Tensor, k: int) -> Tensor:
        """log p(x, z) - log q(z) for k draws: ``(k, batch)``."""
        z = vae_fast.reparameterize(mu, logvar, num_samples=k)
        zero = torch.zeros_like(mu)
        joint = vae_fast.gaussian_log_prob(x, z @ self.w.T, self.logvar) + vae_fast.gaussian_log_prob(z, zero, zero)
        return joint - vae_fast.gaussian_log_prob(z, mu, logvar)


def kl_to_posterior(model: LinearGaussian, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(q || p(z | x)), by torch.distributions."""
    return kl_divergence(MultivariateNormal(mu, scale_tril=(0.5 * logvar).exp().diag_embed()), model.posterior(x))


def train_q(model: LinearGaussian, x: Tensor, steps: int) -> tuple[Tensor, Tensor, list[tuple[int, float, float]]]:
    """Maximise the sampled ELBO over mu = A x and logvar, from the prior: what a VAE's encoder does. Also the way there."""
    a = torch.zeros(LATENT, DIM, dtype=torch.float64, requires_grad=True)
    v = torch.zeros(LATENT, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([a, v], 0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    way = []
    for step in range(steps + 1):
        mu, logvar = x @ a.T, v.expand(len(x), LATENT)
        if step % max(1, steps // 60) == 0:
            with torch.no_grad():
                way.append((step, model.elbo(x, mu, logvar).mean().item(), kl_to_posterior(model, x, mu, logvar).mean().item()))
        optimizer.zero_grad()
        (-model.sampled_elbo(x, mu, logvar).mean()).backward()
        optimizer.step()
        schedule.step()
    return (x @ a.T).detach(), v.detach().expand(len(x), LATENT), way


def main() -> None:
    """Compute, print, draw."""
    args = options(__doc__)
    model = LinearGaussian()
    x = model.marginal.sample((200 if args.quick else 1000,))
    true = model.marginal.log_prob(x)
    zero = torch.zeros(len(x), LATENT, dtype=torch.float64)
    mean = x @ model.gain.T
    best = -model.precision.diagonal().log().expand_as(zero)  # the best independent variances are 1 / diag(precision)
    mu, logvar, way = train_q(model, x, 300 if args.quick else 500)
    rows = []
    with torch.no_grad():
        for name, q in (("the prior", (zero, zero)), ("trained", (mu, logvar)), ("the best independent one", (mean, best))):
            elbo, kl = model.elbo(x, *q), kl_to_posterior(model, x, *q)
            sampled = torch.stack([model.sampled_elbo(x, *q) for _ in range(200)]).mean().item()
            row = {"q": name, "elbo": elbo.mean().item(), "sampled_elbo": sampled, "kl": kl.mean().item()}
            row |= {"evidence": true.mean().item(), "largest_difference": (elbo + kl - true).abs().max().item()}
            rows.append(row)
            print("  ".join(f"{key} {value:.6g}" if isinstance(value, float) else value for key, value in row.items()))
        counts = [4**i for i in range(6)]
        gaps = []
        for k in counts:
            tiles = max(1, 256 // k)
            rows_of = [t[:100].repeat(tiles, *[1] * (t.ndim - 1)) for t in (true, x, mu, logvar)]
            draws = (8192 if args.quick else 131_072) // (k * tiles)
            excess = torch.zeros((), dtype=torch.float64)
            for _ in range(draws):
                log_ratio = vae_fast.iwae_bound(model.log_weights(*rows_of[1:], k)) - rows_of[0]
                excess += (log_ratio.expm1() - log_ratio).mean()  # the ratio's mean is 1: the same mean, and far less noise
            gaps.append(excess.item() / draws)
    bounds = [true[:100].mean().item() - gap for gap in gaps]
    slope = float(linregress(torch.tensor(counts[2:]).log(), torch.tensor(gaps[2:]).log()).slope)
    for k, bound, gap in zip(counts, bounds, gaps, strict=True):
        print(f"K = {k:>4}: bound {bound:.4f}, gap {gap:.4f}")
    print(f"slope of log gap against log K, from K = {counts[2]}: {slope:.2f}")

    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps, elbos, kls = zip(*way, strict=True)
    left.fill_between(steps, elbos, [e + k for e, k in zip(elbos, kls, strict=True)], color="#d9772b", alpha=0.3, linewidth=0)
    left.plot(steps, elbos, color="#1f5fa8", label="ELBO")
    left.plot(steps, [e + k for e, k in zip(elbos, kls, strict=True)], color="#d9772b", label=r"ELBO + KL$[q\,\|\,p(z \mid x)]$")
    left.axhline(true.mean().item(), color="#222222", linestyle=":", label=r"$\log p(x)$")
    left.set(xlabel="step of training $q$", ylabel="nats per $x$")
    left.legend(frameon=False, loc="lower right")
    right.loglog(counts, gaps, "o-", color="#1f5fa8", label="bound of K samples")
    right.loglog(counts, [gaps[-1] * counts[-1] / k for k in counts], color="#8a8a8a", linestyle=":", label="slope −1")
    right.set(xlabel="samples $K$", ylabel=r"$\log p(x)$ − bound, nats")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, args.out / "evidence.png")
    results = {
        "points": len(x),
        "latent": LATENT,
        "dim": DIM,
        "identity": rows,
        "counts": counts,
        "bound_points": 100,
        "bounds": bounds,
        "gaps": gaps,
    }
    finish(args, results | {"slope": slope}, ("evidence.png",))


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    rows = [
        [
            i["q"],
            *(f"{i[key]:.6f}" for key in ("elbo", "kl")),
            f"{i['elbo'] + i['kl']:.6f}",
            f"{i['evidence']:.6f}",
            f"{i['sampled_elbo']:.3f}",
        ]
        for i in r["identity"]
    ]
    worst = max(i["largest_difference"] for i in r["identity"])
    bounds = [[k, f"{bound:.4f}", f"{gap:.4f}"] for k, bound, gap in zip(r["counts"], r["bounds"], r["gaps"], strict=True)]
    head = ["q(z given x)", "ELBO", "KL[q‖p(z given x)]", "sum", "log p(x)", "ELBO by samples (`vae_fast.elbo`)"]
    return f"""\
## Evidence = ELBO + KL: `{r["command"]}`

The introduction deck's identity log p(x) = ELBO + KL[q(z | x)‖p(z | x)], where all three are known: a linear Gaussian model
({r["latent"]} latents, {r["dim"]} dimensions), {r["points"]:,} of its own draws, float64, means in nats. For every single x and q the two
sides agree within {worst:.0e}. As the evidence does not depend on q, *minimising KL is maximising the ELBO*: the left picture trains q.

{table(head, rows)}

The importance-weighted bound (`vae_fast.iwae_bound`) of the trained q tightens with K; from K = {r["counts"][2]} on, the gap falls as
K^{r["slope"]:.2f} ({r["bound_points"]} of the draws):

{table(["K", "bound", "gap"], bounds)}

![ELBO and KL during training; gap of the bound against K](pictures/evidence.png)
"""


if __name__ == "__main__":
    main()
