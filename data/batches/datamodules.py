"""The items of an epoch, and the Lightning data modules of the two stages."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from data.batches.cutting import lesion_boxes
from data.batches.sources import Slices
from data.batches.transforms import Pair, augment
from data.batches.windows import RegionWindows, TrainingWindows
from data.batches.workers import START_METHOD, end_with_parent, require_room, size_of_batch
from data.files.space import Shape
from data.scans.cohort import Case
from data.scans.open import Cohort
from data.settings import Loading
from utils.errors import UserError
from utils.regions.region import Region, whole_volume

AUGMENTATION = 1  # its stream of random numbers, of an item


class EpochSampler(Sampler):
    """Yields ``(epoch, index)`` of the indices that `choose` takes for an epoch with a generator, always as many.

    An item's randomness depends on the seed, the epoch and itself alone: batches are the same for any number of workers
    and after a resumed run.
    """

    def __init__(self, choose: Callable[[np.random.Generator], np.ndarray], seed: int, epoch: int = 0) -> None:
        self.choose, self.seed, self.epoch = choose, seed, epoch
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


def batch_loader(items: Dataset, sampler: Iterable, loading: Loading, collate: Callable | None = None) -> DataLoader:
    """A loader of the batches that `sampler` makes of `items`."""
    # A GPU takes batches from pinned memory while it computes. A CPU has no use for that, nor for the memory of workers
    # that wait for the next epoch.
    on_gpu = torch.cuda.is_available()
    if loading.num_workers:
        require_room(loading.num_workers, size_of_batch(items, sampler, loading.batch_size))
    return DataLoader(
        items,
        loading.batch_size,
        sampler=sampler,
        num_workers=loading.num_workers,
        collate_fn=collate,
        pin_memory=on_gpu,
        persistent_workers=on_gpu and loading.num_workers > 0,
        worker_init_fn=end_with_parent,
        multiprocessing_context=START_METHOD if loading.num_workers else None,
    )


def collate(items: list[dict[str, np.ndarray]]) -> dict:
    """A batch of items; their keys, of which no network knows, stay where they are."""
    keys = [item.pop("key") for item in items]
    return {**default_collate(items), "key": keys}


class SliceDataset(Dataset):
    """Slices by (epoch, index) of a row of their table.

    An item: ``image`` (C, H, W) float32 in [0, 1]; ``mask`` (1, H, W) uint8; its ``key``.
    """

    def __init__(self, slices: Slices) -> None:
        self.slices = slices

    def __len__(self) -> int:
        return len(self.slices.table)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, np.ndarray]:
        image, mask = self.slices.read(key[1])
        return {"image": image, "mask": mask[None].astype(np.uint8), "key": np.array(key)}


class TrainingData(pl.LightningDataModule):
    """Data drawn anew each epoch; `first_epoch` is that of a resumed run: workers load before Lightning sets it."""

    first_epoch = 0

    def __init__(self, loading: Loading, transforms: Sequence[str] | None, seed: int) -> None:
        super().__init__()
        self.loading, self.transforms, self.seed = loading, transforms or (), seed

    def augment(self, keys: list[np.ndarray], images: torch.Tensor, labels: torch.Tensor) -> Pair:
        """`data.batches.transforms.augment`, in training alone."""
        if not (self.trainer and self.trainer.training):
            return images, labels
        # Another stream than that of the item itself, which a window draws its place from.
        generators = [np.random.default_rng([self.seed, *key, AUGMENTATION]) for key in keys]
        return augment(self.transforms, images, labels, generators)


class RPNDataModule(TrainingData):
    """Slices for stage 1, drawn anew each epoch in training.

    A batch is ``(images, targets)``: images (C, H, W) float32 in [0, 1]; targets of ``boxes`` (N, 4) float32 xyxy
    half-open and ``labels`` (N,) int64 of ones.
    """

    def __init__(
        self,
        train: Slices,
        val: Slices,
        loading: Loading = Loading(batch_size=32),
        transforms: Sequence[str] | None = None,
        seed: int = 42,
    ) -> None:
        super().__init__(loading, transforms, seed)
        self.sick, self.val_sick = (side.table.lesion_voxels.to_numpy() > 0 for side in (train, val))
        if not self.sick.any():
            raise UserError("no training slice holds a lesion; add scans with lesions to the training data")
        self.train, self.val = SliceDataset(train), SliceDataset(val)

    def train_dataloader(self) -> DataLoader:
        sampler = EpochSampler(partial(balanced_indices, self.sick), self.seed, self.first_epoch)
        return batch_loader(self.train, sampler, self.loading, collate)

    def val_dataloader(self) -> DataLoader:
        indices = np.sort(balanced_indices(self.val_sick, np.random.default_rng(self.seed)))
        return batch_loader(self.val, [(0, index) for index in indices.tolist()], self.loading, collate)

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> tuple[list[torch.Tensor], list[dict]]:
        """Called by Lightning: augments a batch, and puts boxes around the lesions that are left."""
        images, masks = self.augment(batch["key"], batch["image"][:, :, None], batch["mask"][:, :, None])
        targets = []
        for lesion in masks[:, 0, 0].cpu().numpy() > 0:
            boxes = torch.from_numpy(lesion_boxes(lesion)).to(images.device)
            targets.append({"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64, device=boxes.device)})
        return list(images[:, :, 0]), targets


class SegmentationDataModule(TrainingData):
    """Windows for stage 2, for training as many as see all regions once; without `regions` all of a volume is one."""

    def __init__(
        self,
        train: list[Case],
        val: list[Case],
        regions: Mapping[str, list[Region]] | None,
        cohort: Cohort,
        window: Shape,
        loading: Loading = Loading(),
        transforms: Sequence[str] | None = None,
        seed: int = 42,
    ) -> None:
        super().__init__(loading, transforms, seed)
        laid = regions or {case.name: [whole_volume(cohort.grid.shape)] for case in [*train, *val]}
        if not (length := len(RegionWindows(train, laid, cohort, window))):
            raise UserError(
                "no region was proposed on any training scan; train the RPN longer or lower --score_threshold"
            )
        self.train = TrainingWindows(train, regions, cohort, window, length, seed)
        self.val = RegionWindows(val, laid, cohort, window)

    def train_dataloader(self) -> DataLoader:
        # In order: what a window lies about goes by its number, so that each batch holds as much of everything.
        sampler = EpochSampler(lambda rng: np.arange(len(self.train)), self.seed, self.first_epoch)
        return batch_loader(self.train, sampler, self.loading, collate)

    def val_dataloader(self) -> DataLoader:
        return batch_loader(self.val, range(len(self.val)), self.loading, collate)

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict[str, torch.Tensor]:
        """Called by Lightning: augments a batch, and says in ``has_lesion`` (B,) which windows hold a lesion."""
        image, labels = self.augment(batch["key"], batch["image"], torch.cat([batch["mask"], batch["region"]], 1))
        mask, region = labels.split(1, 1)
        return {
            "image": image,
            "mask": mask,
            "region": region,
            "has_lesion": (mask * region).amax((1, 2, 3, 4)).float(),
        }
