"""The kernels that arithmetic limits of those that tools/cuda_static.py counts: mixtures, jointly and dimension by dimension."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cuda_gate


@dataclass(frozen=True)
class Nest:
    """A kernel whose innermost loop does arithmetic alone, inside a loop over tiles in shared memory."""

    source: str
    function: str
    multiply_adds: tuple[str, int]  # instruction, and how many a way round the innermost loop issues
    elements: int  # of a thread, one way round it
    inner: int  # ways round it per tile
    tiles: tuple[tuple[int, int, int, int], ...]  # bytes read and written by a thread over a tile, exponentials, and how many such tiles
    accesses: int | None = None  # to shared memory, a way round the innermost loop: where others issue as many multiply-adds
    filling: tuple[int, int] | None = None  # bytes a thread reads on a way round the loop that fills a tile, and how often it goes round

    @property
    def path(self) -> Path:
        return cuda_gate.CSRC / "cuda" / self.source


@dataclass(frozen=True)
class Arithmetic:
    """What one call's kernels do for an element, (row, component, dimension), and the formula's operations for it; or of these its
    exponentials, where their unit is what limits."""

    name: str
    operations: int
    nests: tuple[Nest, ...]
    target: float = 0.5
    exponentials: bool = False


# A block has 128 rows and 64 components, a thread 8 x 4, and 64 dimensions come 16 at a time; the last of four tiles ends the components.
# Means are near the centre: two multiply-adds for an element.
_FORWARD = Nest(
    "mixture_rows_f32.cu", "mixture_kernelIfNS0_13DiagonalJointIfLi4EEELb0E", ("FFMA", 128), 64, 8, ((84, 0, 0, 3), (116, 0, 32, 1))
)
_WEIGHTS = Nest(
    "mixture_rows_f32.cu", "mixture_weights_kernelIfNS0_9NearJointELb0E", ("FFMA", 64), 32, 16, ((112, 0, 0, 3), (144, 128, 32, 1)), 4
)
_MOMENTS = Nest("mixture_sums_f32.cu", "mixture_moments_kernelIfLb1E", ("FFMA", 32), 32, 8, ((32, 0, 0, 1),))
_GRADIENT = Nest("mixture_gradient_f32.cu", "mixture_gradient_kernelIfLi16E", ("FFMA", 32), 32, 16, ((64, 0, 0, 1),))
# ... and 8 at a time, a thread 4 x 8, in two halves
_TF32 = Nest("mixture_rows_f32.cu", "mixture_kernelIfNS0_12ProductJointILi4E", ("HMMA", 24), 128, 2, ((56, 0, 0, 7), (120, 0, 32, 1)))
_TF32_WEIGHTS = Nest(
    "mixture_rows_f32.cu", "mixture_weights_kernelIfNS0_12ProductJointILi4E", ("HMMA", 24), 128, 2, ((56, 0, 0, 7), (120, 128, 32, 1))
)
# A block has 64 by 64 sums, a warp 32 by 16, and 16 rows or components come at a time, in two halves.
_TF32_MOMENTS = Nest("mixture_sums_f32.cu", "mixture_moments_tf32_kernelILb1E", ("HMMA", 24), 128, 2, ((32, 0, 0, 1),))
_TF32_GRADIENT = Nest("mixture_gradient_f32.cu", "mixture_gradient_tf32_kernelIfE", ("HMMA", 24), 128, 2, ((48, 0, 0, 1),))
# A block has 32 rows and 64 dimensions, a thread 4 x 2, and 256 components come 16 at a time; of the sums over rows it has 64 components
# and 32 dimensions, a thread 4 x 2, and 32 rows come at a time, of which a thread fills two places.
_DIMS = Nest("mixture_dims_f32.cu", "mixture_dims_kernelIfLb0E", ("FFMA", 16), 16, 8, ((48, 0, 0, 1),))
_DIMS_GRADIENT = Nest("mixture_dims_f32.cu", "mixture_dims_gradient_kernelIfLb0ELb0E", ("FFMA", 32), 16, 8, ((48, 0, 0, 1),))
_DIMS_SUMS = Nest("mixture_dims_f32.cu", "mixture_dims_sums_kernelIfLb0ELb0E", ("FFMA", 16), 8, 32, ((0, 0, 0, 1),), 2, (28, 2))
NESTS = [
    Arithmetic("mixture f32, forward, K=256 D=64", 4, (_FORWARD,)),
    Arithmetic("mixture f32, backward, K=256 D=64", 10, (_WEIGHTS, _MOMENTS, _GRADIENT)),
    Arithmetic("mixture tf32x3, forward, K=256 D=64", 4, (_TF32,)),
    Arithmetic("mixture tf32x3, backward, K=256 D=64", 10, (_TF32_WEIGHTS, _TF32_MOMENTS, _TF32_GRADIENT)),
    Arithmetic("mixture f32 dimension by dimension, forward, K=256 D=64", 1, (_DIMS,), exponentials=True),
    Arithmetic("mixture f32 dimension by dimension, backward, K=256 D=64", 2, (_DIMS_GRADIENT, _DIMS_SUMS), exponentials=True),
]
