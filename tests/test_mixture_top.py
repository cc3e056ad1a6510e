"""predict_proba(top=): the largest responsibilities of each row, sparse."""

import numpy as np
import pytest
import torch

from vae_fast.models import BayesianMixtureOfGaussians, MixtureOfGaussians

X = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))


def fitted(kind=MixtureOfGaussians, k=12):
    return kind(k, covariance_type="diag", random_state=0, max_iter=3, tol=0.0, reg_covar=1e-3)


@pytest.mark.filterwarnings("ignore::vae_fast.errors.ConvergenceWarning")
@pytest.mark.parametrize("kind", [MixtureOfGaussians, BayesianMixtureOfGaussians])
@pytest.mark.parametrize("top", [1, 4, 12])
def test_the_largest_of_each_row_as_they_are(kind, top, device, backend):
    mixture = fitted(kind).fit(X.to(device))
    dense = mixture.predict_proba(X.to(device))
    sparse = mixture.predict_proba(X.to(device), top=top)
    assert sparse.layout == torch.sparse_csr and sparse.shape == dense.shape and sparse.dtype == dense.dtype
    least = dense.topk(top, 1)[0][:, -1:]
    assert torch.equal(sparse.to_dense(), torch.where(dense >= least, dense, 0.0))  # no two are equal here
    columns = sparse.col_indices().reshape(500, top)
    assert (columns[:, 1:] > columns[:, :-1]).all()


@pytest.mark.filterwarnings("ignore::vae_fast.errors.ConvergenceWarning")
def test_an_array_gives_scipys_array():
    mixture = fitted().fit(X.numpy())
    sparse = mixture.predict_proba(X.numpy(), top=4)
    dense = mixture.predict_proba(X.numpy())
    assert type(sparse).__module__.startswith("scipy.sparse") and sparse.format == "csr" and sparse.nnz == 4 * 500
    assert sparse.has_canonical_format
    assert np.array_equal(sparse.max(axis=1).toarray().ravel(), dense.max(1))
    assert np.array_equal(np.asarray(sparse.argmax(axis=1)).ravel(), mixture.predict(X.numpy()))
    lost = 1.0 - sparse.sum(axis=1)
    np.testing.assert_allclose(lost, np.sort(dense, 1)[:, :-4].sum(1), atol=1e-6)


def test_rows_in_blocks_give_the_same():
    mixture = MixtureOfGaussians(2**12, covariance_type="diag", n_features=3, random_state=0)
    x = X.repeat(20, 1)  # 2**24 responsibilities are a block
    whole = mixture.predict_proba(x, top=2)
    parts = torch.cat([mixture.predict_proba(part, top=2).to_dense() for part in x.split(3000)])
    torch.testing.assert_close(whole.to_dense(), parts, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("top", "kind", "words"),
    [
        (0, ValueError, "top=0: expected"),
        (13, ValueError, "top=13: expected at most"),
        (2.0, TypeError, "top=2.0"),
        (True, TypeError, "top=True"),
    ],
)
def test_bad_numbers_are_refused(top, kind, words):
    mixture = MixtureOfGaussians(12, covariance_type="diag", n_features=3)
    with pytest.raises(kind) as caught:
        mixture.predict_proba(X, top=top)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)
