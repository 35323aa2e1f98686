"""Bring a data set onto one grid: ``python -m data.prepare --dataset atlas --root DIR --out_dir DIR``."""

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from data.files.listing import Patterns, counted
from data.files.space import Shape, Spacing
from data.prepare.cohort import PreparedGrid, attempt_all, prepare_case, record_path, remove_prepared
from data.prepare.layouts import LAYOUTS, check_headers, choose_layout, find_cases, fit_brain, shape_for, spacing_for
from data.scans.brain import print_heads
from data.scans.checks import print_numbered
from data.scans.cohort import Case
from data.scans.fingerprints import fingerprint_cases
from data.scans.grid import print_worst
from data.scans.groups import CENTRE, centre_of_name
from data.scans.prepared import brains_in
from data.settings import brains_option, extension_option, pattern_option, shape_option, spacing_option, workers_option
from utils import cli
from utils.errors import UserError
from utils.files import require_writable, write_csv
from utils.provenance import open_run
from utils.settings import MAY_DIFFER, option
from utils.validators import pathname

OUT_DIR = "data/ATLAS_2/Processed/Base"  # of ATLAS
BYTES_PER_VOXEL = 6  # float32 scan, uint8 lesion and brain masks
LOST = 0.05  # of a lesion, to the grid or a coarse spacing, from which on a line is printed


@dataclass(frozen=True)
class Settings:
    """Data set."""

    dataset: str = option(
        str,
        "layout of the files: of a data set as published, or bids for any other folder",
        required=True,
        choices=tuple(LAYOUTS),
    )
    root: str = option(pathname, "folder of the data set as it was unpacked", required=True)
    scan_pattern: str | None = pattern_option("scan", "--root", "with --dataset bids: ")
    mask_pattern: str | None = pattern_option("mask", "--root", "with --dataset bids: ")
    out_dir: str | None = option(
        pathname,
        f"folder for Scans/, Masks/, Brains/, cohort.csv, cohort.png and Geometry/; by default {OUT_DIR} with atlas",
        on_resume=MAY_DIFFER,
    )
    brains_dir: tuple[str, ...] | None = brains_option()
    scan_dim: tuple[int, int, int, int] | None = shape_option(
        "; by default the data set's own, or what holds every brain (bids)"
    )
    spacing: tuple[float, float, float] | None = spacing_option(
        "; by default the data set's own, or the median of the masks (bids)"
    )
    ext: str = extension_option()
    num_workers: int = workers_option()


parse_args = cli.parser_of(
    Settings(), "Prepare ATLAS v2.0 or v3.0, ISLES 2022 or any folder of scans: one grid, a table, pictures."
)


def main(settings: Settings) -> None:
    from data.prepare.overview import draw_overview

    layout = choose_layout(settings.dataset, Patterns(settings.scan_pattern, settings.mask_pattern))
    if settings.out_dir is None and settings.dataset != "atlas":
        raise UserError(f"--out_dir is missing: --dataset {settings.dataset} has no default; name a folder")
    root, out_dir = Path(settings.root).absolute(), Path(settings.out_dir or OUT_DIR)
    settings = replace(settings, root=str(root))
    cases = find_cases(root, layout, out_dir, settings.brains_dir)
    scan_dim = settings.scan_dim or layout.scan_dim
    channels = check_headers(cases, layout, scan_dim and scan_dim[0])
    require_writable(out_dir, "--out_dir")
    open_run(out_dir, settings, begun=any(out_dir.glob("Geometry/*.json")))
    spacing_mm = spacing_for(cases, layout, settings.spacing)
    if absent := set((out_dir / "Geometry").glob("*.json")) - {record_path(case.scan, out_dir) for case in cases}:
        for record in absent:
            remove_prepared(record, out_dir)
        print(f"No longer in {root}: {counted(len(absent), 'scan')}; the prepared files were removed from {out_dir}")
    table = prepare(cases, scan_dim and scan_dim[1:], spacing_mm, channels, settings, out_dir)
    draw_overview(table, out_dir)
    write_csv(out_dir / "cohort.csv", table)
    lost = 1 - table.lesion_cm3 / table.source_lesion_cm3
    line = "{name} lost {share:.0%} of its lesions to the grid or its spacing{more}; see source_lesion_cm3"
    print_worst(dict(zip(table.scan, lost, strict=True)), LOST, line)
    print(f"Prepared in {out_dir}: {counted(len(table), 'scan')}; look at {out_dir / 'cohort.png'}")


def prepare(
    cases: list[Case], shape: Shape | None, spacing_mm: Spacing, channels: int, settings: Settings, out_dir: Path
) -> pd.DataFrame:
    """Prepare all cases on a grid of a shape or, without one, of that which holds every brain; ``cohort.csv``.

    Cases that cannot be read are refused once all others have been prepared.
    """
    look = partial(fit_brain, shape=shape, spacing_mm=spacing_mm, brains=brains_in(out_dir / "cache"))
    fits, unread = attempt_all(look, cases, "Finding brains", settings.num_workers)
    if not fits:
        raise UserError(f"{unread[0]} ({len(unread)} of {len(cases)} scans refused)")
    print_numbered({case.mask.name: fit.labels for case, fit in fits.items() if case.mask})
    grid = PreparedGrid(shape_for(fits, shape, channels), spacing_mm, settings.ext)
    require_writable(out_dir, "--out_dir", len(fits) * math.prod(grid.shape) * BYTES_PER_VOXEL)
    digests = fingerprint_cases(fits, out_dir / "sources.json")
    work = partial(prepare_case, digests=digests, grid=grid, root=Path(settings.root), out_dir=out_dir)
    rows, unprepared = attempt_all(work, list(fits), "Preparing scans", settings.num_workers)
    if refused := unread + unprepared:
        raise UserError(f"{refused[0]} ({len(refused)} of {len(cases)} scans refused, the others are prepared)")
    print_heads([case for case, row in rows.items() if row["brain"] == "head"])
    return pd.DataFrame([{**row, CENTRE: centre_of_name(case)} for case, row in rows.items()])


if __name__ == "__main__":
    cli.run(main, parse_args)
