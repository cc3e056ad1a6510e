"""End to end: the VAE 784-500-500-20 trained on MNIST, the ELBO in plain PyTorch, under torch.compile and by vae_fast.

The network, its initial weights, the batches and the optimizer (fused Adam) are the same for all. Ours samples and takes the loss by
vae_fast's kernels and runs the step as :func:`vae_fast.training.fit` does: on CUDA recorded as one graph, on the CPU with each
of its products by the faster of two libraries. ``ours, step as it is`` leaves that out.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vae_fast import data
from vae_fast.bench.cases_head import plain_logits
from vae_fast.bench.device_time import CLOCK, synchronize
from vae_fast.bench.options import Options, Row, facts_of
from vae_fast.errors import FileError
from vae_fast.models import MLPVAE
from vae_fast.training import adam
from vae_fast.training.capture import CapturedStep, Graph
from vae_fast.training.products import Products

BATCH, GOAL, MOST_EPOCHS = 100, 100.0, 60
AS_IT_IS = "ours, step as it is"


class Trainer:
    """A model in training and where it stands."""

    def __init__(self, contender: str, device: str, images: Tensor) -> None:
        """The same weights and the same batches for every contender."""
        self.device, self.images = device, images
        self.model = MLPVAE(latent_dim=20, generator=torch.Generator().manual_seed(0)).to(device)
        self.optimizer = adam(self.model)
        self.products: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        self.shuffle = torch.Generator().manual_seed(0)
        self.batches: list[Tensor] = []
        self.loss: Callable[[Tensor], Tensor] = self.model.loss
        self.run: Callable[[Tensor], None] = self._step
        if contender == "ours":
            self.products = Products(torch.device(device))
            if device != "cpu":
                self.run = CapturedStep(self._step, self.optimizer, Graph(torch.device(device)), print)
        elif contender != AS_IT_IS:
            plain = self._plain
            self.loss = torch.compile(plain, dynamic=False) if contender == "compile" else plain
        self.total = torch.zeros((), device=device)

    def _plain(self, x: Tensor) -> Tensor:
        x = x.float() / 255
        mu, logvar = self.model.encoder(x)
        z = mu + (0.5 * logvar).exp() * torch.randn_like(mu)
        return plain_logits(x, self.model.decoder(z), mu, logvar)

    def _step(self, rows: Tensor) -> None:
        self.optimizer.zero_grad()
        with self.products:
            loss = self.loss(self.images.index_select(0, rows))
            loss.backward()
        self.optimizer.step()
        self.total += loss.detach()

    def steps(self, n: int) -> float:
        """So many steps; the seconds they took."""
        synchronize(self.device)
        begin = time.perf_counter()
        for _ in range(n):
            if not self.batches:
                order = torch.randperm(len(self.images), generator=self.shuffle).to(self.device)
                self.batches = [b for b in order.split(BATCH) if len(b) == BATCH]
            self.run(self.batches.pop())
        synchronize(self.device)
        return time.perf_counter() - begin

    def mean_loss(self, steps: int) -> float:
        """Over the steps since it was last asked for."""
        mean = self.total.item() / steps
        self.total.zero_()
        return mean


def images(options: Options) -> tuple[str, Tensor]:
    """MNIST, or random images with a line saying so."""
    try:
        return "MNIST", data.load_mnist(download=False).train
    except FileError as error:
        options.say(f"random images in place of MNIST: {error}; VAE_FAST_DATA names the folder")
        return "random images", torch.randint(0, 256, (55_000, 784), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def run(options: Options) -> list[Row]:
    """Seconds per epoch from a few hundred steps of each in turns, and with ``full`` seconds to a loss of 100."""
    if time.monotonic() > options.deadline:
        options.say("skipped training: no time left")
        return []
    name, x = images(options)
    x = x.to(options.device)
    epoch = len(x) // BATCH
    rounds, steps = (3, 10) if options.quick else (6, 60)
    names = [n for n in ("ours", AS_IT_IS, "eager", "compile") if options.contenders is None or n in options.contenders]
    options.say(f"measuring training on {name}, {rounds * steps} steps each")
    if "compile" in names:
        torch._dynamo.reset()
    trainers, taken = {}, dict[str, list[float]]()
    for contender in names:
        torch.manual_seed(0)
        trainer = Trainer(contender, options.device, x)
        try:
            trainer.steps(5)
        except Exception as error:  # no compiler, say
            if contender != "compile":
                raise
            options.say(f"skipped {contender} of training: {type(error).__name__}")
            continue
        trainers[contender], taken[contender] = trainer, []
    done = 5
    for i in range(rounds):
        if i >= 2 and time.monotonic() > options.deadline:
            break
        for contender, trainer in trainers.items():
            taken[contender].append(trainer.steps(steps) / steps)
        done += steps
    for contender, trainer in trainers.items():
        options.say(f"{contender}: mean loss {trainer.mean_loss(done):.2f} over the first {done} steps")
    shape = {"batch": BATCH, "steps": epoch}
    case = f"VAE 784-500-500-20 on {name}, one epoch of {epoch} steps"
    rows = [_row(case, "one epoch", c, [t * epoch for t in taken[c]], shape, options) for c in trainers]
    return rows + (_to_goal(name, x, list(trainers), options) if options.full else [])


def _to_goal(name: str, x: Tensor, names: Sequence[str], options: Options) -> list[Row]:
    rows = []
    epoch = len(x) // BATCH
    for contender in names:
        torch.manual_seed(0)
        if contender == "compile":
            torch._dynamo.reset()
        trainer = Trainer(contender, options.device, x)
        seconds, loss, epochs = 0.0, float("inf"), 0
        while loss > GOAL and epochs < MOST_EPOCHS and time.monotonic() < options.deadline:
            seconds += trainer.steps(epoch)
            loss, epochs = trainer.mean_loss(epoch), epochs + 1
            options.say(f"{contender}: epoch {epochs}, loss {loss:.2f}, {seconds:.1f} s")
        if loss > GOAL:
            options.say(f"skipped {contender} to a loss of {GOAL:g}: at {loss:.2f} after {epochs} epochs")
            continue
        case = f"VAE 784-500-500-20 on {name}, to a training loss of {GOAL:g}"
        rows.append(_row(case, "to a loss", contender, [seconds], {"batch": BATCH, "epochs": epochs}, options))
    return rows


def _row(case: str, name: str, contender: str, taken: Sequence[float], shape: dict[str, int], options: Options) -> Row:
    low, middle, high = torch.quantile(torch.tensor(taken, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.8]).double()).tolist()
    row: Row = {"suite": "training", "case": case, "name": name, "contender": contender, "direction": "both", "shape": shape}
    row |= {"dtype": "float32", **facts_of(options.device), "threads": torch.get_num_threads()}
    row |= {
        "seconds": middle,
        "fastest": min(taken),
        "q20": low,
        "q80": high,
        "timer": CLOCK,
        "not_replayed": None,
        "calls": len(taken),
        "host_microseconds": None,
    }
    empty: tuple[str, ...] = ("peak_bytes", "least_bytes", "flops", "gb_per_second", "gflops", "copy_gb_per_second", "fma_gflops")
    row |= dict[str, Any].fromkeys((*empty, "limit_seconds", "limit", "reached", "usual_limit_seconds", "memory_target"))
    return row
