"""The command ``vae-fast``."""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from vae_fast import __version__, build_info, checkpoint, data, plots, training
from vae_fast._errors import FileError, RunError, VaeFastError
from vae_fast._files import atomic_write, write_json
from vae_fast.models import MLPVAE

#: What a run is: these go into config.json and the checkpoint, and a resumed run takes over those not given again.
DEFAULTS: dict[str, Any] = {
    "dataset": "digits",
    "latent": 20,
    "hidden": 500,
    "epochs": 50,
    "batch_size": 100,
    "lr": 1e-3,
    "beta": 1.0,
    "seed": 0,
    "amp": "none",
}
_CHOICES = {"dataset": ("digits", "mnist", "frey"), "amp": ("none", "bf16")}
_PICTURES = ("loss.png", "reconstructions.png", "samples.png", "latent.png")
_WRITTEN = ("checkpoint.pt", "config.json", "metrics.csv", "results.json", *_PICTURES)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for anything the user can repair, 130 when interrupted.

    Example:
        >>> main(["train", "--dataset", "digits", "--epochs", "0"])
        2
    """
    parser = _parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed help, version or one error line
        return int(stop.code or 0)
    try:
        return int(args.run(args))
    except (VaeFastError, OSError, torch.OutOfMemoryError) as error:
        print(f"vae-fast: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vae-fast: interrupted; a run that wrote a checkpoint continues with --resume", file=sys.stderr)
        return 130


# --- options ----------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """One line per error, the way the rest of the command reports them."""

    def error(self, message: str) -> Any:
        self.exit(2, f"vae-fast: error: {message} (see {self.prog} --help)\n")


def _number(kind: type, low: float, open_below: bool = False) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low < value if open_below else low <= value) or value == math.inf:
            what = "an integer" if kind is int else "a finite number"
            bound = f"above {low:g}" if open_below else f"of at least {low:g}"
            raise argparse.ArgumentTypeError(f"{text!r}: expected {what} {bound}")
        return value

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vae-fast", description="Fused kernels for variational autoencoders.")
    parser.add_argument("--version", action="version", version=f"vae_fast {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train a VAE on images",
        description="Train a fully connected VAE (D-500-500-(mu, logvar), z-500-500-D) with Adam and write a "
        "checkpoint, metrics and pictures.",
        epilog="Files in DIR: checkpoint.pt, config.json, metrics.csv, results.json, " + ", ".join(_PICTURES) + ". "
        "Losses are in nats per image. Exit code: 0, 2 for an error (one line on stderr), 130 when interrupted.",
    )
    train.set_defaults(run=_train)
    _settings_options(train)
    _run_options(train)
    return parser


def _settings_options(train: argparse.ArgumentParser) -> None:
    # The defaults are filled in by _settings: a resumed run takes what is not given from its checkpoint.
    def add(name: str, text: str, **how: Any) -> None:
        default = DEFAULTS[name.lstrip("-").replace("-", "_")]
        train.add_argument(name, help=f"{text} (default: {default})", **how)

    positive = _number(int, 1)
    add("--dataset", "digits comes with scikit-learn and needs no file", choices=_CHOICES["dataset"])
    add("--epochs", "in all, those of a resumed run included", metavar="N", type=positive)
    add("--latent", "size of the latent space", metavar="L", type=positive)
    add("--hidden", "size of the hidden layers", metavar="H", type=positive)
    add("--batch-size", "images per step", metavar="B", type=positive)
    add("--lr", "learning rate of Adam", metavar="X", type=_number(float, 0.0, open_below=True))
    add("--beta", "weight of the KL divergence", metavar="X", type=_number(float, 0.0))
    add("--seed", "of weights, shuffling and noise", metavar="N", type=_number(int, 0))
    add("--amp", "bf16: mixed precision under autocast", choices=_CHOICES["amp"])


def _run_options(train: argparse.ArgumentParser) -> None:
    add = train.add_argument
    text = "where to write (default: runs/DATASET)"
    add("--out", metavar="DIR", type=Path, help=text)
    text = "where the files of mnist and frey are; missing MNIST files are downloaded there"
    add("--data-dir", metavar="DIR", type=Path, help=f"{text} (default: $VAE_FAST_DATA, else the user's cache)")
    again = train.add_mutually_exclusive_group()
    text = "continue the run in --out; on the CPU, with as many threads, to the same bits as an unbroken run"
    again.add_argument("--resume", action="store_true", help=text)
    again.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    text = "at the end, also estimate log p(x) of the test images with K importance samples each (default: 0, off)"
    add("--eval", metavar="K", type=_number(int, 0), default=0, help=text)
    add("--device", metavar="NAME", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    add("--threads", metavar="N", type=_number(int, 1), help="CPU threads (default: torch's choice)")
    add("--no-pictures", action="store_true", help="write no PNG files (matplotlib is not needed then)")


def _settings(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """The options of the run: given ones first, then those of the run being resumed, then the defaults."""
    given = {k: getattr(args, k) for k in DEFAULTS if getattr(args, k) is not None}
    if not args.resume:
        return DEFAULTS | given
    file = out / "checkpoint.pt"
    if not file.is_file():
        raise FileError(f"{file}: not there, nothing to resume; leave out --resume to start a run in {out}")
    state = checkpoint.load(file)
    before = {key: state["config"].get(key) for key in DEFAULTS}
    for key, value in before.items():
        if not _plausible(key, value):
            raise FileError(f"{file}: not a checkpoint of `vae-fast train`: it holds {key}={value!r}")
    for key, value in given.items():
        if before[key] != value and key != "epochs":
            option = "--" + key.replace("_", "-")
            raise FileError(f"{file}: was trained with {option} {before[key]}, not {value}: leave out {option} to resume")
    settings = before | given
    if settings["epochs"] < state["epoch"]:
        raise FileError(f"{file}: holds {state['epoch']} epochs, more than --epochs {settings['epochs']}")
    return settings


def _plausible(key: str, value: object) -> bool:
    """Whether a checkpoint's setting is one the command line would have taken."""
    if type(value) is not type(DEFAULTS[key]):
        return False
    if isinstance(value, str):
        return value in _CHOICES[key]
    return isinstance(value, int | float) and (0 < value < math.inf or (value == 0 and key in ("beta", "seed")))


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"--device {name}: cannot be used here: {str(error).splitlines()[0]}") from None
    if device.type not in ("cpu", "cuda"):
        raise RunError(f"--device {name}: expected cpu, cuda or cuda:N")
    return device


def _prepare(out: Path, args: argparse.Namespace) -> None:
    """Make ``out`` ready: refuse to write over a run, clear what an earlier one left behind."""
    if out.exists() and not out.is_dir():
        raise FileError(f"{out}: is a file; --out names a directory")
    if (out / "checkpoint.pt").exists() and not (args.resume or args.overwrite):
        raise FileError(f"{out}: already holds a run; continue it with --resume, replace it with --overwrite, or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.glob(".*.tmp"):  # of a process that was killed while writing
        stale.unlink()
    if not args.resume:
        for name in _WRITTEN:
            (out / name).unlink(missing_ok=True)


# --- train ------------------------------------------------------------------------------------------------------------


def _train(args: argparse.Namespace) -> int:
    if args.out is None:
        args.out = Path("runs") / (args.dataset or DEFAULTS["dataset"])
    out: Path = args.out
    settings = _settings(args, out)
    device = _device(args.device)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if not args.no_pictures:
        plots.require()
    images = data.load(settings["dataset"], args.data_dir)
    if settings["batch_size"] > len(images.train):
        raise RunError(f"--batch-size {settings['batch_size']}: {images.name} has {len(images.train):,} training images")
    _prepare(out, args)
    torch.manual_seed(settings["seed"])
    model = MLPVAE(settings["latent"], images.train.shape[1], settings["hidden"], beta=settings["beta"]).to(device)
    floor = data.entropy_floor(images.train)
    _describe(images, model, floor, device)
    write_json(
        out / "config.json",
        settings | {"device": str(device), "vae_fast": __version__, "torch": str(torch.__version__)},
    )

    trained = 0

    def after_epoch(history: list[training.Record]) -> None:
        nonlocal trained
        trained += 1
        _write_metrics(out / "metrics.csv", history)
        training.say(_line(history[-1], settings["epochs"], floor))

    history = training.fit(
        model,
        images.train,
        valid=images.valid,
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        lr=settings["lr"],
        seed=settings["seed"],
        amp=_amp(settings),
        checkpoint=out / "checkpoint.pt",
        resume=args.resume,
        config=settings,
        callbacks=[after_epoch],
    )
    if not trained:
        print(f"all {len(history)} epochs are done", flush=True)
        _write_metrics(out / "metrics.csv", history)
    _finish(args, model, images, history, floor, _amp(settings))
    return 0


def _amp(settings: dict[str, Any]) -> torch.dtype | None:
    return torch.bfloat16 if settings["amp"] == "bf16" else None


def _describe(images: data.Dataset, model: MLPVAE, floor: float, device: torch.device) -> None:
    height, width = images.image_shape
    count = sum(p.numel() for p in model.parameters())
    print(
        f"{images.name}: {len(images.train):,} training, {len(images.valid):,} validation, {len(images.test):,} test "
        f"images of {height}x{width}; entropy floor of grey targets {floor:.2f} nats\n"
        f"model: {model.data_dim}-{model.hidden_dim}-{model.hidden_dim}-({model.latent_dim}, {model.latent_dim}), "
        f"{model.latent_dim}-{model.hidden_dim}-{model.hidden_dim}-{model.data_dim}, {count:,} weights; "
        f"device {device}, backend {build_info()['backend']}",
        flush=True,
    )


def _line(r: training.Record, epochs: int, floor: float) -> str:
    return (
        f"epoch {int(r['epoch']):>{len(str(epochs))}}/{epochs}  loss {r['loss']:.2f} (floor {floor:.2f})  "
        f"KL {r['kl']:.2f}  validation {r['valid_loss']:.2f}  {r['samples_per_second']:,.0f} samples/s"
    )


def _write_metrics(path: Path, history: list[training.Record]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, training.COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def _finish(
    args: argparse.Namespace,
    model: MLPVAE,
    images: data.Dataset,
    history: list[training.Record],
    floor: float,
    amp: torch.dtype | None,
) -> None:
    """Test loss, results.json and pictures."""
    out: Path = args.out
    test_floor = data.entropy_floor(images.test)
    test = training.evaluate(model, images.test, amp=amp)
    print(f"test: loss {test['loss']:.2f} (floor {test_floor:.2f})  KL {test['kl']:.2f}", flush=True)
    results: dict[str, Any] = {"epochs": len(history), "train_loss": history[-1]["loss"], "entropy_floor": floor}
    results |= {"test_loss": test["loss"], "test_kl": test["kl"], "test_entropy_floor": test_floor}
    if args.eval:
        log_prob = training.evaluate_log_prob(model, images.test, args.eval, amp=amp)
        print(f"test: log p(x) {log_prob:.2f} with {args.eval} importance samples per image", flush=True)
        results |= {"test_log_prob": log_prob, "importance_samples": args.eval}
    write_json(out / "results.json", results)
    if not args.no_pictures:
        _draw(out, model, images, history, floor)
    print(f"wrote {out}: {', '.join(name for name in _WRITTEN if (out / name).exists())}", flush=True)


def _draw(out: Path, model: MLPVAE, images: data.Dataset, history: list[training.Record], floor: float) -> None:
    device = checkpoint.device_of(model)
    model.eval()
    loss_png, reconstructions_png, samples_png, latent_png = (out / name for name in _PICTURES)
    plots.loss_curve(loss_png, history, floor, f"{images.name}, {model.latent_dim} latent dimensions")
    shown = images.test[:: max(1, len(images.test) // 12)][:12]
    again = model.reconstruct(shown.to(device))
    plots.image_grid(reconstructions_png, [shown, again], images.image_shape, ("input", "output"))
    generator = torch.Generator(device).manual_seed(0)
    drawn = model.sample(100, generator=generator)
    plots.image_grid(samples_png, list(drawn.split(10)), images.image_shape)
    with torch.no_grad():
        mu = torch.cat([model.encode(x.to(device))[0] for x in images.test.split(1000)])
    plots.latent_scatter(latent_png, mu, images.test_labels, images.label_name)
