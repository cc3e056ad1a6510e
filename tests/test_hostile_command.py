"""What the command says to whatever is thrown at it: one line and exit code 2, nothing written."""

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path

import interpreters
import numpy as np
import pytest
import torch
from distributed_runs import started_directly
from matplotlib.image import imread
from one_line_errors import one_line

import vae_fast
from vae_fast import _as_command, cli, models, plots
from vae_fast.cli._common import MOST_THREADS
from vae_fast.cli.train import weight_count
from vae_fast.training import checkpoint

ROOT = Path(__file__).resolve().parent.parent
FAST = ["--hidden", "8", "--latent", "2", "--batch-size", "500", "--epochs", "1", "--no-pictures"]


def train(out, *options):
    return cli.main(["train", "--out", str(out), *FAST, *map(str, options)])


def process(*command, **how):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VAE_FAST_")} | {"PYTHONPATH": str(ROOT)}
    how = {"capture_output": True} | how
    return subprocess.run(
        [sys.executable, "-m", "vae_fast", *map(str, command)],
        text=True,
        check=False,
        timeout=120,
        env=environment | how.pop("env", {}),
        **how,
    )


# --- options ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seed", 2**64], ["--seed", "at most 9,223,372,036,854,775,807"]),
        (["--seed", 2**63], ["--seed"]),
        (["--threads", 2**31], ["--threads", f"at most {MOST_THREADS:,}"]),
        (["--threads", MOST_THREADS + 1], ["--threads"]),
        (["--epochs", "9" * 5000], ["--epochs", "expected an integer"]),
        (["--timeout", "1e300"], ["--timeout", "at most 1,000,000,000"]),
        (["--accumulate", 501], ["--batch-size 500", "--accumulate 501 pieces"]),
        (["--shard"], ["--shard: expected several processes", "torchrun"]),
        (["--hidden", 10**6], ["--hidden 1000000 --latent 2: the model does not fit", "GiB are free"]),
        (["--latent", 2**63], [f"--latent {2**63}: the model does not fit"]),
        (["--hidden", 10**30], ["the model does not fit"]),
        (["--warmup", 2, "--schedule", "cosine"], ["--warmup 2: expected fewer than the 2 steps"]),
    ],
)
def test_options_that_cannot_be_had(tmp_path, capsys, options, words):
    """Refused before anything is made, or, with --overwrite, deleted."""
    assert train(tmp_path / "run") == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    capsys.readouterr()
    one_line(capsys, train(tmp_path / "run", *options, "--overwrite"), *words)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before
    assert train(tmp_path / "new", *options) == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("options", [["--seed", 2**64], ["--threads", 2**31]])
def test_options_of_the_other_commands(tmp_path, capsys, options):
    mog = ["mog", "--data", "two-moons", "-k", "2", "--out", str(tmp_path / "run")]
    one_line(capsys, cli.main([*mog, *map(str, options)]), options[0], "at most")
    if options[0] == "--threads":
        one_line(capsys, cli.main(["bench", "--quick", *map(str, options)]), options[0], "at most")


def test_the_largest_seed_works(tmp_path):
    assert train(tmp_path, "--seed", 2**63 - 1) == 0
    mog = ["mog", "--data", "two-moons", "-k", "2", "--points", "50", "--max-iter", "2", "--no-pictures", "--out", str(tmp_path / "m")]
    assert cli.main([*mog, "--seed", str(2**63 - 1)]) == 0


def test_the_size_of_a_model_is_known_before_it_is_made():
    for data_dim, hidden, latent in ((784, 500, 20), (5, 3, 1)):
        model = models.MLPVAE(latent, data_dim, hidden)
        assert weight_count(data_dim, hidden, latent) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."
        ),
    ],
)
def test_no_memory(tmp_path, capsys, monkeypatch, error):
    def fit(*_, **__):
        raise error

    monkeypatch.setattr(cli.training, "fit", fit)
    one_line(capsys, train(tmp_path), "there is not enough memory: ")


def test_what_is_not_the_users_fault_is_not_hidden(tmp_path, monkeypatch):
    def fit(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli.training, "fit", fit)
    with pytest.raises(RuntimeError, match="a bug"):
        train(tmp_path)


def test_fewer_rows_than_processes(tmp_path):
    for _, err, code in started_directly("-m", "vae_fast", "train", *FAST, "--out", tmp_path / "run", "--batch-size", 1):
        assert code == 2
        assert err == "vae-fast: error: --batch-size 1: expected an image for each of 2 process(es) and --accumulate 1 pieces\n"
    assert not (tmp_path / "run").exists()


# --- the process ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("VAE_FAST_BACKEND", "fast", "VAE_FAST_BACKEND='fast': expected one of auto, compiled, reference"),
        ("VAE_FAST_ISA", "mmx", "VAE_FAST_ISA=mmx: expected one of"),
    ],
)
def test_environment(variable, value, words):
    if variable == "VAE_FAST_ISA" and vae_fast.build_info()["backend"] == "reference":
        pytest.skip("there are no kernels to choose from")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VAE_FAST_")} | {"PYTHONPATH": str(ROOT), variable: value}
    done = interpreters.run("-m", "vae_fast", "train", environment=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"vae-fast: error: {words}")
    assert done.stderr.count("\n") == 1


def test_interrupted_while_torch_is_imported(tmp_path):
    """Where an import that swallows exceptions stands for torch's."""
    (tmp_path / "torch.py").write_text(
        "import os, signal, time\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(5)\nexcept BaseException:\n    pass\n"
    )
    done = process("train", env={"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])})
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "vae-fast: interrupted\n")


def test_interrupted_afterwards_is_a_keyboard_interrupt():
    """Other programs that import the package keep their own handler."""
    assert not _as_command.is_command()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert sys.excepthook is not _as_command._one_line


@pytest.mark.parametrize("closed", [(2,), (1,), (0, 1, 2)])
def test_closed_streams(tmp_path, closed):
    """The run goes on, and no file takes the number of a stream: torch would write its warnings there."""
    program = f"""
import os, sys
for number in {closed!r}:
    os.close(number)
os.execv(sys.executable, [sys.executable, "-m", "vae_fast", "train", "--out", {str(tmp_path / "run")!r}, *{FAST!r}, *sys.argv[1:]])
"""
    run = [sys.executable, "-c", program]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(run, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["epoch"] == 1
    assert "Traceback" not in (tmp_path / "run" / "metrics.csv").read_text()
    done = subprocess.run([*run, "--lr", "0"], capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_reader_that_is_gone(tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = process("train", "--out", tmp_path / "run", *FAST, stdout=write, capture_output=False, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 2
    assert done.stderr == "vae-fast: error: [Errno 32] Broken pipe\n"
    done = process("--version", stdout=subprocess.PIPE, capture_output=False, stderr=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (0, f"vae_fast {vae_fast.__version__}\n")


# --- names ------------------------------------------------------------------------------------------------------------------

NAMES = ["$$", "a$b$c", "$\\frac{$", "\\$", "a\nb"]


def draws(tmp_path, name, call):
    np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).normal(size=(60, 2)))
    assert call("mog", "--data", tmp_path / f"{name}.npy", "-k", 2, "--max-iter", 3, "--out", tmp_path / "mog") == 0
    assert imread(tmp_path / "mog" / "density.png").std() > 0.01
    np.save(tmp_path / f"{name}.npy", np.zeros((40, 4, 4), dtype=np.uint8))
    options = ["--hidden", 4, "--latent", 2, "--epochs", 1, "--batch-size", 10]
    assert call("train", "--data", tmp_path / f"{name}.npy", "--out", tmp_path / "run", *options) == 0
    assert imread(tmp_path / "run" / "loss.png").std() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_are_drawn_as_they_are(tmp_path, name):
    draws(tmp_path, name, lambda *command: cli.main([*map(str, command)]))


def test_a_name_that_is_no_text(tmp_path):
    draws(tmp_path, os.fsdecode(b"\xff"), lambda *command: process(*command, capture_output=False).returncode)


def test_a_title_of_ones_own_may_hold_mathematics(tmp_path):
    history = [{"epoch": 1, "loss": 2.0}]
    plots.loss_curve(tmp_path / "a.png", history, title=r"$\beta$-VAE")
    plots.loss_curve(tmp_path / "b.png", history, title=plots.literal(r"$\beta$-VAE"))
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


# --- checkpoints made with care ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    assert train(out) == 0
    return checkpoint.load(out / "checkpoint.pt")


def huge(state):
    """Two small tensors that claim gigabytes for the others."""
    state["model"]["decoder.0.weight"] = torch.zeros(100_000, 2)
    state["model"]["decoder.4.bias"] = torch.zeros(64)


HOSTILE = [
    lambda s: s["config"].update(dataset=["mnist"]),
    lambda s: s["config"].update(dataset=3),
    lambda s: s["config"].update(dataset={"a": 1}),
    lambda s: s["model"].clear(),
    lambda s: s["model"].update({"decoder.0.weight": torch.zeros(3)}),
    lambda s: s["model"].update({"decoder.0.weight": torch.zeros(0, 0)}),
    lambda s: s["model"].update({"decoder.4.bias": torch.tensor(1.0)}),
    lambda s: s["model"].update({"decoder.4.bias": "x"}),
    lambda s: s["model"].update({"encoder.mu.weight": torch.zeros(2, 8, dtype=torch.int64)}),
    lambda s: s["model"].update({"encoder.mu.weight": torch.zeros(2, 8, dtype=torch.float64)}),
    lambda s: s["model"].update({"encoder.mu.weight": torch.zeros(8, 2)}),
    lambda s: s.update(model=[1]),
    lambda s: s.update(history=[{}]),
    lambda s: s.update(config=None),
    lambda s: s["rng"].update(ranks=3),
    huge,
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_checkpoints(tmp_path, capsys, trained, number):
    state = copy.deepcopy(trained)
    HOSTILE[number](state)
    checkpoint.write(tmp_path / "checkpoint.pt", state)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    one_line(capsys, cli.main(["explore", str(tmp_path), "--page", str(tmp_path / "p.html")]), tmp_path / "checkpoint.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    code = cli.main(["train", "--resume", "--no-pictures", "--out", str(tmp_path)])
    _, err = capsys.readouterr()
    assert code == 2
    assert err.startswith(f"vae-fast: error: {tmp_path / 'checkpoint.pt'}: ")
    assert err.count("\n") == 1
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s["config"].update(seed=-1),
        lambda s: s["config"].update(hidden=10**7),
        lambda s: s["config"].update(batch_size=10**9),
        lambda s: s["config"].update(latent=3),
        lambda s: s["config"].update(lr=1e400),
        lambda s: s["history"][0].update(mine=1.0),
        lambda s: s["history"][0].pop("valid_loss"),
        lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.tensor(0.0)),
    ],
)
def test_hostile_settings_of_a_run(tmp_path, capsys, trained, edit):
    state = copy.deepcopy(trained)
    edit(state)
    checkpoint.write(tmp_path / "checkpoint.pt", state)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    code = cli.main(["train", "--resume", "--no-pictures", "--epochs", "2", "--out", str(tmp_path)])
    out, err = capsys.readouterr()
    assert code == 2, out
    assert err.count("\n") == 1
    assert err.startswith("vae-fast: error: ")
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
