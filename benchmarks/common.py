"""What the benchmarks share: synthetic cohorts, the project's scripts, and what is measured and printed.

Importing it puts the project on the path, so that ``python benchmarks/NAME.py`` runs from any folder.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from data.scans.cohort import Case, pair_cases
from data.scans.grid import Grid
from data.scans.open import Cohort, open_cohort
from data.scans.prepared import PreparedScan
from utils.regions.region import Region, expand_region, region_of
from utils.scores.masks import TWENTY_SIX_CONNECTED, count_overlap, overlap_scores

SPACING_MM = 2
GRID = Grid((1, 94, 98, 116), spacing_mm=(float(SPACING_MM),) * 3)
ROI_SIZE = (32, 32, 32)  # 64 mm, as the default of 64 voxels at 1 mm
SCAN_DIM, ROI = ["--scan_dim", *GRID.scan_dim], ["--roi_size", *ROI_SIZE]
N_TRAIN, N_VAL = 40, 10
SHIFT = ["--warp_mm", 5, "--lesion_contrast", 0.8]  # of cohorts unlike those for training


def run(*command) -> None:
    """Run a script of the project, or a module where the first word is ``-m``."""
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)


# --- cohorts -------------------------------------------------------------------------------------------


def draw(folder: Path, seed: int, n_subjects: int, *more, spacing_mm: Sequence[float] = (SPACING_MM,)) -> list[Case]:
    """The cases of a synthetic cohort with `more` arguments of ``data.phantom``; what is drawn already stays."""
    size = ["--n_subjects", n_subjects, "--seed", seed, "--spacing", *spacing_mm]
    run("-m", "data.phantom", "--out_dir", folder, "--num_workers", 2, *size, *more)
    return pair_cases([folder / "Scans"], [folder / "Masks"])


def draw_development(out_dir: Path, seed: int) -> None:
    """The cohorts ``train`` and ``val``: the two parts of one, as links."""
    cases = draw(out_dir / "development", seed, N_TRAIN + N_VAL)
    for part, own in (("train", cases[:N_TRAIN]), ("val", cases[N_TRAIN:])):
        for path in [path for case in own for path in (case.scan, case.mask)]:
            link(path, out_dir / part / path.parent.name / path.name)
        link(out_dir / "development/cohort.csv", out_dir / part / "cohort.csv")


def link(path: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        place.symlink_to(path.absolute())


def cut(folder: Path) -> Path:
    """The folder of the 2D slices of a cohort."""
    if not (folder / "slices/slices.csv").exists():
        cohort = ["--scans_dir", folder / "Scans", "--masks_dir", folder / "Masks"]
        run("-m", "data.slices", *cohort, *SCAN_DIM, "--out_dir", folder / "slices")
    return folder / "slices"


def opened(folder: Path, grid: Grid = GRID, brains_dir: list[Path] | None = None) -> Cohort:
    """A cohort whose scans are prepared in its folder ``cache``."""
    cases = pair_cases([folder / "Scans"], [folder / "Masks"])
    return open_cohort(cases, grid=grid, brains_dir=brains_dir).cached_in(folder / "cache", "--out_dir")


def training_data(train: Path, val: Path) -> list:
    """Arguments of a training of slices or of volumes, which lie in ``Scans`` and ``Masks`` of two folders."""
    parts = {"train": train, "val": val}
    return [
        word
        for part, folder in parts.items()
        for kind in ("Scans", "Masks")
        for word in (f"--{part}_{kind.lower()}", folder / kind)
    ]


def true_regions(scan: PreparedScan, roi_size: tuple[int, int, int] = ROI_SIZE) -> list[Region]:
    """Regions of the RoI's size about each lesion."""
    from scipy.ndimage import find_objects, label

    places = find_objects(label(scan.mask & scan.brain, TWENTY_SIX_CONNECTED)[0])
    return [expand_region(region_of(place), roi_size, scan.brain.shape) for place in places]


# --- measures ------------------------------------------------------------------------------------------


def timed(step: str, seconds: dict, work: Callable):
    """What `work` returns; the seconds that it took go into a dict."""
    started = time.perf_counter()
    result = work()
    seconds[step] = time.perf_counter() - started
    return result


def processor_seconds() -> float:
    """Of this process and of those that it ran."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_memory_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(overlap_scores(*count_overlap(one, other), 0)["dice"])


def print_markdown(rows: list[dict]) -> None:
    """Print a table; a row may lack some of the columns."""
    columns = list({column: None for row in rows for column in row})
    for cells in (columns, ["---"] * len(columns), *([row.get(column, "") for column in columns] for row in rows)):
        print(f"| {' | '.join(map(str, cells))} |")
