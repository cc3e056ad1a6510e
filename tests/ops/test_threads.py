"""The same bits for any number of threads; the same noise bits, and equal values, on every instruction set; callable from many threads."""

import math
import threading

import pytest
import torch
from mixtures import assert_each_is_right
from oracle import ALL, CASES, ELBOS, SAMPLES, needs_kernels, value_and_grads

import vae_fast


def with_threads(n, f):
    torch.set_num_threads(n)
    torch.manual_seed(7)
    return f()


@pytest.mark.parametrize(
    "shapes", [((4096, 50), (4096, 20)), ((3, 30_001), (3, 10_007)), ((1, 99_999), (1, 7))], ids=["rows", "columns", "row"]
)
@pytest.mark.parametrize("case", ALL, ids=str)
@needs_kernels
def test_the_number_of_threads_changes_no_bit(case, shapes):
    tensors = case.tensors(*shapes, torch.float32)
    wanted = [True, True, False] if case in SAMPLES else None
    one, two, three = (with_threads(n, lambda: value_and_grads(case.ours, tensors, wanted=wanted)) for n in (1, 2, 3))
    for other in (two, three):
        assert torch.equal(one[0], other[0])
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


@pytest.mark.parametrize("case", ELBOS, ids=str)
@needs_kernels
def test_the_number_of_threads_changes_no_bit_of_the_loss(case):
    tensors = case.tensors((5000, 40), (5000, 20), torch.float32)
    runs = [with_threads(n, lambda: value_and_grads(lambda *t: case.ours(*t, f=vae_fast.elbo_loss), tensors)) for n in (1, 2, 3)]
    for other in runs[1:]:
        assert torch.equal(other[0], runs[0][0])
        assert all(torch.equal(a, b) for a, b in zip(other[1], runs[0][1], strict=True))


@pytest.mark.parametrize("num_samples", [None, 3])
@needs_kernels
def test_the_number_of_threads_changes_no_bit_of_the_noise(num_samples):
    tensors = [torch.randn(5001, 21) for _ in range(4)]

    def run(*t):
        z, kl = vae_fast.reparameterize_with_kl(*t, num_samples=num_samples)
        return torch.cat([z.flatten(), kl])

    runs = [with_threads(n, lambda: value_and_grads(run, tensors)) for n in (1, 2, 3)]
    for other in runs[1:]:
        assert torch.equal(other[0], runs[0][0])
        assert all(torch.equal(a, b) for a, b in zip(other[1], runs[0][1], strict=True))


# clamp, not sigmoid: torch's vectors and the scalars at their end differ by a rounding
BROADCAST = {
    "a prior of one row": lambda m, row, one: vae_fast.gaussian_kl(m, m * 0.1, row, row, reduction="mean"),
    "a prior of one number": lambda m, row, one: vae_fast.gaussian_kl(m, m * 0.1, one, one, reduction="sum"),
    "one scale": lambda m, row, one: vae_fast.gaussian_log_prob(m, row, one),
    "one column": lambda m, row, one: vae_fast.gaussian_kl(m, m[:, :1], reduction="mean"),
    "an elbo": lambda m, row, one: vae_fast.elbo_loss(m.clamp(0, 1), m * 2.0, m[:, :3], one.expand(3), prior_mu=row[:3], beta=0.5),
    "no reduction": lambda m, row, one: vae_fast.elbo_loss(m.clamp(0, 1), m * 2.0, m[:, :3], m[:, 3:6], prior_mu=row[:3], reduction="none"),
    "a sample": lambda m, row, one: vae_fast.reparameterize(m, row),
    "a sample and its KL": lambda m, row, one: vae_fast.reparameterize_with_kl(m, one, reduction="mean")[1],
    "an importance-weighted bound": lambda m, row, one: vae_fast.iwae_loss(
        m.clamp(0, 1), torch.stack([m, row.expand_as(m)]), torch.stack([m, -m])[..., :4], m[:, :4], m[:, 4:8]
    ),
}


@pytest.mark.parametrize("what", BROADCAST)
@needs_kernels
def test_the_number_of_threads_changes_no_bit_of_a_reduction_or_a_broadcast_gradient(what):
    """torch's own sums are cut by the number of threads from some 32,768 values on."""
    m, row, one = torch.randn(65_537, 20), torch.randn(20), torch.tensor(0.3)

    def run():
        tensors = [t.clone().requires_grad_() for t in (m, row, one)]
        value = BROADCAST[what](*tensors)
        return [value.detach(), *torch.autograd.grad(value, tensors, torch.ones_like(value) * 0.7, allow_unused=True)]

    first, *others = (with_threads(n, run) for n in (1, 2, 3, 5))
    for other in others:
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (70_001,), (3, 5), (40_000, 3), (0, 4)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@needs_kernels
def test_the_reduction_over_the_batch(reduction, shape, dtype):
    """Its value, and gradients of both orders, are torch's; summed in double, so that a float32 is the nearest and a traced graph's too."""
    from vae_fast.functional._dispatch import reduce

    t = torch.randn(shape, dtype=dtype)
    ours, torchs = t.clone().requires_grad_(), t.double().requires_grad_()
    value, true = reduce(ours, reduction), getattr(torchs, reduction)()
    assert value.dtype == dtype and value.shape == ()
    torch.testing.assert_close(value, true.to(dtype), rtol=0.0 if dtype == torch.float32 else 1e-14, atol=0.0, equal_nan=True)
    first, second = (torch.autograd.grad(v * v, t, create_graph=True)[0] for v, t in ((value, ours), (true, torchs)))
    torch.testing.assert_close(first.double(), second, rtol=1e-5, atol=1e-5, equal_nan=True)
    if t.numel():
        again, their = (torch.autograd.grad(g.sum(), t)[0] for g, t in ((first, ours), (second, torchs)))
        torch.testing.assert_close(again.double(), their, rtol=1e-5, atol=1e-5)


SHAPES_SUMMED = [((4, 3, 5), smaller) for smaller in [(5,), (4, 1, 5), (1, 3, 1), (4, 3, 1), (1,), (1, 1, 5)]] + [
    ((2, 1, 3, 70_000), (3, 1))
]


@pytest.mark.parametrize(("shape", "smaller"), SHAPES_SUMMED, ids=str)
@needs_kernels
def test_gradients_of_broadcast_inputs(shape, smaller):
    """Summed over what was broadcast, whichever dimensions that is."""
    x, mu = torch.randn(shape), torch.randn(smaller)
    grads = []
    for dtype in (torch.float32, torch.float64):
        leaf = mu.to(dtype).requires_grad_()
        value = vae_fast.gaussian_kl(x.to(dtype), torch.zeros((), dtype=dtype), leaf, event_dim=2)
        grads.append(torch.autograd.grad(value.sum(), leaf)[0])
    torch.testing.assert_close(grads[0].double(), grads[1], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(grads[1], (mu.double() - x.double()).sum_to_size(smaller), rtol=1e-9, atol=1e-9)


def test_repeated_calls_give_the_same_bits():
    case = CASES["elbo.bernoulli"]
    tensors = case.tensors((3000, 100), (3000, 10), torch.float32)
    first = value_and_grads(lambda *t: case.ours(*t, f=vae_fast.elbo_loss), tensors)
    for _ in range(5):
        again = value_and_grads(lambda *t: case.ours(*t, f=vae_fast.elbo_loss), tensors)
        assert torch.equal(again[0], first[0])
        assert all(torch.equal(a, b) for a, b in zip(again[1], first[1], strict=True))


def test_python_threads_do_not_disturb_one_another():
    case = CASES["elbo.bernoulli"]
    problems = [case.tensors((200, 60), (200, 8), torch.float32) for _ in range(4)]

    def solve(tensors):
        return value_and_grads(lambda *t: case.ours(*t, f=vae_fast.elbo_loss), tensors)

    want = [solve(p) for p in problems]
    got = [[] for _ in problems]

    def work(i):
        generator = torch.Generator().manual_seed(i)
        for _ in range(25):
            z = vae_fast.reparameterize(*problems[i][2:], generator=generator)
            got[i].append((*solve(problems[i]), z))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(problems))]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    for i, (value, grads) in enumerate(want):
        generator = torch.Generator().manual_seed(i)
        assert len(got[i]) == 25
        for v, g, z in got[i]:
            assert torch.equal(v, value)
            assert all(torch.equal(a, b) for a, b in zip(g, grads, strict=True))
            assert torch.equal(z, vae_fast.reparameterize(*problems[i][2:], generator=generator))


RUN_ALL = """
import sys, torch
sys.path.insert(0, {tests!r})
from oracle import ALL, SAMPLES, value_and_grads
from mixtures import each_once
import vae_fast
torch.set_num_threads(1)
results = {{"isa": vae_fast.build_info()["isa_in_use"]}}
for case in ALL:
    torch.manual_seed(3)
    tensors = case.tensors((5, 203), (5, 37), torch.float32)
    results[str(case)] = value_and_grads(case.ours, tensors, wanted=[True, True, False] if case in SAMPLES else None)
rng = torch.tensor([42, 8])
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    zero = torch.zeros(20011, dtype=dtype)
    results[f"noise {{dtype}}"] = torch.ops.vae_fast.reparameterize([zero, zero + 1], None, rng, "std", 0)
results["mixtures"] = each_once()
white = torch.ones(1, 65535)
results["white"] = {{v: vae_fast.bernoulli_log_prob(white, v * white, clip="add", eps=1e-9) for v in (0.0, -90.0)}}
torch.save(results, {file!r})
"""


@pytest.fixture(scope="module")
def by_isa(tmp_path_factory):
    return tmp_path_factory.mktemp("isa")


@needs_kernels
def test_instruction_sets_draw_the_same_bits_and_compute_the_same_numbers(by_isa, python, request):
    names = vae_fast.build_info()["isa"]
    assert "baseline" in names
    results = {}
    for name in names:
        file = str(by_isa / name)
        python(RUN_ALL.format(tests=str(request.path.parent), file=file), VAE_FAST_ISA=name)
        results[name] = torch.load(file, weights_only=True)
        assert results[name].pop("isa") == name
        assert_each_is_right(results[name].pop("mixtures"), name)
        for v, found in results[name].pop("white").items():  # equal numbers are all rounded one way
            want = 65535 * math.log(1e-9 + 1.0 / (1.0 + math.exp(-v)))
            assert found.item() == pytest.approx(want, rel=6e-7), (name, v)
    base = results.pop("baseline")
    for name, other in results.items():
        for key, want in base.items():
            got = other[key]
            if key.startswith("noise"):
                assert torch.equal(got, want), (name, key)
                continue
            torch.testing.assert_close(got[0], want[0], rtol=2e-6, atol=2e-6, msg=lambda m, k=key, n=name: f"{n} {k}: {m}")
            torch.testing.assert_close(got[1], want[1], rtol=4e-6, atol=4e-6, msg=lambda m, k=key, n=name: f"{n} gradients of {k}: {m}")


@needs_kernels
def test_an_unknown_instruction_set_is_refused(python):
    script = "import torch, vae_fast; vae_fast.gaussian_kl(torch.zeros(2, 2), torch.zeros(2, 2))"
    done = python(script, check=False, VAE_FAST_ISA="mmx")
    assert done.returncode != 0
    assert "VAE_FAST_ISA=mmx: expected one of" in done.stderr
    assert "baseline" in done.stderr


@pytest.mark.parametrize("case", [CASES["kl.logvar"], CASES["logsumexp"]], ids=str)
def test_calls_inside_a_dataloader_worker_like_fork(case):
    """After the parent has used its thread pool, a forked child still computes (with one thread)."""
    import multiprocessing as mp

    tensors = case.tensors((64, 33), (64, 5), torch.float32)
    want = case.ours(*tensors)
    context = mp.get_context("fork")
    queue = context.SimpleQueue()

    def child():
        torch.set_num_threads(1)
        queue.put(torch.equal(case.ours(*tensors), want))

    process = context.Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert queue.get() is True
