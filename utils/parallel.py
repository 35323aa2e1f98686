"""The same work on many items, in one process or several."""

from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context


def map_in_order(function: Callable, items: Sequence, num_workers: int) -> Iterator:
    """Results of ``function(item)`` in the order of `items`; `num_workers` up to 1 stays in this process.

    Processes are spawned, not forked: libraries with threads of their own do not survive a fork.
    """
    if num_workers <= 1:
        yield from map(function, items)
        return
    with get_context("spawn").Pool(min(num_workers, len(items))) as pool:
        yield from pool.imap(function, items)
