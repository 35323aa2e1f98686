"""Loaders of whole scans, the items of an epoch, and the Lightning data modules of the two stages."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data.batches.cutting import brain_path, lesion_boxes
from data.batches.slices import parse_spacing, read_slice
from data.batches.transforms import apply_transforms, build_transforms
from data.batches.windows import RegionWindows, TrainingWindows
from data.batches.workers import START_METHOD, end_with_parent, require_room, size_of_batch
from data.files.nifti import affine_of
from data.files.space import Shape, Space, resample, resized_space, space_from_json
from data.scans.cohort import Case
from data.scans.grid import UNKNOWN_MM
from data.scans.head import head_mask
from data.scans.open import Cohort
from data.scans.prepared import PreparedScan
from data.settings import Loading
from utils.errors import UserError
from utils.files import read_json
from utils.regions.region import Region, whole_volume

# --- whole scans ---------------------------------------------------------------------------------------


def scan_loader(cases: Sequence, prepare: Callable[..., PreparedScan], num_workers: int = 0) -> DataLoader:
    """A loader of ``prepare(case)`` for each case, made ahead by `num_workers` processes."""
    require_room(num_workers)
    # Without a batch size the collate function gets the items one by one, in the workers.
    return DataLoader(cases, batch_size=None, num_workers=num_workers, collate_fn=prepare)  # type: ignore[arg-type]


def stacked_scans(table: pd.DataFrame, num_workers: int = 0, resize_to: tuple[int, int] | None = None) -> DataLoader:
    """A loader of volumes put back together from a table of slices, at their true depth; those without brain are air.

    The brain comes from ``Brains/`` beside the folder of the slices or, without that, is all that is not air.
    `resize_to` is an in-plane (H, W) that slices are resampled to.
    """
    volumes = list(table.groupby("volume", sort=True))
    return scan_loader(volumes, partial(_stack_volume, resize_to=resize_to), num_workers)


def _stack_volume(volume: tuple[str, pd.DataFrame], resize_to: tuple[int, int] | None) -> PreparedScan:
    name, rows = volume
    scan = _stack(rows.scan, rows.slice, rows.depth.iloc[0], name)
    mask = _stack(rows["mask"], rows.slice, rows.depth.iloc[0], name)[0] > 0
    path = brain_path(rows.scan.iloc[0], name)
    brain = read_slice(path) > 0 if path.is_file() else head_mask(scan[0])
    if brain.shape != mask.shape:
        raise UserError(f"{path} has shape {brain.shape}, its slices make {mask.shape}; cut the slices anew")
    spacing_mm = parse_spacing(rows.spacing_mm.iloc[0])
    own = space = Space(mask.shape, affine_of(spacing_mm or UNKNOWN_MM))
    if is_placed := (place := path.with_suffix(".json")).is_file():
        own = space = space_from_json(read_json(place))
    if resize_to:
        space = resized_space(own, (len(mask) - 1) / 2, len(mask), resize_to)
        scan = resample(scan, own, space, outside=[0.0] * len(scan))
        mask, brain = (resample(m[None], own, space)[0] for m in (mask, brain))
    subject = rows.subject.iloc[0]
    arrays, known = (scan.astype(np.float16), brain, mask), spacing_mm is not None
    return PreparedScan(name, subject, *arrays, space, own, known, place_known=is_placed)


def _stack(paths: pd.Series, slices: pd.Series, depth: int, volume: str) -> np.ndarray:
    """(C, D, H, W) float32 of slice files."""
    arrays = [read_slice(path) for path in paths]
    if len(shapes := {a.shape for a in arrays}) > 1:
        raise UserError(f"the slices of {volume} have shapes {sorted(shapes)}; cut them anew")
    c, h, w = arrays[0].shape
    stack = np.zeros((c, depth, h, w), np.float32)
    stack[:, slices] = np.stack(arrays, 1)
    return stack


# --- batches -------------------------------------------------------------------------------------------


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


class SliceDataset(Dataset):
    """Slices with their lesion boxes, by (epoch, index) of a row of a table (`data.batches.cutting`).

    An item is ``(image, target)``: image (C, H, W) float32 in [0, 1]; target ``boxes`` (N, 4) float32 xyxy half-open,
    ``labels`` (N,) int64 of ones, ``mask`` (H, W) bool.
    """

    def __init__(self, table: pd.DataFrame, transforms: Sequence[str] | None = None, seed: int = 0) -> None:
        self.scans, self.masks = list(table.scan), list(table["mask"])
        self.places = list(zip(table.volume, table.slice, strict=True))
        self.transforms, self.seed = build_transforms(transforms, spatial_dims=2), seed

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        epoch, index = key
        item = {"image": read_slice(self.scans[index]), "mask": read_slice(self.masks[index])}
        item = apply_transforms(self.transforms, item, np.random.default_rng([self.seed, epoch, index]))
        lesion = item["mask"][0] > 0.5
        boxes = lesion_boxes(lesion)
        target = {"boxes": boxes, "labels": np.ones(len(boxes), np.int64), "mask": lesion}
        return torch.from_numpy(item["image"]), {key: torch.from_numpy(array) for key, array in target.items()}


def _collate_slices(items: list) -> tuple[list, ...]:
    return tuple(map(list, zip(*items, strict=True)))


class TrainingData(pl.LightningDataModule):
    """Data drawn anew each epoch; `first_epoch` is that of a resumed run: workers load before Lightning sets it."""

    first_epoch = 0


class RPNDataModule(TrainingData):
    """Slices for stage 1, drawn anew each epoch in training."""

    def __init__(
        self,
        train: pd.DataFrame,
        val: pd.DataFrame,
        loading: Loading = Loading(batch_size=32),
        transforms: Sequence[str] | None = None,
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.sick, self.val_sick = (table.lesion_voxels.to_numpy() > 0 for table in (train, val))
        if not self.sick.any():
            raise UserError("no training slice holds a lesion; add scans with lesions to the training data")
        self.train, self.val = SliceDataset(train, transforms, seed), SliceDataset(val)
        self.loading, self.seed = loading, seed

    def train_dataloader(self) -> DataLoader:
        sampler = EpochSampler(partial(balanced_indices, self.sick), self.seed, self.first_epoch)
        return batch_loader(self.train, sampler, self.loading, _collate_slices)

    def val_dataloader(self) -> DataLoader:
        indices = np.sort(balanced_indices(self.val_sick, np.random.default_rng(self.seed)))
        return batch_loader(self.val, [(0, index) for index in indices.tolist()], self.loading, _collate_slices)


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
        super().__init__()
        laid = regions or {case.name: [whole_volume(cohort.grid.shape)] for case in [*train, *val]}
        if not (length := len(RegionWindows(train, laid, cohort, window))):
            raise UserError(
                "no region was proposed on any training scan; train the RPN longer or lower --score_threshold"
            )
        self.train = TrainingWindows(train, regions, cohort, window, length, transforms, seed)
        self.val = RegionWindows(val, laid, cohort, window)
        self.loading, self.seed = loading, seed

    def train_dataloader(self) -> DataLoader:
        # In order: what a window lies about goes by its number, so that each batch holds as much of everything.
        sampler = EpochSampler(lambda rng: np.arange(len(self.train)), self.seed, self.first_epoch)
        return batch_loader(self.train, sampler, self.loading)

    def val_dataloader(self) -> DataLoader:
        return batch_loader(self.val, range(len(self.val)), self.loading)
