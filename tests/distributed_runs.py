"""What the tests of many processes share: a small model, its runs, and what two processes do at once."""

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import interpreters
import numpy as np
import pytest
import torch
from torch import nn
from training_runs import images, small, untimed

from vae_fast import cli, training
from vae_fast.errors import Terminated
from vae_fast.training import checkpoint
from vae_fast.training.distributed import leave

ROOT = Path(__file__).resolve().parent.parent


class Plain(nn.Module):
    """Draws nothing, float64: one number to compare, whoever computes it. It writes down the rows it sees."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 5)).double()
        for p in self.parameters():
            p.data.normal_(generator=generator)
        self.seen = []

    def losses(self, x):
        self.seen.append(x[:, 0].tolist())
        error = (self.net(x) - x).square().sum(1).mean()
        return error.to(torch.float64), error.detach()

    def loss(self, x):
        return self.losses(x)[0]


def numbers(n):
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x[:, 0] = torch.arange(n)
    return x


#: name: rows, options. Batches of 8: 32 divides, 29 leaves a last batch of 5, 25 one of a single row, which one rank does not get.
CASES = {
    "even": (32, {}),
    "uneven": (29, {"drop_last": False}),
    "a rank without a row": (25, {"drop_last": False}),
    "accumulated": (29, {"drop_last": False, "accumulate": 3}),
    "sharded": (25, {"drop_last": False, "shard": True}),
    "sharded, accumulated": (29, {"drop_last": False, "accumulate": 3, "shard": True}),
    "bf16": (29, {"drop_last": False, "accumulate": 2, "amp": torch.bfloat16}),
    "bf16, sharded": (29, {"drop_last": False, "accumulate": 2, "amp": torch.bfloat16, "shard": True}),
}


def plain_run(n, epochs=2, model=None, **options):
    model = Plain() if model is None else model
    options = {"batch_size": 8, "epochs": epochs, "valid": numbers(11), "progress": False} | options
    history = training.fit(model, numbers(n), **options)
    weights = checkpoint.whole(dict(model.state_dict()))
    gradients = checkpoint.whole({name: p.grad for name, p in model.named_parameters()})
    return {"history": untimed(history), "weights": weights, "gradients": gradients, "seen": model.seen}


def noisy_run(path, **options):
    torch.manual_seed(5)
    model = small()
    options = {"batch_size": 50, "progress": False, "drop_last": False, "checkpoint": path} | options
    history = training.fit(model, images(), **options)
    return untimed(history), {k: v.clone() for k, v in checkpoint.whole(dict(model.state_dict())).items()}


def command(folder):
    """A run of the command, 3 epochs of 4 steps."""
    options = ["train", "--data", folder / "x.npy", "--out", folder / "run", "--epochs", 3, "--batch-size", 51, "--no-pictures"]
    return [str(o) for o in (*options, "--checkpoint-every", 3, "--hidden", 8, "--latent", 2, "--threads", 1)]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(**more):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TORCHELASTIC")}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return kept | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"} | more


def started_directly(*program, processes=2, **more):
    """Processes as torchrun starts them, but with nobody who ends the others when one has failed: (out, err, code) of each."""
    env = environment(WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), **more)
    ranks = [env | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    running = [interpreters.started(*program, environment=ranks[rank], folder=Path.cwd()) for rank in range(processes)]
    return [(done.stdout, done.stderr, done.returncode) for done in (end(120) for end in running)]


def enter(rank, port):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def message(act):
    start = time.perf_counter()
    try:
        act()
    except Exception as error:
        return type(error).__name__, str(error), time.perf_counter() - start
    return None


# --- what both processes do, once for all tests below ---------------------------------------------------------------------


def work(rank, folder, port):
    enter(rank, port)
    torch.distributed.init_process_group("gloo")
    results = {name: plain_run(n, **options) for name, (n, options) in CASES.items()}
    for shard in (False, True):  # two epochs here, then what one process has begun
        name = "sharded" if shard else "whole"
        plain_run(29, drop_last=False, checkpoint=folder / f"two-{name}.pt", shard=shard)
        results[f"from one, {name}"] = plain_run(
            29, epochs=4, drop_last=False, checkpoint=folder / f"one-{name}.pt", resume=True, shard=shard
        )
    results["noise"] = noisy_run(folder / "a.pt", epochs=3, checkpoint_every=2)
    results["initial seed"] = torch.initial_seed()
    results["again"] = noisy_run(folder / "b.pt", epochs=2)
    results["resumed"] = noisy_run(folder / "b.pt", epochs=3, resume=True)
    # SIGTERM to one of them
    calls = []

    def terminate(x):
        calls.append(1)
        if len(calls) == 7 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return x

    with contextlib.suppress(Terminated):
        noisy_run(folder / "term.pt", epochs=3, transform=terminate)
        results["terminated"] = "no"
    results["calls"] = len(calls)
    results["after SIGTERM"] = noisy_run(folder / "term.pt", epochs=3, resume=True)
    results["command"] = cli.main(command(folder))
    # what does not fit
    other = {"model": nn.Sequential(nn.Linear(3, 3)), "broken": folder / "broken.pt"}
    other["model"].loss = lambda x: other["model"](x).sum()
    (folder / "broken.pt").write_bytes(b"PK\3\4")
    fit = {"epochs": 1, "batch_size": 8, "progress": False}
    results["errors"] = {
        "batch sizes": message(lambda: training.fit(Plain(), numbers(32), **fit | {"batch_size": 8 - 4 * rank})),
        "data": message(lambda: training.fit(Plain(), numbers(32 + rank), **fit)),
        "models": message(lambda: training.fit(other["model"] if rank else Plain(), numbers(32), **fit)),
        "argument on one": message(lambda: training.fit(Plain(), numbers(32), **fit | {"accumulate": rank})),
        "rows": message(lambda: training.fit(Plain(), numbers(32), **fit | {"accumulate": 5})),
        "broken": message(lambda: training.fit(Plain(), numbers(32), **fit, checkpoint=other["broken"], resume=True)),
        "other weights": message(lambda: training.fit(Plain(), numbers(32), **fit, checkpoint=folder / "a.pt", resume=True)),
        "full disk": message(lambda: training.fit(Plain(), numbers(32), **fit, checkpoint=folder / "a.pt" / "below.pt")),
        "sharded late": message(lambda: training.fit(Plain(), numbers(32), **fit, shard=True, optimizer=torch.optim.SGD([torch.ones(1)]))),
    }
    torch.save(results, folder / f"results-{rank}")
    leave()


def assert_close(got, want, rtol):
    for a, b in zip(got["history"], want["history"], strict=True):
        assert a == pytest.approx(b, rel=rtol)
    for part in ("gradients", "weights"):
        scale = max(float(t.abs().max()) for t in want[part].values())
        for name, t in want[part].items():
            torch.testing.assert_close(got[part][name], t, rtol=rtol, atol=rtol * scale)


def two_processes(folder):
    """Both processes' results of :func:`work`, and the folder of their files."""
    for name in ("whole", "sharded"):
        plain_run(29, drop_last=False, checkpoint=folder / f"one-{name}.pt")
    np.save(folder / "x.npy", images(230, 16).numpy())
    interpreters.spawn(work, (folder, free_port()), 2)
    return [torch.load(folder / f"results-{rank}") for rank in range(2)], folder
