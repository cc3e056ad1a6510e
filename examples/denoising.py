"""Denoising autoencoders: in the plane, where the best answer is known, and for digits that were damaged in four ways.

    python examples/denoising.py [--quick] [--out DIR] [--dataset mnist]

Writes denoising_plane.png, denoising.png and denoising.json.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from _autoencoder import Autoencoder
from _common import Reader, draw_sheet, finish, learn, load, options, save, table, unit
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

import vae_fast
from vae_fast import plots
from vae_fast.data.toys import toy

SIGMA = 0.2
Damage = Callable[[Tensor, tuple[int, int]], Tensor]


class Denoiser(Autoencoder):
    """``h(damaged x)``, trained to give back x; the damage is drawn anew each time."""

    def __init__(self, h: nn.Module, damage: Callable[[Tensor], Tensor]) -> None:
        """Any network from x to x."""
        super().__init__(h, nn.Identity())
        self.damage = damage

    def loss(self, x: Tensor) -> Tensor:
        """Mean of ``||x - h(damaged x)||^2``."""
        return (self(self.damage(x)) - x).square().sum(-1).mean()


# --- the plane ----------------------------------------------------------------------------------------------------------


def posterior_mean(noisy: Tensor, clean: Tensor) -> Tensor:
    """E[x | noisy] when x is one of the clean points, each as probable: what the mean square is least for.

    The noisy points then have a mixture of Gaussians for a density, and E[x | noisy] = noisy + sigma^2 grad log p(noisy) (Tweedie's
    formula; Efron 2011, eq. 1.4).
    """
    at = noisy.clone().requires_grad_()
    log_scale = torch.full_like(clean, math.log(SIGMA))
    with torch.enable_grad():
        log_p = vae_fast.mixture_log_prob(at, torch.zeros(len(clean)), clean, log_scale).sum()
    (score,) = torch.autograd.grad(log_p, at)
    return noisy + SIGMA**2 * score


def plane(args: Any) -> dict[str, float]:
    """Train on two moons with Gaussian noise; draw h(x) - x; compare h with the posterior mean."""
    n, epochs = (4000, 12) if args.quick else (20_000, 40)
    clean, test = (toy("two-moons", k, seed=args.seed + i) for i, k in enumerate((n, 2000)))
    middle, scale = clean.mean(0), clean.std()
    clean, test = (clean - middle) / scale, (test - middle) / scale
    layers: list[nn.Module] = []
    for a, b in ((2, 128), (128, 128), (128, 128)):
        layers += [nn.Linear(a, b), nn.SiLU()]
    model = Denoiser(nn.Sequential(*layers, nn.Linear(128, 2)), lambda x: x + SIGMA * torch.randn_like(x))
    learn(model, clean, epochs, lr=4e-3)
    noisy = model.damage(test)
    with torch.no_grad():
        restored, best = model(noisy), posterior_mean(noisy, clean)
        found = {
            "points": n,
            "epochs": epochs,
            "sigma": SIGMA,
            "rmse_noisy": (noisy - test).square().sum(1).mean().sqrt().item(),
            "rmse_restored": (restored - test).square().sum(1).mean().sqrt().item(),
            "rmse_posterior_mean": (best - test).square().sum(1).mean().sqrt().item(),
            "rms_from_posterior_mean": (restored - best).square().sum(1).mean().sqrt().item(),
        }
        figure = Figure(figsize=(7.6, 7.8), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True, sharey=True).flatten()
        titles = ("data $x$", r"noisy $\tilde x = x + \epsilon$", r"field $h(\tilde x) - \tilde x$", r"restored $h(\tilde x)$")
        for axes, points, title in zip(panels, (test, noisy, None, restored), titles, strict=True):
            if points is not None:
                plots.draw_points(axes, points)
            axes.set_title(title, loc="left", fontsize="medium")
            axes.set_aspect("equal")
            axes.spines[["top", "right"]].set_visible(False)
        grid = torch.cartesian_prod(*2 * [torch.linspace(-2.2, 2.2, 23)])
        step = model(grid) - grid
        panels[2].quiver(*grid.T, *step.T, angles="xy", scale_units="xy", scale=1.6, width=0.004, color="#1f5fa8")
        for axes in panels:
            axes.set(xlabel="$x_1$", ylabel="$x_2$")
            axes.label_outer()
        panels[0].set_xlim(-2.6, 2.6)
        panels[0].set_ylim(-2.6, 2.6)
        save(figure, args.out / "denoising_plane.png")
    for name, value in found.items():
        print(f"plane: {name} {value:.4g}")
    return found


# --- digits ---------------------------------------------------------------------------------------------------------------


def remove(share: float) -> Damage:
    """Set this share of the pixels, at random, to zero."""
    return lambda x, shape: x * (torch.rand_like(x) >= share)


def blur(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """A Gaussian blur, of standard deviation 4 pixels in images of 28 x 28."""
    sigma = 4.0 * shape[1] / 28.0
    return torch.from_numpy(gaussian_filter(x.unflatten(-1, shape).numpy(), (0.0, sigma, sigma))).flatten(1)


def mask(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """A black square, of 16 x 16 pixels in images of 28 x 28, at random."""
    inside = []
    for size in shape:
        length = round(16 * size / 28)
        at = torch.randint(0, size - length + 1, (len(x), 1))
        inside.append((torch.arange(size) >= at) & (torch.arange(size) < at + length))
    covered = inside[0].unsqueeze(2) & inside[1].unsqueeze(1)
    return (x.unflatten(-1, shape) * ~covered).flatten(1)


DAMAGES: dict[str, Damage] = {"50% removed": remove(0.5), "90% removed": remove(0.9), "blur, σ = 4": blur, "mask, 16 × 16": mask}


def network(pixels: int, quick: bool) -> nn.Module:
    """Three hidden layers."""
    wide, narrow = (128, 64) if quick else (512, 256)
    sizes, layers = (pixels, wide, narrow, wide), []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(wide, pixels))


def digits(args: Any) -> dict[str, Any]:
    """One network for each kind of damage: squared errors, and what a classifier reads."""
    found = load(args.dataset)
    n, epochs = min(len(found.train), 20_000), 30 if args.quick else 12
    x, test, labels, shape = unit(found.train[:n]), unit(found.test), found.test_labels, found.image_shape
    held = len(test) // 2
    reader, judged, truth = Reader(test[:held], labels[:held]), test[held:], labels[held:]
    results: dict[str, Any] = {"dataset": args.dataset, "train_images": n, "epochs": epochs, "test_images": len(judged)}
    results |= {"read_clean": reader.accuracy(judged, truth), "damages": []}
    rows = {"original": test[:18]}
    for name, damage in DAMAGES.items():
        model = Denoiser(network(x.shape[1], args.quick), lambda x, damage=damage: damage(x, shape))
        learn(model, x, epochs, lr=1e-3)
        with torch.no_grad():
            damaged = damage(test, shape)
            restored = model(damaged)
        row: dict[str, Any] = {"damage": name}
        for kind, images in (("damaged", damaged), ("restored", restored)):
            row[f"error_{kind}"] = (images[held:] - judged).square().sum(1).mean().item()
            row[f"read_{kind}"] = reader.accuracy(images[held:], truth)
        rows |= {name: damaged[:18], f"{name}: restored": restored[:18]}
        results["damages"].append(row)
        print("  ".join(f"{key} {value:.3f}" if isinstance(value, float) else value for key, value in row.items()))
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    draw_sheet(figure.add_subplot(), list(rows.values()), shape, list(rows), "Test digits, damaged and restored")
    save(figure, args.out / "denoising.png")
    return results


def main() -> None:
    """Train, print, draw."""
    args = options(__doc__, "mnist")
    finish(args, {"plane": plane(args), "digits": digits(args)}, ("denoising_plane.png", "denoising.png"))


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    p, d = r["plane"], r["digits"]
    kinds = ("damaged", "restored")
    rows = [[f["damage"], *(f"{f[f'error_{k}']:.2f}" for k in kinds), *(f"{f[f'read_{k}']:.1%}" for k in kinds)] for f in d["damages"]]
    head = ["damage", "error, damaged", "error, restored", "read, damaged", "read, restored"]
    return f"""\
## Denoising autoencoders: `{r["command"]}`

In the plane: {p["points"]:,} points of the toy density `two-moons`, of unit standard deviation, Gaussian noise of standard deviation
{p["sigma"]}, a network h trained for {p["epochs"]} epochs on ‖x − h(x + ε)‖². The deck: the best that the mean square allows is the average
of the possible answers, h(x̃) = E[x | x̃]. Measured from the true points, the root mean square error of the noisy points is
{p["rmse_noisy"]:.3f}, of h {p["rmse_restored"]:.3f}, of E[x | x̃] itself {p["rmse_posterior_mean"]:.3f}; h is
{p["rms_from_posterior_mean"]:.3f} away from E[x | x̃].

![Data, noisy data, the field of the denoiser and what it restores](pictures/denoising_plane.png)

Digits ({d["dataset"]}, {d["train_images"]:,} training images, one fully connected network for each kind of damage, {d["epochs"]} epochs).
The deck shows pictures of the same four and gives no figures. Error: mean of ‖x − h(x̃)‖² on {d["test_images"]:,} test images. Read: share
that a classifier of clean digits reads right ({d["read_clean"]:.1%} of the originals).

{table(head, rows)}

![Damaged and restored digits](pictures/denoising.png)
"""


if __name__ == "__main__":
    main()
