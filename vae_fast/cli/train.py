"""``vae-fast train``: a VAE on images."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vae_fast import __version__, build_info, data, plots, training
from vae_fast.bench.machine import available_memory
from vae_fast.cli._common import MOST_SECONDS, MOST_SEED, machine_for, machine_options, named_path, number, write_csv
from vae_fast.cli._directory import FILES, begun, run_directory
from vae_fast.errors import FileError, RunError
from vae_fast.files import write_json
from vae_fast.models import MLPVAE
from vae_fast.training import checkpoint, distributed

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
#: Settings that a checkpoint names only where they are not these.
_OPTIONAL: dict[str, Any] = {"binarize": False, "warmup": 0, "schedule": "constant", "max_grad_norm": 0.0}
_CHOICES = {"dataset": ("digits", "mnist", "frey"), "amp": ("none", "bf16"), "schedule": ("constant", "cosine", "linear")}
_FILE = "file"  # the data set of a run with --data
_WRITTEN = FILES["train"]
_PICTURES = _WRITTEN[-4:]


def add_command(commands: Any) -> None:
    """Add ``train`` to the commands of the parser."""
    train = commands.add_parser(
        "train",
        help="train a VAE on images",
        description="Train a fully connected VAE (D-500-500-(mu, logvar), z-500-500-D) with Adam and write a "
        "checkpoint, metrics and pictures.",
        epilog="Files in DIR: checkpoint.pt, config.json, metrics.csv, results.json, " + ", ".join(_PICTURES) + ". "
        "Losses are in nats per image. Exit code: 0, 2 for an error (one line on stderr), 130 when interrupted, 143 after "
        "SIGTERM, once the checkpoint is written. Under torchrun the processes train one model; --max-restarts continues "
        "from the last good checkpoint.",
    )
    train.set_defaults(run=_train, interrupted="a run that wrote a checkpoint continues with --resume")
    _settings_options(train)
    _run_options(train)
    _process_options(train)


def _settings_options(train: argparse.ArgumentParser) -> None:
    # The defaults are filled in by _settings: a resumed run takes what is not given from its checkpoint.
    def add(name: str, text: str, **how: Any) -> None:
        default = DEFAULTS[name.lstrip("-").replace("-", "_")]
        train.add_argument(name, help=f"{text} (default: {default})", **how)

    positive = number(int, 1)
    add("--dataset", "digits comes with scikit-learn and needs no file", choices=_CHOICES["dataset"])
    add("--epochs", "in all, those of a resumed run included", metavar="N", type=positive)
    add("--latent", "size of the latent space", metavar="L", type=positive)
    add("--hidden", "size of the hidden layers", metavar="H", type=positive)
    add("--batch-size", "images per step, of all processes together", metavar="B", type=positive)
    add("--lr", "learning rate of Adam", metavar="X", type=number(float, 0.0, open_below=True))
    add("--beta", "weight of the KL divergence", metavar="X", type=number(float, 0.0))
    add("--seed", "of weights, shuffling and noise", metavar="N", type=number(int, 0, MOST_SEED))
    add("--amp", "bf16: mixed precision under autocast", choices=_CHOICES["amp"])
    text = "draw every image anew at every step, each pixel black or white with its grey as probability"
    train.add_argument("--binarize", action="store_true", default=None, help=text)
    text = "steps over which the learning rate rises to --lr, for large batches (default: 0)"
    train.add_argument("--warmup", metavar="N", type=number(int, 0), help=text)
    text = "the learning rate afterwards: as it is, or falling to zero at the end of --epochs (default: constant)"
    train.add_argument("--schedule", choices=_CHOICES["schedule"], help=text)
    text = "scale the gradient down to this norm where it is longer; 0 does not (default: 0)"
    train.add_argument("--max-grad-norm", metavar="X", type=number(float, 0.0), help=text)


def _run_options(train: argparse.ArgumentParser) -> None:
    add = train.add_argument
    text = "where to write (default: runs/DATASET)"
    add("--out", metavar="DIR", type=named_path, help=text)
    text = "where the files of mnist and frey are; missing MNIST files are downloaded there"
    add("--data-dir", metavar="DIR", type=named_path, help=f"{text} (default: $VAE_FAST_DATA, else the user's cache)")
    text = "images of one's own instead of --dataset: (n, height, width) or (n, d), uint8 or floating in [0, 1]; mapped, never read whole"
    add("--data", metavar="FILE.npy", type=named_path, help=text)
    again = train.add_mutually_exclusive_group()
    text = "continue the run in --out; on the CPU, with as many threads, to the same bits as an unbroken run"
    again.add_argument("--resume", action="store_true", help=text)
    again.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    text = "at the end, also estimate log p(x) of the test images with K importance samples each (default: 0, off)"
    add("--eval", metavar="K", type=number(int, 0), default=0, help=text)
    machine_options(train)


def _process_options(train: argparse.ArgumentParser) -> None:
    add = train.add_argument
    text = "compute each batch in N pieces, for batches that do not fit (default: 1)"
    add("--accumulate", metavar="N", type=number(int, 1), default=1, help=text)
    text = "also write a checkpoint after every N steps, and keep the one before it (default: once per epoch)"
    add("--checkpoint-every", metavar="N", type=number(int, 1), help=text)
    text = "under torchrun, each process holds its part of the weights (FSDP2) instead of all (DistributedDataParallel)"
    add("--shard", action="store_true", help=text)
    text = "on CUDA, run the step kernel by kernel instead of as one recorded graph"
    add("--no-capture", action="store_true", help=text)
    text = "seconds after which a process that does not answer is given up (default: 600)"
    add("--timeout", metavar="S", type=number(float, 0.0, MOST_SECONDS, open_below=True), default=distributed.TIMEOUT, help=text)


def _settings(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """The options of the run: given ones first, then those of the run being resumed, then the defaults."""
    if args.data is not None and args.dataset is not None:
        raise RunError(f"--data {args.data}: expected it alone, --dataset {args.dataset} was given too")
    given = {k: getattr(args, k) for k in DEFAULTS | _OPTIONAL if getattr(args, k) is not None}
    given |= {} if args.data is None else {"dataset": _FILE}
    if not args.resume:
        return DEFAULTS | _OPTIONAL | given
    file = out / "checkpoint.pt"
    if not file.is_file() and not checkpoint.previous_of(file).is_file():
        raise FileError(f"{file}: not there, nothing to resume; leave out --resume to start a run in {out}")
    state, _ = checkpoint.newest(file)
    before = {key: state["config"].get(key) for key in DEFAULTS} | {k: state["config"].get(k, v) for k, v in _OPTIONAL.items()}
    for key, value in before.items():
        if not _plausible(key, value):
            raise FileError(f"{file}: not a checkpoint of `vae-fast train`: it holds {key}={value!r:.60}")
    if any(record.keys() != set(training.COLUMNS) for record in state["history"]):
        raise FileError(f"{file}: not a checkpoint of `vae-fast train`: expected its history to hold {', '.join(training.COLUMNS)}")
    for key, value in given.items():
        if before[key] != value and key != "epochs":
            if key == "dataset" and _FILE in (value, before[key]):
                raise FileError(f"{file}: was trained on another kind of data, --dataset {before[key]}, than {value}")
            option = "--" + key.replace("_", "-")
            raise FileError(f"{file}: was trained with {option} {before[key]}, not {value}: leave out {option} to resume")
    settings = before | given
    if settings["dataset"] == _FILE and args.data is None:
        raise FileError(f"{file}: was trained on a file: name it with --data to resume")
    if settings["epochs"] < state["epoch"]:
        raise FileError(f"{file}: holds {state['epoch']} epochs, more than --epochs {settings['epochs']}")
    return settings


def _plausible(key: str, value: object) -> bool:
    """Whether a checkpoint's setting is one the command line would have taken."""
    if type(value) is not type((DEFAULTS | _OPTIONAL)[key]):
        return False
    if isinstance(value, bool):
        return True
    if isinstance(value, str):
        return value in _CHOICES[key] or (key, value) == ("dataset", _FILE)
    return isinstance(value, int | float) and (0 < value < math.inf or (value == 0 and key in ("beta", "seed", "warmup", "max_grad_norm")))


# --- train ------------------------------------------------------------------------------------------------------------


def _train(args: argparse.Namespace) -> int:
    args.device = distributed.local_device(args.device)
    with contextlib.ExitStack() as held:
        with distributed.join(torch.device("cuda" if args.device.startswith("cuda") else "cpu"), timeout=args.timeout) as world:
            finish = _fit(args, world, held)
        # The others are not waited for, and do not wait: what is left is the main process's.
        if world.main:
            finish()
    return 0


def _fit(args: argparse.Namespace, world: distributed.World, held: contextlib.ExitStack) -> Callable[[], None]:
    """Train; returns what the main process does at the end. ``held``: what it holds until then, the run's directory."""
    if args.out is None:
        args.out = Path("runs") / (args.data.stem if args.data is not None else args.dataset or DEFAULTS["dataset"])
    out: Path = args.out
    if distributed.restarts() and world.on_main(lambda: begun(out, "checkpoint.pt", "checkpoint.previous.pt")):
        args.resume, args.overwrite = True, False  # torchrun gives a restarted process the same command line
    settings = world.on_main(lambda: _settings(args, out))
    device = world.together(lambda: machine_for(args, pictures=not args.no_pictures))
    found: list[data.Dataset] = []
    world.on_main(lambda: found.append(_images(args, settings)))  # first, and alone: it may have to download them
    images = world.together(lambda: found[0] if found else _images(args, settings))
    world.together(lambda: _check_size(args, settings, images, world, device))
    schedule = world.together(lambda: _schedule(settings, len(images.train)))
    how = {"keep": args.resume, "overwrite": args.overwrite, "resumable": True}
    world.on_main(lambda: held.enter_context(run_directory(out, "train", **how)))
    torch.manual_seed(settings["seed"])
    model = MLPVAE(settings["latent"], images.train.shape[1], settings["hidden"], beta=settings["beta"]).to(device)
    # Data that do not fit are not gone through: 65,536 rows, evenly spread, stand for all.
    floor = world.on_main(lambda: data.entropy_floor(images.train[:: 1 + len(images.train) // 2**16 if args.data else 1]))

    def describe() -> None:
        _describe(images, model, floor, device)
        if world.size > 1:
            how = "fully_shard" if args.shard else "DistributedDataParallel"
            print(f"{world.size} processes, {how}, {settings['batch_size']} images per step in all", flush=True)
        config = settings | {"device": str(device), "vae_fast": __version__, "torch": str(torch.__version__)}
        config |= {} if distributed.job() is None else {"job": distributed.job()}
        write_json(out / "config.json", {k: v for k, v in config.items() if k not in _OPTIONAL or v != _OPTIONAL[k]})

    world.on_main(describe)
    trained = 0

    def after_epoch(history: list[training.Record]) -> None:
        nonlocal trained
        trained += 1
        write_csv(out / "metrics.csv", training.COLUMNS, history)
        training.say(_line(history[-1], settings["epochs"], floor))

    history = training.fit(
        model,
        images.train,
        valid=images.valid,
        epochs=settings["epochs"],
        callbacks=[after_epoch],
        batches=training.Batches(
            batch_size=settings["batch_size"], seed=settings["seed"], accumulate=args.accumulate, transform=_transform(args, settings)
        ),
        optimization=training.Optimization(lr=settings["lr"], schedule=schedule, max_grad_norm=settings["max_grad_norm"] or None),
        checkpoints=training.Checkpoints(
            checkpoint=out / "checkpoint.pt",
            resume=args.resume,
            config={k: v for k, v in settings.items() if k not in _OPTIONAL or v != _OPTIONAL[k]},
            checkpoint_every=args.checkpoint_every,
        ),
        hardware=training.Hardware(amp=_amp(settings), capture=not args.no_capture, resident=args.data is None),
        processes=training.Processes(shard=args.shard, timeout=args.timeout),
    )

    def finish() -> None:
        if not trained:
            print(f"all {len(history)} epochs are done", flush=True)
            write_csv(out / "metrics.csv", training.COLUMNS, history)
        _finish(args, _whole(model, args), images, history, floor, settings)

    return finish


def _images(args: argparse.Namespace, settings: dict[str, Any]) -> data.Dataset:
    images = data.load(settings["dataset"], args.data_dir) if args.data is None else data.load_file(args.data)
    if settings["batch_size"] > len(images.train):
        raise RunError(f"--batch-size {settings['batch_size']}: {images.name} has {len(images.train):,} training images")
    return images


def _check_size(
    args: argparse.Namespace, settings: dict[str, Any], images: data.Dataset, world: distributed.World, device: torch.device
) -> None:
    """Refuse what cannot be run, before anything is written."""
    if args.shard and not world.joined:
        raise RunError("--shard: expected several processes to hold the parts; start the command with torchrun")
    if settings["batch_size"] < world.size * args.accumulate:
        parts = f"{world.size} process(es) and --accumulate {args.accumulate} pieces"
        raise RunError(f"--batch-size {settings['batch_size']}: expected an image for each of {parts}")
    count = weight_count(images.train.shape[1], settings["hidden"], settings["latent"])
    # float32: the weight, and where they are not shared out its gradient and Adam's two moments.
    needed, free = count * (4 if args.shard else 16), available_memory(str(device))
    if needed > free:
        raise RunError(
            f"--hidden {settings['hidden']} --latent {settings['latent']}: the model does not fit: its {count:,} weights, gradients and "
            f"moments need {needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are free"
        )


def weight_count(data_dim: int, hidden: int, latent: int) -> int:
    """How many numbers an MLPVAE of this size has: known before it is made."""
    layers = (
        (data_dim, hidden),
        (hidden, hidden),
        (hidden, latent),
        (hidden, latent),
        (latent, hidden),
        (hidden, hidden),
        (hidden, data_dim),
    )
    return sum((inputs + 1) * outputs for inputs, outputs in layers)


def _transform(args: argparse.Namespace, settings: dict[str, Any]) -> training.Transform | None:
    if settings["binarize"]:
        return data.binarized
    return None if args.data is None else data.in_model_dtype


def _schedule(settings: dict[str, Any], rows: int) -> training.Schedule | None:
    steps = settings["epochs"] * (rows // settings["batch_size"])
    if settings["schedule"] != "constant" and steps <= settings["warmup"]:
        raise RunError(
            f"--warmup {settings['warmup']}: expected fewer than the {steps} steps of the run, for --schedule {settings['schedule']}"
        )
    if (settings["warmup"], settings["schedule"]) == (0, "constant"):
        return None
    return training.warmup(settings["warmup"], settings["schedule"], steps)


def _whole(model: MLPVAE, args: argparse.Namespace) -> MLPVAE:
    """The model, or if it is sharded, the one the checkpoint holds."""
    if not args.shard:
        return model
    again = MLPVAE(model.latent_dim, model.data_dim, model.hidden_dim, beta=model.beta).to(args.device)
    again.load_state_dict(checkpoint.load(args.out / "checkpoint.pt")["model"])
    return again


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


def _finish(
    args: argparse.Namespace,
    model: MLPVAE,
    images: data.Dataset,
    history: list[training.Record],
    floor: float,
    settings: dict[str, Any],
) -> None:
    """Test loss, results.json and pictures."""
    out: Path = args.out
    amp, transform = _amp(settings), _transform(args, settings)
    test_floor = data.entropy_floor(images.test)
    test = training.evaluate(model, images.test, amp=amp, transform=transform)
    print(f"test: loss {test['loss']:.2f} (floor {test_floor:.2f})  KL {test['kl']:.2f}", flush=True)
    results: dict[str, Any] = {"epochs": len(history), "train_loss": history[-1]["loss"], "entropy_floor": floor}
    results |= {"test_loss": test["loss"], "test_kl": test["kl"], "test_entropy_floor": test_floor}
    if args.eval:
        log_prob = training.evaluate_log_prob(model, images.test, args.eval, amp=amp, transform=transform)
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
    plots.loss_curve(loss_png, history, floor, f"{plots.literal(images.name)}, {model.latent_dim} latent dimensions")
    shown = images.test[:: max(1, len(images.test) // 12)][:12]
    again = model.reconstruct(shown.to(device))
    plots.image_grid(reconstructions_png, [shown, again], images.image_shape, ("input", "output"))
    generator = torch.Generator(device).manual_seed(0)
    drawn = model.sample(100, generator=generator)
    plots.image_grid(samples_png, list(drawn.split(10)), images.image_shape)
    with torch.no_grad():
        mu = torch.cat([model.encode(x.to(device))[0] for x in images.test.split(1000)])
    plots.latent_scatter(latent_png, mu, images.test_labels, images.label_name)
