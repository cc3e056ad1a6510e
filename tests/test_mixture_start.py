"""Where the fit of a mixture of Gaussians begins: k-means||, what a start costs, and the reading of files."""

import math
import threading
import time

import numpy as np
import pytest
import torch
from mixture_cases import blobs

from vae_fast._world import World
from vae_fast.models import MixtureOfGaussians, _em, _mixture_data, _mixture_start

pytestmark = pytest.mark.usefixtures("one_thread")


def test_k_means_plus_plus_reads_the_whole_file(tmp_path, monkeypatch):
    """Ten samples far out are not in a sample of 100, and get their component; a start in the sample alone misses them."""
    monkeypatch.setattr(_mixture_data, "_SAMPLE", 100)
    monkeypatch.setattr(_mixture_data, "_SAMPLE_PER_COMPONENT", 1)
    x = blobs(20_000)
    x[777::2000] += torch.tensor([400.0, 400.0], dtype=torch.float64)
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    far = {}
    for init in ("k-means++", "kmeans"):
        mixture = MixtureOfGaussians(4, covariance_type="spherical", init_params=init, random_state=1, max_iter=0).fit(mapped)
        far[init] = (mixture.means_ > 300.0).any()
    assert far == {"k-means++": True, "kmeans": False}


def test_candidates_of_k_means_parallel_are_near_every_sample(backend):
    """Bahmani et al. 2012, theorem 1: the cost of the candidates is within a constant of the best; here below that of the true centres."""
    generator = torch.Generator().manual_seed(0)
    true = 20.0 * torch.randn((40, 3), generator=generator, dtype=torch.float64)
    x = true[torch.randint(40, (5000,), generator=generator)] + torch.randn((5000, 3), generator=generator, dtype=torch.float64)
    blocks = x.split(700)
    source = _mixture_start.Source(lambda: enumerate(blocks), lambda number, places: blocks[number][places], World())
    candidates = _mixture_start.parallel(source, x, 40, torch.Generator().manual_seed(1))
    assert 60 < len(candidates) < 160  # 1 + 5 rounds of 20 expected
    assert (candidates.unsqueeze(1) == x).all(2).any(1).all()  # they are samples
    assert _mixture_start.nearest(x, candidates)[1].sum() < 1.5 * _mixture_start.nearest(x, true)[1].sum()
    few = _mixture_start._reduced(candidates, x, 5000, 40, torch.Generator().manual_seed(2))
    assert few.shape == (40, 3) and _mixture_start.nearest(x, few)[1].sum() < 4.0 * _mixture_start.nearest(x, true)[1].sum()
    same = torch.ones((50, 3), dtype=torch.float64)  # nothing to draw by distance
    source = _mixture_start.Source(lambda: [(0, same)], lambda number, places: same[places], World())
    assert len(_mixture_start._reduced(_mixture_start.parallel(source, same, 4, generator), same, 50, 4, generator)) == 4


def test_a_start_reads_no_more_than_a_few_iterations_do(tmp_path, monkeypatch):
    """In rows x components of the kernels, for a file of many more samples than a start is looked for in."""
    monkeypatch.setattr(_mixture_data, "_SAMPLE", 1000)
    x = blobs(40_000, dtype=torch.float32)
    np.save(tmp_path / "x.npy", x.numpy())
    work = []
    for name in ("mixture_statistics", "mixture_log_prob"):
        real = getattr(_em.F, name)
        monkeypatch.setattr(_em.F, name, lambda x, w, *a, real=real, **k: work.append(len(x) * len(w)) or real(x, w, *a, **k))
    for init in ("kmeans", "k-means++"):
        work.clear()
        mixture = MixtureOfGaussians(30, covariance_type="diag", init_params=init, random_state=0, max_iter=0)
        mixture.fit(np.load(tmp_path / "x.npy", mmap_mode="r"))
        assert sum(work) < 5 * len(x) * 30, init


def test_the_next_block_is_read_while_one_is_used():
    """The second is there before the first is let go, and an error of the reader is the user's."""
    read = []

    def items():
        for i in range(3):
            read.append(i)
            yield i
        raise OSError("the disk is gone")

    found, ahead = [], _mixture_data.ahead(items())
    with pytest.raises(OSError, match="the disk is gone"):
        for item in ahead:
            deadline = time.monotonic() + 10.0
            while len(read) < min(3, item + 2) and time.monotonic() < deadline:
                time.sleep(0.001)
            found.append((item, len(read)))
    assert found == [(0, 2), (1, 3), (2, 3)]
    before = threading.active_count()
    stopped = _mixture_data.ahead(iter(range(100)))
    next(stopped)
    stopped.close()
    assert threading.active_count() <= before


def test_chosen_rows_of_a_file_are_a_file(tmp_path):
    x = blobs(400).numpy()
    np.save(tmp_path / "x.npy", x)
    rows = np.flatnonzero(np.arange(400) % 3)
    chosen = _mixture_data.Chosen(np.load(tmp_path / "x.npy", mmap_mode="r"), rows)
    assert chosen.shape == (len(rows), 2) and len(chosen) == len(rows)
    np.testing.assert_array_equal(chosen[10:20], x[rows][10:20])
    options = {"random_state": 0, "covariance_type": "diag"}
    got, want = MixtureOfGaussians(3, **options).fit(chosen), MixtureOfGaussians(3, **options).fit(x[rows])
    np.testing.assert_allclose(got.means_, want.means_, rtol=1e-9)
    np.testing.assert_array_equal(got.predict(chosen), got.predict(x[rows]))


@pytest.mark.parametrize(("n", "count"), [(10, 10), (100, 60), (10_000, 60)])
def test_a_sample_has_each_row_once_and_any_row_as_often(n, count):
    generator = torch.Generator().manual_seed(0)
    seen = torch.zeros(n)
    for _ in range(200):
        found = _mixture_data._distinct(n, count, generator)
        assert len(found) == count and bool((found.diff() > 0).all())
        seen[found] += 1
    half = seen[: n // 2].sum() / seen.sum()
    assert abs(half.item() - 0.5) < 4 * 0.5 / math.sqrt(200 * count)
