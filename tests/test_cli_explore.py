"""The command `vae-fast explore`: the page and the picture of a trained model, the window, and one-line errors."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.image import imread
from one_line_errors import one_line

from vae_fast import cli, plots
from vae_fast.data import load
from vae_fast.models import MLPVAE
from vae_fast.training import checkpoint


def train(out, *options):
    fast = ["--hidden", "16", "--batch-size", "200", "--epochs", "2", "--no-pictures"]
    assert cli.main(["train", "--out", str(out), *fast, *map(str, options)]) == 0
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("run") / "digits", "--latent", 2)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return train(tmp_path_factory.mktemp("run") / "four", "--latent", 4)


@pytest.fixture(autouse=True)
def _no_figure_stays():
    yield
    pyplot.close("all")


def explore(*options):
    return cli.main(["explore", *map(str, options)])


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), flags=re.DOTALL)[1])


def weights(out):
    return checkpoint.load(out / "checkpoint.pt")["model"]


def seen(monkeypatch):
    """The plane that the command makes."""
    planes, make = [], plots.latent_plane

    def spy(*args, **options):
        planes.append(make(*args, **options))
        return planes[-1]

    monkeypatch.setattr(plots, "latent_plane", spy)
    return planes


def test_page_and_picture(run, tmp_path, capsys, monkeypatch):
    planes = seen(monkeypatch)
    assert explore(run, "--page", tmp_path / "deep" / "p.html", "--png", tmp_path / "p.png") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(
        r"wrote .*p\.html \(0\.0 MB\), to be opened in a browser; it decodes by the network itself, 1,408 weights as float16", out
    )
    assert {p.name for p in tmp_path.iterdir()} == {"deep", "p.png"}
    picture = imread(tmp_path / "p.png")[..., :3]
    assert picture.shape[:2] == (900, 1440)
    assert picture.std() > 0.1
    data = data_of(tmp_path / "deep" / "p.html")
    assert (data["shape"], data["dims"], data["start"]) == ([8, 8], [0, 1], [0.0, 0.0])
    assert data["points"]["labels"] == [str(k) for k in range(10)]
    # By hand, from the file the training wrote: the points are the means of the test images.
    w = {name.removeprefix("encoder."): value for name, value in weights(run).items() if name.startswith("encoder.")}
    h = load("digits").test
    for layer in ("body.0", "body.2"):
        h = (h @ w[f"{layer}.weight"].T + w[f"{layer}.bias"]).relu()
    torch.testing.assert_close(planes[0].points, h @ w["mu.weight"].T + w["mu.bias"], rtol=1e-4, atol=1e-5)
    assert "<title>digits, 2 latent dimensions</title>" in (tmp_path / "deep" / "p.html").read_text()


def test_a_file_is_as_good_as_its_folder(run, tmp_path):
    for name, given in (("a", run), ("b", run / "checkpoint.pt")):
        assert explore(given, "--page", tmp_path / name) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_broken_checkpoint_falls_back_on_the_one_before(run, tmp_path, capsys):
    (tmp_path / "checkpoint.pt").write_bytes(b"half")
    (tmp_path / "checkpoint.previous.pt").write_bytes((run / "checkpoint.pt").read_bytes())
    assert explore(tmp_path, "--page", tmp_path / "p.html") == 0
    assert "fell back to checkpoint.previous.pt" in capsys.readouterr().out


def test_dims_and_image(four, tmp_path, monkeypatch):
    planes = seen(monkeypatch)
    assert explore(four, "--dims", 4, 2, "--page", tmp_path / "a.html") == 0
    assert data_of(tmp_path / "a.html")["dims"] == [3, 1]
    assert data_of(tmp_path / "a.html")["start"] == [0.0] * 4
    assert explore(four, "--dims", 4, 2, "--image", 7, "--page", tmp_path / "b.html") == 0
    with torch.no_grad():
        mu = planes[1].model.encode(load("digits").test[7:8])[0][0]
    assert data_of(tmp_path / "b.html")["start"] == pytest.approx(mu.tolist())
    assert planes[1].points[7].tolist() == pytest.approx([mu[3].item(), mu[1].item()], abs=1e-6)
    assert planes[1].origin == pytest.approx((mu[3].item(), mu[1].item()))


def test_grid(run, tmp_path, capsys):
    assert explore(run, "--page", tmp_path / "p.html", "--grid", 5) == 0
    assert data_of(tmp_path / "p.html")["decoder"]["n"] == 5
    assert "a grid of 5 x 5 decoded images" in capsys.readouterr().out


def test_images_of_a_file(run, tmp_path, monkeypatch):
    """All rows, in their order, coloured by it."""
    planes = seen(monkeypatch)
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 16), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    assert explore(run, "--images", tmp_path / "x.npy", "--page", tmp_path / "p.html") == 0
    with torch.no_grad():
        want = planes[0].model.encode(torch.from_numpy(images.reshape(30, 64)))[0]
    torch.testing.assert_close(planes[0].points, want)
    assert planes[0].labels.tolist() == list(range(30))
    assert planes[0].image_shape == (4, 16)
    assert explore(run, "--images", "none", "--page", tmp_path / "p.html") == 0
    assert len(planes[1].points) == 0
    assert planes[1].image_shape == (8, 8)


def frey(tmp_path):
    """A model of Frey Faces whose images are no longer there."""
    np.save(tmp_path / "frey_faces.npy", np.random.default_rng(0).integers(0, 256, (400, 28, 20), dtype=np.uint8))
    out = train(tmp_path / "run", "--dataset", "frey", "--data-dir", tmp_path, "--latent", 2)
    (tmp_path / "frey_faces.npy").unlink()
    return out


def test_without_the_images_of_the_training(tmp_path, capsys, monkeypatch):
    """The plane opens without points; images that were asked for have to be there."""
    out = frey(tmp_path)
    capsys.readouterr()
    planes = seen(monkeypatch)
    assert explore(out, "--data-dir", tmp_path, "--page", tmp_path / "p.html") == 0
    assert "no points: " in capsys.readouterr().out
    assert (len(planes[0].points), planes[0].image_shape) == (0, (28, 20))
    one_line(capsys, explore(out, "--data-dir", tmp_path, "--images", "frey", "--page", tmp_path / "q.html"), "frey_faces.npy")
    assert not (tmp_path / "q.html").exists()


@pytest.mark.parametrize(
    "pixels, shape, words",
    [
        (560, (28, 20), "560 pixels taken as 28 x 20, those of frey"),
        (81, (9, 9), "81 pixels taken as 9 x 9"),
        (6, (1, 6), "6 pixels taken as 1 x 6"),
    ],
)
def test_a_checkpoint_that_names_no_data_set(tmp_path, capsys, monkeypatch, pixels, shape, words):
    """As `fit` writes them: the shape is assumed, and that is said; a data set that is named has its own."""
    model = MLPVAE(2, pixels, 16)
    states = {"model": model, "optimizer": torch.optim.Adam(model.parameters()), "shuffle": torch.Generator(), "history": []}
    checkpoint.save(tmp_path / "a.pt", **states, config={"thesis": "frey-2"})
    planes = seen(monkeypatch)
    assert explore(tmp_path / "a.pt", "--page", tmp_path / "p.html") == 0
    assert planes[0].image_shape == shape
    assert f"a.pt does not say how its images are laid out: {words}\n" in capsys.readouterr().out
    if pixels == 560:
        checkpoint.save(tmp_path / "a.pt", **states, config={"dataset": "frey"})
        assert explore(tmp_path / "a.pt", "--images", "none", "--page", tmp_path / "q.html") == 0
        assert planes[1].image_shape == shape
        assert "does not say" not in capsys.readouterr().out


def test_nothing_is_downloaded(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("asked the network"))
    code = explore(run, "--images", "mnist", "--data-dir", tmp_path, "--page", tmp_path / "p.html")
    one_line(capsys, code, tmp_path, "train-images-idx3-ubyte")


def test_window(run, monkeypatch):
    """A window is opened, shown, and alive while it is: a slider decodes."""
    from vae_fast.cli import explore as command

    planes = seen(monkeypatch)
    shown = []

    def show():
        figure = pyplot.gcf()
        image = next(a for a in figure.axes if a.images).images[0]
        before = np.array(image.get_array())
        sliders = [a for a in figure.axes if a.get_xlabel() == ""]
        x, y = next(a for a in figure.axes if a.get_xlabel() == "$z_{1}$").transData.transform((1.0, -2.0))
        assert len(sliders) >= 2
        press = pyplot.matplotlib.backend_bases.MouseEvent("button_press_event", figure.canvas, x, y, 1)
        figure.canvas.callbacks.process("button_press_event", press)
        shown.append((before, np.array(image.get_array())))

    pyplot.switch_backend("agg")
    monkeypatch.setattr(command, "_NO_WINDOW", ())  # Agg stands for a backend with windows
    monkeypatch.setattr(pyplot, "show", show)
    assert explore(run) == 0
    before, after = shown[0]
    np.testing.assert_array_equal(before, planes[0].decode(torch.zeros(1, 2))[0])
    np.testing.assert_allclose(after, planes[0].decode(torch.tensor([[1.0, -2.0]]))[0], atol=1e-5)


def readings(tmp_path, shape=(8, 8)):
    p = torch.full((6, 2, 10), 0.1)
    given = plots.Readings(torch.zeros(6, *shape, dtype=torch.uint8), torch.arange(6), p, ("pixels", "means"))
    given.save(tmp_path / "r.npz")
    return tmp_path / "r.npz"


def test_readings(run, tmp_path, monkeypatch):
    """In the page, the picture and the window."""
    from vae_fast.cli import explore as command

    file = readings(tmp_path)
    assert explore(run, "--readings", file, "--page", tmp_path / "p.html", "--png", tmp_path / "p.png") == 0
    assert data_of(tmp_path / "p.html")["readings"]["names"] == ["pixels", "means"]
    assert explore(run, "--page", tmp_path / "q.html", "--png", tmp_path / "q.png") == 0
    assert data_of(tmp_path / "q.html")["readings"] is None
    assert (imread(tmp_path / "p.png") != imread(tmp_path / "q.png")).mean() > 0.1
    shown = []
    pyplot.switch_backend("agg")
    monkeypatch.setattr(command, "_NO_WINDOW", ())
    monkeypatch.setattr(pyplot, "show", lambda: shown.append([a.get_title(loc="left") for a in pyplot.gcf().axes]))
    assert explore(run, "--readings", file) == 0
    assert {"image 0: a 0", "pixels", "means"} <= set(shown[0])


def test_bad_readings(run, tmp_path, capsys):
    file = readings(tmp_path, (7, 9))
    one_line(capsys, explore(run, "--readings", file, "--page", tmp_path / "p.html"), "r.npz: images of 7 x 9 pixels: expected 8 x 8")
    one_line(capsys, explore(run, "--readings", tmp_path / "no.npz", "--page", tmp_path / "p.html"), "no.npz: cannot be read")
    assert not (tmp_path / "p.html").exists()


# --- errors -----------------------------------------------------------------------------------------------------------


def test_no_display(run, capsys):
    pyplot.switch_backend("agg")
    one_line(capsys, explore(run), "no display", "agg", "--page FILE.html", "--png FILE.png")


def test_a_backend_that_does_not_run_here(run, capsys, monkeypatch):
    def figure(**_):
        raise ImportError("Cannot load backend 'QtAgg' which requires the 'qt' interactive framework")

    monkeypatch.setattr(pyplot, "figure", figure)
    one_line(capsys, explore(run), "matplotlib cannot open a window", "QtAgg", "--page FILE.html")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dims", "1", "3"], ["--dims 1 3: expected two different dimensions of 1 to 2"]),
        (["--dims", "2", "2"], ["--dims 2 2"]),
        (["--dims", "0", "1"], ["--dims", "'0': expected an integer of at least 1"]),
        (["--dims", "1"], ["--dims"]),
        (["--grid", "1"], ["--grid", "at least 2"]),
        (["--image", "179"], ["--image 179", "there are 179, from 0"]),
        (["--image", "0", "--images", "none"], ["--image 0", "there are none"]),
        (["--images", "cats"], ["--images cats: neither a file nor one of digits, mnist, frey, none"]),
        (["--images", "nowhere.npy"], ["nowhere.npy"]),
    ],
)
def test_bad_options(run, tmp_path, capsys, options, words):
    one_line(capsys, explore(run, "--page", tmp_path / "p.html", *options), *words)
    assert list(tmp_path.iterdir()) == []


def test_grid_without_a_page(run, tmp_path, capsys):
    one_line(capsys, explore(run, "--grid", 5, "--png", tmp_path / "p.png"), "--grid: goes with --page only")


def test_images_of_another_size(run, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.zeros((30, 10, 10), dtype=np.uint8))
    code = explore(run, "--images", tmp_path / "x.npy", "--page", tmp_path / "p.html")
    one_line(capsys, code, "x.npy: images of 100 pixels", "trained on 64")


def test_latent_of_one_dimension(tmp_path, capsys):
    out = train(tmp_path / "one", "--latent", 1)
    capsys.readouterr()
    one_line(capsys, explore(out, "--page", tmp_path / "p.html"), out / "checkpoint.pt", "1 dimension: expected 2 or more")


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint"])
def test_not_a_checkpoint(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "checkpoint.pt").write_bytes(content)
    one_line(capsys, explore(tmp_path, "--page", tmp_path / "p.html"), tmp_path / "checkpoint.pt")


def test_a_checkpoint_of_another_model(tmp_path, capsys):
    model = torch.nn.Linear(3, 2)
    adam = torch.optim.Adam(model.parameters())
    checkpoint.save(tmp_path / "a.pt", model=model, optimizer=adam, shuffle=torch.Generator(), history=[], config={})
    code = explore(tmp_path / "a.pt", "--page", tmp_path / "p.html")
    one_line(capsys, code, "a.pt: not a checkpoint of `vae-fast train`", "MLPVAE")


def test_weights_that_are_no_numbers(run, tmp_path, capsys):
    state = checkpoint.load(run / "checkpoint.pt")
    state["model"]["decoder.2.weight"][3, 1] = float("nan")
    checkpoint.write(tmp_path / "a.pt", state)
    one_line(capsys, explore(tmp_path / "a.pt", "--page", tmp_path / "p.html"), "a.pt: its weights hold NaN or infinity")


def test_without_matplotlib(run, tmp_path, capsys, monkeypatch):
    """The window and the picture need it, the page does not."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for options in ([], ["--png", tmp_path / "p.png"]):
        one_line(capsys, explore(run, *options), "matplotlib", "vae_fast[train]", "--page FILE.html")
    assert explore(run, "--page", tmp_path / "p.html") == 0
    assert data_of(tmp_path / "p.html")["decoder"]["kind"] == "network"


def test_a_page_that_cannot_be_written(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    one_line(capsys, explore(run, "--page", tmp_path / "file" / "p.html"), "p.html", "cannot be written")


def test_help_says_it_all(capsys):
    assert cli.main(["explore", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in ("checkpoint.pt", "--page", "--png", "digits, mnist or frey", "FILE.npy", "--dims", "from 1", "--image", "N x N", "130"):
        assert word in text
