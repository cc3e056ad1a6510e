"""Checks the wheel in dist/: its size, its content, and that it runs where there is no compiler.

    python tools/wheel_check.py [--installed]

The wheel is installed into a new environment that sees this one's torch and numpy, with nothing but that environment's own programs on the
PATH. There the README's two code blocks have to give the same loss, on the kernels. ``--installed`` is that last step, for the package
that the interpreter has.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST = 6 << 20  # bytes
TORCHS = ("libtorch", "libc10", "libgomp", "libshm")


def content(wheel):
    """What is wrong with the file itself."""
    size = wheel.stat().st_size
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    faults = [f"is {size / 2**20:.1f} MiB, expected at most {MOST >> 20}"] if size > MOST else []
    faults += [f"holds {name}, which is torch's" for name in names if Path(name).name.startswith(TORCHS)]
    faults += [f"holds {name}" for name in names if not name.startswith(("vae_fast/", "vae_fast-"))]
    if sum(name.startswith("vae_fast/_C") for name in names) != 1:
        faults.append("holds not one extension")
    if "+torch" not in wheel.name:
        faults.append("does not name its torch")
    return faults


def swap():
    """The README's swap, by the package that is installed."""
    import torch
    import torch.nn.functional as F

    import vae_fast

    info = vae_fast.build_info()
    if info["backend"] != "compiled":
        sys.exit(f"wheel_check: the kernels are not in use: {info['reason']}")
    if Path(vae_fast.__file__).is_relative_to(ROOT):
        sys.exit(f"wheel_check: {vae_fast.__file__} is the checkout's, expected the wheel's")
    torch.manual_seed(0)
    mu, logvar = (torch.randn(4, 20, requires_grad=True) for _ in range(2))
    recon_x, x = torch.rand(4, 784, requires_grad=True), torch.rand(4, 1, 28, 28)
    names = {"torch": torch, "F": F, "vae_fast": vae_fast, "x": x, "recon_x": recon_x, "mu": mu, "logvar": logvar}
    blocks = re.findall(r"^```python\n(# (?:before|after)\n.*?)^```", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    losses = []
    for block in blocks:
        exec(block, names)
        losses.append(names["loss"])
    before, after = losses
    a, b = (torch.autograd.grad(loss, recon_x)[0] for loss in losses)
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(b, a)
    print(f"loss {before.item():.6g} before, {after.item():.6g} after; torch {torch.__version__}, {info['isa_in_use']}")


def elsewhere(wheel):
    """Install it into a new environment and run the swap there."""
    import numpy
    import torch

    seen = {str(Path(module.__file__).parents[1]) for module in (numpy, torch)}
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "env"
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        python = environment / "bin" / "python"
        (packages,) = environment.glob("lib/python*/site-packages")
        (packages / "seen.pth").write_text("\n".join(seen) + "\n")
        variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CXX", "CC", "VAE_FAST_BACKEND")}
        variables["PATH"] = str(environment / "bin")
        given = {"cwd": folder, "env": variables, "check": True}
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", wheel], **given
        )
        subprocess.run([python, __file__, "--installed"], **given)


def main():
    """All of it, or the last step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--installed", action="store_true", help="run the swap by the package that this interpreter has")
    if parser.parse_args().installed:
        swap()
        return 0
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    wheels = sorted((ROOT / "dist").glob(f"vae_fast-*-{tag}-*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        print(f"wheel_check: dist/ holds no wheel of {tag}: run make wheel", file=sys.stderr)
        return 2
    wheel = wheels[-1]
    faults = content(wheel)
    for fault in faults:
        print(f"{wheel.name} {fault}", file=sys.stderr)
    if faults:
        return 1
    print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB")
    elsewhere(wheel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
