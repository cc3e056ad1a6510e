"""The latent explorer: its window moves as it is told, and its page decodes what the model decodes."""

import base64
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vae_fast import plots
from vae_fast.models import MLPVAE, VAE

#: Runs a page's scripts on a document that records what they do; prints JSON.
BROWSER = Path(__file__).with_name("explorer_browser.js")


@pytest.fixture
def node():
    """Runs a page in Node.js; without it, what the page's scripts do is not tested here."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("Node.js is not installed: the page's scripts are not run")

    def run(page):
        done = subprocess.run([program, str(BROWSER), str(page)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


class Conv(nn.Module):
    """A decoder whose layers the page does not know."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 16), nn.ConvTranspose2d(1, 1, 5, stride=1)

    def forward(self, z):
        return self.second(self.first(z).reshape(-1, 1, 4, 4)).flatten(1)


def mlp(latent=2, **options):
    return MLPVAE(latent, 64, 32, generator=torch.Generator().manual_seed(0), **options).eval()


def digits_plane(model=None, classes=3, **options):
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.rand(40, 64, generator=generator), torch.arange(40) % classes
    return plots.latent_plane(model or mlp(), (8, 8), images=images, labels=labels, label_name="digit", title="digits", **options)


def content(page):
    """The data of a page: what a reader without a browser finds in it."""
    blocks = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), flags=re.DOTALL)
    assert len(blocks) == 1
    return json.loads(blocks[0])


def array(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype=dtype)


def decoded(data, first, second):
    """The page's image at a place, from its data alone."""
    decoder = data["decoder"]
    if decoder["kind"] == "grid":
        n = decoder["n"]
        images = array(decoder["images"], np.uint8).reshape(n, n, -1).astype(float)
        column, row = ((v / data["half"] + 1) / 2 * (n - 1) for v in (first, second))
        j, i = min(int(column), n - 2), min(int(row), n - 2)
        right, up = column - j, row - i
        low, high = ((1 - right) * images[k, j] + right * images[k, j + 1] for k in (i, i + 1))
        return ((1 - up) * low + up * high) / 255
    weights, at = array(decoder["weights"], "<f2" if decoder["dtype"] == "float16" else "<f4").astype(float), 0
    h = np.array(data["start"])
    h[data["dims"]] = first, second
    for layer in decoder["layers"]:
        if layer["type"] == "linear":
            n, m = layer["out_features"], layer["in_features"]
            h = weights[at : at + n * m].reshape(n, m) @ h + weights[at + n * m : at + n * m + n]
            at += n * (m + 1)
        else:
            h = activated(layer, h)
    assert at == len(weights)
    return h.clip(0, 1)


def activated(layer, a):
    if layer["type"] == "softplus":
        return np.where(a * layer["beta"] > layer["threshold"], a, np.logaddexp(0, layer["beta"] * a) / layer["beta"])
    if layer["type"] == "leaky_relu":
        return np.where(a > 0, a, layer["negative_slope"] * a)
    logistic = 1 / (1 + np.exp(-a))
    return {"relu": np.maximum(a, 0), "tanh": np.tanh(a), "sigmoid": logistic, "silu": a * logistic}[layer["type"]]


def sequential(act, latent=2, likelihood="bernoulli", scale=1.0):
    torch.manual_seed(3)
    decoder = nn.Sequential(nn.Linear(latent, 9), act, nn.Sequential(nn.Dropout(), nn.Linear(9, 6, bias=False)), nn.Identity())
    with torch.no_grad():
        for p in decoder.parameters():
            p.mul_(scale)
    return VAE(nn.Linear(6, 2 * latent), decoder, latent_dim=latent, likelihood=likelihood).eval()


PLACES = [(0.0, 0.0), (1.3, -2.1), (-3.0, 3.0), (0.02, 2.97)]


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [nn.ReLU(), nn.LeakyReLU(0.3), nn.Tanh(), nn.Sigmoid(), nn.SiLU(), nn.Softplus(beta=2.0, threshold=3.0)])
def test_page_holds_the_decoder(tmp_path, node, act):
    """Each activation: from the page's data, and by the page's own script, the decoder's image to 1e-3."""
    plane = plots.latent_plane(sequential(act), (2, 3))
    how = plots.explorer_page(tmp_path / "p.html", plane)
    data = content(tmp_path / "p.html")
    assert data["decoder"]["kind"] == "network"
    assert how.startswith("the network itself, 87 weights as float16")
    for place in PLACES:
        want = plane.decode(torch.tensor([place]))[0].flatten().numpy()
        np.testing.assert_allclose(decoded(data, *place), want, atol=1e-3)
    check_frames(node(tmp_path / "p.html"), plane, 1e-3)


def check_frames(seen, plane, atol):
    """Every frame's image is the decoder's where the sliders stand."""
    for frame in seen["out"]:
        place = [value for value, _ in frame["values"]]
        want = plane.decode(torch.tensor([place]))[0].flatten().numpy()
        np.testing.assert_allclose(np.array(frame["image"]) / 255, want, atol=atol + 0.5 / 255)


@pytest.mark.parametrize(("scale", "dtype"), [(1.0, "float16"), (300.0, "float32")])
def test_float16_only_where_it_is_exact_enough(tmp_path, scale, dtype):
    plane = plots.latent_plane(sequential(nn.Tanh(), scale=scale), (2, 3))
    how = plots.explorer_page(tmp_path / "p.html", plane)
    data = content(tmp_path / "p.html")
    assert data["decoder"]["dtype"] == dtype
    assert ("moves a pixel" in how) == (dtype == "float16")
    for place in PLACES:
        np.testing.assert_allclose(decoded(data, *place), plane.decode(torch.tensor([place]))[0].flatten().numpy(), atol=1e-3)


def test_weights_beyond_float16(tmp_path):
    model = sequential(nn.Tanh())
    with torch.no_grad():
        model.decoder[0].weight[0, 0] = 1e5
    plots.explorer_page(tmp_path / "p.html", plots.latent_plane(model, (2, 3)))
    assert content(tmp_path / "p.html")["decoder"]["dtype"] == "float32"


def test_gaussian_means_are_cut_to_what_can_be_shown(tmp_path, node):
    plane = plots.latent_plane(sequential(nn.ReLU(), likelihood="gaussian", scale=4.0), (2, 3))
    assert {0.0, 1.0} <= set(plane.decode(torch.tensor(PLACES)).flatten().tolist())
    plots.explorer_page(tmp_path / "p.html", plane)
    data = content(tmp_path / "p.html")
    assert data["decoder"]["kind"] == "network"
    np.testing.assert_allclose(decoded(data, 1.3, -2.1), plane.decode(torch.tensor([[1.3, -2.1]]))[0].flatten(), atol=1e-3)
    check_frames(node(tmp_path / "p.html"), plane, 1e-3)


def conv():
    torch.manual_seed(0)
    return VAE(nn.Linear(64, 4), Conv(), latent_dim=2).eval()


def test_a_decoder_the_page_does_not_know_becomes_a_grid(tmp_path, node):
    plane = digits_plane(conv())
    how = plots.explorer_page(tmp_path / "p.html", plane)
    data = content(tmp_path / "p.html")
    assert (data["decoder"]["kind"], data["decoder"]["n"]) == ("grid", 24)
    line = np.linspace(-data["half"], data["half"], 24)
    at_nodes = plane.decode(torch.tensor([[line[20], line[3]], [line[0], line[23]]])).flatten(1).numpy()
    np.testing.assert_allclose(decoded(data, line[20], line[3]), at_nodes[0], atol=0.5001 / 255)
    np.testing.assert_allclose(decoded(data, line[0], line[23]), at_nodes[1], atol=0.5001 / 255)
    # Between them the error is what the page says.
    stated = float(re.search(r"up to (\d\.\d\d) from", how)[1])
    middles = [(line[i : i + 2].mean(), line[j : j + 2].mean()) for i in range(0, 23, 4) for j in range(0, 23, 4)]
    worst = max(np.abs(decoded(data, *m) - plane.decode(torch.tensor([m]))[0].flatten().numpy()).max() for m in middles)
    assert worst <= stated + 0.005
    check_frames(node(tmp_path / "p.html"), plane, stated + 0.01)


def test_stated_error_of_a_grid_is_that_of_the_middles(tmp_path):
    """Two images a side: the one middle is the origin."""
    plane = digits_plane()
    how = plots.explorer_page(tmp_path / "p.html", plane, grid=2)
    data = content(tmp_path / "p.html")
    error = np.abs(decoded(data, 0.0, 0.0) - plane.decode(torch.zeros(1, 2))[0].flatten().numpy()).max()
    assert how.startswith("a grid of 2 x 2 decoded images")
    assert f"up to {error:.2f} from" in how
    assert error > 0.1
    with pytest.raises(ValueError, match="grid=1: expected 2 or more"):
        plots.explorer_page(tmp_path / "p.html", plane, grid=1)


@pytest.mark.parametrize("change", ["subclass", "decode", "hook", "input"])
def test_a_decoder_that_computes_something_else_is_not_taken_for_its_layers(tmp_path, change):
    model = mlp()
    if change == "subclass":

        class Doubled(nn.ReLU):
            def forward(self, x):
                return 2 * super().forward(x)

        model.decoder[1] = Doubled()
    elif change == "decode":
        model.decode = lambda z: -model.decoder(z)
    elif change == "hook":
        model.decoder[1].register_forward_hook(lambda *given: given[2] + 1.0)
    else:
        model.decoder[0] = nn.Linear(3, 32)
        model.decode = lambda z: model.decoder(nn.functional.pad(z, (0, 1)))
    plots.explorer_page(tmp_path / "p.html", plots.latent_plane(model, (8, 8)))
    assert content(tmp_path / "p.html")["decoder"]["kind"] == "grid"


def test_other_dimensions_stay_at_the_encoding_of_an_image(tmp_path, node):
    model, image = mlp(5), torch.rand(64, generator=torch.Generator().manual_seed(5))
    plane = digits_plane(model, dims=(4, 1), at=image)
    mu = model.encode(image[None])[0][0].detach()
    assert plane.origin == pytest.approx((mu[4].item(), mu[1].item()))
    z = mu.clone()
    z[4], z[1] = 0.3, -0.7
    want = torch.sigmoid(model.decoder(z))
    torch.testing.assert_close(plane.decode(torch.tensor([[0.3, -0.7]])).flatten(), want.detach())
    plots.explorer_page(tmp_path / "p.html", plane)
    np.testing.assert_allclose(decoded(content(tmp_path / "p.html"), 0.3, -0.7), want.detach().numpy(), atol=1e-3)
    seen = node(tmp_path / "p.html")
    assert seen["names"] == ["z₅", "z₂"]
    assert "The other 3 dimensions are held at the encoding of one image." in seen["note"]
    check_frames(seen, plane, 1e-3)
    plots.explorer_page(tmp_path / "p.html", digits_plane(mlp(3)))
    assert "The other dimension is held at 0." in node(tmp_path / "p.html")["note"]


def test_page_moves(tmp_path, node):
    """Slider, press, drag past the edge, keys and legend, on a document that records what the scripts do."""
    plane = digits_plane()
    how = plots.explorer_page(tmp_path / "p.html", plane)
    seen = node(tmp_path / "p.html")
    half, out = plane.half, seen["out"]
    assert (seen["limits"], seen["step"]) == ([-100, 100], 1)  # whole steps reach both ends, which half's hundredths need not
    want = [(0, 0), (1.5, 0), (1.5, 0), (-half / 2, -half / 2), (half, half), (0, 0), (half / 50, -half / 10)]
    for frame, place in zip(out, want, strict=False):
        assert [value for value, _ in frame["values"]] == pytest.approx(place)
        assert [text for _, text in frame["values"]] == [f"{v:.2f}".replace("-", "−") for v in place]
    assert [frame["waiting"] for frame in out] == [1, 1, 0, 1, 1, 1, 1, 1, 1]  # two moves between two frames are decoded once
    check_frames(seen, plane, 1e-3)
    # The 40 points are drawn once, then those of the chosen class (labels 0, 1, 2 in turn), then all again.
    assert [frame["dots"] for frame in out] == [40, 0, 0, 0, 0, 0, 0, 13, 40]
    assert seen["legend"] == ["digit", "0", "1", "2"]
    assert seen["note"] == f"Decoded in this page by {how}."


def test_points_and_their_colours(tmp_path, node):
    model = mlp()
    images = torch.rand(12_001, 64, generator=torch.Generator().manual_seed(2))
    plane = plots.latent_plane(model, (8, 8), (1, 0), images=images, labels=torch.arange(12_001) + 7, label_name="frame <&>")
    with torch.no_grad():
        want = model.encode(images)[0][::3][:, [1, 0]]  # evenly spread, at most 5,000
    torch.testing.assert_close(plane.points, want)
    plots.explorer_page(tmp_path / "p.html", plane)
    points = content(tmp_path / "p.html")["points"]
    np.testing.assert_array_equal(array(points["places"], "<f4").reshape(-1, 2), plane.points)  # the same bits: only text lies between
    assert (points["kind"], points["name"], points["labels"]) == ("scale", "frame <&>", ["7", "12007"])
    np.testing.assert_allclose(array(points["colours"], "<f4"), np.linspace(0, 1, 4001), atol=1e-6)
    assert node(tmp_path / "p.html")["legend"] == ["frame <&>", "7", "12007"]


def test_plane_is_three_deviations_or_what_the_points_need():
    assert plots.latent_plane(mlp(), (8, 8)).half == 3.0
    model = mlp()
    with torch.no_grad():
        model.encoder.mu.bias += torch.tensor([0.0, -20.0])
    plane = digits_plane(model)
    assert plane.half > plane.points.abs().max() > 15.0


def test_page_is_alone_and_safe(tmp_path):
    """Nothing is loaded from anywhere, and no text leaves its place."""
    title = 'a</script><script>alert("1")</script><!--DATA--> & b'
    plane = plots.latent_plane(
        mlp(), (8, 8), images=torch.rand(4, 64), labels=torch.arange(4), label_name="</script><!--TITLE-->", title=title
    )
    plots.explorer_page(tmp_path / "p.html", plane)
    text = (tmp_path / "p.html").read_text()
    assert content(tmp_path / "p.html")["points"]["name"] == "</script><!--TITLE-->"
    assert text.count("<script") == text.count("</script>") == 3
    assert text.count(html.escape(title)) == 2
    assert "<!--" not in text
    assert not re.search(r"https?:|//[a-z]|\bsrc=|@import|url\(|fetch\(|XMLHttpRequest|import\(", text.split('id="decoder"')[0])
    assert re.findall(r'href="([^"]*)"', text) == ["data:,"]
    assert "default-src 'none'" in text


@pytest.mark.parametrize(
    ("model", "dims", "words"),
    [
        (lambda: mlp(1), (0, 1), r"latent has shape \(1,\): expected one dimension of size 2 or more"),
        (lambda: VAE(nn.Linear(4, 4), nn.Linear(2, 4)), (0, 1), "latent has shape None"),
        (lambda: mlp(3), (1, 1), r"dims=\(1, 1\): expected two different dimensions of 0 to 2"),
        (lambda: mlp(3), (0, 3), r"dims=\(0, 3\)"),
        (lambda: mlp(3), (-1, 0), r"dims=\(-1, 0\)"),
    ],
)
def test_bad_planes(model, dims, words):
    with pytest.raises(ValueError, match=words):
        plots.latent_plane(model(), (8, 8), dims)
