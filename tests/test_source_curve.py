"""MLPVAE, trained step by step with given noise, follows the source's formulas written out in plain torch."""

import copy

import pytest
import torch
from grey_images import grey_images

from vae_fast.models import MLPVAE
from vae_fast.training import adam

STEPS, BATCH, LATENT = 40, 100, 20


def plain_loss(model, x, noise):
    """The source's loss, line by line. In float64, where 1 - 1e-9 is a number of its own."""
    z_mean, z_var = model.encoder(x)
    z = z_mean + torch.sqrt(torch.exp(z_var)) * noise
    p = torch.clamp(torch.sigmoid(model.decoder(z)), 1e-9, 1 - 1e-9)
    likelihood = torch.sum(x * torch.log(p) + (1 - x) * torch.log(1 - p), 1)
    kl = 0.5 * torch.sum(1 + z_var - torch.square(z_mean) - torch.exp(z_var), 1)
    return -torch.mean(kl + likelihood)


def curve(model, step_loss, images, noise):
    optimizer = adam(model)
    losses = []
    for x, e in zip(images, noise, strict=True):
        optimizer.zero_grad()
        loss = step_loss(model, x, e)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().double())
    return torch.stack(losses)


@pytest.fixture(scope="module")
def setting():
    """The model in float64, the batches (uint8), the noise and the plain curve."""
    generator = torch.Generator().manual_seed(3)
    model = MLPVAE(LATENT, generator=generator).double()
    batches = grey_images(STEPS * BATCH).split(BATCH)
    noise = torch.randn(STEPS, BATCH, LATENT, generator=generator, dtype=torch.float64)
    plain = copy.deepcopy(model)
    return model, batches, noise, curve(plain, plain_loss, [x.double() / 255.0 for x in batches], noise), plain


def test_float64_is_the_plain_curve(setting):
    model, batches, noise, want, plain = setting
    assert want[-1] < 0.5 * want[0]
    ours = copy.deepcopy(model)
    got = curve(ours, lambda m, x, e: m.loss(x, e), batches, noise)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0.0)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-7)


def test_float32_follows_it(setting):
    model, batches, noise, want, _ = setting
    ours = copy.deepcopy(model).float()
    got = curve(ours, lambda m, x, e: m.loss(x, e), batches, noise.float())
    torch.testing.assert_close(got, want, rtol=2e-4, atol=0.0)
    torch.testing.assert_close(got[0], want[0], rtol=1e-6, atol=0.0)


def test_the_textbook_code_is_not_finite_in_float32(setting):
    """Why the clip is done in logit space: the source's line in float32 gives NaN for a saturated pixel."""
    model, batches, noise, _, _ = setting
    ours = copy.deepcopy(model).float()
    with torch.no_grad():
        ours.decoder[-1].bias.fill_(40.0)  # sigmoid(40) is 1 in float32, and so is 1 - 1e-9
    x = batches[0].float() / 255.0
    assert not plain_loss(ours, x, noise[0].float()).isfinite()
    loss = ours.loss(x, noise[0].float())
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in ours.parameters())
    torch.testing.assert_close(loss.double(), plain_loss(ours.double(), x.double(), noise[0]), rtol=1e-6, atol=0.0)
