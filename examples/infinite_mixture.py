"""A mixture of infinitely many Gaussians, weighed by a network: a VAE in one dimension, where its evidence can be integrated.

    python examples/infinite_mixture.py [--quick] [--out DIR]

Against a finite mixture and the uniform infinite one. Writes infinite_mixture.png and infinite_mixture.json.
"""

import math
from typing import Any

import torch
from _common import finish, learn, options, save, table
from matplotlib.figure import Figure
from torch import Tensor, nn

from vae_fast import gaussian_log_prob, logsumexp
from vae_fast.data.toys import toy, toy_log_prob
from vae_fast.models import VAE, MixtureOfGaussians


class Two(nn.Module):
    """A network of one number with two outputs: a mean and a log-variance."""

    def __init__(self, hidden: int = 32) -> None:
        """Two hidden layers."""
        super().__init__()
        body = [nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 2)]
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both, each ``(..., 1)``."""
        mean, logvar = self.body(x).split(1, dim=-1)
        return mean, logvar.clamp(min=-8.0)


def evidence(vae: VAE, x: Tensor) -> Tensor:
    """log p(x) = log of the integral of N(z; 0, 1) N(x; mu(z), exp(logvar(z))) over z, on a grid."""
    z = torch.linspace(-7.0, 7.0, 2001)[:, None]
    step = float(z[1] - z[0])
    mean, logvar = vae.decode(z)
    log_prior = gaussian_log_prob(z, torch.zeros_like(z), torch.zeros_like(z)) + math.log(step)
    parts = [gaussian_log_prob(part[:, None], mean[None], logvar[None]) + log_prior for part in x.split(500)]
    return torch.cat([logsumexp(part, dim=-1) for part in parts])


class Tighter(nn.Module):
    """A VAE trained on its importance-weighted bound in place of the ELBO."""

    def __init__(self, vae: VAE, num_samples: int = 16) -> None:
        """The number of samples for each point."""
        super().__init__()
        self.vae, self.num_samples = vae, num_samples

    def loss(self, x: Tensor) -> Tensor:
        """The negative bound."""
        return -self.vae.log_prob(x, self.num_samples).mean()


def new_vae(x: Tensor) -> VAE:
    """A VAE of one number whose decoder begins near the mean of the data."""
    vae = VAE(Two(), Two(), latent_dim=1, likelihood="gaussian")
    with torch.no_grad():
        vae.decoder.body[-1].bias.copy_(torch.stack((x.mean(), (0.3 * x.var()).log())))
    return vae


class Uniform(nn.Module):
    """The deck's infinite mixture: z ~ U(a, b), x given z ~ N(z, sigma^2)."""

    def __init__(self, x: Tensor) -> None:
        """Start from the spread of the data."""
        super().__init__()
        self.middle = nn.Parameter(x.mean())
        self.log_width, self.log_sigma = nn.Parameter((2.0 * x.std()).log()), nn.Parameter((0.5 * x.std()).log())

    def log_prob(self, x: Tensor) -> Tensor:
        """log of (Phi((x - a) / sigma) - Phi((x - b) / sigma)) / (b - a)."""
        half, sigma = 0.5 * self.log_width.exp(), self.log_sigma.exp()
        above, below = ((x[:, 0] - self.middle + side * half) / sigma for side in (1.0, -1.0))
        upper, lower = torch.special.log_ndtr(above), torch.special.log_ndtr(below)
        return upper + torch.log(-torch.expm1((lower - upper).clamp(max=-1e-6))) - self.log_width

    def loss(self, x: Tensor) -> Tensor:
        """The negative mean log-likelihood."""
        return -self.log_prob(x).mean()


def main() -> None:
    """Fit, print, draw."""
    args = options(__doc__)
    n, epochs = (4000, 15) if args.quick else (20_000, 30)
    x, test = toy("cats", n, seed=args.seed), toy("cats", 10_000, seed=args.seed + 1)
    plain, vae = new_vae(x), new_vae(x)
    learn(plain, x, epochs, lr=5e-3)
    learn(Tighter(vae), x, epochs, lr=1e-2, batch_size=200)
    uniform = Uniform(x)
    learn(uniform, x, epochs, lr=2e-2, batch_size=500)
    finite = MixtureOfGaussians(2, tol=1e-7, max_iter=1000, random_state=args.seed).fit(x)

    grid = torch.linspace(1.0, 8.0, 701)[:, None]
    truth = toy_log_prob("cats", grid)
    with torch.no_grad():
        models = {
            "one Gaussian": lambda y: gaussian_log_prob(y, x.mean(0), x.var(0).log()),
            "uniform infinite mixture": uniform.log_prob,
            "neural infinite mixture, by the ELBO": lambda y: evidence(plain, y),
            "neural infinite mixture, by 16 samples": lambda y: evidence(vae, y),
            "two Gaussians, by EM": finite.score_samples,
            "true density": lambda y: toy_log_prob("cats", y),
        }
        fits, curves = [], {}
        for name, log_prob in models.items():
            curves[name] = log_prob(grid)
            kl = torch.trapezoid(truth.exp() * (truth - curves[name]), grid[:, 0]).item()
            fits.append({"model": name, "test_log_likelihood": log_prob(test).double().mean().item(), "kl_from_truth": kl})
            print(f"{name:>38}: {fits[-1]['test_log_likelihood']:.4f} nats per test point, KL from the truth {kl:.4f}")
        elbo = -torch.stack([vae.loss(test) for _ in range(20)]).mean().item()
        bound = vae.log_prob(test, 100).double().mean().item()
        mass = torch.trapezoid(curves["neural infinite mixture, by 16 samples"].exp(), grid[:, 0]).item()
        z = torch.linspace(-3.0, 3.0, 200)[:, None]
        mean, logvar = vae.decode(z)
    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1.0))
    left.hist(x[:, 0], bins=80, density=True, color="#d5d5d5")
    styles = {
        "one Gaussian": ("#c9b8d8", "-"),
        "uniform infinite mixture": ("#8a8a8a", "--"),
        "neural infinite mixture, by the ELBO": ("#5a8f3c", "-."),
        "neural infinite mixture, by 16 samples": ("#1f5fa8", "-"),
        "true density": ("#d9772b", ":"),
    }
    for name, (colour, style) in styles.items():
        left.plot(
            grid,
            curves[name].exp(),
            color=colour,
            linestyle=style,
            linewidth=4.0 if name == "one Gaussian" else 1.8,
            label=name.replace("infinite mixture, ", ""),
        )
    left.set(xlabel="weight in kg", ylabel="density", ylim=(0.0, 0.56))
    left.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    right.plot(z, mean, color="#1f5fa8", label=r"$\mu_\theta(z)$")
    spread = (0.5 * logvar).exp()[:, 0]
    right.fill_between(
        z[:, 0], mean[:, 0] - spread, mean[:, 0] + spread, color="#1f5fa8", alpha=0.2, linewidth=0, label="± standard deviation"
    )
    right.set(xlabel="$z$", ylabel="weight in kg")
    right.legend(frameon=False, fontsize="small", loc="upper left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, args.out / "infinite_mixture.png")
    print(f"ELBO {elbo:.4f}, with 100 samples {bound:.4f}; the density's mass {mass:.4f}")
    results = {"points": n, "test_points": len(test), "epochs": epochs, "elbo": elbo, "bound_100": bound, "mass": mass, "fits": fits}
    finish(args, results, ("infinite_mixture.png",))


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    evidence = next(f["test_log_likelihood"] for f in r["fits"] if f["model"].endswith("16 samples"))
    rows = [[f["model"], f"{f['test_log_likelihood']:.4f}", f"{f['kl_from_truth']:.4f}"] for f in r["fits"]]
    return f"""\
## A neural mixture of infinitely many Gaussians: `{r["command"]}`

The deck's step from mixtures to VAEs: z ~ N(0, 1), x given z ~ N(μ(z), exp σ(z)) with networks μ and σ; before it the same with z uniform
and x given z ~ N(z, σ²). {r["points"]:,} weights of (simulated) cats, {r["epochs"]} epochs. In one dimension the evidence is an integral on
a grid (the density's mass: {r["mass"]:.4f}), and the bounds can be seen against it. The ELBO prefers a posterior that a Gaussian can match,
at worst one that ignores x (then the model is one Gaussian); the importance-weighted bound of 16 samples, `VAE.log_prob`, does not. Of the
model trained on it: ELBO {r["elbo"]:.4f}, with 100 importance samples {r["bound_100"]:.4f}, evidence {evidence:.4f} nats per test point.

{table(["model", f"log-likelihood of {r['test_points']:,} test points", "KL from the true density"], rows)}

![Densities of the weight of cats, and the decoder](pictures/infinite_mixture.png)
"""


if __name__ == "__main__":
    main()
