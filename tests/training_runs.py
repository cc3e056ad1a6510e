"""Small training runs that the tests of training and of checkpoints share."""

import torch

from vae_fast import training
from vae_fast.models import MLPVAE

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
TIMES = ("samples_per_second", "seconds")


def images(n=230, d=16):
    return torch.randint(0, 256, (n, d), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def small(seed=0):
    return MLPVAE(latent_dim=2, data_dim=16, hidden_dim=8, generator=torch.Generator().manual_seed(seed))


def untimed(history):
    return [{k: v for k, v in record.items() if k not in TIMES} for record in history]


def run(folder, epochs, *, resume=False, model_seed=0, torch_seed=5, name="checkpoint.pt", **options):
    """One run as in a process of its own."""
    model = small(model_seed)
    torch.manual_seed(torch_seed)
    options = {"valid": images(30), "batch_size": 50, "progress": False} | options
    history = training.fit(model, images(), epochs=epochs, checkpoint=folder / name, resume=resume, **options)
    return model, history
