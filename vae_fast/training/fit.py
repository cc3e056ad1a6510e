"""Training any model that has a ``loss``: epochs, shuffling, logging, checkpoints that resume to the same bits."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vae_fast.data.values import reason
from vae_fast.errors import DivergedError
from vae_fast.functional import _arguments as check
from vae_fast.models import VAE
from vae_fast.training import checkpoint as checkpoints
from vae_fast.training import distributed as processes
from vae_fast.training.arguments import check_data_and_files, check_options, check_parts, check_step, check_values
from vae_fast.training.distributed import Engine, Objective, World
from vae_fast.training.products import Products
from vae_fast.training.step import Record, Saver, Schedule, Step, Transform, autocast, warmup

__all__ = [
    "COLUMNS",
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
    accumulate: int = 1,
    transform: Transform | None = None,
    resident: bool = True,
    checkpoint_every: int | None = None,
    keep_previous: bool | None = None,
    distributed: str = "auto",
    shard: bool = False,
    timeout: float = processes.TIMEOUT,
    schedule: Schedule | None = None,
    max_grad_norm: float | None = None,
    capture: bool = True,
    check_data: bool = True,
) -> list[Record]:
    """Minimise ``model.loss`` with Adam; the defaults are the source's.

    The data stay on the model's device in the dtype they come in (uint8 is read as ``x / 255`` by the models here) and
    each batch is gathered once. The loss is summed on the device: there is no host synchronisation inside an epoch.

    Started by ``torchrun``, the processes train one model: each takes its part of every batch, and the loss and the
    gradient are those of the whole batch, whatever the number of processes. So is the order of the batches. Each process
    has noise of its own, decided by rank 0's generator. Only rank 0 writes, prints and calls ``callbacks``.

    Args:
        model: anything with ``loss(x)``, a mean over the batch. If it has ``losses(x) -> (loss, kl)``, as
            :class:`vae_fast.models.VAE`, the KL is recorded too. It is trained in place, on the device it is on.
        train: ``(n, *event)``.
        valid: ``(m, *event)``: evaluated after each epoch, see :func:`evaluate`; it does not disturb the training's
            random numbers.
        epochs: number of epochs in all, those of a resumed run included.
        batch_size: rows per step, of all processes together.
        lr: learning rate of Adam (betas 0.9 and 0.999, epsilon 1e-8); not used with ``optimizer``.
        optimizer: another optimizer over the model's parameters.
        drop_last: True, as in the source: ``n // batch_size`` batches per epoch, the rest of the shuffled rows is left
            out of that epoch. False: the last batch is smaller, and its loss counts by its size.
        seed: of the generator that shuffles. The noise comes from torch's own generator: call ``torch.manual_seed`` for
            it.
        amp: ``torch.bfloat16`` runs the model under autocast; None does not. Weights, gradients and the optimizer stay in the model's
            dtype. On the CPU linear layers then use bfloat16 copies of the weights that are cast once per step, whatever ``accumulate``;
            with ``shard`` it is torch's autocast alone.
        checkpoint: file that is replaced after every epoch, see :mod:`vae_fast.training.checkpoint`.
        resume: continue from ``checkpoint``: on the CPU, with the same number of threads and processes, to the same bits
            as an unbroken run. torch's random number generators are set to what they were. With another number of
            processes the batches are the same and the noise is drawn anew; a broken newest checkpoint gives way to the one
            before; both are said on stderr.
        config: plain values kept in the checkpoint; a resumed run must give the same. ``batch_size``, ``lr``,
            ``drop_last``, ``seed``, ``amp``, the optimizer's type and ``n`` are always compared.
        callbacks: each is called with the history after every epoch, when the checkpoint is written.
        progress: a progress bar on stderr, with tqdm; None: if stderr is a terminal and tqdm is installed.
        accumulate: number of pieces each batch is computed in, one after the other: for batches that do not fit.
        transform: applied to each batch (of ``valid`` too) on the model's device, as :func:`vae_fast.data.binarized`.
        resident: False leaves ``train`` where it is, for data that do not fit on the device (or, mapped from a file, in
            memory): each batch is gathered there and moved.
        checkpoint_every: also write ``checkpoint`` after every so many steps.
        keep_previous: keep the checkpoint before the newest too; None: under ``torchrun`` and with ``checkpoint_every``.
        distributed: ``"auto"`` or ``"none"``, see :func:`vae_fast.training.distributed.join`.
        shard: True: FSDP2's ``fully_shard`` instead of DistributedDataParallel: each process holds its part of the weights,
            gradients and moments, and ``model`` stays sharded. The checkpoint holds them whole.
        timeout: seconds after which a process that does not answer is given up.
        schedule: ``schedule(step)`` is the factor of the learning rate at each step of the run, counted from 0; see
            :func:`warmup`. A resumed run goes on with it: it has no state. (A scheduler of torch's own may be stepped in ``callbacks``
            instead, with ``optimizer``.)
        max_grad_norm: scale the gradient down to this norm where it is longer (``torch.nn.utils.clip_grad_norm_``).
        capture: on CUDA, record the whole step (gather, network, loss, gradients, clipping, optimizer) as one CUDA graph and replay
            it, with fresh noise; the learning rates become tensors on the device. What cannot be recorded runs as it is, and one line
            on stderr says why. On the CPU nothing is recorded; there the linear layers of any model multiply by the faster of torch's two
            libraries, whatever this is: each shape is tried both ways at its first product, once per process. Which one is taken may
            differ between two runs, where both are as fast, and so may the rounding; a resumed run keeps the choices of its checkpoint.
            ``VAE_FAST_PRODUCTS=blas`` (torch's own) or ``onednn`` fixes it, ``torch.use_deterministic_algorithms(True)`` means torch's
            own. Each process of several chooses for itself.
        check_data: look at every value of ``train`` and ``valid`` once, before the first step: in [0, 1] if the model says that its
            likelihood is Bernoulli (an attribute ``likelihood``, as :class:`vae_fast.models.VAE` has), else finite. With ``transform``,
            which may scale them, finite. Bytes and bools need no look. Mapped data are read once for it, each process its part.

    Returns:
        The history, one record per epoch: ``epoch``, ``loss``, ``kl`` (NaN if the model does not give it),
        ``valid_loss`` and ``valid_kl`` (with ``valid``), ``samples_per_second`` and ``seconds`` (of training alone).
        Nats per sample.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.
        FileError: if the checkpoint cannot be written or does not fit.
        DivergedError: if an epoch's mean loss is not finite, with what is to blame: a value of the data, or the learning rate; the
            checkpoint of the epoch before is kept.
        RunError: if the processes do not fit each other, or one is lost; for an error in another process.
        Terminated: (exit code 143) after SIGTERM, with ``checkpoint``: it is written at the end of the step, to resume from.

    Example:
        >>> from vae_fast.models import MLPVAE
        >>> history = fit(MLPVAE(latent_dim=2, data_dim=16, hidden_dim=8), torch.rand(300, 16), epochs=2)
        >>> [record["epoch"] for record in history]
        [1, 2]
    """
    check.one_of("distributed", distributed, ("auto", "none"))
    check.real("timeout", timeout)
    device = checkpoints.device_of(model) if isinstance(model, nn.Module) else torch.device("cpu")
    with processes.join(device, timeout=timeout, mode=distributed) as world:
        flags = {
            "drop_last": drop_last,
            "resume": resume,
            "resident": resident,
            "shard": shard,
            "capture": capture,
            "check_data": check_data,
        }
        world.together(lambda: check_options(flags, progress, keep_previous, seed, lr, optimizer, transform, callbacks, config))
        world.together(lambda: check_data_and_files(model, train, valid, epochs, batch_size, drop_last, amp, checkpoint, resume))
        world.together(lambda: check_parts(world, batch_size, accumulate, checkpoint_every, checkpoint, shard, optimizer))
        world.together(lambda: check_step(schedule, max_grad_norm))
        if check_data:
            world.together(lambda: check_values(model, {"train": train, "valid": valid}, transform, world))
        settings = {
            "batch_size": batch_size,
            "lr": lr,
            "drop_last": drop_last,
            "seed": seed,
            "amp": str(amp),
            "n": len(train),
        }
        settings |= {} if max_grad_norm is None else {"max_grad_norm": max_grad_norm}
        kind = "Adam" if optimizer is None else type(optimizer).__name__
        settings |= {"optimizer": kind, "epochs": epochs, **(config or {})}
        shapes = [(name, tuple(p.shape), str(p.dtype)) for name, p in model.named_parameters()]
        rest = {
            "model": shapes,
            "train": (tuple(train.shape[1:]), str(train.dtype)),
            "valid": None if valid is None else tuple(valid.shape),
        }
        world.same(settings | rest | {"accumulate": accumulate, "shard": shard, "resume": resume, "checkpoint_every": checkpoint_every})
        engine = world.together(lambda: Engine(model, world, device, shard=shard))
        optimizer = adam(model, lr) if optimizer is None else optimizer
        if keep_previous is None:
            keep_previous = processes.launched() or checkpoint_every is not None
        path = None if checkpoint is None else Path(checkpoint)
        products = Products(device, None if shard else amp, model.parameters())
        saver = Saver(path, engine, optimizer, torch.Generator().manual_seed(seed), settings, checkpoint_every, keep_previous, products)
        step = Step(engine, optimizer, device, amp, accumulate, transform, schedule, max_grad_norm, capture, products)
        partial = saver.resume() if resume else None
        if not resume:
            world.reseed()
        data = train.to(device) if resident else train
        rows = len(train) // batch_size * batch_size if drop_last else len(train)
        steps = math.ceil(rows / batch_size)
        history = saver.history
        done = len(history) * rows + (0 if partial is None else int(partial["step"]) * batch_size)
        with (
            processes.sigterm(checkpoint is not None) as saver.stop,
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
                    kept = f"; {checkpoint} holds epoch {epoch - 1}" if checkpoint is not None and epoch > 1 else ""
                    raise DivergedError(
                        f"epoch {epoch}: the mean loss is {loss}: {reason(model, data, transform, device, step.rates)}{kept}"
                    )
                record = {"epoch": epoch, "loss": loss, "kl": kl}
                if valid is not None:
                    found = _evaluate(engine.objective, model, valid, 1000, amp, transform, world, products)
                    record |= {f"valid_{k}": v for k, v in found.items()}
                history.append(record | {"samples_per_second": rows / seconds, "seconds": seconds})
                saver.save()
                world.on_main(lambda: [callback(history) for callback in callbacks] and None)
    return history


def adam(model: nn.Module, lr: float = 1e-3) -> Optimizer:
    """Adam with the source's constants, in its fused form: one pass over the weights, several times as fast on CPUs.

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

    The model is put in evaluation mode and back; gradients are off. The noise is the same at every call, and torch's
    random number generators are left as they were: evaluating does not change a run.

    Args:
        model: as in :func:`fit`.
        data: ``(n, *event)``, n at least 1.
        batch_size: rows at once.
        amp, transform, check_data: as in :func:`fit`.

    Returns:
        ``{"loss": ..., "kl": ...}``; the KL is NaN if the model does not give it.

    Raises:
        ValueError: if ``data`` is empty, or for a value out of range (``check_data``).

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
    device, was_training = checkpoints.device_of(model), model.training
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
    """A tqdm bar of samples on stderr, or None: if ``progress`` is False, or is None and nobody is watching, or tqdm is not installed.

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
