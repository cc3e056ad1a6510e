"""The maximum mean discrepancy between samples, the regularizer of InfoVAE and of Wasserstein autoencoders."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vae_fast._precision import compute_all, number_of
from vae_fast.functional import _arguments as check
from vae_fast.functional import _values as values
from vae_fast.functional._dispatch import overridable, refuse_dtensors
from vae_fast.functional._row_chunks import by_rows

#: The scales that are summed if none are given.
SCALES = {"imq": (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0), "rbf": (1.0,)}


def _row_sums(a: Tensor, b: Tensor, same: bool, kernel: str, widths: Sequence[float]) -> Tensor:
    """``sum_j k(a_i, b_j)``, without j = i if both are the ``same``; a and b lie about 0, or squares would cancel."""

    def one(a: Tensor, index: Tensor, b: Tensor, of_b: Tensor) -> tuple[Tensor, ...]:
        distance = (a.square().sum(1, keepdim=True) + of_b - 2.0 * (a @ b.mT)).clamp(min=0.0)
        total = sum(width / (width + distance) if kernel == "imq" else (-distance / width).exp() for width in widths)
        assert isinstance(total, Tensor)
        if same:
            total = total.masked_fill(index.unsqueeze(1) == torch.arange(len(b), device=b.device), 0.0)
        return (total.sum(1),)

    return by_rows(one, len(b), [a, torch.arange(len(a), device=a.device)], [b, b.square().sum(1)])[0]


@overridable
def mmd(
    z: Tensor,
    prior: Tensor,
    *,
    kernel: str = "imq",
    bandwidth: float = 1.0,
    scales: Sequence[float] | None = None,
    check_data: bool = False,
) -> Tensor:
    r"""The squared maximum mean discrepancy between two samples, without bias (Gretton et al. 2012, lemma 6).

    .. math:: \frac{1}{N (N-1)} \sum_{i \ne j} k(z_i, z_j) + \frac{1}{M (M-1)} \sum_{i \ne j} k(p_i, p_j)
        - \frac{2}{N M} \sum_{ij} k(z_i, p_j)

    with ``k(a, b) = sum_s C_s / (C_s + |a - b|^2)`` (``"imq"``) or ``sum_s exp(-|a - b|^2 / C_s)`` (``"rbf"``) and
    ``C_s = 2 L bandwidth^2 s``: the regularizer of InfoVAE (Zhao, Song and Ermon 2019) and of Wasserstein autoencoders (Tolstikhin et
    al. 2018), with the values of pythae's ``INFOVAE_MMD``. The distances come from products of matrices, in blocks of rows that are
    computed again in the backward pass: no N x N x L differences, nothing of the size of N x N is kept, and the pairs of a point with
    itself are left out exactly. Plain torch on every device; what products lose to an offset that all points share, the centre of
    ``prior`` takes.

    Args:
        z: samples of the aggregate posterior, ``(N, L)``.
        prior: samples of the prior, ``(M, L)``.
        kernel: ``"imq"`` or ``"rbf"``.
        bandwidth: of the kernel, above 0.
        scales: the s, each above 0; None: 0.1, 0.2, 0.5, 1, 2, 5 and 10 for ``"imq"``, 1 for ``"rbf"``.
        check_data: True: look at the values of the arguments first, see :class:`checks`.

    Returns:
        float32 (float64 if any argument is), shape ``()``; below zero too, as what is without bias may be. Differentiable in both.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        An InfoVAE's loss in three lines:

        >>> import torch, vae_fast
        >>> x, logits, mu, logvar = torch.rand(8, 784), torch.randn(8, 784), torch.randn(8, 10), torch.zeros(8, 10)
        >>> z = vae_fast.reparameterize(mu, logvar)
        >>> loss = vae_fast.elbo_loss(x, logits, mu, logvar, beta=0.5)
        >>> loss = loss + 10.0 * vae_fast.mmd(z, torch.randn_like(z))
        >>> loss.shape
        torch.Size([])

        The same of a model: ``VAE(..., beta=0.5, regularizer=lambda z, mu, logvar: 10.0 * vae_fast.mmd(z, torch.randn_like(z)))``.
    """
    for name, t in {"z": z, "prior": prior}.items():
        check.tensor(name, t)
        if t.ndim != 2 or t.shape[0] < 2 or t.shape[1] < 1:
            raise ValueError(f"{name} has shape {tuple(t.shape)}: expected (N, L) with N of at least 2 and L of at least 1")
    check.same_device(z=z, prior=prior)
    refuse_dtensors("mmd", z=z, prior=prior)
    if z.shape[1] != prior.shape[1]:
        raise ValueError(f"prior has shape {tuple(prior.shape)}: expected (M, {z.shape[1]}), the last dimension of z")
    check.one_of("kernel", kernel, tuple(SCALES))
    bandwidth = check.real("bandwidth", bandwidth, 1e-18, 1e18)
    if scales is None:
        scales = SCALES[kernel]
    if isinstance(scales, str | bytes) or not isinstance(scales, Sequence) or not scales:
        raise TypeError(f"scales={check.shown(scales)}: expected a sequence of numbers, or None")
    scales = [check.real(f"scales[{i}]", s, 1e-18, 1e18) for i, s in enumerate(scales)]
    if values.wanted(check_data):
        values.require(*values.finite(z=z, prior=prior))
    z, prior = compute_all([z, prior])
    n, m, dims = map(number_of, (len(z), len(prior), z.shape[1]))
    widths = [2.0 * dims * bandwidth**2 * s for s in scales]
    centre = prior.detach().mean(0)
    z, prior = z - centre, prior - centre

    def within(t: Tensor) -> Tensor:
        return _row_sums(t, t, True, kernel, widths).double().sum() / (len(t) * (len(t) - 1))

    cross = _row_sums(z, prior, False, kernel, widths).double().sum() / (n * m)
    return (within(z) + within(prior) - 2.0 * cross).to(z.dtype)
