"""A NaN stays in its own row, in the value and in every gradient."""

import math

import pytest
import torch
from oracle import ALL, CASES, ELBOS, LOGSUMEXPS, SAMPLES, TERMS, value_and_grads

import vae_fast


@pytest.mark.parametrize("columns", [5, 64, 100])
@pytest.mark.parametrize("case", ALL, ids=str)
def test_nan_stays_in_its_row(case, columns, device, backend):
    tensors = case.tensors((5, columns), (5, columns), torch.float32, device)
    wanted = [True, True, False] if case in SAMPLES else None
    f = (lambda *t: case.ours(*t, dim=-1)) if case in LOGSUMEXPS else case.ours
    clean, clean_grads = value_and_grads(f, tensors, wanted=wanted)
    others = torch.tensor([0, 1, 3, 4], device=device)
    for poisoned in range(len(tensors)):
        for column in (0, columns - 2, columns - 1):
            dirty = [t.clone() for t in tensors]
            dirty[poisoned][2, column] = math.nan
            value, grads = value_and_grads(f, dirty, wanted=wanted)
            assert value[2].isnan().any()
            assert torch.equal(value[others], clean[others])
            for got, want in zip(grads, clean_grads, strict=True):
                if want is not None:
                    assert torch.equal(got[others], want[others])


@pytest.mark.parametrize("case", [*TERMS, *ELBOS], ids=str)
def test_nan_upstream_stays_in_its_row(case, device, backend):
    tensors = case.tensors((4, 20), (4, 20), torch.float32, device)
    upstream = torch.tensor([1.0, math.nan, 2.0, 0.0], device=device)
    grads = value_and_grads(case.ours, tensors, upstream)[1]
    for g in grads:
        assert not g[[0, 2, 3]].isnan().any()
        assert (g[3] == 0).all()


def test_nan_in_the_loss_is_seen(device, backend):
    tensors = CASES["elbo.bernoulli"].tensors((5, 20), (5, 3), torch.float32, device)
    for t in tensors:
        dirty = [v.clone() for v in tensors]
        dirty[[v is t for v in tensors].index(True)][3, 1] = math.nan
        value, grads = value_and_grads(lambda *v: CASES["elbo.bernoulli"].ours(*v, f=vae_fast.elbo_loss), dirty)
        assert value.isnan()
        assert all(not g[:3].isnan().any() for g in grads)
