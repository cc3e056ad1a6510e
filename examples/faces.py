"""A Gaussian model of faces: mean face, principal directions, samples; and how much more a mixture of Gaussians knows.

    python examples/faces.py [--quick] [--out DIR] [--dataset frey]

Writes faces.png and faces.json.
"""

import warnings
from typing import Any

import torch
from _common import draw_sheet, finish, load, options, save, table, unit
from matplotlib.figure import Figure

from vae_fast.models import ConvergenceWarning, MixtureOfGaussians

SHOWN = 12


def main() -> None:
    """Fit, print, draw."""
    args = options(__doc__, "frey")
    warnings.simplefilter("ignore", ConvergenceWarning)
    found = load(args.dataset)
    x, test, shape = unit(found.train), unit(found.test), found.image_shape
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(x.double().T, correction=0))
    values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
    share = (values.cumsum(0) / values.sum()).tolist()
    # x = mean + E Lambda^(1/2) z, as the deck draws it
    z = torch.randn(1000, len(values), dtype=torch.float64)
    samples = mean + ((z * values.sqrt()) @ vectors.T).float()
    outside = ((samples < 0.0) | (samples > 1.0)).float().mean().item()

    dim = 10 if args.quick else 30
    codes, test_codes = (((part - mean).double() @ vectors[:, :dim]) / values[:dim].sqrt() for part in (x, test))
    fits = []
    for k in (1, 2, 4, 8):
        fit = MixtureOfGaussians(k, reg_covar=1e-3, max_iter=500, n_init=2, random_state=args.seed).fit(codes)
        fits.append({"components": k, "train_log_likelihood": float(fit.score(codes)), "test_log_likelihood": float(fit.score(test_codes))})
        print("  ".join(f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in fits[-1].items()))
    drawn = fit.sample(SHOWN)[0] * values[:dim].sqrt() @ vectors[:, :dim].T
    directions = vectors.T[: SHOWN - 1].float()
    directions = 0.5 + directions / (2.0 * directions.abs().max(1, keepdim=True).values)
    rows = [x[:: len(x) // SHOWN][:SHOWN], torch.cat((mean[None], directions)), samples[:SHOWN], mean + drawn.float()]
    labels = ("data", "mean, then\ndirections", "drawn from\nthe Gaussian", f"drawn from a\nmixture of {fits[-1]['components']}")
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    draw_sheet(figure.add_subplot(), rows, shape, labels, f"A Gaussian model of {args.dataset}")
    save(figure, args.out / "faces.png")
    results = {"dataset": args.dataset, "train_images": len(x), "test_images": len(test), "pixels": x.shape[1], "directions": dim}
    results |= {"share_of_variance": {str(k): share[k - 1] for k in (1, 10, dim)}, "sample_pixels_outside": outside, "fits": fits}
    print(f"share of variance: {results['share_of_variance']}; pixels of samples outside [0, 1]: {outside:.3f}")
    finish(args, results, ("faces.png",))


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    rows = [[f["components"], f"{f['train_log_likelihood']:.2f}", f"{f['test_log_likelihood']:.2f}"] for f in r["fits"]]
    shares = ", ".join(f"{k} hold {v:.1%}" for k, v in r["share_of_variance"].items())
    return f"""\
## A Gaussian model of faces: `{r["command"]}`

N(μ, Σ) fitted to {r["train_images"]:,} images of {r["dataset"]} by maximum likelihood (sample mean and covariance, {r["pixels"]}
pixels), drawn from as x = μ + E Λ^½ z. Of the variance, the leading directions {shares}. The deck: *the model does not generate
realistic samples, the hypothesis is too simple*. {r["sample_pixels_outside"]:.1%} of the pixels of 1,000 draws are no grey values
(below 0 or above 1). On the leading {r["directions"]} directions, in units of their standard deviations, mixtures of Gaussians give
{r["test_images"]} images that were held out far more likelihood (nats per image; frames that were held out are near neighbours in the
film of frames that were not):

{table(["Gaussians", "training", "held out"], rows)}

![Faces, mean and principal directions, draws](pictures/faces.png)
"""


if __name__ == "__main__":
    main()
