"""Hugging Face Accelerate: the loss of a prepared model. Under `mixed_precision="bf16"` the loss takes bfloat16 logits as they are."""

from typing import Any

import torch
import torch.nn.functional as F
from _recipe import PIXELS, Network, Step, images, main, package, stepper
from torch import Tensor, nn

import vae_fast


class Whole(nn.Module):
    """A network whose forward pass gives what the loss needs; Accelerate prepares modules by their forward pass."""

    def __init__(self, swapped: bool) -> None:
        """Of one of the two kinds."""
        super().__init__()
        self.network, self.forward = Network(), (self.after if swapped else self.before)

    def before(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, mu, logvar."""
        mu, logvar = self.network.encode(x)
        return self.network.decode(mu + torch.exp(0.5 * logvar) * noise), mu, logvar

    def after(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, mu, logvar."""
        mu, logvar = self.network.encode(x)
        return self.network.decode(vae_fast.reparameterize(mu, logvar, noise=noise)), mu, logvar


def before(model: Any, x: Tensor, noise: Tensor) -> Tensor:
    """The loss of a batch."""
    logits, mu, logvar = model(x, noise)
    bce = F.binary_cross_entropy_with_logits(logits.float(), x, reduction="sum")
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return (bce + kl) / len(x)


def after(model: Any, x: Tensor, noise: Tensor) -> Tensor:
    """The loss of a batch."""
    logits, mu, logvar = model(x, noise)
    return vae_fast.elbo_loss(x, logits, mu, logvar)


def step(swapped: bool, frozen: bool = False) -> Step:
    """A training step by ``accelerator.backward``."""
    model: Any = Whole(swapped)
    backward: Any = Tensor.backward
    if not frozen:
        accelerator = package("accelerate").Accelerator(cpu=True)
        model, backward = accelerator.prepare(model), accelerator.backward
    x, loss = images().view(-1, PIXELS), after if swapped else before
    return stepper(model.parameters(), lambda: loss(model, x, torch.randn(len(x), 20)), backward)


if __name__ == "__main__":
    main(__name__)
