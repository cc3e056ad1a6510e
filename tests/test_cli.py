"""The command `vae-fast train`: its files, its lines, resuming, and one-line errors."""

import csv
import json
import os
import re
import subprocess
import sys

import interpreters
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from vae_fast import cli, plots
from vae_fast.data import load
from vae_fast.files import hidden_name
from vae_fast.training import checkpoint

FAST = ["--hidden", "16", "--latent", "3", "--batch-size", "200"]
FILES = {".vae_fast-run", "checkpoint.pt", "config.json", "metrics.csv", "results.json"}
PICTURES = {"loss.png", "reconstructions.png", "samples.png", "latent.png"}


def train(out, *options):
    return cli.main(["train", "--out", str(out), *FAST, *map(str, options)])


def metrics(out):
    with (out / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def untimed(rows):
    return [{k: v for k, v in row.items() if k not in ("samples_per_second", "seconds")} for row in rows]


def weights(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)["model"]


def failed(capsys, code, *words):
    """Exit code 2 and one line on stderr with these words."""
    out, err = capsys.readouterr()
    assert code == 2
    assert err.count("\n") == 1, err
    assert err.startswith("vae-fast: error: ")
    for word in words:
        assert str(word) in err
    return out


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "deep" / "digits"
    assert train(out, "--epochs", 3, "--eval", 5) == 0
    return out


# --- a run ------------------------------------------------------------------------------------------------------------


def test_files(digits_run):
    assert {p.name for p in digits_run.iterdir()} == FILES | PICTURES
    config = json.loads((digits_run / "config.json").read_text())
    assert (config["dataset"], config["latent"], config["epochs"], config["lr"]) == ("digits", 3, 3, 1e-3)
    rows = metrics(digits_run)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[2]["loss"]) < float(rows[0]["loss"])
    assert all(float(v) > 0 for row in rows for v in row.values())
    results = json.loads((digits_run / "results.json").read_text())
    assert results["train_loss"] == float(rows[2]["loss"])
    assert results["test_loss"] > -results["test_log_prob"] > results["test_entropy_floor"] > 0


def test_lines(tmp_path, capsys):
    assert train(tmp_path, "--epochs", 2, "--no-pictures") == 0
    out, err = capsys.readouterr()
    assert err == ""  # no progress bar where stderr is no terminal
    assert "digits: 1,439 training, 179 validation, 179 test images of 8x8; entropy floor of grey targets 13.69" in out
    assert "model: 64-16-16-(3, 3), 3-16-16-64" in out
    line = r"epoch 2/2  loss \d+\.\d\d \(floor 13\.69\)  KL \d+\.\d\d  validation \d+\.\d\d  [\d,]+ samples/s"
    assert re.search(line, out)
    assert re.search(r"test: loss \d+\.\d\d \(floor 13\.56\)  KL", out)
    assert {p.name for p in tmp_path.iterdir()} == FILES


def test_pictures(digits_run):
    for name in PICTURES:
        picture = imread(digits_run / name)
        assert picture.shape[0] >= 150
        assert picture.shape[1] >= 800
        assert picture[..., :3].std() > 0.02  # something is drawn


def test_seed_decides_the_run(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train(tmp_path / name, "--epochs", 1, "--seed", seed, "--no-pictures") == 0
    a, b, c = (untimed(metrics(tmp_path / name)) for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(("options", "other"), [(["--amp", "bf16"], []), (["--beta", "4"], []), (["--lr", "0.01"], [])])
def test_options_reach_the_training(tmp_path, options, other):
    train(tmp_path / "a", "--epochs", 1, "--no-pictures", *options)
    train(tmp_path / "b", "--epochs", 1, "--no-pictures", *other)
    assert untimed(metrics(tmp_path / "a")) != untimed(metrics(tmp_path / "b"))


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_resumed_run_is_bitwise_the_unbroken_one(tmp_path):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert train(unbroken, "--epochs", 4, "--seed", 3, "--no-pictures") == 0
    assert train(broken, "--epochs", 2, "--seed", 3, "--no-pictures") == 0
    torch.randn(5)
    # Settings that are not given again are those of the run; the number of epochs may grow.
    assert cli.main(["train", "--out", str(broken), "--resume", "--epochs", "4", "--no-pictures"]) == 0
    assert untimed(metrics(broken)) == untimed(metrics(unbroken))
    a, b = weights(unbroken), weights(broken)
    assert all(torch.equal(a[name], b[name]) for name in a)
    results = [json.loads((out / "results.json").read_text()) for out in (unbroken, broken)]
    assert results[0] == results[1]


def test_run_killed_in_its_second_epoch_resumes_bitwise(tmp_path, python):
    """A process that dies for real, and whose files then continue to the same numbers."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert train(unbroken, "--epochs", 3, "--threads", 1) == 0
    program = f"""
import os, sys
from vae_fast import cli
from vae_fast.training import step
once = step.Step.epoch
calls = []
def epoch(self, *rest):
    calls.append(1)
    if len(calls) == 2:
        os._exit(9)
    return once(self, *rest)
step.Step.epoch = epoch
cli.main(["train", "--out", {str(broken)!r}, "--epochs", "3", "--threads", "1", *{FAST!r}])
"""
    done = python(program, check=False)
    assert done.returncode == 9, done.stderr
    assert len(metrics(broken)) == 1
    (broken / ".checkpoint.pt.123.tmp").write_bytes(b"half")  # what a kill inside a write would leave
    hidden_name(broken / "metrics.csv").write_bytes(b"half")
    assert cli.main(["train", "--out", str(broken), "--resume", "--threads", "1"]) == 0
    assert untimed(metrics(broken)) == untimed(metrics(unbroken))
    a, b = weights(unbroken), weights(broken)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert {p.name for p in broken.iterdir()} == FILES | PICTURES


def test_resuming_a_finished_run_writes_its_pictures(tmp_path, capsys):
    assert train(tmp_path, "--epochs", 1, "--no-pictures") == 0
    before = metrics(tmp_path)
    assert train(tmp_path, "--epochs", 1, "--resume") == 0
    assert metrics(tmp_path) == before
    assert {p.name for p in tmp_path.iterdir()} >= PICTURES
    assert "all 1 epochs are done" in capsys.readouterr().out


def test_an_existing_run_is_not_written_over(tmp_path, capsys):
    assert train(tmp_path, "--epochs", 1, "--no-pictures") == 0
    before = (tmp_path / "checkpoint.pt").read_bytes()
    capsys.readouterr()
    failed(capsys, train(tmp_path, "--epochs", 1), tmp_path, "already holds a run", "--resume", "--overwrite")
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    (tmp_path / "mine.txt").write_text("kept")
    assert train(tmp_path, "--epochs", 2, "--overwrite", "--no-pictures") == 0
    assert len(metrics(tmp_path)) == 2
    assert (tmp_path / "mine.txt").read_text() == "kept"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--latent", "4"], ["--latent 3, not 4", "leave out --latent"]),
        (["--batch-size", "50"], ["--batch-size 200, not 50"]),
        (["--dataset", "mnist"], ["--dataset digits, not mnist"]),
        (["--epochs", "2"], ["holds 3 epochs, more than --epochs 2"]),
    ],
)
def test_resuming_another_run(digits_run, capsys, options, words):
    code = cli.main(["train", "--out", str(digits_run), "--resume", *options])
    failed(capsys, code, digits_run / "checkpoint.pt", *words)


def test_resuming_nothing(tmp_path, capsys):
    failed(capsys, train(tmp_path / "new", "--resume"), tmp_path / "new" / "checkpoint.pt", "nothing to resume")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("content", "words"), [(b"PK\x03\x04", "broken or truncated"), ({"x": 1}, "not a checkpoint of vae_fast")])
def test_resuming_a_broken_file(tmp_path, capsys, content, words):
    path = tmp_path / "checkpoint.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    before = path.read_bytes()
    failed(capsys, train(tmp_path, "--resume"), path, words)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("edit", [{"latent": -1}, {"dataset": "../etc"}, {"lr": "fast"}, {"hidden": None}])
def test_resuming_settings_nobody_could_have_given(tmp_path, digits_run, capsys, edit):
    state = torch.load(digits_run / "checkpoint.pt", weights_only=True)
    state["config"].update(edit)
    checkpoint.write(tmp_path / "checkpoint.pt", state)
    code = cli.main(["train", "--out", str(tmp_path), "--resume"])
    failed(capsys, code, tmp_path / "checkpoint.pt", "not a checkpoint of `vae-fast train`", next(iter(edit)))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--epochs", "0"], ["--epochs", "'0': expected an integer of at least 1"]),
        (["--epochs", "many"], ["'many': expected an integer"]),
        (["--lr", "0"], ["--lr", "'0': expected a finite number above 0"]),
        (["--lr", "nan"], ["'nan'"]),
        (["--beta", "-1"], ["--beta", "'-1'"]),
        (["--beta", "inf"], ["'inf'"]),
        (["--dataset", "cifar"], ["--dataset", "'cifar'", "mnist"]),
        (["--amp", "fp16"], ["--amp", "'fp16'"]),
        (["--resume", "--overwrite"], ["--resume", "not allowed"]),
        (["--nonsense"], ["--nonsense"]),
        (["--batch-size", "2000"], ["--batch-size 2000", "1,439 training images"]),
        (["--device", "banana"], ["--device banana"]),
        (["--device", "meta"], ["--device meta", "expected cpu, cuda"]),
        (["--dataset", "frey", "--data-dir", "nowhere"], ["nowhere", "holds none of"]),
    ],
)
def test_bad_options(tmp_path, capsys, options, words):
    failed(capsys, train(tmp_path / "run", *options), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(tmp_path, capsys):
    failed(capsys, train(tmp_path / "run", "--device", "cuda"), "--device cuda: cannot be used here")


def test_broken_data_file(tmp_path, capsys):
    file = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    file.parent.mkdir()
    file.write_bytes(b"\x1f\x8b\x08")
    failed(capsys, train(tmp_path / "run", "--dataset", "mnist", "--data-dir", tmp_path), file, "gzip")
    assert not (tmp_path / "run").exists()


def test_out_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    failed(capsys, train(tmp_path / "file"), tmp_path / "file", "--out names a directory")
    failed(capsys, train(tmp_path / "file" / "below"), tmp_path / "file")


def test_missing_extras(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    failed(capsys, train(tmp_path, "--epochs", 1), "matplotlib", "vae_fast[train]", "--no-pictures")
    assert list(tmp_path.iterdir()) == []
    assert train(tmp_path, "--epochs", 1, "--no-pictures") == 0
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    failed(capsys, train(tmp_path, "--overwrite", "--no-pictures"), "scikit-learn", "vae_fast[train]")


def test_divergence_is_one_line(tmp_path, capsys):
    code = train(tmp_path, "--epochs", 50, "--lr", 1e30, "--no-pictures")
    failed(capsys, code, "the mean loss is", "smaller learning rate")


def test_interrupt(tmp_path, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.training, "fit", stop)
    assert train(tmp_path) == 130
    assert "--resume" in capsys.readouterr().err


def test_help_says_it_all(capsys):
    assert cli.main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for key, value in cli.DEFAULTS.items():
        assert re.search(rf"--{key.replace('_', '-')} .*?\(default: {re.escape(str(value))}\)", text)
    for word in (
        "--data-dir",
        "--out",
        "--resume",
        "--overwrite",
        "--device",
        "--threads",
        "VAE_FAST_DATA",
        "metrics.csv",
    ):
        assert word in text
    assert cli.main([]) == 2
    assert cli.main(["--version"]) == 0


def test_as_a_module_in_a_process_of_its_own(tmp_path):
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = interpreters.run("-m", "vae_fast", "train", "--out", tmp_path / "run", "--epochs", "0", environment=environment)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_the_package_needs_none_of_the_extras():
    program = """
import sys, warnings
warnings.simplefilter("ignore")
for extra in ("tqdm", "matplotlib", "sklearn", "scipy"):
    sys.modules[extra] = None
import torch, vae_fast.cli
from vae_fast import models, training
training.fit(models.MLPVAE(2, 9, 5), torch.rand(20, 9), valid=torch.rand(5, 9), epochs=2, batch_size=10, progress=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_reconstructions_lie_under_their_inputs(tmp_path):
    digits = load("digits")
    rows = [digits.test[:12], 1.0 - digits.test[:12]]
    plots.image_grid(tmp_path / "grid.png", rows, (8, 8), ("input", "output"))
    picture = imread(tmp_path / "grid.png")[..., 0]
    top, bottom = np.split(picture[: picture.shape[0] // 2 * 2], 2)
    assert top.mean() < bottom.mean() - 0.1  # white on black above black on white


def test_uint8_and_float_images_are_the_same_picture(tmp_path):
    x = torch.randint(0, 256, (4, 6), dtype=torch.uint8)
    plots.image_grid(tmp_path / "a.png", [x], (2, 3))
    plots.image_grid(tmp_path / "b.png", [x.float() / 255.0], (2, 3))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("latent", [1, 2, 5])
@pytest.mark.parametrize("classes", [3, 200])
def test_latent_scatter(tmp_path, latent, classes):
    plots.latent_scatter(tmp_path / "latent.png", torch.randn(200, latent), torch.arange(200) % classes)
    assert imread(tmp_path / "latent.png").shape[0] > 400


def test_principal_components():
    """Against the eigenvectors of the covariance."""
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([1.0, 5.0, 0.1, 2.0])
    points, share = plots.principal_components(x + 7.0)
    values, axes = torch.linalg.eigh(torch.cov(x.T))
    assert share == pytest.approx((values.flip(0)[:2] / values.sum()).tolist())
    want = (x - x.mean(0)) @ axes.flip(1)[:, :2]
    torch.testing.assert_close(points.abs(), want.abs())


def test_failed_picture_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"loss.png: cannot be written: No space left on device"):
        plots.loss_curve(tmp_path / "loss.png", [{"epoch": 1, "loss": 2.0}])
    assert list(tmp_path.iterdir()) == []
