"""DTensors through every public function: two processes on the CPU against one, values, gradients and where they lie."""

import re

import interpreters
import pytest
import torch
from distributed_runs import enter, free_port, message
from dtensor_cases import CASES, HEAD, NOT_DIFFERENTIABLE, tensors
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import vae_fast
from vae_fast import _backend
from vae_fast.training.distributed import leave

#: one row, so that one process has none; a batch that divides; two that do not
BATCHES = (1, 4, 5)
LAYOUTS = ("sharded", "replicated", "event", "partial", "one sharded")


def placed(layout, which, t, batch, mesh):
    """A DTensor of the value t; the first argument is what the layout is about, where it is about one."""
    if layout == "replicated" or (layout == "one sharded" and which):
        return distribute_tensor(t, mesh, [Replicate()])
    if layout == "event" and not which and t.ndim:
        return distribute_tensor(t, mesh, [Shard(t.ndim - 1)])
    if layout == "partial" and not which:
        return DTensor.from_local(t * (0.25 if mesh.get_local_rank() == 0 else 0.75), mesh, [Partial("sum")])
    return distribute_tensor(t, mesh, [Replicate() if batch is None else Shard(batch)])


def short(t):
    return " ".join(
        f"S{p.dim}" if isinstance(p, Shard) else "P" if p.is_partial("sum") else "R" if p.is_replicate() else str(p) for p in t.placements
    )


def evaluated(name, call, given):
    """The results, and the gradients of a sum that weighs every element by its own value."""
    leaves = {k: t if k in NOT_DIFFERENTIABLE else t.detach().requires_grad_() for k, t in given.items()}
    results = call(**leaves)
    results = results if isinstance(results, tuple) else (results,)
    gradients = ()
    if name != "statistics":
        wanted = [t for k, t in leaves.items() if k not in NOT_DIFFERENTIABLE]
        gradients = torch.autograd.grad(sum(r.square().sum() for r in results), wanted)
    return results, gradients


def whole(tensors):
    return [t.full_tensor().detach() if isinstance(t, DTensor) else t.detach() for t in tensors]


# --- models -------------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
        self.decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6))
        self.double()
        generator = torch.Generator().manual_seed(1)
        for p in self.parameters():
            p.data.normal_(generator=generator)

    def forward(self, x, noise=None):
        mu, logvar = self.encoder(x).chunk(2, -1)
        z, kl = vae_fast.reparameterize_with_kl(mu, logvar, noise=noise)
        return self.decoder(z), mu, logvar, kl


def step(model, loss_of):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = loss_of()
    loss.backward()
    optimizer.step()
    return float(whole([loss])[0]), dict(zip(dict(model.named_parameters()), whole(model.parameters()), strict=True))


def batch(n):
    made = tensors(n, x=("n", 6), noise=("n", 2))
    return made["x"][0], made["noise"][0]


def one_process(n, given_noise):
    torch.manual_seed(7)
    model = Small()
    x, noise = batch(n)
    return step(model, lambda: vae_fast.elbo_loss(x, *model(x, noise if given_noise else None)[:3]))


def tensor_parallel(n, mesh, *, sharded):
    """Every layer split in two; between the halves activations are replicated, or sharded along the batch."""
    torch.manual_seed(7)
    between = Shard(0) if sharded else Replicate()
    model, (x, noise) = Small(), batch(n)
    plan = {}
    for part in ("encoder", "decoder"):
        plan[f"{part}.0"] = ColwiseParallel(input_layouts=between)
        plan[f"{part}.2"] = RowwiseParallel(output_layouts=between, use_local_output=False)
    model = parallelize_module(model, mesh, plan)
    x = distribute_tensor(x, mesh, [between])
    noise = distribute_tensor(noise, mesh, [between])

    def loss():
        *head, kl = model(x, noise if sharded else None)  # its own noise is that of one process, if replicated
        assert short(head[0]) == short(kl) == ("S0" if sharded else "R")
        return vae_fast.elbo_loss(x, *head)

    return step(model, loss)


def fully_sharded(n, mesh):
    """Each process has its rows, as many or not; the loss is that of all rows."""
    model, (x, noise) = Small(), batch(n)
    fully_shard(model.encoder, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for part in (model, model.encoder):
        part.set_gradient_divide_factor(1.0)  # the loss is the mean already
    x, noise = (distribute_tensor(t, mesh, [Shard(0)]) for t in (x, noise))

    def loss():
        mine = model(x.to_local(), noise.to_local())[:3]
        head = [DTensor.from_local(t, mesh, [Shard(0)], shape=(n, t.shape[1]), stride=(t.shape[1], 1)) for t in mine]
        return vae_fast.elbo_loss(x, *head)

    return step(model, loss)


# --- what both processes do, once for all tests below ---------------------------------------------------------------------


def noise_of(layout, seeds, mesh, with_kl):
    """The noise that was drawn, and what the backward pass and the second derivative take it for."""
    torch.manual_seed(seeds[mesh.get_local_rank()])
    zeros = torch.zeros(6, 5, dtype=torch.float64)
    mu, logvar = (placed(layout, 0, zeros, 0, mesh).requires_grad_() for _ in range(2))
    draw = vae_fast.reparameterize_with_kl if with_kl else lambda *a, **k: (vae_fast.reparameterize(*a, **k),)
    z, *_ = draw(mu, logvar, num_samples=2)
    (g,) = torch.autograd.grad(z.sum(), logvar, create_graph=True)  # sum z / 2
    (gg,) = torch.autograd.grad(g.sum(), logvar)  # sum z / 4
    return {"z": z.full_tensor().detach(), "mine": z.to_local().detach(), "grad": g.full_tensor().detach(), "second": gg.full_tensor()}


def work(rank, folder, port):
    enter(rank, port)
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    results = {"compiled": compiled(mesh)}  # first: no call in eager mode has prepared anything
    for name, (shapes, call, _) in CASES.items():
        for n in BATCHES:
            given = tensors(n, **shapes)
            for layout in LAYOUTS:
                arguments = {k: placed(layout, i, t, dim, mesh) for i, (k, (t, dim)) in enumerate(given.items())}
                out, gradients = evaluated(name, call, arguments)
                results[name, n, layout] = whole(out), whole(gradients), [short(t) for t in out], [short(t) for t in gradients]
    two = init_device_mesh("cpu", (1, 2))  # a mesh of two dimensions, of which one is sharded
    pair = [distribute_tensor(t, two, [Replicate(), Shard(0)]) for t, _ in tensors(5, **HEAD).values()]
    loss = vae_fast.elbo_loss(*pair)
    results["two dimensions"] = whole([loss]), short(loss)
    for with_kl in (False, True):
        results["noise", "sharded", with_kl] = noise_of("sharded", (3, 3), mesh, with_kl)
        results["noise", "replicated", with_kl] = noise_of("replicated", (3, 4), mesh, with_kl)
    second = [distribute_tensor(t, mesh, [Shard(0)]).requires_grad_() for t, _ in tensors(5, mu=("n", 2), logvar=("n", 2)).values()]
    (g,) = torch.autograd.grad(vae_fast.gaussian_kl(*second).sum(), second[1], create_graph=True)
    results["second"] = whole(torch.autograd.grad(g.square().sum(), second[1]))
    for n in (4, 5):
        results["tensor parallel, replicated", n] = tensor_parallel(n, mesh, sharded=False)
        results["tensor parallel, sharded", n] = tensor_parallel(n, mesh, sharded=True)
        results["fully sharded", n] = fully_sharded(n, mesh)
    results["errors"] = errors(mesh)
    torch.save(results, folder / f"dtensor-{rank}")
    leave()


def compiled(mesh):
    arguments = [distribute_tensor(t, mesh, [Shard(0)]).requires_grad_() for t, _ in tensors(5, **HEAD).values()]
    loss = torch.compile(vae_fast.elbo_loss, backend="aot_eager", fullgraph=True)(*arguments)
    return whole([loss, *torch.autograd.grad(loss, arguments[1:])])


def errors(mesh):
    mu = distribute_tensor(torch.zeros(4, 2), mesh, [Shard(0)])
    other = distribute_tensor(torch.zeros(4, 2), init_device_mesh("cpu", (1, 2)), [Replicate(), Shard(0)])
    bad = distribute_tensor(torch.tensor([[0.5], [0.5], [0.5], [255.0]]), mesh, [Shard(0)])

    def reference_draws():  # an extension that was not built
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_backend, "C", None)
            vae_fast.reparameterize(mu, mu)

    def checked():
        with vae_fast.checks():
            vae_fast.bernoulli_log_prob(bad, torch.zeros_like(bad))

    return {
        "mixed": message(lambda: vae_fast.gaussian_kl(mu, torch.zeros(4, 2))),
        "meshes": message(lambda: vae_fast.gaussian_kl(mu, other)),
        "checks": message(checked),
        "total correlation": message(lambda: vae_fast.total_correlation(mu, mu, mu, 100)),
        "discrepancy": message(lambda: vae_fast.mmd(mu, mu)),
        "plain torch": message(reference_draws),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dtensor")
    interpreters.spawn(work, (folder, free_port()), 2)
    return [torch.load(folder / f"dtensor-{rank}") for rank in range(2)]


# --- ops ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", BATCHES)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_one_process(ranks, name, n, layout):
    shapes, call, _ = CASES[name]
    results, gradients = evaluated(name, call, {k: t for k, (t, _) in tensors(n, **shapes).items()})
    for rank in ranks:
        got = rank[name, n, layout]
        torch.testing.assert_close(got[0], whole(results), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got[1], whole(gradients), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [4, 5])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2]])
def test_what_is_sharded_stays_sharded(ranks, name, n):
    shapes, _, lie = CASES[name]
    _, _, results, gradients = ranks[0][name, n, "sharded"]
    assert results == lie.split()
    wanted = [f"S{shape.index('n')}" if "n" in shape else "P" for k, shape in shapes.items() if k not in NOT_DIFFERENTIABLE]
    assert gradients == ([] if name == "statistics" else wanted)
    assert set(ranks[0][name, n, "replicated"][2]) == {"R"}


def test_a_mesh_of_two_dimensions(ranks):
    want = vae_fast.elbo_loss(*(t for t, _ in tensors(5, **HEAD).values()))
    (got,), lie = ranks[0]["two dimensions"]
    assert lie == "R P"
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_compiled(ranks):
    arguments = [t.requires_grad_() for t, _ in tensors(5, **HEAD).values()]
    loss = vae_fast.elbo_loss(*arguments)
    for rank in ranks:
        torch.testing.assert_close(rank["compiled"], [loss.detach(), *torch.autograd.grad(loss, arguments[1:], retain_graph=True)])


def test_second_derivatives(ranks):
    mu, logvar = (t.requires_grad_() for t, _ in tensors(5, mu=("n", 2), logvar=("n", 2)).values())
    (g,) = torch.autograd.grad(vae_fast.gaussian_kl(mu, logvar).sum(), logvar, create_graph=True)
    torch.testing.assert_close(ranks[0]["second"], list(torch.autograd.grad(g.square().sum(), logvar)))


# --- noise ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_kl", [False, True])
def test_shards_draw_different_noise_though_seeded_alike(ranks, with_kl):
    a, b = (rank["noise", "sharded", with_kl]["mine"] for rank in ranks)
    assert a.shape == b.shape == (2, 3, 5)
    assert not torch.isin(a, b).any()
    assert a.unique().numel() == a.numel()


@pytest.mark.parametrize("with_kl", [False, True])
def test_copies_draw_the_same_noise_though_seeded_differently(ranks, with_kl):
    a, b = (rank["noise", "replicated", with_kl]["z"] for rank in ranks)
    assert torch.equal(a, b)
    torch.manual_seed(3)  # the first process's
    zeros = torch.zeros(6, 5, dtype=torch.float64)
    assert torch.equal(a, vae_fast.reparameterize(zeros, zeros, num_samples=2))


@pytest.mark.parametrize("with_kl", [False, True])
@pytest.mark.parametrize("layout", ["sharded", "replicated"])
def test_the_backward_pass_has_the_noise_of_the_forward_pass(ranks, layout, with_kl):
    for rank in ranks:
        got = rank["noise", layout, with_kl]
        torch.testing.assert_close(got["grad"], got["z"].sum(0) / 2)
        torch.testing.assert_close(got["second"], got["z"].sum(0) / 4)


# --- models ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 5])
@pytest.mark.parametrize("name", ["tensor parallel, replicated", "tensor parallel, sharded", "fully sharded"])
def test_a_training_step_is_that_of_one_process(ranks, name, n):
    loss, weights = one_process(n, given_noise=name != "tensor parallel, replicated")
    for rank in ranks:
        got_loss, got = rank[name, n]
        assert got_loss == pytest.approx(loss, rel=1e-12)
        assert list(got) == list(weights)
        for k, t in weights.items():
            torch.testing.assert_close(got[k], t, rtol=1e-10, atol=1e-10)


# --- what does not fit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("mixed", "TypeError", r"inputs\[1\] of shape \(4, 2\) is a plain tensor among DTensors: expected a DTensor"),
        ("meshes", "ValueError", r"inputs\[1\] is on DeviceMesh.*: expected one mesh"),
        ("plain torch", "ValueError", r"noise=None: expected the caller's own"),
        ("checks", "ValueError", r"x\[3, 0\] = 255.0: expected values in \[0, 1\]"),
        ("total correlation", "TypeError", r"z is a DTensor: expected a plain tensor, for total_correlation compares all rows"),
        ("discrepancy", "TypeError", r"z is a DTensor: expected a plain tensor, for mmd compares all rows"),
    ],
)
def test_one_line_in_every_process(ranks, name, kind, words):
    for rank in ranks:
        got_kind, got, _ = rank["errors"][name]
        assert got_kind == kind
        assert "\n" not in got
        assert re.search(words, got)


def test_a_kind_that_has_no_place_is_named():
    from vae_fast import _dtensor

    call = object.__new__(_dtensor._Call)
    call.name, call.batch, call.sizes = "mdn", (), {}
    with pytest.raises(ValueError, match=r"^vae_fast::mdn: a tensor of kind 'gradients' has no place on a mesh: expected 'batch'"):
        call.axes_of("gradients")
