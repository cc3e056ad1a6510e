"""event_dim=0: nothing is summed. Every term's values and gradients, over broadcast, strided and odd inputs."""

import pytest
import torch
from oracle import COUNTS, TERMS, assert_within_contract, draw, value_and_grads

# Shapes of the first tensor and of the others; together they broadcast.
SHAPES = {
    "one": ((), ()),
    "odd": ((1037,), (1037,)),
    "column": ((65, 1), (65, 1)),
    "rows": ((33, 70), (70,)),
    "columns": ((33, 70), (33, 1)),
    "middle": ((12, 5, 31), (12, 1, 31)),
    "outer": ((6, 1, 50), (7, 1)),
    "deep": ((2, 3, 1, 2, 3, 2), (3, 4, 1, 3, 1)),
    "empty": ((0, 3), (3,)),
}


def tensors_of(case, shapes, dtype, device):
    first, rest = shapes
    return [draw(kind, first if i == 0 else rest, dtype, device) for i, kind in enumerate(case.kinds)]


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("case", TERMS, ids=str)
def test_values_and_gradients(case, shapes, device):
    tensors = tensors_of(case, shapes, torch.float32, device)
    shape = torch.broadcast_shapes(*(t.shape for t in tensors))
    upstream = torch.randn(shape, device=device)
    got = value_and_grads(lambda *t: case.ours(*t, event_dim=0), tensors, upstream)
    plain = value_and_grads(lambda *t: case.plain(*t, event_dim=0), tensors, upstream)
    truth = value_and_grads(lambda *t: case.plain(*t, event_dim=0), [t.double() for t in tensors], upstream)
    assert got[0].shape == shape
    assert_within_contract(got[0], truth[0], plain[0])
    full = value_and_grads(lambda *t: case.plain(*t, event_dim=0), [t.double().expand(shape).contiguous() for t in tensors], upstream)
    for kind, g, p, t, terms in zip(case.kinds, got[1], plain[1], truth[1], full[1], strict=True):
        if t.shape == shape or kind == "df":  # whose derivative crosses zero where none of its parts does
            assert_within_contract(g, t, p)
        else:  # a sum of many, which may cancel: its error is judged by what it is a sum of
            size = terms.abs().sum_to_size(t.shape)
            # a count's derivative in theta is itself a difference, of which plain floats keep less
            plain_error = ((p - t).abs() / size).max() if case in COUNTS and terms.numel() else 0.0
            assert ((g - t).abs() <= (1e-6 + plain_error) * size).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("case", TERMS, ids=str)
def test_dtypes(case, dtype, device):
    tensors = tensors_of(case, SHAPES["middle"], dtype, device)
    got, grads = value_and_grads(lambda *t: case.ours(*t, event_dim=0), tensors)
    truth, true_grads = value_and_grads(lambda *t: case.plain(*t, event_dim=0), [t.double() for t in tensors])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert got.dtype == wide
    assert_within_contract(got, truth, slack=1e-13 if wide == torch.float64 else 2e-6)
    for g, t in zip(grads, true_grads, strict=True):
        assert g.dtype == dtype
        assert_within_contract(g, t, slack={torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float64: 1e-12}[dtype])


@pytest.mark.parametrize("case", TERMS, ids=str)
def test_upstream_gradients_and_inputs_of_any_layout(case, device):
    dense = tensors_of(case, ((40, 30), (40, 30)), torch.float32, device)
    strided = [t.t().contiguous().t() if i % 2 else torch.stack([t, t], -1)[..., 0] for i, t in enumerate(dense)]
    for upstream in (
        torch.randn(30, 40, device=device).t(),
        torch.randn(40, 1, device=device).expand(40, 30),
        torch.ones((), device=device),
    ):
        full = upstream.expand(40, 30)
        want = value_and_grads(lambda *t: case.ours(*t, event_dim=0), dense, full.contiguous())
        got = value_and_grads(lambda *t: case.ours(*t, event_dim=0), strided, full)
        assert torch.equal(got[0], want[0])
        assert all(torch.equal(a, b) for a, b in zip(got[1], want[1], strict=True))


@pytest.mark.parametrize("case", TERMS, ids=str)
def test_threads_do_not_matter(case):
    tensors = tensors_of(case, ((97, 600), (97, 600)), torch.float32, "cpu")
    results, threads = [], torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(value_and_grads(lambda *t: case.ours(*t, event_dim=0), tensors))
    finally:
        torch.set_num_threads(threads)
    for value, grads in results[1:]:
        assert torch.equal(value, results[0][0])
        assert all(torch.equal(a, b) for a, b in zip(grads, results[0][1], strict=True))
