"""Classes by p(x|y) p(y) and by p(y|x); outliers by p(x), and where that fails; digits written on demand by a conditional VAE.

    python examples/generative_and_discriminative.py [--quick] [--out DIR] [--dataset mnist]

The generative models lecture deck's first chapter. Writes conditional_digits.png, outliers.png and generative_and_discriminative.json.
"""

import math
import time
import warnings
from typing import Any

import torch
from _autoencoder import PCA
from _common import Reader, draw_sheet, finish, learn, load, options, save, table, unit
from _thesis import train_labels
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import one_hot

import vae_fast
from vae_fast.models import ConvergenceWarning, MixtureOfGaussians

CLASSES = 10
MOST = 10  # components for each class
DRAWN = 100  # of each class
DISCRIMINATIVE = "logistic regression, p(y given x)"
NAIVE, FULL, MIXTURE = "a Gaussian for each class, diagonal", "a Gaussian for each class, full", "a mixture for each class, full"
CONDITIONAL = "conditional VAE"


class Conditional(nn.Module):
    """q(z | x, y) and p(x | z, y) with the class as ten more inputs of either network: Kingma and others (2014), model M2."""

    def __init__(self, pixels: int, hidden: int, latent: int) -> None:
        """One hidden layer of the encoder, two of the decoder, which has to write the digit."""
        super().__init__()
        self.pixels, self.latent = pixels, latent
        self.encoder = nn.Sequential(nn.Linear(pixels + CLASSES, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(
            nn.Linear(latent + CLASSES, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, pixels)
        )

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """Logits of the pixels for codes ``(..., L)`` and classes ``(..., 10)``."""
        return self.decoder(torch.cat((z, y.expand(*z.shape[:-1], CLASSES)), -1))

    def loss(self, rows: Tensor) -> Tensor:
        """-ELBO of log p(x | y), nats: each row is an image and its class after it."""
        x, y = rows[:, : self.pixels], rows[:, self.pixels :]
        mu, logvar = self.encoder(rows).chunk(2, -1)
        return vae_fast.elbo_loss(x, self.decode(vae_fast.reparameterize(mu, logvar), y), mu, logvar)

    @torch.no_grad()
    def log_prob(self, x: Tensor, samples: int) -> Tensor:
        """log p(x | y) of every class by importance samples, ``(batch, 10)``."""
        found = []
        for part in x.split(100):
            scores = []
            for y in torch.eye(CLASSES):
                mu, logvar = self.encoder(torch.cat((part, y.expand(len(part), -1)), 1)).chunk(2, -1)
                z = vae_fast.reparameterize(mu, logvar, num_samples=samples)
                scores.append(-vae_fast.iwae_loss(part, self.decode(z, y), z, mu, logvar, reduction="none"))
            found.append(torch.stack(scores, 1))
        return torch.cat(found)


def log_prior(labels: Tensor) -> Tensor:
    """log p(y): how often each class is there."""
    return (torch.bincount(labels, minlength=CLASSES) / len(labels)).log()


def class_wise(codes: Tensor, labels: Tensor, most: int, covariance: str, seed: int) -> list[MixtureOfGaussians]:
    """A mixture for each class, of a component for every ten images, at most ``most``."""
    fits = []
    for y in range(CLASSES):
        own = codes[labels == y]
        k = max(1, min(most, len(own) // 10))
        fits.append(MixtureOfGaussians(k, covariance_type=covariance, reg_covar=0.1, max_iter=30, random_state=seed).fit(own))
    return fits


def joint_of(fits: list[MixtureOfGaussians], codes: Tensor, prior: Tensor) -> Tensor:
    """log p(x | y) + log p(y), ``(batch, 10)``."""
    return torch.stack([fit.score_samples(codes) for fit in fits], 1) + prior


def score(joint: Tensor, labels: Tensor) -> dict[str, float]:
    """Of log p(x, y), or of log p(y | x): the share read right and the mean log p(y | x)."""
    log_p = joint.double().log_softmax(1)
    right = (joint.argmax(1) == labels).double().mean().item()
    return {"right": right, "log_prob": log_p.gather(1, labels[:, None]).mean().item()}


def outliers(x: Tensor, shape: tuple[int, int]) -> dict[str, Tensor]:
    """What is no digit, made of digits."""
    shuffled = torch.stack([image[torch.randperm(len(image))] for image in x])
    return {
        "pixels in another order": shuffled,
        "black for white": 1.0 - x,
        "upside down": x.unflatten(1, shape).flip(1).flatten(1),
        "a fifth of the stroke": x * (torch.rand_like(x) < 0.2),
        "nothing at all": torch.zeros_like(x),
    }


def main() -> None:
    """Fit, print, draw."""
    args = options(__doc__, "mnist")
    warnings.simplefilter("ignore", ConvergenceWarning)
    found = load(args.dataset)
    n = min(len(found.train), 50_000)
    x, labels = torch.bernoulli(unit(found.train[:n])), train_labels(args.dataset)[:n].long()
    dim, hidden, latent, epochs, samples, judged = (15, 100, 8, 15, 5, 200) if args.quick else (30, 400, 8, 20, 10, 1000)
    test, truth, shape = torch.bernoulli(unit(found.test[:judged])), found.test_labels[:judged].long(), found.image_shape
    pca = PCA(x, dim)
    scale = pca.encoder(x).std(0)

    def coordinates(images: Tensor) -> Tensor:
        return pca.encoder(images) / scale

    codes, test_codes = coordinates(x), coordinates(test)
    sizes = [100, n] if args.quick else [100, 1000, n]
    results: dict[str, Any] = {"dataset": args.dataset, "train_images": n, "test_images": len(test), "dim": dim, "sizes": sizes}
    results |= {"epochs": epochs, "hidden": hidden, "latent": latent, "samples": samples, "most": MOST, "fits": []}
    mixtures: list[MixtureOfGaussians] = []
    for size in sizes:
        some, of = codes[:size], labels[:size]
        prior = log_prior(of)
        logistic = LogisticRegression(max_iter=300).fit(some.numpy(), of.numpy())
        scores = {DISCRIMINATIVE: torch.from_numpy(logistic.predict_log_proba(test_codes.numpy()))}
        for name, most, covariance in ((NAIVE, 1, "diag"), (FULL, 1, "full"), (MIXTURE, MOST, "full")):
            mixtures = class_wise(some, of, most, covariance, args.seed)
            scores[name] = joint_of(mixtures, test_codes, prior)
        for name, joint in scores.items():
            results["fits"].append({"name": name, "labels": size} | score(joint, truth))
            print("  ".join(f"{k} {v}" for k, v in results["fits"][-1].items()), flush=True)
    begin, model = time.perf_counter(), Conditional(x.shape[1], hidden, latent)
    learn(model, torch.cat((x, one_hot(labels, CLASSES).float()), 1), epochs)
    joint = model.log_prob(test, samples) + prior
    results["fits"].append({"name": CONDITIONAL, "labels": n} | score(joint, truth))
    print("  ".join(f"{k} {v}" for k, v in results["fits"][-1].items()), f"{time.perf_counter() - begin:.0f} s", flush=True)

    def normality(images: Tensor, log_p: Tensor) -> dict[str, Tensor]:
        """Three scores that are to be high for digits."""
        at = coordinates(images)
        certainty = torch.from_numpy(logistic.predict_proba(at.numpy())).amax(1)
        return {"certainty": certainty, "mixtures": joint_of(mixtures, at, prior).logsumexp(1), "vae": log_p}

    part = test[: judged // 4]
    normal = normality(part, joint[: len(part)].logsumexp(1))
    shown, rows = {"test digits": normal["vae"]}, [part[:16]]
    results["log_prob_digits"] = normal["vae"].mean().item()
    results["certainty_digits"] = normal["certainty"].mean().item()
    results["outliers"] = []
    for name, images in outliers(part, shape).items():
        strange = normality(images, (model.log_prob(images, samples) + prior).logsumexp(1))
        row = {"name": name, "log_prob": strange["vae"].mean().item(), "mean_certainty": strange["certainty"].mean().item()}
        for key, value in strange.items():
            truly = [1] * len(part) + [0] * len(value)
            row[key] = float(roc_auc_score(truly, torch.cat((normal[key], value)).numpy()))
        results["outliers"].append(row)
        print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else v for k, v in row.items()), flush=True)
        shown[name] = strange["vae"]
        rows.append(images[:16])

    with torch.no_grad():
        z = torch.randn(DRAWN, latent)
        demanded = [model.decode(z, y).sigmoid() for y in torch.eye(CLASSES)]
    reader = Reader(unit(found.test), found.test_labels)
    read = [reader.accuracy(made, torch.full((DRAWN,), y)) for y, made in enumerate(demanded)]
    results |= {"drawn": DRAWN, "read_as_asked": read}
    print("read as asked:", read)
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    draw_sheet(
        figure.add_subplot(),
        [made[:16] for made in demanded],
        shape,
        [str(y) for y in range(CLASSES)],
        "Written on demand: a z in each column",
    )
    save(figure, args.out / "conditional_digits.png")
    figure = Figure(figsize=(7.2, 6.2), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(1.0, 1.1))
    draw_sheet(above, rows, shape, list(shown))
    ends = [torch.cat(list(shown.values())).neg().aminmax()[i].item() for i in (0, 1)]
    bins = torch.logspace(math.log10(0.9 * ends[0]), math.log10(1.1 * ends[1]), 80).tolist()
    for (name, log_p), colour in zip(shown.items(), ("#222222", "#1f5fa8", "#b3352c", "#5a8f3c", "#d9772b", "#7d4fa0"), strict=True):
        below.hist(
            -log_p, bins=bins, weights=torch.full_like(log_p, 1.0 / len(log_p)), histtype="step", color=colour, label=name, linewidth=1.5
        )
    below.set(xscale="log", xlabel="$-$log p(x) by the conditional VAE, nats: to the left is more probable", ylabel="share of images")
    below.legend(frameon=False, fontsize="small")
    below.spines[["top", "right"]].set_visible(False)
    save(figure, args.out / "outliers.png")
    finish(args, results, ("conditional_digits.png", "outliers.png"))


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    fits = {(f["name"], f["labels"]): f for f in r["fits"]}
    rows = [
        [name, *(f"{fits[name, s]['right']:.1%}, {fits[name, s]['log_prob']:.2f}" if (name, s) in fits else "" for s in r["sizes"])]
        for name in (DISCRIMINATIVE, NAIVE, FULL, MIXTURE, CONDITIONAL)
    ]
    scores = ("certainty", "mixtures", "vae", "mean_certainty")
    strange = [[o["name"], *(f"{o[k]:.3f}" for k in scores), f"{o['log_prob']:.1f}"] for o in r["outliers"]]
    strange.append(["test digits", "", "", "", f"{r['certainty_digits']:.3f}", f"{r['log_prob_digits']:.1f}"])
    head = ["what is no digit", "AUC: certainty", "AUC: mixtures' log p(x)", "AUC: VAE's log p(x)", "mean certainty", "mean log p(x), VAE"]
    few, most = r["sizes"][0], r["sizes"][-1]
    best = {s: max((f for f in r["fits"] if f["labels"] == s), key=lambda f: f["right"])["name"] for s in (few, most)}
    higher = [o["name"] for o in r["outliers"] if o["log_prob"] > r["log_prob_digits"]]
    fails = (
        f"More probable than digits, in the mean, are: {', '.join(higher)}" if higher else "None is more probable than digits in the mean"
    )
    return f"""\
## Generative or discriminative: `{r["command"]}`

The deck: a discriminative model learns p(y | x), where the labels compete for each image; a generative one learns p(x | y), where the
images compete for each label, and classifies by p(x | y) p(y). {r["train_images"]:,} images of {r["dataset"]}, made black and white, on
their {r["dim"]} leading principal directions; the mixtures of a class have a component for every ten of its images, at most {r["most"]}
(`MixtureOfGaussians`); the conditional VAE sees all pixels, and the class as ten more inputs of both its networks ({r["latent"]} latents,
{r["epochs"]} epochs, log p(x | y) by {r["samples"]} importance samples). Share of {r["test_images"]:,} test images read right, and the mean
of log p(y | x), by the number of labelled images:

{table(["model", *(f"{s:,} labels" for s in r["sizes"])], rows)}

Most are read right by: {best[few]} ({few} labels), {best[most]} ({most:,}).

*A generative model can detect outliers*, says the deck, *and a discriminative one cannot*: it has to give some label to everything. How
well each score tells digits from what is none (area under the ROC curve: 1 always, ½ by chance, 0 always the wrong way round); certainty
is the logistic regression's highest probability:

{table(head, strange)}

{fails}: an image is probable when it is simple, too, and no threshold on log p(x) sees that. Mixtures on principal directions do not see
what lies outside of them.

![What is no digit, and its log p(x)](pictures/outliers.png)

The conditional VAE is told which digit to write; a column shares z, which is left with the hand: slant, width, stroke. Of
{r["drawn"]} draws of each, a classifier of clean digits reads {min(r["read_as_asked"]):.0%} to {max(r["read_as_asked"]):.0%} as the digit
that was asked for ({sum(r["read_as_asked"]) / 10:.0%} in the mean); in some columns the class does not overrule the shape.

![Digits on demand](pictures/conditional_digits.png)
"""


if __name__ == "__main__":
    main()
