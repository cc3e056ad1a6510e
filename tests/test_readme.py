"""The README's Python blocks run, in order, in one namespace; its figures are those of the committed results."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import vae_fast

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def namespace():
    """What a reader of the first screen has at hand: a VAE's tensors, of a batch of images."""
    torch.manual_seed(0)
    mu, logvar = (torch.randn(4, 20, requires_grad=True) for _ in range(2))
    recon_x = torch.rand(4, 784, requires_grad=True)
    return {"torch": torch, "F": F, "vae_fast": vae_fast, "x": torch.rand(4, 1, 28, 28), "recon_x": recon_x, "mu": mu, "logvar": logvar}


def test_there_are_blocks():
    assert len(BLOCKS) >= 6


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_block_runs(namespace, index):
    exec(compile(BLOCKS[index], f"README.md block {index}", "exec"), namespace)
    if index == 0:
        namespace["loss_before"] = namespace["loss"].item()
    if index == 1:
        assert namespace["loss"].item() == pytest.approx(namespace["loss_before"], rel=1e-6)


def test_figures_are_those_of_the_results():
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "readme.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
