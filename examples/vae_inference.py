"""What else the posterior of a VAE is for: how many nats its encoder loses, pixels that are missing, pixels that noise has changed.

    python examples/vae_inference.py [--quick] [--out DIR] [--dataset mnist]

Digits made black and white. The thesis names all three: q of the encoder against the best one (its future work, reference 43), missing
pixels (reference 42), denoising (section 2.1). Writes vae_inference_gap.png, vae_inference.png and vae_inference.json.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from _common import Reader, draw_sheet, finish, learn, load, options, save, table, unit
from matplotlib.figure import Figure
from torch import Tensor, nn

import vae_fast
from vae_fast.models import VAE

FLIPPED = 0.1
Q = tuple[Tensor, Tensor]
#: log p(what is seen | the logits of x), without its last dimension.
Seen = Callable[[Tensor], Tensor]


class Binarised(VAE):
    """A VAE of grey values that are read as probabilities: each pixel is drawn black or white anew whenever an image is seen."""

    def loss(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Of one draw of x."""
        return super().loss(torch.bernoulli(x), *args, **kwargs)


class Denoising(VAE):
    """Its encoder sees pixels of which some were flipped; its ELBO is that of the clean ones (Im and others 2017)."""

    def loss(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Of one draw of x and of the noise."""
        x = torch.bernoulli(x)
        return self.losses_of(x, self(flipped(x))).loss


def build(kind: type[VAE], pixels: int, hidden: int, latent: int) -> VAE:
    """Two hidden layers on either side."""
    encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
    decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, pixels))
    return kind(encoder, decoder, latent_dim=latent)


def flipped(x: Tensor) -> Tensor:
    """Each pixel is the other colour with probability ``FLIPPED``."""
    return (x - torch.bernoulli(torch.full_like(x, FLIPPED))).abs()


def all_of(x: Tensor) -> Seen:
    """Every pixel is seen as it is."""
    return lambda logits: vae_fast.bernoulli_log_prob(x, logits)


def part_of(x: Tensor, mask: Tensor) -> Seen:
    """The pixels of the mask are seen, and the others contribute nothing."""
    return lambda logits: (vae_fast.bernoulli_log_prob(x, logits, event_dim=0) * mask).sum(-1)


def noise_of(x: Tensor) -> Seen:
    """Every pixel is seen through the noise: it is white with probability f + (1 - 2 f) p."""
    return lambda logits: vae_fast.bernoulli_log_prob(x, probs=FLIPPED + (1.0 - 2.0 * FLIPPED) * logits.sigmoid())


# --- inference ------------------------------------------------------------------------------------------------------------


def elbo(model: VAE, seen: Seen, q: Q, draws: int) -> Tensor:
    """E_q[log p(seen | z)] by ``draws`` samples, less KL(q || p(z)) in closed form, ``(batch,)``."""
    z, kl = vae_fast.reparameterize_with_kl(*q, num_samples=draws)
    return seen(model.decode(z)).mean(0) - kl


def refined(model: VAE, seen: Seen, q: Q, steps: int, draws: int = 8, watch: Callable[[int, Q], None] | None = None) -> Q:
    """q moved by Adam to a higher ELBO, each image's own mu and logvar; the step falls to zero along a cosine."""
    mu, logvar = (t.detach().clone().requires_grad_() for t in q)
    optimizer = torch.optim.Adam([mu, logvar], 0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        optimizer.zero_grad()
        (-elbo(model, seen, (mu, logvar), draws).sum()).backward(inputs=[mu, logvar])
        optimizer.step()
        schedule.step()
        if watch is not None:
            watch(step + 1, (mu.detach(), logvar.detach()))
    return mu.detach(), logvar.detach()


@torch.no_grad()
def weighted(model: VAE, seen: Seen, q: Q, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Importance samples from q: log p(seen) by ``iwae_bound``, normalised weights ``(count, batch)`` and the logits of x."""
    z = vae_fast.reparameterize(*q, num_samples=count)
    logits = model.decode(z)
    log_w = seen(logits) + model.log_prior(z) - model.log_posterior(z, *q)
    return vae_fast.iwae_bound(log_w), log_w.softmax(0), logits


def log_evidence(model: VAE, x: Tensor, q: Q, count: int) -> Tensor:
    """log p(x) by importance samples from q, a few images at a time."""
    parts = zip(x.split(10), *(t.split(10) for t in q), strict=True)
    return torch.cat([weighted(model, all_of(part), (mu, logvar), count)[0] for part, mu, logvar in parts])


def restored(model: VAE, seen_of: Callable[[slice], Seen], q: Q, count: int) -> tuple[Tensor, float]:
    """E[x | seen] by importance samples from q, and the mean number of effective ones."""
    means, effective = [], []
    for start in range(0, len(q[0]), 10):
        rows = slice(start, start + 10)
        _, weights, logits = weighted(model, seen_of(rows), (q[0][rows], q[1][rows]), count)
        means.append(torch.einsum("kn,knd->nd", weights, logits.sigmoid()))
        effective.append(1.0 / weights.square().sum(0))
    return torch.cat(means), torch.cat(effective).mean().item()


# --- three uses -----------------------------------------------------------------------------------------------------------


def gaps(model: VAE, sets: dict[str, Tensor], steps: int, draws: int, count: int, axes: Any) -> list[dict[str, Any]]:
    """log p(x) - ELBO(encoder) = (log p(x) - ELBO(best q)) + (ELBO(best q) - ELBO(encoder)): Cremer, Li and Duvenaud (2018), eq. 3."""
    rows = []
    for (name, x), colour in zip(sets.items(), ("#1f5fa8", "#d9772b"), strict=True):
        with torch.no_grad():
            q = model.encode(x)
            first = elbo(model, all_of(x), q, draws).mean().item()
        way = [(0, first)]

        def watch(step: int, now: Q, x: Tensor = x, way: list[tuple[int, float]] = way) -> None:
            if step % (steps // 25) == 0:
                with torch.no_grad():
                    way.append((step, elbo(model, all_of(x), now, draws).mean().item()))

        best = refined(model, all_of(x), q, steps, watch=watch)
        by = {key: log_evidence(model, x, each, count).mean().item() for key, each in (("encoder", q), ("refined", best))}
        row = {"images": name, "elbo": first, "elbo_refined": way[-1][1], "log_prob": by["refined"], "log_prob_by_encoder": by["encoder"]}
        row |= {"amortisation": way[-1][1] - first, "approximation": by["refined"] - way[-1][1]}
        rows.append(row)
        print("  ".join(f"{key} {value:.3f}" if isinstance(value, float) else str(value) for key, value in row.items()), flush=True)
        axes.plot(*zip(*way, strict=True), "o-", color=colour, markersize=3, label=f"{name}: ELBO")
        axes.axhline(by["refined"], color=colour, linestyle="--", linewidth=1.2, label=f"{name}: log p(x)")
    return rows


def masks(shape: tuple[int, int], n: int) -> dict[str, Tensor]:
    """Which pixels are seen, ``(n, pixels)``: not the lower half; a fifth of them, here and there."""
    upper = torch.zeros(shape)
    upper[: shape[0] // 2] = 1.0
    return {"lower half missing": upper.flatten().expand(n, -1), "80% missing": (torch.rand(n, upper.numel()) < 0.2).float()}


def imputed(
    model: VAE, x: Tensor, mask: Tensor, mean: Tensor, rounds: int, steps: int, count: int
) -> dict[str, tuple[Tensor, float | None]]:
    """Guesses of the missing pixels, and the effective samples where there are any."""

    def filled(guess: Tensor) -> Tensor:
        return mask * x + (1.0 - mask) * guess

    def of(rows: slice) -> Seen:
        return part_of(x[rows], mask[rows])

    found: dict[str, tuple[Tensor, float | None]] = {"mean of the training images": (filled(mean), None)}
    guess = filled(mean)
    with torch.no_grad():
        for i in range(rounds):
            guess = filled(model.reconstruct(guess))
            if i == 0:
                found["encoded and decoded once"] = (guess, None)
        found[f"the same, {rounds} times"] = (guess, None)
        q = model.encode(guess)
    made, effective = restored(model, of, q, count)
    found["importance samples from q of the last"] = (filled(made), effective)
    made, effective = restored(model, of, refined(model, part_of(x, mask), q, steps), count)
    found["importance samples from a refined q"] = (filled(made), effective)
    return found


def main() -> None:
    """Train, infer, print, draw."""
    args = options(__doc__, "mnist")
    found = load(args.dataset)
    n = min(len(found.train), 20_000)
    grey, test_grey, labels, shape = unit(found.train[:n]), unit(found.test), found.test_labels, found.image_shape
    hidden, latent, epochs, images, steps, count, draws, rounds = (
        (100, 8, 80, 60, 100, 200, 100, 20) if args.quick else (300, 20, 30, 200, 400, 1000, 200, 50)
    )
    x, test = torch.bernoulli(grey), torch.bernoulli(test_grey)
    held = len(test) // 2
    reader = Reader(test[:held], labels[:held])
    judged, truth = test[held : held + images], labels[held : held + images]
    results: dict[str, Any] = {"dataset": args.dataset, "train_images": n, "epochs": epochs, "hidden": hidden, "latent": latent}
    results |= {"images": images, "steps": steps, "samples": count, "rounds": rounds, "flipped": FLIPPED}
    results["read_clean"] = reader.accuracy(judged, truth)
    models = {}
    for kind in (Binarised, Denoising):
        torch.manual_seed(args.seed)
        begin, models[kind] = time.perf_counter(), build(kind, x.shape[1], hidden, latent)
        learn(models[kind], grey, epochs)
        print(f"{kind.__name__}: {time.perf_counter() - begin:.0f} s", flush=True)
    model, denoiser = models[Binarised], models[Denoising]
    for part in models.values():
        part.requires_grad_(False)

    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    results["gaps"] = gaps(model, {"training": x[:images], "test": judged}, steps, draws, count, axes)
    axes.set(xlabel="steps of Adam on each image's own q", ylabel="nats per image")
    figure.legend(frameon=False, loc="outside upper center", ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, args.out / "vae_inference_gap.png")

    sheets, names = [judged[:14]], ["test digits"]

    def judge(kind: str, method: str, guess: Tensor, weight: Tensor, effective: float | None = None) -> None:
        """Of the pixels in question: root mean square error; and what is read."""
        error = ((guess - judged).square() * weight).sum() / weight.sum()
        row = {"damage": kind, "method": method, "rmse": error.sqrt().item(), "read": reader.accuracy(guess, truth)}
        results.setdefault("restored", []).append(row | ({} if effective is None else {"effective_samples": effective}))
        print("  ".join(f"{key} {value:.3f}" if isinstance(value, float) else value for key, value in row.items()), flush=True)

    for kind, mask in masks(shape, images).items():
        guesses = imputed(model, judged, mask, x.mean(0), rounds, steps, count)
        sheets.append((mask * judged + (1.0 - mask) * 0.35)[:14])
        names.append(kind)
        for method, (guess, effective) in guesses.items():
            judge(kind, method, guess, 1.0 - mask, effective)
        for method in (f"the same, {rounds} times", "importance samples from a refined q"):
            sheets.append(guesses[method][0][:14])
            names.append(method)
    noisy, every = flipped(judged), torch.ones_like(judged)
    kind = f"{FLIPPED:.0%} flipped"
    with torch.no_grad():
        q = model.encode(noisy)
        plain, direct = model.reconstruct(noisy), denoiser.reconstruct(noisy)
    made, effective = restored(model, lambda rows: noise_of(noisy[rows]), refined(model, noise_of(noisy), q, steps), count)
    judge(kind, "left as it is", noisy, every)
    judge(kind, "encoded and decoded", plain, every)
    judge(kind, "encoder trained on noisy digits", direct, every)
    judge(kind, "importance samples from a refined q", made, every, effective)
    sheets += [part[:14] for part in (noisy, plain, direct, made)]
    names += [kind, "encoded and decoded", "encoder trained on noisy digits", "importance samples from a refined q"]
    figure = Figure(figsize=(9.4, 6.4), layout="constrained")
    draw_sheet(figure.add_subplot(), sheets, shape, names)
    save(figure, args.out / "vae_inference.png")
    finish(args, results, ("vae_inference_gap.png", "vae_inference.png"))


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    columns = ("elbo", "elbo_refined", "log_prob", "log_prob_by_encoder", "amortisation", "approximation")
    rows = [[g["images"], *(f"{g[c]:.2f}" for c in columns)] for g in r["gaps"]]
    head = ["images", "ELBO of the encoder's q", "ELBO of a refined q", "log p(x)", "log p(x) by the encoder's q"]
    head += ["amortisation gap", "approximation gap"]
    restored_rows = [
        [
            f["damage"],
            f["method"],
            f"{f['rmse']:.3f}",
            f"{f['read']:.1%}",
            f"{f['effective_samples']:.1f}" if "effective_samples" in f else "",
        ]
        for f in r["restored"]
    ]
    test = r["gaps"][-1]
    total = test["amortisation"] + test["approximation"]
    return f"""\
## What the posterior of a VAE is for: `{r["command"]}`

A VAE of black and white digits ({r["latent"]} latents, two hidden layers of {r["hidden"]} units on either side, {r["train_images"]:,}
images of {r["dataset"]}, {r["epochs"]} epochs), and {r["images"]} images of either kind.

*How many nats does the encoder lose?* The thesis leaves it as future work. log p(x) − ELBO is the sum of two gaps (Cremer, Li and Duvenaud
2018): the best Gaussian q with a diagonal covariance is not the posterior (approximation), and the encoder does not find that q
(amortisation). Here q is refined from the encoder's by {r["steps"]} steps of Adam for each image; log p(x) by {r["samples"]:,} importance
samples from the refined q.

{table(head, rows)}

Of the {total:.2f} nats between ELBO and evidence of a test image the encoder loses {test["amortisation"]:.2f}
({test["amortisation"] / total:.0%}).

![ELBO while q is refined](pictures/vae_inference_gap.png)

*Missing pixels, and noise.* p(x) of the same model says what is probable where nothing was seen. The thesis's reference repeats encoding
and decoding, with the pixels that were seen put back each time; importance samples (z from q, weighted by p(seen | z) p(z) / q(z)) give
the mean of x given what was seen, and show by the number of effective ones, of {r["samples"]:,}, whether they may be trusted. With
{r["flipped"]:.0%} of the pixels flipped nothing is known to be missing, and p(seen | z) holds the noise. Root mean square error of the
pixels in question; read: share that a classifier reads as the digit it was ({r["read_clean"]:.1%} of the originals).

{table(["damage", "method", "error", "read", "effective samples"], restored_rows)}

![Digits, damaged and restored](pictures/vae_inference.png)
"""


if __name__ == "__main__":
    main()
