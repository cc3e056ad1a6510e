"""Images for the training tests: real MNIST where its files are, else strokes of the same shape and range."""

import os
from pathlib import Path

import torch

from vae_fast import data


def grey_images(n):
    """``n`` flattened 28 x 28 images, uint8."""
    folder = os.environ.get("VAE_FAST_DATA")
    if folder and (Path(folder) / "mnist").is_dir():
        return data.load_mnist(folder, download=False).train[:n]
    generator = torch.Generator().manual_seed(1)
    along = torch.linspace(0.0, 1.0, 28)
    ends = torch.rand(n, 4, generator=generator) * 20.0 + 4.0
    row = ends[:, :1] + (ends[:, 1:2] - ends[:, :1]) * along
    column = ends[:, 2:3] + (ends[:, 3:] - ends[:, 2:3]) * along
    pixel = torch.arange(28.0)
    distance = (pixel[None, :, None, None] - row[:, None, None]) ** 2 + (pixel[None, None, :, None] - column[:, None, None]) ** 2
    return (255.0 * torch.exp(-distance.amin(-1) / 2.0)).round().to(torch.uint8).flatten(1)
