"""Mixtures far out: weights of zero, points beyond every component, scales at the ends of the range, NaN in one row."""

import math

import pytest
import torch
from mixtures import COVARIANCES, LOG_2PI, LOG_PROBS, MDNS, MIXTURES, RESPONSIBILITIES, components, log_prob, problem
from oracle import leaves, value_and_grads

import vae_fast

FLOATS = [torch.float32, torch.float64]
DIAGONAL = ("diag", "spherical")


def scale_of(log_std, k, d, covariance_type, dtype, device):
    """The scale tensor of components whose standard deviation is e^log_std in every dimension."""
    if covariance_type in DIAGONAL:
        return torch.full((k, d) if covariance_type == "diag" else (k,), log_std, dtype=dtype, device=device)
    factor = torch.eye(d, dtype=torch.float64, device=device) * math.exp(-log_std)
    return (factor if covariance_type == "tied" else factor.repeat(k, 1, 1)).to(dtype)


def precision_factor(scale, covariance_type, d):
    """Cholesky factors of the precisions, one for each component that may be asked for."""
    if covariance_type in DIAGONAL:
        return (-(scale if covariance_type == "diag" else scale[:, None].expand(-1, d))).exp().diag_embed()
    return scale.triu() if covariance_type == "full" else scale.triu().expand(3, d, d)


def with_responsibilities(tensors, covariance_type, upstream=None):
    """Value and gradients of the log-density, all free of NaN, and the responsibilities, which are a distribution or nothing."""
    value, grads = value_and_grads(lambda *t: vae_fast.mixture_log_prob(*t, covariance_type=covariance_type), tensors, upstream)
    q, q_grads = value_and_grads(lambda *t: vae_fast.mixture_responsibilities(*t, covariance_type=covariance_type).square(), tensors)
    assert not any(t.isnan().any() for t in (value, q, *grads, *q_grads))
    q = vae_fast.mixture_responsibilities(*tensors, covariance_type=covariance_type)
    total = torch.where(value == -math.inf, 0.0, 1.0)
    torch.testing.assert_close(q.sum(-1), total.to(q.dtype), rtol=0, atol=1e-6)
    return value, grads, q


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_a_component_of_weight_zero_is_not_there(covariance_type, dtype, device, backend):
    x, logits, means, scale = problem(30, 5, 3, covariance_type, dtype, device)
    dead = torch.tensor([True, False, False, True, False], device=device)
    means[0] = x[7]  # on a sample, and on another component far out
    means[3] = 1e20
    parts = [logits[~dead], means[~dead], scale if covariance_type == "tied" else scale[~dead]]
    for zero in (-math.inf, -1e4):
        here = [x, logits.masked_fill(dead, zero), means, scale]
        value, grads, q = with_responsibilities(here, covariance_type)
        want, want_grads, want_q = with_responsibilities([x, *parts], covariance_type)
        tolerance = {"rtol": 2e-6, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
        torch.testing.assert_close(value, want, **tolerance)
        torch.testing.assert_close(grads[0], want_grads[0], **tolerance)
        torch.testing.assert_close(q[:, ~dead], want_q, **tolerance)
        assert not q[:, dead].any()
        for got, true in zip(grads[1:], want_grads[1:], strict=True):
            if got.shape == true.shape:
                torch.testing.assert_close(got, true, **tolerance)
                continue
            torch.testing.assert_close(got[~dead], true, rtol=5 * tolerance["rtol"], atol=10 * tolerance["atol"])
            assert not got[dead].any()


@pytest.mark.parametrize("covariance_type", DIAGONAL)
def test_a_spike_of_weight_zero_on_the_sample(covariance_type, device, backend):
    """Its density is e^(80 D), and still it counts for nothing."""
    x = torch.zeros(2, 3, device=device)
    logits = torch.tensor([0.0, -math.inf], device=device)
    means = torch.zeros(2, 3, device=device)
    scale = torch.tensor([0.0, -80.0], device=device)
    scale = scale[:, None].repeat(1, 3) if covariance_type == "diag" else scale
    value, grads, q = with_responsibilities([x, logits, means, scale], covariance_type)
    torch.testing.assert_close(value, torch.full((2,), -1.5 * LOG_2PI, device=device), rtol=1e-6, atol=0)
    assert torch.equal(q, torch.tensor([[1.0, 0.0]] * 2, device=device))
    assert not any(g[1].any() for g in grads[1:])


@pytest.mark.parametrize("level", [1e4, 1e30, 3e38])
def test_logits_far_out(level, device, backend):
    x, _, means, scale = problem(20, 4, 3, dtype=torch.float32, device=device)
    logits = torch.tensor([level, -level, level, 0.0], device=device)
    value, grads, q = with_responsibilities([x, logits, means, scale], "diag")
    two = [x, torch.zeros(2, device=device), means[[0, 2]], scale[[0, 2]]]
    want, want_grads, want_q = with_responsibilities(two, "diag")
    torch.testing.assert_close(value, want, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(q[:, [0, 2]], want_q, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(grads[1][[0, 2]], want_grads[1], rtol=1e-5, atol=1e-5)
    assert not grads[1][[1, 3]].any()


# --- distance ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("d", [1, 3, 20])
@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_points_far_from_every_component(covariance_type, d, dtype, device, backend):
    """Log-likelihoods of about -1e30, beside rows that components explain: right values, and gradients that are still a pull back."""
    far = 1e15 if dtype == torch.float32 else 1e120
    x, logits, means, scale = problem(6, 3, d, covariance_type, dtype, device)
    near = with_responsibilities([x[2:], logits, means, scale], covariance_type)
    x[0], x[1] = far, -far
    wide = [t.double() for t in (x, logits, means, scale)]
    value, grads, _ = with_responsibilities([x, logits, means, scale], covariance_type)
    torch.testing.assert_close(value.double(), log_prob(*wide, covariance_type), rtol=2e-6, atol=1e-5)
    for row in (0, 1):  # one component's pull is all there is (with one precision for all, every component's is the same)
        nearest = int(components(*wide[2:], covariance_type).log_prob(wide[0][row]).argmax())
        factor = precision_factor(wide[3], covariance_type, d)[nearest]
        torch.testing.assert_close(grads[0][row].double(), -(factor @ factor.mT @ wide[0][row]), rtol=4e-6, atol=4e-6 * far)
    torch.testing.assert_close(grads[0][2:], near[1][0], rtol=1e-6, atol=1e-7)
    rows = [x[:1], logits, means, scale]  # alone, or the two cancel
    _, grads, q = with_responsibilities(rows, covariance_type)
    torch.testing.assert_close(grads[2].sum(0), -grads[0][0], rtol=1e-5, atol=0)
    w = logits.softmax(0)
    torch.testing.assert_close(grads[1], q[0] - w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_points_whose_density_is_out_of_range(covariance_type, dtype, device, backend):
    """The value is -inf and the row adds nothing to any gradient."""
    x, logits, means, scale = problem(9, 3, 4, covariance_type, dtype, device)
    rest = torch.tensor([0, 2, 3, 5, 6, 7], device=device)
    alone = with_responsibilities([x[rest], logits, means, scale], covariance_type)
    x[1], x[4], x[8, 2] = (1e25, -3e38, 2e30) if dtype == torch.float32 else (1e160, -1.7e308, 2e200)
    value, grads, q = with_responsibilities([x, logits, means, scale], covariance_type)
    for row in (1, 4, 8):
        assert value[row] == -math.inf
        assert not q[row].any()
        assert not grads[0][row].any()
    exact = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(value[rest], alone[0], **exact)
    torch.testing.assert_close(grads[0][rest], alone[1][0], **exact)
    torch.testing.assert_close(grads[1:], alone[1][1:], **exact)


@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_a_batch_without_one_likely_row(covariance_type, device, backend):
    tensors = problem(5, 3, 4, covariance_type, torch.float32, device)
    tensors[0].fill_(1e30)
    value, grads, q = with_responsibilities(tensors, covariance_type)
    assert (value == -math.inf).all()
    assert not q.any()
    assert not any(g.any() for g in grads)


@pytest.mark.parametrize("covariance_type", DIAGONAL)
@pytest.mark.parametrize("distance", [1.0, 1e-15, 1e-10, 1e4])
def test_a_spike_beside_the_sample_takes_no_part(covariance_type, distance, device, backend):
    """A component of standard deviation e^-80 so near that its slope is infinite and its density zero: zero times infinity is zero."""
    x, logits, means, scale = problem(7, 2, 3, covariance_type, torch.float32, device)
    x[0] = 0.0
    want, want_grads, _ = with_responsibilities([x, logits[1:], means[1:], scale[1:]], covariance_type)
    want = want + logits.log_softmax(0)[1]
    means[0], scale[0] = distance, -80.0
    value, grads, q = with_responsibilities([x, logits, means, scale], covariance_type)
    assert not q[:, 0].any()
    torch.testing.assert_close(value, want, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(grads[0], want_grads[0], rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(grads[2][1:], want_grads[2], rtol=5e-6, atol=5e-6)
    torch.testing.assert_close(grads[3][1:], want_grads[3], rtol=5e-6, atol=5e-6)
    assert not grads[2][0].any()
    assert not grads[3][0].any()


# --- scales -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("log_std", [-80.0, -40.0, -10.0, 10.0, 40.0, 60.0, 80.0])
@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_standard_deviations_far_out(covariance_type, log_std, dtype, device, backend):
    """Rows at the mean, a few standard deviations away, and (if those are wide) at the end of float32's range."""
    k, d = 2, 3
    scale = scale_of(log_std, k, d, covariance_type, dtype, device)
    std = math.exp(log_std)
    x = torch.zeros(4, d, dtype=dtype, device=device)
    x[1], x[2, 1] = 2.5 * std, -0.5 * std
    x[3] = 1.2e38 if log_std == 80.0 and dtype == torch.float32 else 30 * std
    means = torch.zeros(k, d, dtype=dtype, device=device)
    logits = torch.zeros(k, dtype=dtype, device=device)
    value, grads, q = with_responsibilities([x, logits, means, scale], covariance_type)
    u = x.double() / std
    truth = -0.5 * u.square().sum(-1) - d * (log_std + 0.5 * LOG_2PI)
    torch.testing.assert_close(value.double(), truth, rtol=4e-6 if dtype == torch.float32 else 1e-12, atol=0)
    torch.testing.assert_close(q, torch.full_like(q, 0.5), rtol=1e-6, atol=0)
    close = {"rtol": 2e-5 if dtype == torch.float32 else 1e-11, "atol": 2e-38 if dtype == torch.float32 else 0.0}
    torch.testing.assert_close(grads[0].double(), -u / std, **close)
    torch.testing.assert_close(grads[2].double(), (u / std).sum(0).expand(k, d) / 2, **close)
    if covariance_type == "diag":
        torch.testing.assert_close(grads[3].double(), (u.square() - 1).sum(0).expand(k, d) / 2, **close)
    elif covariance_type == "spherical":
        torch.testing.assert_close(grads[3].double(), (u.square() - 1).sum().expand(k) / 2, **close)
    else:
        wide = [t.double() for t in (x, logits, means, scale)]
        want = value_and_grads(lambda *t: log_prob(*t, covariance_type), wide)[1][3]
        largest = torch.finfo(dtype).max
        within = want.abs() <= largest  # beyond, the gradient is infinite
        assert (grads[3][~within] == (want[~within].sign() * math.inf).to(dtype)).all()
        scale_free = 1e-5 * want[within].abs().max().item() if within.any() else 0.0
        torch.testing.assert_close(grads[3][within].double(), want[within], rtol=2e-5, atol=scale_free)


UNITS = [(unit, unit) for unit in (1e-30, 1e-22, 1e-10, 1e-8, 1e8, 1e10, 1e13, 1e22, 1e30)]


@pytest.mark.parametrize(("unit", "std"), [*UNITS, (1e11, 3e21)], ids=str)
@pytest.mark.parametrize("d", [2, 20])
def test_data_in_any_unit(d, unit, std, device, backend):
    """Squares of differences leave the range where those of standardised ones do not; few dimensions and many have loops of their own."""
    x, logits, means, scale = problem(300, 9, d, dtype=torch.float32, device=device)
    tensors = [x * unit, logits, means * unit, scale + math.log(std)]
    upstream = torch.rand(300, device=device)
    value, grads = value_and_grads(vae_fast.mixture_log_prob, tensors, upstream)
    want, want_grads = value_and_grads(log_prob, [t.double() for t in tensors], upstream)
    near = 1e-4 if backend == "compiled" else 1e-2  # the plain formula rounds e^log_std
    torch.testing.assert_close(value.double(), want, rtol=2e-6, atol=near)
    for got, true, size in zip(grads, want_grads, (unit / std**2, 1.0, unit / std**2, 1.0), strict=True):
        torch.testing.assert_close(got.double() / size, true / size, rtol=near, atol=near)


@pytest.mark.parametrize("log_std", [87.0, 88.0, 90.0, 95.0, 103.0, 110.0])
@pytest.mark.parametrize("covariance_type", DIAGONAL)
def test_standard_deviations_whose_inverse_is_no_normal_number(covariance_type, log_std, device, backend):
    """The largest differences are still a part of such a standard deviation, or more than one."""
    x = torch.tensor([[1e38, -1e37], [1.4e38, 0.0], [-1.0, 3.0]], device=device)
    means, logits = torch.tensor([[0.0, 0.0], [-1e38, 1e37]], device=device), torch.tensor([0.3, -0.2], device=device)
    scale = scale_of(log_std, 2, 2, covariance_type, x.dtype, device)
    tensors = [x, logits, means, scale]
    value, grads = value_and_grads(lambda *t: vae_fast.mixture_log_prob(*t, covariance_type=covariance_type), tensors)
    want, want_grads = value_and_grads(lambda *t: log_prob(*t, covariance_type), [t.double() for t in tensors])
    torch.testing.assert_close(value.double(), want, rtol=1e-6, atol=0)
    for got, true, near in zip(grads, want_grads, (2e-38, 1e-4, 2e-38, 1e-4), strict=True):  # l - L of size 180 is rounded
        torch.testing.assert_close(got.double(), true, rtol=5e-5, atol=near)
    first = vae_fast.mixture_statistics(*tensors, covariance_type=covariance_type)[2]
    q = vae_fast.mixture_responsibilities(*tensors, covariance_type=covariance_type).double()
    delta = (x.unsqueeze(1) - means).double()
    torch.testing.assert_close(first.double(), (q.unsqueeze(-1) * delta).sum(0), rtol=1e-5, atol=1e33)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("log_std", [-2000.0, -200.0, -95.0, 95.0, 200.0, 2000.0])
@pytest.mark.parametrize("covariance_type", DIAGONAL)
def test_identical_points_and_a_scale_out_of_range(covariance_type, log_std, dtype, device, backend):
    """Neither sigma nor its inverse is a number of the dtype; at the mean the log-density is."""
    x = torch.full((5, 3), 0.7, dtype=dtype, device=device)
    means = torch.full((2, 3), 0.7, dtype=dtype, device=device)
    scale = scale_of(log_std, 2, 3, covariance_type, dtype, device)
    value, grads, q = with_responsibilities([x, torch.zeros_like(scale[:, 0] if scale.ndim == 2 else scale), means, scale], covariance_type)
    torch.testing.assert_close(value, torch.full_like(value, -3 * (log_std + 0.5 * LOG_2PI)), rtol=1e-6, atol=0)
    assert torch.equal(q, torch.full_like(q, 0.5))
    assert not grads[0].any()
    assert not grads[2].any()
    torch.testing.assert_close(grads[3], torch.full_like(grads[3], -2.5 if covariance_type == "diag" else -7.5))


@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_a_constant_feature_on_its_mean(covariance_type, device, backend):
    """Zero variance in the data, little in the mixture."""
    x, logits, means, scale = problem(50, 3, 3, covariance_type, torch.float32, device)
    x[:, 1] = 4.0
    means[:, 1] = 4.0
    if covariance_type == "diag":
        scale[:, 1] = -40.0
    elif covariance_type in ("tied", "full"):
        scale[..., :, 1] = scale[..., 1, :] = 0.0
        scale[..., 1, 1] = math.exp(40.0)
    value, grads, _ = with_responsibilities([x, logits, means, scale], covariance_type)
    truth = log_prob(*(t.double() for t in (x, logits, means, scale)), covariance_type)
    torch.testing.assert_close(value.double(), truth, rtol=2e-6, atol=0)
    assert not grads[0][:, 1].any()
    assert not grads[2][:, 1].any()


@pytest.mark.parametrize("covariance_type", COVARIANCES)
@pytest.mark.parametrize("far", [1e38, 1.6e38, 3.4e38])
def test_points_at_the_ends_of_the_range(covariance_type, far, device, backend):
    """No difference overflows, on either side: x = -3e38 and a mean of 3e38 are 6e38 apart."""
    x = torch.tensor([[far, -far], [-far, far], [far, far], [0.0, 0.0]], device=device)
    means = torch.tensor([[far, -far], [-far, -far]], device=device)
    logits = torch.zeros(2, device=device)
    value, _, _ = with_responsibilities([x, logits, means, scale_of(0.0, 2, 2, covariance_type, x.dtype, device)], covariance_type)
    assert value[0].item() == pytest.approx(-LOG_2PI - math.log(2), rel=1e-6)
    assert (value[1:] == -math.inf).all()
    tensors = [x, logits, means, scale_of(80.0, 2, 2, covariance_type, x.dtype, device)]
    value, grads = value_and_grads(lambda *t: vae_fast.mixture_log_prob(*t, covariance_type=covariance_type), tensors)
    wide = leaves([t.double() for t in tensors])
    truth = log_prob(*wide, covariance_type)
    truth.sum().backward()
    if far == 1e38:  # a larger difference may be cut to what float32 holds
        torch.testing.assert_close(value.double(), truth.detach(), rtol=1e-5, atol=0)
        torch.testing.assert_close(grads[0].double(), wide[0].grad, rtol=1e-5, atol=1e-37)
        torch.testing.assert_close(grads[2].double(), wide[2].grad, rtol=1e-5, atol=1e-37)
    assert value.isfinite().all()
    assert (value <= 0.99 * truth[0]).all()
    assert all(g.isfinite().all() for g in grads[:3])
    if backend == "compiled":  # the sums over rows are in double
        assert not grads[3].isnan().any()


@pytest.mark.parametrize("covariance_type", ["tied", "full"])
def test_a_singular_factor_has_no_density_and_spoils_nothing(covariance_type, device, backend):
    x, logits, means, scale = problem(8, 3, 4, covariance_type, torch.float32, device)
    scale[..., 2, 2] = torch.tensor([0.0, *([1.0, 1.0] if covariance_type == "full" else [])], device=device).squeeze()
    value, grads, q = with_responsibilities([x, logits, means, scale], covariance_type)
    if covariance_type == "tied":
        assert (value == -math.inf).all()
        assert not any(g.any() for g in grads)
        return
    assert not q[:, 0].any()
    rest = log_prob(x.double(), logits[1:].double(), means[1:].double(), scale[1:].double(), "full")
    torch.testing.assert_close(value.double(), rest + logits.double().log_softmax(0)[1:].logsumexp(0), rtol=2e-6, atol=2e-6)
    assert not grads[2][0].any()
    assert not grads[3][0].any()


# --- NaN --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 5, 64, 100])
@pytest.mark.parametrize("case", [*LOG_PROBS, *RESPONSIBILITIES], ids=str)
def test_nan_stays_in_its_row(case, columns, device, backend):
    tensors = case.tensors((9, columns), dtype=torch.float32, device=device)
    clean, clean_grads = value_and_grads(case.ours, tensors)
    others = torch.tensor([0, 1, 2, 3, 4, 5, 7, 8], device=device)
    for column in {0, columns // 2, columns - 1}:
        tensors[0][6, column] = math.nan
        value, grads = value_and_grads(case.ours, tensors)
        assert value[6].isnan().all()
        assert torch.equal(value[others], clean[others])
        assert torch.equal(grads[0][others], clean_grads[0][others])
        assert grads[1].isnan().any()  # nothing hides it from the parameters
        assert backend == "reference" or all(g.isnan().any() for g in grads[1:])
        tensors[0][6, column] = 0.0


@pytest.mark.parametrize("case", MIXTURES, ids=str)
def test_nan_in_a_parameter_is_seen(case, device, backend):
    tensors = case.tensors((9, 5), dtype=torch.float32, device=device)
    for i in (1, 2, 3):
        dirty = [t.clone() for t in tensors]
        dirty[i][(0,) * dirty[i].ndim] = math.nan
        value = case.ours(*dirty)
        shared = case not in MDNS
        assert value.isnan().flatten(1).any(-1).all() if value.ndim == 2 else value.isnan().all() if shared else value[0].isnan()
        assert shared or not value[1:].isnan().any()


@pytest.mark.parametrize("case", [*LOG_PROBS, *MDNS], ids=str)
def test_nan_upstream_stays_in_its_row(case, device, backend):
    tensors = case.tensors((4, 3), dtype=torch.float32, device=device)
    upstream = torch.tensor([1.0, math.nan, 2.0, 0.0], device=device)
    grads = value_and_grads(case.ours, tensors, upstream)[1]
    for g in grads if case in MDNS else grads[:1]:
        assert g[1].isnan().any()
        assert not g[[0, 2, 3]].isnan().any()
        assert not g[3].any()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("covariance_type", DIAGONAL)
def test_a_component_of_no_width_leaves_the_others_their_density(covariance_type, dtype, device, backend):
    """log std -1e30: infinitely high at its mean, absent everywhere else."""
    means = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=dtype, device=device)
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.25]], dtype=dtype, device=device)
    log_std = scale_of(0.0, 2, 2, covariance_type, dtype, device)
    log_std[0] = -1e30
    value, grads = with_responsibilities([x, torch.zeros(2, dtype=dtype, device=device), means, log_std], covariance_type)[:2]
    beside = -math.log(2.0) - LOG_2PI - 0.5 * (x[1:].double() - 1.0).square().sum(-1)
    torch.testing.assert_close(value[1:].double(), beside, rtol=1e-6, atol=1e-6)
    assert value[0].item() == pytest.approx(2e30)
    torch.testing.assert_close(grads[0][1:], 1.0 - x[1:])
    assert (grads[2][0] == 0).all()


@pytest.mark.parametrize("scale", [1e9, 1e12, 1e20, 1e30])
@pytest.mark.parametrize("covariance_type", DIAGONAL)
def test_densities_far_beyond_their_own_digits(covariance_type, scale, backend):
    """Where a row's largest term is rounded by more than an exponential can hold, it still has the exponential 1: neither inf nor -inf.

    On CUDA such a row may come out infinite: see csrc/cuda/mixture_joint.cuh.
    """
    device = "cpu"
    means = torch.zeros(3, 2, device=device)
    x = torch.tensor([[3.0, -1.0], [0.0, 0.0]], device=device)
    log_std = scale_of(0.0, 3, 2, covariance_type, torch.float32, device)
    logits = torch.tensor([-1.7, -1.3, 0.9], device=device) * scale
    log_std[1] = log_std[1] + 0.25 * scale
    value, grads = with_responsibilities([x, logits, means, log_std], covariance_type)[:2]
    torch.testing.assert_close(
        value.double(), log_prob(*[t.double() for t in (x, logits, means, log_std)], covariance_type), rtol=1e-6, atol=10
    )
    assert all(g.isfinite().all() for g in grads)
    huge = torch.full_like(log_std, 0.3 * scale)  # every component as wide
    value = vae_fast.mixture_log_prob(x, logits * 0, means, huge, covariance_type=covariance_type)
    assert (value.double() / (-0.6 * scale) - 1).abs().max() < 1e-6
