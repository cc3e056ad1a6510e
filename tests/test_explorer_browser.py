"""The explorer's page in a real browser, at the size of a phone held either way: what is in view, touches, keys, and the pixels shown."""

import chromium
import numpy as np
import pytest
import torch

from vae_fast import plots
from vae_fast.models import MLPVAE

SIZES = {"portrait": (390, 844), "landscape": (844, 390)}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One for all tests of this file."""
    if chromium.program() is None:
        pytest.skip(f"no browser is installed (none of {', '.join(chromium.NAMES)}): the page is not opened in one")
    found = chromium.Chromium(tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def plane():
    model = MLPVAE(2, 28 * 20, 32, generator=torch.Generator().manual_seed(0)).eval()
    images = torch.rand(40, 28 * 20, generator=torch.Generator().manual_seed(1))
    return plots.latent_plane(model, (28, 20), images=images, labels=torch.arange(40) % 10, label_name="digit", title="ten digits")


@pytest.fixture(params=SIZES)
def page(request, browser, plane, tmp_path):
    """The browser with the page open; its window's size."""
    plots.explorer_page(tmp_path / "p.html", plane)
    browser.open(tmp_path / "p.html", *SIZES[request.param])
    return browser, SIZES[request.param]


def middle(box):
    left, top, width, height = box
    return left + width / 2, top + height / 2


def place_shown(browser, plane):
    """Where the page stands: its sliders and their numbers agree, and the pixels are those of the model there."""
    first, second = browser.run("place")
    for i, v in enumerate((first, second)):
        assert float(browser.run(f"document.getElementById('slider{i}').value")) == pytest.approx(100 * v / plane.half, abs=0.5)
        assert float(browser.run(f"document.getElementById('value{i}').textContent").replace("−", "-")) == pytest.approx(v, abs=0.005)
    pixels = browser.run("[...image.getContext('2d').getImageData(0, 0, image.width, image.height).data].filter((_, i) => i % 4 === 0)")
    want = plane.decode(torch.tensor([[first, second]]))[0].flatten().numpy()
    np.testing.assert_allclose(np.array(pixels) / 255, want, atol=1e-3 + 0.5 / 255)
    return first, second


def test_image_sliders_and_plane_are_in_view_together(page):
    browser, (width, height) = page
    assert browser.run("scrollY") == 0
    for name in ("image", "slider0", "slider1", "plane"):
        left, top, wide, high = browser.box(name)
        assert 0 <= left < left + wide <= width, name
        assert 0 <= top < top + high <= height, name
        assert min(wide, high) >= 36, name  # a finger's width
    assert browser.run("document.documentElement.scrollWidth") == width
    shown = browser.run("[image.width, image.height]")
    assert shown == [20, 28]  # and drawn without another shape: object-fit keeps it
    assert browser.run("getComputedStyle(image).objectFit") == "contain"


def test_page_scrolls_by_what_is_not_the_plane(page, plane):
    browser, (_, height) = page
    assert browser.run("document.documentElement.scrollHeight") > height
    x, y = middle(browser.box("image"))
    browser.drag((x, y), (x, y - 30), (x, y - 60), (x, y - 90))
    browser.wait("scrollY > 40")
    assert browser.run("place") == [0, 0]
    browser.run("scrollTo(0, document.documentElement.scrollHeight)")
    _, top, _, high = browser.box("note")
    assert 0 <= top < top + high <= height
    browser.run("scrollTo(0, 0)")
    place_shown(browser, plane)


def test_touch_moves_on_the_plane_and_does_not_scroll(page, plane):
    browser, _ = page
    left, top, size, _ = browser.box("plane")
    browser.drag((left + 0.5 * size, top + 0.5 * size), (left + 0.7 * size, top + 0.4 * size), (left + 0.75 * size, top + 0.25 * size))
    assert browser.run("scrollY") == 0
    assert place_shown(browser, plane) == pytest.approx((plane.half / 2, plane.half / 2), abs=0.02)
    browser.drag((left + 0.5 * size, top + 0.5 * size), (left - 10, top + 0.9 * size))  # off the plane: along its edge
    assert place_shown(browser, plane) == pytest.approx((-plane.half, -0.8 * plane.half), abs=0.02)


def test_press_moves(page, plane):
    browser, _ = page
    left, top, size, _ = browser.box("plane")
    browser.press(left + 0.25 * size, top + 0.4 * size)
    assert place_shown(browser, plane) == pytest.approx((-plane.half / 2, 0.2 * plane.half), abs=0.02)


@pytest.mark.parametrize("i", [0, 1])
def test_slider(page, plane, i):
    """Pressed in its middle and at its ends, by keys, by a finger."""
    browser, _ = page
    left, _, width, _ = box = browser.box(f"slider{i}")
    y = middle(box)[1]
    for x, want in ((left + 1, -1.0), (left + width - 1, 1.0), (left + width / 2, 0.0)):
        browser.press(x, y)
        assert place_shown(browser, plane)[i] == pytest.approx(want * plane.half, abs=0.02 * plane.half)
    browser.key("ArrowRight")  # it has the focus now
    assert place_shown(browser, plane)[i] == pytest.approx(0.01 * plane.half, abs=0.02 * plane.half)
    browser.drag((left + width / 2, y), (left + 0.6 * width, y), (left + width + 5, y))
    found = place_shown(browser, plane)
    assert (found[i], found[1 - i]) == (plane.half, 0)


def test_keys_of_the_plane(page, plane):
    browser, _ = page
    browser.run("plane.focus()")
    browser.key("ArrowRight")
    browser.key("ArrowUp", shift=True)
    assert place_shown(browser, plane) == pytest.approx((plane.half / 50, plane.half / 10))
    browser.key("ArrowLeft", shift=True)
    browser.key("ArrowDown")
    assert place_shown(browser, plane) == pytest.approx((-4 * plane.half / 50, 4 * plane.half / 50))
    assert browser.run("scrollY") == 0  # the arrows do not scroll while the plane has them
    browser.key("Home")
    assert place_shown(browser, plane) == (0, 0)


# --- readings ---------------------------------------------------------------------------------------------------------

PROBABILITIES = torch.rand(7, 3, 10, generator=torch.Generator().manual_seed(2)).pow(4)


def readings():
    images = torch.randint(0, 256, (7, 28, 20), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    names = ("pixels", "latent means, encoder frozen", "latent means, encoder fine-tuned")
    return plots.Readings(images, torch.arange(7) + 3, PROBABILITIES / PROBABILITIES.sum(-1, keepdim=True), names)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("grid", [None, 5])
def test_slider_through_readings(browser, tmp_path, size, grid):
    """A finger and the keys go through the images: each shows itself, every classifier's bars, and what its encoding decodes to."""
    width, height = SIZES[size]
    model = MLPVAE(4, 28 * 20, 32, generator=torch.Generator().manual_seed(0)).eval()
    plane, given = plots.latent_plane(model, (28, 20), (2, 0)), readings()
    plots.explorer_page(tmp_path / "p.html", plane, grid=grid, readings=given)
    browser.open(tmp_path / "p.html", width, height)
    for name in ("read", "image", "slider0", "slider1", "slider2", "bars"):
        left, top, wide, high = browser.box(name)
        assert 0 <= left < left + wide <= width, name
        assert 0 <= top < top + high <= height, name
    left, _, wide, _ = box = browser.box("slider2")
    browser.drag((left + 5, middle(box)[1]), (left + wide / 2, middle(box)[1]), (left + wide - 1, middle(box)[1]))
    check_reading(browser, plane, given, 6, grid)
    browser.press(*middle(box))
    check_reading(browser, plane, given, 3, grid)
    browser.key("ArrowRight")
    check_reading(browser, plane, given, 4, grid)
    if grid is None:
        browser.press(*middle(browser.box("slider0")))  # another place; the other dimensions stay where the image has them
        check_pixels(browser, plane, model.encode(given.images[4].flatten()[None])[0], first=browser.run("place")[0])
        browser.run("plane.focus()")
        browser.key("Home")
        check_reading(browser, plane, given, 4, grid)


def check_pixels(browser, plane, z, first=None):
    z = z.detach().clone()
    if first is not None:
        z[0, plane.dims[0]] = first
    pixels = browser.run("[...image.getContext('2d').getImageData(0, 0, image.width, image.height).data].filter((_, i) => i % 4 === 0)")
    np.testing.assert_allclose(np.array(pixels) / 255, plane.decode_latent(z)[0].flatten().numpy(), atol=1e-3 + 0.5 / 255)


def check_reading(browser, plane, given, i, grid):
    browser.frame()
    assert browser.run("element('value2').textContent") == f"{i}: a {i + 3}"
    shown = "[...element('read').getContext('2d').getImageData(0, 0, 20, 28).data].filter((_, i) => i % 4 === 0)"
    assert browser.run(shown) == given.images[i].flatten().tolist()
    heights = browser.run(
        "[...document.querySelectorAll('#bars > div')].map((e) => [...e.querySelectorAll('i')].map((b) => b.style.height))"
    )
    assert [[float(h[:-1]) / 100 for h in row] for row in heights] == [pytest.approx(p.tolist(), abs=1e-5) for p in given.probabilities[i]]
    texts = browser.run("[...document.querySelectorAll('#bars h2')].map((e) => e.textContent)")
    best = given.probabilities[i].max(-1)
    said = zip(given.names, best.indices.tolist(), best.values.tolist(), strict=True)
    assert texts == [f"{name}: {k}, {100 * p:.0f}%" for name, k, p in said]
    true = "[...document.querySelectorAll('#bars ol')].map((e) => [...e.querySelectorAll('i')].map((b) => b.style.background))"
    for row in browser.run(true):
        assert row.index("rgb(42, 127, 98)") == i + 3
        assert row.count("rgb(42, 127, 98)") == 1
    z = plane.model.encode(given.images[i].flatten()[None])[0].detach()
    place = [float(v) for v in z[0, list(plane.dims)]]
    assert browser.run("place") == pytest.approx(place, abs=1e-5)
    if grid is None:
        check_pixels(browser, plane, z)
