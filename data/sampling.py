"""Which items an epoch visits: shuffled, and for slices balanced between sick and healthy."""

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler):
    """Yields ``(epoch, index)``, so that an item's randomness depends on the seed, the epoch and itself alone.

    That makes batches the same for any number of workers and after a resumed run.

    Args:
        choose: from a generator to the indices of one epoch, always as many.
        seed: of the run.
    """

    def __init__(self, choose: Callable[[np.random.Generator], np.ndarray], seed: int) -> None:
        self.choose = choose
        self.seed = seed
        self.epoch = 0
        self.length = len(choose(np.random.default_rng(seed)))

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        chosen = self.choose(np.random.default_rng([self.seed, self.epoch]))
        return iter([(self.epoch, int(index)) for index in chosen])


def healthy_in_epoch(sick: np.ndarray) -> int:
    """Healthy slices of a balanced epoch: as many as sick ones, all where there are fewer or none is sick."""
    n_sick, n_healthy = int(sick.sum()), int((~sick).sum())
    return min(n_sick or n_healthy, n_healthy)


def balanced_indices(sick: np.ndarray, rng: np.random.Generator, hard: np.ndarray | None = None) -> np.ndarray:
    """All sick slices and `healthy_in_epoch` others, shuffled.

    Args:
        sick: (N,) bool, whether a slice holds lesion.
        hard: indices of healthy slices to take first; the others are drawn.
    """
    hard = np.zeros(0, int) if hard is None else hard
    drawn = rng.choice(np.setdiff1d(np.flatnonzero(~sick), hard), healthy_in_epoch(sick) - len(hard), replace=False)
    return rng.permutation(np.concatenate([np.flatnonzero(sick), hard, drawn]))


def natural_indices(sick: np.ndarray, rng: np.random.Generator, hard: np.ndarray | None = None) -> np.ndarray:
    """As many slices as `balanced_indices`, sick or healthy as chance has it; arguments as there."""
    hard = np.zeros(0, int) if hard is None else hard
    wanted = int(sick.sum()) + healthy_in_epoch(sick)
    drawn = rng.choice(np.setdiff1d(np.arange(len(sick)), hard), wanted - len(hard), replace=False)
    return rng.permutation(np.concatenate([hard, drawn]))


SAMPLING = {"balanced": balanced_indices, "natural": natural_indices}


def item_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch, index])
