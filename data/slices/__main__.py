"""Cut 3D scans and masks into the 2D folders that the RPN scripts read: ``python -m data.slices``."""

from dataclasses import dataclass, replace
from pathlib import Path

from data.batches.cutting import cut_cohort
from data.batches.slices import SOURCES_FILE, require_own_folder
from data.files.listing import counted
from data.scans.cohort import cases_in
from data.scans.fingerprints import PREPARATION_VERSION, fingerprint_cases
from data.scans.grid import grid_of
from data.scans.open import open_cohort
from data.settings import CohortFolders, TrainingGrid, workers_option
from utils import cli
from utils.files import require_writable, write_json
from utils.provenance import describe_run
from utils.settings import option
from utils.validators import pathname


@dataclass(frozen=True)
class Settings:
    """Slices."""

    cohort: CohortFolders = CohortFolders()
    grid: TrainingGrid = TrainingGrid()
    num_workers: int = workers_option()
    out_dir: str = option(pathname, "folder for Scans/, Masks/ and slices.csv", required=True)


parse_args = cli.parser_of(Settings(), "Cut 3D scans and masks into the 2D folders that the RPN scripts read.")


def main(settings: Settings) -> None:
    out_dir = Path(settings.out_dir)
    cases, grid = cases_in(settings.cohort), grid_of(settings.grid)
    cohort = open_cohort(cases, grid=grid, brains_dir=settings.cohort.brains_dir).with_spacing(settings.grid.spacing)
    cohort = replace(cohort, brains=out_dir / "cache")
    settings = replace(settings, grid=replace(settings.grid, spacing=cohort.grid.spacing_mm))
    require_writable(out_dir, "--out_dir")
    require_own_folder(out_dir)
    cohort.admit(settings.num_workers)
    (out_dir / "slices.csv").unlink(missing_ok=True)  # first: an earlier cut must not pass for one of these scans
    fingerprint_cases(cohort.cases, out_dir / SOURCES_FILE, settings.num_workers)
    write_json(out_dir / "run.json", {**describe_run(settings), "inputs": {"preparation": PREPARATION_VERSION}})
    table = cut_cohort(cohort.cases, cohort.grid, cohort.prepare, out_dir, settings.num_workers)
    print(f"Cut into {out_dir}: {counted(len(table), 'slice')} of {counted(len(cohort.cases), 'scan')}")


if __name__ == "__main__":
    cli.run(main, parse_args)
