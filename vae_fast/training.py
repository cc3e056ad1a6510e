"""Training any model that has a ``loss``: epochs, shuffling, logging, checkpoints that resume to the same bits."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vae_fast import checkpoint as checkpoints
from vae_fast._errors import DivergedError
from vae_fast.functional import _arguments as check
from vae_fast.models import VAE

Record = dict[str, float]
#: The columns of a record, in order; ``valid_*`` only with validation data. Only the last two vary from run to run.
COLUMNS = ("epoch", "loss", "kl", "valid_loss", "valid_kl", "samples_per_second", "seconds")
_EVALUATION_SEED = 20131220


def fit(
    model: nn.Module,
    train: Tensor,
    *,
    valid: Tensor | None = None,
    epochs: int = 50,
    batch_size: int = 100,
    lr: float = 1e-3,
    optimizer: Optimizer | None = None,
    drop_last: bool = True,
    seed: int = 0,
    amp: torch.dtype | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    config: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callable[[list[Record]], object]] = (),
    progress: bool | None = None,
) -> list[Record]:
    """Minimise ``model.loss`` with Adam; the defaults are the source's.

    The data stay on the model's device in the dtype they come in (uint8 is read as ``x / 255`` by the models here) and
    each batch is gathered once. The loss is summed on the device: there is no host synchronisation inside an epoch.

    Args:
        model: anything with ``loss(x)``, a mean over the batch. If it has ``losses(x) -> (loss, kl)``, as
            :class:`vae_fast.models.VAE`, the KL is recorded too. It is trained in place, on the device it is on.
        train: ``(n, *event)``.
        valid: ``(m, *event)``: evaluated after each epoch, see :func:`evaluate`; it does not disturb the training's
            random numbers.
        epochs: number of epochs in all, those of a resumed run included.
        batch_size: rows per step.
        lr: learning rate of Adam (betas 0.9 and 0.999, epsilon 1e-8); not used with ``optimizer``.
        optimizer: another optimizer over the model's parameters.
        drop_last: True, as in the source: ``n // batch_size`` batches per epoch, the rest of the shuffled rows is left
            out of that epoch. False: the last batch is smaller, and its loss counts by its size.
        seed: of the generator that shuffles. The noise comes from torch's own generator: call ``torch.manual_seed`` for
            it.
        amp: ``torch.bfloat16`` runs the model under autocast; None does not.
        checkpoint: file that is replaced after every epoch, see :mod:`vae_fast.checkpoint`.
        resume: continue from ``checkpoint``: on the CPU, with the same number of threads, to the same bits as an
            unbroken run. torch's random number generators are set to what they were.
        config: plain values kept in the checkpoint; a resumed run must give the same. ``batch_size``, ``lr``,
            ``drop_last``, ``seed``, ``amp``, the optimizer's type and ``n`` are always compared.
        callbacks: each is called with the history after every epoch, when the checkpoint is written.
        progress: a progress bar on stderr, with tqdm; None: if stderr is a terminal and tqdm is installed.

    Returns:
        The history, one record per epoch: ``epoch``, ``loss``, ``kl`` (NaN if the model does not give it),
        ``valid_loss`` and ``valid_kl`` (with ``valid``), ``samples_per_second`` and ``seconds`` (of training alone).
        Nats per sample.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.
        FileError: if the checkpoint cannot be written or does not fit.
        DivergedError: if an epoch's mean loss is not finite; the checkpoint of the epoch before is kept.

    Example:
        >>> from vae_fast.models import MLPVAE
        >>> history = fit(MLPVAE(latent_dim=2, data_dim=16, hidden_dim=8), torch.rand(300, 16), epochs=2)
        >>> [record["epoch"] for record in history]
        [1, 2]
    """
    _check(model, train, valid, epochs, batch_size, drop_last, amp, checkpoint, resume)
    device = checkpoints.device_of(model)
    optimizer = adam(model, lr) if optimizer is None else optimizer
    shuffle = torch.Generator().manual_seed(seed)
    settings = {
        "batch_size": batch_size,
        "lr": lr,
        "drop_last": drop_last,
        "seed": seed,
        "amp": str(amp),
        "n": len(train),
    }
    settings |= {"optimizer": type(optimizer).__name__, "epochs": epochs, **(config or {})}
    history: list[Record] = []
    if resume and checkpoint is not None:
        history = checkpoints.restore(checkpoint, model=model, optimizer=optimizer, shuffle=shuffle, config=settings)
    train = train.to(device)
    valid = None if valid is None else valid.to(device)
    rows = len(train) // batch_size * batch_size if drop_last else len(train)
    step = _Step(model, optimizer, device, amp)
    with _bar(progress, epochs * rows, len(history) * rows) as bar:
        for epoch in range(len(history) + 1, epochs + 1):
            if bar is not None:
                bar.set_description(f"epoch {epoch}/{epochs}")
            start = time.perf_counter()
            order = torch.randperm(len(train), generator=shuffle)[:rows].to(device)
            loss, kl = step.epoch(train, order.split(batch_size), bar)
            seconds = time.perf_counter() - start
            if not math.isfinite(loss):
                kept = f"; {checkpoint} holds epoch {epoch - 1}" if checkpoint is not None and epoch > 1 else ""
                raise DivergedError(f"epoch {epoch}: the mean loss is {loss}: try a smaller learning rate than {lr:g}{kept}")
            record = {"epoch": epoch, "loss": loss, "kl": kl}
            if valid is not None:
                record |= {f"valid_{k}": v for k, v in evaluate(model, valid, amp=amp).items()}
            history.append(record | {"samples_per_second": rows / seconds, "seconds": seconds})
            if checkpoint is not None:
                checkpoints.save(checkpoint, model=model, optimizer=optimizer, shuffle=shuffle, history=history, config=settings)
            for callback in callbacks:
                callback(history)
    return history


def adam(model: nn.Module, lr: float = 1e-3) -> Optimizer:
    """Adam with the source's constants, in its fused form: one pass over the weights, several times as fast on CPUs.

    Example:
        >>> adam(nn.Linear(2, 1)).defaults["lr"]
        0.001
    """
    check.real("lr", lr, 0.0)
    return torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8, fused=True)


def evaluate(model: nn.Module, data: Tensor, *, batch_size: int = 1000, amp: torch.dtype | None = None) -> Record:
    """Mean loss and KL over a data set, in nats per sample.

    The model is put in evaluation mode and back; gradients are off. The noise is the same at every call, and torch's
    random number generators are left as they were: evaluating does not change a run.

    Args:
        model: as in :func:`fit`.
        data: ``(n, *event)``, n at least 1.
        batch_size: rows at once.
        amp: as in :func:`fit`.

    Returns:
        ``{"loss": ..., "kl": ...}``; the KL is NaN if the model does not give it.

    Raises:
        ValueError: if ``data`` is empty.

    Example:
        >>> from vae_fast.models import MLPVAE
        >>> sorted(evaluate(MLPVAE(latent_dim=2, data_dim=16, hidden_dim=8), torch.rand(30, 16)))
        ['kl', 'loss']
    """
    with _evaluating(model, data, amp) as device:
        total = torch.zeros(2, dtype=torch.float64, device=device)
        for x in data.split(batch_size):
            total.add_(_both(model, x.to(device))[1], alpha=len(x))
    loss, kl = (total / len(data)).tolist()
    return {"loss": loss, "kl": kl}


def evaluate_log_prob(model: VAE, data: Tensor, num_samples: int = 100, *, batch_size: int = 1000, amp: torch.dtype | None = None) -> float:
    """Mean importance-weighted estimate of ``log p(x)`` over a data set, in nats per sample.

    Args:
        model: its ``log_prob`` is called, see :meth:`vae_fast.models.VAE.log_prob`.
        data, batch_size, amp: as in :func:`evaluate`.
        num_samples: importance samples per row.

    Example:
        >>> from vae_fast.models import MLPVAE
        >>> evaluate_log_prob(MLPVAE(latent_dim=2, data_dim=16, hidden_dim=8), torch.rand(30, 16), 5) < 0.0
        True
    """
    with _evaluating(model, data, amp) as device:
        total = sum(model.log_prob(x.to(device), num_samples).double().sum() for x in data.split(batch_size))
    return float(total) / len(data)


@contextlib.contextmanager
def _evaluating(model: nn.Module, data: Tensor, amp: torch.dtype | None) -> Iterator[torch.device]:
    """Evaluation mode, no gradients, the evaluation's own noise; everything is as it was afterwards."""
    if len(data) == 0:
        raise ValueError(f"data has shape {tuple(data.shape)}: expected at least one row")
    device, was_training = checkpoints.device_of(model), model.training
    model.eval()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad(), autocast(device, amp):
            torch.manual_seed(_EVALUATION_SEED)
            yield device
    finally:
        model.train(was_training)


def autocast(device: torch.device, amp: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    """torch's autocast for the device, or nothing.

    Example:
        >>> with autocast(torch.device("cpu"), torch.bfloat16):
        ...     torch.is_autocast_enabled("cpu")
        True
    """
    return contextlib.nullcontext() if amp is None else torch.autocast(device.type, dtype=amp)


def say(line: str) -> None:
    """Print a line to stdout, above the progress bar if there is one.

    Example:
        >>> say("epoch 1")
        epoch 1
    """
    tqdm = sys.modules.get("tqdm")  # loaded by _bar only
    if tqdm is None or not sys.stderr.isatty():
        print(line, flush=True)
    else:
        tqdm.tqdm.write(line)


class _Step:
    """One epoch's inner loop."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, device: torch.device, amp: torch.dtype | None) -> None:
        self.model, self.optimizer, self.device, self.amp = model, optimizer, device, amp

    def epoch(self, data: Tensor, batches: Iterable[Tensor], bar: Any | None) -> tuple[float, float]:
        """Mean loss and KL over the rows of the batches; the one host synchronisation is at the end."""
        self.model.train()
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        count = 0
        for rows in batches:
            x = data.index_select(0, rows)
            with autocast(self.device, self.amp):
                loss, both = _both(self.model, x)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total.add_(both, alpha=len(rows))
            count += len(rows)
            if bar is not None:
                bar.update(len(rows))
        mean_loss, mean_kl = (total / count).tolist()
        return mean_loss, mean_kl


def _both(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and (loss, kl) without gradients in one tensor."""
    losses = getattr(model, "losses", None)
    if losses is not None:
        loss, kl = losses(x)
    else:
        loss = model.loss(x)  # type: ignore[operator]
        kl = torch.full_like(loss, math.nan)
    return loss, torch.stack((loss.detach(), kl.to(loss.dtype)))


def _bar(progress: bool | None, total: int, done: int) -> contextlib.AbstractContextManager[Any | None]:
    if progress is False or (progress is None and not sys.stderr.isatty()):
        return contextlib.nullcontext()
    try:
        from tqdm import tqdm
    except ImportError:
        return contextlib.nullcontext()
    return tqdm(total=total, initial=done, unit=" samples", unit_scale=True, dynamic_ncols=True, leave=False)


def _check(
    model: nn.Module,
    train: Tensor,
    valid: Tensor | None,
    epochs: int,
    batch_size: int,
    drop_last: bool,
    amp: torch.dtype | None,
    checkpoint: str | os.PathLike[str] | None,
    resume: bool,
) -> None:
    if not callable(getattr(model, "loss", None)):
        raise TypeError(f"model: expected a module with a method loss(x), got {type(model).__name__}")
    check.positive_int("epochs", epochs)
    check.positive_int("batch_size", batch_size)
    least = batch_size if drop_last else 1
    for name, data, low in (("train", train, least), ("valid", valid, 1)):
        if data is None:
            continue
        check.tensor(name, data, check.TARGETS)
        if data.ndim < 2 or len(data) < low:
            raise ValueError(f"{name} has shape {tuple(data.shape)}: expected (n, *event) with n at least {low}")
    if amp not in (None, torch.bfloat16):
        raise ValueError(f"amp={amp!r}: expected None or torch.bfloat16")
    if resume and checkpoint is None:
        raise ValueError("resume=True: expected a checkpoint to resume from, got checkpoint=None")
    if checkpoint is not None and Path(checkpoint).is_dir():
        raise ValueError(f"checkpoint={str(checkpoint)!r}: expected a file name, this is a directory")
