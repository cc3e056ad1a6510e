"""How times of a CUDA device are taken, on a stand-in with a host's and a device's clock: what a real one shows, without noise."""

import pytest
import torch
from bench_results import here, synthetic
from cuda_stand_in import Device

from vae_fast.bench import device_time, measure, report, suites
from vae_fast.bench.case import Case, Work, leaf, plain
from vae_fast.bench.limits import Probe
from vae_fast.bench.options import Options

HOST, FORWARD, BACKWARD = 40e-6, 62e-6, 30e-6  # an idle device would wait for the host longer than it computes


@pytest.fixture
def device(monkeypatch):
    return Device(monkeypatch)


def work_on(device, *, waits=False, slow_host=1.0, sets=1):
    """Two kernels forward and one backward, enqueued by a slow host."""

    class Op(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            for _ in range(2):
                device.kernel(slow_host * HOST, FORWARD / 2)
            if waits:
                device.wait()
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            device.kernel(slow_host * HOST, BACKWARD)
            return g

    return Work(Op.apply, [(leaf(torch.zeros(2)),) for _ in range(sets)], None)


def timed(contender, work):
    return measure.in_turns({contender: work}, "cuda", seconds=0.001, rounds=2)[contender]


@pytest.mark.parametrize("sets", [1, 3])
def test_a_replayed_graph_holds_nothing_but_the_device(device, sets):
    times = timed("ours", work_on(device, sets=sets))
    assert (times.timer, times.not_replayed) == ("graph", "")
    for direction, seconds in (("both", FORWARD + BACKWARD), ("forward", FORWARD), ("backward", BACKWARD)):
        # the record of an event is all of the host's that can come between: once a replay, which has many calls
        assert times.quantiles(direction)[0] == pytest.approx(seconds, rel=0.005), direction


def test_a_replay_has_many_calls(device):
    timer = device_time.timer_of("ours", work_on(device), "cuda")
    before = device.free
    timer.sample()
    assert device.free - before >= device_time.REPLAY


def test_work_without_gradients_is_recorded_and_replayed_once(device):
    def forward(x):
        device.kernel(HOST, 4 * device_time.REPLAY)
        return x

    times = timed("ours", Work(forward, [(torch.zeros(2),)], None))
    assert times.quantiles("forward")[0] == times.quantiles()[0] == pytest.approx(4 * device_time.REPLAY)
    assert times.quantiles("backward")[0] == 0.0
    assert device.recordings == 1


def test_what_brings_graphs_of_its_own_is_enqueued_behind_a_busy_stream(device):
    times = timed("compile-max", work_on(device))
    assert (times.timer, times.not_replayed) == ("busy", "it replays graphs of its own")
    assert times.quantiles("forward")[0] == pytest.approx(FORWARD, rel=1e-3)
    assert times.quantiles("backward")[0] == pytest.approx(BACKWARD, rel=1e-3)
    assert device.replays == 0


def test_a_slow_host_gets_a_longer_lead(device):
    """The first lead is over long before all is enqueued, and nothing of that call is kept."""
    times = timed("compile-max", work_on(device, slow_host=50.0))
    assert times.timer == "busy"
    assert times.quantiles("forward")[0] == pytest.approx(FORWARD, rel=1e-3)


def test_what_cannot_be_captured_and_does_not_wait_is_enqueued_behind_a_busy_stream(device):
    work = work_on(device)
    forward = work.function

    def refuses(x):
        if device.recording is not None:
            raise ValueError("draws on the host")
        return forward(x)

    work.function = refuses
    times = timed("eager", work)
    assert (times.timer, times.not_replayed) == ("busy", "ValueError: draws on the host")
    assert times.quantiles()[0] == pytest.approx(FORWARD + BACKWARD, rel=1e-3)


def test_what_waits_for_the_device_says_that_the_hosts_time_is_in_it(device):
    times = timed("eager", work_on(device, waits=True))
    assert times.timer == "events"
    want = "RuntimeError: operation not permitted when stream is capturing; the device, kept busy for 51 ms, had caught up with the host"
    assert times.not_replayed.startswith(want)
    assert times.quantiles("forward")[0] > FORWARD + HOST / 2


def test_work_that_begins_to_wait_is_timed_anew_in_the_other_way(device):
    work = work_on(device)
    forward, calls = work.function, [0]

    def waits_later(x):
        calls[0] += 1
        if calls[0] > 60:
            device.wait()
        return forward(x)

    work.function = waits_later
    times = measure.in_turns({"compile-max": work}, "cuda", seconds=0.05, rounds=3)["compile-max"]
    assert times.timer == "events" and times.not_replayed.startswith("the device, kept busy")
    assert min(times.seconds["forward"]) > FORWARD + HOST / 2  # no sample of before is among them


def test_what_runs_on_the_cpu_is_timed_by_its_clock(device):
    times = timed("scikit-learn", Work(torch.exp, [(torch.zeros(2),)], None))
    assert (times.timer, times.not_replayed) == ("clock", "it runs on the CPU")
    assert times.quantiles()[0] > 0


def test_the_probe_of_a_copy_holds_nothing_but_the_device(device, monkeypatch):
    probe = Probe.__new__(Probe)
    probe.lead = device_time.Lead()

    class Target:
        def copy_(self, source):
            device.kernel(HOST, FORWARD)

    probe.source, probe.target, probe.copies = torch.zeros(1000), Target(), []
    probe.copy()
    assert probe.copies == [pytest.approx(8000 / FORWARD, rel=1e-3)]


def test_rows_say_how_they_were_timed(device, monkeypatch):
    monkeypatch.setattr(suites.machine, "available_memory", lambda device: 1 << 30)
    monkeypatch.setattr(suites, "facts_of", lambda device: {"machine": "stand-in", "device": "cuda"})
    monkeypatch.setattr(suites.measure, "peak_memory", lambda work, device: 0)

    class Bench(suites.Bench):
        def __init__(self, case, device):
            super().__init__(case, "cpu")

    monkeypatch.setattr(suites, "Bench", Bench)
    probe = type("Probe", (), {"measure": lambda self, seconds: None, "limits": lambda self: (None, None)})()
    contenders = {"ours": plain(work_on(device).function), "eager": plain(work_on(device, waits=True).function)}
    case = Case("op", {"B": 2}, lambda device, generator: (leaf(torch.zeros(2)),), contenders, {"both": 8}, {})
    rows = suites.measure_case("kernels", case, Options(device="cuda", seconds=0.001, rounds=2), probe)
    said = {(r["contender"], r["direction"]): (r["timer"], r["not_replayed"]) for r in rows}
    assert {said["ours", d] for d in ("both", "forward", "backward")} == {("graph", None)}
    timer, why = said["eager", "both"]
    assert timer == "events" and why.startswith("RuntimeError: operation not permitted")


def test_a_table_of_a_gpu_says_how_its_figures_were_taken():
    rows = [synthetic("elbo", "ours", 1.0) | {"timer": "graph"}, synthetic("elbo", "eager", 1.0) | {"timer": "events"}]
    facts = here() | {"gpu": "stand-in", "cuda": "13.0"}
    text = report.footer(facts, rows)
    assert "timed by graph (a CUDA graph of many calls, replayed behind a busy stream): 1; timed by events" in text
    assert text.endswith("with the host's time in them: elbo (eager).")
    assert "timed by" not in report.footer(here(), rows)
