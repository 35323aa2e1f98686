"""Which items an epoch visits: shuffled, and for slices balanced between sick and healthy; and who visits them."""

import math
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass

import numpy as np
from torch.utils.data import BatchSampler, Sampler


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


@dataclass(frozen=True)
class Share:
    """What one of the processes of a training has of a batch.

    own, whole: items of this process and of all.
    place: of the first of its own in the batch.
    """

    own: int
    whole: int
    place: int


class SharedBatches(Sampler):
    """The batches of a sampler's items, each split over the processes of a training: no item twice, none left out.

    A batch is the same for any number of processes. Where it holds fewer items than there are processes, the last ones
    are handed its first item, so that all take the same steps; their `share` of it is 0.

    Args:
        sampler: of the items of an epoch.
        batch_size: items of a batch, those of all processes.
        rank: of this process.
    """

    def __init__(self, sampler: Sized, batch_size: int, rank: int = 0, processes: int = 1) -> None:
        self.sampler, self.batch_size, self.rank, self.processes = sampler, batch_size, rank, processes

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.batch_size)

    def __iter__(self) -> Iterator[list]:
        for index, batch in enumerate(BatchSampler(self.sampler, self.batch_size, drop_last=False)):
            share = self.share(index)
            yield batch[share.place : share.place + share.own] or batch[:1]

    def share(self, index: int) -> Share:
        """What this process has of a batch of the epoch."""
        whole = min(self.batch_size, len(self.sampler) - index * self.batch_size)
        each = math.ceil(whole / self.processes)
        place = min(self.rank * each, whole)
        return Share(min(each, whole - place), whole, place)


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
