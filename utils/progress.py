"""Long work: the processes that share it, and its progress, a bar on a terminal or lines now and then in a log file."""

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from operator import length_hint
from typing import TypeVar

from utils.errors import UserError

Item = TypeVar("Item")
WORTH_A_LINE_S = 10  # a log file gets a line on what took longer
EVERY_S = 60  # between the lines on what goes on
# By these a launcher of several processes (torchrun, srun, jsrun) tells each its number. Lightning and torch read them,
# and set LOCAL_RANK and others themselves for the processes of a training.
RANKS = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "JSM_NAMESPACE_RANK", "TORCHELASTIC_USE_AGENT_STORE"),
)

_kept: list[Callable] = []  # the function of a process of `map_in_order`
print_once = cache(print)  # for what would be printed for each of many scans or folds


def progress(items: Iterable[Item], what: str, total: int | None = None, unit: str = "scan") -> Iterator[Item]:
    """The items one by one, with a bar, or lines in a log file; `total` says how many, where `items` have no length."""
    total = length_hint(items) if total is None else total
    if on_terminal() and find_spec("tqdm"):  # the runner of exported models does without it
        from tqdm import tqdm

        yield from tqdm(items, what, total, unit=unit, leave=False, disable=total < 2)
        return
    started = printed = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - printed > EVERY_S and done < total:
            rate, printed = done / (now - started), now
            left = duration((total - done) / rate)
            print(f"{what}: {done} of {total} {unit}s, {rate:.2g} a second, {left} left", flush=True)
    took_s = time.monotonic() - started
    if took_s > WORTH_A_LINE_S:
        print(f"{what}: {total} {unit}{'' if total == 1 else 's'} in {took_s:.0f} s", flush=True)


def on_terminal() -> bool:
    return sys.stderr.isatty()


def duration(seconds: float) -> str:
    """As people say it: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def forget_launcher() -> None:
    """Be the first process of a training of its own; before Lightning is imported, which reads its number then."""
    for name in RANKS:
        os.environ.pop(name, None)


def map_in_order(function: Callable, items: Sequence, num_workers: int, what: str, unit: str = "scan") -> Iterator:
    """Results of ``function(item)`` in the order of `items`, with their `progress`.

    With `num_workers` up to 1 the work stays in this process. Processes are spawned, not forked: libraries with threads
    of their own do not survive a fork. `function` must therefore come from a module, not from the file that was started
    with ``python -m``.
    """
    if num_workers <= 1:
        yield from progress(map(function, items), what, len(items), unit)
        return
    from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
    from multiprocessing import get_context

    pool = ProcessPoolExecutor(min(num_workers, max(len(items), 1)), get_context("spawn"), _begin, (function,))
    try:
        _hold_ctrl_c(True)  # so that it finds the processes ready for it
        results = deque(pool.submit(_work_on, item) for item in items)
        _hold_ctrl_c(False)
        yield from progress((results.popleft().result() for _ in items), what, len(items), unit)
    except BrokenProcessPool as error:
        raise UserError("a worker process was killed, most likely for memory; lower --num_workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(function: Callable) -> None:
    """Keep the function of this process: sent again with each scan, a cohort would take the square of its size.

    Ctrl-C ends the process without a traceback; the main process says that the work has stopped.
    """
    _kept.append(function)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _hold_ctrl_c(False)


def _work_on(item):
    return _kept[0](item)


def _hold_ctrl_c(held: bool) -> None:
    """Whether Ctrl-C waits in this thread, and in a process that it starts."""
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK if held else signal.SIG_UNBLOCK, {signal.SIGINT})
