"""Swapping two lines of the ordinary VAE example for vae_fast's changes nothing but the speed and the safety."""

import ast
import difflib
import re
import types
from pathlib import Path

import frozen_vae_example
import pytest
import torch
from grey_images import grey_images

STEPS, BATCH = 30, 100
SOURCE = Path(frozen_vae_example.__file__).read_text()
SWAPS = {
    "return mu + torch.exp(0.5 * logvar) * noise": "return vae_fast.reparameterize(mu, logvar, noise=noise)",
    'return F.binary_cross_entropy(recon, x, reduction="sum") + kl': (
        'return vae_fast.elbo_loss(x, recon, mu, logvar, likelihood="bernoulli_probs", clip="bce", reduction="sum")'
    ),
}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def example(swaps):
    """The frozen example with some of its text replaced, as a module."""
    source = SOURCE
    for old, new in swaps.items():
        assert source.count(old) == 1
        source = source.replace(old, new)
    module = types.ModuleType("example")
    exec(compile("import vae_fast\n" + source, "example", "exec"), module.__dict__)
    return module


def train(module, images, dtype=torch.float32, amp=False):
    torch.manual_seed(0)
    model = module.VAE().to(images.device, dtype)
    losses = module.train(model, (images.to(dtype) / 255.0).split(BATCH), amp=amp)
    return torch.tensor(losses, dtype=torch.float64), model


@pytest.fixture(scope="module", params=DEVICES)
def images(request):
    return grey_images(STEPS * BATCH).to(request.param)


@pytest.fixture(scope="module")
def ordinary(images):
    return train(frozen_vae_example, images)


def test_it_is_two_lines():
    swapped = SOURCE
    for old, new in SWAPS.items():
        swapped = swapped.replace(old, new)
    lines = list(difflib.unified_diff(SOURCE.splitlines(), swapped.splitlines(), n=0))
    changed = [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]
    assert [line[0] for line in changed] == ["-", "+", "-", "+"]


def test_float32_trains_to_the_same_numbers(images, ordinary):
    losses, model = train(example(SWAPS), images)
    want_losses, want_model = ordinary
    assert want_losses[-1] < 0.5 * want_losses[0]  # it has learned something
    torch.testing.assert_close(losses, want_losses, rtol=2e-6, atol=0.0)
    for got, want in zip(model.parameters(), want_model.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=0.0, atol=5e-5)


def test_float64_trains_to_the_same_numbers(images):
    losses, model = train(example(SWAPS), images[: 5 * BATCH], torch.float64)
    want_losses, want_model = train(frozen_vae_example, images[: 5 * BATCH], torch.float64)
    torch.testing.assert_close(losses, want_losses, rtol=1e-13, atol=0.0)
    for got, want in zip(model.parameters(), want_model.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=0.0, atol=1e-10)


def readme_swaps():
    """The two lines as the README prints them, in the names of the frozen example."""
    blocks = re.findall(r"```python\n(.*?)```", (Path(__file__).resolve().parent.parent / "README.md").read_text(), flags=re.DOTALL)
    after = next(block for block in blocks if block.startswith("# after"))
    lines = {node.targets[0].id: ast.unparse(node.value) for node in ast.parse(after).body}
    assert lines.keys() == {"z", "loss"}
    return dict(zip(SWAPS, (f"return {lines['z']}", f"return {lines['loss'].replace('recon_x', 'recon')}"), strict=True))


def of_images(module):
    """The example as it is with batches of images, which its network flattens."""

    class Flattening(module.VAE):
        def forward(self, x):
            return super().forward(x.view(-1, 784))

    module.VAE = Flattening
    return module


def test_the_readmes_lines_on_batches_of_images(images, ordinary):
    """As they are printed: the loss line trains to the same numbers; both lines, whose noise is our own, train as well."""
    pictures = images.view(-1, 1, 28, 28)
    first, second = readme_swaps().items()
    losses, _ = train(of_images(example(dict([second]))), pictures)
    torch.testing.assert_close(losses, ordinary[0], rtol=2e-6, atol=0.0)
    losses, _ = train(of_images(example(dict([first, second]))), pictures)
    assert losses[-1] < 0.5 * losses[0]


def test_images_without_the_flattening_are_told_how(images):
    swaps = {old: new.replace("x.view(-1, 784)", "x") for old, new in readme_swaps().items()}
    with pytest.raises(ValueError, match=r"x has shape \(100, 1, 28, 28\), recon has shape \(100, 784\).*: x\.view\(-1, 784\)$"):
        train(of_images(example(swaps)), images.view(-1, 1, 28, 28))


def test_bfloat16_autocast(images, ordinary):
    """The swapped example trains under autocast, to the ordinary one's float32 numbers within bfloat16's 2^-8."""
    losses, _ = train(example(SWAPS), images, amp=True)
    torch.testing.assert_close(losses, ordinary[0], rtol=4e-3, atol=0.0)
    if images.device.type == "cuda":
        with pytest.raises(RuntimeError, match="unsafe to autocast"):
            train(frozen_vae_example, images, amp=True)
    else:  # on the CPU autocast lets F.binary_cross_entropy run, in float32: the same network, the same loss
        on_cpu, _ = train(frozen_vae_example, images, amp=True)
        torch.testing.assert_close(losses, on_cpu, rtol=4e-3, atol=0.0)
        torch.testing.assert_close(losses[0], on_cpu[0], rtol=2e-5, atol=0.0)


def test_a_wrong_swap_is_seen(images, ordinary):
    """The comparisons above can fail: without the KL the numbers are others."""
    forgotten = {line: new.replace("reduction=", "beta=0.0, reduction=") for line, new in SWAPS.items()}
    losses, _ = train(example(forgotten), images)
    assert (losses / ordinary[0] - 1.0).abs().max() > 4e-3
