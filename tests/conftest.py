"""Fixtures of every test: where data lies, which devices and backends there are, and a fixed seed."""

import gc
import os
import signal
import sys
from pathlib import Path

import interpreters
import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep: spinning ones starve a machine that runs other things
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # so do those of numpy and SciPy

# Bits are compared between processes here, which may measure differently; the tests of the choice set it themselves.
os.environ.setdefault("VAE_FAST_PRODUCTS", "onednn")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: its tests of interruptions would wait in vain
    signal.signal(signal.SIGINT, signal.default_int_handler)

import torch

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
if DATA.is_dir():
    os.environ.setdefault("VAE_FAST_DATA", str(DATA))

from vae_fast import _backend  # noqa: E402  after the environment is set

THREADS = 2


def _devices():
    wanted = os.environ.get("VAE_FAST_TEST_DEVICE", "all")
    if wanted not in ("cpu", "cuda", "all"):
        raise pytest.UsageError(f"VAE_FAST_TEST_DEVICE={wanted!r}: expected cpu, cuda or all")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("VAE_FAST_TEST_DEVICE=cuda: there is no CUDA device")
    cuda = ["cuda"] if torch.cuda.is_available() else []
    return {"cpu": ["cpu"], "cuda": cuda, "all": ["cpu", *cuda]}[wanted]


DEVICES = _devices()
BACKENDS = ["reference"] if _backend.C is None else ["compiled", "reference"]

#: The longest files begin first, so that no process waits for one of them at the end (see PYTEST in the Makefile).
LONGEST = ("examples_lectures", "compile", "gradients", "dispatcher", "examples_thesis", "bench", "mixture_factorized", "aggregate")
LONGEST += ("fuzz", "examples", "hostile_command", "mixture_fit", "scale_bounds")


def pytest_collection_modifyitems(config, items):
    """The longest files first. Tests of a GPU are skipped where there is none; VAE_FAST_TEST_DEVICE=cuda leaves out all others."""
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    if DEVICES == ["cuda"]:
        kept = [item for item in items if on_cuda(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """What has been imported and collected stays: the collector would look through a million objects of it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # nor does it look through a compiler's graph for every 700 of its objects


def on_cuda(item):
    """Whether a test has a GPU in it: it is marked so, or one of its parameters is the device."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return item.get_closest_marker("cuda") is not None or any(isinstance(p, str) and p == "cuda" for p in parameters)


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """Runs the test on the kernels and on the plain-torch formulas."""
    if request.param == "reference":
        monkeypatch.setattr(_backend, "C", None)
    return request.param


@pytest.fixture
def plain_torch(monkeypatch):
    """A function that runs its argument on the plain-torch backend."""

    def run(f, *args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(_backend, "C", None)
            return f(*args, **kwargs)

    return run


@pytest.fixture(autouse=True, scope="module")
def _nothing_compiled():
    """torch.compile refuses a function's ninth graph: those that another file's tests made do not count."""
    if (dynamo := sys.modules.get("torch._dynamo")) is not None:
        dynamo.reset()


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture
def timed_products(monkeypatch):
    """Products are chosen by measured times, and the times are the test's: ``timed_products(blas, onednn)`` seconds; what is asked."""
    asked = []

    def set_times(blas, onednn):
        def timer(name, library):
            asked.append((name, library))
            return {"blas": blas, "onednn": onednn}[library]

        asked.clear()
        _backend.C.set_product_timer(timer)
        return asked

    monkeypatch.setattr(_backend, "products_mode", "auto")
    before = _backend.C.set_product_mode("auto")
    yield set_times
    _backend.C.set_product_timer(None)
    _backend.C.set_product_mode(before)


@pytest.fixture
def python():
    """Runs a script in an interpreter of its own that imports this checkout (``fresh``: that has imported nothing yet); environment
    variables are keyword arguments."""

    def run(code, check=True, path=ROOT, fresh=False, **env):
        kept = {k: v for k, v in os.environ.items() if k not in ("VAE_FAST_BACKEND", "VAE_FAST_ISA")}
        done = interpreters.run("-c", code, environment=kept | {"PYTHONPATH": str(path)} | env, folder=path, fresh=fresh)
        assert not check or done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture
def one_thread(_reproducible):
    torch.set_num_threads(1)


@pytest.fixture
def sklearn_data():
    """scikit-learn's own data sets by name, float64."""
    datasets = pytest.importorskip("sklearn.datasets")
    return lambda name: getattr(datasets, f"load_{name}")().data.astype("float64")


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Both processes' results, and the folder of their files."""
    from distributed_runs import two_processes

    return two_processes(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def no_pause(monkeypatch):
    """A suspect of a comparison is measured again at once."""
    from vae_fast.bench import compare

    monkeypatch.setattr(compare, "PAUSE", 0.0)
