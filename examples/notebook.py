"""Write examples/swap.ipynb: an existing VAE, two of its lines swapped, executed: any notebook host opens it and shows what came out.

    python examples/notebook.py [--out FILE.ipynb]

The cells are below; each is run here, in order, in one namespace, and what it prints is its output. No notebook software is needed.
"""

import argparse
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import torch
from _common import commit

#: (kind, text) of every cell. The third is the VAE of pytorch/examples.
CELLS = (
    (
        "markdown",
        """
# Two lines of an existing VAE

The network and the loss of PyTorch's VAE example, trained for a few steps on the digits that come with scikit-learn;
then with `vae_fast` in the place of two lines. The numbers stay, and no probability of exactly 0 or 1 can make them
NaN. To run it: `pip install --no-build-isolation .` in a checkout, and scikit-learn.
""",
    ),
    (
        "code",
        """
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

images = torch.tensor(load_digits().data / 16.0, dtype=torch.float32)
print(len(images), "images of", images.shape[1], "pixels")
""",
    ),
    (
        "code",
        """
class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 128)
        self.fc21, self.fc22 = nn.Linear(128, 8), nn.Linear(128, 8)
        self.fc3, self.fc4 = nn.Linear(8, 128), nn.Linear(128, 64)

    def encode(self, x):
        h = F.relu(self.fc1(x))
        return self.fc21(h), self.fc22(h)

    def reparameterize(self, mu, logvar):
        std = torch.exp(0.5 * logvar)
        return mu + std * torch.randn_like(std)

    def forward(self, x):
        mu, logvar = self.encode(x)
        z = self.reparameterize(mu, logvar)
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))), mu, logvar


def loss_function(recon_x, x, mu, logvar):
    bce = F.binary_cross_entropy(recon_x, x, reduction='sum')
    return bce - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
""",
    ),
    (
        "code",
        """
def train(model, loss_function, epochs=10):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(epochs):
        total = 0.0
        for x in images.split(100):
            optimizer.zero_grad()
            recon, mu, logvar = model(x)
            loss = loss_function(recon, x, mu, logvar)
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(images))
    return losses


torch.manual_seed(0)
before = train(VAE(), loss_function)
print('loss by epoch:', [round(v, 3) for v in before])
""",
    ),
    (
        "markdown",
        """
Now the two lines: the sample, and the loss with all its terms.
""",
    ),
    (
        "code",
        """
import vae_fast


class Swapped(VAE):
    def reparameterize(self, mu, logvar):
        return vae_fast.reparameterize(mu, logvar)


def swapped_loss(recon_x, x, mu, logvar):
    return vae_fast.elbo_loss(x, recon_x, mu, logvar, likelihood='bernoulli_probs', clip='bce', reduction='sum')


torch.manual_seed(0)
after = train(Swapped(), swapped_loss)
print('loss by epoch:', [round(v, 3) for v in after])
""",
    ),
    (
        "markdown",
        """
The noise is drawn from another generator, so that the two runs differ as two seeds do. With the same noise the losses
are the same numbers, and so are the gradients:
""",
    ),
    (
        "code",
        """
x = images[:100]
mu, logvar = (t.detach().requires_grad_() for t in VAE().encode(x))
noise = torch.randn(100, 8)
recon = torch.rand(100, 64).requires_grad_()

z = mu + torch.exp(0.5 * logvar) * noise
same_z = vae_fast.reparameterize(mu, logvar, noise=noise)
print('z, largest difference:', (z - same_z).abs().max().item())
one, other = loss_function(recon, x, mu, logvar), swapped_loss(recon, x, mu, logvar)
print('loss:', one.item(), other.item())
for name, g, h in zip(('recon', 'mu', 'logvar'), *(torch.autograd.grad(v, (recon, mu, logvar)) for v in (one, other)), strict=True):
    print(f'gradient of {name}, largest relative difference: {((g - h).abs() / (1.0 + g.abs())).max().item():.1e}')
assert torch.allclose(one, other, rtol=1e-5)
""",
    ),
)


def run(cells: tuple[tuple[str, str], ...] = CELLS) -> dict[str, Any]:
    """The notebook, each of its code cells run: nbformat 4.5."""
    space: dict[str, Any] = {"__name__": "__main__"}
    made: list[dict[str, Any]] = []
    count = 0
    for number, (kind, given) in enumerate(cells):
        text = given.strip("\n")
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
        if kind == "code":
            count += 1
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(text, f"cell {number}", "exec"), space)
            lines = printed.getvalue().splitlines(keepends=True)
            cell |= {"execution_count": count, "outputs": [{"output_type": "stream", "name": "stdout", "text": lines}] if lines else []}
        made.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    how = {"command": "python examples/notebook.py", "commit": commit()}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, "vae_fast": how}
    return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def main() -> None:
    """Run the cells, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).with_name("swap.ipynb")
    parser.add_argument("--out", type=Path, default=default, metavar="FILE.ipynb", help="default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.write_text(json.dumps(run(), indent=1) + "\n")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
