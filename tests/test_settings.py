"""The settings of a run: as keywords and in groups they are the same, and never both."""

import dataclasses
import inspect
import pickle
import typing

import pytest
import torch
from training_runs import images, small

from vae_fast import training
from vae_fast.training import settings

EVERY = [(group, field) for group, kind in settings.GROUPS.items() for field in dataclasses.fields(kind)]
KINDS = settings.GROUPS.items()
IDS = [field.name for _, field in EVERY]


def test_every_field_is_a_keyword_of_the_same_type():
    hints = typing.get_type_hints(training.Keywords)
    assert list(hints) == IDS
    for group, field in EVERY:
        assert typing.get_type_hints(settings.GROUPS[group])[field.name] == hints[field.name], field.name


def test_fits_own_arguments_are_few_and_no_setting_has_two_names():
    own = inspect.signature(training.fit).parameters
    assert list(own) == ["model", "train", "valid", "epochs", "callbacks", "progress", *settings.GROUPS, "keywords"]
    assert not set(own) & set(IDS) and len(set(IDS)) == len(IDS)


def test_defaults_are_those_of_the_release_before():
    assert {field.name: field.default for _, field in EVERY} == {
        "batch_size": 100, "drop_last": True, "seed": 0, "accumulate": 1, "transform": None, "check_data": True,
        "lr": 1e-3, "optimizer": None, "schedule": None, "max_grad_norm": None,
        "checkpoint": None, "resume": False, "config": None, "checkpoint_every": None, "keep_previous": None,
        "amp": None, "capture": True, "resident": True,
        "distributed": "auto", "shard": False, "timeout": 600.0,
    }  # fmt: skip


def history(**options):
    torch.manual_seed(3)
    found = training.fit(small(), images(), valid=images(40), epochs=2, progress=False, **options)
    return [{k: v for k, v in record.items() if k in ("epoch", "loss", "kl", "valid_loss", "valid_kl")} for record in found]


def test_keywords_and_groups_are_the_same_run(tmp_path):
    """Settings that each change the numbers, and the checkpoint that both write."""
    flat = {
        "batch_size": 40, "drop_last": False, "seed": 5, "accumulate": 2, "transform": torch.sqrt, "lr": 3e-3,
        "schedule": training.warmup(4), "max_grad_norm": 0.5, "amp": torch.bfloat16, "config": {"a": 1}, "checkpoint_every": 3,
    }  # fmt: skip
    groups = {name: kind(**{k: flat[k] for k in settings.FIELDS[name] if k in flat}) for name, kind in KINDS if name != "checkpoints"}
    groups["checkpoints"] = training.Checkpoints(checkpoint=tmp_path / "b.pt", config={"a": 1}, checkpoint_every=3)
    one = history(**flat, checkpoint=tmp_path / "a.pt")
    assert one == history(**groups)
    assert one != history() and one != history(**{name: kind() for name, kind in KINDS})
    a, b = (training.checkpoint.load(tmp_path / f"{name}.pt") for name in "ab")
    assert a["config"] == b["config"]
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])
    mixed = {"batches": groups["batches"], "optimization": groups["optimization"], "amp": torch.bfloat16}
    assert one == history(**mixed)  # a group, and keywords of other groups


@pytest.mark.parametrize(("group", "field"), EVERY, ids=IDS)
def test_a_setting_given_both_ways_is_refused(group, field):
    """Even where both say the same, and where it is the default: which one is meant cannot be known."""
    kind = settings.GROUPS[group]
    with pytest.raises(TypeError) as caught:
        training.fit(small(), images(), **{group: kind(), field.name: field.default})
    given = f"{field.name}={field.default!r}"
    inside = f"{group}={kind.__name__}"
    assert str(caught.value) == f"{given}: given together with {inside}(...): expected it in one place, {inside}({given})"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batchsize": 3}, "fit() got an unexpected keyword argument 'batchsize'; did you mean batch_size?"),
        ({"optimisation": 3}, "fit() got an unexpected keyword argument 'optimisation'; did you mean optimization?"),
        ({"patience": 3}, "fit() got an unexpected keyword argument 'patience'"),
        ({"batches": 40}, "batches=40: expected a training.Batches, got int"),
        ({"checkpoints": "a.pt"}, "checkpoints='a.pt': expected a training.Checkpoints, got str"),
        ({"hardware": training.Processes()}, "expected a training.Hardware, got Processes"),
    ],
    ids=str,
)
def test_what_is_no_setting_is_refused(options, words):
    with pytest.raises(TypeError) as caught:
        training.fit(small(), images(), **options)
    assert words in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", settings.GROUPS.values(), ids=lambda k: k.__name__)
def test_a_group_is_a_plain_value(kind):
    made = kind()
    assert made == kind() and pickle.loads(pickle.dumps(made)) == made
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, dataclasses.fields(kind)[0].name, None)
    with pytest.raises(TypeError):
        kind(1)  # by name only: what a 1 in the first place is should be read, not known
    doc = inspect.getdoc(kind)
    for section in ("Attributes:", "Raises:", "Example:"):
        assert section in doc
    assert all(f"{field.name}: " in doc for field in dataclasses.fields(kind))
    assert all(f"``{field.name}``" in inspect.getdoc(training.fit) for field in dataclasses.fields(kind))


def test_what_does_not_fit_together_is_refused_when_it_is_made(tmp_path):
    with pytest.raises(ValueError, match="resume=True: expected a checkpoint to resume from"):
        training.Checkpoints(resume=True)
    with pytest.raises(ValueError, match="checkpoint_every=5: expected a checkpoint to write"):
        training.Checkpoints(checkpoint_every=5)
    with pytest.raises(ValueError, match="expected a file name, this is a directory"):
        training.Checkpoints(checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"timeout=0\.0: expected a number of seconds above 0"):
        training.Processes(timeout=0.0)
