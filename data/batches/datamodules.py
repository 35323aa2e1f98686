"""Lightning data modules of the two stages."""

from collections.abc import Callable, Sequence, Sized
from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from data.batches.context import with_context
from data.batches.cutting import brain_path, lesion_boxes
from data.batches.sampling import SAMPLING, EpochSampler, SharedBatches, balanced_indices, item_rng
from data.batches.slices import read_slice
from data.batches.transforms import apply_transforms, build_transforms
from data.batches.windows import RegionWindows, TrainingWindows, WindowCutter
from data.files.nifti import affine_of
from data.files.space import Space, resample, resized_space
from data.scans.cohort import Case
from data.scans.grid import UNKNOWN_MM, Grid
from data.scans.head import head_mask
from data.scans.prepared import PreparedScan
from utils.errors import UserError
from utils.regions.region import Region, whole_volume


class SliceDataset(Dataset):
    """Slices with their lesion boxes.

    An item is ``(image, target)``: image (C, H, W) float32 in [0, 1], context included; target ``boxes`` (N, 4) float32
    xyxy half-open, ``labels`` (N,) int64 of ones, ``mask`` (H, W) bool.

    Args:
        table: rows of `data.batches.cutting.COLUMNS` with full paths.
        context: further channels of an image (`data.batches.context`).
    """

    def __init__(
        self, table: pd.DataFrame, transforms: list[str] | None = None, seed: int = 0, context: Sequence[str] = ()
    ) -> None:
        self.masks = list(table["mask"])
        self.places = list(zip(table.volume, table.slice, strict=True))
        self.scans = dict(zip(self.places, table.scan, strict=True))
        self.transforms = build_transforms(transforms, spatial_dims=2)
        self.seed, self.context = seed, context

    def __len__(self) -> int:
        return len(self.places)

    def image(self, index: int) -> np.ndarray:
        """The image of an item as it is, not augmented."""
        volume, z = self.places[index]
        near = [self._neighbour(volume, z + step) for step in (-1, 1)] if "neighbours" in self.context else [None, None]
        return with_context(read_slice(self.scans[volume, z]), *near, self.context)

    def _neighbour(self, volume: str, z: int) -> np.ndarray | None:
        path = self.scans.get((volume, z))
        return None if path is None else read_slice(path)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        epoch, index = key
        item = {"image": self.image(index), "mask": read_slice(self.masks[index])}
        item = apply_transforms(self.transforms, item, item_rng(self.seed, epoch, index))
        lesion = item["mask"][0] > 0.5
        boxes = torch.from_numpy(lesion_boxes(lesion))
        target = {
            "boxes": boxes,
            "labels": torch.ones(len(boxes), dtype=torch.int64),
            "mask": torch.from_numpy(lesion),
        }
        return torch.from_numpy(item["image"]), target


def _collate_slices(items: list) -> tuple[list, list]:
    images, targets = zip(*items, strict=True)
    return list(images), list(targets)


class ScanDataset(Dataset):
    """Whole scans of a cohort, as ``prepare(case)`` makes them: `PreparedScan` items."""

    def __init__(self, cases: list[Case], prepare: Callable[[Case], PreparedScan]) -> None:
        self.cases, self.prepare = cases, prepare

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> PreparedScan:
        return self.prepare(self.cases[index])


class StackedScans(Dataset):
    """Volumes put back together from their slices at their true depth; slices without brain are air.

    An item is a `PreparedScan`. Its brain comes from ``Brains/`` beside the folder of the slices, where
    ``python -m data.slices`` leaves it; without that it is what of the slices is not air.

    Args:
        table: rows of `COLUMNS` with full paths.
        resize_to: in-plane (H, W) that slices are resampled to, or None.
    """

    def __init__(self, table: pd.DataFrame, resize_to: tuple[int, int] | None = None) -> None:
        self.volumes = list(table.groupby("volume", sort=True))
        self.resize_to = resize_to

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> PreparedScan:
        volume, rows = self.volumes[index]
        scan = _stack(rows.scan, rows.slice, rows.depth.iloc[0], volume)
        mask = _stack(rows["mask"], rows.slice, rows.depth.iloc[0], volume)[0] > 0
        path = brain_path(rows.scan.iloc[0], volume)
        brain = read_slice(path) > 0 if path.is_file() else head_mask(scan[0])
        if brain.shape != mask.shape:
            raise UserError(f"{path} has shape {brain.shape}, its slices make {mask.shape}; cut the slices anew")
        spacing_mm = tuple(map(float, rows.spacing_mm.iloc[0].split()))
        own = space = Space(mask.shape, affine_of(spacing_mm or UNKNOWN_MM))
        if self.resize_to:
            space = resized_space(own, (len(mask) - 1) / 2, len(mask), self.resize_to)
            scan = resample(scan, own, space, outside=[0.0] * len(scan))
            mask, brain = (resample(m[None], own, space)[0] for m in (mask, brain))
        scan, subject = scan.astype(np.float16), rows.subject.iloc[0]
        return PreparedScan(volume, subject, scan, brain, mask, space, own, bool(spacing_mm))


def _stack(paths: pd.Series, slices: pd.Series, depth: int, volume: str) -> np.ndarray:
    """(C, D, H, W) float32 of slice files."""
    arrays = [read_slice(path) for path in paths]
    if len(shapes := {a.shape for a in arrays}) > 1:
        raise UserError(f"the slices of {volume} have shapes {sorted(shapes)}; cut them anew")
    c, h, w = arrays[0].shape
    stack = np.zeros((c, depth, h, w), np.float32)
    stack[:, slices] = np.stack(arrays, 1)
    return stack


def scan_loader(dataset: Dataset, num_workers: int) -> DataLoader:
    """A loader of single `PreparedScan` items, made ahead by `num_workers` processes."""
    return DataLoader(dataset, batch_size=None, num_workers=num_workers, collate_fn=_as_it_is)


def _as_it_is(item: PreparedScan) -> PreparedScan:
    return item


def batch_loader(
    data: pl.LightningDataModule, items: Dataset, sampler: Sized, batch_size: int, num_workers: int, **loading
) -> DataLoader:
    """A loader of this process's shares of the batches that `sampler` makes of `items`.

    Args:
        data: of the training that it is for.
        batch_size: items of a batch, those of all processes.
    """
    trainer, on_gpu = data.trainer, torch.cuda.is_available()
    batches = SharedBatches(sampler, batch_size, *((trainer.global_rank, trainer.world_size) if trainer else ()))
    # A GPU takes batches from pinned memory while it computes. A CPU has no use for that, nor for the memory of workers
    # that wait for the next epoch.
    ahead = {"pin_memory": on_gpu, "persistent_workers": on_gpu and num_workers > 0}
    return DataLoader(items, batch_sampler=batches, num_workers=num_workers, **ahead, **loading)


class RPNDataModule(pl.LightningDataModule):
    """Slices for stage 1, drawn anew each epoch in training.

    Args:
        sampling: ``balanced``, all sick slices and as many healthy ones, or ``natural``, as many of all (`SAMPLING`).

    Attributes:
        hard: indices of healthy training slices that the next epoch must hold (`models.rpn.hard_negatives` finds them).
    """

    def __init__(
        self,
        train: pd.DataFrame,
        val: pd.DataFrame,
        batch_size: int = 32,
        num_workers: int = 0,
        transforms: list[str] | None = None,
        seed: int = 42,
        context: Sequence[str] = (),
        sampling: str = "balanced",
    ) -> None:
        super().__init__()
        self.sick, self.val_sick = (table.lesion_voxels.to_numpy() > 0 for table in (train, val))
        if not self.sick.any():
            raise UserError("no training slice holds a lesion; add scans with lesions to the training data")
        self.train = SliceDataset(train, transforms, seed, context)
        self.val = SliceDataset(val, context=context)
        self.seed, self.sampling = seed, SAMPLING[sampling]
        self.hard = np.zeros(0, int)
        self.loading = {"batch_size": batch_size, "num_workers": num_workers, "collate_fn": _collate_slices}

    def train_dataloader(self) -> DataLoader:
        sampler = EpochSampler(lambda rng: self.sampling(self.sick, rng, self.hard), self.seed)
        return batch_loader(self, self.train, sampler, **self.loading)

    def val_dataloader(self) -> DataLoader:
        chosen = np.sort(balanced_indices(self.val_sick, np.random.default_rng(self.seed)))
        sampler = [(0, int(index)) for index in chosen]
        return batch_loader(self, self.val, sampler, **self.loading)


class SegmentationDataModule(pl.LightningDataModule):
    """Windows for stage 2: drawn over training scans, as many as it takes to see their regions once, and laid over the
    regions of validation scans.

    Args:
        regions: proposed regions by scan file name; None for whole volumes.
        window: size (D, H, W) of the windows in voxels.
    """

    def __init__(
        self,
        train: list[Case],
        val: list[Case],
        regions: dict[str, list[Region]] | None,
        grid: Grid,
        window: tuple[int, int, int],
        cache_dir: Path,
        batch_size: int = 8,
        num_workers: int = 0,
        transforms: list[str] | None = None,
        seed: int = 42,
        context: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.seed, cutter = seed, WindowCutter(grid, window, cache_dir, context)
        laid = regions or {case.name: [whole_volume(grid.shape)] for case in [*train, *val]}
        self.train = TrainingWindows(train, regions, cutter, len(RegionWindows(train, laid, cutter)), transforms, seed)
        self.val = RegionWindows(val, laid, cutter)
        if not len(self.train):
            raise UserError(
                "no region was proposed on any training scan; train the RPN longer or lower --score_threshold"
            )
        self.loading = {"batch_size": batch_size, "num_workers": num_workers}

    def train_dataloader(self) -> DataLoader:
        # In order: what a window lies about goes by its number, so that each batch holds as much of everything.
        sampler = EpochSampler(lambda rng: np.arange(len(self.train)), self.seed)
        return batch_loader(self, self.train, sampler, **self.loading)

    def val_dataloader(self) -> DataLoader:
        return batch_loader(self, self.val, range(len(self.val)), **self.loading)
