"""The explorer's window: sliders and presses move it; and readings, the images of a slider with each classifier's probabilities."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.backend_bases import MouseButton, MouseEvent, NavigationToolbar2
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from test_explorer import digits_plane, mlp

from vae_fast import plots
from vae_fast.errors import FileError
from vae_fast.plots import readings

# --- the window -------------------------------------------------------------------------------------------------------


def window(plane):
    figure = Figure(figsize=(9.6, 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    told = plots.Explorer(figure, plane)
    figure.canvas.draw()
    return figure, told


def press(figure, axes, first, second, name="button_press_event", button=MouseButton.LEFT):
    x, y = axes.transData.transform((first, second))
    figure.canvas.callbacks.process(name, MouseEvent(name, figure.canvas, x, y, button))


def axes_of(figure, xlabel):
    return next(a for a in figure.axes if a.get_xlabel() == xlabel)


def test_a_slider_decodes():
    plane = digits_plane()
    _, told = window(plane)
    np.testing.assert_array_equal(told.picture.get_array(), plane.decode(torch.zeros(1, 2))[0])
    told.sliders[0].set_val(1.25)
    np.testing.assert_array_equal(told.picture.get_array(), plane.decode(torch.tensor([[1.25, 0.0]]))[0])
    told.sliders[1].set_val(-2.0)
    np.testing.assert_array_equal(told.picture.get_array(), plane.decode(torch.tensor([[1.25, -2.0]]))[0])
    assert not torch.equal(plane.decode(torch.zeros(1, 2)), plane.decode(torch.tensor([[1.25, -2.0]])))


@pytest.mark.parametrize("name", ["button_press_event", "motion_notify_event"])
def test_a_press_on_the_plane_moves_the_sliders_and_decodes(name):
    plane = digits_plane(mlp(4), dims=(3, 1))
    figure, told = window(plane)
    axes = axes_of(figure, "$z_{4}$")
    press(figure, axes, 1.5, -0.5, name)
    assert [s.val for s in told.sliders] == pytest.approx([1.5, -0.5])
    want = plane.decode(torch.tensor([[s.val for s in told.sliders]]))[0]
    np.testing.assert_allclose(told.picture.get_array(), want, atol=1e-6)
    cross = next(line for line in axes.lines if line.get_marker() == "+")
    assert [float(v[0]) for v in cross.get_data()] == pytest.approx([1.5, -0.5])


def test_what_is_no_press_on_the_plane_moves_nothing():
    figure, told = window(digits_plane())
    axes = axes_of(figure, "$z_{1}$")
    press(figure, axes, 1.0, 1.0, button=MouseButton.RIGHT)
    press(figure, axes, 1.0, 1.0, "motion_notify_event", button=None)
    press(figure, told.picture.axes, 3.0, 3.0)
    toolbar = NavigationToolbar2(figure.canvas)
    toolbar.pan()  # the mouse is the toolbar's now
    press(figure, axes, 1.0, 1.0)
    assert [s.val for s in told.sliders] == [0.0, 0.0]
    toolbar.pan()
    press(figure, axes, 1.0, 1.0)
    assert [s.val for s in told.sliders] == pytest.approx([1.0, 1.0])


def test_moves_end_at_the_edge():
    plane = digits_plane()
    _, told = window(plane)
    told.move(99.0, -math.inf)
    assert [s.val for s in told.sliders] == [plane.half, -plane.half]


@pytest.mark.parametrize("classes", [1, 10, 40])
def test_every_label_has_its_colour(classes):
    """Up to ten are classes with a legend, each in its own colour; more are a scale with a bar."""
    figure, _ = window(digits_plane(classes=classes))
    axes = axes_of(figure, "$z_{1}$")
    colours = {tuple(c) for c in axes.collections[0].get_facecolors()}
    assert len(colours) == classes
    legend = axes.get_legend()
    assert [t.get_text() for t in legend.get_texts()] == [str(k) for k in range(10)] if classes == 10 else legend is None
    assert any(a.get_ylabel() == "digit" for a in figure.axes) == (classes == 40)


# --- readings ---------------------------------------------------------------------------------------------------------


def some_readings(n=5, names=("pixels", "means, fine-tuned"), shape=(8, 8)):
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)
    p = torch.rand(n, len(names), 10, generator=generator).pow(4)
    return plots.Readings(images, torch.arange(n) % 10, p / p.sum(-1, keepdim=True), names)


def test_readings_are_kept_as_they_are(tmp_path):
    given = some_readings()
    given.save(tmp_path / "r.npz")
    found = plots.load_readings(tmp_path / "r.npz")
    assert found.names == given.names
    for name in ("images", "labels", "probabilities"):
        assert torch.equal(getattr(found, name), getattr(given, name))
        assert getattr(found, name).dtype == getattr(given, name).dtype


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": torch.zeros(5, 64, dtype=torch.uint8)}, r"images: torch.uint8 of shape \(5, 64\)"),
        ({"images": torch.zeros(5, 8, 8)}, "images: torch.float32"),
        ({"names": ("one",)}, r"probabilities: .*\(5, 2, 10\): expected float32 \(5, 1, classes\)"),
        ({"probabilities": torch.full((5, 2, 10), 0.2)}, "probabilities: expected values of at least 0 that add up to 1"),
        ({"labels": torch.full((5,), 10)}, r"labels: .* expected 5 int64 of 0 to 9"),
        ({"labels": torch.zeros(4, dtype=torch.long)}, r"labels: torch.int64 of shape \(4,\)"),
    ],
)
def test_bad_readings(change, words):
    with pytest.raises(ValueError, match=words):
        replace(some_readings(), **change)


def test_files_that_are_no_readings(tmp_path):
    with pytest.raises(FileError, match=r"none.npz: cannot be read: No such file"):
        plots.load_readings(tmp_path / "none.npz")
    for name, content in (("text", b"text"), ("empty", b""), ("zip", b"PK\x03\x04broken")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileError, match=f"{name}: not a file of readings"):
            plots.load_readings(tmp_path / name)
    np.savez(tmp_path / "part.npz", images=np.zeros((1, 2, 2), np.uint8))
    with pytest.raises(FileError, match=r"part\.npz: not a file of readings"):
        plots.load_readings(tmp_path / "part.npz")


def test_window_goes_through_readings():
    """The third slider: another image, its bars, and the place of its encoding, where the other dimensions stay."""
    model = mlp(4)
    plane, given = digits_plane(model, dims=(3, 1)), some_readings()
    figure = Figure(figsize=(9.6, 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    told = plots.Explorer(figure, plane, given)
    for i in (0, 3):
        told.sliders[2].set_val(i)
        figure.canvas.draw()
        mu = model.encode(given.images[i].flatten()[None])[0].detach()
        assert [s.val for s in told.sliders[:2]] == pytest.approx([mu[0, 3].item(), mu[0, 1].item()], abs=1e-6)
        np.testing.assert_allclose(told.picture.get_array(), torch.sigmoid(model.decoder(mu)).detach().view(8, 8), atol=1e-5)
        for axes, p in zip(told.bars, given.probabilities[i], strict=True):
            assert [bar.get_height() for bar in axes.patches] == pytest.approx(p.tolist())
            assert [bar.get_facecolor() for bar in axes.patches].count(to_rgba(readings.RIGHT)) == 1
            assert axes.patches[i].get_facecolor() == to_rgba(readings.RIGHT)
            assert axes.texts[0].get_text() == f"{float(p.max()):.0%}"
    told.sliders[0].set_val(0.5)  # the others stay where the image is
    mu[0, 3] = 0.5
    np.testing.assert_allclose(told.picture.get_array(), torch.sigmoid(model.decoder(mu)).detach().view(8, 8), atol=1e-5)


def test_readings_of_another_size():
    with pytest.raises(ValueError, match=r"images of \(7, 9\) pixels: expected \(8, 8\), those of the plane"):
        plots.Explorer(Figure(), digits_plane(), some_readings(shape=(7, 9)))
