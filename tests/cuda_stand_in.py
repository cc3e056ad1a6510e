"""torch.cuda on two clocks, for tests of how times are taken: the host's, which enqueues, and the device's, which carries out in order."""

import contextlib

import torch

CYCLES_PER_SECOND = 2e9
EVENT, LAUNCH = 1e-6, 10e-6  # seconds of the host to record an event, to start a graph


class Device:
    """What has been enqueued, and when each clock stands where; ``kernel`` and ``wait`` are what work calls."""

    def __init__(self, monkeypatch):
        self.host = self.free = 0.0  # the host's clock; when the device has done what it was given
        self.recording = None
        self.replays = self.recordings = 0
        device = self

        class Event:
            def __init__(self, enable_timing=False):
                assert enable_timing

            def record(self):
                device.host += EVENT
                self.at = max(device.host, device.free)

            def query(self):
                return device.host >= self.at

            def synchronize(self):
                device.host = max(device.host, self.at)

            def elapsed_time(self, end):
                return (end.at - self.at) * 1e3

        class CUDAGraph:
            def replay(self):
                device.replays += 1
                device.host += LAUNCH
                device.free = max(device.host, device.free) + sum(self.kernels)

        @contextlib.contextmanager
        def graph(recorded, pool=None):
            device.recordings += 1
            device.recording = recorded.kernels = []
            try:
                yield
            finally:
                device.recording = None

        class Stream:
            device_index = 0

            def __init__(self, device=None):
                pass

            def wait_stream(self, other):
                pass

        class Generator:
            def clone_state(self):
                return None

            def graphsafe_set_state(self, state):
                pass

        fakes = {"Event": Event, "CUDAGraph": CUDAGraph, "graph": graph, "Stream": Stream, "synchronize": self.wait}
        fakes |= {"stream": lambda stream: contextlib.nullcontext(), "current_stream": lambda device=None: Stream()}
        fakes |= {"graph_pool_handle": lambda: (0, 1), "set_stream": lambda stream: None, "default_generators": {0: Generator()}}
        fakes["_sleep"] = lambda cycles: self.kernel(0.0, cycles / CYCLES_PER_SECOND)
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            monkeypatch.setattr(torch._C, name, lambda device, pool: None, raising=False)

    def kernel(self, host, seconds):
        """Enqueue a kernel, which takes the host and then the device so long."""
        self.host += host
        if self.recording is not None:
            self.recording.append(seconds)
        else:
            self.free = max(self.host, self.free) + seconds

    def wait(self):
        """What every copy to the host does."""
        if self.recording is not None:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        self.host = max(self.host, self.free)
