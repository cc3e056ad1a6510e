"""pythae: the models and trainers stay as they are; `vae_fast.patched` stands around the training."""

from typing import Any

import torch
import torch.nn.functional as F
from _recipe import Network, Step, images, main, package, stepper
from torch import Tensor

import vae_fast


def before(model: Any, x: Tensor) -> Tensor:
    """The loss of a batch; in your own code ``trainer.train()``."""
    return model({"data": x}).loss


def after(model: Any, x: Tensor) -> Tensor:
    """The loss of a batch; in your own code ``trainer.train()``."""
    with vae_fast.patched("pythae"):
        return model({"data": x}).loss


def frozen_loss(network: Network, x: Tensor, swapped: bool) -> Tensor:
    """pythae 0.1.2's ``VAE.loss_function`` with ``reconstruction_loss="bce"``, and what is put in its place."""
    mu, logvar = network.encode(x)
    z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
    recon = torch.sigmoid(network.decode(z))
    if swapped:
        return vae_fast.elbo_loss(x, recon, mu, logvar, likelihood="bernoulli_probs", clip="bce")
    recon_loss = F.binary_cross_entropy(recon, x, reduction="none").sum(dim=-1)
    kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim=-1)
    return (recon_loss + kld).mean(dim=0)


def step(swapped: bool, frozen: bool = False) -> Step:
    """A training step of pythae's VAE on images of 28 x 28."""
    x, loss = images(), after if swapped else before
    if frozen:
        network = Network()
        return stepper(network.parameters(), lambda: frozen_loss(network, x, swapped))
    models = package("pythae.models")
    model = models.VAE(models.VAEConfig(input_dim=(1, 28, 28), latent_dim=20, reconstruction_loss="bce")).train()
    return stepper(model.parameters(), lambda: loss(model, x.view(-1, 1, 28, 28)))


if __name__ == "__main__":
    main(__name__)
