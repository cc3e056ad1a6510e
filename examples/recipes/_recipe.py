"""What the recipes share: a small network, images, one step of an optimizer, and a main program that runs both ways and times them.

A recipe is a module with ``before`` and ``after``, whose difference is what a user changes, and ``step(swapped, frozen)``, which gives a
function that trains one step and returns its loss. Both ways start from one seed and draw the same noise. ``frozen`` takes a copy of what
the package computes instead of the package.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vae_fast.errors import MissingExtraError  # noqa: E402  of this checkout

#: Every recipe, in the order of the page, and the package that it imports.
RECIPES = {
    "pytorch_example": None,
    "lightning_module": "lightning",
    "accelerate_loop": "accelerate",
    "torch_distributions": None,
    "pyro_svi": "pyro",
    "pythae_models": "pythae",
    "scvi_counts": "scvi",
    "diffusers_autoencoder": "diffusers",
}
BATCH, PIXELS, LATENT = 512, 784, 20
Step = Callable[[], float]


class Network(nn.Module):
    """The fully connected VAE of pytorch/examples: 784-400-(20, 20) and back."""

    def __init__(self) -> None:
        """Weights as torch draws them."""
        super().__init__()
        self.enter, self.to_mu, self.to_logvar = nn.Linear(PIXELS, 400), nn.Linear(400, LATENT), nn.Linear(400, LATENT)
        self.widen, self.leave = nn.Linear(LATENT, 400), nn.Linear(400, PIXELS)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x)."""
        h = torch.relu(self.enter(x))
        return self.to_mu(h), self.to_logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        """Logits of the pixels."""
        return self.leave(torch.relu(self.widen(z)))


def images(n: int = BATCH, seed: int = 3) -> Tensor:
    """Random grey images."""
    return torch.rand(n, PIXELS, generator=torch.Generator().manual_seed(seed))


def package(name: str) -> ModuleType:
    """An optional package.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(f"this recipe needs {name}: install it with `pip install '.[recipes]'` ({error})") from None


def stepper(parameters: Iterable[Tensor], loss: Callable[[], Tensor], backward: Callable[[Tensor], Any] = Tensor.backward) -> Step:
    """One step of Adam on a loss."""
    optimizer = torch.optim.Adam(parameters, lr=1e-3)

    def step() -> float:
        optimizer.zero_grad()
        value = loss()
        backward(value)
        optimizer.step()
        return value.item()

    return step


def losses(recipe: ModuleType, swapped: bool, frozen: bool = False, steps: int = 5) -> list[float]:
    """The losses of the first steps, from one seed."""
    torch.manual_seed(0)
    step = recipe.step(swapped, frozen)
    torch.manual_seed(1)
    return [step() for _ in range(steps)]


def seconds(recipe: ModuleType, frozen: bool = False, rounds: int = 20) -> tuple[float, float]:
    """Median time of a step before and after; the two take turns."""
    steps = [recipe.step(swapped, frozen) for swapped in (False, True)]
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 3):
        for step, times in zip(steps, taken, strict=True):
            start = time.perf_counter()
            step()
            if turn >= 3:  # after a warm-up
                times.append(time.perf_counter() - start)
    return statistics.median(taken[0]), statistics.median(taken[1])


def main(name: str) -> None:
    """Run a recipe both ways: the losses side by side, and the time of a step."""
    recipe = sys.modules[name]
    for a, b in zip(losses(recipe, False), losses(recipe, True), strict=True):
        print(f"loss {a:.6g} before, {b:.6g} after")
    before, after = seconds(recipe)
    print(f"step {before * 1e3:.2f} ms before, {after * 1e3:.2f} ms after: {before / after:.2f}x")
