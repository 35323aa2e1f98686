"""Samples per second and peak memory of a training epoch as the cohort grows.

    python benchmarks/loading.py

Cohorts of 10, 100 and 655 scans of 189 x 192 x 192 (655 is ATLAS v2.0's training set) are simulated by hard links to
a few drawn ones, so that the disk holds five scans while the loader meets as many files as the real cohort has. Each
row is a process of its own: windows of 64 x 64 x 64, one region a scan, batches of 8.
"""

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from data.batches.datamodules import SegmentationDataModule
from data.files.volumes import write_volume
from data.scans.cohort import Case
from data.scans.grid import Grid
from data.scans.prepared import cache_folder, cached_scan
from utils.regions.region import Region

GRID, ROI_SIZE = Grid((1, 189, 192, 192)), (64, 64, 64)
COHORTS, DRAWN = (10, 100, 655), 5
REGION = Region(60, 124, 60, 60, 124, 124)


def cases_in(folder: Path, n: int) -> list[Case]:
    return [Case(str(i), None, folder / f"sub-{i:03d}_T1w.npy", folder / f"sub-{i:03d}_mask.npy") for i in range(n)]


def simulate(n: int, folder: Path) -> None:
    """Write `n` cases and the cache of each, of which all but the first `DRAWN` are hard links."""
    cases = cases_in(folder, n)
    for i, case in enumerate(cases):
        if i < DRAWN:
            _draw(case, i)
            cached_scan(case, GRID, folder / "cache")
        else:
            _link(case, cases[i % DRAWN], folder / "cache")


def _draw(case: Case, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scan = rng.normal(2, 1, (1, *GRID.shape)).astype(np.float32)
    scan[:, 20:170, 30:160, 20:170] += 60
    mask = np.zeros((1, *GRID.shape), np.uint8)
    mask[:, 80:100, 80:100, 80:100] = 1
    write_volume(case.scan, scan)
    write_volume(case.mask, mask)


def _link(case: Case, source: Case, cache_dir: Path) -> None:
    os.link(source.scan, case.scan)
    os.link(source.mask, case.mask)
    target = cache_folder(case, GRID, cache_dir)
    target.mkdir()
    for file in cache_folder(source, GRID, cache_dir).iterdir():
        os.link(file, target / file.name)


def run_epoch(folder: Path, n: int, num_workers: int) -> str:
    """Windows per second of an epoch over `n` scans; peak memory of this process before and after, and of a worker."""
    cases = cases_in(folder, n)
    regions = {case.name: [REGION] for case in cases}
    before, workers = peak_mib("self"), [0]
    data = SegmentationDataModule(cases, cases[:1], regions, GRID, ROI_SIZE, folder / "cache", 8, num_workers)
    start, seen = time.perf_counter(), 0
    for batch in data.train_dataloader():
        seen += len(batch["image"])
        workers += [peak_mib(process.pid) for process in multiprocessing.active_children()]
    rate = seen / (time.perf_counter() - start)
    return f"{seen:6} {num_workers:8} {rate:10.1f} {before:10} {peak_mib('self'):9} {max(workers):11}"


def peak_mib(process: int | str) -> int:
    """The largest resident set that a process has had; libraries shared with others are counted too."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) >> 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", nargs=3, default=None, help=argparse.SUPPRESS)  # folder, scans, workers
    row = parser.parse_args().row
    if row:
        print(run_epoch(Path(row[0]), int(row[1]), int(row[2])))
        return
    with tempfile.TemporaryDirectory() as folder:
        simulate(max(COHORTS), Path(folder))
        print(" scans  workers  windows/s  start MiB  peak MiB  worker MiB", flush=True)
        for n in COHORTS:
            for num_workers in (0, 2):
                subprocess.run([sys.executable, __file__, "--row", folder, str(n), str(num_workers)], check=True)


if __name__ == "__main__":
    main()
