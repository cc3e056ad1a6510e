"""A mixture density network on an inverse problem with several answers (Bishop 1994, section 5).

    python examples/mdn_inverse_sine.py [--quick] [--out DIR]

The forward problem ``t = x + 0.3 sin(2 pi x) + noise`` has one answer; x given t has up to three. A network trained by least squares
answers with their mean, which need not be one of them; a mixture density network answers with a density. Writes mdn_inverse_sine.png and
mdn_inverse_sine.json.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import finish, options, table
from matplotlib.figure import Figure
from torch import Tensor, nn

from vae_fast import plots
from vae_fast.data.toys import toy
from vae_fast.models import MixtureDensityNetwork

HIDDEN, COMPONENTS = 32, 5


def trunk() -> nn.Module:
    """Two hidden layers of tanh units, the same for both networks."""
    return nn.Sequential(nn.Linear(1, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh())


def train(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], t: Tensor, x: Tensor, epochs: int) -> None:
    """Minimise ``loss(t, x)`` with Adam, its step size falling to zero along a cosine."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(t)).split(200):
            optimizer.zero_grad()
            loss(t[rows], x[rows]).backward()
            optimizer.step()
        schedule.step()


def true_log_prob(t: Tensor, x: Tensor) -> Tensor:
    """log p(x | t) in nats: x is uniform where ``|t - x - 0.3 sin(2 pi x)| <= 0.1``, so the density is one over that length."""
    grid = (torch.arange(4000) + 0.5) / 4000
    forward = grid + 0.3 * torch.sin(2.0 * math.pi * grid)
    length = torch.cat([((part - forward).abs() <= 0.1).float().mean(1) for part in t.split(1000)])
    return -length.log()


def picture(path: Path, t: Tensor, x: Tensor, density: MixtureDensityNetwork, least_squares: nn.Module) -> None:
    """Data and both means; the conditional density; samples of it."""
    figure = Figure(figsize=(12.6, 4.6), layout="constrained")
    data, shades, samples = panels = figure.subplots(1, 3, sharex=True, sharey=True)
    line = torch.linspace(-0.05, 1.05, 300)[:, None]
    both = torch.cat((t, x), dim=1)
    with torch.no_grad():
        plots.draw_points(data, both)
        data.plot(line, least_squares(line), color="#1f5fa8", linewidth=2.0, label="least squares")
        data.plot(line, density.mean(line), color="#d9772b", linewidth=2.0, linestyle="--", label="mean of the MDN")
        plots.draw_density(shades, lambda z: density.log_prob(z[:, :1], z[:, 1:]), (-0.1, 1.1, -0.1, 1.1), peak=12.0)
        plots.draw_points(samples, torch.cat((t, density.sample(t)), dim=1), "#d9772b")
    data.legend(frameon=False, loc="upper left")
    titles = ("data, and what each network predicts", "density $p(x \\mid t)$ of the MDN (shade: its square root)", "samples of the MDN")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, loc="left", fontsize="medium")
        axes.set_xlabel("$t$ (given)")
        axes.set_aspect("equal")
        axes.spines[["top", "right"]].set_visible(False)
    data.set_ylabel("$x$ (to be predicted)")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Train both, print, draw."""
    args = options(__doc__)
    n, epochs = (400, 10) if args.quick else (2000, 1000)
    t, x = toy("sine-inverse", n, seed=args.seed).split(1, dim=1)
    test_t, test_x = toy("sine-inverse", 10_000, seed=args.seed + 1).split(1, dim=1)
    torch.manual_seed(args.seed)
    density = MixtureDensityNetwork(trunk(), HIDDEN, COMPONENTS)
    train(density, density.loss, t, x, epochs)
    least_squares = nn.Sequential(trunk(), nn.Linear(HIDDEN, 1))
    train(least_squares, lambda t, x: nn.functional.mse_loss(least_squares(t), x), t, x, epochs)

    with torch.no_grad():
        spread = (least_squares(t) - x).square().mean().sqrt()  # least squares is a Gaussian of constant standard deviation
        found = {
            "test_log_likelihood_mdn": density.log_prob(test_t, test_x).mean().item(),
            "test_log_likelihood_least_squares": torch.distributions.Normal(least_squares(test_t), spread).log_prob(test_x).mean().item(),
            "true_test_log_likelihood": true_log_prob(test_t, test_x).mean().item(),
            "test_rmse_mdn_mean": (density.mean(test_t) - test_x).square().mean().sqrt().item(),
            "test_rmse_least_squares": (least_squares(test_t) - test_x).square().mean().sqrt().item(),
        }
    for name, value in found.items():
        print(f"{name:>34}  {value:.3f}")
    picture(args.out / "mdn_inverse_sine.png", test_t[:2000], test_x[:2000], density, least_squares)
    settings = {"points": n, "test_points": len(test_t), "epochs": epochs, "hidden": HIDDEN, "components": COMPONENTS}
    finish(args, settings | found, ("mdn_inverse_sine.png",))


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    rows = [
        [
            "least squares, one Gaussian of constant width",
            f"{r['test_log_likelihood_least_squares']:.3f}",
            f"{r['test_rmse_least_squares']:.3f}",
        ],
        ["mixture density network", f"{r['test_log_likelihood_mdn']:.3f}", f"{r['test_rmse_mdn_mean']:.3f}"],
        ["true density", f"{r['true_test_log_likelihood']:.3f}", ""],
    ]
    return f"""\
## A mixture density network: `{r["command"]}`

![Data, conditional density and samples](pictures/mdn_inverse_sine.png)

x is to be predicted from t = x + 0.3 sin(2πx) + noise (Bishop 1994): up to three answers for one t. Least squares predicts their mean,
which need not be one of them; the network with {r["components"]} components gives each its own density. On
{r["test_points"]:,} test points:

{table(["", "log-likelihood", "root mean square error of the mean"], rows)}

The true density of x is uniform on one, two or three intervals; a Gaussian in place of a uniform costs ½ log(πe/6) =
{0.5 * math.log(math.pi * math.e / 6.0):.3f} nats.
"""


if __name__ == "__main__":
    main()
