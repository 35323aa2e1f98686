"""Progress of long work: one bar on a terminal that vanishes when it is done, a line now and then in a log file."""

import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from operator import length_hint
from typing import TypeVar

Item = TypeVar("Item")
WORTH_A_LINE_S = 10  # a log file gets a line on what took longer
EVERY_S = 60  # between the lines on what goes on

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
