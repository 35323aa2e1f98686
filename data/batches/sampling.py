"""Which items an epoch visits: shuffled, and for slices balanced between sick and healthy."""

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler):
    """Yields ``(epoch, index)``, so that an item's randomness depends on the seed, the epoch and itself alone.

    That makes batches the same for any number of workers and after a resumed run.

    Args:
        choose: from a generator to the indices of one epoch, always as many.
    """

    def __init__(self, choose: Callable[[np.random.Generator], np.ndarray], seed: int) -> None:
        self.choose, self.seed, self.epoch = choose, seed, 0
        self.length = len(choose(np.random.default_rng(seed)))

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        chosen = self.choose(np.random.default_rng([self.seed, self.epoch]))
        return iter([(self.epoch, int(index)) for index in chosen])


def balanced_indices(sick: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All sick slices and as many healthy ones, shuffled; all healthy ones where there are fewer or none is sick."""
    n_sick, n_healthy = int(sick.sum()), int((~sick).sum())
    drawn = rng.choice(np.flatnonzero(~sick), min(n_sick or n_healthy, n_healthy), replace=False)
    return rng.permutation(np.concatenate([np.flatnonzero(sick), drawn]))


def item_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch, index])
