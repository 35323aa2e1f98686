"""Running the scripts as a user would, small."""

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parent.parent
# 8 mm: a head of 24 x 25 x 29 voxels, enough for two windows of 8 x 8 x 16 and seconds of training.
GRID = ["--scan_dim", "1", "24", "25", "29"]
ROI = ["--roi_size", "8", "8", "16"]
QUICK = ["--num_samples", "1", "--log_every_n_val_epochs", "1"]


# What a user without any account has, on a machine where nothing was set for this program.
HOME = tempfile.mkdtemp(prefix="home-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
BARE = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"]), "HOME": HOME}


def run_script(
    *command, cwd: Path, code: int = 0, root: Path = ROOT, largest_file: int | None = None
) -> SimpleNamespace:
    """Run ``python COMMAND`` in `cwd` as a user would and check its exit code.

    Args:
        root: the project's, where its scripts are.
        largest_file: bytes that a file may have, as if the disk were full behind them.
    """
    module = command[:2] if command[0] == "-m" else [root / command[0]]
    program = [*map(str, module), *map(str, command[len(module) :])]
    with tempfile.NamedTemporaryFile("w+") as out, tempfile.NamedTemporaryFile("w+") as err:
        job = {"command": program, "cwd": str(cwd), "largest_file": largest_file, "out": out.name, "err": err.name}
        ended = _run_warm(job)
        done = SimpleNamespace(out=out.read(), err=err.read())
    assert ended == code, f"{command} ended with {ended}:\n{done.out}\n{done.err}"
    return done


def start_python_anew() -> None:
    """Let the next program run in another Python, in which sets have another order."""
    _warm_process().communicate()
    _warm_process.cache_clear()


def _run_warm(job: dict) -> int:
    """The exit code of a job of ``tests/warm.py``."""
    process = _warm_process()
    try:
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())
    except BaseException:  # a test that runs out of time leaves no program behind
        os.killpg(process.pid, signal.SIGKILL)
        _warm_process.cache_clear()
        raise


@cache
def _warm_process() -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, ROOT / "tests/warm.py"],
        env={**BARE, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    atexit.register(process.communicate)  # it ends when there are no more jobs
    return process


def start_script(script: str, *arguments, cwd: Path, **variables: str) -> subprocess.Popen:
    """Start ``python SCRIPT``, as `run_script` does, and go on while it runs."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *map(str, arguments)],
        cwd=cwd,
        env={**BARE, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(find, program: subprocess.Popen, seconds: float = 120):
    """What `find` finds, as soon as that is something, while the program runs."""
    until = time.monotonic() + seconds
    while not (found := find()):
        assert program.poll() is None and time.monotonic() < until, "it never came"
        time.sleep(0.05)
    return found


def processes_called(title: str) -> list[int]:
    """The processes whose title begins so."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            found += [int(path.parent.name)] if path.read_bytes().startswith(title.encode()) else []
    return found


def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
