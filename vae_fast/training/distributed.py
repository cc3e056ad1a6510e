"""Training in several processes with ``torch.distributed``: joining the group, agreeing on settings, and averaging the gradient.

A process of a job that ``torchrun`` started joins the others with :func:`join`; any other process is a :class:`World` of
one, in which every method below costs nothing. Tensors go over the group's backend (NCCL for CUDA), all other messages
over gloo, with a timeout: if a process is lost, the others fail instead of waiting.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from vae_fast._world import TIMEOUT as TIMEOUT
from vae_fast._world import World as World
from vae_fast._world import current
from vae_fast.errors import RunError

#: Seconds that a process waits before it leaves its group, see :func:`leave`.
SETTLE = 0.5
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """Whether ``torchrun`` (or anything that sets its variables) started this process.

    Example:
        >>> launched()
        False
    """
    return all(name in os.environ for name in _VARIABLES)


def let_others_speak() -> None:
    """Wait two seconds before this process fails: torchrun ends the others as soon as one exits, before they can report their errors.

    Example:
        >>> let_others_speak()
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        time.sleep(2.0)


def restarts() -> int:
    """How often ``torchrun --max-restarts`` has already restarted the job.

    Example:
        >>> restarts()
        0
    """
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def job() -> str | None:
    """An identifier that all attempts of one job share and no other job has; None if ``torchrun`` did not start this process.

    Example:
        >>> job() is None
        True
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    name = os.environ["TORCHELASTIC_RUN_ID"]
    return name if name != "none" else f"{socket.gethostname()}:{os.getppid()}"


def local_device(name: str) -> str:
    """The device of this process: under ``torchrun``, ``cuda`` becomes the GPU of its local rank.

    Example:
        >>> local_device("cpu")
        'cpu'
    """
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" and launched() else name


@contextlib.contextmanager
def join(device: torch.device, *, timeout: float = TIMEOUT, mode: str = "auto") -> Iterator[World]:
    """A context in which this process is part of its process group; it yields the :class:`World`.

    Args:
        device: what the run computes on; with a GPU, tensors go over NCCL.
        timeout: seconds after which waiting for another process fails; applies to a group that is created here.
        mode: ``"auto"``: the process group that exists, otherwise the one that ``torchrun`` has prepared (left at the end), otherwise
            this process alone. ``"none"``: this process alone.

    Raises:
        ValueError: if ``mode`` is neither, or ``timeout`` is not positive.
        RunError: if another process does not join, does not answer in time, or is lost.

    Example:
        >>> with join(torch.device("cpu")) as world:
        ...     world.size
        1
    """
    if mode not in ("auto", "none"):
        raise ValueError(f"distributed={mode!r}: expected 'auto' or 'none'")
    if not timeout > 0.0:
        raise ValueError(f"timeout={timeout!r}: expected a number of seconds above 0")
    there = dist.is_available() and dist.is_initialized()
    if mode == "none" or not (there or launched()):
        yield World()
        return
    with _explained(timeout):
        if not there:
            _init(device, timedelta(seconds=timeout))
        try:
            yield current(timeout)
        finally:
            if not there:
                leave()


def leave() -> None:
    """Leave the process group, after which this process may exit at once.

    gloo's threads release the last tensors after the call that waited for them has returned. They need the interpreter for that, and
    abort the process if it is already shutting down: this waits :data:`SETTLE` seconds for them.

    Example:
        >>> leave()  # in no group: nothing to do
    """
    if dist.is_available() and dist.is_initialized():
        time.sleep(SETTLE)
        dist.destroy_process_group()


def _init(device: torch.device, timeout: timedelta) -> None:
    """The group ``torchrun`` has prepared.

    A restarted job may find the store of the one before, with the addresses of processes that are gone: each attempt has its own keys.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    store = PrefixStore(f"vae_fast/attempt_{restarts()}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


@contextlib.contextmanager
def _explained(timeout: float) -> Iterator[None]:
    """What torch says when a process is lost or late, as one line."""
    try:
        yield
    except RunError:
        raise
    except RuntimeError as error:  # gloo's errors have no type of their own
        words = str(error)
        if not (isinstance(error, dist.DistError) or any(sign in words for sign in ("gloo", "onnection", "imed out", "imeout"))):
            raise
        first = re.sub(r"^\[[^]]*\] *", "", words.splitlines()[0]).split(". ")[0][:200]  # less the place in gloo's source
        raise RunError(f"another process of the run was lost or did not answer within {timeout:g} s: {first}") from error


# --- the model ------------------------------------------------------------------------------------------------------------


class Objective(nn.Module):
    """A model's loss as a ``forward``, which is where the hooks of DistributedDataParallel and fully_shard sit.

    Example:
        >>> from vae_fast.models import MLPVAE
        >>> loss, both = Objective(MLPVAE(latent_dim=2))(torch.rand(3, 784))
        >>> loss.shape, both.shape
        (torch.Size([]), torch.Size([2]))
    """

    def __init__(self, model: nn.Module) -> None:
        """Anything with ``loss(x)``, and with ``losses(x) -> (loss, kl)`` if it has a KL.

        A class that overrides ``loss`` alone is trained on that loss: the ``losses`` that it inherits would compute another.
        """
        super().__init__()
        self.model = model
        self.with_kl = hasattr(model, "losses") and _depth(model, "losses") <= _depth(model, "loss")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and ``(2,)``: the loss and the KL, detached."""
        if self.with_kl:
            loss, kl = self.model.losses(x)  # type: ignore[operator]
        else:
            loss = self.model.loss(x)  # type: ignore[operator]
            kl = torch.full_like(loss, torch.nan)
        return loss, torch.stack((loss.detach(), kl.to(loss.dtype)))


def _depth(model: nn.Module, name: str) -> int:
    """How many classes above the model's own a method is defined; what an object has for itself comes before all of them."""
    model = getattr(model, "_orig_mod", model)  # torch.compile's module passes names on
    if name in vars(model):
        return -1
    kinds = type(model).__mro__
    return next((i for i, kind in enumerate(kinds) if name in vars(kind)), len(kinds))


class Engine:
    """The objective in every process, and the gradient averaged over them.

    Args:
        model: the same in every process; the weights of the main process are used.
        world: from :func:`join`.
        device: the model's.
        shard: True: each process holds its shard of the weights, gradients and optimizer state (FSDP2's ``fully_shard``; modules that
            are already sharded stay so). The optimizer has to be made afterwards. False: each process holds all of them
            (DistributedDataParallel).

    Attributes:
        objective: the module to evaluate with.

    Raises:
        ValueError: if ``shard`` is True and there is no process group.

    Example:
        >>> engine = Engine(nn.Linear(2, 1), World(), torch.device("cpu"))
        >>> type(engine.objective).__name__
        'Objective'
    """

    def __init__(self, model: nn.Module, world: World, device: torch.device, *, shard: bool = False) -> None:
        """See the class."""
        self.world, self.model, self.sharded = world, model, shard
        self.objective: Any = Objective(model)
        self._trained: Any = self.objective
        if shard:
            if not world.joined:
                raise ValueError("shard=True: expected a process group; start the program with torchrun")
            self._shard(device)
        elif world.joined:
            devices = [device] if device.type == "cuda" else None
            self._trained = DistributedDataParallel(self.objective, device_ids=devices, gradient_as_bucket_view=True)

    def _shard(self, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        for t in (*self.model.parameters(), *self.model.buffers()):
            if not hasattr(t, "device_mesh"):
                dist.broadcast(t.detach(), 0)
        fully_shard(self.objective, mesh=init_device_mesh(device.type, (self.world.size,)))

    def backward(self, x: Tensor, weight: float, *, last: bool, amp: contextlib.AbstractContextManager[object]) -> Tensor:
        """Add the gradient of ``weight`` times the loss of ``x``; at the ``last`` call of a step the processes average their gradients.

        Returns:
            ``(2,)``: loss and KL of ``x``, detached.
        """
        with self._exchanging(last):
            with amp:
                loss, both = self._trained(x)
            loss.backward(None if weight == 1.0 else torch.full_like(loss, weight))
        return both  # type: ignore[no-any-return]

    def _exchanging(self, last: bool) -> contextlib.AbstractContextManager[object]:
        if self.sharded:
            self.objective.set_requires_gradient_sync(last)
        elif self.world.joined and not last:
            return self._trained.no_sync()  # type: ignore[no-any-return]
        return contextlib.nullcontext()


# --- being told to stop -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def sigterm(listen: bool) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM has arrived. A handler of the caller's is kept; outside the main thread none is set.

    Example:
        >>> with sigterm(True) as came:
        ...     came()
        False
    """
    event = threading.Event()
    free = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not (listen and free):
        yield event.is_set
        return
    signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event.is_set
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
