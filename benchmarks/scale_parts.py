"""What a few scans cost on one core of this machine: the parts that `benchmarks.scale` measures and reckons with."""

import os
import shutil
import sys
import time
import tracemalloc
import warnings
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

import cross_validation
from benchmarks.proposals import run
from benchmarks.startup import draw_heads
from benchmarks.volume import GRID, ROI_SIZE, regions_of
from data.batches.cutting import cut_cohort
from data.batches.datamodules import RPNDataModule, SegmentationDataModule, SliceDataset
from data.batches.slices import read_slice_table
from data.scans.admission import admit
from data.scans.brain import with_brains
from data.scans.cohort import Case, pair_cases
from data.scans.prepared import brains_in, cached_scan
from models.rpn.anchors import ANCHOR_SIZES
from models.training.fit import build_rpn, build_strokeformer
from utils import cli
from utils.files import read_json

EXT = ".nii.gz"
ITEMS = 48  # slices or windows that are timed
COPIES = 200  # of the heads' slices in a table whose memory is measured
ARGUMENTS = [
    *[f"@{ROOT / 'recipes/atlas.args'}", "--scans_dir", "-", "--masks_dir", "-"],
    *["--model_prefix", "-", "--rpn_model_prefix", "-"],
]


def cohort_of(folder: Path) -> list[Case]:
    heads = draw_heads(folder, EXT)
    return with_brains(pair_cases([heads / "Scans"], [heads / "Masks"], EXT), [heads / "Brains"])


def prepare(folder: Path) -> dict:
    """Seconds and files to check, prepare and cut a scan whose brain is known, and what an epoch takes of it."""
    cases, cache, slices = cohort_of(folder), folder / "cache", folder / "slices"
    for path in (cache, slices):
        shutil.rmtree(path, ignore_errors=True)
    started = time.perf_counter()
    admit(cases, GRID, brains_in(cache), cache_dir=cache)
    cut_from = time.perf_counter()
    table = cut_cohort(cases, GRID, partial(cached_scan, grid=GRID, cache_dir=cache), slices)
    ended, n = time.perf_counter(), len(cases)
    tracemalloc.start()
    kept = loaded_table(table)
    memory = tracemalloc.get_traced_memory()[0]
    del kept
    files = [path for path in slices.rglob("*") if path.is_file()]
    return {
        "check_s": (cut_from - started) / n,
        "cut_s": (ended - cut_from) / n,
        "source_mb": megabytes([case.scan for case in cases]) / n,
        "prepared_mb": megabytes(cache.rglob("*.npy")) / n,
        "slices_mb": megabytes(files) / n,
        "files": len(files) / n,
        "table_kb": memory / (COPIES * n) / 1e3,
    }


def loaded_table(table) -> tuple:
    """What a process of stage 1 holds of `COPIES` cohorts: the table of the slices and their data set."""
    copies = []
    for number in range(COPIES):
        copy = table.copy()
        for column in ("scan", "mask", "volume"):
            copy[column] = [f"{value}{number}" for value in table[column]]
        copies.append(copy)
    return copies, [SliceDataset(copy) for copy in copies]


def megabytes(paths) -> float:
    return sum(path.stat().st_size for path in paths) / 1e6


def load(folder: Path) -> dict:
    """By stage: the seconds of single items, augmented and not, the MB that each reads of a cold disk, items a scan."""
    found = {}
    for stage, (plain, augmented, per_scan) in loaders(folder).items():
        read = [cold_mb(partial(plain.__getitem__, key), folder) for key in keys(plain, ITEMS // 4)]
        found[stage] = {
            "read_s": timed_items(plain),
            "item_s": timed_items(augmented),
            "read_mb": float(np.mean(read)),
            "per_scan": per_scan,
        }
    return found


def loaders(folder: Path) -> dict:
    """By stage: its training data plain and augmented as in the recipe, and the items of an epoch a scan."""
    args, cases = cross_validation.parse_args(ARGUMENTS), cohort_of(folder)
    table = read_slice_table(folder / "slices/Scans", folder / "slices/Masks")
    regions = {case.name: regions_of(cached_scan(case, GRID, folder / "cache")) for case in cases}

    def both(make) -> tuple:
        plain, augmented = make(None), make(args.transforms)
        return plain.train, augmented.train, len(plain.train_dataloader().sampler) / len(cases)

    slices = partial(RPNDataModule, table, table, 1, 0)
    windows = partial(SegmentationDataModule, cases, cases, regions, GRID, ROI_SIZE, folder / "cache", 1, 0)
    return {"1": both(slices), "2": both(windows)}


def keys(dataset, n: int) -> list[tuple[int, int]]:
    """(epoch, index) of items all over a data set."""
    return [(0, int(index)) for index in np.linspace(0, len(dataset) - 1, n)]


def timed_items(dataset) -> list[float]:
    seconds = []
    for key in [keys(dataset, 1)[0], *keys(dataset, ITEMS)]:  # the first one also warms up
        started = time.perf_counter()
        dataset[key]
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def cold_mb(read, folder: Path) -> float:
    """MB that a call reads of the disk while nothing of the folder is in memory."""
    for path in folder.rglob("*.npy"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = disk_bytes()
    read()
    return (disk_bytes() - before) / 1e6


def disk_bytes() -> int:
    return int(next(line.split()[1] for line in Path("/proc/self/io").open() if line.startswith("read_bytes")))


def train(folder: Path, stage: str) -> dict:
    """Seconds of a training step of a stage of the recipe: forward, backward, update; the least of three."""
    args = cross_validation.parse_args(ARGUMENTS)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", ".*`self.log\\(\\)`")  # there is no trainer
    _, data, _ = loaders(folder)[stage]
    size = args.rpn_batch_size if stage == "1" else args.batch_size
    items = [data[key] for key in keys(data, size)]
    if stage == "1":
        model = build_rpn(cli.without_prefix(args, "rpn_"), args.in_channels, ANCHOR_SIZES["ATLAS"])
        model, batch = model.to(memory_format=torch.channels_last), tuple(map(list, zip(*items, strict=True)))
    else:
        model, batch = build_strokeformer(args), torch.utils.data.default_collate(items)
        model = model.to(memory_format=torch.channels_last_3d)
    optimizer, seconds = torch.optim.AdamW(model.parameters(), 1e-4), []
    for _ in range(4):
        started = time.perf_counter()
        model.training_step(batch, 0).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    return {"step_s": min(seconds[1:]), "batch": size}


def segment(folder: Path) -> dict:
    """Seconds of the steps of a scan from file to file (`benchmarks.volume`)."""
    run(ROOT / "benchmarks/volume.py", "--out_dir", folder / "volume", "--programs", "ours")
    return read_json(folder / "volume/ours.json")


PARTS = {
    "prepare": prepare,
    "load": load,
    "train 1": partial(train, stage="1"),
    "train 2": partial(train, stage="2"),
    "segment": segment,
}
