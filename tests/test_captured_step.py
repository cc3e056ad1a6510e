"""The step as one piece: recorded and replayed on CUDA (here also with a recorder that does the work again), schedules and clipping."""

import math

import pytest
import torch
from oracle_step import Again, Refusing
from training_runs import images, small, untimed

from vae_fast import training
from vae_fast.training import capture


def weights_after(steps, *, batch_sizes=(20,), recorder=None, schedule=None, touch=None):
    """A linear model's weights after some steps, plain or captured; ``touch(step, optimizer)`` runs before each."""
    torch.manual_seed(3)
    model, data = torch.nn.Linear(16, 1), images() / 255.0
    optimizer = training.adam(model, lr=0.05)

    def plain(rows):
        optimizer.zero_grad()
        model(data[rows]).square().mean().backward()
        optimizer.step()

    told = []
    step = plain if recorder is None else capture.CapturedStep(plain, optimizer, recorder, told.append)
    scheduler = None if schedule is None else schedule(optimizer)
    order = torch.Generator().manual_seed(1)
    for i in range(steps):
        if touch is not None:
            touch(i, optimizer)
        step(torch.randperm(len(data), generator=order)[: batch_sizes[i % len(batch_sizes)]])
        if scheduler is not None:
            scheduler.step()
    return model.weight.detach().clone(), step, told


def test_replays_train_as_the_step_itself():
    recorder = Again()
    want, _, _ = weights_after(12)
    got, step, told = weights_after(12, recorder=recorder)
    torch.testing.assert_close(got, want)
    assert (step.replays, recorder.recorded, recorder.beside_calls, told) == (12 - capture.WARM_UP, 1, capture.WARM_UP, [])


def test_a_batch_of_another_size_runs_as_it_is():
    want, _, _ = weights_after(12, batch_sizes=(20, 20, 7))
    got, step, _ = weights_after(12, batch_sizes=(20, 20, 7), recorder=Again())
    torch.testing.assert_close(got, want)
    assert step.replays == 8 - capture.WARM_UP + 1  # a small batch came while warming up


@pytest.mark.parametrize("name", ["LambdaLR", "CosineAnnealingLR", "OneCycleLR"])
def test_torchs_schedulers_reach_the_recorded_step(name):
    options = {
        "LambdaLR": {"lr_lambda": lambda i: 0.9**i},
        "CosineAnnealingLR": {"T_max": 12},
        "OneCycleLR": {"max_lr": 0.1, "total_steps": 15},
    }

    def schedule(optimizer):
        return getattr(torch.optim.lr_scheduler, name)(optimizer, **options[name])

    want, _, _ = weights_after(12, schedule=schedule)
    recorder = Again()
    got, step, _ = weights_after(12, schedule=schedule, recorder=recorder)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)  # float32 rates
    assert step.replays == 12 - capture.WARM_UP
    assert recorder.recorded <= (12 if name == "OneCycleLR" else 1)  # which turns beta, a number, at every step


def test_settings_that_change_are_recorded_anew():
    def touch(i, optimizer):
        if i == 8:
            optimizer.param_groups[0]["weight_decay"] = 0.5

    recorder = Again()
    want, _, _ = weights_after(12, touch=touch)
    got, _, _ = weights_after(12, touch=touch, recorder=recorder)
    torch.testing.assert_close(got, want)
    assert recorder.recorded == 2


def test_what_cannot_be_recorded_runs_as_it_is_and_says_why_once():
    want, _, _ = weights_after(9)
    got, step, told = weights_after(9, recorder=Refusing())
    torch.testing.assert_close(got, want)
    assert step.replays == 0
    assert told == ["the training step cannot be recorded as a CUDA graph and runs without one: RuntimeError: operation not permitted"]


def test_an_optimizer_that_keeps_its_steps_on_the_host_is_refused():
    optimizer = torch.optim.Adagrad([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(TypeError, match="Adagrad keeps its steps on the host"):
        capture.make_capturable(optimizer)
    weight = torch.nn.Parameter(torch.ones(2))
    momentum = torch.optim.SGD([weight], lr=0.1, momentum=0.9)  # counts no steps
    weight.sum().backward()
    momentum.step()
    capture.make_capturable(momentum)
    assert isinstance(momentum.param_groups[0]["lr"], torch.Tensor)


def test_a_captured_runs_optimizer_becomes_plain_again():
    optimizer = training.adam(small(), lr=0.25)
    capture.make_capturable(optimizer)
    fresh = training.adam(small())
    fresh.load_state_dict(optimizer.state_dict())
    capture.make_plain(fresh)
    assert fresh.param_groups[0]["lr"] == 0.25
    assert fresh.param_groups[0]["capturable"] is False


# --- schedules and clipping in a run ------------------------------------------------------------------------------------


def test_warmup_by_its_definition():
    cosine = training.warmup(10, "cosine", 110)
    assert [cosine(i) for i in (0, 4, 9, 10)] == [0.1, 0.5, 1.0, 1.0]
    assert cosine(60) == pytest.approx(0.5)
    assert cosine(35) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.25)))
    assert cosine(110) == cosine(200) == 0.0
    assert [training.warmup(0)(i) for i in (0, 1000)] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((-1,), "steps=-1: expected at least 1"),
        ((5, "step"), "then='step'"),
        ((5, "linear"), "total=None: expected more than the 5 warm-up steps"),
        ((5, "cosine", 5), "total=5"),
    ],
)
def test_bad_warmup(args, words):
    with pytest.raises(ValueError, match=words):
        training.warmup(*args)


def rates_of_run(monkeypatch, tmp_path, epochs, resume=False):
    seen = []
    original = torch.optim.Adam.step

    def step(self, *args, **kwargs):
        seen.append(self.param_groups[0]["lr"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    torch.manual_seed(5)
    history = training.fit(
        small(), images(), epochs=epochs, batch_size=50, lr=0.01, schedule=training.warmup(6), checkpoint=tmp_path / "c.pt", resume=resume
    )
    monkeypatch.undo()
    return seen, history


def test_a_schedule_counts_the_steps_of_all_epochs_and_goes_on_when_resumed(tmp_path, monkeypatch):
    whole, history = rates_of_run(monkeypatch, tmp_path, 3)
    assert whole == pytest.approx([0.01 * min(1.0, (i + 1) / 6) for i in range(12)])
    first, _ = rates_of_run(monkeypatch, tmp_path, 1)
    rest, resumed = rates_of_run(monkeypatch, tmp_path, 3, resume=True)
    assert first + rest == pytest.approx(whole)
    assert untimed(resumed) == untimed(history)


def test_the_gradient_is_clipped():
    def run(max_grad_norm):
        torch.manual_seed(5)
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        training.fit(model, images(), epochs=1, batch_size=230, optimizer=optimizer, max_grad_norm=max_grad_norm)
        return (torch.cat([p.detach().flatten() for p in model.parameters()]) - before).norm().item()

    free = run(None)
    assert run(0.5 * free) == pytest.approx(0.5 * free, rel=1e-4)
    assert run(2.0 * free) == pytest.approx(free, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"schedule": 0.5}, TypeError, "schedule=0.5: expected a function of the step"),
        ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm=0.0: expected a positive number"),
        ({"max_grad_norm": "1"}, TypeError, "max_grad_norm='1'"),
    ],
)
def test_bad_arguments(options, kind, words):
    with pytest.raises(kind, match=words):
        training.fit(small(), images(), epochs=1, **options)


# --- CUDA ---------------------------------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize(
    "options",
    [{}, {"schedule": training.warmup(6)}, {"max_grad_norm": 1.0}, {"drop_last": False}],
    ids=["plain", "schedule", "max_grad_norm", "drop_last"],
)
def test_a_captured_run_learns_as_one_that_is_not(options, capsys):
    losses = []
    for records in (True, False):
        torch.manual_seed(5)
        history = training.fit(small().cuda(), images(), epochs=8, batch_size=50, capture=records, lr=5e-3, **options)
        losses.append([r["loss"] for r in history])
    captured, plain = (torch.tensor(x) for x in losses)
    assert capsys.readouterr().err == ""
    assert captured[-1] < captured[0]
    torch.testing.assert_close(captured, plain, rtol=0.05, atol=0.05)  # other noise
    assert len(set(captured.tolist())) == len(captured)  # and fresh at each replay


@pytest.mark.cuda
def test_a_model_that_waits_for_the_device_falls_back_with_one_line(capsys):
    class Waits(torch.nn.Linear):
        def loss(self, x):
            noise = torch.rand(len(x), 1, device=x.device)  # drawn before and after the recording that fails
            return (self(x.float()) * self.weight.sum().item() + noise).square().mean()

    history = training.fit(Waits(16, 1).cuda(), images(), epochs=2, batch_size=50)
    assert math.isfinite(history[-1]["loss"])
    assert capsys.readouterr().err.count("cannot be recorded as a CUDA graph") == 1


@pytest.mark.parametrize("ended", [False, True])
def test_a_recording_that_breaks_off_closes_its_pool(monkeypatch, ended):
    """Else what the stream allocates from then on goes into the pool of a graph that is gone."""
    calls = []

    class Recording:
        """torch.cuda.graph, whose end fails, and leaves its pool open, where the recording has been invalidated."""

        def __init__(self, graph, pool=None):
            self.pool = pool

        def __enter__(self):
            calls.append(("begin", self.pool))

        def __exit__(self, *error):
            if not ended:
                raise RuntimeError("operation failed due to a previous error during capture")

    class Stream:
        device_index = 3

    class Generator:
        def clone_state(self):
            return "before"

        def graphsafe_set_state(self, state):
            calls.append(("generator", state))

    def end(device, pool):
        if ended:
            raise RuntimeError("not recording to this pool")
        calls.append(("end", device, pool))

    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: calls.append(("stream", stream.device_index)))
    monkeypatch.setattr(torch.cuda, "default_generators", {3: Generator()})
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda device, pool: calls.append(("release", device, pool)), raising=False)
    recorder = capture.Graph.__new__(capture.Graph)
    recorder.device = torch.device("cuda", 3)

    def work():
        raise ValueError("cannot be recorded")

    with pytest.raises((ValueError, RuntimeError)):
        recorder.record(work)
    closed = [] if ended else [("end", 3, (0, 7)), ("release", 3, (0, 7))]
    assert calls == [("begin", (0, 7)), ("stream", 3), ("generator", "before"), *closed]
