"""Make new training scans: ``python -m augmentation --scans_dir DIR --masks_dir DIR --out_dir data/Augmented``."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from augmentation.cohort import index_cohort
from augmentation.transfer import TransferSettings
from data.files.volumes import read_header
from data.scans.checks import require_one_grid
from data.scans.cohort import cases_in, refuse_augmented
from data.scans.fingerprints import fingerprint_cases
from data.scans.grid import Grid
from data.scans.open import open_cohort
from data.settings import CohortFolders, augmented_option, workers_option
from utils import cli
from utils.errors import UserError
from utils.files import require_writable
from utils.provenance import open_run
from utils.settings import option
from utils.validators import positive_int

BYTES_PER_VOXEL = 5  # float32 scan and uint8 mask


@dataclass(frozen=True)
class Settings:
    """Augmented scans."""

    cohort: CohortFolders = CohortFolders()
    transfer: TransferSettings = TransferSettings()
    copies: int = option(positive_int, "augmented scans of each scan", 1)
    out_dir: str = augmented_option("folder for")
    num_workers: int = workers_option()


parse_args = cli.parser_of(
    Settings(), "Make new training scans by moving lesions between subjects with Poisson image editing."
)


def main(settings: Settings) -> None:
    from augmentation.output import draw_contact_sheet, write_all

    folders, out_dir, workers = settings.cohort, Path(settings.out_dir), settings.num_workers
    cases = cases_in(folders)
    refuse_augmented(cases, "--scans_dir")
    if len({case.subject for case in cases}) < 2:
        raise UserError(f"--scans_dir {folders.scans_dir} holds one subject; lesions are moved between two or more")
    grid = Grid(read_header(cases[0].scan).shape)
    cohort = open_cohort(cases, grid=grid, brains_dir=folders.brains_dir)
    require_one_grid(cohort.cases)
    made = settings.copies * BYTES_PER_VOXEL * int(np.prod(grid.shape))
    require_writable(out_dir, "--out_dir", len(cohort.cases) * (grid.bytes_per_scan + made))
    cohort = cohort.cached_in(out_dir / "cache", "--out_dir")
    cohort.admit(workers)
    open_run(out_dir, settings)
    digests = fingerprint_cases(cohort.cases, out_dir / "sources.json", workers)
    lenders = index_cohort(cohort, workers)
    write_all(lenders, digests, settings.transfer, settings.copies, out_dir, workers)
    draw_contact_sheet(lenders, out_dir)


if __name__ == "__main__":
    cli.run(main, parse_args)
