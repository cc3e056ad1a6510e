"""The ordinary PyTorch VAE that everybody starts from, frozen: it does not use vae_fast and must not change.

Sigmoid output, ``F.binary_cross_entropy(reduction="sum")``, reparameterization with ``randn_like``, analytic KL. The
tests train it as it stands and with the two lines marked below swapped for vae_fast's.
"""

import torch
from torch import nn
from torch.nn import functional as F


class VAE(nn.Module):
    def __init__(self, pixels=784, hidden=400, latent=20):
        super().__init__()
        self.enter = nn.Linear(pixels, hidden)
        self.to_mu = nn.Linear(hidden, latent)
        self.to_logvar = nn.Linear(hidden, latent)
        self.widen = nn.Linear(latent, hidden)
        self.leave = nn.Linear(hidden, pixels)

    def encode(self, x):
        h = F.relu(self.enter(x))
        return self.to_mu(h), self.to_logvar(h)

    def reparameterize(self, mu, logvar):
        noise = torch.randn_like(mu)
        return mu + torch.exp(0.5 * logvar) * noise  # line 1

    def decode(self, z):
        return torch.sigmoid(self.leave(F.relu(self.widen(z))))

    def forward(self, x):
        mu, logvar = self.encode(x)
        return self.decode(self.reparameterize(mu, logvar)), mu, logvar


def loss_function(recon, x, mu, logvar):
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return F.binary_cross_entropy(recon, x, reduction="sum") + kl  # line 2


def train(model, batches, lr=1e-3, amp=False):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    losses = []
    for x in batches:
        optimizer.zero_grad()
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=amp):
            recon, mu, logvar = model(x)
            loss = loss_function(recon, x, mu, logvar)
        loss.backward()
        optimizer.step()
        losses.append(loss.item() / len(x))
    return losses
