"""Results of `vae-fast bench`: whose they are, what is promised of them, what they replace, several beside each other."""

import importlib.util
import json

import pytest
import torch
from bench_results import SMALL, here, result, run, synthetic
from one_line_errors import one_line

from vae_fast.bench import machine, promises, ranges, report, sources, suites, training
from vae_fast.bench.options import Options
from vae_fast.errors import FileError

pytestmark = pytest.mark.usefixtures("no_pause")
EPYC = {"device": "cpu", "machine": "AMD EPYC", "threads": 2, "dtype": "float32", "least_bytes": 1}
XEON = EPYC | {"machine": "Intel(R) Xeon(R) Processor @ 2.70GHz"}
ELBO = "elbo_loss, logits, B=8192 D=784 L=20"


def cpuinfo(name, family, model, flags, vendor="GenuineIntel"):
    return f"processor : 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: {name}\nflags : fpu {flags}\n"


def load_readme():
    spec = importlib.util.spec_from_file_location("benchmarks_readme", sources.ROOT / "benchmarks" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- which machine ----------------------------------------------------------------------------------------------------


def test_processors_that_differ_have_folders_of_their_own():
    texts = [
        cpuinfo("AMD EPYC", 25, 17, "avx2 avx512f avx512_bf16", "AuthenticAMD"),
        cpuinfo("AMD EPYC", 26, 2, "avx2 avx512f avx512_bf16", "AuthenticAMD"),
        cpuinfo("Intel(R) Xeon(R) Processor @ 2.70GHz", 6, 143, "avx2 avx512f avx512_bf16 amx_bf16 amx_tile"),
        cpuinfo("Intel(R) Xeon(R) Processor @ 2.70GHz", 6, 143, "avx2 avx512f avx512_bf16"),  # the hypervisor hides AMX
        cpuinfo("Intel(R) Xeon(R) Processor @ 2.70GHz", 6, 106, "avx2 avx512f"),
    ]
    all_facts = [machine.processor(t) | {"instruction_set": "avx512", "threads": 2} for t in texts]
    names = [machine.name(f) for f in all_facts]
    assert names == [
        "amd-epyc-family-25-model-17-avx512-bf16-2-threads",
        "amd-epyc-family-26-model-2-avx512-bf16-2-threads",
        "intel-xeon-family-6-model-143-avx512-bf16-amx-2-threads",
        "intel-xeon-family-6-model-143-avx512-bf16-2-threads",
        "intel-xeon-family-6-model-106-avx512-2-threads",
    ]
    assert all_facts[2]["instructions"] == ["avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16"]
    assert machine.label(all_facts[0]) == "AMD EPYC (family 25, model 17), avx512 + bf16, 2 threads"
    for i, a in enumerate(all_facts):
        assert [bool(machine.differences(a, b)) for b in all_facts] == [i != j for j in range(len(all_facts))]
    gpu = {"device": "cuda", "gpu": "NVIDIA H200", **all_facts[0]}
    assert machine.name(gpu) == "nvidia-h200" and machine.differences(gpu, gpu | {"threads": 1}) == []


def test_an_arm_processor_is_told_too():
    text = "processor : 0\nCPU implementer : 0x41\nCPU architecture: 8\nCPU part : 0xd40\nFeatures : fp asimd sve bf16\n"
    found = machine.processor(text)
    assert (found["vendor"], found["family"], found["model"]) == ("0x41", "8", "0xd40")
    assert found["instructions"] == ["asimd", "sve", "bf16"]


def test_facts_hold_what_tells_machines_apart():
    found = machine.facts("cpu")
    assert {"vendor", "family", "model", "instructions"} <= found.keys()
    assert found["code"] == {what: sources.digest(what, "cpu") for what in sources.PATHS}


def test_committed_results_lie_in_the_folder_of_their_machine():
    paths = sorted((sources.ROOT / "benchmarks" / "results").glob("*/*.json"))
    assert paths
    for path in paths:
        facts = json.loads(path.read_text()).get("machine")
        assert facts is None or machine.name(facts) == path.parent.name


# --- what is promised -------------------------------------------------------------------------------------------------


def test_a_promise_is_a_ratio_or_a_share_of_the_same_run():
    """The ratios that were set on one processor do not judge another; the shares and 0.98x judge all."""
    assert promises.least(EPYC | {"case": ELBO, "contender": "eager"}) == 9
    assert promises.least(XEON | {"case": ELBO, "contender": "eager"}) == 0.98
    assert promises.least(EPYC | {"case": ELBO, "contender": "eager", "threads": 1}) == 0.98
    assert promises.least(XEON | {"case": "reparameterize_with_kl, B=8192 L=20", "contender": "eager"}) == 4.5
    for where in (EPYC, XEON):
        assert promises.share(where | {"case": ELBO, "name": "elbo_loss, logits", "limit": "copy"}) == 0.8
        mixture = where | {"case": "mixture_log_prob, N=100000 K=64 D=16", "name": "mixture_log_prob", "limit": "arithmetic"}
        assert promises.share(mixture) == 0.4 and promises.share(mixture | {"limit": "copy"}) is None
        assert promises.share(mixture | {"dtype": "float64"}) is None
    h200 = EPYC | {"device": "cuda", "machine": "NVIDIA H200", "case": "any", "name": "any", "limit": "copy"}
    assert promises.share(h200 | {"least_bytes": 256 << 20}) == 0.9 and promises.share(h200) is None
    assert promises.share(h200 | {"least_bytes": 256 << 20, "machine": "NVIDIA A100"}) is None
    assert promises.least(h200 | {"case": "elbo_loss, logits, B=65536 D=784 L=20", "contender": "compile"}) == 1.3


def test_every_promise_is_of_a_case_that_exists():
    for device, tables in {
        "cpu": (promises._CPU_SHARES, promises._CPU_RATIOS, promises._EPYC),
        "cuda": (promises._H200, promises._H200_SHARES),
    }.items():
        labels = {c.label for suite in ("kernels", "mixtures", "likelihoods") for c in suites.cases(suite, Options(device=device))}
        labels.add(f"VAE 784-500-500-20 on MNIST, one epoch of {55_000 // training.BATCH} steps")
        for table in tables:
            assert table.keys() <= labels


def test_rows_are_marked_by_the_promises():
    name = "elbo_loss, logits"
    ours = synthetic(ELBO, "ours", 1.0) | EPYC | {"name": name, "reached": 0.796}
    rows = [ours, synthetic(ELBO, "eager", 5.0) | EPYC, synthetic(ELBO, "compile", 0.9) | EPYC]
    text = report.markdown(report.table("kernels", rows))
    assert "**5.0x, below 9x**" in text and "**0.90x, slower**" in text and "**79.6%, below 80%**" in text
    there = report.markdown(report.table("kernels", [r | XEON for r in rows]))
    assert ": 5.0x |" in there and "**0.90x, slower**" in there and "**79.6%, below 80%**" in there
    good = [ours | {"reached": 0.8}, synthetic(ELBO, "eager", 9.0) | EPYC, synthetic(ELBO, "compile", 3.0) | EPYC]
    assert "**" not in report.markdown(report.table("kernels", good))
    assert "slower" in report.terminal(report.table("kernels", rows)) and "**" not in report.terminal(report.table("kernels", rows))


def test_a_little_slower_than_anything_is_marked():
    rows = [synthetic("a", "ours", 1.0), synthetic("a", "eager", 0.985), synthetic("a", "compile", 0.97)]
    text = report.markdown(report.table("kernels", rows))
    assert ": 0.98x |" in text and "**0.97x, slower** within noise" in text


def test_the_faster_way_to_compile_counts():
    case = {"case": ELBO} | EPYC
    rows = [synthetic("a", "ours", 1.0), synthetic("a", "compile", 4.0), synthetic("a", "compile-max", 2.0)]
    for order in (rows, rows[::-1]):
        assert "**2.0x, below 3x**" in report.markdown(report.table("kernels", [r | case for r in order]))


# --- what may be replaced ---------------------------------------------------------------------------------------------

QUICK, FULL = {"quick": True}, {"quick": False}


def written(out, facts, options):
    return report.write(out, "kernels", facts, result()["rows"], options)


def test_a_result_of_the_same_machine_is_replaced(tmp_path):
    written(tmp_path, here(), QUICK)
    written(tmp_path, here(commit="another"), FULL)
    assert report.read(tmp_path / "kernels.json")["machine"]["commit"] == "another"


@pytest.mark.parametrize(
    ("facts", "options", "words"),
    [
        ({"model": "999"}, FULL, "another machine (model"),
        ({"threads": 9}, FULL, "threads 1, now 9"),
        ({}, QUICK, "fuller result by one measured with --quick"),
        ({}, FULL | {"contenders": ["ours"]}, "fuller result by one measured with --contenders"),
        ({}, FULL | {"shapes": [[1, 2, 3]], "dtype": "float64"}, "with --shape, with --dtype"),
    ],
)
def test_another_result_is_not_replaced(tmp_path, facts, options, words):
    before = [path.read_bytes() for path in written(tmp_path, here(), FULL)]
    with pytest.raises(FileError) as error:
        written(tmp_path, here(**facts), options)
    assert words in str(error.value) and "kernels.json" in str(error.value)
    assert [(tmp_path / f"kernels{end}").read_bytes() for end in report.FILES] == before


@pytest.mark.parametrize(
    ("name", "text"), [("kernels.json", '{"mine": 1}'), ("kernels.csv", "a,b"), ("kernels.md", "notes"), ("speed.png", "picture")]
)
def test_files_that_are_not_results_are_not_replaced(tmp_path, capsys, name, text):
    (tmp_path / name).write_text(text)
    one_line(capsys, run("--suite", "kernels", "--out", tmp_path, *SMALL), tmp_path / name, "--out would replace it")
    assert (tmp_path / name).read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_result_of_another_suite_is_not_replaced(tmp_path):
    report.write(tmp_path, "linear", here(), result()["rows"], FULL)
    (tmp_path / "linear.json").rename(tmp_path / "kernels.json")
    with pytest.raises(FileError, match="holds the suite linear, not kernels"):
        written(tmp_path, here(), FULL)


def test_training_to_a_loss_is_not_lost(tmp_path):
    report.write(tmp_path, "training", here(), result()["rows"], FULL | {"full": True})
    with pytest.raises(FileError, match="measured without --full"):
        report.write(tmp_path, "training", here(), result()["rows"], FULL | {"full": False})


def test_options_that_leave_something_out_are_recorded():
    found = Options(quick=True, full=True, shapes=[(1, 2, 3)], dtype="float64", contenders=("ours",)).recorded
    assert report.partial(found) == ["quick", "shapes", "dtype", "contenders"] and found["full"]
    assert report.partial(Options().recorded) == []


def test_a_run_with_changed_code_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sources, "commit", lambda: "abc+changes")
    threads = torch.get_num_threads()
    assert run("--suite", "mixtures", "--no-pictures", "--out", tmp_path, *SMALL) == 0
    torch.set_num_threads(threads)
    out, err = capsys.readouterr()
    assert "differs from its commit: the result says abc+changes" in err
    assert "commit abc+changes" in out and "commit abc+changes" in (tmp_path / "mixtures.md").read_text()


def test_scripts_replace_their_own_results_alone(tmp_path):
    path = report.script_place(str(tmp_path / "{machine}"), "mnist.json", here())
    assert path == tmp_path / machine.name(here()) / "mnist.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"machine": here()}))
    assert report.script_place(str(path.parent), "mnist.json", here()) == path
    with pytest.raises(FileError, match="is of another machine"):
        report.script_place(str(path.parent), "mnist.json", here(model="999"))
    for text in ("[]", "{}", "words"):
        path.write_text(text)
        with pytest.raises(FileError, match="not known to be a result"):
            report.script_place(str(path.parent), "mnist.json", here())


# --- several machines -------------------------------------------------------------------------------------------------


def machine_with(folder, date, ours, reached=0.9, processor="AMD EPYC", **facts):
    """A machine's kernels: ELBO and KL, with eager at 10 s and torch.compile at 4 s."""
    found = here(processor=processor, threads=2, date=date, **facts)
    where = {"device": found["device"], "machine": found.get("gpu", processor), "threads": 2}
    rows = []
    for case, name in ((ELBO, "elbo_loss, logits"), ("gaussian_kl, B=8192 L=20", "gaussian_kl")):
        rows += [synthetic(case, c, s) | where | {"name": name} for c, s in (("ours", ours), ("eager", 10.0), ("compile", 4.0))]
        rows[-3]["reached"] = reached
    report.write(folder / machine.name(found), "kernels", found, rows, FULL)
    return found


def test_one_machine_says_so(tmp_path):
    found = machine_with(tmp_path, "2026-01-01", 1.0)
    text = load_readme().tables(tmp_path)
    assert text.startswith(f"**Measured on one CPU: {machine.label(found)}**\n\n| forward + backward | ours | eager |")
    assert "one CPU has measured so far" in text
    assert f"| {ELBO} | 1 | 10.0x | 4.0x | 4.0x | 90% (copy) |" in text
    assert f"| {machine.label(found)} | {found['torch']} | kernels: {found['commit']} | 2026-01-01 |" in text


def test_ranges_over_machines(tmp_path):
    old = machine_with(tmp_path, "2026-01-01", 1.0)
    new = machine_with(tmp_path, "2026-01-02", 5.0, reached=0.7, processor="Intel(R) Xeon(R) Processor @ 2.70GHz")
    gpu = machine_with(tmp_path, "2026-01-03", 2.0, device="cuda", gpu="NVIDIA A100")
    text = load_readme().tables(tmp_path)
    cpu, cuda = text.split("**Measured on one GPU: NVIDIA A100**")
    assert cpu.startswith(f"**Measured on one CPU: {machine.label(new)}**")  # the one that measured last
    assert cpu.count("| forward + backward | ours |") == 1 and "ranges over 2 CPUs" in cpu
    assert f"| {ELBO} | 2 | **2.0x to 10.0x** | **0.80x to 4.0x** | **0.80x to 4.0x** | **70% to 90% (copy)** |" not in cpu
    assert f"| {ELBO} | 2 | 2.0x to 10.0x | **0.80x to 4.0x** | **0.80x to 4.0x** | **70% to 90% (copy)** |" in cpu
    assert "| gaussian_kl, B=8192 L=20 | 2 | 2.0x to 10.0x | **0.80x to 4.0x** | **0.80x to 4.0x** | 70% to 90% (copy) |" in cpu
    assert all(machine.label(facts) in cpu for facts in (old, new)) and "one GPU has measured so far" in cuda
    assert gpu["gpu"] not in cpu


def test_of_one_day_the_later_time_is_shown(tmp_path):
    later = machine_with(tmp_path, "2026-01-01", 1.0, time="16:20")
    machine_with(tmp_path, "2026-01-01", 1.0, processor="Intel Xeon", time="09:05")
    assert load_readme().tables(tmp_path).startswith(f"**Measured on one CPU: {machine.label(later)}**")


def test_of_one_time_the_later_name_is_shown_whatever_the_code(tmp_path, monkeypatch):
    machine_with(tmp_path, "2026-01-01", 1.0)
    later = machine_with(tmp_path, "2026-01-01", 1.0, processor="Intel Xeon")
    module = load_readme()
    shown = []
    for stale in (False, True):
        monkeypatch.setattr(sources, "stale", lambda facts, what, stale=stale: stale and facts["processor"] == "Intel Xeon")
        shown.append(module.tables(tmp_path))
        assert shown[-1].startswith(f"**Measured on one CPU: {machine.label(later)}**")
    assert module.plain(shown[0]) == module.plain(shown[1]) != shown[1]
    assert "(changed since)" in shown[1] and "The code it measured has changed since." in shown[1]
    assert "tale" not in shown[1].replace("gaussian", "")


def test_the_front_page_leaves_out_what_other_code_gave(tmp_path, monkeypatch):
    """Four rows at most with their picture, of this checkout's code; the page is checked without that."""
    found = machine_with(tmp_path, "2026-01-01", 2.0)
    module = load_readme()
    monkeypatch.setattr(sources, "stale", lambda facts, what: False)
    table, picture = module.front(tmp_path)
    assert "| ELBO, 8,192 images of 784 pixels | 2.0 s | PyTorch 10.0 s: 5.0x | 4.0 s: 2.0x |" in table
    assert table.endswith(f"{machine.label(found)}; torch {found['torch']}; 2026-01-01; commit {found['commit']}.")
    assert f"]({module.PICTURE.as_posix()})" in table and "vae_fast: 2.0 s (5.0x)" in picture
    assert [width for width in (528, 211, 106) if f'width="{width}"' in picture] == [528, 211, 106]
    monkeypatch.setattr(sources, "stale", lambda facts, what: True)
    assert module.front(tmp_path) == ("", "")
    assert module.front(tmp_path, changed=True) == (table, picture)


def test_a_page_that_is_otherwise_is_found(tmp_path, monkeypatch):
    module = load_readme()
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- table:begin -->\nold. The code it measured has changed since.\n<!-- table:end -->\n")
    text = module.filled(page, {"table": "old."})
    assert text == "a\n<!-- table:begin -->\nold.\n<!-- table:end -->\n"
    assert module.differing({page: text}) == []
    assert module.differing({page: module.filled(page, {"table": "new"})}) == [page]
    assert module.differing({tmp_path / "speed.svg": ""}) == []
    assert module.differing({tmp_path / "speed.svg": "<svg/>"}) == [tmp_path / "speed.svg"]
    monkeypatch.setattr(module, "ROOT", tmp_path)
    with pytest.raises(FileError, match=r"page\.md: holds 0 blocks between mnist:begin and mnist:end; expected one"):
        module.filled(page, {"mnist": "new"})


@pytest.mark.parametrize(
    ("options", "folder", "words"), [(QUICK, "{}", "was measured with --quick"), (FULL, "other", "expected in a folder named")]
)
def test_what_is_not_to_be_shown_is_refused(tmp_path, options, folder, words):
    written(tmp_path / folder.format(machine.name(here())), here(), options)
    with pytest.raises(FileError, match=words):
        ranges.load(tmp_path)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_are_of_every_result_of_this_machine_beside_them(tmp_path, monkeypatch):
    """A suite measured again does not draw over a picture of several suites with itself alone."""
    drawn = []
    monkeypatch.setattr("vae_fast.cli.bench.pictures.draw", lambda out, rows: drawn.append({row["suite"] for row in rows}))
    for suite, facts in (("mixtures", here()), ("linear", here(threads=7))):
        rows = [row | {"suite": suite} for row in result()["rows"]]
        (tmp_path / f"{suite}.json").write_text(json.dumps(result() | {"suite": suite, "machine": facts, "rows": rows}))
    assert run("--suite", "kernels", *SMALL, "--out", tmp_path) == 0
    assert drawn == [{"kernels", "mixtures"}]
