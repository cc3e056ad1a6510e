"""A run's linear layers on the CPU: the choice of a library is the run's own, kept in its checkpoint; bfloat16 copies of the weights."""

import pytest
import torch
import torch.nn.functional as F
from training_runs import images, small, untimed

from vae_fast import _backend, training
from vae_fast.errors import FileError
from vae_fast.models import MLPVAE
from vae_fast.training import checkpoint, products
from vae_fast.training.products import Products

needs_kernels = pytest.mark.skipif(_backend.C is None, reason="the extension was not built")
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
CPU = torch.device("cpu")
BF16 = torch.bfloat16


def wide():
    return MLPVAE(latent_dim=4, data_dim=200, hidden_dim=160, generator=torch.Generator().manual_seed(0))


def rows(n=200):
    return torch.rand(n, 200, generator=torch.Generator().manual_seed(1))


def trained(epochs, **options):
    """History and weights of a run whose products are large enough to be chosen, and whether oneDNN had a part in it."""
    torch.manual_seed(5)
    model = wide()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        history = training.fit(model, rows(), valid=rows(150), epochs=epochs, batch_size=100, **options)
    return untimed(history), model.state_dict(), any("mkldnn" in e.key for e in profile.key_averages())


# --- the choice ---------------------------------------------------------------------------------------------------------


@needs_kernels
@needs_onednn
def test_a_runs_products_go_to_the_faster_library_and_change_its_rounding_only(timed_products):
    asked = timed_products(blas=2.0, onednn=1.0)
    fast, _, by_onednn = trained(2)
    assert by_onednn and asked
    timed_products(blas=1.0, onednn=2.0)
    plain, _, by_onednn_too = trained(2)
    assert not by_onednn_too
    assert fast[-1]["loss"] == pytest.approx(plain[-1]["loss"], rel=1e-4)


@needs_kernels
@needs_onednn
@pytest.mark.parametrize("amp", [None, BF16])
def test_a_resumed_run_keeps_the_choice_and_so_its_bits(amp, tmp_path, timed_products):
    timed_products(blas=2.0, onednn=1.0)
    whole, weights, _ = trained(3, amp=amp)
    trained(1, amp=amp, checkpoint=tmp_path / "c.pt")
    asked = timed_products(blas=1.0, onednn=2.0)  # another process, in which the other library is the faster
    resumed, again, by_onednn = trained(3, amp=amp, checkpoint=tmp_path / "c.pt", resume=True)
    has_products = amp is None or torch.ops.mkldnn._is_mkldnn_bf16_supported()  # of bfloat16 oneDNN has none without AVX-512
    assert (resumed, asked, by_onednn) == (whole, [], has_products)
    assert all(torch.equal(again[name], weights[name]) for name in weights)


@needs_kernels
def test_another_number_of_threads_is_another_choice(tmp_path, timed_products, capsys):
    timed_products(blas=1.0, onednn=2.0)
    trained(1, checkpoint=tmp_path / "c.pt")
    torch.set_num_threads(1)
    asked = timed_products(blas=1.0, onednn=2.0)
    trained(2, checkpoint=tmp_path / "c.pt", resume=True)
    assert asked and all(name.endswith(" 1 threads") for name, _ in asked)
    assert "products" not in capsys.readouterr().err


@needs_kernels
def test_a_run_on_another_processor_keeps_the_choice_and_says_so(tmp_path, timed_products, monkeypatch, capsys):
    timed_products(blas=1.0, onednn=2.0)
    trained(1, checkpoint=tmp_path / "c.pt")
    monkeypatch.setattr(products, "processor", lambda: {"processor": "another"})
    asked = timed_products(blas=1.0, onednn=2.0)
    where = checkpoint.load(tmp_path / "c.pt")["products"]["processor"]
    trained(2, checkpoint=tmp_path / "c.pt", resume=True)
    assert asked == []
    assert capsys.readouterr().err.count(f"linear layers use the libraries chosen on {where}") == 1


def test_what_a_checkpoint_says_of_products(monkeypatch):
    monkeypatch.setattr(_backend, "products_mode", "auto")
    record = {"a": "blas", "b": "onednn"}
    assert products.found("c.pt", None, 0) == ({}, "")
    assert products.found("c.pt", products.kept([record, {}]), 1)[0] == {}
    assert products.found("c.pt", products.kept([record]), 3)[0] == record
    for broken in ([], {}, {"ranks": []}, {"ranks": [{"a": "mkl"}]}, {"ranks": ["blas"]}, {"ranks": [{"a": ["blas"]}]}):
        with pytest.raises(FileError, match=r"c\.pt: broken: expected 'products' to hold, for each process, blas or onednn by product"):
            products.found("c.pt", broken, 0)


def test_a_fixed_choice_that_is_not_the_checkpoints_is_said(monkeypatch):
    monkeypatch.setattr(_backend, "products_mode", "blas")
    state = products.kept([{"a": "blas", "b": "onednn"}])
    assert products.found("c.pt", state, 0)[1] == "VAE_FAST_PRODUCTS=blas: c.pt used the other library; results differ in rounding"
    assert products.found("c.pt", products.kept([{"a": "blas"}]), 0)[1] == ""


def test_the_optimizer_steps_outside_of_the_mode(monkeypatch):
    """Every attribute of a tensor that an optimizer reads would go through Python there."""
    depths = []
    original = torch.optim.Adam.step

    def step(self, *args, **kwargs):
        depths.append(torch._C._len_torch_function_stack())
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    training.fit(small(), images(), epochs=1, batch_size=100)
    assert depths and set(depths) == {0}


def test_every_other_call_is_left_alone():
    x, layer = torch.randn(3, 4), torch.nn.Linear(4, 2)
    with Products(CPU):
        got = [layer(x), F.linear(input=x, weight=layer.weight, bias=layer.bias), x.sum(), F.relu(x)]
    torch.testing.assert_close(got, [layer(x), layer(x), x.sum(), F.relu(x)])
    with torch.autocast("cpu", BF16), Products(CPU):
        assert layer(x).dtype == BF16


def test_tensors_that_have_a_say_keep_their_own_way():
    class Counted(torch.Tensor):
        calls = 0

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            cls.calls += func is F.linear
            return super().__torch_function__(func, types, args, kwargs or {})

    layer = torch.nn.Linear(4, 2)
    with Products(CPU):
        out = layer(torch.randn(3, 4).as_subclass(Counted))
    assert (type(out), Counted.calls) == (Counted, 1)


# --- bfloat16 -----------------------------------------------------------------------------------------------------------


def casts(profile, shape):
    """How often a float32 tensor of this shape was cast to bfloat16 and back: copies between dtypes have no shape of their own."""
    return sum(e.name == "aten::copy_" and e.input_shapes[:2] == [list(shape)] * 2 for e in profile.events())


def both(model, products, x, amp=BF16):
    with products, torch.autocast("cpu", amp, enabled=amp is not None):
        loss = model(x).float().square().mean()
        loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


@needs_kernels
@pytest.mark.parametrize("bias", [True, False])
def test_copies_give_what_autocast_gives(bias):
    model = torch.nn.Sequential(torch.nn.Linear(40, 30, bias=bias), torch.nn.ReLU(), torch.nn.Linear(30, 20, bias=bias))
    x = torch.randn(2, 25, 40)
    loss, grads = both(model, Products(CPU, BF16, model.parameters()), x)
    model.zero_grad()
    with torch.autocast("cpu", BF16):
        want = model(x).float().square().mean()
        want.backward()
    torch.testing.assert_close(loss, want.detach(), rtol=1e-2, atol=0.0)
    for got, p in zip(grads, model.parameters(), strict=True):
        assert got.dtype == torch.float32
        assert (got - p.grad).norm() <= 2e-2 * p.grad.norm()


@needs_kernels
def test_weights_are_cast_once_a_step_however_many_pieces_a_batch_has():
    """One cast of each weight a step; autocast casts it for each piece. A gradient is cast back for each."""
    counts = []
    for accumulate in (1, 4):
        model = torch.nn.Linear(16, 24)
        model.loss = lambda x, model=model: model(x.float()).float().square().mean()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
            training.fit(model, torch.rand(200, 16), epochs=1, batch_size=100, amp=BF16, accumulate=accumulate)
        counts.append(casts(profile, (24, 16)))
    steps = 2
    assert counts == [steps * (1 + 1), steps * (1 + 4)]


@needs_kernels
def test_copies_follow_the_weights():
    layer, x = torch.nn.Linear(3, 2, bias=False), torch.randn(5, 3)
    products = Products(CPU, BF16, layer.parameters())

    def fresh(change):
        with torch.no_grad(), products, torch.autocast("cpu", BF16):
            layer(x)
            change()
            return layer(x)

    def through_data():
        layer.weight.data.fill_(0.5)

    with torch.no_grad():
        got = fresh(lambda: layer.weight.fill_(2.0))
        torch.testing.assert_close(got.float(), F.linear(x.bfloat16(), layer.weight.bfloat16()).float())
        through_data()
        got = fresh(lambda: None)
        torch.testing.assert_close(got.float(), F.linear(x.bfloat16(), layer.weight.bfloat16()).float())


@needs_kernels
def test_weights_that_are_computed_get_their_gradient():
    """Of a parametrized layer: no parameter, another tensor at each call."""
    torch.manual_seed(2)
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(6, 4))
    x = torch.randn(9, 6)
    _, grads = both(layer, Products(CPU, BF16, layer.parameters()), x)
    layer.zero_grad()
    layer(x).square().mean().backward()
    for got, p in zip(grads, layer.parameters(), strict=True):
        assert (got - p.grad).norm() <= 3e-2 * p.grad.norm()


@needs_kernels
def test_the_gradients_own_derivative_in_bfloat16():
    layer = torch.nn.Linear(6, 4)
    x = torch.randn(9, 6, requires_grad=True)
    seconds = []
    for linear in (Products(CPU, BF16, layer.parameters()), Products(CPU, None)):
        with linear, torch.autocast("cpu", BF16, enabled=not seconds):
            out = layer(x).float().square().mean()
            first = torch.autograd.grad(out, x, create_graph=True)[0]
            seconds.append(torch.autograd.grad(first.square().sum(), [x, layer.weight]))
    for got, want in zip(*seconds, strict=True):
        assert (got - want).norm() <= 3e-2 * want.norm()


@pytest.mark.parametrize("amp", [None, BF16])
def test_checkpointed_layers_are_torchs_own(amp):
    """They run again in the backward pass and must do and save the same as the first time."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8))
    x = torch.randn(4, 8)

    class Again(torch.nn.Module):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)

    again = Again()
    again.model = model
    _, grads = both(again, Products(CPU, amp, model.parameters()), x, amp)
    kept = [g.clone() for g in grads]
    model.zero_grad()
    with torch.autocast("cpu", BF16, enabled=amp is not None):
        model(x).float().square().mean().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(kept, model.parameters(), strict=True))


@needs_kernels
def test_a_bfloat16_run_learns_as_a_float32_one():
    losses = []
    for amp in (None, BF16):
        torch.manual_seed(5)
        model = wide()
        losses.append(training.fit(model, rows(1000), epochs=8, batch_size=100, amp=amp, max_grad_norm=5.0)[-1]["loss"])
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert losses[1] == pytest.approx(losses[0], abs=0.5)
