"""diffusers' AutoencoderKL: sample and KL in one pass. Nearly all of the step is convolutions, so the step hardly gains."""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from _recipe import Step, main, package, stepper
from torch import Tensor, nn

import vae_fast


def before(vae: Any, x: Tensor, noise: Tensor) -> Tensor:
    """The loss of a batch: squared error and a small KL."""
    posterior = vae.encode(x).latent_dist
    z = posterior.mean + posterior.std * noise  # posterior.sample()
    kl = posterior.kl()
    recon = vae.decode(z).sample
    return F.mse_loss(recon, x) + 1e-6 * kl.mean()


def after(vae: Any, x: Tensor, noise: Tensor) -> Tensor:
    """The loss of a batch: squared error and a small KL."""
    posterior = vae.encode(x).latent_dist
    z, kl = vae_fast.reparameterize_with_kl(posterior.mean, posterior.logvar, noise=noise, event_dim=3)
    recon = vae.decode(z).sample
    return F.mse_loss(recon, x) + 1e-6 * kl.mean()


class Posterior:
    """What the loss uses of diffusers 0.42's ``DiagonalGaussianDistribution``, frozen."""

    def __init__(self, parameters: Tensor) -> None:
        """Mean and log-variance lie one after the other in the channels."""
        self.mean, logvar = torch.chunk(parameters, 2, dim=1)
        self.logvar = torch.clamp(logvar, -30.0, 20.0)
        self.std, self.var = torch.exp(0.5 * self.logvar), torch.exp(self.logvar)

    def kl(self) -> Tensor:
        """The KL from N(0, 1), of each image."""
        return 0.5 * torch.sum(torch.pow(self.mean, 2) + self.var - 1.0 - self.logvar, dim=[1, 2, 3])


class Frozen(nn.Module):
    """An autoencoder with ``AutoencoderKL``'s interface."""

    def __init__(self) -> None:
        """One convolution each way."""
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 4, 4), nn.ConvTranspose2d(4, 3, 4, 4)

    def encode(self, x: Tensor) -> SimpleNamespace:
        """The posterior, as diffusers wraps it."""
        return SimpleNamespace(latent_dist=Posterior(self.down(x)))

    def decode(self, z: Tensor) -> SimpleNamespace:
        """The images, as diffusers wraps them."""
        return SimpleNamespace(sample=self.up(z))


def step(swapped: bool, frozen: bool = False) -> Step:
    """A training step on images of 32 x 32."""
    vae = Frozen() if frozen else package("diffusers").AutoencoderKL(block_out_channels=(32,), norm_num_groups=8, latent_channels=4)
    x, loss = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(3)), after if swapped else before
    size = vae.encode(x).latent_dist.mean.shape
    return stepper(vae.parameters(), lambda: loss(vae, x, torch.randn(size)))


if __name__ == "__main__":
    main(__name__)
