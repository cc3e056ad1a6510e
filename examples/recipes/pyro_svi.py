"""Pyro: the model, the guide and SVI stay as they are; `vae_fast.patched` stands around the step."""

from typing import Any

from _recipe import LATENT, Network, Step, images, main, package
from torch import Tensor

import vae_fast


def before(svi: Any, x: Tensor) -> float:
    """A step of stochastic variational inference."""
    return svi.step(x)


def after(svi: Any, x: Tensor) -> float:
    """A step of stochastic variational inference."""
    with vae_fast.patched("torch.distributions"):
        return svi.step(x)


def inference(network: Network) -> Any:
    """Pyro's own objects for a VAE."""
    pyro = package("pyro")
    from pyro import distributions as dist
    from pyro.infer import SVI, TraceMeanField_ELBO

    pyro.clear_param_store()

    def model(x: Tensor) -> None:
        pyro.module("network", network)
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), x.new_ones(LATENT)).expand([len(x), LATENT]).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=network.decode(z), validate_args=False).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("network", network)
        mu, logvar = network.encode(x)
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(mu, (0.5 * logvar).exp()).to_event(1))

    return SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss=TraceMeanField_ELBO())


def step(swapped: bool, frozen: bool = False) -> Step:
    """A step by SVI."""
    svi, x, run = inference(Network()), images(), after if swapped else before
    return lambda: run(svi, x)


if __name__ == "__main__":
    main(__name__)
