"""Interpreters for tests that need one of their own: forked from one that has imported torch already, which is most of a start."""

import atexit
import multiprocessing
import multiprocessing.connection
import os
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: What is read while Python or torch starts, which a forked interpreter has behind it.
EARLY = ("PYTHON", "OMP_", "MKL_", "KMP_", "GOMP_", "TORCH", "LD_")
#: But what is read later, or comes to the same later.
LATE = ("PYTHONPATH", "PYTHONWARNINGS", "OMP_NUM_THREADS", "TORCHELASTIC")

_forked = multiprocessing.get_context("forkserver")
_forked.set_forkserver_preload(["numpy", "torch", "torch._dynamo"])  # the last: two seconds of what the first optimizer imports


def _program(how, arguments):
    """What ``python HOW ARGUMENTS`` executes."""
    sys.orig_argv = [sys.executable, how, *arguments]
    if how == "-c":
        sys.argv = ["-c", *arguments[1:]]
        exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})
    elif how == "-m":
        sys.argv = ["-m", *arguments[1:]]
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(how).parent))
        sys.argv = [how, *arguments]
        runpy.run_path(how, run_name="__main__")


def _take_up(environment):
    """The environment of a new interpreter, and what it would have read while it started."""
    os.environ.clear()
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    if environment.get("PYTHONWARNINGS"):
        sys.warnoptions[:] = environment["PYTHONWARNINGS"].split(",")
        warnings._processoptions(sys.warnoptions)


def _begin(how, arguments, environment, folder, out, err):
    """The forked side: what a new interpreter would find, and how it would end."""
    for path, descriptor in ((os.devnull, 0), (out, 1), (err, 2)):
        opened = os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)
        os.dup2(opened, descriptor)
        os.close(opened)
    _take_up(environment)
    os.chdir(folder)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    try:
        _program(how, arguments)
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()


def _ended(process, timeout):
    try:
        text = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, *text


def started(how, *arguments, environment, folder=ROOT, fresh=False):
    """Begins ``python HOW ARGUMENTS`` (``-c CODE``, ``-m MODULE`` or a script) in this environment. What it returns waits for the end, for
    at most so many seconds, and gives a ``CompletedProcess`` with its text. A fresh one is not forked: it has imported nothing."""
    command = [str(how), *map(str, arguments)]
    early = {k: v for k, v in environment.items() if k.startswith(EARLY) and not k.startswith(LATE)}
    if fresh or any(os.environ.get(k) != v for k, v in early.items()):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        other = subprocess.Popen([sys.executable, *command], env=environment, cwd=folder, **pipes)
        return lambda timeout: subprocess.CompletedProcess(command, *_ended(other, timeout))
    files = [tempfile.NamedTemporaryFile(), tempfile.NamedTemporaryFile()]  # noqa: SIM115  until the end
    given = (command[0], command[1:], dict(environment), str(folder), *(file.name for file in files))
    process = _forked.Process(target=_begin, args=given)
    process.start()

    def end(timeout):
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{' '.join(command)}: no end after {timeout} s")
        text = []
        for file in files:
            text.append(Path(file.name).read_text())
            file.close()
        return subprocess.CompletedProcess(command, process.exitcode, *text)

    return end


def run(how, *arguments, environment, folder=ROOT, timeout=300, fresh=False):
    """:func:`started`, and its end."""
    return started(how, *arguments, environment=environment, folder=folder, fresh=fresh)(timeout)


def _work(work, rank, arguments, environment, failure):
    _take_up(environment)
    try:
        work(rank, *arguments)
    except Exception:
        failure.send(traceback.format_exc())
        sys.exit(1)


def spawn(work, arguments, processes, timeout=300):
    """``work(rank, *arguments)`` in several interpreters at once. An error in one, or its death, ends all of them and is raised here."""
    running = {}
    for rank in range(processes):
        failed, failure = _forked.Pipe(duplex=False)
        process = _forked.Process(target=_work, args=(work, rank, arguments, dict(os.environ), failure))
        process.start()
        failure.close()
        running[process.sentinel] = (rank, process, failed)
    everyone, deadline = list(running.values()), time.monotonic() + timeout
    try:
        while running:
            ended = multiprocessing.connection.wait(list(running), deadline - time.monotonic())
            if not ended:
                raise TimeoutError(f"{work.__name__}: processes {[rank for rank, *_ in running.values()]} have not ended after {timeout} s")
            for sentinel in ended:
                rank, process, failed = running.pop(sentinel)
                process.join()
                if process.exitcode != 0:
                    said = failed.recv() if failed.poll() else ""
                    raise RuntimeError(f"{work.__name__}: process {rank} ended with {process.exitcode}\n{said}")
    finally:
        for _, process, failed in everyone:
            process.kill()
            process.join()
            failed.close()
