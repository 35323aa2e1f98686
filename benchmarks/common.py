"""What the benchmarks share: synthetic cohorts, the project's scripts, and what is measured and printed.

Importing it puts the project on the path, so that ``python benchmarks/NAME.py`` runs from any folder.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from data.scans.cohort import Case, pair_cases
from data.scans.folds import Fold, write_folds
from data.scans.grid import Grid
from data.scans.open import Cohort, open_cohort
from utils.scores.masks import count_overlap, overlap_scores

SHIFT = ["--warp_mm", 5, "--lesion_contrast", 0.8]  # of cohorts unlike those for training
STAGE_1, STAGE_2 = "RPN", "StrokeFormer"


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that takes the folder of the results; its help is the script's docstring."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out_dir", type=lambda path: Path(path).absolute(), required=True)
    return parser


def run(*command) -> None:
    """Run a script of the project, or a module where the first word is ``-m``."""
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)


def draw(folder: Path, seed: int, n_subjects: int, *more, spacing_mm: Sequence[float] = (2,)) -> list[Case]:
    """The cases of a synthetic cohort with `more` arguments of ``data.phantom``; what is drawn already stays."""
    size = ["--n_subjects", n_subjects, "--seed", seed, "--spacing", *spacing_mm]
    run("-m", "data.phantom", "--out_dir", folder, "--num_workers", 2, *size, *more)
    return pair_cases([folder / "Scans"], [folder / "Masks"])


def link(path: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        place.symlink_to(path.absolute())


def opened(folder: Path, grid: Grid, brains_dir: list[Path] | None = None) -> Cohort:
    """A cohort whose scans are prepared in its folder ``cache``."""
    cases = pair_cases([folder / "Scans"], [folder / "Masks"])
    return open_cohort(cases, grid=grid, brains_dir=brains_dir).cached_in(folder / "cache", "--out_dir")


def cross_validate(folder: Path, cohort: Path, fold: Fold, name: str, seed: int, *more) -> None:
    """Train and test both stages on a fold of a cohort, with `more` arguments of ``cross_validation.py``."""
    write_folds(folder / "folds.json", [fold])
    run(
        *["cross_validation.py", *more, "--num_workers", 0, "--offline", "--seed", seed],
        *["--folds", folder / "folds.json", "--model_prefix", name, "--rpn_model_prefix", name],
        *["--scans_dir", cohort / "Scans", "--masks_dir", cohort / "Masks", "--ext", ".nii.gz"],
        *["--default_root_dir", folder / STAGE_2, "--rpn_default_root_dir", folder / STAGE_1],
        *["--scores_dir", folder / "scores", "--rpn_scores_dir", folder / "rpn_scores"],
    )


def checkpoint_of(folder: Path, stage: str, name: str) -> Path:
    """That of `STAGE_1` or `STAGE_2` after `cross_validate`."""
    return folder / stage / f"{name}_fold-0/checkpoints/best.ckpt"


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


def print_looks(file: Path, *what: str) -> None:
    """Note a look at the real scans, and print how many there have been."""
    with file.open("a") as looks:
        looks.write(f"{','.join([f'{datetime.now():%Y-%m-%d %H:%M}', *what])}\n")
    print(f"The real scans have been looked at {len(file.read_text().splitlines())} times")


def print_markdown(rows: list[dict]) -> None:
    """Print a table; a row may lack some of the columns."""
    columns = list({column: None for row in rows for column in row})
    for cells in (columns, ["---"] * len(columns), *([row.get(column, "") for column in columns] for row in rows)):
        print(f"| {' | '.join(map(str, cells))} |")
