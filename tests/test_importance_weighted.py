"""The example of importance-weighted autoencoders: its bound, its schedule, and that a run which was stopped is the run that was not."""

import argparse
import collections
import importlib
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SETTING = {"hidden": 16, "latent": 3, "batch": 30, "passes": 3, "minutes": {}}


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("importance_weighted")


@pytest.fixture
def images():
    """Grey values in bytes: two kinds of image, so that there is something to be learned."""
    kinds = torch.rand(2, 36)
    return (255 * kinds[torch.randint(2, (130,))]).byte()


def log_weights(model, x, count):
    """log p(x, z) - log q(z|x) by torch.distributions in float64, from the draws that the model makes."""
    out = model(x, num_samples=count)
    mu, std, z, logits = (t.double() for t in (out.mu, (0.5 * out.logvar).exp(), out.z, out.recon))
    log_p = -F.binary_cross_entropy_with_logits(logits, x.double().expand_as(logits), reduction="none").sum(-1)
    log_p = log_p + torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    return log_p - torch.distributions.Normal(mu, std).log_prob(z).sum(-1)


@pytest.mark.parametrize("count", [1, 5, 50])
def test_the_loss_is_the_bound(module, images, count):
    model = module.ImportanceWeighted(36, 16, 3, count)
    x = module.binarized(images)
    torch.manual_seed(1)
    expected = -(torch.logsumexp(log_weights(model, x, count), 0) - math.log(count)).mean()
    torch.manual_seed(1)
    torch.testing.assert_close(model.loss(x).double(), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_bound_grows_with_the_samples(module, images):
    """On one model, over many draws: by K = 1, 5, 50, and never above log p(x), here by 20,000 samples."""
    model = module.ImportanceWeighted(36, 16, 3, 1)
    x = module.binarized(images)[:20]
    found = []
    for count in module.PAPER:
        model.count = count
        found.append(-sum(model.loss(x) for _ in range(200)) / 200)
    assert found[0] < found[1] < found[2] < model.log_prob(x, 20_000).mean() + 0.02


def test_the_passes_are_the_papers(module):
    stages = [module.stage_of(done) for done in range(module.PASSES)]
    assert stages == sorted(stages)
    assert collections.Counter(stages) == {i: 3**i for i in range(8)}
    assert module.PASSES == 3280
    assert module.stage_of(10 * module.PASSES) == 7
    assert all(module.marked(sum(3**j for j in range(i + 1))) for i in range(8))  # the last pass of each


def train(module, runs, images, passes=3):
    args = argparse.Namespace(runs=runs, seed=0, quick=True, dataset="digits", own=[])
    run = module.train(args, SETTING | {"passes": passes}, 5, images, images.flip(0) > 127)
    return run, [record["loss"] for record in run["history"]]


@pytest.mark.parametrize("where", ["between passes", "in a pass", "before a mark"])
def test_a_stopped_run_goes_on_to_the_same_bits(module, images, tmp_path, monkeypatch, where):
    whole, losses = train(module, tmp_path / "whole", images)
    assert len(losses) == 3
    broken = tmp_path / "broken"
    name, after = {"between passes": ("fit", 2), "in a pass": ("binarized", 5 + 3), "before a mark": ("mark", 2)}[where]  # 5 steps a pass
    inner, calls = getattr(module, name), []

    def stopped(*args, **keywords):
        calls.append(name)
        if len(calls) == after:
            raise KeyboardInterrupt
        return inner(*args, **keywords)

    monkeypatch.setattr(module, name, stopped)
    with pytest.raises(KeyboardInterrupt):
        train(module, broken, images)
    assert len(calls) == after
    monkeypatch.setattr(module, name, inner)
    again, found = train(module, broken, images)
    assert found == losses
    for key, value in whole["model"].state_dict().items():
        assert torch.equal(again["model"].state_dict()[key], value)
    assert again["curve"] == whole["curve"]
    assert [done for done, _ in whole["curve"]] == [1, 2, 3]
    assert json.loads((broken / "k-5" / "marks.json").read_text()) == whole["curve"]


def test_more_passes_go_on_from_there(module, images, tmp_path):
    train(module, tmp_path, images, 2)
    run, losses = train(module, tmp_path, images)
    assert len(losses) == 3
    assert losses[2] < losses[0]
    assert len(run["made"]["commits"]) == 1


def test_a_budget_ends_a_run(module, images, tmp_path):
    args = argparse.Namespace(runs=tmp_path, seed=0, quick=True, dataset="digits", own=[])
    run = module.train(args, SETTING | {"minutes": {5: 1e-9}}, 5, images, images.bool())
    assert len(run["history"]) == 1  # it begins, as nothing is spent, and ends with the pass


OWN = ["--minutes", "1", "2.5", "3", "--images", "40"]


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        ([], ["--dataset", "mnist"]),
        (["--dataset", "digits"], ["--dataset", "digits"]),
        (["--quick", "--seed", "2", *OWN], ["--quick", "--seed", "2", *OWN]),
        (["--full", *OWN], ["--dataset", "mnist", *OWN]),
    ],
)
def test_the_recorded_command_says_what_was_run(module, tmp_path, monkeypatch, given, recorded):
    """Of the run and of each model; where files are kept changes no result. The command, given again, gives the same options."""
    common = importlib.import_module("_common")
    places = ["--out", str(tmp_path), "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr("sys.argv", ["examples/importance_weighted.py", *given, *places])
    args = common.options("", "mnist", module.more_options)
    common.finish(args, {}, ())
    found = json.loads((tmp_path / "importance_weighted.json").read_text())["command"]
    assert found == " ".join(["python", "examples/importance_weighted.py", *recorded])
    assert module.made_of(args, tmp_path, args.seed, True)["command"] == found
    monkeypatch.setattr("sys.argv", [*found.split()[1:], *places])
    again = common.options("", "mnist", module.more_options)
    names = ("quick", "seed", "dataset", "minutes", "images")
    assert {name: getattr(again, name) for name in names} == {name: getattr(args, name) for name in names}


def test_the_estimate_of_all_images(module, images):
    """With every image given all samples, what the few say cancels."""
    model, test = module.ImportanceWeighted(36, 16, 3, 1).eval(), module.binarized(images)
    found = module.judge(model, test, len(test), 200, 0)
    assert found["log_prob"] == pytest.approx(found["log_prob_of_images"], abs=1e-9)
    assert found["bound"] == pytest.approx(found["bound_of_images"], abs=1e-9)
    part = module.judge(model, test, 40, 200, 0)
    assert part["log_prob"] == pytest.approx(found["log_prob"], abs=4 * part["standard_error"] + 0.02)
    assert part["own_bound"] < part["log_prob"]
