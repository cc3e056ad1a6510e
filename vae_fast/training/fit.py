"""Training any model that has a ``loss``: epochs, shuffling, logging, and checkpoints that resume to the same bits."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Unpack  # of torch's own requirements; typing has it from Python 3.11 on

from vae_fast.data.values import reason
from vae_fast.errors import DivergedError
from vae_fast.functional import _arguments as check
from vae_fast.models import VAE
from vae_fast.training.arguments import check_parts, check_run, check_values
from vae_fast.training.checkpoint import device_of
from vae_fast.training.distributed import Engine, Objective, World, join, sigterm
from vae_fast.training.products import Products
from vae_fast.training.settings import (
    Batches,
    Checkpoints,
    Hardware,
    Keywords,
    Optimization,
    Processes,
    Record,
    Schedule,
    Transform,
    check_keywords,
    group,
)
from vae_fast.training.step import Saver, Step, autocast, warmup

__all__ = [
    "COLUMNS",
    "Batches",
    "Checkpoints",
    "Hardware",
    "Keywords",
    "Optimization",
    "Processes",
    "Record",
    "Schedule",
    "Transform",
    "adam",
    "autocast",
    "evaluate",
    "evaluate_log_prob",
    "fit",
    "progress_bar",
    "say",
    "warmup",
]
#: The columns of a record, in order; ``valid_*`` only with validation data. Only the last two vary from run to run.
COLUMNS = ("epoch", "loss", "kl", "valid_loss", "valid_kl", "samples_per_second", "seconds")
_EVALUATION_SEED = 20131220


def fit(
    model: nn.Module,
    train: Tensor,
    *,
    valid: Tensor | None = None,
    epochs: int = 50,
    callbacks: Sequence[Callable[[list[Record]], object]] = (),
    progress: bool | None = None,
    batches: Batches | None = None,
    optimization: Optimization | None = None,
    checkpoints: Checkpoints | None = None,
    hardware: Hardware | None = None,
    processes: Processes | None = None,
    **keywords: Unpack[Keywords],
) -> list[Record]:
    """Minimise ``model.loss`` with Adam; the defaults are those of the thesis that :class:`vae_fast.models.MLPVAE` is from.

    The data are kept on the model's device in their own dtype (the models here read uint8 as ``x / 255``), and each batch
    is gathered once. The loss is summed on the device: the host does not wait for the device inside an epoch.

    Under ``torchrun`` the processes train one model: each takes its part of every batch, and the loss and the gradient are
    those of the whole batch. They, and the order of the batches, do not depend on the number of processes. Each process
    draws its own noise, seeded from rank 0's generator. Only rank 0 writes, prints and calls ``callbacks``.

    Every setting of the five groups is also a keyword of the same name: ``fit(model, x, batch_size=256)`` is
    ``fit(model, x, batches=Batches(batch_size=256))``. A group and one of its own keywords cannot be given together.

    Args:
        model: anything with ``loss(x)``, a mean over the batch. If it has ``losses(x) -> (loss, kl)``, like
            :class:`vae_fast.models.VAE`, the KL is recorded too; but if a subclass overrides ``loss`` alone, that ``loss`` is minimised.
            It is trained in place, on its own device.
        train: ``(n, *event)``; floating, uint8 or bool, or integers where the model's likelihood takes counts.
        valid: ``(m, *event)``: evaluated after each epoch, see :func:`evaluate`; the training's random numbers are not
            affected.
        epochs: total number of epochs, including those before a resume.
        callbacks: each is called with the history after every epoch, once the checkpoint is written.
        progress: show a progress bar on stderr, with tqdm; None: if stderr is a terminal and tqdm is installed.
        batches: how the rows become steps (:class:`Batches`: ``batch_size``, ``drop_last``, ``seed``, ``accumulate``, ``transform``,
            ``check_data``).
        optimization: what a step does to the weights (:class:`Optimization`: ``lr``, ``optimizer``, ``schedule``, ``max_grad_norm``).
        checkpoints: what is saved, and how a run resumes (:class:`Checkpoints`: ``checkpoint``, ``resume``, ``config``,
            ``checkpoint_every``, ``keep_previous``).
        hardware: how a step runs on the device (:class:`Hardware`: ``amp``, ``capture``, ``resident``).
        processes: how several processes divide the work (:class:`Processes`: ``distributed``, ``shard``, ``timeout``).
        **keywords: single settings of the groups.

    Returns:
        The history, one record per epoch: ``epoch``, ``loss``, ``kl`` (NaN if the model does not give it),
        ``valid_loss`` and ``valid_kl`` (with ``valid``), ``samples_per_second`` and ``seconds`` (of training alone).
        Losses and KL are in nats per sample.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.
        FileError: if the checkpoint cannot be written or does not fit.
        DivergedError: if an epoch's mean loss is not finite; the message names the cause, a value of the data or the learning rate. The
            checkpoint of the epoch before is kept.
        RunError: if the processes were called with different arguments, or if another one fails or is lost.
        Terminated: (exit code 143) after SIGTERM, if ``checkpoint`` is given: it is written at the end of the step, to resume from.

    Example:
        >>> from vae_fast.models import MLPVAE
        >>> model, x = MLPVAE(latent_dim=2, data_dim=16, hidden_dim=8), torch.rand(300, 16)
        >>> history = fit(model, x, epochs=2, optimization=Optimization(lr=1e-2, schedule=warmup(5)))
        >>> [record["epoch"] for record in history]
        [1, 2]
    """
    given = {"batches": batches, "optimization": optimization, "checkpoints": checkpoints, "hardware": hardware, "processes": processes}
    check_keywords(given, keywords)
    how = group(Processes, processes, keywords)
    device = device_of(model) if isinstance(model, nn.Module) else torch.device("cpu")
    with join(device, timeout=how.timeout, mode=how.distributed) as world:
        run = world.together(
            lambda: Run(
                group(Batches, batches, keywords),
                group(Optimization, optimization, keywords),
                group(Checkpoints, checkpoints, keywords),
                group(Hardware, hardware, keywords),
                how,
            )
        )
        world.together(lambda: check_run(model, train, valid, epochs, callbacks, progress, run.batches))
        world.together(lambda: check_parts(world, run.batches, run.optimization, how))
        if run.batches.check_data:
            world.together(lambda: check_values(model, {"train": train, "valid": valid}, run.batches.transform, world))
        return _fit(model, train, valid, epochs, callbacks, progress, run, world, device)


class Run(NamedTuple):
    """All settings of a run."""

    batches: Batches
    optimization: Optimization
    checkpoints: Checkpoints
    hardware: Hardware
    processes: Processes


def _fit(
    model: nn.Module,
    train: Tensor,
    valid: Tensor | None,
    epochs: int,
    callbacks: Sequence[Callable[[list[Record]], object]],
    progress: bool | None,
    run: Run,
    world: World,
    device: torch.device,
) -> list[Record]:
    """:func:`fit` with everything checked."""
    batches, checkpoints, amp, shard = run.batches, run.checkpoints, run.hardware.amp, run.processes.shard
    batch_size, transform = batches.batch_size, batches.transform
    settings = _settings(run, epochs, len(train))
    rest = {
        "model": [(name, tuple(p.shape), str(p.dtype)) for name, p in model.named_parameters()],
        "train": (tuple(train.shape[1:]), str(train.dtype)),
        "valid": None if valid is None else tuple(valid.shape),
        "accumulate": batches.accumulate,
        "shard": shard,
        "resume": checkpoints.resume,
        "checkpoint_every": checkpoints.checkpoint_every,
    }
    world.same(settings | rest)
    engine = world.together(lambda: Engine(model, world, device, shard=shard))
    optimizer = adam(model, run.optimization.lr) if run.optimization.optimizer is None else run.optimization.optimizer
    products = Products(device, None if shard else amp, model.parameters())
    saver = Saver(checkpoints, engine, optimizer, torch.Generator().manual_seed(batches.seed), settings, products)
    step = Step(engine, optimizer, device, batches, run.optimization, run.hardware, products)
    partial = saver.resume() if checkpoints.resume else None
    if not checkpoints.resume:
        world.reseed()
    data = train.to(device) if run.hardware.resident else train
    rows = len(train) // batch_size * batch_size if batches.drop_last else len(train)
    steps = math.ceil(rows / batch_size)
    history = saver.history
    done = len(history) * rows + (0 if partial is None else int(partial["step"]) * batch_size)
    with (
        sigterm(saver.path is not None) as saver.stop,
        progress_bar(progress if world.main else False, epochs * rows, done) as bar,
    ):
        for epoch in range(len(history) + 1, epochs + 1):
            if bar is not None:
                bar.set_description(f"epoch {epoch}/{epochs}")
            saver.begin(partial)
            order = torch.randperm(len(train), generator=saver.shuffle)[:rows].to(data.device)
            loss, kl = step.epoch(data, order.split(batch_size), bar, saver, partial, (epoch - 1) * steps)
            seconds, partial = saver.seconds(), None
            if not math.isfinite(loss):
                kept = f"; {saver.path} holds epoch {epoch - 1}" if saver.path is not None and epoch > 1 else ""
                raise DivergedError(f"epoch {epoch}: the mean loss is {loss}: {reason(model, data, transform, device, step.rates)}{kept}")
            record = {"epoch": epoch, "loss": loss, "kl": kl}
            if valid is not None:
                found = _evaluate(engine.objective, model, valid, 1000, amp, transform, world, products)
                record |= {f"valid_{k}": v for k, v in found.items()}
            history.append(record | {"samples_per_second": rows / seconds, "seconds": seconds})
            saver.save()
            world.on_main(lambda: [callback(history) for callback in callbacks] and None)
    return history


def _settings(run: Run, epochs: int, n: int) -> dict[str, Any]:
    """What a checkpoint keeps of a run, for the one that takes it up."""
    batches, optimization = run.batches, run.optimization
    settings: dict[str, Any] = {
        "batch_size": batches.batch_size,
        "lr": optimization.lr,
        "drop_last": batches.drop_last,
        "seed": batches.seed,
        "amp": str(run.hardware.amp),
        "n": n,
    }
    settings |= {} if optimization.max_grad_norm is None else {"max_grad_norm": optimization.max_grad_norm}
    kind = "Adam" if optimization.optimizer is None else type(optimization.optimizer).__name__
    return settings | {"optimizer": kind, "epochs": epochs, **(run.checkpoints.config or {})}


def adam(model: nn.Module, lr: float = 1e-3) -> Optimizer:
    """``torch.optim.Adam`` with its usual constants (betas 0.9 and 0.999, epsilon 1e-8), fused: one pass over the weights.

    Args:
        model: its parameters are optimised.
        lr: learning rate, at least 0.

    Raises:
        TypeError, ValueError: if ``lr`` is not such a number.

    Example:
        >>> adam(nn.Linear(2, 1)).defaults["lr"]
        0.001
    """
    check.real("lr", lr, 0.0)
    return torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8, fused=True)


def evaluate(
    model: nn.Module,
    data: Tensor,
    *,
    batch_size: int = 1000,
    amp: torch.dtype | None = None,
    transform: Transform | None = None,
    check_data: bool = True,
) -> Record:
    """Mean loss and KL over a data set, in nats per sample.

    The model runs in evaluation mode and without gradients; its mode is restored. The noise is the same at every call, and
    torch's random number generators are left as they were: evaluating does not change a run.

    Args:
        model: as in :func:`fit`.
        data: ``(n, *event)``, n at least 1.
        batch_size: rows evaluated at once.
        amp, transform, check_data: as in :class:`Hardware` and :class:`Batches`.

    Returns:
        ``{"loss": ..., "kl": ...}``; the KL is NaN if the model does not give it.

    Raises:
        ValueError: if ``data`` is empty, or if ``check_data`` finds a value out of range.

    Example:
        >>> from vae_fast.models import MLPVAE
        >>> sorted(evaluate(MLPVAE(latent_dim=2, data_dim=16, hidden_dim=8), torch.rand(30, 16)))
        ['kl', 'loss']
    """
    check.flag("check_data", check_data)
    if check_data:
        check_values(model, {"data": data}, transform, World())
    return _evaluate(Objective(model), model, data, batch_size, amp, transform, World())


def _evaluate(
    objective: nn.Module,
    model: nn.Module,
    data: Tensor,
    batch_size: int,
    amp: torch.dtype | None,
    transform: Transform | None,
    world: World,
    products: Products | None = None,
) -> Record:
    """:func:`evaluate`, each process its part of every batch with noise of its own."""
    with _evaluating(model, data, amp, world.rank, products) as device:
        total = torch.zeros(2, dtype=torch.float64, device=device)
        for batch in data.split(batch_size):
            part, count = world.share(batch)
            x = part.to(device)
            both = objective(x if transform is None else transform(x))[1]
            if count:
                total.add_(both, alpha=count)
    loss, kl = (world.sum(total) / len(data)).tolist()
    return {"loss": loss, "kl": kl}


def evaluate_log_prob(
    model: VAE,
    data: Tensor,
    num_samples: int = 100,
    *,
    batch_size: int = 1000,
    amp: torch.dtype | None = None,
    transform: Transform | None = None,
    check_data: bool = True,
) -> float:
    """Mean importance-weighted estimate of ``log p(x)`` over a data set, in nats per sample.

    Args:
        model: its ``log_prob`` is called, see :meth:`vae_fast.models.VAE.log_prob`.
        data, batch_size, amp, transform, check_data: as in :func:`evaluate`.
        num_samples: importance samples per row.

    Raises:
        ValueError: as :func:`evaluate`.

    Example:
        >>> from vae_fast.models import MLPVAE
        >>> evaluate_log_prob(MLPVAE(latent_dim=2, data_dim=16, hidden_dim=8), torch.rand(30, 16), 5) < 0.0
        True
    """
    check.flag("check_data", check_data)
    if check_data:
        check_values(model, {"data": data}, transform, World())
    with _evaluating(model, data, amp) as device:
        parts = (x.to(device) if transform is None else transform(x.to(device)) for x in data.split(batch_size))
        total = sum(model.log_prob(x, num_samples).double().sum() for x in parts)
    return float(total) / len(data)


@contextlib.contextmanager
def _evaluating(
    model: nn.Module, data: Tensor, amp: torch.dtype | None, rank: int = 0, products: Products | None = None
) -> Iterator[torch.device]:
    """Evaluation mode, no gradients, the evaluation's own noise; everything is as it was afterwards. ``products``: those of a run."""
    if len(data) == 0:
        raise ValueError(f"data has shape {tuple(data.shape)}: expected at least one row")
    device, was_training = device_of(model), model.training
    products = Products(device, amp, model.parameters()) if products is None else products
    model.eval()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad(), autocast(device, amp), products:
            torch.manual_seed(_EVALUATION_SEED + rank)
            yield device
    finally:
        model.train(was_training)


def say(line: str) -> None:
    """Print a line to stdout, above the progress bar if there is one.

    Example:
        >>> say("epoch 1")
        epoch 1
    """
    tqdm = sys.modules.get("tqdm")  # loaded by progress_bar only
    if tqdm is None or not sys.stderr.isatty():
        print(line, flush=True)
    else:
        tqdm.tqdm.write(line)


def progress_bar(progress: bool | None, total: int, done: int) -> contextlib.AbstractContextManager[Any | None]:
    """A tqdm bar of samples on stderr; None if ``progress`` is False, if it is None and stderr is no terminal, or if tqdm is not installed.

    Example:
        >>> with progress_bar(False, 100, 0) as bar:
        ...     bar is None
        True
    """
    if progress is False or (progress is None and not sys.stderr.isatty()):
        return contextlib.nullcontext()
    try:
        from tqdm import tqdm
    except ImportError:
        return contextlib.nullcontext()
    return tqdm(total=total, initial=done, unit=" samples", unit_scale=True, dynamic_ncols=True, leave=False)
