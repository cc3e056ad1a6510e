"""Checkpoints that are damaged, or made with care: the right values, or one line, and nothing is adopted."""

import copy
import io
import os
import warnings
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

from vae_fast import _archive as archive
from vae_fast.errors import FileError
from vae_fast.files import atomic_write
from vae_fast.training import checkpoint

CONFIG = {"lr": 1e-3, "n": 6, "batch_size": 2}


def small(optimizer=None, steps=1):
    torch.manual_seed(1)
    model = nn.Linear(2, 3)
    optimizer = (optimizer or (lambda p: torch.optim.Adam(p, fused=True)))(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(1, 2)).square().sum().backward()
        optimizer.step()
    return {"model": model, "optimizer": optimizer, "shuffle": torch.Generator().manual_seed(3)}


def history(epochs=1):
    return [{"epoch": i + 1, "loss": 2.0, "kl": 1.0} for i in range(epochs)]


def flat(value):
    """Values and layouts that can be compared."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.stride(), str(value.dtype), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {k: flat(v) for k, v in value.items()}
    return [flat(v) for v in value] if isinstance(value, list | tuple) else value


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, **small(), history=history(), config=CONFIG)
    return path


def each_flip(path, bits):
    """What :func:`checkpoint.load` says to every byte with one bit flipped: True for the right values, else the error."""
    want, raw = flat(checkpoint.load(path)), path.read_bytes()
    handle = os.open(path, os.O_RDWR)
    try:
        for at, byte in enumerate(raw):
            for bit in bits(at):
                os.pwrite(handle, bytes([byte ^ (1 << bit)]), at)
                try:
                    yield at, flat(checkpoint.load(path)) == want
                except FileError as error:
                    yield at, error
            os.pwrite(handle, bytes([byte]), at)
    finally:
        os.close(handle)


def test_every_byte_that_flips_is_noticed(path):
    for at, said in each_flip(path, lambda at: [at % 8]):
        assert isinstance(said, FileError), f"byte {at} was not noticed"
        assert str(said).startswith(f"{path}: ")
        assert "\n" not in str(said)


def old(path, state):
    """As the first release wrote it."""
    torch.save({**state, "version": 1}, path)


def test_the_first_format_version_still_loads(path):
    state = checkpoint.load(path)
    old(path, state)
    assert flat(checkpoint.load(path)) == flat({**state, "version": 1})
    parts = small(steps=0)
    assert checkpoint.restore(path, **parts, config=CONFIG) == history()
    assert torch.equal(parts["model"].weight, state["model"]["weight"])
    checkpoint.save(path, **parts, history=history(), config=CONFIG)
    assert checkpoint.load(path)["version"] == 2


def test_the_first_format_version_never_loads_other_values(path):
    """It has no digest: what flips in its directory and does not matter may pass; other numbers may not."""
    old(path, checkpoint.load(path))
    raw = path.read_bytes()
    directory = raw.index(b"PK\1\2")
    passed = []
    for at, said in each_flip(path, lambda at: [at % 8, (at + 3) % 8] if at >= directory else [at % 8] if at % 9 == 0 else []):
        assert said is not False, f"byte {at}: other values were loaded"
        passed.append(said is True)
    assert not all(passed)


def test_a_digest_that_is_gone_is_missed(path):
    state = checkpoint.load(path)
    torch.save(state, path)
    with pytest.raises(FileError, match="the checksum at its end is missing"):
        checkpoint.load(path)


def test_torch_reads_it(path):
    assert torch.load(path, weights_only=True)["format"] == "vae_fast.checkpoint"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


# --- made with care ---------------------------------------------------------------------------------------------------------


def forge(path, state):
    """A file with a right digest, whatever is in it."""
    with atomic_write(path) as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "packed", lambda value: value)
        archive.write_archive(file, state)


def refused(path, edit, words, optimizer=None):
    state = checkpoint.load(path)
    edit(state)
    forge(path, state)
    parts = small(optimizer, steps=0)
    before = flat([parts["model"].state_dict(), parts["optimizer"].state_dict(), parts["shuffle"].get_state(), torch.get_rng_state()])
    with pytest.raises(FileError, match=words) as error:
        checkpoint.restore(path, **parts, config=CONFIG)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    after = [parts["model"].state_dict(), parts["optimizer"].state_dict(), parts["shuffle"].get_state(), torch.get_rng_state()]
    assert flat(after) == before


def moments(**values):
    return lambda s: s["optimizer"]["state"][0].update(values)


def group(**values):
    return lambda s: s["optimizer"]["param_groups"][0].update(values)


def generator(left, position):
    state = torch.Generator().get_state()
    state[8:12] = torch.tensor([left], dtype=torch.int32).view(torch.uint8)
    state[16:24] = torch.tensor([position], dtype=torch.int64).view(torch.uint8)
    return state


def nest(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (moments(exp_avg=torch.tensor(0.0)), r"parameter 0: exp_avg is \(\) torch.float32, expected \(3, 2\)"),
        (moments(exp_avg_sq=torch.zeros(1).expand(3, 2)), r"strides \(0, 0\)"),
        (moments(exp_avg=torch.zeros(3, 2).double()), "torch.float64, expected .*torch.float32"),
        (moments(exp_avg=torch.zeros(2, 3)), r"exp_avg is \(2, 3\)"),
        (moments(exp_avg=0.5), "exp_avg is float"),
        (moments(step=torch.zeros(3, 2)), r"step is \(3, 2\) torch.float32, expected \(\)"),
        (moments(step=torch.tensor(1)), "step is .*int64"),
        (moments(extra=torch.zeros(3, 2)), "holds step, exp_avg, exp_avg_sq, extra, expected step, exp_avg, exp_avg_sq"),
        (lambda s: s["optimizer"]["state"][0].pop("step"), "holds exp_avg, exp_avg_sq, expected step"),
        (lambda s: s["optimizer"]["state"].update({7: {}}), "for parameter 7: expected 0 to 1"),
        (lambda s: s["optimizer"]["state"].update(x={}), "a dictionary for each number"),
        (lambda s: s["optimizer"].update(state=[]), "optimizer state"),
        (lambda s: s["optimizer"].update(param_groups=[3]), "optimizer state"),
        (group(params=[0, 0]), r"parameters \[0, 0\]"),
        (group(lr="fast"), "lr is 'fast', expected one like 0.001"),
        (group(lr=float("nan")), "lr is nan"),
        (group(betas=(0.9,)), "betas is"),
        (group(betas=None), "betas is None"),
        (group(amsgrad=True), "amsgrad is True, expected one like False"),
        (group(surprise="?"), "options surprise"),
        (lambda s: s["optimizer"]["param_groups"][0].pop("eps"), "eps is missing"),
        (lambda s: s["model"].update(weight=torch.zeros(1).expand(3, 2)), r"strides \(0, 0\)"),
        (lambda s: s["model"].update(weight=torch.zeros(3, 2).to_sparse()), "tensor of another kind"),
        (lambda s: s["model"].update(weight=torch.zeros(3, 2, device="meta")), "expected a dense one on the CPU"),
        (lambda s: s["model"].update(weight=torch.zeros(3, 2, dtype=torch.complex64).conj()), "another kind|another model"),
        (lambda s: s["model"].update(weight=[1.0]), "weight is list"),
        (lambda s: s["model"].update({3: torch.zeros(1)}), "model: expected names"),
        (lambda s: s["config"].update(lr=torch.zeros(2)), "config: expected numbers and strings, not tensors"),
        (lambda s: s["config"].update({3: 1}), "config: expected names"),
        (lambda s: s["config"].update(lr=nest(12)), "containers deep"),
        (lambda s: s["config"].update(lr=10**40), "integer of 133 bits"),
        (lambda s: s["config"].update(lr={1, 2}), "builtins.set"),
        (lambda s: s.update(epoch=True), "'epoch' is bool"),
        (lambda s: s["history"][0].update(loss=torch.zeros(())), "one record of numbers"),
        (lambda s: s["history"][0].update(epoch=4), "one record of numbers"),
        (lambda s: s["history"][0].update({3: 1.0}), "one record of numbers"),
        (lambda s: s.update(partial={"step": 4, "loss": 0.0, "kl": 0.0, "seconds": 0.0}), "step 4 after"),
        (lambda s: s.update(partial={"step": -1, "loss": 0.0, "kl": 0.0, "seconds": 0.0}), "step -1"),
        (lambda s: s.update(partial={"step": 1.5, "loss": 0.0, "kl": 0.0, "seconds": 0.0}), "step 1.5"),
        (lambda s: s.update(partial={"step": 1, "loss": 0.0, "kl": 0.0, "seconds": float("inf")}), "after inf s"),
        (lambda s: s.update(partial=[1]), "'partial' to hold the numbers"),
        (lambda s: s["rng"].update(ranks=5), "random number generator state: expected 'ranks'"),
        (lambda s: s["rng"].update(ranks={2: {}}), "expected 'ranks' to number"),
        (lambda s: s["rng"].update(ranks={1: {}}), "rng of rank 1 holds no state"),
        (lambda s: s["rng"].update(cpu=torch.zeros(5056, dtype=torch.uint8)), "random number generator"),
        (lambda s: s["rng"].update(cuda=3), "cuda is int"),
        (lambda s: s.update(shuffle=generator(624, 624)), "624 numbers left at position 624"),
        (lambda s: s.update(shuffle=torch.zeros(5056)), "random number generator"),
        (lambda s: s.update(version="2"), "format version '2'"),
        (lambda s: s.update(version=torch.zeros(2)), "format version"),
    ],
)
def test_what_no_run_writes(path, edit, words):
    refused(path, edit, words)


@pytest.mark.parametrize("value", [torch.tensor(0.0), torch.zeros(2, 3), torch.zeros(1).expand(3, 2)])
def test_a_crafted_momentum(path, value):
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, fused=True)

    checkpoint.save(path, **small(sgd), history=history(), config=CONFIG)
    refused(path, moments(momentum_buffer=value), r"momentum_buffer is|strides \(0, 0\)", sgd)


def test_moments_are_laid_out_as_their_weights(tmp_path):
    """A fused step goes through both as one piece of memory, in the order they lie in."""

    def parts():
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), fused=True), "shuffle": torch.Generator()}

    def step(model, optimizer):
        optimizer.zero_grad()
        model(torch.arange(75.0).reshape(1, 3, 5, 5)).square().mean().backward()
        optimizer.step()

    a, b = parts(), parts()
    step(a["model"], a["optimizer"])
    state = copy.deepcopy(checkpoint.snapshot(**{**a, "shuffle": a["shuffle"].get_state()}, history=[], config={}))
    state["rng"] = checkpoint.rng_state(torch.device("cpu"))
    for moment in ("exp_avg", "exp_avg_sq"):
        state["optimizer"]["state"][0][moment] = state["optimizer"]["state"][0][moment].contiguous()
    checkpoint.write(tmp_path / "a.pt", state)
    checkpoint.restore(tmp_path / "a.pt", **b, config={})
    assert b["optimizer"].state[b["model"].weight]["exp_avg"].stride() == b["model"].weight.stride()
    for p in (a, b):
        step(p["model"], p["optimizer"])
    assert torch.equal(a["model"].weight, b["model"].weight)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, amsgrad=True),
        lambda p: torch.optim.Adam(p, foreach=False),
        lambda p: torch.optim.AdamW(p, fused=True),
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5),
        lambda p: torch.optim.NAdam(p),
        lambda p: torch.optim.RMSprop(p, momentum=0.1, centered=True),
        lambda p: torch.optim.Adagrad(p),
        lambda p: torch.optim.Rprop(p),
        lambda p: torch.optim.Adafactor(p),
        lambda p: torch.optim.ASGD(p),
    ],
)
def test_every_optimizer_of_torch_is_taken_up(tmp_path, make):
    a, b = small(make, steps=2), small(make, steps=0)
    checkpoint.save(tmp_path / "a.pt", **a, history=history(), config=CONFIG)
    checkpoint.restore(tmp_path / "a.pt", **b, config=CONFIG)
    assert flat(a["optimizer"].state_dict()) == flat(b["optimizer"].state_dict())


def test_an_optimizer_of_ones_own(tmp_path):
    class Own(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.1})
            self.taken = 0

        def step(self):
            self.taken += 1
            for g in self.param_groups:
                for p in g["params"]:
                    self.state[p].setdefault("sum", torch.zeros_like(p)).add_(p.grad)
                    self.state[p]["norm"] = p.grad.norm()

    path = tmp_path / "a.pt"
    checkpoint.save(path, **small(Own), history=history(), config=CONFIG)
    b = small(Own, steps=0)
    checkpoint.restore(path, **b, config=CONFIG)
    assert b["optimizer"].taken == 0
    refused(path, moments(sum=torch.zeros(5)), r"sum is \(5,\) torch.float32, expected \(3, 2\)", Own)


def test_a_schedule_of_torchs_own_may_have_changed_the_options(tmp_path):
    a = small()
    cycle = torch.optim.lr_scheduler.OneCycleLR(a["optimizer"], 0.1, total_steps=5)
    a["optimizer"].step()
    cycle.step()
    checkpoint.save(tmp_path / "a.pt", **a, history=history(), config=CONFIG)
    b = small(steps=0)
    checkpoint.restore(tmp_path / "a.pt", **b, config=CONFIG)
    assert b["optimizer"].param_groups[0]["lr"] == a["optimizer"].param_groups[0]["lr"] != 1e-3


# --- what cannot be written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.float32, r"state\['config'\]\['x'\] is a torch.dtype"),
        ({1.5: 2}, "key of type float"),
        (torch.zeros(3).to_sparse(), "tensor of another kind"),
        (2**70, "integer of 71 bits"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, value, words):
    with pytest.raises(ValueError, match=words):
        checkpoint.save(tmp_path / "a.pt", **small(), history=[], config={"x": value})
    assert list(tmp_path.iterdir()) == []


def test_tensors_with_gaps_are_written_dense(tmp_path):
    parts = small()
    parts["model"].register_buffer("every_other", torch.arange(8.0)[::2])
    checkpoint.save(tmp_path / "a.pt", **parts, history=[], config={})
    assert checkpoint.load(tmp_path / "a.pt")["model"]["every_other"].tolist() == [0.0, 2.0, 4.0, 6.0]


# --- archives that claim more than they hold ----------------------------------------------------------------------------------


def test_a_compressed_archive_is_not_unpacked(path):
    state = checkpoint.load(path)
    state["model"]["weight"] = torch.zeros(2**24)
    plain = io.BytesIO()
    torch.save({**state, "version": 1}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert path.stat().st_size < 2**20
    with pytest.raises(FileError, match="compressed parts"):
        checkpoint.load(path)


def test_a_file_that_is_all_hole(path):
    with path.open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(FileError, match="its end is not that of an archive"):
        checkpoint.load(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.pt")
    with pytest.raises(FileError, match="not a file"):
        checkpoint.load(tmp_path / "a.pt")
    with pytest.raises(FileError, match="Is a directory"):
        checkpoint.load(tmp_path)


def test_ordered_dictionaries_are_plain(path):
    state = checkpoint.load(path)
    assert archive.fault_in(OrderedDict(state)) is None
    assert flat(archive.packed(copy.copy(state))) == flat(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint.load(path)
