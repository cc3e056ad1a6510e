"""What a case consists of, and the tensors it stands for."""

import zlib
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import torch
from oracle import draw

FLOATS = ("float32", "float16", "bfloat16", "float64")

# Finite values far out, by kind; None is an ordinary one. The plain formulas must still be right about them in float64: with a prior,
# a ratio of variances is squared, so that log-variances of both have to stay within 350.
_FAR = (0.0, -0.0, 1e-45, -1e-38, 1e-20, 1e-6, 1.0, 1e4, -1e4, 1e15, -1e19, 1e30, 1e37, 1.8e38, 3e38, -3e38, 3.4e38, -3.4e38)
_LOGVAR = (0.0, -0.0, 1e-40, 1e-7, -1e-6, 1e-4, -1e-3, 20.0, 40.0, 60.0, -20.0, -60.0, 80.0, -80.0, 90.0, -90.0, 170.0, 178.0, -178.0)
_STD = (1e-45, 1e-39, 1e-38, 1e-20, 1e-10, 1e-4, 0.999, 1.0, 1.0001, 1e4, 10001.0, 1e10, 1e19, 1e20, 3e38)
POOLS: dict[str, tuple[float, ...]] = {
    "location": _FAR,
    "bounded": tuple(v for v in _FAR if abs(v) < 1.7e38),  # whose differences are in range
    "modest": tuple(v for v in _FAR if abs(v) < 1e20),  # which a bin's scale may be divided into
    "logvar": _LOGVAR,
    "lone_logvar": (*_LOGVAR, 400.0, -400.0, 690.0, -690.0),  # without a prior
    "log_std": tuple(0.5 * v for v in _LOGVAR),
    "std": _STD,
    "var": _STD,
    "softplus": (0.0, 1e-20, -17.0, -17.4, 17.0, 20.0, -40.0, 40.0, 80.0, -80.0, 89.0, -88.0, -100.0, 150.0),
    "target": (0.0, 1.0, 0.5, 1e-40, 1e-7, 1 - 2**-24),
    "logits": (
        0.0,
        -0.0,
        1e-30,
        15.0,
        -15.0,
        17.4,
        -17.4,
        20.8,
        -20.8,
        40.0,
        -50.0,
        88.8,
        -88.8,
        90.0,
        -90.0,
        100.1,
        -104.0,
        1e4,
        -1e4,
        3e38,
    ),
    "probs": (0.0, 1.0, 1e-45, 1e-38, 1e-20, 1e-8, 0.5, 1 - 2**-24, 1 - 2**-12),
    "weights": (0.0, 1e-45, 1e-38, 1e-20, 1.0, 1e4, 1e38),
    "exponent": (0.0, -0.0, 1e-40, 80.0, -80.0, 104.0, -104.0, 1e4, -1e4, 1e30, -1e30, 3e38, -3e38),
    "log_scale": (0.0, 1e-40, 10.0, -10.0, 40.0, -40.0, 80.0, -80.0, 88.0, -89.0, 100.0, -100.0, 1e4, -1e30, 3e38),
    "factor": (1e-30, 1e-15, 1e-3, 1.0, 1e3, 1e15, 1e30),  # multiplies the whole
    "small": (0.0, 1.0, -1.0, 1e-6, 100.0),  # for products of matrices
    "noise": (0.0, -0.0, 1e-30, 5.6, -5.6),
    "positive": (1e-38, 1e-20, 0.5, 1.0, 1 + 2**-20, 1e4, 1e20, 3e38),
    "df": (1e-6, 0.5, 1.0, 2.0, 29.0, 31.0, 1e4, 1e8, 1e20),
    "count": (0.0, 1.0, 2.0, 7.0, 255.0, 1000.0, 65_504.0, 1e6, 2.0**24),
    "rate": (1e-38, 1e-8, 1e-4, 1.0, 17.0, 1e4, 1e6, 1e8, 1e20),
    "theta": (1e-6, 1e-4, 0.5, 1.0, 100.0, 1e4, 1e6, 1e8),
    "log_rate": (0.0, -0.0, 1e-7, -20.0, 20.0, -80.0, 40.0),
    "params": (0.0, -0.0, 1e-30, -7.0, 7.0, -20.0, 88.0, -1e4, 1e4),
    "bin_scale": (0.0, -0.0, 1e-7, 10.0, -7.0, -20.0, 40.0, -40.0, 80.0, -80.0),  # whose inverse is a number
    "log_theta": (0.0, -0.0, 1e-7, -13.0, 7.0, 18.0),
}
INTEGERS = ("int8", "int16", "int32", "int64")


@dataclass(frozen=True)
class Spec:
    """One tensor argument. Its shape is that of the named sizes, with ones where it is broadcast and without ``drop`` leading ones."""

    name: str
    kind: str
    dims: tuple[str, ...]
    ones: tuple[int, ...] = ()
    drop: int = 0
    dtype: str = "float32"
    layout: str = "contiguous"
    pool: tuple[float | None, ...] = (None,)
    grad: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Case:
    """One call of a family's function and what is asked of it."""

    family: str
    options: dict[str, Any]
    sizes: dict[str, tuple[int, ...]]
    specs: tuple[Spec, ...]
    upstream: str = "ones"
    check: str = "none"
    threads: int = 2
    seed: int = field(default=0)

    def change(self, name: str, **fields: Any) -> "Case":
        """With other fields of the argument ``name``."""
        return replace(self, specs=tuple(replace(s, **fields) if s.name == name else s for s in self.specs))


def full_shape(case: Case, spec: Spec) -> tuple[int, ...]:
    return tuple(n for d in spec.dims for n in case.sizes[d])


def shape_of(case: Case, spec: Spec) -> tuple[int, ...]:
    return tuple(1 if i in spec.ones else n for i, n in enumerate(full_shape(case, spec)))[spec.drop :]


def stable_hash(*parts: Any) -> int:
    return zlib.crc32(repr(parts).encode())


# --- values -----------------------------------------------------------------------------------------------------------


def values(case: Case, spec: Spec, ordinary: torch.Tensor | None = None) -> torch.Tensor:
    """The argument's numbers, contiguous and of its dtype: ordinary ones, and those of the pool at random places."""
    shape = shape_of(case, spec)
    expanded = spec.layout == "expanded"
    torch.manual_seed(stable_hash(spec.seed, spec.name))
    t = draw_ordinary(spec, shape) if ordinary is None else ordinary.double()
    if spec.pool != (None,) and spec.kind == "factor":
        t = t * (spec.pool[0] or 1.0)
    elif spec.pool != (None,):
        which = torch.randint(len(spec.pool), shape)
        for i, v in enumerate(spec.pool):
            if v is not None:
                t = torch.where(which == i, torch.tensor(v, dtype=torch.float64), t)
    if expanded and t.numel():  # equal along every dimension that is to have stride 0
        for d in expanded_dims(spec, len(shape)):
            t = t.narrow(d, 0, 1).expand_as(t)
    t = to_dtype(t / 255 if spec.kind in ("count", "index") and spec.dtype == "uint8" else t, spec.dtype)
    if spec.kind in ("std", "var", "positive", "df", "rate", "theta"):  # positive, in any dtype
        info = torch.finfo(t.dtype)
        t = t.clamp(min=info.smallest_normal * info.eps)
    return t


def draw_ordinary(spec: Spec, shape: tuple[int, ...]) -> torch.Tensor:
    if spec.kind == "count":
        return torch.poisson(20.0 * torch.rand(shape, dtype=torch.float64)) * (torch.rand(shape) < 0.4)
    names = {
        "log_theta": "log_rate",
        "params": "location",
        "lone_logvar": "logvar",
        "exponent": "location",
        "bounded": "location",
        "modest": "location",
        "ordinary": "location",
        "log_scale": "log_std",
        "bin_scale": "log_std",
        "small": "location",
        "noise": "location",
    }
    t = draw(names.get(spec.kind, spec.kind), shape)
    return t * 0.5 if spec.kind == "small" else t


def to_dtype(t: torch.Tensor, name: str) -> torch.Tensor:
    """Rounded, and kept finite."""
    if name == "uint8":
        return (t.clamp(0, 1) * 255).round().to(torch.uint8).contiguous()
    if name == "bool":
        return (t > 0.5).contiguous()
    dtype = getattr(torch, name)
    if name in INTEGERS:
        return t.clamp(0, torch.iinfo(dtype).max // 2).round().to(dtype).contiguous()
    largest = torch.finfo(dtype).max
    return t.clamp(-largest, largest).to(dtype).contiguous()


def exact(t: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """The number that an argument stands for."""
    wide = t.detach().resolve_neg().to(dtype).contiguous()
    return wide / 255 if t.dtype == torch.uint8 else wide


# --- layouts ----------------------------------------------------------------------------------------------------------


def expanded_dims(spec: Spec, ndim: int) -> list[int]:
    rng = Random(stable_hash(spec.seed, "expanded"))
    return [d for d in range(ndim) if rng.random() < 0.6] or ([0] if ndim else [])


def _transposed(t: torch.Tensor) -> torch.Tensor:
    return t.transpose(0, -1).contiguous().transpose(0, -1) if t.ndim > 1 else t


def _permuted(t: torch.Tensor) -> torch.Tensor:
    order = list(range(t.ndim))
    Random(t.ndim).shuffle(order)
    return t.permute(order).contiguous().permute([order.index(d) for d in range(t.ndim)])


def _channels_last(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else _transposed(t)


def _sliced(t: torch.Tensor) -> torch.Tensor:
    big = torch.full([n + 4 for n in t.shape], 77, dtype=t.dtype)
    view = big[tuple(slice(1, 1 + n) for n in t.shape)]
    return view.copy_(t)


def _strided(t: torch.Tensor) -> torch.Tensor:
    if not t.ndim:
        return t
    big = torch.full((*t.shape[:-1], 3 * t.shape[-1]), 77, dtype=t.dtype)
    big[..., 1::3] = t
    return big[..., 1::3]


def _misaligned(t: torch.Tensor) -> torch.Tensor:
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


def _negated(t: torch.Tensor) -> torch.Tensor:
    """Memory that holds -t, and a bit that says so; ``z.conj().imag`` is such a view."""
    return torch._neg_view(-t) if t.is_floating_point() else t


LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": _transposed,
    "permuted": _permuted,
    "channels_last": _channels_last,
    "sliced": _sliced,
    "strided": _strided,
    "misaligned": _misaligned,
    "negated": _negated,
    "expanded": lambda t: t,  # needs the spec, see `build`
}


def build(case: Case, spec: Spec, numbers: torch.Tensor) -> torch.Tensor:
    """The argument as the function gets it: a leaf with the case's memory layout."""
    if spec.layout == "expanded" and numbers.numel():
        t = numbers
        dims = expanded_dims(spec, t.ndim)
        for d in dims:
            t = t.narrow(d, 0, 1)
        t = t.contiguous().expand(numbers.shape)
    else:
        t = LAYOUTS[spec.layout](numbers.clone())
    return t.detach().requires_grad_(spec.grad)


# --- drawing the axes that all families share --------------------------------------------------------------------------

_SMALL = (1, 1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 20, 31, 33, 64, 100)
_LARGE = (257, 784, 1000, 1025, 4099, 8191, 20_011, 65_537, 70_001, 131_075)


def extents(rng: Random, ndim: int, budget: int, large: float = 0.12) -> tuple[int, ...]:
    """``ndim`` sizes whose product is about ``budget`` at most; now and then one is 0."""
    out = []
    for _ in range(ndim):
        n = rng.choice(_LARGE) if rng.random() < large else rng.choice(_SMALL)
        n = 0 if rng.random() < 0.02 else max(1, min(n, budget))
        budget = max(1, budget // max(1, n))
        out.append(n)
    return tuple(out)


def budget(rng: Random) -> int:
    return rng.choices((2**8, 2**10, 2**13, 2**16, 2**20), (30, 35, 28, 6, 1))[0]


def dress(rng: Random, specs: list[Spec], *, dtypes: bool = True, wild: bool | None = None) -> tuple[Spec, ...]:
    """Dtypes, layouts, values, requires_grad and seeds for the arguments; most cases are plain on most axes."""
    common = rng.choice(("float32", "float32", "float32", "float64", "float16", "bfloat16"))
    mixed = dtypes and rng.random() < 0.25
    wild = rng.random() < 0.45 if wild is None else wild
    laid, subset = rng.random() < 0.4, rng.random() < 0.35
    out = []
    for s in specs:
        dtype = s.dtype if s.dtype != "float32" else rng.choice(FLOATS) if mixed else common if dtypes else "float32"
        pool = s.pool
        if wild and s.kind in POOLS and rng.random() < 0.75:
            chosen = rng.sample(POOLS[s.kind], rng.choice((1, 1, 1, 2, 3)))
            pool = (*chosen, *((None,) if rng.random() < 0.4 else ()))
        layout = rng.choice(tuple(LAYOUTS)) if laid and rng.random() < 0.6 else "contiguous"
        grad = s.grad and dtype not in ("uint8", "bool") and not (subset and rng.random() < 0.5)
        out.append(replace(s, dtype=dtype, pool=pool, layout=layout, grad=grad, seed=rng.getrandbits(31)))
    return tuple(out)


def broadcast(rng: Random, case_sizes: dict[str, tuple[int, ...]], spec: Spec, dims: str | None = None) -> Spec:
    """Ones in some of the dimensions (of those named ``dims`` only, if given), or the leading ones left out."""
    if rng.random() < 0.7:
        return spec
    owners = [d for d in spec.dims for _ in case_sizes[d]]
    may = [i for i, owner in enumerate(owners) if dims is None or owner == dims]
    if not may:
        return spec
    if rng.random() < 0.4:
        lead = 0
        while lead in may:
            lead += 1
        return replace(spec, drop=rng.randint(0, lead))
    return replace(spec, ones=tuple(i for i in may if rng.random() < 0.6))


UPSTREAMS = (
    "ones",
    "ones",
    "random",
    "random",
    "expanded",
    "strided",
    "tiny",
    "huge",
    "zeros",
    *(f"2^{k}" for k in (-10, -4, 8, 12, 16, 20, 24)),
)


def upstream_of(kind: str, out: torch.Tensor, seed: int) -> torch.Tensor:
    """The gradient that comes from above, in the dtype of ``out``."""
    if kind == "ones":
        return torch.ones_like(out, memory_format=torch.contiguous_format)
    if kind == "expanded":
        return out.new_tensor(1.5).expand(out.shape)
    if kind == "zeros":
        return torch.zeros_like(out)
    if kind.startswith("2^"):
        return torch.full_like(out, min(2.0 ** int(kind[2:]), torch.finfo(out.dtype).max))
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    g = g * {"random": 1.0, "strided": 1.0, "tiny": 1e-6, "huge": 1e4}[kind]
    g = g.to(out.dtype)
    return _strided(g) if kind == "strided" else g


def is_wild(case: Case) -> bool:
    return any(s.pool != (None,) for s in case.specs)
