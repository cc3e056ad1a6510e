"""The same network as an autoencoder and as a VAE: with and without noise on the code and its KL divergence.

    python examples/autoencoder_and_vae.py [--quick] [--out DIR] [--dataset mnist]

The lecture decks' central argument. Writes autoencoder_and_vae_plane.png, autoencoder_and_vae.png and autoencoder_and_vae.json.
"""

import time
import warnings
from typing import Any

import torch
from _common import Reader, draw_sheet, finish, learn, load, nearest, options, save, table, unit
from matplotlib.figure import Figure
from torch import Tensor, nn

from vae_fast.models import VAE, ConvergenceWarning, MixtureOfGaussians

NAMES = {"ae": "autoencoder", "vae": "VAE"}
DRAWN = 1000


class Plain(VAE):
    """An autoencoder: the decoder is given the mean of q, and nothing draws q to the prior."""

    def loss(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The mean of -log p(x | mu(x)): the ELBO without its noise and without its KL."""
        return -self.log_likelihood(x, self.decode(self.encode(x)[0])).mean()


def build(kind: str, pixels: int, latent: int, hidden: tuple[int, int]) -> VAE:
    """Two hidden layers on either side; of the autoencoder's encoder only the means are used."""
    wide, narrow = hidden
    encoder = nn.Sequential(nn.Linear(pixels, wide), nn.ReLU(), nn.Linear(wide, narrow), nn.ReLU(), nn.Linear(narrow, 2 * latent))
    decoder = nn.Sequential(nn.Linear(latent, narrow), nn.ReLU(), nn.Linear(narrow, wide), nn.ReLU(), nn.Linear(wide, pixels))
    return (Plain if kind == "ae" else VAE)(encoder, decoder, latent_dim=latent)


def codes_of(model: VAE, x: Tensor) -> Tensor:
    """What the decoder is given in training: draws of q, or the autoencoder's means."""
    return model.encode(x)[0] if isinstance(model, Plain) else model(x).z


@torch.no_grad()
def judge(model: VAE, x: Tensor, test: Tensor, pairs: tuple[Tensor, Tensor], reader: Reader, components: int, seed: int) -> dict[str, Any]:
    """Reconstruction, halfway points, the codes' density, and draws from three of them; the first draws are kept under "draws"."""
    codes, test_codes = codes_of(model, x), codes_of(model, test)
    halfway = 0.5 * sum(model.encode(side)[0] for side in pairs)
    means, deviations = test_codes.mean(0), test_codes.std(0)
    row: dict[str, Any] = {
        "error": (model.reconstruct(test) - test).square().sum(1).mean().item(),
        "error_of_codes": (model.mean_of(model.decode(test_codes)) - test).square().sum(1).mean().item(),
        "deviation_least": deviations.min().item(),
        "deviation_most": deviations.max().item(),
        "mean_most": means.abs().max().item(),
        "confidence_halfway": reader.confidence(model.mean_of(model.decode(halfway))),
        "densities": [],
        "draws": [],
    }
    fits: dict[str, MixtureOfGaussians | None] = {"N(0, I)": None}
    for k in (1, components):
        name = "a Gaussian" if k == 1 else f"{k} Gaussians"
        fits[name] = MixtureOfGaussians(k, reg_covar=1e-3, max_iter=100, random_state=seed).fit(codes)
    for name, fit in fits.items():
        z = torch.randn(DRAWN, codes.shape[1]) if fit is None else fit.sample(DRAWN)[0]
        made = model.mean_of(model.decode(z))
        score = model.log_prior(test_codes).mean().item() if fit is None else float(fit.score(test_codes))
        density = {"name": name, "log_likelihood": score, "confidence": reader.confidence(made), "distance": nearest(made, x)}
        row["densities"].append(density)
        row["draws"].append(made[:16])
    return row


def planes(models: dict[str, VAE], test: Tensor, labels: Tensor, path: Any) -> None:
    """Where test digits lie in the plane of either model, with the circle that holds 95% of N(0, I)."""
    figure = Figure(figsize=(8.6, 4.2), layout="constrained")
    for axes, (kind, model) in zip(figure.subplots(1, 2), models.items(), strict=True):
        with torch.no_grad():
            codes = model.encode(test)[0]
        dots = axes.scatter(*codes.T, c=labels, cmap="tab10", vmin=-0.5, vmax=9.5, s=4, linewidths=0)
        turn = torch.linspace(0.0, 2.0 * torch.pi, 200)
        radius = 5.991**0.5  # the 95% quantile of chi squared with 2 degrees of freedom
        axes.plot(radius * turn.cos(), radius * turn.sin(), color="#222222", linewidth=1.2)
        axes.set(title=NAMES[kind], xlabel="$z_1$", ylabel="$z_2$")
        axes.spines[["top", "right"]].set_visible(False)
    figure.colorbar(dots, ax=figure.axes, ticks=range(10), label="digit")
    save(figure, path)


def main() -> None:
    """Train, print, draw."""
    args = options(__doc__, "mnist")
    warnings.simplefilter("ignore", ConvergenceWarning)
    found = load(args.dataset)
    n = min(len(found.train), 20_000)
    x, test, labels, shape = unit(found.train[:n]), unit(found.test), found.test_labels, found.image_shape
    epochs, hidden, dims, components = (40, (64, 32), (2, 8), 5) if args.quick else (15, (256, 128), (2, 16), 50)
    held = len(test) // 2
    reader, judged, truth = Reader(test[:held], labels[:held]), test[held:], labels[held:]
    unlike = [i for i in range(0, len(judged) - 1, 2) if truth[i] != truth[i + 1]][:1000]
    pairs = (judged[unlike], judged[[i + 1 for i in unlike]])
    results: dict[str, Any] = {"dataset": args.dataset, "train_images": n, "test_images": len(judged), "epochs": epochs, "hidden": hidden}
    results |= {"components": components, "pairs": len(unlike), "confidence_test": reader.confidence(judged)}
    results |= {"distance_test": nearest(judged[-1000:], x), "fits": []}
    sheets, names = [], []
    for dim in dims:
        models = {}
        for kind in NAMES:
            torch.manual_seed(args.seed)
            begin, models[kind] = time.perf_counter(), build(kind, x.shape[1], dim, hidden)
            learn(models[kind], x, epochs)
            row = judge(models[kind], x, judged, pairs, reader, components, args.seed)
            for density, made in zip(row["densities"], row.pop("draws"), strict=True):
                print(f"{NAMES[kind]}, d = {dim}: " + "  ".join(f"{k} {v}" for k, v in density.items()), flush=True)
                if dim == dims[-1]:
                    sheets.append(made)
                    names.append(f"{NAMES[kind]}: {density['name']}")
            results["fits"].append({"dim": dim, "model": kind} | row)
            if dim == dims[-1]:
                with torch.no_grad():
                    ends = (models[kind].encode(side[:1])[0] for side in pairs)
                    line = torch.lerp(*ends, torch.linspace(0.0, 1.0, 16)[:, None])
                    sheets.append(models[kind].mean_of(models[kind].decode(line)))
                names.append(f"{NAMES[kind]}: a line between two")
            print("  ".join(f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, float)), end=" ")
            print(f"{time.perf_counter() - begin:.0f} s", flush=True)
        if dim == 2:
            planes(models, judged[:3000], truth[:3000], args.out / "autoencoder_and_vae_plane.png")
    figure = Figure(figsize=(9.0, 4.6), layout="constrained")
    draw_sheet(figure.add_subplot(), sheets, shape, names, f"Decoded draws from densities of the codes, d = {dims[-1]}")
    save(figure, args.out / "autoencoder_and_vae.png")
    finish(args, results, ("autoencoder_and_vae_plane.png", "autoencoder_and_vae.png"))


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    rows = [
        [
            f["dim"],
            NAMES[f["model"]],
            f"{f['error']:.2f}",
            f"{f['error_of_codes']:.2f}",
            f"{f['deviation_least']:.2f} to {f['deviation_most']:.2f}",
            f"{f['confidence_halfway']:.3f}",
        ]
        for f in r["fits"]
    ]
    head = ["d", "model", "error, mean code", "error, code as trained", "the codes' standard deviations", "confidence halfway"]
    drawn = [
        [f["dim"], NAMES[f["model"]], d["name"], f"{d['log_likelihood']:.2f}", f"{d['confidence']:.3f}", f"{d['distance']:.1f}"]
        for f in r["fits"]
        for d in f["densities"]
    ]
    drawn.append(["", "", "test digits", "", f"{r['confidence_test']:.3f}", f"{r['distance_test']:.1f}"])
    drawn_head = ["d", "model", "codes drawn from", "log-likelihood of test codes", "classifier's confidence", "distance² to the nearest"]
    ae, vae = r["fits"][-2:]

    def by(fit: dict[str, Any], place: int, key: str) -> float:
        return float(fit["densities"][place][key])

    gains = {name: by(f, 2, "log_likelihood") - by(f, 0, "log_likelihood") for name, f in (("ae", ae), ("vae", vae))}
    nearer = "are nearer to digits than" if by(ae, 2, "distance") < by(vae, 0, "distance") else "are no nearer to digits than"
    return f"""\
## Autoencoder and VAE, side by side: `{r["command"]}`

The decks' argument: an autoencoder's codes lie anywhere, with holes between them, so that nothing says what to decode; a VAE's lie where
N(0, I) does. One network (hidden layers of {r["hidden"][0]} and {r["hidden"][1]} units, {r["train_images"]:,} images of {r["dataset"]},
{r["epochs"]} epochs, Bernoulli likelihood of grey values) with and without the two things that make a VAE: noise on the code, and the KL.
{r["test_images"]:,} test images; halfway: between the codes of {r["pairs"]:,} pairs of different digits, the probability of the class that
a classifier takes.

{table(head, rows)}

![Codes of test digits; the circle holds 95% of N(0, I)](pictures/autoencoder_and_vae_plane.png)

The autoencoder reconstructs better, as nothing blurs its codes. Draws from N(0, I) are the VAE's way to new digits; both models are given
the other two densities of codes as well, fitted to what their decoders saw in training (their log-likelihoods compare within a model, as
the codes of two models are not in the same units):

{table(drawn_head, drawn)}

At d = {ae["dim"]} the draws of the autoencoder with {r["components"]} Gaussians on its codes {nearer} the VAE's from N(0, I)
({by(ae, 2, "distance"):.1f} against {by(vae, 0, "distance"):.1f}; the classifier's confidence is {by(ae, 2, "confidence"):.3f} against
{by(vae, 0, "confidence"):.3f}). *Why*: {r["components"]} Gaussians know where the codes are, and N(0, I) does not: they gain
{gains["ae"]:.1f} nats on N(0, I) for a code of the autoencoder and {gains["vae"]:.1f} for one of the VAE, whose codes together are not
N(0, I) either, although each is drawn to it. The same mixture on the VAE's codes changes its draws from {by(vae, 0, "confidence"):.3f} and
{by(vae, 0, "distance"):.1f} to {by(vae, 2, "confidence"):.3f} and {by(vae, 2, "distance"):.1f}. *When not*: the autoencoder with a density
of codes has no p(x): no log-likelihood of an image, no posterior, none of what is done with the VAE's above.

![Draws and lines between digits](pictures/autoencoder_and_vae.png)
"""


if __name__ == "__main__":
    main()
