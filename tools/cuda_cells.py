"""The kernels of mixtures over cells that tools/cuda_static.py counts: a thread per component of a cell."""

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
