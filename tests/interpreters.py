"""Interpreters for tests that need one of their own: forked from one that has imported torch already, which is most of a start."""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: What is read while Python or torch starts, which a forked interpreter has behind it.
EARLY = ("PYTHON", "OMP_", "MKL_", "KMP_", "GOMP_", "TORCH", "LD_")

_forked = multiprocessing.get_context("forkserver")
_forked.set_forkserver_preload(["numpy", "torch"])


def _program(how, arguments):
    """What ``python HOW ARGUMENTS`` executes."""
    if how == "-c":
        sys.argv = ["-c", *arguments[1:]]
        exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})
    elif how == "-m":
        sys.argv = list(arguments)
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(how).parent))
        sys.argv = [how, *arguments]
        runpy.run_path(how, run_name="__main__")


def _begin(how, arguments, environment, folder, out, err):
    """The forked side: what a new interpreter would find, and how it would end."""
    for path, descriptor in ((os.devnull, 0), (out, 1), (err, 2)):
        opened = os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    try:
        _program(how, arguments)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()


def run(how, *arguments, environment, folder=ROOT, timeout=300):
    """``python HOW ARGUMENTS`` (``-c CODE``, ``-m MODULE`` or a script) in this environment: a ``CompletedProcess`` with its text."""
    arguments = [str(argument) for argument in arguments]
    early = {k: v for k, v in environment.items() if k.startswith(EARLY) and k != "PYTHONPATH"}
    if any(os.environ.get(k) != v for k, v in early.items()):
        command = [sys.executable, str(how), *arguments]
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=timeout)
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        process = _forked.Process(target=_begin, args=(str(how), arguments, dict(environment), str(folder), out.name, err.name))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{how} {' '.join(arguments)}: no end after {timeout} s")
        text = [Path(stream.name).read_text() for stream in (out, err)]
        return subprocess.CompletedProcess([str(how), *arguments], process.exitcode, *text)
