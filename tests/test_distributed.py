"""Two processes on the CPU against one: gradients, checkpoints, lost processes, and what they say."""

import os
import re
import signal
import time

import interpreters
import pytest
import torch
from distributed_runs import CASES, Plain, assert_close, enter, free_port, message, noisy_run, numbers, plain_run

from vae_fast import training
from vae_fast.errors import FileError, Terminated
from vae_fast.training import checkpoint
from vae_fast.training.distributed import World

# --- one gradient -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one_large_batch(pair, name):
    n, options = CASES[name]
    want = plain_run(n, **{k: v for k, v in options.items() if k not in ("shard", "accumulate")})
    for results in pair[0]:
        assert_close(results[name], want, 1e-6 if "bf16" not in name else 3e-2)


def test_each_row_is_seen_once_an_epoch_in_the_order_of_one_process(pair):
    ranks, _ = pair
    batches = [[a + b for a, b in zip(*(r[name]["seen"] for r in ranks), strict=True)] for name in ("even", "uneven")]
    for got, n in zip(batches, (32, 29), strict=True):
        want = plain_run(n, drop_last=n == 32)["seen"]
        assert got == want
    # The rank without a row takes part with one that does not count.
    assert [r["a rank without a row"]["seen"][3] for r in ranks] == 2 * [ranks[0]["a rank without a row"]["seen"][3]]


@pytest.mark.parametrize("accumulate", [2, 3, 8])
def test_accumulation_in_one_process(accumulate):
    assert_close(plain_run(29, drop_last=False, accumulate=accumulate), plain_run(29, drop_last=False), 1e-9)


def test_noise_is_each_rank_s_own_and_reproducible(pair):
    (a, b), _ = pair
    assert a["initial seed"] != b["initial seed"]
    assert a["noise"][0] == b["noise"][0]  # one loss, whoever says it
    assert a["noise"][0][:2] == a["again"][0]


# --- checkpoints ------------------------------------------------------------------------------------------------------


def same_bits(a, b):
    return a[0] == b[0] and all(torch.equal(a[1][k], b[1][k]) for k in b[1])


def test_resumed_by_as_many_processes_to_the_same_bits(pair):
    for results in pair[0]:
        assert same_bits(results["resumed"], results["noise"])


def test_sigterm_to_one_process_stops_all_at_the_same_step(pair, capfd):
    for results in pair[0]:
        assert "terminated" not in results
        assert results["calls"] == 7
        assert same_bits(results["after SIGTERM"], results["noise"])


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_resumed_by_another_number_of_processes(pair, tmp_path, capsys, kind):
    ranks, folder = pair
    unbroken = plain_run(29, epochs=4, drop_last=False)
    for results in ranks:  # one, then two
        assert_close(results[f"from one, {kind}"], unbroken, 1e-6)
    path = folder / f"two-{kind}.pt"
    before = path.read_bytes()
    got = plain_run(29, epochs=4, drop_last=False, checkpoint=path, resume=True)
    path.write_bytes(before)
    assert_close(got, unbroken, 1e-6)
    assert len(got["seen"]) == 2 * (4 + 1)  # two epochs of four batches, and their validation
    assert [rows for rows in got["seen"] if len(rows) != 11] == [rows for rows in unbroken["seen"] if len(rows) != 11][8:]
    assert re.search(r"written by 2 process\(es\), this run has 1.*continuing after 2 epochs", capsys.readouterr().err)


def test_only_rank_0_writes(pair):
    _, folder = pair
    names = {p.name for p in folder.iterdir()}
    assert not any(name.endswith(".tmp") for name in names)
    assert {"a.pt", "a.previous.pt", "b.pt"} <= names
    state = checkpoint.load(folder / "a.pt")
    assert checkpoint.world_size_of(state) == 2
    assert not torch.equal(state["rng"]["cpu"], state["rng"]["ranks"][1]["cpu"])


def test_checkpoint_inside_an_epoch_resumes_to_the_same_bits(tmp_path, capsys):
    want = noisy_run(tmp_path / "a.pt", epochs=2)
    calls = []

    def dies(x):
        calls.append(1)
        if len(calls) == 9:  # the fourth step of the second epoch of five
            raise KeyboardInterrupt
        return x

    with pytest.raises(KeyboardInterrupt):
        noisy_run(tmp_path / "b.pt", epochs=2, transform=dies, checkpoint_every=2)
    state = checkpoint.load(tmp_path / "b.pt")
    assert (state["epoch"], state["partial"]["step"]) == (1, 3)
    assert same_bits(noisy_run(tmp_path / "b.pt", epochs=2, resume=True), want)
    assert "continuing after 1 epochs and 3 steps" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_broken_newest_checkpoint_gives_way_to_the_one_before(tmp_path, capsys, damage):
    path = tmp_path / "a.pt"
    want = noisy_run(path, epochs=3, keep_previous=True)
    assert [checkpoint.load(p)["epoch"] for p in (path, checkpoint.previous_of(path))] == [3, 2]
    path.write_bytes(path.read_bytes()[:999])
    if damage == "gone":
        path.unlink()
    assert same_bits(noisy_run(path, epochs=3, resume=True), want)
    assert re.search(r"a.pt: .*fell back to a.previous.pt; continuing after 2 epochs", capsys.readouterr().err)
    path.write_bytes(b"")
    checkpoint.previous_of(path).write_bytes(b"")
    with pytest.raises(FileError, match=r"a.pt: not a checkpoint, broken or truncated"):
        noisy_run(path, epochs=3, resume=True)


def test_full_disk_leaves_the_last_two(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    noisy_run(path, epochs=2, keep_previous=True)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="No space left on device"):
        noisy_run(path, epochs=3, keep_previous=True, resume=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_sigterm_in_one_process(tmp_path, capsys):
    want = noisy_run(tmp_path / "a.pt", epochs=2)
    calls = []

    def terminate(x):
        calls.append(1)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return x

    with pytest.raises(Terminated) as stop:
        noisy_run(tmp_path / "b.pt", epochs=2, transform=terminate)
    assert (stop.value.code, len(calls)) == (143, 7)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert "SIGTERM: " in capsys.readouterr().err
    assert same_bits(noisy_run(tmp_path / "b.pt", epochs=2, resume=True), want)


# --- what does not fit, who does not come -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("batch sizes", "batch_size is 8 on rank 0 and 4 on rank 1"),
        ("data", "n is 32 on rank 0 and 33 on rank 1"),
        ("models", "model is .* on rank 0 and .* on rank 1"),
        ("argument on one", "accumulate=0"),
        ("rows", r"batch_size=8: expected at least one row for each of 2 process\(es\) and accumulate=5 pieces"),
        ("broken", "broken.pt: not a checkpoint, broken or truncated"),
        ("other weights", "was trained with batch_size=50"),
        ("full disk", "below.pt: cannot be written"),
        ("sharded late", "expected optimizer=None"),
    ],
)
def test_one_clear_error_in_every_process(pair, name, words):
    for results in pair[0]:
        _, said, seconds = results["errors"][name]
        assert re.search(words, said)
        assert "\n" not in said
        assert seconds < 5


def lose(rank, folder, port):
    """Rank 1 is silent for longer than the time-out, then gone."""
    enter(rank, port)
    model, steps = Plain(), []

    def late(x):
        steps.append(1)
        if rank == 1 and len(steps) == 3:
            time.sleep(4)
            os._exit(0)
        return x

    if rank == 0:
        fit = {"epochs": 2, "batch_size": 8, "progress": False, "timeout": 2.0}
        torch.save(message(lambda: training.fit(model, numbers(32), transform=late, **fit)), folder / "said")
        os._exit(0)
    training.fit(model, numbers(32), transform=late, epochs=2, batch_size=8, progress=False, timeout=2.0)


def test_process_that_does_not_answer_is_given_up(tmp_path):
    interpreters.spawn(lose, (tmp_path, free_port()), 2)
    kind, said, seconds = torch.load(tmp_path / "said")
    assert kind == "RunError"
    assert "another process of the run was lost or did not answer within 2 s" in said
    assert seconds < 12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"accumulate": 0}, "accumulate=0"),
        ({"distributed": "yes"}, "distributed='yes'"),
        ({"timeout": 0.0}, "timeout=0.0"),
        ({"shard": True}, "shard=True: expected a process group"),
        ({"checkpoint_every": 3}, "checkpoint_every=3: expected a checkpoint"),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        plain_run(32, **options)


def test_world_of_one():
    world = World()
    assert world.gather(3) == [3]
    assert world.on_main(lambda: 4) == world.together(lambda: 4) == 4
    state = torch.get_rng_state()
    world.reseed()
    assert torch.equal(torch.get_rng_state(), state)
