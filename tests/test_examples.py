"""The examples run, and their page shows what they found."""

import importlib
import json
import os
import re
import sys
from pathlib import Path

import interpreters
import pytest
from matplotlib.image import imread

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


def run(script, *options):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return interpreters.run(EXAMPLES / script, *options, environment=environment)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Each example once: what it printed and its JSON file."""
    out = tmp_path_factory.mktemp("examples") / "deep"
    found = {}
    for name in ("mixtures", "mdn_inverse_sine"):
        done = run(f"{name}.py", "--quick", "--out", out)
        assert (done.returncode, done.stderr) == (0, "")
        found[name] = (done.stdout, json.loads((out / f"{name}.json").read_text()))
    return out, found


def test_mixtures(quick):
    out, found = quick
    printed, results = found["mixtures"]
    galaxy, cats = results["galaxy"], results["cats"]
    fits = {(fit["components"], fit["method"]): fit for fit in galaxy["fits"]}
    assert set(fits) == {(k, method) for k in (2, 12, 50, 100) for method in ("em", "adam")}
    for method in ("em", "adam"):
        assert fits[2, method]["test_log_likelihood"] < fits[12, method]["test_log_likelihood"] < galaxy["true_test_log_likelihood"]
        assert f"{fits[12, method]['test_log_likelihood']:.3f}" in printed
    for part, true in zip(cats["found"], cats["true"], strict=True):
        assert part["name"] == true["name"]
        assert part["mean_kg"] == pytest.approx(true["mean_kg"], abs=0.1)
        assert part["weight"] == pytest.approx(true["weight"], abs=0.1)
        assert part["std_kg"] == pytest.approx(true["std_kg"], abs=0.1)
    assert cats["log_likelihood"] > cats["true_log_likelihood"]  # the maximum is above the truth on the points it was fitted to
    for name in ("mixtures.png", "cats.png"):
        assert imread(out / name)[..., :3].std() > 0.05


def test_mdn_inverse_sine(quick):
    out, found = quick
    _, results = found["mdn_inverse_sine"]
    assert results["test_log_likelihood_least_squares"] < results["test_log_likelihood_mdn"] < results["true_test_log_likelihood"]
    assert imread(out / "mdn_inverse_sine.png")[..., :3].std() > 0.05


def test_committed_results_are_of_the_full_setting():
    """And as good as the README of the examples claims: the density network near the truth, the mixtures nearer with more components."""
    mixtures, mdn = (json.loads((EXAMPLES / "pictures" / f"{name}.json").read_text()) for name in ("mixtures", "mdn_inverse_sine"))
    fits = {(fit["components"], fit["method"]): fit for fit in mixtures["galaxy"]["fits"]}
    truth = mixtures["galaxy"]["true_test_log_likelihood"]
    assert mixtures["galaxy"]["points"] == 20_000
    for method in ("em", "adam"):
        gaps = [truth - fits[k, method]["test_log_likelihood"] for k in (2, 12, 50)]
        assert gaps[0] > 1.0 > 0.2 > gaps[1] > 0.03 > gaps[2] > 0.0
        trained = [fits[k, method]["train_log_likelihood"] for k in (2, 12, 50, 100)]
        assert trained == sorted(trained)
    assert 0.0 < mdn["true_test_log_likelihood"] - mdn["test_log_likelihood_mdn"] < 0.25
    assert mdn["test_log_likelihood_mdn"] > mdn["test_log_likelihood_least_squares"] + 0.5


def test_pictures_are_small():
    pictures = list((EXAMPLES / "pictures").glob("*.png"))
    assert all(p.stat().st_size < 300_000 for p in pictures)
    page = (EXAMPLES / "README.md").read_text()
    assert set(re.findall(r"\(pictures/(\w+\.png)\)", page)) == {p.name for p in pictures}  # each shown, none missing


def test_every_example_is_registered(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    names = importlib.import_module("_common").EXAMPLES
    scripts = {p.stem for p in EXAMPLES.glob("*.py") if not p.stem.startswith("_")} - {"readme", "all", "notebook"}
    assert set(names) == scripts == {p.stem for p in (EXAMPLES / "pictures").glob("*.json")}


def test_page_is_up_to_date():
    done = run("readme.py", "--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "place, said",
    [({"commit": "0123456789ab+changes"}, "'0123456789ab+changes'"), ({"times": [{"commits": ["unknown"]}]}, "'unknown'")],
    ids=["its own", "of a part"],
)
def test_the_page_refuses_results_of_no_commit(tmp_path, monkeypatch, place, said):
    monkeypatch.syspath_prepend(EXAMPLES)
    for name in [path.stem for path in EXAMPLES.glob("*.py")]:  # tests have a mixtures.py, too, which this process may have imported
        monkeypatch.setitem(sys.modules, name, sys)
        del sys.modules[name]
    readme = importlib.import_module("readme")
    for path in (EXAMPLES / "pictures").glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text())
    readme.page(tmp_path)
    faces = tmp_path / "faces.json"
    faces.write_text(json.dumps(json.loads(faces.read_text()) | place))
    with pytest.raises(ValueError, match=f"faces.json has commit {re.escape(said)}: expected one that holds its code"):
        readme.page(tmp_path)


@pytest.mark.parametrize("script", ["mixtures.py", "autoencoders.py", "all.py", "readme.py"])
def test_help(script):
    done = run(script, "--help")
    assert done.returncode == 0
    assert "--check" in done.stdout if script == "readme.py" else "--quick" in done.stdout


def test_notebook(tmp_path):
    """The committed one holds the cells that its script has, ran at a commit, and says what they say."""
    done = run("notebook.py", "--out", str(tmp_path / "swap.ipynb"))
    assert done.returncode == 0, done.stderr
    fresh, kept = (json.loads((folder / "swap.ipynb").read_text()) for folder in (tmp_path, EXAMPLES))
    assert (fresh["nbformat"], fresh["nbformat_minor"]) == (4, 5)
    assert not kept["metadata"]["vae_fast"]["commit"].endswith("changes")
    assert len({cell["id"] for cell in fresh["cells"]}) == len(fresh["cells"])
    printed = []
    for one, other in zip(fresh["cells"], kept["cells"], strict=True):
        assert one["source"] == other["source"]
        assert one["cell_type"] in ("code", "markdown")
        assert ("outputs" in one, "execution_count" in one) == (one["cell_type"] == "code",) * 2
        texts = ["".join(out["text"]) for cell in (one, other) for out in cell.get("outputs", ())]
        if texts:
            assert re.sub(r"[-0-9.e]+", "N", texts[0]) == re.sub(r"[-0-9.e]+", "N", texts[1])
            printed += [texts[0]]
    before, after = (json.loads(text.split(": ")[1]) for text in printed if text.startswith("loss by epoch"))
    assert after == pytest.approx(before, abs=0.5)
    assert before[-1] < 0.75 * before[0]
    assert max(float(v) for v in re.findall(r"relative difference: (\S+)", printed[-1])) < 1e-5
