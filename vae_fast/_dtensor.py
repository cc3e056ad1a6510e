"""What the ops of ``torch.ops.vae_fast`` do with DTensors: how their arguments have to lie on the mesh, and how their results do.

Each op has batch dimensions, along which every process may compute its own part, and others (events, latents, mixture components, weights)
which it needs whole. Along each dimension of the mesh the arguments are sharded in one batch dimension or not at all:

- An argument with that dimension is ``Shard``; one without it (a prior, weights), or of size 1 there, is ``Replicate``.
- A result with that dimension is ``Shard``; one that is summed over it (a loss, the gradient of what is replicated) is ``Partial("sum")``.
- A mean over the batch is a sum here, divided by the number of all rows: shards of unequal size weigh what they hold.
- Whatever lies otherwise (sharded in a dimension that is summed, ``Partial``) is redistributed first by DTensor's own machinery.

How to shard is settled by the differentiable arguments alone, so that a backward pass takes its forward pass's way whatever its upstream
gradient looks like; noise and normalisers of the forward pass are those of the same rows then.

This module needs ``torch.distributed``; :func:`vae_fast.functional._dispatch.kernels` imports it once that is in use.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from vae_fast._scales import split_bounds

#: For each dimension of a tensor the batch dimension that it is, counted from the last one (-1), ROWS for all of them flattened into
#: one, or None where it has to be whole.
Axes = tuple[int | None, ...]
ROWS = 0
#: Added to the seed once per shard (2^64 over the golden ratio, odd: no two of 2^64 shards share a Philox key).
_KEY_STEP = 0x9E3779B97F4A7C15


def _lead(t: Tensor, event_dim: int) -> Axes:
    """The axes of a tensor with batch dimensions first; one that is broadcast may have fewer dimensions than an event."""
    event_dim = min(event_dim, t.ndim)
    return (*range(event_dim - t.ndim, 0), *(None,) * event_dim)


def _whole(t: Tensor) -> Axes:
    return (None,) * t.ndim


# --- the arguments that settle how to shard, by the name they have in the schema -----------------------------------------


class _Arg(NamedTuple):
    tensor: Tensor
    axes: Axes


def _term(a: dict[str, Any]) -> list[_Arg]:
    return [_Arg(t, _lead(t, a["event_dim"])) for t in a["inputs"]]


def _elbo(a: dict[str, Any]) -> list[_Arg]:
    data = [_Arg(t, _lead(t, a["event_dim"])) for t in a["likelihood_inputs"]]
    return data + [_Arg(t, _lead(t, a["latent_dim"])) for t in a["kl_inputs"]]


def _linear_likelihood(a: dict[str, Any]) -> list[_Arg]:
    weights = [a["weight"]] if a["bias"] is None else [a["weight"], a["bias"]]
    return [_Arg(a["x"], _lead(a["x"], 1)), _Arg(a["h"], _lead(a["h"], 1)), *(_Arg(t, _whole(t)) for t in weights)]


def _sample_event_dim(a: dict[str, Any]) -> int:
    """What a sample has to be whole in: the dimensions of the KL, where there is one (its name has a family before the scale)."""
    return int(a["event_dim"]) if "." in split_bounds(a.get("kl") or a.get("term") or "")[0] else 0


def _reparameterize(a: dict[str, Any]) -> list[_Arg]:
    return [_Arg(t, _lead(t, _sample_event_dim(a))) for t in a["inputs"]]


def _logsumexp(a: dict[str, Any]) -> list[_Arg]:
    inputs = [a["a"]] if a["weights"] is None else [a["a"], a["weights"]]
    summed = a["dim"] if a["dim"] < 0 else a["dim"] - max(t.ndim for t in inputs)
    return [_Arg(t, tuple(None if axis == summed else axis for axis in _lead(t, 0))) for t in inputs]


def _mixture(a: dict[str, Any]) -> list[_Arg]:
    return [
        *(_Arg(a[name], _lead(a[name], 1)) for name in ("x", "weight_logits")),
        *(_Arg(a[name], _whole(a[name])) for name in ("means", "scale")),
    ]


def _mdn(a: dict[str, Any]) -> list[_Arg]:
    shared = a["log_scale"].ndim < a["means"].ndim
    events = {"y": 1, "weight_logits": 1, "means": 2, "log_scale": 1 if shared else 2}
    return [_Arg(a[name], _lead(a[name], event_dim)) for name, event_dim in events.items()]


def _group(a: dict[str, Any]) -> list[_Arg]:
    return [_Arg(a[name], _lead(a[name], a["event_dim"])) for name in ("x", "params")]


def _softmax(a: dict[str, Any]) -> list[_Arg]:
    if a["column"] is not None:
        raise TypeError("vae_fast::softmax: CSR data among DTensors: expected dense counts, whose rows can be sharded")
    return [_Arg(a[name], _lead(a[name], a["event_dim"])) for name in ("x", "logits")]


_Settle = Callable[[dict[str, Any]], list[_Arg]]
_Op = tuple[_Settle, tuple[str, ...]]


def _op(name: str, settle: _Settle, *results: str) -> dict[str, _Op]:
    """An op with these results, and its backward pass."""
    return {name: (settle, results), f"{name}_backward": (settle, ("gradients",))}


def _total(name: str, settle: _Settle, sums: int = 1) -> dict[str, _Op]:
    """Sums over the batch, alone and with the gradients that are written on the way."""
    totals = ("total",) * sums
    return {name: (settle, totals), f"{name}_with_grad": (settle, (*totals, "gradients"))}


#: Each op: the function above, and the kinds of its results (see _Call.axes_of).
_OPS: dict[str, _Op] = {
    **_op("term", _term, "batch"),
    **_op("elbo", _elbo, "batch"),
    **_total("elbo_loss", _elbo),
    "elbo_parts": (_elbo, ("batch", "batch", "batch")),
    **_total("elbo_loss_parts", _elbo, 3),
    **_op("linear_likelihood", _linear_likelihood, "batch"),
    **_total("linear_likelihood_sum", _linear_likelihood),
    **_op("reparameterize", _reparameterize, "sample"),
    "reparameterize_with_kl": (_reparameterize, ("sample", "batch")),
    **_op("logsumexp", _logsumexp, "batch"),
    **_op("mixture", _mixture, "batch", "normaliser"),
    **_op("mixture_responsibilities", _mixture, "responsibilities"),
    "mixture_statistics": (_mixture, ("statistics log_prob", "total", "total", "total")),
    **_op("mixture_factorized", _mixture, "batch", "batch", "normaliser"),
    **_op("mdn", _mdn, "batch"),
    **_op("group", _group, "batch"),
    **_op("softmax", _softmax, "batch"),
}

#: The kinds of all other tensor arguments, which follow; by name, with one exception (see local_arguments).
_FOLLOWING = {"grad": "batch", "out": "batch", "log_prob": "batch", "sample_weight": "batch", "grad_kl": "batch"}
_FOLLOWING |= {"grad_joint": "batch", "grad_factorized": "batch"}
_FOLLOWING |= {"grad_z": "sample", "noise": "sample", "normaliser": "normaliser", "responsibilities": "responsibilities"}
_FOLLOWING |= {"rng_state": "total", "param_at": "total", "floor_at": "total", "beta_at": "total"}


class _Call:
    """One call: its arguments by name, and in which batch dimension it is sharded along each dimension of the mesh."""

    def __init__(self, op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.name: str = op._schema.name.partition("::")[2]
        given = dict(zip((argument.name for argument in op._schema.arguments), args, strict=False)) | kwargs
        self.args = {argument.name: given.get(argument.name, argument.default_value) for argument in op._schema.arguments}
        self.mesh, self.coordinate = self._place()
        settle, self.results = _OPS[self.name]
        self.inputs = settle(self.args)
        self.sizes: dict[int, int] = {}
        for t, axes in self.inputs:
            for axis, size in zip(axes, t.shape, strict=True):
                if axis is not None and self.sizes.get(axis, 1) == 1:
                    self.sizes[axis] = size
        self.batch = tuple(sorted(self.sizes))
        self.sharded = [self._settle(dim) for dim in range(self.mesh.ndim)]

    def _place(self) -> tuple[DeviceMesh, Sequence[int]]:
        """The one mesh of all DTensors, and where this process is in it.

        As in torch's own ops a 0-d tensor may be a plain one, and any may inside ``implicit_replication()``.
        """
        given = [(name, value) for name, value in self.args.items() if not isinstance(value, list | tuple)]
        given += [(f"{name}[{i}]", t) for name, value in self.args.items() if isinstance(value, list | tuple) for i, t in enumerate(value)]
        tensors = [(name, t) for name, t in given if isinstance(t, Tensor)]
        mesh = next(t.device_mesh for _, t in tensors if isinstance(t, DTensor))
        implicit = DTensor._op_dispatcher._allow_implicit_replication
        for name, t in tensors:
            if not isinstance(t, DTensor):
                if t.ndim > 0 and not implicit and name != "rng_state":
                    raise TypeError(
                        f"vae_fast::{self.name}: {name} of shape {tuple(t.shape)} is a plain tensor among DTensors: expected a DTensor "
                        "(torch.distributed.tensor.distribute_tensor makes one)"
                    )
            elif t.device_mesh != mesh:
                raise ValueError(f"vae_fast::{self.name}: {name} is on {t.device_mesh}, another argument on {mesh}: expected one mesh")
        coordinate = mesh.get_coordinate()
        if coordinate is None:
            raise RuntimeError(f"vae_fast::{self.name}: this process is not in the mesh of the arguments, {mesh}")
        return mesh, coordinate

    def _settle(self, dim: int) -> int | None:
        """The batch dimension that is sharded along dimension ``dim`` of the mesh: the one in which the largest argument is."""
        for t, axes in sorted(self.inputs, key=lambda arg: -arg.tensor.numel()):
            placement = t.placements[dim] if isinstance(t, DTensor) else None
            if type(placement) is Shard:
                axis = axes[placement.dim]
                if axis is not None and t.shape[placement.dim] == self.sizes[axis] > 1:
                    return axis
        return None

    def axes_of(self, kind: str) -> tuple[Axes, tuple[int, ...]]:
        """The axes and the shape of a tensor of a kind; both are empty for one that is summed over the batch."""
        sizes = tuple(self.sizes[axis] for axis in self.batch)
        if kind == "batch":
            return self.batch, sizes
        if kind == "sample":
            shape = tuple(torch.broadcast_shapes(*(t.shape for t in self.args["inputs"][:2])))
            samples = (self.args["num_samples"],) if self.args["num_samples"] else ()
            event_dim = _sample_event_dim(self.args)
            return (*(None,) * len(samples), *range(event_dim - len(shape), 0), *(None,) * event_dim), samples + shape
        if kind == "normaliser":
            each = 2 + 2 * self.args["means"].shape[1] if self.name.startswith("mixture_factorized") else 2
            return (None, ROWS), (each, math.prod(sizes))
        if kind == "responsibilities":
            return (*self.batch, None), (*sizes, self.args["means"].shape[0])
        if kind == "total":
            return (), ()
        raise ValueError(
            f"vae_fast::{self.name}: a tensor of kind {kind!r} has no place on a mesh: expected 'batch', 'sample', 'normaliser', "
            "'responsibilities' or 'total'"
        )

    def placements(self, axes: Axes, shape: Sequence[int], otherwise: Placement) -> list[Placement]:
        """Shard along the sharded batch dimensions that a tensor has, ``otherwise`` where it has them not."""

        def one(sharded: int | None) -> Placement:
            if sharded is None:
                return Replicate()
            for d, axis in enumerate(axes):
                if axis == ROWS or (axis == sharded and shape[d] == self.sizes[sharded]):
                    return Shard(d)
            return otherwise

        return [one(sharded) for sharded in self.sharded]

    def local(self, t: Tensor, axes: Axes) -> Tensor:
        """This process's part of an argument."""
        if not isinstance(t, DTensor):
            t = DTensor.from_local(t, self.mesh, [Replicate()] * self.mesh.ndim)
        return t.redistribute(placements=self.placements(axes, t.shape, Replicate())).to_local()

    def local_arguments(self) -> dict[str, Any]:
        """All arguments, as this process's call gets them."""
        axes = (axes for _, axes in self.inputs)  # in the order of the schema
        local = dict(self.args)
        for name, value in self.args.items():
            if name == "rng_state" and value is not None:
                local[name] = self.seed_of_shard(value)
            elif isinstance(value, Tensor) and name not in _FOLLOWING:
                local[name] = self.local(value, next(axes))
            elif isinstance(value, Tensor):
                kind = "responsibilities" if name == "grad" and self.name == "mixture_responsibilities_backward" else _FOLLOWING[name]
                local[name] = self.local(value, self.axes_of(kind)[0])
            elif isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
                local[name] = [self.local(t, next(axes)) for t in value]
        return local

    def seed_of_shard(self, state: Tensor) -> Tensor:
        """(seed, offset) with a seed for each shard: other noise in each, the same in its copies."""
        if not isinstance(state, DTensor):
            state = _agreed(state, self.mesh)
        local = self.local(state, ())
        shard = 0
        for dim, sharded in enumerate(self.sharded):
            if sharded is not None:
                shard = shard * self.mesh.size(dim) + self.coordinate[dim]
        step = (shard * _KEY_STEP + 2**63) % 2**64 - 2**63
        return local + local.new_tensor([step, 0]) if step else local

    def run(self, op: Any) -> Any:
        """The op on this process's part, its results as DTensors."""
        local = self.local_arguments()
        mean = local.get("mean", False) and any(sharded is not None for sharded in self.sharded)
        if mean:
            local["mean"] = False
        results = op(*local.values())
        if mean:
            rows = math.prod(self.sizes.values())
            for result in [results] if isinstance(results, Tensor) else results:
                for t in [result] if isinstance(result, Tensor) else result:
                    t.mul_(1.0 / rows if rows else math.nan)
        if len(self.results) == 1:
            return self._wrapped(self.results[0], results)
        return tuple(self._wrapped(kind, t) for kind, t in zip(self.results, results, strict=True))

    def _wrapped(self, kind: str, result: Any) -> Any:
        if kind == "gradients":
            marked = [arg for arg, m in zip(self.inputs, self.args["mask"], strict=True) if m]
            found = [self._distributed(g, axes, t.shape) for g, (t, axes) in zip(result, marked, strict=True)]
            return [g if isinstance(t, DTensor) else g.full_tensor() for g, (t, _) in zip(found, marked, strict=True)]
        if kind == "statistics log_prob":
            kind = "batch" if self.args["responsibilities"] is None else "total"  # empty where it is not computed
        axes, shape = (_whole(result), result.shape) if kind == "total" else self.axes_of(kind)
        return self._distributed(result, axes, shape)

    def _distributed(self, t: Tensor, axes: Axes, shape: Sequence[int]) -> DTensor:
        stride = [1] * len(shape)  # dense, in the memory order of this process's part
        order = sorted(range(len(shape)), key=t.stride, reverse=True)
        for outer, inner in reversed(list(itertools.pairwise(order))):
            stride[outer] = stride[inner] * max(shape[inner], 1)
        placements = self.placements(axes, shape, Partial("sum"))
        return DTensor.from_local(t, self.mesh, placements, shape=torch.Size(shape), stride=tuple(stride))


def _agreed(state: Tensor, mesh: DeviceMesh) -> DTensor:
    """The (seed, offset) that the first process of the mesh drew, in all of them."""
    first = not any(mesh.get_coordinate() or ())
    parts = DTensor.from_local(state if first else torch.zeros_like(state), mesh, [Partial("sum")] * mesh.ndim)
    return parts.redistribute(placements=[Replicate()] * mesh.ndim)


@torch.no_grad()
def _draw_seed(cls: type, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> DTensor:
    like, *generator = args
    return _agreed(op(like.to_local(), *generator, **(kwargs or {})), like.device_mesh)


@torch.no_grad()
def _run(cls: type, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
    return _Call(op, args, kwargs or {}).run(op)


_library = torch.library.Library("vae_fast", "FRAGMENT")  # given by hand: looking for the caller's takes milliseconds
for _name in _OPS:
    torch.library.register_torch_dispatch(f"vae_fast::{_name}", DTensor, _run, lib=_library)
torch.library.register_torch_dispatch("vae_fast::draw_seed", DTensor, _draw_seed, lib=_library)
