"""The same work on many items, in one process or several."""

import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from utils.errors import UserError


def map_in_order(function: Callable, items: Sequence, num_workers: int) -> Iterator:
    """Results of ``function(item)`` in the order of `items`; `num_workers` up to 1 stays in this process.

    Processes are spawned, not forked: libraries with threads of their own do not survive a fork. `function` must
    therefore come from a module, not from the file that was started with ``python -m``.
    """
    if num_workers <= 1:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(min(num_workers, max(len(items), 1)), get_context("spawn"), _end_at_ctrl_c)
    try:
        _hold_ctrl_c(True)  # so that it finds the processes ready for it
        results = deque(pool.submit(function, item) for item in items)
        _hold_ctrl_c(False)
        while results:
            yield results.popleft().result()
    except BrokenProcessPool as error:
        raise UserError("a worker process was killed, most likely for memory; lower --num_workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _end_at_ctrl_c() -> None:
    """Let Ctrl-C end a process without a traceback; the main process says that the work has stopped."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _hold_ctrl_c(False)


def _hold_ctrl_c(held: bool) -> None:
    """Whether Ctrl-C waits in this thread, and in a process that it starts."""
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK if held else signal.SIG_UNBLOCK, {signal.SIGINT})
