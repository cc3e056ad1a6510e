"""examples/all.py: what is done is kept, times add up, failures are told."""

import importlib
import json
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def examples(monkeypatch):
    """The examples' modules, by name."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


#: An example of a twentieth of a second, and one that fails.
SCRIPTS = {
    "short": """
import sys, time
time.sleep(0.05)
open(sys.argv[2] + "/short.json", "w").write('{"loss": 2.5}')
""",
    "bad": "raise SystemExit(3)",
}


@pytest.fixture
def runner(examples, monkeypatch, tmp_path):
    """Runs all.py over the scripts; gives the exit code and what was printed."""
    module = examples("all")
    for name, text in SCRIPTS.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "all.py"))

    def call(capsys, *options, names=("short",)):
        monkeypatch.setattr(module, "EXAMPLES", names)
        monkeypatch.setattr(sys, "argv", ["all.py", "--out", str(tmp_path), *options])
        code = module.main()
        return code, capsys.readouterr().out

    return call


def times(folder):
    return json.loads((folder / "times.json").read_text())


def test_a_set_that_was_stopped_goes_on(runner, capsys, tmp_path):
    code, said = runner(capsys, "--quick")
    assert code == 0
    assert said.startswith("short: done in ")
    assert "2.5\n" in said
    row = times(tmp_path)["examples"]["short"]
    assert row["done"]
    assert 0.05 < row["seconds"] < 600.0
    code, said = runner(capsys, "--quick")
    assert code == 0
    assert said.startswith(f"short: kept, done at commit {row['commit']} in {row['seconds']:.1f} s")
    assert times(tmp_path)["examples"]["short"] == row
    # as it is left by a run that was killed
    stopped = times(tmp_path)
    stopped["examples"]["short"] |= {"done": False, "seconds": 1000.0}
    (tmp_path / "times.json").write_text(json.dumps(stopped))
    assert runner(capsys, "--quick")[1].startswith("short: done in 0 h 16 min")
    assert times(tmp_path)["examples"]["short"]["seconds"] > 1000.0
    assert runner(capsys, "--quick", "--again")[1].startswith("short: done in ")
    assert times(tmp_path)["examples"]["short"]["seconds"] < 600.0


def test_a_failure_is_told_and_tried_again(runner, capsys, tmp_path):
    for _ in range(2):
        code, said = runner(capsys, "--quick", names=("bad",))
        assert code == 1
        assert said.startswith("bad: FAILED in ")
        assert said.rstrip().endswith("failed: bad")
    assert times(tmp_path)["examples"]["bad"]["done"] is False


def test_sets_of_two_kinds_do_not_mix(runner, capsys, tmp_path):
    (tmp_path / "times.json").write_text(json.dumps({"quick": True, "machine": "a machine", "examples": {}}))
    with pytest.raises(SystemExit, match=r"^error: .*times.json: a set with quick True, and this is False: choose another --out, "):
        runner(capsys)
    with pytest.raises(SystemExit, match=r"^error: .*times.json: a set with machine a machine, and this is "):
        runner(capsys, "--quick")
    with pytest.raises(SystemExit):
        runner(capsys, "--quick", "--record")
    assert "--record: the page tells of the set in full" in capsys.readouterr().err


def test_the_page_says_how_long(examples, tmp_path):
    readme = examples("readme")
    assert readme.times_of_all(tmp_path / "times.json") == ""
    rows = {name: {"seconds": seconds} for name, seconds in (("a", 3600.0), ("b", 60.0), ("c", 7200.0), ("d", 600.0))}
    (tmp_path / "times.json").write_text(json.dumps({"quick": False, "machine": "a machine", "examples": rows}))
    said = readme.times_of_all(tmp_path / "times.json")
    assert said.endswith("That takes 3.2 hours on a machine, of which c takes 120 minutes, a takes 60 minutes, d takes 10 minutes.")
