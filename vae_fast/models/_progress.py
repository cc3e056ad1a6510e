"""What a fit prints, in scikit-learn's words, and the caller's callback."""

from __future__ import annotations

import time
from collections.abc import Callable

from vae_fast.models._em import Parameters, Run

Show = Callable[[Parameters, int, float], object]  # parameters, iteration, lower bound


class Progress:
    """One start of a fit.

    Args:
        init: its number.
        verbose: 0, 1 (iterations) or 2 (times and changes too).
        interval: iterations between two lines.
        show: called after each iteration, if given.
    """

    def __init__(self, init: int, verbose: int, interval: int, show: Show | None) -> None:
        """See the class."""
        self.verbose, self.interval, self.show = verbose, interval, show
        self.began = self.last = time.perf_counter()
        if verbose:
            print(f"Initialization {init}")

    def __call__(self, parameters: Parameters, iteration: int, bound: float, change: float) -> None:
        """After an iteration."""
        if self.verbose and iteration % self.interval == 0:
            now = time.perf_counter()
            detail = f"\t time lapse {now - self.last:.5f}s\t ll change {change:.5f}" if self.verbose >= 2 else ""
            print(f"  Iteration {iteration}{detail}")
            self.last = now
        if self.show is not None:
            self.show(parameters, iteration, bound)

    def end(self, run: Run) -> None:
        """After the last one."""
        if self.verbose:
            took = f". time lapse {time.perf_counter() - self.began:.5f}s\t lower bound {run.lower_bound:.5f}."
            print(f"Initialization {'converged' if run.converged else 'did not converge'}{took if self.verbose >= 2 else '.'}")
