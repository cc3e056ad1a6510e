"""Three priors of one VAE of digits: N(0, I), a mixture of Gaussians, and the VampPrior with its learned pseudo-inputs.

    python examples/vamp_prior.py [--quick] [--out DIR] [--dataset mnist]

Writes vamp_prior.png, vamp_prior_inputs.png and vamp_prior.json.
"""

import time
from typing import Any

import torch
from _common import Reader, draw_sheet, finish, learn, load, nearest, options, save, table, unit
from matplotlib.figure import Figure
from torch import Tensor, nn

from vae_fast.models import VAE, MixtureOfGaussians, VampPrior

PRIORS = {"normal": "N(0, I)", "mixture": "mixture of Gaussians", "vamp": "VampPrior"}


def build(kind: str, pixels: int, hidden: int, latent: int, components: int, x: Tensor) -> VAE:
    """Two hidden layers on either side; pseudo-inputs start as training images."""
    encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
    decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, pixels))
    prior: nn.Module | None = None
    if kind == "vamp":
        prior = VampPrior(encoder, components, pixels, pseudo_inputs=x[torch.randperm(len(x))[:components]])
    elif kind == "mixture":
        prior = MixtureOfGaussians(components, covariance_type="diag", n_features=latent)
    return VAE(encoder, decoder, latent_dim=latent, prior=prior)


@torch.no_grad()
def judge(model: VAE, test: Tensor, samples: int) -> dict[str, float]:
    """Nats per test image, and how much of the latent space is used."""
    log_p = torch.cat([model.log_prob(part, samples) for part in test.split(500)]).mean().item()
    losses = [[value.sum() for value in model.losses_of(part, model(part), reduction="none")] for part in test.split(500)]
    loss, kl = (sum(values).item() / len(test) for values in zip(*losses, strict=True))
    active = int((model.encode(test)[0].var(0) > 0.01).sum())
    return {"log_prob": log_p, "elbo": -loss, "kl": kl, "active": active}


def main() -> None:
    """Train, print, draw."""
    args = options(__doc__, "mnist")
    found = load(args.dataset)
    x, grey, labels, shape = unit(found.train), unit(found.test), found.test_labels, found.image_shape
    epochs, hidden, latent, components, samples = (60, 100, 8, 50, 50) if args.quick else (60, 300, 40, 500, 500)
    test = torch.bernoulli(grey)
    held = len(grey) // 2
    reader = Reader(test[:held], labels[:held])
    results: dict[str, Any] = {"dataset": args.dataset, "train_images": len(x), "test_images": len(test), "epochs": epochs}
    results |= {"hidden": hidden, "latent": latent, "components": components, "samples": samples}
    results |= {"confidence_test": reader.confidence(test[held:]), "distance_test": nearest(grey[-1000:], x[:20_000]), "fits": []}
    sheets, names, inputs = [test[:16]], ["test digits"], []
    for kind, name in PRIORS.items():
        torch.manual_seed(args.seed)
        model, begin = build(kind, x.shape[1], hidden, latent, components, x), time.perf_counter()
        if kind == "vamp":
            inputs.append(model.prior.pseudo_inputs.detach().clone()[:16])
        learn(model, x, epochs)
        row = {"prior": name, "parameters": sum(p.numel() for p in model.parameters())} | judge(model, test, samples)
        made = model.sample(1000)
        results["fits"].append(row | {"confidence": reader.confidence(made), "distance": nearest(made, x[:20_000])})
        print(
            "  ".join(f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in results["fits"][-1].items())
        )
        print(f"{name}: {time.perf_counter() - begin:.0f} s", flush=True)
        sheets += [made[:16], made[16:32]]
        names += [f"drawn: {name}", ""]
    with torch.no_grad():
        learned = model.prior.pseudo_inputs.clamp(0.0, 1.0)
        inputs += [learned[:16], model.mean_of(model.decode(model.encode(learned[:16])[0]))]
    figure = Figure(figsize=(9.4, 4.4), layout="constrained")
    draw_sheet(figure.add_subplot(), sheets, shape, names, "Decoded draws from three priors")
    save(figure, args.out / "vamp_prior.png")
    figure = Figure(figsize=(9.4, 2.2), layout="constrained")
    labels_of = ("a training image", "as learned", "decoded")
    draw_sheet(figure.add_subplot(), inputs, shape, labels_of, f"16 of {components} pseudo-inputs of the VampPrior")
    save(figure, args.out / "vamp_prior_inputs.png")
    finish(args, results, ("vamp_prior.png", "vamp_prior_inputs.png"))


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    rows = [
        [
            f["prior"],
            f"{f['parameters']:,}",
            *(f"{f[key]:.2f}" for key in ("log_prob", "elbo", "kl")),
            f["active"],
            f"{f['confidence']:.3f}",
            f"{f['distance']:.1f}",
        ]
        for f in r["fits"]
    ]
    rows.append(["test digits", "", "", "", "", "", f"{r['confidence_test']:.3f}", f"{r['distance_test']:.1f}"])
    normal, _, vamp = r["fits"]
    gain = vamp["log_prob"] - normal["log_prob"]
    head = [
        "prior",
        "parameters",
        "test log p(x)",
        "test ELBO",
        "KL",
        "active latents",
        "classifier's confidence",
        "distance² to the nearest",
    ]
    return f"""\
## A prior learned with the model: `{r["command"]}`

Tomczak and Welling (2018) put the average of the encoder's posteriors at learned *pseudo-inputs* in place of N(0, I): `VampPrior`. One
network (two hidden layers of {r["hidden"]} units on either side, {r["latent"]} latents), {r["train_images"]:,} training images of
{r["dataset"]} as grey values, {r["epochs"]} epochs; the mixture and the VampPrior have {r["components"]} components. log p(x) by
{r["samples"]} importance samples for each of {r["test_images"]:,} test images, made black and white by one draw; a latent is active if the
variance of its posterior mean over the test images is above 0.01.

{table(head, rows)}

Against N(0, I) the VampPrior {"gains" if gain > 0 else "loses"} {abs(gain):.2f} nats per image. The paper reports 85.6 nats for a VampPrior
on MNIST that was made black and white once, for training too, by networks and training of its own: a figure to be near, not to be equal
to.

![Decoded draws from three priors](pictures/vamp_prior.png)

![Pseudo-inputs](pictures/vamp_prior_inputs.png)
"""


if __name__ == "__main__":
    main()
