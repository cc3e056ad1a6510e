"""The VAE of pytorch/examples: two lines change, and the sigmoid goes.

The decoder's sigmoid is left out, since the loss takes logits: exact where a probability would round to 0 or 1.
"""

import torch
import torch.nn.functional as F
from _recipe import Network, Step, images, main, stepper
from torch import Tensor

import vae_fast


def before(model: Network, x: Tensor, noise: Tensor) -> Tensor:
    """The loss of a batch."""
    mu, logvar = model.encode(x)
    z = mu + torch.exp(0.5 * logvar) * noise
    recon = torch.sigmoid(model.decode(z))
    bce = F.binary_cross_entropy(recon, x, reduction="sum")
    kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return bce + kld


def after(model: Network, x: Tensor, noise: Tensor) -> Tensor:
    """The loss of a batch."""
    mu, logvar = model.encode(x)
    z = vae_fast.reparameterize(mu, logvar, noise=noise)
    logits = model.decode(z)
    return vae_fast.elbo_loss(x, logits, mu, logvar, reduction="sum")


def step(swapped: bool, frozen: bool = False) -> Step:
    """A training step."""
    model, x, loss = Network(), images(), after if swapped else before
    return stepper(model.parameters(), lambda: loss(model, x, torch.randn(len(x), 20)))


if __name__ == "__main__":
    main(__name__)
