"""Segment 3D scans with an exported model: onnxruntime, NumPy, SciPy and nibabel are all that it needs."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.settings import Loading, brains_option, shape_option
from models.segmentation.settings import contrast_option
from utils import cli
from utils.files import atomic_path, require_writable, write_json
from utils.settings import option
from utils.validators import non_negative_int, pathname

PACKAGES = ("onnxruntime", "numpy", "scipy", "nibabel")


@dataclass(frozen=True)
class Settings:
    """Model and scans."""

    model: str = option(pathname, "folder that python -m models.export wrote", required=True)
    scans: tuple[str, ...] = option(
        pathname, "scans or folders of scans (.npy, .nii, .nii.gz)", required=True, nargs="+"
    )
    out_dir: str = option(pathname, "folder of predictions/, regions.json and volumes.csv", required=True)
    brains_dir: tuple[str, ...] | None = brains_option()
    scan_dim: tuple[int, int, int, int] | None = shape_option("; by default that of the model")
    contrast: str | None = contrast_option()
    loading: Loading = Loading()
    num_threads: int = option(non_negative_int, "threads of onnxruntime; 0 for one a core", 0)
    probabilities: bool = option(None, "write the lesion probability of each voxel", False)


def parse_args(argv: Sequence[str] | None = None) -> Settings:
    return cli.parse(Settings(), __doc__, argv)


def main(settings: Settings) -> None:
    from models.export.exported import read_model
    from models.pipeline import TwoStage
    from models.segmentation.settings import SlidingWindow
    from runner.model import load_runner
    from utils.provenance import describe_run

    model = read_model(settings.model)
    cohort = open_scans(settings, model.grid)
    runner = load_runner(settings.model, model, settings.num_threads)
    cohort = cohort.on(cohort.grid, model.contrast, settings.model, settings.contrast)
    cohort.admit(settings.loading.num_workers)
    sliding = SlidingWindow(overlap=model.stage_2.overlap, subvolume_depth=model.stage_2.subvolume_depth)
    segment_cohort(cohort, TwoStage(runner, runner.propose, sliding, settings.loading.batch_size), settings)
    record = {**describe_run(settings, PACKAGES), "inputs": {"model": model.digests}}
    write_json(Path(settings.out_dir) / "run.json", record)
    print(f"Results are in {settings.out_dir}")


def open_scans(settings: Settings, grid):
    """The cohort on the grid of a model, once all headers and the output folder have been checked."""
    from data.scans.cohort import pair_cases
    from data.scans.open import open_cohort

    grid = replace(grid, scan_dim=settings.scan_dim or grid.scan_dim)
    cohort = open_cohort(pair_cases(settings.scans, None), grid=grid, brains_dir=settings.brains_dir)
    require_writable(settings.out_dir, "--out_dir")
    return replace(cohort, brains=Path(settings.out_dir) / "brains")


def segment_cohort(cohort, pipeline, settings: Settings) -> None:
    """Segment scans; writes predictions, regions and volumes (docs/handover.md) into ``out_dir``."""
    from data.files.names import result_name
    from data.files.volumes import write_like
    from utils.progress import progress
    from utils.regions.region import lying_on, write_regions
    from utils.scores.masks import lesion_load

    folder, rows, regions = Path(settings.out_dir), [], {}
    for case in progress(cohort.cases, "Segmenting"):
        scan = cohort.prepare(case)
        prediction = pipeline.predict(scan)
        regions[case.name] = lying_on(prediction.regions, scan.space.as_json)
        write_like(folder / "predictions" / result_name(case.scan, "prediction"), prediction.classes, case.scan)
        if settings.probabilities:
            path = folder / "probabilities" / result_name(case.scan, "probability")
            write_like(path, prediction.lesion_probability, case.scan)
        n_lesions, cm3 = lesion_load(prediction.lesions, scan.own_spacing_mm)
        rows.append((case.name, n_lesions, "" if math.isnan(cm3) else cm3))  # NaN where the voxel size is unknown
    write_regions(folder / "regions.json", regions)
    with atomic_path(folder / "volumes.csv") as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["scan", "predicted_lesions", "predicted_cm3"])
        table.writerows(rows)


if __name__ == "__main__":
    cli.run(main, parse_args)
