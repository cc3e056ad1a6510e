"""Autoencoders that reconstruct images in the mean square: linear, fully connected and convolutional; and PCA in the same form."""

import torch
from scipy.linalg import subspace_angles
from torch import Tensor, nn


class Autoencoder(nn.Module):
    """``x -> decoder(encoder(x))``; the loss is the squared error summed over pixels, averaged over images."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        """Any two modules."""
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction."""
        return self.decoder(self.encoder(x))

    def loss(self, x: Tensor) -> Tensor:
        """Mean over images of ``||x - g(f(x))||^2``."""
        return (self(x) - x).square().sum(-1).mean()

    @torch.no_grad()
    def error(self, x: Tensor) -> float:
        """The loss over many images."""
        return sum(self.loss(part).item() * len(part) for part in x.split(1000)) / len(x)


class PCA(nn.Module):
    """Projection on the leading eigenvectors of the covariance: the best linear autoencoder."""

    def __init__(self, x: Tensor, dim: int) -> None:
        """Fit it."""
        super().__init__()
        self.mean = x.mean(0)
        _, vectors = torch.linalg.eigh(torch.cov(x.double().T, correction=0))
        self.axes = vectors.flip(1)[:, :dim].float()

    def encoder(self, x: Tensor) -> Tensor:
        """Coordinates along the axes."""
        return (x - self.mean) @ self.axes

    def decoder(self, z: Tensor) -> Tensor:
        """Back to pixels."""
        return self.mean + z @ self.axes.T

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction."""
        return self.decoder(self.encoder(x))

    def error(self, x: Tensor) -> float:
        """Mean over images of ``||x - g(f(x))||^2``."""
        return (self(x) - x).square().sum(-1).mean().item()


def mlp(shape: tuple[int, int], dim: int, hidden: tuple[int, int] = (256, 128)) -> Autoencoder:
    """Two hidden ReLU layers on either side."""
    pixels, (wide, narrow) = shape[0] * shape[1], hidden
    encoder = nn.Sequential(nn.Linear(pixels, wide), nn.ReLU(), nn.Linear(wide, narrow), nn.ReLU(), nn.Linear(narrow, dim))
    decoder = nn.Sequential(nn.Linear(dim, narrow), nn.ReLU(), nn.Linear(narrow, wide), nn.ReLU(), nn.Linear(wide, pixels))
    return Autoencoder(encoder, decoder)


def convolutional(shape: tuple[int, int], dim: int, channels: int = 16) -> Autoencoder:
    """Two convolutions of stride 2 and a linear layer; the decoder is their mirror image. Sides must be multiples of 4."""
    rows, columns, deep = shape[0] // 4, shape[1] // 4, 2 * channels
    encoder = nn.Sequential(
        nn.Unflatten(1, (1, *shape)),
        nn.Conv2d(1, channels, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(channels, deep, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(deep * rows * columns, dim),
    )
    decoder = nn.Sequential(
        nn.Linear(dim, 128),
        nn.ReLU(),
        nn.Linear(128, deep * rows * columns),
        nn.ReLU(),
        nn.Unflatten(1, (deep, rows, columns)),
        nn.ConvTranspose2d(deep, channels, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(channels, 1, 4, 2, 1),
        nn.Flatten(),
    )
    return Autoencoder(encoder, decoder)


def linear(x: Tensor, dim: int, iterations: int) -> Tensor:
    """The matrix U, ``(pixels, dim)``, that minimises the mean of ``||x - U U^T x||^2`` over centred x, found by L-BFGS from noise.

    The loss needs the covariance C alone: tr C - 2 tr(U^T C U) + tr(U^T C U U^T U).
    """
    covariance = torch.cov(x.double().T, correction=0)
    u = (0.1 * torch.randn(x.shape[1], dim, dtype=torch.float64)).requires_grad_()
    optimizer = torch.optim.LBFGS([u], max_iter=iterations, tolerance_grad=1e-10, tolerance_change=0.0, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        cu = covariance @ u
        loss = covariance.trace() - 2.0 * (u * cu).sum() + ((u.T @ cu) * (u.T @ u)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return u.detach()


def largest_angle(a: Tensor, b: Tensor) -> float:
    """The largest principal angle between the spans of the columns, in radians."""
    return float(subspace_angles(a.double().numpy(), b.double().numpy()).max())
