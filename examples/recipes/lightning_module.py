"""PyTorch Lightning: the loss inside `training_step`; the Trainer, its precision and its strategy stay as they are."""

from typing import Any

import torch
import torch.nn.functional as F
from _recipe import Network, Step, images, main, package, stepper
from torch import Tensor

import vae_fast


def before(self: Any, batch: Tensor, batch_idx: int) -> Tensor:
    """``training_step`` of a LightningModule."""
    mu, logvar = self.network.encode(batch)
    noise = torch.randn_like(mu)
    z = mu + torch.exp(0.5 * logvar) * noise
    logits = self.network.decode(z)
    bce = F.binary_cross_entropy_with_logits(logits, batch, reduction="none").sum(-1)
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim=-1)
    loss = (bce + kl).mean()
    self.log("loss", loss)
    return loss


def after(self: Any, batch: Tensor, batch_idx: int) -> Tensor:
    """``training_step`` of a LightningModule."""
    mu, logvar = self.network.encode(batch)
    noise = torch.randn_like(mu)
    z = vae_fast.reparameterize(mu, logvar, noise=noise)
    logits = self.network.decode(z)
    loss = vae_fast.elbo_loss(batch, logits, mu, logvar)
    self.log("loss", loss)
    return loss


def module(swapped: bool) -> Any:
    """A LightningModule with one of the two."""
    lightning = package("lightning")

    class Model(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network, self.losses = Network(), []

        training_step = after if swapped else before

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

        def on_train_batch_end(self, outputs: Any, batch: Tensor, batch_idx: int) -> None:
            self.losses.append(float(outputs["loss"]))

    return Model()


def trained(swapped: bool, steps: int) -> list[float]:
    """The losses of Lightning's own loop."""
    lightning = package("lightning")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    torch.manual_seed(0)
    model = module(swapped)
    torch.manual_seed(1)
    trainer = lightning.Trainer(accelerator="cpu", devices=1, max_steps=steps, barebones=False, **quiet)
    trainer.fit(model, torch.utils.data.DataLoader(images(128 * steps), batch_size=128))
    return list(model.losses)


class _Frozen:
    """What ``training_step`` uses of a LightningModule."""

    def __init__(self) -> None:
        self.network = Network()

    def log(self, name: str, value: Tensor) -> None:
        """Kept nowhere."""


def step(swapped: bool, frozen: bool = False) -> Step:
    """A training step, without the Trainer's own work."""
    if not frozen:
        package("lightning")
    model, x, loss = _Frozen(), images(), after if swapped else before
    return stepper(model.network.parameters(), lambda: loss(model, x, 0))


if __name__ == "__main__":
    for a, b in zip(trained(False, 5), trained(True, 5), strict=True):
        print(f"Trainer: loss {a:.6g} before, {b:.6g} after")
    main(__name__)
