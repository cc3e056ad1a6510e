"""`vae-fast bench`: its files and lines, the advice, and one-line errors."""

import csv
import json
import time

import pytest
import torch
from bench_results import SMALL, result, run
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from one_line_errors import one_line

from vae_fast.bench import advice, cases_head, machine, measure, pictures, report, sources, suites
from vae_fast.bench.case import Bench, Case, Work, leaf, plain
from vae_fast.bench.options import Options

RESULTS = sources.ROOT / "benchmarks" / "results"
pytestmark = pytest.mark.usefixtures("no_pause")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    threads = torch.get_num_threads()
    assert run("--suite", "kernels", "--suite", "mixtures", "--suite", "memory", "--suite", "sweeps", "--out", out, *SMALL) == 0
    torch.set_num_threads(threads)
    return out


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", ["kernels", "mixtures", "memory", "sweeps"])
def test_a_row_per_measure_says_where_it_was_taken(written, suite):
    result = json.loads((written / f"{suite}.json").read_text())
    with (written / f"{suite}.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(result["rows"]) > 0
    processor, commit = machine.processor()["processor"], sources.commit()  # processes that are asked, once for all rows
    for row, line in zip(result["rows"], lines, strict=True):
        assert row["machine"] == line["machine"] == processor
        assert (row["torch"], row["commit"]) == (str(torch.__version__), commit)
        assert row["threads"] == (2 if "2 threads" in row["case"] else 1)
        assert row["date"] and row["shape"] and row["dtype"] == line["dtype"]
        assert line["case"] == row["case"] and line["contender"] == row["contender"] in ("ours", "eager")
    assert report.read(written / f"{suite}.json")["suite"] == suite


def test_every_direction_is_timed_with_quantiles_and_limits(written):
    rows = json.loads((written / "kernels.json").read_text())["rows"]
    first = [r for r in rows if r["case"] == "elbo_loss, logits, B=64 D=16 L=4"]
    assert {(r["contender"], r["direction"]) for r in first} == {(c, d) for c in ("ours", "eager") for d in ("both", "forward", "backward")}
    for r in first:
        assert 0 < r["q20"] <= r["seconds"] <= r["q80"]
        if r["direction"] == "both":
            assert r["peak_bytes"] > 0 and r["host_microseconds"] > 0
            assert r["reached"] == pytest.approx(r["limit_seconds"] / r["seconds"])
            assert r["gb_per_second"] == pytest.approx(r["least_bytes"] / r["seconds"] / 1e9)
            assert r["copy_gb_per_second"] > 0.5


def test_markdown_and_pictures(written):
    text = (written / "kernels.md").read_text()
    assert text.startswith("| forward + backward | ours | eager | limit, reached | peak memory: ours / eager |\n|---|---|---|---|---|\n")
    assert "commit " + sources.commit() in text
    for name in ("speed", "memory", "roofline"):
        assert min(imread(written / f"{name}.png").shape[:2]) >= 500


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in RESULTS.glob("*/kernels.json")))
def test_the_limits_labels_of_a_roofline_lie_on_no_point(folder):
    rows = [r for suite in ("kernels", "mixtures") for r in report.read(RESULTS / folder / f"{suite}.json")["rows"]]
    figure = pictures._roofline([r for r in rows if r["direction"] == "both"])
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    (axes,) = figure.axes
    labels = [t for t in axes.texts if t.get_text().startswith(("copy ", "multiply-adds "))]
    assert len(labels) == 2
    points = [p for each in axes.collections for p in axes.transData.transform(each.get_offsets())]
    assert len(points) > 20
    for label in labels:
        box = label.get_window_extent(renderer).padded(4)
        assert not any(box.contains(x, y) for x, y in points), label.get_text()
        assert axes.get_window_extent(renderer).x0 < box.x0


def test_random_images_stand_in_for_mnist(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("VAE_FAST_DATA", str(tmp_path))
    assert run("--suite", "training", "--quick", "--contenders", "ours", "eager") == 0
    out, err = capsys.readouterr()
    assert "random images in place of MNIST" in err
    assert "one epoch of 550 steps" in out


def test_what_does_not_fit_is_skipped_with_a_line():
    lines = []
    case = cases_head.elbo(8, 4, 2, against=())
    huge = Case(**{**vars(case), "needs": {"eager": 1 << 60}})
    rows = suites.measure_case("kernels", huge, Options(quick=True, seconds=0.01, say=lines.append), None)
    assert {r["contender"] for r in rows} == {"ours"}
    assert len(lines) == 1 and lines[0].startswith("skipped eager of elbo_loss")
    lines.clear()
    assert suites.run("kernels", Options(quick=True, deadline=0.0, say=lines.append)) == []
    assert all(line.endswith("no time left") for line in lines) and len(lines) == 4


# --- the likelihoods --------------------------------------------------------------------------------------------------

LIKELIHOODS = {case.name: case for case in suites.cases("likelihoods", Options(quick=True))}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_likelihood_is_the_formula_that_it_is_held_against(name):
    """In values and gradients, over the inputs that are measured, and so are our other routes; the formula is computed in float64."""
    case = LIKELIHOODS[name]
    inputs = case.inputs("cpu", torch.Generator().manual_seed(0))
    upstream = torch.randn(case.shape["B"])
    found = {}
    for contender in (n for n in case.contenders if not n.startswith("compile")):
        dtype = torch.float64 if contender == "eager" else torch.float32
        given = [t.detach().to(dtype).requires_grad_() if t.requires_grad else t for t in inputs]
        out = case.contenders[contender]()(*given)
        grads = torch.autograd.grad(out, [t for t in given if t.requires_grad], upstream.to(out.dtype))
        found[contender] = [t.detach().float() for t in (out, *grads)]
    for other, values in found.items():
        torch.testing.assert_close(values, found["ours"], rtol=2e-4, atol=2e-4, msg=lambda text, n=other: f"{n}: {text}")


def test_the_bytes_of_a_likelihood_are_those_of_its_tensors():
    for case in LIKELIHOODS.values():
        tensors = case.inputs("cpu", torch.Generator().manual_seed(0))
        read, out = sum(held(t) for t in tensors), 4 * case.shape["B"]
        written = sum(held(t) for t in tensors if t.requires_grad)
        assert written > 0
        assert case.least_bytes == {"forward": read + out, "backward": read + written + out, "both": 2 * read + written + 2 * out}, (
            case.name
        )


def held(t):
    """Bytes of a tensor, in its parts if it is sparse."""
    if t.layout == torch.sparse_csr:
        return sum(part.nbytes for part in (t.crow_indices(), t.col_indices(), t.values()))
    return t.nbytes


def test_the_suite_of_likelihoods(tmp_path, capsys):
    name = "laplace_log_prob"
    small = ["--quick", "--contenders", "ours", "eager", "--seconds", "0.01", "--threads", "1", "--no-pictures"]
    assert run("--suite", "likelihoods", "--out", tmp_path, *small) == 0
    rows = json.loads((tmp_path / "likelihoods.json").read_text())["rows"]
    assert {r["name"] for r in rows} == set(LIKELIHOODS)
    assert all(r["limit_seconds"] > 0 and r["limit"] in ("copy", "arithmetic") for r in rows if r["direction"] == "both")
    assert all(r["peak_bytes"] > 0 for r in rows if r["direction"] == "both")
    assert f"| {name}, B=256 D=784 |" in (tmp_path / "likelihoods.md").read_text()
    assert report.read(tmp_path / "likelihoods.json")["suite"] == "likelihoods"
    capsys.readouterr()


# --- how it is measured -----------------------------------------------------------------------------------------------


def test_small_inputs_are_rotated_and_gradients_dropped():
    bench_ = Bench(cases_head.elbo(8, 4, 2), "cpu")
    assert len(bench_.sets) == 3
    work = bench_.work("ours")
    assert len({work.prepare()[1].data_ptr() for _ in range(6)}) == 3
    work()
    assert sum(s[1].grad is not None for s in bench_.sets) == 1
    for _ in range(3):
        work.prepare()
    assert all(s[1].grad is None for s in bench_.sets)


def test_contenders_compute_the_same():
    for case in (
        cases_head.elbo(8, 12, 3),
        cases_head.elbo(8, 12, 3, probs=True),
        *suites.cases("mixtures", Options(quick=True))[:1],
    ):
        bench_ = Bench(case, "cpu")
        with torch.no_grad():
            results = [case.contenders[n]()(*bench_.sets[0]) for n in case.contenders if n in ("ours", "eager", "distributions")]
        for other in results[1:]:
            torch.testing.assert_close(results[0], other, rtol=1e-4, atol=1e-4)


def test_forward_and_backward_are_told_apart():
    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            time.sleep(0.004)
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            time.sleep(0.008)
            return g

    work = Work(Slow.apply, [(leaf(torch.zeros(2)),)], None)
    times = measure.in_turns({"slow": work}, "cpu", seconds=0.1, rounds=2)["slow"]
    forward, backward, both = (times.quantiles(d)[0] for d in ("forward", "backward", "both"))
    assert 0.004 <= forward < 0.008 <= backward < both
    assert both == pytest.approx(forward + backward, rel=0.2)


@pytest.mark.parametrize(("takes", "seconds", "untimed"), [(0.03, 0.1, 2), (0.03, 0.02, 0)])
def test_a_turn_begins_with_a_call_that_is_not_timed(takes, seconds, untimed):
    calls = []

    def slow(x):
        calls.append(x)
        time.sleep(takes)
        return x

    times = measure.in_turns({"slow": Work(slow, [(torch.zeros(2),)], None)}, "cpu", seconds=seconds, rounds=2)["slow"]
    assert len(calls) == 5 + untimed + len(times.seconds["both"])  # five to warm up; of those that take longer than `seconds`, no more


def test_peak_memory_counts_what_lives_at_once():
    work = Work(lambda x: (x + 1).sum() + (x + 2).sum(), [(torch.zeros(1 << 20),)], None)
    assert 4 << 20 <= measure.peak_memory(work, "cpu") < 6 << 20


# --- the advice -------------------------------------------------------------------------------------------------------

MODEL = """
import time, torch

class Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, seconds):
        ctx.seconds = seconds
        time.sleep(seconds)
        return x.clone()
    @staticmethod
    def backward(ctx, g):
        time.sleep(2 * ctx.seconds)
        return g, None

w = torch.ones(3, requires_grad=True)
scale = torch.ones(3, requires_grad=True)

def loss(y, *, factor):
    return (Wait.apply(y, LOSS) * factor * scale).sum()

def step():
    w.grad = scale.grad = None
    loss(Wait.apply(w * 2, REST), factor=3.0).backward()
"""


def model(tmp_path, loss, rest):
    (tmp_path / "model.py").write_text(MODEL.replace("LOSS", str(loss)).replace("REST", str(rest)))
    return advice._load(tmp_path / "model.py")


def test_the_share_of_the_loss_is_told(tmp_path):
    module = model(tmp_path, 0.01, 0.03)
    found = advice.advise(module.step, (module, "loss"), steps=5, warm_up=1)
    assert found.share == pytest.approx(0.25, abs=0.05)
    assert found.most == pytest.approx(1 / 0.75, abs=0.1)
    assert found.step_seconds == pytest.approx(0.12, abs=0.03)


def test_advice_for_a_file(tmp_path, capsys):
    model(tmp_path, 0.0, 0.0)
    assert run("--advise", tmp_path / "model.py") == 0
    assert "a faster loss can save at most that" in capsys.readouterr().out


def test_advice_on_bfloat16_follows_what_is_measured(tmp_path, monkeypatch, capsys):
    model(tmp_path, 0.0, 0.0)
    for speed, advised in ((2.0, True), (1.2, False)):
        monkeypatch.setattr(advice, "bfloat16_speed", lambda speed=speed: speed)
        assert run("--advise", tmp_path / "model.py") == 0
        said = "bfloat16 are 2.0 times as fast as in float32 on this processor: try fit(..., amp=torch.bfloat16), or --amp bf16"
        assert (said in capsys.readouterr().out) == advised


def test_advice_leaves_gradients_and_functions_as_they_were(tmp_path):
    module = model(tmp_path, 0.0, 0.0)
    before = module.loss
    advice.advise(module.step, (module, "loss"), steps=2, warm_up=0)
    assert module.loss is before
    with advice._hooked([(module, "loss")]):
        module.step()
    assert module.w.grad.tolist() == [6.0] * 3
    assert module.scale.grad.tolist() == [6.0] * 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "defines neither step() nor train_step()"),
        ("def step(): pass", "has no function loss"),
        ("def step(): pass\ndef loss(): pass", "step() did not call loss"),
        ("def step(): 1 / 0\ndef loss(): pass", "step() failed: ZeroDivisionError"),
        ("def step(:", "SyntaxError"),
    ],
)
def test_a_model_that_cannot_be_used(tmp_path, capsys, text, words):
    (tmp_path / "model.py").write_text(text)
    one_line(capsys, run("--advise", tmp_path / "model.py"), tmp_path / "model.py", words)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--suite", "speed"], ["'speed'", "kernels", "mixtures", "overhead"]),
        (["--shape", "10,20"], ["'10,20'", "three positive integers B,D,L"]),
        (["--shape", "10,0,3"], ["'10,0,3'", "three positive integers"]),
        (["--shape", "a,b,c"], ["'a,b,c'", "three positive integers"]),
        (["--device", "tpu"], ["tpu", "expected cpu, cuda or cuda:N"]),
        (["--dtype", "int8"], ["'int8'", "float32", "bfloat16"]),
        (["--threads", "0"], ["'0'", "at least 1"]),
        (["--fail-if-slower", "much"], ["'much'", "a share such as 5%"]),
        (["--contenders", "nobody", "--quick"], ["nobody", "ours, eager"]),
        (["--pretend-slower", "nothing=20%", "--quick"], ["nothing", "elbo_loss, logits"]),
        (["--result", "a.json"], ["--result", "--compare FILE"]),
        (["--compare", "nowhere.json"], ["nowhere.json", "expected a JSON file"]),
        (["--compare", "a.json", "--quick"], ["--quick", "the cases are those of the earlier result"]),
        (["--compare", "a.json", "--suite", "linear"], ["--suite", "the cases are those of the earlier result"]),
        (["--compare", "a.json", "--shape", "1,2,3"], ["--shape", "the cases are those of the earlier result"]),
        (["--compare", "a.json", "--dtype", "float64"], ["--dtype", "the cases are those of the earlier result"]),
        (["--compare", "a.json", "--out", "b"], ["--out b", "a comparison writes no files"]),
        (["--out", "", "--quick"], ["--out", "'': expected a name"]),
        (["--advise", "nowhere.py"], ["nowhere.py", "step()"]),
    ],
)
def test_bad_options_are_one_line(capsys, options, words):
    one_line(capsys, run(*options), *words)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "nonsense", "[" * 100_000, '{"suite": "kernels", "machine": {}, "rows": [1]}', '{"rows": 3}']
)
def test_unreadable_results_are_one_line(tmp_path, capsys, text):
    (tmp_path / "result.json").write_text(text)
    one_line(capsys, run("--compare", tmp_path / "result.json"), tmp_path / "result.json", "`vae-fast bench --out` wrote")


def test_nothing_in_common_is_an_error(tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps(result()))
    other = result()
    for row in other["rows"]:
        row["case"] += " of another kind"
    (tmp_path / "b.json").write_text(json.dumps(other))
    one_line(capsys, run("--compare", tmp_path / "a.json", "--result", tmp_path / "b.json"), "nothing to compare")


def test_a_missing_package_is_a_skipped_contender():
    def missing():
        raise ImportError("no such package")

    case = cases_head.elbo(8, 4, 2, against=())
    lines = []
    case = Case(
        **{**vars(case), "contenders": {"ours": plain(torch.sin), "keops": missing}, "inputs": lambda d, g: (leaf(torch.zeros(2)),)}
    )
    rows = suites.measure_case("kernels", case, Options(quick=True, say=lines.append), None)
    assert {r["contender"] for r in rows} == {"ours"}
    assert lines == [f"skipped keops of {case.label}: not installed"]


def test_a_peer_that_fails_is_a_skipped_contender():
    def fails(*inputs):
        raise RuntimeError("no compiler\nwas found")

    case = cases_head.elbo(8, 4, 2, against=())
    lines = []
    case = Case(**{**vars(case), "contenders": {**case.contenders, "compile": plain(fails)}})
    rows = suites.measure_case("kernels", case, Options(quick=True, say=lines.append), None)
    assert {r["contender"] for r in rows} == {"ours", "eager"}
    assert lines == [f"skipped compile of {case.label}: RuntimeError: no compiler"]
    with pytest.raises(RuntimeError, match="no compiler"):
        suites.measure_case("kernels", Case(**{**vars(case), "contenders": {"ours": plain(fails)}}), Options(quick=True), None)
