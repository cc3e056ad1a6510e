"""A beta-VAE and a beta-TC-VAE of shapes whose factors are known: how much of each factor one latent holds, and at what cost.

    python examples/disentanglement.py [--quick] [--out DIR]

Writes disentanglement.png, disentanglement_scores.png and disentanglement.json.
"""

import functools
import math
import multiprocessing
import time
from itertools import product
from typing import Any

import torch
from _common import draw_sheet, finish, learn, options, save, table
from matplotlib.figure import Figure
from torch import Tensor, nn

import vae_fast
from vae_fast.models import VAE

FACTORS = ("shape", "scale", "rotation", "x", "y")
SHAPES = ("square", "ellipse", "heart")
KINDS = {"beta": "beta-VAE", "tc": "beta-TC-VAE"}
COLORS = {"beta": "tab:blue", "tc": "tab:orange"}


def inside(shape: str, u: Tensor, v: Tensor) -> Tensor:
    """Whether points lie in a shape of about unit size."""
    if shape == "square":
        return torch.maximum(u.abs(), v.abs()) < 0.8
    if shape == "ellipse":
        return u.square() + (v / 0.5).square() < 1.0
    u, v = 1.2 * u, 0.1 - 1.2 * v
    return (u.square() + v.square() - 1.0) ** 3 < u.square() * v**3


def images(side: int, scales: int, rotations: int, places: int) -> tuple[Tensor, Tensor]:
    """Every combination of the factors, as grey images ``(N, side * side)`` (of 4 x 4 points a pixel), and the factors ``(N, 5)``."""
    fine = (torch.arange(4 * side) + 0.5) / (2.0 * side) - 1.0
    rows, values = [], []
    for (kind, shape), i, j in product(enumerate(SHAPES), range(scales), range(rotations)):
        size = torch.linspace(0.25, 0.5, scales)[i].item()
        angle = 2.0 * math.pi * j / rotations
        for (a, x), (b, y) in product(enumerate(torch.linspace(-0.45, 0.45, places).tolist()), repeat=2):
            p, q = (fine[None, :] - x) / size, (fine[:, None] - y) / size
            u, v = math.cos(angle) * p + math.sin(angle) * q, math.cos(angle) * q - math.sin(angle) * p
            rows.append(inside(shape, u, v).float().reshape(side, 4, side, 4).mean((1, 3)).flatten())
            values.append((kind, i, j, a, b))
    return torch.stack(rows), torch.tensor(values)


def build(kind: str, beta: float, x: Tensor, hidden: int, latent: int) -> VAE:
    """Two hidden layers on either side. In both kinds the loss is the likelihood and the KL; then beta - 1 times the KL, or times its total
    correlation alone."""
    pixels = x.shape[1]
    encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
    decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, pixels))
    if kind == "beta" or beta == 1.0:
        return VAE(encoder, decoder, latent_dim=latent, beta=beta)

    def extra(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        return (beta - 1.0) * vae_fast.total_correlation(z, mu, logvar, len(x)).total_correlation

    return VAE(encoder, decoder, latent_dim=latent, regularizer=extra)


def log_q(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Log-density of one latent's aggregate posterior."""
    return vae_fast.aggregate_log_prob(z[:, None], mu[:, None], logvar[:, None]).double()


def information(z: Tensor, mu: Tensor, logvar: Tensor, of: Tensor, factors: Tensor) -> list[tuple[float, float]]:
    """I(z; v) of one latent and each factor, and H(v), in nats, as Chen et al. (2018) estimate them: H(z) less the entropies of z given
    every value of v, by draws ``z`` of the posteriors ``of``."""
    entropy_of_z = -log_q(z, mu, logvar).mean().item()
    found = []
    for factor in factors.unbind(1):
        given, entropy = 0.0, 0.0
        for value in factor.unique():
            chosen = factor == value
            share = chosen.double().mean().item()
            entropy -= share * math.log(share)
            given -= log_q(z[chosen[of]], mu[chosen], logvar[chosen]).sum().item() / len(z)
        found.append((entropy_of_z - given, entropy))
    return found


@torch.no_grad()
def judge(model: VAE, x: Tensor, factors: Tensor, samples: int) -> dict[str, Any]:
    """The parts of the ELBO, with the aggregate posterior of all images, and the mutual information gap of each factor."""
    mu, logvar = (torch.cat(parts) for parts in zip(*(model.encode(part) for part in x.split(1000)), strict=True))
    of = torch.randperm(len(x))[:samples]
    z = vae_fast.reparameterize(mu[of], logvar[of])
    likelihood = torch.cat([vae_fast.bernoulli_log_prob(x[i], model.decode(a)) for i, a in zip(of.split(1000), z.split(1000), strict=True)])
    own = vae_fast.gaussian_log_prob(z, mu[of], logvar[of])
    joint, separate = vae_fast.aggregate_log_prob(z, mu, logvar, factorized="both")
    prior = vae_fast.gaussian_log_prob(z, torch.zeros_like(z), torch.zeros_like(z))
    parts = {"log_likelihood": likelihood, "mutual_information": own - joint, "total_correlation": joint - separate}
    parts["dimension_wise_kl"] = separate - prior
    found: dict[str, Any] = {name: value.double().mean().item() for name, value in parts.items()}
    of_latent = [information(z[:, j], mu[:, j], logvar[:, j], of, factors) for j in range(z.shape[1])]
    held = [[value / entropy for value, entropy in of_factor] for of_factor in zip(*of_latent, strict=True)]
    gaps = {name: max(row) - sorted(row)[-2] for name, row in zip(FACTORS, held, strict=True)}
    kl = vae_fast.gaussian_kl(mu, logvar, event_dim=0).double().mean(0).tolist()
    return found | {"gaps": gaps, "mig": sum(gaps.values()) / len(gaps), "information": held, "kl_of_latent": kl}


@torch.no_grad()
def traversal(model: VAE, image: Tensor, kl: list[float], count: int, steps: int) -> list[Tensor]:
    """One image, decoded with one latent after the other moved from -2 to 2: the ``count`` latents of the largest KL."""
    rows = []
    for j in sorted(range(len(kl)), key=lambda j: -kl[j])[:count]:
        z = model.encode(image[None])[0].repeat(steps, 1)
        z[:, j] = torch.linspace(-2.0, 2.0, steps)
        rows.append(model.mean_of(model.decode(z)))
    return rows


def means(fits: list[dict[str, Any]]) -> dict[str, float]:
    """The means over seeds of what is one number."""
    return {key: sum(f[key] for f in fits) / len(fits) for key, value in fits[0].items() if isinstance(value, float)}


def best(fits: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The model of a kind with the largest gap: that of the picture."""
    return max((f for f in fits if f["kind"] == kind and f["beta"] > 1.0), key=lambda f: f["mig"])


def draw_scores(fits: list[dict[str, Any]]) -> Figure:
    """The gap against beta, and against what the likelihood lost."""
    figure = Figure(figsize=(5.0, 6.4), layout="constrained")
    above, below = figure.subplots(2, 1)
    for kind, name in KINDS.items():
        mine = [f for f in fits if f["kind"] == kind or f["beta"] == 1.0]
        betas = sorted({f["beta"] for f in mine})
        above.plot(betas, [means([f for f in mine if f["beta"] == b])["mig"] for b in betas], color=COLORS[kind], label=name)
        above.plot([f["beta"] for f in mine], [f["mig"] for f in mine], "o", color=COLORS[kind], alpha=0.6)
        some = [f for f in mine if f["beta"] > 1.0]
        below.plot([f["log_likelihood"] for f in some], [f["mig"] for f in some], "o", color=COLORS[kind], alpha=0.6, label=name)
    plain = [f for f in fits if f["beta"] == 1.0]
    below.plot([f["log_likelihood"] for f in plain], [f["mig"] for f in plain], "o", color="0.4", label="VAE (beta = 1)")
    above.set_xticks(sorted({f["beta"] for f in fits}))
    above.set_xlabel("beta", fontsize=11)
    below.set_xlabel("log-likelihood of an image, nats", fontsize=11)
    for axes in (above, below):
        axes.set_ylabel("mutual information gap", fontsize=11)
        axes.set_ylim(bottom=0.0)
        axes.legend(fontsize=11)
    return figure


@functools.cache
def drawn(**sizes: int) -> tuple[Tensor, Tensor]:
    """The images, once in each process."""
    return images(**sizes)


def trained(kind: str, beta: float, seed: int, setting: dict[str, Any]) -> tuple[dict[str, Any], list[Tensor]]:
    """One model's numbers and its traversal. A network as small as these leaves a second core idle: a thread each, several side by side."""
    torch.set_num_threads(1)
    x, factors = drawn(**{name: setting[name] for name in ("side", "scales", "rotations", "places")})
    torch.manual_seed(seed)
    model, begin = build(kind, beta, x, setting["hidden"], setting["latent"]), time.perf_counter()
    learn(model, x, setting["epochs"], lr=setting["lr"], batch_size=setting["batch"])
    fit = {"kind": kind, "beta": beta, "seed": seed} | judge(model, x, factors, setting["samples"])
    heart, middle = factors[:, 0] == 2, setting["places"] // 2
    image = x[heart & (factors[:, 1] == setting["scales"] - 1) & (factors[:, 3] == middle) & (factors[:, 4] == middle)][0]
    print(
        f"{'VAE' if beta == 1.0 else KINDS[kind]}, beta {beta:g}, seed {seed}: log-likelihood {fit['log_likelihood']:.2f}, "
        f"total correlation {fit['total_correlation']:.2f}, gap {fit['mig']:.3f}, {time.perf_counter() - begin:.0f} s",
        flush=True,
    )
    return fit, traversal(model, image, fit["kl_of_latent"], 6, 9)


def main() -> None:
    """Train, measure, draw."""
    args = options(__doc__)
    setting: dict[str, Any] = {"side": 32, "scales": 5, "rotations": 8, "places": 10, "epochs": 25, "batch": 64, "lr": 1e-3}
    setting |= {"hidden": 256, "latent": 10, "samples": 10_000, "seeds": 2}
    betas = (1.0, 2.0, 4.0)
    if args.quick:
        setting |= {"side": 16, "scales": 2, "rotations": 4, "places": 5, "epochs": 25, "batch": 32, "lr": 3e-3}
        setting |= {"hidden": 64, "latent": 6, "samples": 500, "seeds": 1}
        betas = (1.0, 4.0)
    tasks = [
        (kind, beta, seed, setting)
        for seed, beta, kind in product(range(args.seed, args.seed + setting["seeds"]), betas, KINDS)
        if beta > 1.0 or kind == "beta"  # with beta = 1 both are the VAE
    ]
    if args.quick:
        done = [trained(*task) for task in tasks]
    else:
        with multiprocessing.get_context("spawn").Pool(torch.get_num_threads()) as pool:
            done = pool.starmap(trained, tasks, chunksize=1)
    fits = [fit for fit, _ in done]
    results = setting | {"images": len(SHAPES) * setting["scales"] * setting["rotations"] * setting["places"] ** 2, "fits": fits}
    save(draw_scores(fits), args.out / "disentanglement_scores.png")
    figure = Figure(figsize=(5.0, 7.6), layout="constrained")
    for axes, (kind, name) in zip(figure.subplots(2, 1), KINDS.items(), strict=True):
        fit = best(fits, kind)
        rows = done[fits.index(fit)][1]
        labels = [f"{value:.2f}" for value in sorted(fit["kl_of_latent"])[::-1][: len(rows)]]
        draw_sheet(axes, rows, (setting["side"],) * 2, labels, f"{name}, beta = {fit['beta']:g}: one latent a row, its KL", 11)
    save(figure, args.out / "disentanglement.png")
    finish(args, results, ("disentanglement.png", "disentanglement_scores.png"))


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    groups: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for fit in r["fits"]:
        groups.setdefault((fit["beta"], fit["kind"]), []).append(fit)
    rows = []
    for (beta, kind), fits in sorted(groups.items()):
        mean, gaps = means(fits), [sum(f["gaps"][name] for f in fits) / len(fits) for name in FACTORS]
        rows.append(
            [
                "VAE" if beta == 1.0 else f"{KINDS[kind]}, {beta:g}",
                *(f"{mean[key]:.2f}" for key in ("log_likelihood", "mutual_information", "total_correlation", "dimension_wise_kl")),
                f"{mean['mig']:.3f} ({min(f['mig'] for f in fits):.3f} to {max(f['mig'] for f in fits):.3f})",
                *(f"{gap:.2f}" for gap in gaps),
            ]
        )
    head = ["model, beta", "log-likelihood", "mutual information", "total correlation", "dimension-wise KL", "gap", *FACTORS]
    compared = []
    for beta in sorted({beta for beta, _ in groups if beta > 1.0}):
        ours, plain = means(groups[beta, "tc"]), means(groups[beta, "beta"])
        compared.append(
            f"at beta = {beta:g} the beta-TC-VAE's mean gap is {ours['mig']:.3f} and the beta-VAE's {plain['mig']:.3f}, its log-likelihood "
            f"{ours['log_likelihood']:.1f} and {plain['log_likelihood']:.1f}"
        )
    shape = max(share for kind in KINDS for share in best(r["fits"], kind)["information"][FACTORS.index("shape")])
    return f"""\
## Disentangled latents of known factors: `{r["command"]}`

Shapes drawn by the example after dSprites: {len(SHAPES)} shapes x {r["scales"]} scales x {r["rotations"]} rotations x {r["places"]} x
{r["places"]} places, all {r["images"]:,} images of {r["side"]} x {r["side"]} grey pixels. A beta-VAE (Higgins et al. 2017) multiplies the
whole KL by beta; a beta-TC-VAE (Chen et al. 2018) its total correlation alone, here by `VAE(..., regularizer=)` and
`vae_fast.total_correlation`. Two hidden layers of {r["hidden"]} units on either side, {r["latent"]} latents, {r["epochs"]} epochs in
batches of {r["batch"]}, {r["seeds"]} seeds.

The score is the paper's *mutual information gap*: of a factor, what the most informative latent tells of it less what the second does, as a
share of the factor's entropy; then the mean over factors. It needs the densities of the aggregate posterior and of its parts with one
value of a factor, over all images: `vae_fast.aggregate_log_prob`, for {r["samples"]:,} draws. The parts of the KL are of the same aggregate
posterior, in nats for each image. Means over seeds; the gap's range in parentheses.

{table(head, rows)}

Of {r["seeds"]} seeds, {"; ".join(compared)}. Two of the three shapes look the same after half a turn or less, so no latent can hold all of
the rotation. What both give up is the shape: of the models in the picture, those with the largest gaps, no latent tells more than
{shape:.0%} of it, and a heart is decoded as a disc.

![The mutual information gap](pictures/disentanglement_scores.png)

![One latent moved at a time](pictures/disentanglement.png)
"""


if __name__ == "__main__":
    main()
