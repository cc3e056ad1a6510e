"""Mixtures give the same bits for any number of threads, in every run and whatever else is in the batch."""

import pytest
import torch
from mixtures import COVARIANCES, LOG_PROBS, MDNS, MIXTURES, mdn_problem, problem
from oracle import needs_kernels, value_and_grads

import vae_fast

pytestmark = needs_kernels
THREADS = (1, 2, 3, 8)

# Rows, components, dimensions: many rows, many components, many dimensions, and fewer rows than threads.
SIZES = [(20_011, 5, 3), (700, 300, 2), (530, 3, 64), (2, 40, 7)]


def same_bits(run):
    """``run`` returns tensors; they are equal whatever the number of threads."""
    results = []
    for n in THREADS:
        torch.set_num_threads(n)
        results.append(run())
    for n, other in zip(THREADS[1:], results[1:], strict=True):
        for i, (a, b) in enumerate(zip(results[0], other, strict=True)):
            assert torch.equal(a, b), f"tensor {i} differs with {n} threads"


def flat(value_and_gradients):
    value, grads = value_and_gradients
    return [value, *grads]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("case", [c for c in MIXTURES if c not in MDNS], ids=str)
def test_the_number_of_threads_changes_no_bit(case, size):
    tensors = problem(*size, case.form, torch.float32)
    upstream = torch.randn_like(case.ours(*tensors))
    same_bits(lambda: flat(value_and_grads(case.ours, tensors, upstream)))


@pytest.mark.parametrize("case", LOG_PROBS, ids=str)
def test_the_number_of_threads_changes_no_bit_in_float64(case):
    tensors = problem(5003, 7, 5, case.form)
    same_bits(lambda: flat(value_and_grads(case.ours, tensors)))


@pytest.mark.parametrize("size", [((20_011,), 5, 3), ((300,), 300, 2), ((3,), 2, 1000)], ids=str)
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_the_number_of_threads_changes_no_bit_of_a_density_network(shared, size):
    tensors = mdn_problem(*size, shared, torch.float32)
    same_bits(lambda: flat(value_and_grads(vae_fast.mdn_log_prob, tensors)))
    one_output = [tensors[0], *(t[0] for t in tensors[1:])]  # its gradient is a sum over all rows
    same_bits(lambda: flat(value_and_grads(vae_fast.mdn_log_prob, one_output)))


@pytest.mark.parametrize("given", [False, True], ids=["posterior", "given"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_the_number_of_threads_changes_no_bit_of_the_sums(covariance_type, size, given):
    tensors = problem(*size, covariance_type, torch.float32)
    options = {"covariance_type": covariance_type, "sample_weight": torch.rand(size[0])}
    if given:
        options["responsibilities"] = torch.rand(size[:2])
    same_bits(lambda: [t for t in vae_fast.mixture_statistics(*tensors, **options) if t is not None])


@pytest.mark.parametrize("case", MIXTURES, ids=str)
def test_repeated_calls_give_the_same_bits(case):
    tensors = case.tensors((3001, 6), dtype=torch.float32)
    first = flat(value_and_grads(case.ours, tensors))
    for _ in range(4):
        again = flat(value_and_grads(case.ours, tensors))
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


@pytest.mark.parametrize("case", [c for c in MIXTURES if c not in MDNS], ids=str)
def test_a_row_does_not_depend_on_its_neighbours(case):
    """The value and the gradient of x of a row are the same bits alone, in a batch, and anywhere in it."""
    tensors = case.tensors((777, 5), dtype=torch.float32)
    value, (grad, *_) = value_and_grads(case.ours, tensors)
    for rows in (slice(0, 1), slice(776, 777), slice(13, 300), slice(100, 777)):
        part, (part_grad, *_) = value_and_grads(case.ours, [tensors[0][rows], *tensors[1:]])
        assert torch.equal(part, value[rows])
        assert torch.equal(part_grad, grad[rows])
