"""The fully connected VAE of F. Arribas Jara's thesis: 784-500-500-(mu, logvar), z-500-500-784."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vae_fast.functional import _arguments as check
from vae_fast.models.vae import VAE


class MLPVAE(VAE):
    """A VAE with two hidden ReLU layers on each side.

    Built, initialised and clipped as in F. Arribas Jara, "Aprendizaje no-supervisado con modelos generativos profundos" (Universidad
    Autónoma de Madrid, 2018), section 5.1.

    Weights are drawn from N(0, 1/fan_in) and biases from N(0, 1/fan_out), as variances. The Bernoulli likelihood is
    evaluated from logits with probabilities clipped to [1e-9, 1 - 1e-9]. The thesis trains it with Adam at 1e-3 on
    batches of 100 (the defaults of :func:`vae_fast.training.fit`).

    Args:
        latent_dim: size of z.
        data_dim: size of one flattened ``x``.
        hidden_dim: size of the hidden layers.
        beta: weight of the KL divergence in the loss.
        generator: CPU generator for the initial weights; None is torch's default.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch
        >>> from vae_fast.models import MLPVAE
        >>> vae = MLPVAE(latent_dim=20, generator=torch.Generator().manual_seed(0))
        >>> sum(p.numel() for p in vae.parameters())
        1316824
    """

    def __init__(
        self,
        latent_dim: int = 20,
        data_dim: int = 784,
        hidden_dim: int = 500,
        *,
        beta: float | Tensor = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """See the class."""
        for name, size in (("latent_dim", latent_dim), ("data_dim", data_dim), ("hidden_dim", hidden_dim)):
            check.positive_int(name, size)
        check.generator(generator, torch.device("cpu"), "what it draws")
        encoder = GaussianMLP(data_dim, hidden_dim, latent_dim)
        decoder = nn.Sequential(*hidden_layers(latent_dim, hidden_dim), nn.utils.skip_init(nn.Linear, hidden_dim, data_dim))
        super().__init__(encoder, decoder, latent_dim=latent_dim, clip="clamp", eps=1e-9, beta=beta)
        self.latent_dim, self.data_dim, self.hidden_dim = latent_dim, data_dim, hidden_dim
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw every weight from N(0, 1/fan_in) and every bias from N(0, 1/fan_out), in the order of the layers."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.normal_(0.0, layer.in_features**-0.5, generator=generator)
                layer.bias.normal_(0.0, layer.out_features**-0.5, generator=generator)


class GaussianMLP(nn.Module):
    """Two hidden ReLU layers and two linear heads: ``x -> (mu, logvar)``."""

    def __init__(self, data_dim: int, hidden_dim: int, latent_dim: int) -> None:
        """Leave the weights for the caller to draw."""
        super().__init__()
        self.body = nn.Sequential(*hidden_layers(data_dim, hidden_dim))
        self.mu = nn.utils.skip_init(nn.Linear, hidden_dim, latent_dim)
        self.logvar = nn.utils.skip_init(nn.Linear, hidden_dim, latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, data_dim)`` to two of ``(batch, latent_dim)``."""
        h = self.body(x)
        return self.mu(h), self.logvar(h)


def hidden_layers(inputs: int, hidden: int) -> list[nn.Module]:
    """``inputs-hidden-hidden`` with ReLU; the weights are left for the caller to draw."""
    first = nn.utils.skip_init(nn.Linear, inputs, hidden)
    return [first, nn.ReLU(), nn.utils.skip_init(nn.Linear, hidden, hidden), nn.ReLU()]
