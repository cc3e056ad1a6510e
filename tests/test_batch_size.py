"""The batch-size study: its rules and warm-up, what it does when a training diverges or is stopped, its page and its timing stage."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("batch_size")


@pytest.fixture
def run(study, monkeypatch):
    """Runs the example in this process."""

    def main(out, *options):
        monkeypatch.setattr(sys, "argv", ["batch_size.py", "--quick", "--out", str(out), *options])
        study.main()
        return json.loads((out / "batch_size.json").read_text())

    return main


@pytest.fixture(scope="module")
def quick(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("batch_size") / "deep"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["batch_size.py", "--quick", "--out", str(out)])
        study.main()
    return out


@pytest.fixture
def tiny(study, monkeypatch):
    """Small networks, for what is not about how well they learn."""
    model = study.MLPVAE
    monkeypatch.setattr(study, "MLPVAE", lambda latent, d, generator: model(2, d, 8, generator=generator))


def results(out):
    return json.loads((out / "batch_size.json").read_text())


def test_rules(study):
    """The learning rates by hand, every rule with and without warm-up; one training where the rules are one."""
    full = {(c["batch"], c["rule"], c["warm_up"]): c["lr"] for c in study.cells(False)}
    assert len(full) == len(study.cells(False)) == 20
    assert {b for b, *_ in full} == {100, 400, 1600, 6400}
    for warm in (False, True):
        assert [full[100, "constant", warm], full[6400, "constant", warm]] == [1e-3, 1e-3]
        assert [full[b, "square root", warm] for b in (400, 1600, 6400)] == pytest.approx([2e-3, 4e-3, 8e-3])
        assert [full[b, "linear", warm] for b in (400, 1600, 6400)] == pytest.approx([4e-3, 16e-3, 64e-3])


@pytest.mark.parametrize(
    ("steps", "want"), [(40, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]), (20, [0.5, 1.0, 1.0]), (10, [1.0, 1.0]), (3, [1.0, 1.0])]
)
def test_warm_up_rises_over_a_tenth_of_the_steps(study, steps, want):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    study.warm_up(optimizer, steps)
    seen = []
    for _ in want:
        seen.append(optimizer.param_groups[0]["lr"] / 2.0)
        optimizer.step()
    assert seen == pytest.approx(want)


def test_quick_run(quick):
    r = results(quick)
    assert r["command"] == "python examples/batch_size.py --quick"
    losses = {(c["batch"], c["rule"], c["warm_up"]): c["loss"] for c in r["cells"]}
    assert len(losses) == 8
    for c in r["cells"]:
        # 1,439 digits: a smaller last batch, not one that is left out.
        assert c["steps"] == 5 * {100: 15, 400: 4}[c["batch"]]
        assert len(c["losses"]) == 5
        assert c["losses"][-1] == c["loss"] < c["losses"][0]
        assert abs(c["test_loss"] - c["loss"]) < 2.0
    # Fewer steps with the same learning rate come less far; warm-up is another training.
    assert losses[400, "constant", False] > losses[100, "constant", False] + 0.5
    assert all(losses[b, rule, True] != losses[b, rule, False] for b, rule, warm in losses if warm)
    assert imread(quick / "batch_size.png")[..., :3].std() > 0.05
    assert {p.name for p in quick.iterdir()} >= {"batch_size.png", "batch_size.json"}
    assert not (quick / "batch_size.unfinished.json").exists()


def test_the_learning_rate_reaches_the_training(study, monkeypatch, tiny):
    seen = []
    make = study.adam

    def spy(model, lr):
        optimizer = make(model, lr)
        optimizer.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
        return optimizer

    monkeypatch.setattr(study, "adam", spy)
    x = torch.rand(90, 16)
    cell = {"batch": 30, "rule": "linear", "warm_up": True, "lr": 0.02}
    study.trained(cell, x, x, 10, 0)
    assert seen == pytest.approx([0.02 / 3, 0.04 / 3] + [0.02] * 28)
    seen.clear()
    study.trained(cell | {"warm_up": False}, x, x, 2, 0)
    assert seen == [0.02] * 6


def test_a_stopped_run_goes_on_where_it_was(study, run, tmp_path, monkeypatch, tiny):
    whole = run(tmp_path / "whole")
    true, trained = study.trained, []

    def counted(cell, *rest):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(cell)
        return true(cell, *rest)

    monkeypatch.setattr(study, "trained", counted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken")
    assert not (tmp_path / "broken" / "batch_size.json").exists()
    trained.clear()
    monkeypatch.setattr(study, "trained", lambda cell, *rest: trained.append(cell) or true(cell, *rest))
    assert run(tmp_path / "broken")["cells"] == whole["cells"]
    assert trained == study.cells(True)[3:]
    # What is finished is not taken for a start, nor is another run's beginning.
    trained.clear()
    (tmp_path / "broken" / "batch_size.unfinished.json").write_text(json.dumps({"setting": {"seed": 1}, "done": whole["cells"]}))
    run(tmp_path / "broken")
    assert trained == study.cells(True)


def test_what_diverges_is_recorded(study, run, tmp_path, monkeypatch, tiny):
    """A learning rate at which the loss is soon no number: said in the results, the table and the picture; the rest goes on."""
    monkeypatch.setitem(study.RULES, "linear", lambda ratio: 1e30)
    r = run(tmp_path)
    lost = [c for c in r["cells"] if c["loss"] is None]
    assert {(c["batch"], c["rule"], c["warm_up"]) for c in lost} == {(400, "linear", False), (400, "linear", True)}
    assert all(len(c["losses"]) < 5 and c["test_loss"] is None for c in lost)
    text = study.section(r)
    assert f"diverged in epoch {len(lost[0]['losses']) + 1}" in text
    assert "2 of 8 trainings diverged" in text
    assert imread(tmp_path / "batch_size.png")[..., :3].std() > 0.05


def test_page(study, quick):
    r = results(quick)
    r.pop("throughput", None)
    text = study.section(r)
    cells = {(c["batch"], c["rule"], c["warm_up"]): f"{c['loss']:.2f}" for c in r["cells"]}
    rules = ("constant", "square root", "linear")
    row = " | ".join(cells[400, rule, warm] for rule in rules for warm in (False, True))
    assert f"| 400 | 20 | {row} |" in text
    base = " | ".join(cells[100, "constant", warm] for _ in rules for warm in (False, True))
    assert f"| 100 | 75 | {base} |" in text
    assert "pictures/batch_size.png" in text
    assert "images/s" not in text
    assert "batch_throughput" not in text


def test_timing_stage(study, quick, run, monkeypatch):
    """It adds to the JSON file and leaves the rest; the page shows it, and a new training keeps it."""
    before = results(quick)
    r = run(quick, "--time")
    assert {k: v for k, v in r.items() if k != "throughput"} == {k: v for k, v in before.items() if k != "throughput"}
    rows = {(row["batch"], row["name"]): row for row in r["throughput"]["rows"]}
    assert set(rows) == {(b, name) for b in (64, 256) for name in ("ours", "eager")}
    for (batch, _), row in rows.items():
        assert 0 < row["q20"] <= row["samples_per_second"] <= row["q80"]
        # Gradients of every weight, and at least one hidden layer of the batch.
        assert row["peak_bytes"] > 4 * (64 * 500 + 500 * 500 + 20 * 500 + 500 * 500 + 500 * 64) + 4 * 500 * batch
    assert imread(quick / "batch_throughput.png")[..., :3].std() > 0.05
    text = study.section(r)
    ours, eager = rows[256, "ours"], rows[256, "eager"]
    rates = [row["samples_per_second"] for row in (ours, eager)]
    memory = " | ".join(f"{row['peak_bytes'] / 2**20:,.0f}" for row in (ours, eager))
    assert f"| 256 | {rates[0]:,.0f} | {rates[1]:,.0f} | {rates[0] / rates[1]:.2f} | {memory} |" in text
    assert r["throughput"]["command"] in text
    monkeypatch.setattr(study, "trained", lambda cell, *_: cell | {"steps": 1, "losses": [1.0], "loss": 1.0, "test_loss": 1.0})
    assert run(quick)["throughput"] == r["throughput"]


def test_timing_needs_a_run(run, tmp_path):
    with pytest.raises(SystemExit, match="not there: run without --time first"):
        run(tmp_path, "--time")


def test_both_contenders_compute_the_same(study):
    """The step is the same but for the noise: after many steps from the same weights the weights are close."""
    images = torch.randint(0, 256, (64, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    norms = {}
    for name in study.CONTENDERS:
        models = []
        make = study.MLPVAE
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(study, "MLPVAE", lambda *a, make=make, models=models, **k: models.append(make(*a, **k)) or models[-1])
            step = study.step_of(name, images, 100)  # more than there are
        for _ in range(30):
            step()
        with torch.no_grad():
            norms[name] = models[0].loss(images.repeat(50, 1)).item()
    assert norms["ours"] == pytest.approx(norms["eager"], rel=0.03)
