"""A convolutional VAE against two fully connected ones: bound, log p(x), draws, by the number of training images.

    python examples/convolutional_vae.py [--quick] [--dataset digits|mnist] [--out DIR]

The thesis names convolutions as future work. Writes convolutional_vae.png and convolutional_vae.json.
"""

from typing import Any

import torch
from _autoencoder import convolutional, mlp
from _common import Reader, draw_sheet, finish, learn, load, options, save, table, unit
from matplotlib.figure import Figure

from vae_fast.models import VAE
from vae_fast.training import evaluate, evaluate_log_prob

LATENT = 10
KINDS = {"narrow": "fully connected, 256 and 128", "wide": "fully connected, 512 and 256", "conv": "convolutional, 16 and 32 channels"}


def build(kind: str, shape: tuple[int, int]) -> VAE:
    """The encoders of twice the codes' size, the decoders of theirs, in the same layers as the autoencoders' of the other examples."""
    if kind == "conv":
        parts = convolutional(shape, 2 * LATENT).encoder, convolutional(shape, LATENT).decoder
    else:
        hidden = (256, 128) if kind == "narrow" else (512, 256)
        parts = mlp(shape, 2 * LATENT, hidden).encoder, mlp(shape, LATENT, hidden).decoder
    return VAE(*parts, latent_dim=LATENT)


def main() -> None:
    """Train each with few and with many images, judge, draw."""
    args = options(__doc__, "mnist")
    found = load(args.dataset)
    x, test, labels, shape = unit(found.train), unit(found.test), found.test_labels, found.image_shape
    held = len(test) // 2
    reader, seen = Reader(test[:held], labels[:held]), test[held:][:1000]
    counts, steps = ((300, 1200), 120) if args.quick else ((1000, 10_000), 1000)
    rows: list[dict[str, Any]] = []
    pictures = [seen[:12]]
    for count in counts:
        for kind, name in KINDS.items():
            torch.manual_seed(args.seed)
            model = build(kind, shape)
            learn(model, x[:count], max(1, steps * 100 // count))
            model.eval()
            row: dict[str, Any] = {"name": kind, "images": count, "parameters": sum(p.numel() for p in model.parameters())}
            row |= {"train_loss": evaluate(model, x[:count])["loss"], "test_loss": evaluate(model, seen)["loss"]}
            row["test_log_prob"] = evaluate_log_prob(model, seen, 50)
            row["confidence"] = reader.confidence(model.sample(1000, generator=torch.Generator().manual_seed(args.seed)))
            rows.append(row)
            print(f"{name}: " + "  ".join(f"{k} {v:.2f}" for k, v in row.items() if k != "name"), flush=True)
            if count == counts[-1]:
                pictures += [model.reconstruct(seen[:12]), model.sample(12, generator=torch.Generator().manual_seed(1))]
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    words = ["images", *(f"{kind}: {what}" for kind in KINDS for what in ("decoded", "draws"))]
    draw_sheet(figure.add_subplot(), pictures, shape, words)
    save(figure, args.out / "convolutional_vae.png")
    results = {"dataset": args.dataset, "latent": LATENT, "steps": steps, "test_images": len(seen), "fits": rows}
    finish(args, results | {"confidence_test": reader.confidence(seen)}, ("convolutional_vae.png",))


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    body, verdicts = [], []
    counts = sorted({row["images"] for row in r["fits"]})
    for count in counts:
        mine = {row["name"]: row for row in r["fits"] if row["images"] == count}
        for kind, row in mine.items():
            losses = [f"{row[k]:.2f}" for k in ("train_loss", "test_loss", "test_log_prob")]
            body.append([f"{count:,}", KINDS[kind], f"{row['parameters']:,}", *losses, f"{row['confidence']:.3f}"])
        best = max(("narrow", "wide"), key=lambda kind: mine[kind]["test_log_prob"])
        gain = mine["conv"]["test_log_prob"] - mine[best]["test_log_prob"]
        share = mine["conv"]["parameters"] / mine[best]["parameters"]
        verdicts.append(f"{abs(gain):.2f} nats {'above' if gain > 0 else 'below'} the better fully connected one with {count:,} images")
    head = ["images", "network", "weights", "training loss", "test loss", "test log p(x)", "confidence in draws"]
    return f"""\
## A convolutional VAE: `{r["command"]}`

The thesis' future work: convolutions in place of its fully connected layers. {r["latent"]} latent dimensions, Bernoulli likelihood of the
grey values of {r["dataset"]}, {r["steps"]:,} steps of Adam with batches of 100 for each network, from one seed; {r["test_images"]:,} test
images, log p(x) by 50 importance samples. The classifier's confidence in test images is {r["confidence_test"]:.3f}.

{table(head, body)}

The convolutional network's log p(x) is {" and ".join(verdicts)}; it has {share:.2f} times the
weights of the better one with the most images.

![Test images, reconstructions and draws of the three networks with the most images](pictures/convolutional_vae.png)
"""


if __name__ == "__main__":
    main()
