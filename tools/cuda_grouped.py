"""The kernels of grouped likelihoods that tools/cuda_static.py counts: mixtures over cells, and softmaxes over classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cuda_gate

THREADS = 256  # of a block, in every kernel


@dataclass(frozen=True)
class Cells:
    """A kernel with a thread per component of a cell, tiles of cells, and a few threads that combine each cell's components."""

    name: str
    function: str
    read: int  # bytes of a thread over a tile
    written: int
    parameters: int  # of a component
    bytes: float  # moved per parameter, once each
    components: int = 10
    tiles: int = 8  # of a piece
    target: float = 0.9

    source: Path = cuda_gate.CSRC / "cuda" / "groups.cu"

    @property
    def cells(self) -> int:
        return THREADS // self.components

    @property
    def reducers(self) -> int:
        """Threads per cell, as csrc/cuda/cells.cuh chooses them."""
        count = 1
        while 2 * count * self.cells <= THREADS and count * 8 < self.components:
            count *= 2
        return count


def cells(term: str, struct: str, grad: bool, size: int) -> Cells:
    """RGB pixels of bytes with 10 components; `size` is that of a parameter. No value is written beside a gradient."""
    name = f"logistic mixture {term} {'f32' if size == 4 else 'bf16'}, {'backward' if grad else 'forward'}, K=10"
    function = f"cells_kernelINS_7generic4math16DiscretizedPixelILi3ELb{struct}EEEfLb{grad:d}E"
    return Cells(name, function, 10 * size + 3, 10 * size * grad, 10, size * (1 + grad) + 0.03)


CELLS = [cells("exact", "0", grad, size) for size in (4, 2) for grad in (False, True)] + [
    cells("thin", "1", grad, 4) for grad in (False, True)
]


@dataclass(frozen=True)
class Softmax:
    """A softmax whose lanes hold a row whole: a loop to read it, the steps of two sums over lanes, and a loop for the gradient."""

    name: str
    function: str
    loops: tuple[tuple[int, int, int], ...]  # reading, largest, sums, gradient: their places in the code, and bytes of a thread
    read: int  # bytes of a thread beside those loops
    elements: int  # of a thread
    columns: int
    bytes: int  # moved per element, once each
    target: float = 0.9
    source: Path = cuda_gate.CSRC / "cuda" / "softmax.cu"


def softmaxes(dtype: str, mangled: str, size: int, backward: str) -> list[Softmax]:
    """Rows of 256 classes of which the index is given, eight vectors to a lane."""
    function, elements = f"softmax_rows_kernelINS0_7VectorsI{mangled}vEELNS_6TargetE0E", 128 // size
    forward = ((1, 128, 0), (2, 0, 0), (5, 0, 0))
    beside = 12 if size == 4 else 14  # the index and the logit there, and with 16-bit logits the row's upstream gradient
    return [
        Softmax(f"categorical {dtype}, forward, K=256", function, forward, beside, elements, 256, size),
        Softmax(f"categorical {dtype}, {backward}, K=256", function, (*forward, (9, 0, 128)), beside, elements, 256, 2 * size),
    ]


_COUNTED, _LOOPS = "softmax_rows_kernelINS0_7VectorsIffEELNS_6TargetE1E", ((2, 256, 0), (3, 0, 0), (6, 0, 0))
SOFTMAXES = [*softmaxes("f32", "f", 4, "forward and gradient"), *softmaxes("bf16", "NS0_8BFloat16E", 2, "backward")]
SOFTMAXES.append(Softmax("multinomial f32, forward, K=1024", _COUNTED, _LOOPS, 4, 32, 1024, 8))
SOFTMAXES.append(Softmax("multinomial f32, forward and gradient, K=1024", _COUNTED, (*_LOOPS, (11, 0, 128)), 4, 32, 1024, 12))
