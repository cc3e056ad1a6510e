"""New digits from an autoencoder: between two of them, from a Gaussian fitted to their codes, and from a mixture of Gaussians.

    python examples/generation.py [--quick] [--out DIR] [--dataset mnist]

Writes interpolation.png, generation.png and generation.json.
"""

import warnings
from typing import Any

import torch
from _autoencoder import PCA, Autoencoder, convolutional
from _common import Reader, draw_sheet, finish, learn, load, nearest, options, save, table, unit
from matplotlib.figure import Figure
from torch import Tensor

from vae_fast.models import ConvergenceWarning, MixtureOfGaussians

DIMS = (16, 32)
COMPONENTS = (1, 10, 50)
STEPS = 12


def interpolation(args: Any, pca: PCA, deep: Autoencoder, test: Tensor, labels: Tensor, reader: Reader, shape: tuple[int, int]) -> Any:
    """Lines between the codes of two digits, decoded; how sure the classifier is of what is halfway."""
    pairs = [(a, b) for a, b in zip(range(0, len(test) - 1, 2), range(1, len(test), 2), strict=True) if labels[a] != labels[b]][:1000]
    one, two = (test[list(side)] for side in zip(*pairs, strict=True))
    weights = torch.linspace(0.0, 1.0, STEPS)[:, None]
    sheets, found = {}, {"pairs": len(pairs), "confidence_ends": reader.confidence(torch.cat((one, two)))}
    for name, model in (("pca", pca), ("cnn", deep)):
        a, b = model.encoder(one), model.encoder(two)
        found[f"confidence_ends_{name}"] = reader.confidence(model.decoder(torch.cat((a, b))))
        found[f"confidence_halfway_{name}"] = reader.confidence(model.decoder(0.5 * (a + b)))
        sheets[name] = [model.decoder(a[i] + weights * (b[i] - a[i])) for i in range(6)]
    figure = Figure(figsize=(5.0, 5.5), layout="constrained")
    for axes, name, title in zip(figure.subplots(2, 1), sheets, ("PCA", "convolutional autoencoder"), strict=True):
        draw_sheet(axes, sheets[name], shape, title=f"{title}, d = {DIMS[-1]}", size=12)
    save(figure, args.out / "interpolation.png", dpi=150)
    print("confidence of the classifier:", {k: round(v, 3) for k, v in found.items()})
    return found


def densities(codes: Tensor, test_codes: Tensor, seed: int, components: tuple[int, ...]) -> tuple[list[MixtureOfGaussians], list[float]]:
    """A Gaussian and two mixtures of them fitted to the codes; their mean log-likelihood of the codes of test digits."""
    fits = [MixtureOfGaussians(k, reg_covar=1e-3, max_iter=200, random_state=seed).fit(codes) for k in components]
    return fits, [float(fit.score(test_codes)) for fit in fits]


def main() -> None:
    """Train, print, draw."""
    args = options(__doc__, "mnist")
    warnings.simplefilter("ignore", ConvergenceWarning)
    found = load(args.dataset)
    n, epochs, components = min(len(found.train), 20_000), (20 if args.quick else 15), ((1, 3, 5) if args.quick else COMPONENTS)
    x, test, labels, shape = unit(found.train[:n]), unit(found.test), found.test_labels, found.image_shape
    held = len(test) // 2
    reader = Reader(test[:held], labels[:held])
    results: dict[str, Any] = {"dataset": args.dataset, "train_images": n, "epochs": epochs, "components": components, "fits": []}
    results |= {"confidence_test": reader.confidence(test[held:]), "distance_test": nearest(test[-1000:], x)}
    rows, names = [], []
    for dim in DIMS:
        deep = convolutional(shape, dim)
        learn(deep, x, epochs)
        with torch.no_grad():
            fits, scores = densities(deep.encoder(x), deep.encoder(test), args.seed, components)
            for k, fit, score in zip(components, fits, scores, strict=True):
                made = deep.decoder(fit.sample(1000)[0])
                row = {"dim": dim, "components": k, "test_log_likelihood_of_codes": score}
                row |= {"confidence": reader.confidence(made), "distance": nearest(made, x)}
                results["fits"].append(row)
                print("  ".join(f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()))
                if k != components[1]:
                    rows += [made[:18], made[18:36]]
                    names += [f"d = {dim}, " + ("Gaussian" if k == 1 else f"mixture of {k}"), ""]
    with torch.no_grad():
        results["interpolation"] = interpolation(args, PCA(x, DIMS[-1]), deep, test[held:], labels[held:], reader, shape)
    figure = Figure(figsize=(9.4, 4.0), layout="constrained")
    draw_sheet(figure.add_subplot(), rows, shape, names, "Decoded draws from densities fitted to the codes of training digits")
    save(figure, args.out / "generation.png")
    finish(args, results, ("interpolation.png", "generation.png"))


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    rows = [
        [
            f["dim"],
            "Gaussian" if f["components"] == 1 else f"mixture of {f['components']} Gaussians",
            f"{f['test_log_likelihood_of_codes']:.2f}",
            f"{f['confidence']:.3f}",
            f"{f['distance']:.1f}",
        ]
        for f in r["fits"]
    ]
    rows.append(["", "test digits", "", f"{r['confidence_test']:.3f}", f"{r['distance_test']:.1f}"])
    head = [
        "d",
        "density of the codes",
        "log-likelihood of test codes",
        "classifier's confidence",
        "distance² to the nearest training digit",
    ]
    i = r["interpolation"]
    gain = i["confidence_halfway_cnn"] - i["confidence_halfway_pca"]
    seen = "The classifier sees little of that" if gain < 0.05 else "The classifier sees it"
    return f"""\
## Interpolation and generation with an autoencoder: `{r["command"]}`

Straight lines between the codes of two digits of {r["dataset"]} ({r["train_images"]:,} training images, {r["epochs"]} epochs). PCA is
linear, so halfway between two digits is one laid over the other; the deck says that the autoencoder goes through digits instead.
{seen}: halfway between {i["pairs"]:,} pairs of different test digits, the most probable class has probability
{i["confidence_halfway_pca"]:.3f} with PCA and {i["confidence_halfway_cnn"]:.3f} with the autoencoder (at the ends
{i["confidence_ends_pca"]:.3f} and {i["confidence_ends_cnn"]:.3f}), by a classifier of clean digits.

![Lines between pairs of digits](pictures/interpolation.png)

The deck fits a Gaussian to the codes, decodes draws from it (d = 16 and 32) and concludes: the results are bad, because the density is
*simple and inadequate*. `MixtureOfGaussians` is the next one up:

{table(head, rows)}

![Generated digits](pictures/generation.png)
"""


if __name__ == "__main__":
    main()
