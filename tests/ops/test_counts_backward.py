"""Counts' log-probabilities write their derivatives in the forward pass: what the backward pass makes of them, and when it starts anew."""

import math

import pytest
import torch
from oracle import needs_kernels

import vae_fast
from vae_fast import reference

FUNCTIONS = {
    "poisson": (vae_fast.poisson_log_prob, "poisson.rate", 1, []),
    "negative_binomial": (vae_fast.negative_binomial_log_prob, "negative_binomial.linear", 2, [0.0]),
    "zero_inflated_negative_binomial": (
        vae_fast.zero_inflated_negative_binomial_log_prob,
        "zero_inflated_negative_binomial.linear",
        3,
        [0.0],
    ),
}


def drawn(name, shared, dtype=torch.float64, rows=37, columns=53):
    torch.manual_seed(1)
    x = torch.poisson(torch.rand(rows, columns) * 3.0).to(dtype) * (torch.rand(rows, columns) < 0.5)
    parameters = [torch.rand(rows, columns, dtype=dtype) + 0.2 for _ in range(FUNCTIONS[name][2])]
    if shared:
        parameters[-1] = parameters[-1][0].clone()
    return x, [p.requires_grad_() for p in parameters]


def expected(name, x, parameters, upstream, event_dim):
    """The gradients of the plain formula, in float64."""
    inputs = [p.detach().double().requires_grad_() for p in parameters]
    out = reference.term(FUNCTIONS[name][1], [x.double(), *inputs], FUNCTIONS[name][3], event_dim)
    return torch.autograd.grad(out, inputs, upstream.double())


@pytest.mark.parametrize("event_dim", [0, 1, 2])
@pytest.mark.parametrize(("name", "shared"), [("poisson", False), *((n, s) for n in list(FUNCTIONS)[1:] for s in (False, True))], ids=str)
def test_every_upstream_gradient(name, event_dim, shared, backend):
    """Of one number for all, as a mean leaves it; of one for each sample; of nothing."""
    for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        x, parameters = drawn(name, shared, dtype)
        batch = x.shape[: 2 - event_dim]
        each = torch.randn(batch, dtype=dtype)
        some = each.clone()
        some.view(-1)[:3] = 0.0
        for upstream in (torch.ones(batch), torch.tensor(-0.3).expand(batch), torch.zeros(batch), each, some, each.t().contiguous().t()):
            upstream = upstream.to(dtype)
            out = FUNCTIONS[name][0](x, *parameters, event_dim=event_dim)
            got = torch.autograd.grad(out, parameters, upstream)
            for g, want in zip(got, expected(name, x, parameters, upstream, event_dim), strict=True):
                torch.testing.assert_close(g.double(), want, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("rows", [40, 300])
def test_a_dispersion_that_all_samples_share(rows):
    """Its gradient is summed in the forward pass, which one upstream gradient for all multiplies; with others all is computed again."""
    x, (mu, theta) = drawn("negative_binomial", True, torch.float32, rows, 2000)
    each = torch.randn(rows)
    each[1] = 0.0
    for upstream in (torch.full((rows,), -0.3), each):
        out = vae_fast.negative_binomial_log_prob(x, mu, theta)
        got = torch.autograd.grad(out, (mu, theta), upstream)
        for g, want in zip(got, expected("negative_binomial", x, (mu, theta), upstream, 1), strict=True):
            torch.testing.assert_close(g.double(), want, rtol=2e-4, atol=2e-4 * rows**0.5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_retained_graph_is_differentiated_again(name, backend):
    """The second pass over a graph starts from the inputs, and so does a second derivative."""
    x, parameters = drawn(name, False)
    loss = FUNCTIONS[name][0](x, *parameters).mean()
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    again = torch.autograd.grad(loss, parameters, retain_graph=True)
    graph = torch.autograd.grad(loss, parameters, create_graph=True)
    for a, b, c in zip(first, again, graph, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=0)
        torch.testing.assert_close(c.detach(), a, rtol=1e-12, atol=0)
        assert c.requires_grad
        assert a.data_ptr() != b.data_ptr()


def test_an_upstream_gradient_that_takes_a_derivative_out_of_range_meets_a_share_of_0(backend):
    """Of a zero that is surely inflation: 3e38 times the count's derivative by theta, -12.8, is out of range, and counts for nothing."""
    mu, theta, logit = (torch.full((3, 40), v, requires_grad=True) for v in (1e3, 1e-3, 200.0))
    out = vae_fast.zero_inflated_negative_binomial_log_prob(torch.zeros(3, 40), mu, theta, logit)
    for again in (True, False):  # what the forward pass wrote, then the kernel of the backward pass
        for grad in torch.autograd.grad(out, (mu, theta, logit), torch.full((3,), 3e38), retain_graph=again):
            assert not grad.any()


@needs_kernels
def test_no_upstream_gradient_leaves_nothing_of_a_derivative_out_of_range():
    """x / 0 at a rate of 0 is infinite."""
    x, rate = torch.tensor([[1.0, 2.0], [3.0, 0.0], [1.0, 1.0]]), torch.zeros(3, 2, requires_grad=True)
    for event_dim, upstream in ((1, torch.tensor([0.0, 1.0, 0.0])), (0, torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]))):
        out = vae_fast.poisson_log_prob(x, rate, event_dim=event_dim)
        (got,) = torch.autograd.grad(out, rate, upstream)
        assert torch.equal(got, torch.tensor([[0.0, 0.0], [torch.inf, -1.0], [0.0, 0.0]]))
        (none,) = torch.autograd.grad(vae_fast.poisson_log_prob(x, rate, event_dim=event_dim), rate, torch.zeros_like(upstream))
        assert not none.any()


def test_inputs_changed_after_the_forward_pass_are_refused():
    """Though their derivatives lie ready: a second pass would not find them."""
    x, (rate,) = drawn("poisson", False)
    held = rate * 1.0
    out = vae_fast.poisson_log_prob(x, held).sum()
    with torch.no_grad():
        held.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_gradients_are_nobody_elses():
    """What one backward pass gave is not written to by the next."""
    x, (rate,) = drawn("poisson", False)
    loss = vae_fast.poisson_log_prob(x, rate).sum()
    loss.backward(retain_graph=True)
    once = rate.grad.clone()
    loss.backward()
    torch.testing.assert_close(rate.grad, 2.0 * once, rtol=1e-12, atol=0)


def test_a_count_that_neither_component_can_have_given():
    """Its value is -inf and it has no gradient; where one of the two can have given it, the other has none."""
    x = torch.tensor([3.0, 0.0, 2.0])
    mu_1, mu_2 = torch.zeros(3, requires_grad=True), torch.tensor([0.0, 0.0, 1.0], requires_grad=True)
    theta, logits = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    out = vae_fast.negative_binomial_mixture_log_prob(x, mu_1, mu_2, theta, None, logits, event_dim=0)
    alone = vae_fast.negative_binomial_log_prob(x[2], mu_2[2], theta[2], event_dim=0)
    torch.testing.assert_close(out.detach(), torch.stack([torch.tensor(-torch.inf), torch.tensor(0.0), alone.detach() - math.log(2.0)]))
    grads = torch.autograd.grad(out.sum(), [mu_1, mu_2, theta, logits])
    wanted = torch.autograd.grad(alone, [mu_2, theta])
    torch.testing.assert_close(grads[0], torch.tensor([0.0, -0.5, 0.0]))
    torch.testing.assert_close(grads[1], torch.tensor([0.0, -0.5, wanted[0][2].item()]))
    torch.testing.assert_close(grads[2], torch.tensor([0.0, 0.0, wanted[1][2].item()]))
    torch.testing.assert_close(grads[3], torch.tensor([0.0, 0.0, -0.5]))
