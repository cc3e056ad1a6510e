"""`make gpu-check` and its bundles, as far as a machine without a GPU can tell: every stage against stand-ins of the programs it starts."""

import importlib
import io
import json
import re
import subprocess
import sys
import tarfile
from dataclasses import asdict, replace
from pathlib import Path

import conftest
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
FACTS = {
    "gpu": "Stand-in H200",
    "capability": "9.0",
    "driver": "1",
    "torch": "2.11.0+cu130",
    "cuda": "13.0",
    "python": "3.12",
    "commit": "abc",
}

# Notes how it was called, then does as the scenario says for the first word that is among its arguments: prints, sleeps, exits.
PROGRAM = """#!{python}
import json, os, pathlib, sys, time
folder = pathlib.Path({folder!r})
words = " ".join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]).replace("\\n", " ")
with (folder / "calls").open("a") as file:
    file.write(words + " DEVICE=" + os.environ.get("VAE_FAST_TEST_DEVICE", "") + "\\n")
if "--out" in sys.argv and "gpu_kernels" in words:
    row = {{"kernel": "a kernel", "seconds": 1e-4, "share": 0.95, "predicted_share": 1.0, "target": 0.9, "limit": "copy"}}
    row |= {{"timer": "busy", "not_replayed": "it waits"}}
    pathlib.Path(sys.argv[sys.argv.index("--out") + 1]).write_text(json.dumps({{"rows": [row]}}))
for word, (text, seconds, code) in json.loads((folder / "scenario").read_text()).items():
    if word in words:
        print(text)
        sys.stdout.flush()
        time.sleep(seconds)
        sys.exit(code)
print("12 passed, 0 failed")
"""


@pytest.fixture
def tool(monkeypatch):
    """tools/NAME.py, which is no package."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module


class Bench:
    """A machine of stand-ins, and the command on it."""

    def __init__(self, folder, tool, monkeypatch):
        self.folder, self.out, self.work = folder, folder / "out", folder / "work"
        self.check, stages = tool("gpu_check"), tool("gpu_stages")
        programs = {}
        for name in ("python", "nvcc", "compute-sanitizer", "ncu", "native_tests_cuda"):
            programs[name] = folder / name
            programs[name].write_text(PROGRAM.format(python=sys.executable, folder=str(folder)))
            programs[name].chmod(0o755)
        python, nvcc, sanitizer, ncu, native = map(str, programs.values())
        self.machine = stages.Machine(python, nvcc, sanitizer, ncu, self.work / "rest", native, 12, True)
        monkeypatch.setattr(self.check.binaries, "in_tree", lambda here: "")
        self.scenario()

    def scenario(self, **rules):
        (self.folder / "scenario").write_text(json.dumps(rules))
        (self.folder / "calls").write_text("")

    def run(self, stage, *options, facts=FACTS):
        given = ["--stage", str(stage), "--out", str(self.out), "--work", str(self.work), "--commit", facts["commit"], *map(str, options)]
        return self.check.main(given, facts, self.machine)

    def steps(self, stage):
        return {s["name"]: s for s in json.loads((self.out / f"stage-{stage}.json").read_text())["steps"]}

    def calls(self):
        return (self.folder / "calls").read_text().splitlines()


@pytest.fixture
def bench(tmp_path, tool, monkeypatch):
    return Bench(tmp_path, tool, monkeypatch)


# --- the stages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [1, 2, 3, 4, 5])
def test_a_stage_runs_writes_what_it_found_and_is_not_run_again(bench, stage, capsys):
    assert bench.run(stage) == 0
    steps = bench.steps(stage)
    assert {s["status"] for s in steps.values()} == {"ok"} and len(steps) > 5
    calls = bench.calls()
    assert len(calls) == len(steps) - 1  # what lies in the tree fits, without a program
    with tarfile.open(bench.out / "rest.tar.gz") as archive:
        assert len([n for n in archive.getnames() if n.endswith(".log")]) == len(calls)
    for step in steps:
        assert f"| {step} | ok |" in (bench.out / "summary.md").read_text()
    bench.scenario()
    assert bench.run(stage) == 0
    assert len(bench.calls()) == 1  # a fresh machine has to load the binaries
    assert "(before)" in capsys.readouterr().out


def test_all_stages_leave_at_most_eight_files(bench):
    assert bench.run("all") == 0
    files = sorted(p.name for p in bench.out.iterdir())
    assert files == ["rest.tar.gz", *(f"stage-{n}.json" for n in range(1, 6)), "summary.md"]
    text = (bench.out / "summary.md").read_text()
    assert "| a kernel | 100.0 | 95% (copy) | 100% | 90% | busy: it waits |" in text
    assert "| microseconds | as chosen | lanes 8 |" in text


def test_what_each_stage_is_made_of(bench, tool):
    stages, kernels = tool("gpu_stages"), tool("gpu_kernels")
    assert bench.run("all") == 0
    calls = bench.calls()
    assert any(c.startswith("native_tests_cuda") and "--huge" in c for c in calls)
    tests = [c for c in calls if "-m pytest" in c]
    assert tests and all("-n 12" in c and c.endswith("DEVICE=cuda") for c in tests)
    among = " ".join(tests)
    assert all(f"tests/ops/{p.name} " in among for p in (ROOT / "tests" / "ops").glob("test_*.py"))
    for name in ("memcheck", "racecheck", "initcheck"):
        assert sum(c.startswith("compute-sanitizer") and f"--tool {name}" in c for c in calls) == len(stages.KINDS)
    assert sum(c.startswith("ncu") and "--clock-control none" in c for c in calls) == 8
    known = {call.name for call in kernels.CALLS}
    assert set(stages.heaviest()) | set(stages.ROW_KERNELS) | set(kernels.KEY) <= known and len(kernels.KEY) >= 10
    assert {c.split("--suite ")[1].split()[0] for c in calls if "vae_fast bench" in c} == set(stages.SUITES)
    for seconds in (sum(s.limit for s in make(bench.machine) if s.limit > bench.check.SECONDS) for _, make in stages.STAGES.values()):
        assert seconds == 0  # no step is longer than a stage


def test_every_kind_of_native_test_is_run(tool):
    """By make native and make sanitize, and those of the device's kernels under the device's sanitizers."""
    kinds = set(re.findall(r'wanted\("(\w+)"\)', (ROOT / "tests" / "native" / "main.cpp").read_text()))
    in_parts = re.search(r"^in_parts = printf '%s\\n' ([\w ]+) \|", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert in_parts is not None and set(in_parts[1].split()) == kinds
    assert set(tool("gpu_stages").KINDS) == kinds - {"tunings", "gamma", "exponential"}  # the host's functions, and the others once more


def test_a_step_that_failed_is_made_again_and_the_others_are_not(bench, capsys):
    bench.scenario(huge=["wrong at 5", 0, 1])
    assert bench.run(1) == 1
    assert bench.steps(1)["kernel tests, more than 2^31 elements"] | {"date": "", "seconds": 0} == {
        "name": "kernel tests, more than 2^31 elements", "status": "failed", "seconds": 0, "detail": "exit 1", "date": ""
    }  # fmt: skip
    assert "wrong at 5" in capsys.readouterr().out
    bench.scenario()
    assert bench.run(1) == 0
    assert [c for c in bench.calls() if "-c" not in c.split()] == [f"native_tests_cuda --rounds 1 --huge DEVICE={''}"]


def test_what_there_was_no_time_for_is_left_and_taken_up(bench, monkeypatch):
    monkeypatch.setattr(bench.check, "LEAST", 1.0)
    bench.scenario(key=["", 30, 0])
    assert bench.run(1, "--seconds", 4) == 3
    statuses = {name: s["status"] for name, s in bench.steps(1).items()}
    assert statuses["kernel tests"] == "ok" and statuses["key kernels"] == "left" == statuses["other kernels"]
    assert "run this stage again" in bench.steps(1)["key kernels"]["detail"]
    bench.scenario()
    assert bench.run(1) == 0
    assert not any("--rounds 10" in c for c in bench.calls())


def test_a_stage_that_was_killed_goes_on_on_another_machine(bench, tmp_path):
    """Its folder comes back read-only, another machine is bare, and the folder of results there is empty."""
    assert bench.run(1) == 0
    path = bench.out / "stage-1.json"
    found = json.loads(path.read_text())
    found["steps"][-1]["status"] = "running"
    path.write_text(json.dumps(found))
    earlier = bench.out.rename(tmp_path / "earlier")
    bench.work.rename(tmp_path / "gone")
    for file in earlier.iterdir():
        file.chmod(0o444)
    bench.scenario()
    assert bench.run(1, "--earlier", earlier) == 0
    assert sum("--huge" in c for c in bench.calls()) == 1 and not any("--rounds 10" in c for c in bench.calls())
    with tarfile.open(bench.out / "rest.tar.gz") as archive:
        assert "rest/stage-1/kernel-tests.log" in archive.getnames()


def test_what_the_driver_refuses_is_said_and_asked_no_more(bench):
    bench.scenario(**{"compute-sanitizer": ["========= Error: Device not supported. Please refer to", 0, 9], "ncu": ["fell over", 0, 1]})
    bench.machine = replace(bench.machine, ncu=None)
    assert bench.run(3) == 0
    steps = bench.steps(3)
    assert sum(c.startswith("compute-sanitizer") for c in bench.calls()) == 1
    refused = [s for name, s in steps.items() if "check: " in name]
    assert {s["status"] for s in refused} == {"refused"} and all("Device not supported" in s["detail"] for s in refused)
    assert all(s["detail"] == "ncu was not found" for name, s in steps.items() if name.startswith("ncu"))


def test_a_tool_that_finds_a_fault_was_not_refused(bench):
    bench.scenario(**{"racecheck": ["========= RACECHECK SUMMARY: 3 hazards displayed", 0, 9]})
    assert bench.run(3) == 1
    found = [s for name, s in bench.steps(3).items() if name.startswith("racecheck")]
    assert {(s["status"], s["detail"]) for s in found} == {("failed", "RACECHECK SUMMARY: 3 hazards displayed")}


def test_a_folder_of_another_commit_is_refused(bench):
    assert bench.run(1) == 0
    with pytest.raises(SystemExit, match=r"stage-1\.json is of commit abc, and this is def: name another folder"):
        bench.run(1, facts=FACTS | {"commit": "def"})


def test_without_a_gpu_or_a_commit_nothing_is_checked(bench, capsys, monkeypatch):
    monkeypatch.setattr(bench.check, "facts", lambda commit: None)
    assert bench.check.main(["--out", str(bench.out), "--commit", "abc"]) == 2
    assert "no CUDA device that this Python's torch can use" in capsys.readouterr().err
    monkeypatch.setattr(bench.check, "ROOT", bench.folder)
    assert bench.check.main(["--out", str(bench.out)], FACTS, bench.machine) == 2
    assert capsys.readouterr().err == "gpu_check: --commit: expected the commit's name, since this is no checkout and no bundle\n"
    assert not bench.out.exists()


# --- binaries ---------------------------------------------------------------------------------------------------------


def manifest(binaries, **others):
    here = binaries.wanted("2.11.0+cu130", "13.0", "9.0", "abc")
    return replace(here, **others)


def bundle(binaries, path, found, without=""):
    with tarfile.open(path, "w:xz") as archive:
        for name in binaries.names(found):
            data = json.dumps(asdict(found)).encode() if name.endswith("manifest.json") else b"binary"
            member = tarfile.TarInfo(f"vae_fast-abc/{name}")
            member.size = len(data)
            if name != without:
                archive.addfile(member, io.BytesIO(data))
    return path


def test_a_bundle_that_fits_is_unpacked(tool, tmp_path):
    binaries = tool("gpu_binaries")
    here = manifest(binaries)
    assert binaries.in_tree(here, tmp_path) == "nothing was built or unpacked yet"
    made = bundle(binaries, tmp_path / "bundle.tar.xz", replace(here, commit="of a bundle"))
    assert binaries.adopt(made, here, tmp_path) == ""
    assert binaries.in_tree(here, tmp_path) == ""
    assert (tmp_path / "build/gpu/native_tests_cuda").stat().st_mode & 0o111
    (tmp_path / "vae_fast" / binaries.extension_name(here.python)).unlink()
    assert "is missing" in binaries.in_tree(here, tmp_path)


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"torch": "2.13.0+cu130"}, "it is for torch 2.13, and this is 2.11"),
        ({"cuda": "12.8"}, "it is for CUDA 12.8, and this is 13.0"),
        ({"python": "cpython-313"}, "it is for Python cpython-313, and this is"),
        ({"capabilities": ["8.0"]}, "it is for GPUs of capability 8.0, and this one has 9.0"),
        ({"sources": "0"}, "it was built from other sources (commit abc)"),
    ],
)
def test_a_bundle_that_does_not_fit_is_refused_with_the_reason(tool, tmp_path, others, words):
    binaries = tool("gpu_binaries")
    here = manifest(binaries)
    made = bundle(binaries, tmp_path / "bundle.tar.xz", replace(here, **others))
    assert words in binaries.adopt(made, replace(here, python=here.python), tmp_path)
    assert not (tmp_path / "build").exists()


def test_a_damaged_bundle_is_refused_with_the_reason(tool, tmp_path):
    binaries = tool("gpu_binaries")
    here = manifest(binaries)
    made = bundle(binaries, tmp_path / "bundle.tar.xz", here, without="build/gpu/native_tests_cuda")
    assert binaries.adopt(made, here, tmp_path) == "bundle.tar.xz lacks build/gpu/native_tests_cuda"
    made.write_bytes(b"nothing")
    assert "bundle.tar.xz cannot be read" in binaries.adopt(made, here, tmp_path)
    assert "is not there" in binaries.adopt(tmp_path / "none", here, tmp_path)


def test_changed_sources_are_other_sources(tool, tmp_path):
    binaries = tool("gpu_binaries")
    for part in binaries.BUILT_FROM:
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / part).write_text("a")
    before = binaries.sources_digest(tmp_path)
    assert before == binaries.sources_digest(tmp_path)
    (tmp_path / "csrc").write_text("b")
    assert binaries.sources_digest(tmp_path) != before


@pytest.mark.parametrize("why", ["no bundle was given", "bundle.tar.xz lacks", "its extension does not load"])
def test_without_a_bundle_that_works_everything_is_built(bench, monkeypatch, why, tmp_path):
    binaries = bench.check.binaries
    sealed = []
    monkeypatch.setattr(binaries, "in_tree", lambda here: "nothing was built")
    monkeypatch.setattr(binaries, "adopt", lambda path, here: "" if "load" in why else f"{path.name} lacks something")
    commands = {name: ([bench.machine.python, name], {}) for name in binaries.BUILD}
    monkeypatch.setattr(binaries, "build_commands", lambda *arguments: commands)
    monkeypatch.setattr(binaries, "seal", sealed.append)
    if "load" in why:
        run = bench.check.Check.run

        def once_broken(self, step):
            return self.note("load", "failed", detail="no symbol") if step.name == "load" else run(self, step)

        monkeypatch.setattr(bench.check.Check, "run", once_broken)
    options = [] if why.startswith("no bundle") else ["--bundle", tmp_path / "bundle.tar.xz"]
    assert bench.run(1, *options) == 0
    steps = bench.steps(1)
    assert steps["binaries"]["status"] == "ok" and why in steps["binaries"]["detail"] and len(sealed) == 1
    assert all(steps[name]["status"] == "ok" for name in (*commands, "load what was built"))


def test_a_build_that_failed_before_does_not_count_once_there_are_binaries(bench, monkeypatch):
    nvcc = bench.machine.nvcc
    bench.machine = replace(bench.machine, nvcc=None)
    with monkeypatch.context() as patch:
        patch.setattr(bench.check.binaries, "in_tree", lambda here: "nothing was built")
        assert bench.run(1) == 1
    bench.machine = replace(bench.machine, nvcc=nvcc)
    assert bench.run(1) == 0


def test_a_failed_build_ends_the_stage(bench, monkeypatch):
    monkeypatch.setattr(bench.check.binaries, "in_tree", lambda here: "nothing was built")
    bench.machine = replace(bench.machine, nvcc=None)
    assert bench.run(1) == 1
    assert "nvcc was not found" in bench.steps(1)["binaries"]["detail"]
    assert bench.calls() == []


@pytest.fixture
def bundler(tool, tmp_path, monkeypatch):
    """tools/gpu_bundle.py over a small repository, with a compiler that copies."""
    found, repository = tool("gpu_bundle"), tmp_path / "repository"
    for name in ("csrc/a.h", "tests/native/a.cpp", "setup.py", "CMakeLists.txt", "vae_fast/__init__.py"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(name)
    for command in (["init"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "a"]):
        subprocess.run(["git", *command], cwd=repository, check=True, capture_output=True)
    tag = "cpython-312-x86_64-linux-gnu"
    made = ("build/gpu/native_tests_cuda", f"vae_fast/_C.{tag}.so", "vae_fast/_built_for.py")
    code = f"import pathlib\nfor n in {made!r}: p = pathlib.Path(n); p.parent.mkdir(parents=True, exist_ok=True); p.write_text(n)"
    commands = {"build": ([sys.executable, "-c", code], {"CUDA_HOME": "there"})}
    monkeypatch.setattr(found, "ROOT", repository)
    monkeypatch.setattr(found, "TRY", "print('the extension loads')")
    monkeypatch.setattr(found, "with_torch", lambda python: sys.executable)
    monkeypatch.setattr(found, "ask", lambda python: ("2.11.0+cu130", "13.0", tag))
    monkeypatch.setattr(found.cuda_gate, "find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(found.binaries, "build_commands", lambda python, nvcc, here, jobs, root: commands)
    found.commands = commands
    return found


def test_a_bundle_is_of_a_clean_clone_and_fits_where_it_was_made_for(bundler, tmp_path, capsys):
    (bundler.ROOT / "setup.py").write_text("not committed")
    (bundler.ROOT / "untracked").write_text("")
    assert bundler.main(["--out", str(tmp_path / "dist")]) == 0
    said = capsys.readouterr().out
    assert "changes that are not committed" in said and "the extension loads" in said and "MB, torch 2.11.0+cu130, CUDA 13.0" in said
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=bundler.ROOT, capture_output=True, text=True, check=True).stdout.strip()
    archive = tmp_path / "dist" / f"vae_fast-gpu-{commit[:12]}.tar.xz"
    with tarfile.open(archive) as opened:
        names = {n.partition("/")[2] for n in opened.getnames()}
        assert opened.extractfile(f"vae_fast-{commit[:12]}/setup.py").read() == b"setup.py"
    assert {"csrc/a.h", "tests/native/a.cpp", "build/gpu/manifest.json", "vae_fast/_built_for.py"} <= names and "untracked" not in names
    binaries, tree = bundler.binaries, tmp_path / "machine"
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    (tmp_path / f"vae_fast-{commit[:12]}").rename(tree)
    here = replace(manifest(binaries), python="cpython-312-x86_64-linux-gnu", sources=binaries.sources_digest(tree))
    assert binaries.in_tree(here, tree) == ""
    assert binaries.Manifest.read((tree / binaries.MANIFEST).read_bytes()).commit == commit


def test_a_bundle_that_fails_leaves_no_archive(bundler, tmp_path, monkeypatch):
    out = tmp_path / "dist"
    monkeypatch.setattr(bundler, "MOST", 10)
    with pytest.raises(SystemExit, match="expected at most 10"):
        bundler.main(["--out", str(out)])
    monkeypatch.setattr(bundler, "TRY", "raise ImportError('undefined symbol')")
    with pytest.raises(SystemExit, match=r"does not work:(.|\n)*undefined symbol"):
        bundler.main(["--out", str(out)])
    bundler.commands["build"] = ([sys.executable, "-c", "raise SystemExit(3)"], {})
    with pytest.raises(SystemExit, match="exit 3"):
        bundler.main(["--out", str(out)])
    assert not list(out.glob("*"))


def test_a_bundle_needs_the_python_it_is_for(tool, monkeypatch):
    found = tool("gpu_bundle")
    monkeypatch.setattr(found, "PYTHON", (2, 7))
    with pytest.raises(SystemExit, match=r"--python .*: expected Python 2\.7, got 3\."):
        found.with_torch(sys.executable)


# --- its parts --------------------------------------------------------------------------------------------------------


def test_every_predicted_kernel_is_timed_and_says_how(tool, tmp_path, capsys):
    kernels = tool("gpu_kernels")
    if kernels.C is None:
        pytest.skip("the extension was not built")
    assert {row["kernel"] for row in json.loads(kernels.TABLE.read_text())} <= {call.name for call in kernels.CALLS}
    assert kernels.predictions("NVIDIA H200")["logsumexp bf16, forward, K=784"] < 1.0
    assert kernels.predictions("another") == {}
    out = tmp_path / "kernels.json"
    assert kernels.main(["--device", "cpu", "--rows", "16", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["kernel"] for row in rows] == [call.name for call in kernels.CALLS]
    assert all(row["seconds"] > 0 and row["timer"] == "clock" and row["share"] > 0 for row in rows)
    first = rows[0]
    assert first["bytes"] == 16 * (3 * 784 + 2 * 4) * 4  # read twice, written once, and a small latent
    capsys.readouterr()
    with pytest.raises(SystemExit):
        kernels.main(["--only", "nothing"])
    assert "--only 'nothing': expected one of" in capsys.readouterr().err


def test_the_host_says_what_it_can_be_told_to_choose(tool):
    kernels = tool("gpu_kernels")
    if kernels.C is None:
        pytest.skip("the extension was not built")
    if torch.version.cuda is None:
        with pytest.raises(RuntimeError, match="set_cuda_tuning: the extension was built without CUDA"):
            kernels.C.set_cuda_tuning(8, 0, 0)
    else:
        with pytest.raises(ValueError, match="lanes=12, blocks_per_processor=0, chunk_bytes=0: expected 0, 8, 16"):
            kernels.C.set_cuda_tuning(12, 0, 0)


def test_only_tests_with_a_gpu_in_them_are_kept_for_one():
    class Item:
        def __init__(self, marked=False, **parameters):
            self.marked = marked
            if parameters:
                self.callspec = type("CallSpec", (), {"params": parameters})

        def get_closest_marker(self, name):
            return "cuda" if self.marked and name == "cuda" else None

    assert conftest.on_cuda(Item(device="cuda", other=torch.zeros(2))) and conftest.on_cuda(Item(marked=True))
    assert not conftest.on_cuda(Item(device="cpu")) and not conftest.on_cuda(Item())
