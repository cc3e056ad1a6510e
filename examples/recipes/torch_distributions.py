"""torch.distributions: another import. A mixture of Gaussians is fitted by gradient descent; no N x K x D array is formed."""

import torch
import torch.distributions as T
from _recipe import Step, main, stepper
from torch import Tensor

from vae_fast import distributions as D

N, K, DIMENSIONS = 5000, 20, 8


def before(logits: Tensor, means: Tensor, log_std: Tensor, x: Tensor) -> Tensor:
    """The mean negative log-likelihood of a mixture."""
    components = T.Independent(T.Normal(means, log_std.exp()), 1)
    mixture = T.MixtureSameFamily(T.Categorical(logits=logits), components)
    return -mixture.log_prob(x).mean()


def after(logits: Tensor, means: Tensor, log_std: Tensor, x: Tensor) -> Tensor:
    """The mean negative log-likelihood of a mixture."""
    components = D.Independent(D.Normal(means, log_std.exp()), 1)
    mixture = D.MixtureSameFamily(D.Categorical(logits=logits), components)
    return -mixture.log_prob(x).mean()


def step(swapped: bool, frozen: bool = False) -> Step:
    """A step of gradient descent on the parameters."""
    parameters = [torch.zeros(K), torch.randn(K, DIMENSIONS), torch.zeros(K, DIMENSIONS)]
    logits, means, log_std = (p.requires_grad_() for p in parameters)
    x, loss = torch.randn(N, DIMENSIONS), after if swapped else before
    return stepper(parameters, lambda: loss(logits, means, log_std, x))


if __name__ == "__main__":
    main(__name__)
