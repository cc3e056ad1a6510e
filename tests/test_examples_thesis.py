"""The examples that repeat the thesis's experiments: their quick runs, and the results that are committed."""

import argparse
import base64
import gzip
import importlib
import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scipy.stats import norm
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from vae_fast import data, plots
from vae_fast.models import MLPVAE
from vae_fast.training import evaluate, evaluate_log_prob
from vae_fast.training.checkpoint import load

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NAMES = ("thesis_training", "thesis_classifier", "thesis_latent")


@pytest.fixture(scope="module")
def examples():
    """The examples' modules, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module


@pytest.fixture(scope="module")
def quick(examples, tmp_path_factory):
    """Results of the quick form of each, run once in this process in the order of the page: the later ones take the first one's models."""
    out, found = tmp_path_factory.mktemp("thesis") / "deep", {}
    for name in NAMES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [f"{name}.py", "--quick", "--out", str(out)])
            torch.set_num_threads(1)
            examples(name).main()
        found[name] = json.loads((out / f"{name}.json").read_text())
    return out, found


def committed(name):
    return json.loads((EXAMPLES / "pictures" / f"{name}.json").read_text())


def arguments(runs, **more):
    return argparse.Namespace(**{"quick": True, "own": [], "seed": 0, "runs": Path(runs), "out": Path(runs)} | more)


@pytest.mark.parametrize("name", NAMES)
def test_results_say_how_they_were_made(quick, name):
    results = quick[1][name]
    assert results["command"] == f"python examples/{name}.py --quick"
    assert results["seed"] == 0
    assert len(results["commit"]) >= 7
    made = {"thesis_training": lambda r: [m["made"] for m in r["models"]], "thesis_classifier": lambda r: [r["encoder"]]}
    for run in made.get(name, lambda r: r["models"].values())(results):
        assert run["command"] == "python examples/thesis_training.py --quick"  # they were trained there, and are said to be
        assert [len(commit) >= 7 for commit in run["commits"]] == [True]
        assert run["threads"] == 1


def test_training(quick):
    out, found = quick
    results = found["thesis_training"]
    models = {m["name"]: m for m in results["models"]}
    assert models["mnist-5"]["loss"] < models["mnist-2"]["loss"]  # more dimensions, nearer to the data
    for name, m in models.items():
        assert results["floors"][name] < m["loss"] < 26.0
        assert 0.5 < m["kl"] < 8.0
        assert m["source_loss"] is None  # digits are not compared with the thesis's MNIST
        assert m["whole"] == ("test_loss" not in m) == (m["images"] == 1797)
        found_in = data.load("digits")
        images = torch.cat((found_in.train, found_in.valid, found_in.test)) if m["whole"] else found_in.train
        torch.manual_seed(m["seed"])
        assert m["at"]["0"] == pytest.approx(evaluate(MLPVAE(m["latent"], 64, m["hidden"]), images)["loss"], rel=1e-6)
        assert m["curve"]["epoch"][-1] == 40
        assert m["curve"]["loss"][-1] == m["loss"] < m["curve"]["loss"][0] < m["at"]["0"]
        assert m["whole"] == ("valid_loss_median" not in m["curve"])
    for name in ("mnist-2", "mnist-5"):
        m = models[name]
        model = MLPVAE(m["latent"], 64, m["hidden"])
        model.load_state_dict(load(out / "thesis-quick" / name / "checkpoint.pt")["model"])
        test = data.load("digits").test
        assert m["test_loss"] == pytest.approx(evaluate(model, test)["loss"], rel=1e-6)
        assert m["test_log_prob"] == pytest.approx(evaluate_log_prob(model, test, results["samples"]), rel=1e-6)
        assert -m["test_loss"] < m["test_log_prob"] < -data.entropy_floor(test)
    assert models["mnist-5-seed-1"]["loss"] != models["mnist-5"]["loss"]
    assert models["mnist-5-seed-1"]["loss"] == pytest.approx(models["mnist-5"]["loss"], abs=0.5)
    assert models["frey-2-batch-100"]["loss"] < models["frey-2"]["loss"]  # twice the steps


def test_every_model_of_the_thesis_has_a_page(examples, quick):
    out, found = quick
    text = examples("thesis_training").section(found["thesis_training"])
    links = re.findall(r"\[(\S+)\]\(\.\./docs/explore/\1\.html\)", text)
    assert links == ["mnist-2", "mnist-5", "frey-2"]  # neither the extra ones nor those that frames are held out from
    for name in links:
        page = (out / "pages" / f"{name}.html").read_text(encoding="utf-8")
        content = json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)[1])
        assert content["shape"] == [8, 8]
        model = MLPVAE(len(content["start"]), 64, 128)
        model.load_state_dict(load(out / "thesis-quick" / name / "checkpoint.pt")["model"])
        n, z = content["decoder"]["n"], torch.tensor(content["start"])
        assert bool((z == 0.0).all()) == name.endswith("-2")  # else where a test image is encoded
        z[content["dims"]] = -content["half"]
        lowest = np.frombuffer(base64.b64decode(content["decoder"]["images"]), np.uint8).reshape(n, n, 64)[0, 0]
        assert np.abs(lowest / 255.0 - model.eval().decode(z[None]).sigmoid().detach()[0].numpy()).max() <= 0.51 / 255.0


def test_run_that_is_killed_goes_on_to_the_same_numbers(examples, quick, one_thread, tmp_path):
    out, _ = quick
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / "thesis_training.py"), "--quick", "--out", str(tmp_path)]
    runs = tmp_path / "thesis-quick"
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (runs / "mnist-2" / "checkpoint.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert 0 < load(runs / "mnist-2" / "checkpoint.pt")["epoch"] < 40  # killed inside the first model
    thesis = examples("_thesis")
    again, unbroken = thesis.trained(arguments(runs), "mnist-2"), thesis.trained(arguments(out / "thesis-quick"), "mnist-2")
    for one, other in zip(again.history, unbroken.history, strict=True):
        assert {k: one[k] for k in ("epoch", "loss", "kl", "valid_loss")} == {k: other[k] for k in ("epoch", "loss", "kl", "valid_loss")}
    assert again.film.keys() == unbroken.film.keys() == {-1, 0, 1, 2, 5, 10, 20}
    assert all(torch.equal(again.film[k], unbroken.film[k]) for k in again.film)
    assert (again.film[20] - again.film[-1]).square().mean() < 0.6 * (again.film[1] - again.film[-1]).square().mean()


def test_checkpoint_of_another_model_is_refused(examples, quick, tmp_path):
    out, _ = quick
    (tmp_path / "mnist-5").mkdir()
    (tmp_path / "mnist-5" / "checkpoint.pt").write_bytes((out / "thesis-quick" / "mnist-2" / "checkpoint.pt").read_bytes())
    with pytest.raises(SystemExit, match=r"^error: .*; delete .*mnist-5 to begin this model anew$"):
        examples("_thesis").trained(arguments(tmp_path), "mnist-5")


def test_seconds_are_added_and_kept(examples, quick, monkeypatch, tmp_path):
    out, found = quick
    training = examples("thesis_training")
    monkeypatch.setattr(sys, "argv", ["thesis_training.py", "--quick", "--time", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="run without --time first"):
        training.main()
    (tmp_path / "thesis_training.json").write_bytes((out / "thesis_training.json").read_bytes())
    training.main()
    results = json.loads((tmp_path / "thesis_training.json").read_text())
    times = results.pop("time")
    assert results == found["thesis_training"]
    assert [row["name"] for row in times["rows"]] == ["mnist-2", "frey-2"]
    assert all(0.0 < row["ours_s"] < 10.0 and 0.1 < row["ratio"] < 100.0 for row in times["rows"])
    without, with_times = (training.section(found["thesis_training"] | extra) for extra in ({}, {"time": times}))
    assert "Seconds per epoch" not in without
    assert f"| {times['rows'][0]['ratio']:.2f} |" in with_times
    monkeypatch.setattr(sys, "argv", ["thesis_training.py", "--quick", "--out", str(tmp_path), "--runs", str(out / "thesis-quick")])
    training.main()
    assert json.loads((tmp_path / "thesis_training.json").read_text())["time"] == times


def test_models_chosen_leave_the_other_rows(examples, quick, monkeypatch, tmp_path):
    """Rows of an earlier run stay as they were; those chosen come anew; what cannot be is an error."""
    out, found = quick
    training = examples("thesis_training")
    arguments = ["thesis_training.py", "--quick", "--out", str(tmp_path), "--runs", str(out / "thesis-quick"), "--models"]
    monkeypatch.setattr(sys, "argv", [*arguments, "frey-2"])
    with pytest.raises(SystemExit, match=r"^error: .*thesis_training.json: has no row of .*: run without --models first$"):
        training.main()
    before = found["thesis_training"]
    old = {m["name"]: m for m in json.loads(json.dumps(before["models"]))}
    old["frey-2"]["loss"], old["mnist-2"]["loss"] = -1.0, -2.0
    (tmp_path / "thesis_training.json").write_text(json.dumps(before | {"models": list(old.values())}))
    training.main()
    after = json.loads((tmp_path / "thesis_training.json").read_text())
    assert after["added"]["command"] == "python examples/thesis_training.py --quick --models frey-2"
    models, wanted = ({m["name"]: m for m in r["models"]} for r in (after, before))
    assert models == wanted | {"mnist-2": old["mnist-2"]}
    assert after["floors"] == before["floors"]
    assert "Of a later run (`python examples/thesis_training.py --quick --models frey-2`): frey-2." in training.section(after)
    assert [p.name for p in tmp_path.glob("*.png")] == ["thesis_loss.png"]
    monkeypatch.setattr(sys, "argv", [*arguments, "frey-3"])
    with pytest.raises(SystemExit, match=r"^error: --models frey-3: expected some of mnist-2, "):
        training.main()


@pytest.mark.parametrize("name", NAMES)
def test_sections(examples, quick, name):
    text = examples(name).section(quick[1][name])
    assert text.startswith("## The thesis: ")
    assert "nan" not in text.lower().replace("quan", "")
    assert "None" not in text


def test_missing_data_come_with_the_command_that_gets_them(examples, monkeypatch, tmp_path):
    monkeypatch.setenv("VAE_FAST_DATA", str(tmp_path / "none"))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("looked for it on the network unasked"))
    monkeypatch.setattr(sys, "argv", ["thesis_latent.py", "--out", str(tmp_path), "--runs", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"(?s)^error: .*train-images.*\nget it with: python -c '.*load_mnist\(\)'$"):
        examples("thesis_latent").main()
    with pytest.raises(SystemExit, match=rf"(?s)^error: .*\nget it with: curl .*{tmp_path}/none/frey/frey_rawface.mat https://"):
        examples("_common").load("frey")


# --- section 5.2 ------------------------------------------------------------------------------------------------------


def test_classifiers(quick):
    _, found = quick
    results = found["thesis_classifier"]
    share = {(row["labels"], row["method"]): row for row in results["rows"]}
    assert {labels for labels, _ in share} == {30, 100, 300, 1439}
    for method in ("pixels", "frozen", "tuned", "anew"):
        assert share[30, method]["accuracy"] > 0.4  # chance is 0.1
        assert share[1439, method]["accuracy"] > share[30, method]["accuracy"] + 0.1
    assert share[1439, "pixels"]["accuracy"] > 0.95
    assert share[1439, "tuned"]["accuracy"] > share[1439, "frozen"]["accuracy"]  # five numbers, chosen without and with labels
    assert results["frozen_by_latent"][0]["accuracy"] < results["frozen_by_latent"][1]["accuracy"]
    assert results["frozen_by_latent"][1]["accuracy"] == pytest.approx(share[1439, "frozen"]["most"], abs=0.02)
    shown = results["probabilities"]
    assert all(sum(p) == pytest.approx(1.0, abs=1e-5) for p in shown.values())
    assert int(np.argmax(shown["pixels"])) != int(np.argmax(shown["tuned"]))  # the digit shown is one that they read differently
    assert results["only_pixels_right"] + results["only_tuned_right"] <= results["differently"]


def test_fine_tuning_moves_a_copy_of_the_encoder(examples):
    classifier, thesis = examples("thesis_classifier"), examples("_thesis")
    torch.manual_seed(0)
    model, x, y = MLPVAE(3, 16, 8), torch.rand(40, 16), torch.arange(40) % 10
    before = {k: v.clone() for k, v in model.state_dict().items()}
    t = thesis.Trained(None, model, None, [], {}, {})
    learned = classifier.classifiers(t, x, y, 5)
    found = {name: classifier.probabilities(network, x[:7]) for name, network in learned.items()}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert found.keys() == classifier.METHODS.keys()
    for p in found.values():
        assert torch.allclose(p.sum(-1), torch.ones(7), atol=1e-5)
    network = classifier.Reading(model)
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(network(x), y), list(network.parameters()), allow_unused=True)
    classifier.descend(network, x, y, 1)  # one batch of all 40
    for (name, p), gradient in zip(network.named_parameters(), gradients, strict=True):
        assert (gradient is None) == name.startswith("encoder.logvar")  # the means alone are read
        assert torch.allclose(p, start[name] if gradient is None else start[name] - 0.1 * gradient, atol=1e-6)
    assert float(gradients[0].norm()) > 0.0  # the encoder's first layer moves


def test_regression_with_a_class_that_is_not_there(examples):
    x = torch.tensor([[0.0], [1.0]]).repeat(20, 1)
    classifier = examples("thesis_classifier")
    p = classifier.probabilities(classifier.regression(x, torch.tensor([3, 7]).repeat(20)), torch.tensor([[0.0], [1.0]]))
    assert p.argmax(-1).tolist() == [3, 7]
    assert p.sum(-1).tolist() == pytest.approx([1.0, 1.0])
    assert p[:, [0, 1, 2, 4, 5, 6, 8, 9]].abs().max() == 0.0


@pytest.mark.parametrize("classes", [[3, 7], [1, 2, 8]])
def test_regression_is_scikit_learns(examples, classes):
    classifier = examples("thesis_classifier")
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    y = torch.tensor(classes).repeat(60 // len(classes))
    want = LogisticRegression(max_iter=300).fit(x.numpy(), y.numpy()).predict_proba(x.numpy())
    np.testing.assert_allclose(classifier.probabilities(classifier.regression(x, y), x)[:, classes], want, atol=1e-6)


def test_saved_classifiers_are_loaded_and_not_learned_again(examples, quick, tmp_path, monkeypatch, capsys):
    """What is drawn for a digit, and what the explorer is given, is what the study's classifiers said."""
    out, found = quick
    results, classifier = found["thesis_classifier"], examples("thesis_classifier")
    for name in ("descend", "regression"):
        monkeypatch.setattr(classifier, name, lambda *_: pytest.fail("learned again"))
    arguments = ["thesis_classifier.py", "--quick", "--out", str(tmp_path), "--runs", str(out / "thesis-quick"), "--digit"]
    monkeypatch.setattr(sys, "argv", [*arguments, str(results["digit"])])
    drawn = []
    monkeypatch.setattr(classifier, "draw_certainty", lambda *given: drawn.append(given))
    classifier.main()
    path, _, _, shown, label, digit = drawn[0]
    assert (path, label, digit) == (tmp_path / f"thesis_certainty_{digit}.png", results["label"], results["digit"])
    assert shown.keys() == classifier.METHODS.keys()
    for name, p in results["probabilities"].items():
        assert shown[name].tolist() == pytest.approx(p, abs=1e-5)
    assert "latent means, encoder fine-tuned: 0 " in capsys.readouterr().out
    kept = plots.load_readings(out / "thesis-quick" / "readings.npz")
    assert kept.names == tuple(name for name, _ in classifier.METHODS.values())
    assert len(kept.images) == min(300, results["test_images"])
    assert kept.probabilities[digit, 2].tolist() == pytest.approx(results["probabilities"]["tuned"], abs=1e-5)
    assert kept.labels[digit] == label


def test_classifiers_of_another_autoencoder_are_refused(examples, quick, tmp_path, monkeypatch):
    out, _ = quick
    classifier = examples("thesis_classifier")
    t = examples("_thesis").trained(arguments(out / "thesis-quick"), "mnist-5")
    with pytest.raises(SystemExit, match=r"^error: .*none.pt: not there: run without --digit first$"):
        classifier.kept(tmp_path / "none.pt", t)
    with torch.no_grad():
        t.model.encoder.mu.bias += 1.0
    with pytest.raises(SystemExit, match=r"^error: .*classifiers.pt: of another autoencoder than the one in mnist-5: run"):
        classifier.kept(out / "thesis-quick" / "classifiers.pt", t)


def test_training_labels_are_those_of_the_training_images(examples, monkeypatch, tmp_path):
    thesis = examples("_thesis")
    images, target = load_digits(return_X_y=True)
    label_of = {tuple(image): int(label) for image, label in zip(images / 16.0, target, strict=True)}
    found = [label_of[tuple(image)] for image in data.load("digits").train.tolist()]
    assert thesis.train_labels("digits").tolist() == found
    count = 5020
    values = np.arange(count) % 10
    for split in ("train", "t10k"):
        pixels, header = np.repeat(values, 4).astype(np.uint8), struct.pack(">IIII", 0x803, count, 2, 2)
        (tmp_path / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + values.astype(np.uint8).tobytes())
    monkeypatch.setenv("VAE_FAST_DATA", str(tmp_path))
    assert torch.equal(thesis.train_labels("mnist"), data.load_mnist(download=False).train[:, 0].long())


# --- section 6 --------------------------------------------------------------------------------------------------------


def test_manifold_is_the_decoder_over_equal_masses(examples):
    latent = examples("thesis_latent")
    torch.manual_seed(0)
    model = MLPVAE(2, 12, 8)
    found = latent.manifold(model, 5)
    assert found.shape == (5, 5, 12)
    for row in range(5):
        for column in range(5):
            z = torch.tensor([[norm.ppf((column + 0.5) / 5), norm.ppf(1.0 - (row + 0.5) / 5)]], dtype=torch.float32)
            assert torch.allclose(found[row, column], torch.sigmoid(model.decoder(z))[0], atol=1e-6)


def test_film_is_in_its_order_again(examples):
    frames = torch.arange(1965)[:, None].expand(-1, 3)
    split = data.spread_split("frey", frames, torch.arange(1965), "frame", (1, 3))
    assert torch.equal(examples("thesis_latent").film_of(split), frames)


def test_latent(quick):
    out, found = quick
    results = found["thesis_latent"]
    assert results["plane"]["read_right"] > 0.55  # chance is 0.1
    shares = [pair["share"] for pair in results["plane"]["mixed"]]
    assert shares == sorted(shares, reverse=True)
    assert 0.0 < shares[-1] < shares[0] < 0.6
    assert [row["dim"] for row in results["samples"]["rows"]] == [2, 5]
    for row in results["samples"]["rows"]:
        assert 0.4 < row["confidence"] < results["samples"]["confidence_test"]
    pictures = sorted(out.glob("thesis_*.png"))
    assert len(pictures) == 10
    assert all(imread(path)[..., :3].std() > 0.05 for path in pictures)


def test_planes_alone(examples, quick, tmp_path, monkeypatch):
    """What is of the two models of two dimensions comes anew; the rest of the file stays, and an absent one is an error."""
    out, found = quick
    latent = examples("thesis_latent")
    arguments = ["thesis_latent.py", "--quick", "--planes", "--out", str(tmp_path), "--runs", str(out / "thesis-quick")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match=r"^error: .*thesis_latent.json: not there: run without --planes first$"):
        latent.main()
    before = found["thesis_latent"]
    (tmp_path / "thesis_latent.json").write_text(json.dumps(before | {"plane": None, "film": None, "grid": None}))
    latent.main()
    after = json.loads((tmp_path / "thesis_latent.json").read_text())
    assert after.pop("planes_added")["command"] == "python examples/thesis_latent.py --planes --quick"
    assert after == before
    assert {p.stem.removeprefix("thesis_") for p in tmp_path.glob("*.png")} == {
        *("latent_mnist", "latent_3d", "latent_frey", "manifold_mnist", "manifold_frey")
    }


def test_running_medians(examples):
    values = [5.0, 1.0, 9.0, 2.0, 3.0, 8.0]
    smoothed = examples("thesis_training").smoothed
    assert [smoothed(values, e, 0.5) for e in range(1, 7)] == [5.0, 5.0, 2.0, 3.0, 5.5, 5.5]
    assert [smoothed(values, e, 0.0) for e in range(1, 7)] == values


# --- what is committed ------------------------------------------------------------------------------------------------


def test_committed_losses_are_near_the_thesis(examples):
    results, training = committed("thesis_training"), examples("thesis_training")
    models = {m["name"]: m for m in results["models"]}
    assert models.keys() == examples("_thesis").settings(quick=False).keys()
    for name, source in training.SOURCE.items():
        m = models[name]
        epochs = max(source)
        assert (m["epochs"], m["source_loss"], m["hidden"]) == (epochs, source[epochs], 500)
        assert m["loss"] < source[epochs] + training.TOLERANCE[m["dataset"]]
    for m in models.values():
        assert results["floors"][m["name"]] < m["loss"]
        assert m["whole"] or -m["test_loss"] < m["test_log_prob"]
    assert models["mnist-20"]["loss"] < models["mnist-10"]["loss"] < models["mnist-5"]["loss"] < models["mnist-2"]["loss"]
    far = {name: abs(models[name]["loss"] - training.SOURCE["frey-2"][1000]) for name in ("frey-2", "frey-2-batch-100")}
    assert far["frey-2"] < far["frey-2-batch-100"]  # as the page says of the batches
    assert (models["frey-2"]["batch"], models["frey-2"]["images"]) == (1000, 1965)
    assert all(not math.isnan(row["ratio"]) for row in results.get("time", {}).get("rows", ()))


def test_committed_classifiers_bear_out_the_page():
    results = committed("thesis_classifier")
    share = {(row["labels"], row["method"]): row["accuracy"] for row in results["rows"]}
    assert {labels for labels, _ in share} == {100, 300, 1000, 3000, 10_000, 55_000}
    assert share[55_000, "tuned"] > 0.975
    assert share[55_000, "pixels"] > 0.915
    assert share[55_000, "frozen"] < share[55_000, "tuned"]
    assert abs(share[55_000, "anew"] - share[55_000, "tuned"]) < 0.01
    assert share[100, "tuned"] > share[100, "anew"]


def test_committed_latent_spaces_bear_out_the_page():
    results = committed("thesis_latent")
    assert [4, 9] in [pair["digits"] for pair in results["plane"]["mixed"]]
    assert [3, 8] in [pair["digits"] for pair in results["plane"]["mixed"]]
    assert results["film"]["frames"] == 1965
    assert results["film"]["next"] < 0.5 * results["film"]["any"]
    assert [row["dim"] for row in results["samples"]["rows"]] == [2, 5, 10, 20, 50]
