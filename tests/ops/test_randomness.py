"""The noise: Philox4x32-10 by its published vectors, a function of (seed, offset, element) alone, and drawn as torch draws."""

import math

import pytest
import torch
from oracle import needs_kernels
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import vae_fast
from vae_fast import _backend, reference


def philox(counter, key):
    """Philox4x32-10 in Python integers (Salmon, Moraes, Dror and Shaw 2011)."""
    c, k = list(counter), list(key)
    for _ in range(10):
        hi0, lo0 = divmod(0xD2511F53 * c[0], 2**32)
        hi1, lo1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [hi1 ^ c[1] ^ k[0], lo1, hi0 ^ c[3] ^ k[1], lo0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def normal(seed, offset, i):
    """The noise of element i in Python floats."""
    halves = [v % 2**64 for v in (offset // 4 if offset >= 0 else (offset % 2**64) // 4, i // 4)]
    words = philox([w for h in halves for w in (h % 2**32, h // 2**32)], [seed % 2**32, seed % 2**64 // 2**32])
    first = words[0:2] if i % 4 < 2 else words[2:4]
    u = float(torch.tensor((first[0] >> 1), dtype=torch.float64).float() + 0.5) * 2.0**-31  # float32 before the logarithm
    angle = 2 * math.pi * (first[1] >> 1) * 2.0**-31
    return math.sqrt(-2.0 * math.log(u)) * (math.cos(angle) if i % 2 == 0 else math.sin(angle))


def state(seed, offset, device="cpu"):
    return torch.tensor([seed, offset], dtype=torch.int64, device=device)


def noise_of(rng_state, *shape, dtype=torch.float32):
    zero = torch.zeros(shape, dtype=dtype, device=rng_state.device)
    return torch.ops.vae_fast.reparameterize([zero, zero], None, rng_state, "logvar", 0)


SEEDS = [(0, 0), (1, 0), (-1, 4), (2**62 + 12345, 2**40), (-(2**63), 2**62 - 4), (0x0123456789ABCDEF, -4), (7, 2**34)]


def test_known_answers_of_philox():
    """The vectors of the authors' own Random123 library."""
    assert philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0]
    assert philox(pi[:4], pi[4:]) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@needs_kernels
@pytest.mark.parametrize(("seed", "offset"), SEEDS)
def test_noise_is_box_muller_of_philox(seed, offset, device):
    got = noise_of(state(seed, offset, device), 101)
    want = torch.tensor([normal(seed, offset, i) for i in range(101)], dtype=torch.float64)
    torch.testing.assert_close(got.cpu().double(), want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(reference.philox_normal(state(seed, offset), 101), want, rtol=1e-9, atol=1e-9)


@needs_kernels
@pytest.mark.parametrize(("seed", "offset"), SEEDS)
def test_noise_is_that_of_the_reference_for_many_elements(seed, offset, device):
    rng = state(seed, offset, device)
    torch.testing.assert_close(noise_of(rng, 100_003).double(), reference.philox_normal(rng, 100_003), rtol=0, atol=1e-6)


@needs_kernels
def test_noise_of_an_element_does_not_depend_on_shape_layout_or_dtype(device):
    rng = state(11, 8, device)
    flat = noise_of(rng, 60)
    for shape in ((6, 10), (2, 3, 10), (60, 1), (1, 60), (5, 12), (4, 15)):
        assert torch.equal(noise_of(rng, *shape).flatten(), flat)
    for n in (1, 2, 3, 5, 31, 59):
        assert torch.equal(noise_of(rng, n), flat[:n])
    zero = torch.zeros(10, 6, device=device)
    for mu, logvar in ((zero.t(), zero.t()), (zero.t().contiguous(), zero.t()), (zero[:1, :1].expand(6, 10), zero[:1, :1].expand(6, 10))):
        assert torch.equal(torch.ops.vae_fast.reparameterize([mu, logvar], None, rng, "logvar", 0).flatten(), flat)
    assert torch.equal(noise_of(rng, 60, dtype=torch.float64), flat.double())
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(noise_of(rng, 60, dtype=dtype), flat.to(dtype))


@needs_kernels
def test_samples_are_one_long_tensor(device):
    rng, zero = state(3, 0, device), torch.zeros(5, 7, device=device)
    many = torch.ops.vae_fast.reparameterize([zero, zero], None, rng, "logvar", 9)
    assert torch.equal(many.flatten(), noise_of(rng, 9 * 35))
    z, _ = torch.ops.vae_fast.reparameterize_with_kl([zero, zero], None, rng, "kl.logvar", 9, -math.inf, 1)
    assert torch.equal(z, many)
    assert len({tuple(row.tolist()) for row in many.view(9, -1)}) == 9


@needs_kernels
@pytest.mark.parametrize("scale", ["logvar", "softplus"])
@pytest.mark.parametrize("num_samples", [None, 4])
@pytest.mark.parametrize("shape", [(33,), (6, 5), (3, 100), (2, 3, 64)], ids=str)
def test_backward_replays_the_noise_of_forward(scale, num_samples, shape, device):
    unit = 0.0 if scale == "logvar" else math.log(math.expm1(1.0))
    mu, s = torch.randn(shape, device=device), torch.randn(shape, device=device)
    full = shape if num_samples is None else (num_samples, *shape)
    upstream = torch.randn(full, device=device)

    def run(mu, s, noise=None):
        mu, s = mu.clone().requires_grad_(), s.clone().requires_grad_()
        generator = None if noise is not None else torch.Generator(device).manual_seed(5)
        z, kl = vae_fast.reparameterize_with_kl(mu, s, scale=scale, num_samples=num_samples, generator=generator, noise=noise)
        ((z * upstream).sum() + kl.sum()).backward()
        return z.detach(), mu.grad, s.grad

    noise = run(torch.zeros_like(mu), torch.full_like(s, unit))[0]
    for got, want in zip(run(mu, s), run(mu, s, noise), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-6)


def draws(device, **options):
    """One draw by each function that draws."""
    mu = torch.zeros(4, 5, device=device)
    return torch.stack([vae_fast.reparameterize(mu, mu, **options), vae_fast.reparameterize_with_kl(mu, mu, **options)[0]])


def test_manual_seed_repeats_and_calls_differ(device, backend):
    torch.manual_seed(1)
    first, second = draws(device), draws(device)
    torch.manual_seed(1)
    assert torch.equal(draws(device), first)
    assert torch.equal(draws(device), second)
    together = torch.stack([*first, *second]).flatten(1)
    assert len({tuple(row.tolist()) for row in together}) == 4
    torch.manual_seed(2)
    assert not torch.equal(draws(device), first)


def test_generators(device, backend):
    a, b = torch.Generator(device).manual_seed(9), torch.Generator(device).manual_seed(9)
    before = torch.get_rng_state()
    assert torch.equal(draws(device, generator=a), draws(device, generator=b))
    assert not torch.equal(draws(device, generator=a), draws(device, generator=a))
    if device == "cpu":
        assert torch.equal(torch.get_rng_state(), before)
    saved = a.get_state()
    first = draws(device, generator=a)
    a.set_state(saved)
    assert torch.equal(draws(device, generator=a), first)


def test_a_generator_seeded_as_the_default_gives_the_same(device, backend):
    torch.manual_seed(3)
    assert torch.equal(draws(device), draws(device, generator=torch.Generator(device).manual_seed(3)))


def test_fork_rng(device, backend):
    torch.manual_seed(4)
    with torch.random.fork_rng():
        inside = draws(device)
    assert torch.equal(draws(device), inside)


def test_given_noise_draws_nothing(device, backend):
    before = torch.get_rng_state()
    draws(device, noise=torch.ones(4, 5, device=device))
    assert torch.equal(torch.get_rng_state(), before)
    if device == "cuda":
        before = torch.cuda.get_rng_state()
        draws(device, noise=torch.ones(4, 5, device=device))
        assert torch.equal(torch.cuda.get_rng_state(), before)


def test_wanting_gradients_draws_the_same_noise(device, backend):
    mu = torch.zeros(4, 5, device=device)
    torch.manual_seed(6)
    plain = vae_fast.reparameterize(mu, mu)
    torch.manual_seed(6)
    assert torch.equal(vae_fast.reparameterize(mu.clone().requires_grad_(), mu).detach(), plain)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_replays_the_noise(use_reentrant, device, backend):
    x = torch.randn(8, 6, device=device)

    def head(x):
        z, kl = vae_fast.reparameterize_with_kl(x, 0.3 * x)
        return z * z.detach().sin(), kl, vae_fast.reparameterize(x, x, num_samples=2)

    def run(call):
        torch.manual_seed(8)
        leaf = x.clone().requires_grad_()
        out = call(leaf)
        sum((t * torch.arange(t.numel(), device=device).view(t.shape)).sum() for t in out).backward()
        return [*(t.detach() for t in out), leaf.grad, torch.rand(3, device=device)]

    for got, want in zip(run(lambda t: checkpoint(head, t, use_reentrant=use_reentrant)), run(head), strict=True):
        assert torch.equal(got, want)


# --- statistics -------------------------------------------------------------------------------------------------------

N = 1_000_000


@pytest.fixture(scope="module", params=[(0, 0), (123456789, 4), (-987654321, 1 << 33)], ids=["zero", "small", "large"])
def sample(request):
    """A million draws, seed and offset varied."""
    if _backend.C is None:
        return reference.philox_normal(state(*request.param), N)
    return noise_of(state(*request.param), N).double()


def test_moments(sample):
    """Each within 4.5 standard errors: mean, variance, skewness, kurtosis and the sixth moment of N(0, 1)."""
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs((sample**power).mean().item() - mean) < 4.5 * math.sqrt(variance / N), power


def test_distribution(sample):
    """Kolmogorov and Smirnov's distance from the normal distribution (1% level: 1.63 / sqrt(n))."""
    cdf = torch.special.ndtr(sample.sort().values)
    steps = torch.arange(N + 1, dtype=torch.float64) / N
    distance = torch.maximum((cdf - steps[:-1]).abs().max(), (cdf - steps[1:]).abs().max()).item()
    assert distance < 1.63 / math.sqrt(N)


def test_tails(sample):
    for bound in (2.0, 3.0, 4.0, 4.5):
        p = math.erfc(bound / math.sqrt(2.0))
        count = (sample.abs() > bound).sum().item()
        assert abs(count - N * p) < 5 * math.sqrt(N * p) + 1, bound
    assert sample.abs().max() < 6.8


def test_elements_are_uncorrelated(sample):
    """Neighbours within a Philox block, across blocks, and their squares (a Box-Muller pair shares a radius)."""
    for lag in (1, 2, 3, 4, 5, 8, 64, 1024):
        a, b = sample[:-lag], sample[lag:]
        assert abs((a * b).mean().item()) < 4.5 / math.sqrt(N), lag
        assert abs(((a * a - 1) * (b * b - 1)).mean().item()) < 4.5 * 2 / math.sqrt(N), lag
    pairs = sample[: N // 4 * 4].view(-1, 4)
    assert (torch.corrcoef(pairs.T) - torch.eye(4, dtype=torch.float64)).abs().max() < 5 / math.sqrt(N / 4)


def test_draws_of_neighbouring_seeds_and_offsets_are_uncorrelated():
    n = 200_000
    rows = [reference.philox_normal(state(s, o), n) for s, o in ((0, 0), (1, 0), (0, 4), (1 << 32, 0), (0, 1 << 34))]
    off = torch.corrcoef(torch.stack(rows)) - torch.eye(len(rows), dtype=torch.float64)
    assert off.abs().max() < 5 / math.sqrt(n)


def test_a_sample_has_the_given_mean_and_standard_deviation(device, backend):
    mu, logvar = torch.full((400_000,), 1.5, device=device), torch.full((400_000,), math.log(0.25), device=device)
    z = vae_fast.reparameterize(mu, logvar, generator=torch.Generator(device).manual_seed(1)).double()
    assert abs(z.mean().item() - 1.5) < 4.5 * 0.5 / math.sqrt(400_000)
    assert abs(z.std().item() - 0.5) < 4.5 * 0.5 / math.sqrt(800_000)


@pytest.mark.parametrize(
    ("how", "given"), [("aot_eager", False), ("inductor", False), ("export", False), ("make_fx", False), ("make_fx", True)]
)
@needs_kernels
def test_a_graph_draws_what_eager_draws(how, given, device):
    """From the same seed, as torch.randn_like does under aot_eager, export and inductor's fallback_random."""
    mu, logvar = torch.randn(5, 7, device=device), torch.randn(5, 7, device=device)
    generator = torch.Generator(device) if given else None

    class Draw(torch.nn.Module):
        def forward(self, mu, logvar):
            z = vae_fast.reparameterize(mu, logvar, generator=generator)
            w, kl = vae_fast.reparameterize_with_kl(mu, logvar, num_samples=2, generator=generator)
            return z, w, kl

    draw = Draw()
    if how == "export":
        graph = torch.export.export(draw, (mu, logvar)).module()
    elif how == "make_fx":
        graph = make_fx(draw)(mu, logvar)
    else:
        graph = torch.compile(draw, backend=how, fullgraph=True)
    runs = []
    for f in (draw, graph):
        (torch if generator is None else generator).manual_seed(11)
        runs.append([*f(mu, logvar), *f(mu, logvar)])
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not torch.equal(runs[1][0], runs[1][3])  # fresh at each call


def test_both_backends_draw_the_same(device, plain_torch):
    mu, logvar = torch.randn(5, 7, device=device), torch.randn(5, 7, device=device)
    torch.manual_seed(3)
    ours = vae_fast.reparameterize(mu, logvar)
    torch.manual_seed(3)
    torch.testing.assert_close(plain_torch(vae_fast.reparameterize, mu, logvar), ours, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_samples", [None, 3])
def test_the_memory_order_of_the_mean_is_kept(num_samples, device, backend):
    """channels_last in, channels_last out, gradients too; the noise of an element does not depend on it."""
    mu, logvar = (torch.randn(2, 6, 4, 5, device=device).to(memory_format=torch.channels_last).requires_grad_() for _ in range(2))
    torch.manual_seed(0)
    z = vae_fast.reparameterize(mu, logvar, num_samples=num_samples)
    torch.manual_seed(0)
    plain = vae_fast.reparameterize(mu.detach().contiguous(), logvar.detach().contiguous(), num_samples=num_samples)
    assert torch.equal(z, plain)
    one = z if num_samples is None else z[1]
    assert one.is_contiguous(memory_format=torch.channels_last) and not one.is_contiguous()
    if backend == "compiled":
        grads = torch.autograd.grad(z.sum(), [mu, logvar])
        assert all(g.is_contiguous(memory_format=torch.channels_last) for g in grads)


@pytest.mark.parametrize("wide", [0, 1], ids=["mu", "scale"])
def test_a_double_sample_has_the_noise_of_doubles(wide, device, backend):
    """Whichever of the two makes it one, it is that of two in double."""
    tensors = [torch.zeros(50, device=device), torch.zeros(50, device=device)]
    tensors[wide] = tensors[wide].double()
    z = vae_fast.reparameterize(*tensors, generator=torch.Generator(device).manual_seed(1))
    assert z.dtype == torch.float64
    both = vae_fast.reparameterize(tensors[wide], tensors[wide], generator=torch.Generator(device).manual_seed(1))
    torch.testing.assert_close(z, both, rtol=1e-14, atol=0.0)
