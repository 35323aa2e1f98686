"""Work on many items of which some are refused: a broken file does not stop the others."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from utils.errors import UserError
from utils.parallel import map_in_order
from utils.progress import progress

Item = TypeVar("Item")
Result = TypeVar("Result")


def attempt_all(
    work: Callable[[Item], Result], items: Sequence[Item], what: str, num_workers: int
) -> tuple[list[Result | None], list[str]]:
    """The result for each item, None where it was refused, and the reasons of the refusals."""
    attempts = map_in_order(partial(_attempt, work), items, num_workers)
    results, reasons = zip(*progress(attempts, what, len(items)), strict=True)
    return list(results), [reason for reason in reasons if reason is not None]


def _attempt(work: Callable[[Item], Result], item: Item) -> tuple[Result | None, str | None]:
    try:
        return work(item), None
    except UserError as error:
        return None, str(error)
