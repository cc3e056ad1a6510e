"""Recorders in place of CUDA graphs."""


class Again:
    """Replays by doing the work again; recording does nothing, as with a graph."""

    def __init__(self):
        self.recorded = self.beside_calls = 0

    def beside(self, work):
        self.beside_calls += 1
        work()

    def record(self, work):
        self.recorded += 1
        self.replay = work


class Refusing(Again):
    """Records nothing."""

    def record(self, work):
        raise RuntimeError("operation not permitted\nand more")
