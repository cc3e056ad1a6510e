"""models.MLPVAE: the layers and the initial weights of the thesis."""

import math

import pytest
import torch
from torch import nn

from vae_fast.models import MLPVAE


def test_mlp_has_the_sources_layers_and_initial_weights():
    model = MLPVAE(generator=torch.Generator().manual_seed(0))
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    sizes = [(layer.in_features, layer.out_features) for layer in layers]
    assert sizes == [(784, 500), (500, 500), (500, 20), (500, 20), (20, 500), (500, 500), (500, 784)]
    assert (model.likelihood, model.clip, model.eps, model.beta) == ("bernoulli", "clamp", 1e-9, 1.0)
    for layer in layers:
        for drawn, variance in ((layer.weight, 1 / layer.in_features), (layer.bias, 1 / layer.out_features)):
            unit = drawn.detach().double().flatten() / math.sqrt(variance)
            n = unit.numel()
            assert abs(unit.mean()) < 4 / math.sqrt(n)
            assert abs(unit.square().mean() - 1.0) < 4 * math.sqrt(2 / n)
    assert sum(isinstance(m, nn.ReLU) for m in model.modules()) == 4


def test_mlp_initial_weights_come_from_the_generator_alone():
    before = torch.get_rng_state()
    a, b = (MLPVAE(2, 9, 5, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    torch.manual_seed(7)
    c = MLPVAE(2, 9, 5)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters(), strict=True))


def test_mlp_saturated_logits_train():
    """Far beyond the clip the loss is the clip's own value and the gradient is zero, not NaN."""
    model = MLPVAE(2, 9, 5)
    with torch.no_grad():
        model.decoder[-1].bias.fill_(200.0)
    loss = model.loss(torch.zeros(4, 9))
    torch.testing.assert_close(loss.detach() - model.losses(torch.zeros(4, 9)).kl, torch.tensor(-9 * math.log(1e-9)))
    loss.backward()
    assert (model.decoder[-1].weight.grad == 0).all()


@pytest.mark.parametrize("bad", [{"latent_dim": 0}, {"data_dim": -1}, {"hidden_dim": 2.0}])
def test_bad_sizes(bad):
    with pytest.raises((TypeError, ValueError), match=next(iter(bad))):
        MLPVAE(**bad)
