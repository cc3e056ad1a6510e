"""Whose a directory is: a run's own files are replaced, nobody else's; one run at a time; and how single files are written."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
from one_line_errors import one_line
from training_runs import run

from vae_fast import cli
from vae_fast.cli._directory import FILES, MARKER, run_directory
from vae_fast.errors import FileError
from vae_fast.files import atomic_write, hidden_name, is_leftover_of
from vae_fast.training import checkpoint

FAST = ["--hidden", "8", "--latent", "2", "--batch-size", "500", "--epochs", "1", "--no-pictures"]
MIXTURE = ["--data", "two-moons", "-k", "2", "--points", "50", "--max-iter", "2", "--no-pictures"]


def train(out, *options):
    return cli.main(["train", "--out", str(out), *FAST, *map(str, options)])


def mog(out, *options):
    return cli.main(["mog", "--out", str(out), *MIXTURE, *map(str, options)])


# --- files that are not ours ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [train, mog])
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_files_that_are_not_ours_stay(tmp_path, capsys, command, overwrite):
    mine = {"config.json": '{"name": "my app"}', "metrics.csv": "a,b\n1,2\n", ".x.tmp": "mine", ".config.json.mine.tmp": "mine"}
    for name, text in mine.items():
        (tmp_path / name).write_text(text)
    one_line(capsys, command(tmp_path, *overwrite), f"{tmp_path}: config.json, metrics.csv: not written by a run here", "--out")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == mine


@pytest.mark.parametrize("name", sorted({*FILES["train"], *FILES["mog"]}))
def test_each_name_we_write_is_looked_at(tmp_path, name):
    (tmp_path / name).symlink_to("nowhere")
    command = "train" if name in FILES["train"] else "mog"
    with pytest.raises(FileError, match=f"{re.escape(name)}: not written by a run"), run_directory(tmp_path, command, overwrite=True):
        pass
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_other_names_are_nobodys_business(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".x.tmp").write_text("mine")
    assert train(tmp_path) == 0
    assert train(tmp_path, "--overwrite") == 0
    assert {(tmp_path / name).read_text() for name in ("notes.txt", ".x.tmp")} == {"mine"}


def test_one_command_replaces_what_the_other_wrote_and_no_more(tmp_path, capsys):
    assert mog(tmp_path) == 0
    capsys.readouterr()
    one_line(capsys, train(tmp_path), "already holds a run", "--overwrite")
    (tmp_path / "loss.png").write_text("mine")  # a name of the other command's
    one_line(capsys, train(tmp_path, "--overwrite"), "loss.png: not written by a run here")
    assert (tmp_path / "mixture.npz").exists()
    (tmp_path / "loss.png").unlink()
    assert train(tmp_path, "--overwrite") == 0
    assert not (tmp_path / "mixture.npz").exists()


def test_a_run_of_an_earlier_release_is_a_run(tmp_path, capsys):
    """It has no mark; its config.json says whose it is."""
    assert train(tmp_path) == 0
    capsys.readouterr()
    (tmp_path / MARKER).unlink()
    one_line(capsys, train(tmp_path), "already holds a run", "--resume", "--overwrite")
    assert train(tmp_path, "--resume", "--epochs", 2) == 0
    assert (tmp_path / MARKER).exists()
    (tmp_path / MARKER).unlink()
    assert train(tmp_path, "--overwrite") == 0


def test_a_checkpoint_alone_can_be_resumed(tmp_path):
    assert train(tmp_path / "a") == 0
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "checkpoint.pt").rename(tmp_path / "b" / "checkpoint.pt")
    assert train(tmp_path / "b", "--resume", "--epochs", 2) == 0
    assert {p.name for p in (tmp_path / "b").iterdir()} == {MARKER, "checkpoint.pt", "config.json", "metrics.csv", "results.json"}


@pytest.mark.parametrize("mark", ['{"format": "other"}', "hello", '{"format": "vae_fast.run"}', "[" * 100_000, "link"])
def test_a_mark_that_is_none(tmp_path, mark):
    if mark == "link":
        (tmp_path / "mine").write_text("")
        (tmp_path / MARKER).symlink_to(tmp_path / "mine")
    else:
        (tmp_path / MARKER).write_text(mark)
    with pytest.raises(FileError, match=f"{re.escape(MARKER)}: not the mark of a run"), run_directory(tmp_path, "train"):
        pass


def test_a_forged_mark_names_no_other_files(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    (out / MARKER).write_text(json.dumps({"format": "vae_fast.run", "files": ["../precious.txt", "thesis.tex", 3, "loss.png"]}))
    with run_directory(out, "train", overwrite=True):
        pass
    assert (tmp_path / "precious.txt").exists()
    assert (out / "thesis.tex").exists()


@pytest.mark.parametrize("command", [["train", *FAST], ["mog", *MIXTURE], ["bench", "--quick"]])
@pytest.mark.parametrize("name", ["", "a\0b"])
def test_an_empty_name_is_no_directory(tmp_path, monkeypatch, capsys, command, name):
    monkeypatch.chdir(tmp_path)
    one_line(capsys, cli.main([*command, "--out", name]), "--out", "expected a name")
    assert list(tmp_path.iterdir()) == []


def test_results_of_a_benchmark_replace_results_alone(tmp_path, capsys):
    bench = ["bench", "--quick", "--suite", "overhead", "--seconds", "0.001", "--budget", "0", "--no-pictures", "--out", str(tmp_path)]
    (tmp_path / "overhead.json").write_text('{"mine": 1}')
    one_line(capsys, cli.main(bench), f"{tmp_path / 'overhead.json'}: --out would replace it", "not known to be a result")
    (tmp_path / "overhead.json").rename(tmp_path / "overhead.md")
    one_line(capsys, cli.main(bench), f"{tmp_path / 'overhead.md'}: --out would replace it")
    assert (tmp_path / "overhead.md").read_text() == '{"mine": 1}'


# --- one run at a time ------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from vae_fast.cli._directory import run_directory
with run_directory(Path(sys.argv[1]), "train"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_runs_do_not_share_a_directory(tmp_path, capsys):
    out = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        for options in ([], ["--overwrite"]):
            one_line(capsys, train(out, *options), f"{out}: another run is writing there")
        assert [p.name for p in out.iterdir()] == [MARKER]
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert train(out) == 0  # the lock went with the process


def test_the_directory_is_free_once_a_run_failed(tmp_path, capsys):
    assert train(tmp_path, "--lr", "1e30", "--epochs", 50) == 2
    assert train(tmp_path) == 0
    assert not (tmp_path / "results.json").is_symlink()


# --- single files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_permissions_are_those_of_the_umask_or_of_what_is_replaced(tmp_path, umask):
    path = tmp_path / "a.txt"
    for mode in (0o640, 0o600, 0o664, 0o444):
        if mode != 0o640:
            path.chmod(mode)
        with atomic_write(path) as file:
            file.write(b"x")
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    """Neither at the name the hidden file had in earlier releases, nor at the one it will have."""
    victim, path = tmp_path / "victim", tmp_path / "a.txt"
    victim.write_text("precious")
    (tmp_path / f".a.txt.{os.getpid()}.tmp").symlink_to(victim)
    with atomic_write(path) as file:
        file.write(b"new")
    assert (victim.read_text(), path.read_text()) == ("precious", "new")
    monkeypatch.setattr("secrets.token_hex", lambda n: "00" * n)
    hidden_name(path).symlink_to(victim)
    with pytest.raises(FileError, match=r"a\.txt: cannot be written: File exists"), atomic_write(path) as file:
        file.write(b"newer")
    assert victim.read_text() == "precious"


def test_the_checkpoint_before_is_kept_without_a_name_that_can_be_planted(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    planted = tmp_path / f".checkpoint.previous.pt.{os.getpid()}.tmp"
    planted.symlink_to(victim)
    run(tmp_path, 2, keep_previous=True)
    assert planted.is_symlink()
    assert victim.read_text() == "precious"
    assert checkpoint.load(tmp_path / "checkpoint.previous.pt")["epoch"] == 1


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    (tmp_path / "target").write_text("precious")
    (tmp_path / "a").symlink_to(tmp_path / "target")
    with atomic_write(tmp_path / "a") as file:
        file.write(b"new")
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "target").read_text() == "precious"


def test_names_of_any_length(tmp_path):
    path = tmp_path / ("ü" * 120 + ".npy")
    with atomic_write(path) as file:
        np.save(file, np.zeros(3))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert is_leftover_of(hidden_name(path).name, path)


def test_a_killed_writer_leaves_what_is_known_again(tmp_path):
    program = f"""
import time
from pathlib import Path
from vae_fast.files import atomic_write
with atomic_write(Path({str(tmp_path / "a.pt")!r})) as file:
    print("open", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "open\n"
        other.kill()
        other.wait()
    (left,) = tmp_path.iterdir()
    assert is_leftover_of(left.name, tmp_path / "a.pt")
    assert time.time() - left.stat().st_mtime < 300
