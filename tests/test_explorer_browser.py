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
