"""Segment 3D scans with a model that comes with this program, or with another exported one; no PyTorch is needed."""

import csv
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from data.settings import Loading, brains_option, shape_option
from models.segmentation.settings import contrast_option
from utils import cli
from utils.files import atomic_path, require_writable, write_json
from utils.settings import option
from utils.validators import non_negative_int, pathname

PACKAGES = ("onnxruntime", "numpy", "scipy", "nibabel", "matplotlib")


@dataclass(frozen=True)
class Settings:
    """Model and scans."""

    model: str | None = option(
        pathname,
        "folder that python -m models.export wrote; by default the one in pretrained/ of the contrast of the scans",
    )
    scans: tuple[str, ...] = option(
        pathname, "scans or folders of scans (.npy, .nii, .nii.gz)", required=True, nargs="+"
    )
    out_dir: str = option(pathname, "folder of the results", required=True)
    brains_dir: tuple[str, ...] | None = brains_option()
    scan_dim: tuple[int, int, int, int] | None = shape_option("; by default that of the model")
    contrast: str | None = contrast_option()
    loading: Loading = Loading()
    num_threads: int = option(non_negative_int, "threads of onnxruntime; 0 for one a core", 0)


parse_args = cli.parser_of(Settings(), __doc__)


def main(settings: Settings) -> None:
    from data.scans.cohort import pair_cases
    from data.scans.contrast import common_contrast
    from models.export.exported import read_model, shipped_model
    from models.pipeline import TwoStage
    from models.segmentation.settings import SlidingWindow
    from runner.model import load_runner
    from utils.provenance import describe_run

    cases = pair_cases(settings.scans, None)
    folder = settings.model or shipped_model(settings.contrast or common_contrast(case.name for case in cases))
    model = read_model(folder)
    cohort = open_scans(settings, cases, model.grid)
    runner = load_runner(folder, model, settings.num_threads)
    cohort = cohort.on(cohort.grid, model.contrast, folder, settings.contrast)
    cohort.admit(settings.loading.num_workers)
    sliding = SlidingWindow(overlap=model.stage_2.overlap, subvolume_depth=model.stage_2.subvolume_depth)
    segment_cohort(cohort, TwoStage(runner, runner.propose, sliding, settings.loading.batch_size), settings)
    record = {**describe_run(settings, PACKAGES), "inputs": {"model": model.digests}}
    write_json(Path(settings.out_dir) / "run.json", record)
    write_report(cohort.cases, Path(settings.out_dir))
    print(f"Results are in {settings.out_dir}")
    if settings.model is None:
        print("Each is a draft by a network that has never seen a patient, only drawn heads: look at every scan")


def open_scans(settings: Settings, cases, grid):
    """The cohort on the grid of a model, once all headers and the output folder have been checked."""
    from data.scans.open import open_cohort

    grid = replace(grid, scan_dim=settings.scan_dim or grid.scan_dim)
    cohort = open_cohort(cases, grid=grid, brains_dir=settings.brains_dir)
    require_writable(settings.out_dir, "--out_dir")
    return replace(cohort, brains=Path(settings.out_dir) / "brains")


def segment_cohort(cohort, pipeline, settings: Settings) -> None:
    """Segment scans; writes all results but ``run.json`` (docs/handover.md) into ``out_dir``, beside others' there."""
    from utils.progress import progress
    from utils.regions.region import lying_on, read_regions, write_regions

    folder = Path(settings.out_dir)
    volumes, boxes = folder / "volumes.csv", folder / "regions.json"
    rows, regions = read_volumes(volumes), read_regions(boxes) if boxes.is_file() else {}
    for case in progress(cohort.cases, "Segmenting"):
        prediction = pipeline.predict(cohort.prepare(case))
        regions[case.name] = lying_on(prediction.regions, prediction.scan.space.as_json)
        write_volumes(folder, case, prediction)
        rows[case.name] = volumes_row(prediction)
    write_regions(boxes, regions)
    with atomic_path(volumes) as temporary, temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[cohort.cases[0].name], extrasaction="ignore")
        table.writeheader()
        table.writerows(rows.values())


def read_volumes(path: Path) -> dict[str, dict]:
    """The rows of ``volumes.csv`` by the names of their scans, none where there is no such file."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {row["scan"]: row for row in csv.DictReader(file) if "scan" in row}


def write_volumes(folder: Path, case, prediction) -> None:
    """Write mask and probability in the scan's format, and a picture."""
    from data.files.names import result_name
    from data.files.volumes import write_like
    from utils.plots import save_figure

    write_like(folder / "predictions" / result_name(case.scan, "prediction"), prediction.classes, case.scan)
    write_like(
        folder / "probabilities" / result_name(case.scan, "probability"), prediction.lesion_probability, case.scan
    )
    save_figure(prediction.picture(), folder / "predictions" / f"{case.stem}.png")


def write_report(cases, folder: Path) -> None:
    """Write a page with views to move in where pandas, jinja2 and nilearn, of requirements.txt, are installed."""
    if all(map(find_spec, ("pandas", "jinja2", "nilearn"))):
        from report.drafts import report_drafts

        report_drafts(cases, folder)


def volumes_row(prediction) -> dict[str, object]:
    """A row of ``volumes.csv``; what is unknown, NaN, is empty."""
    import numpy as np

    from data.scans.symmetry import midsagittal_plane, mm_right_of, side_of
    from utils.scores.masks import lesion_load

    scan, lesions = prediction.scan, prediction.lesions
    n_lesions, cm3 = lesion_load(lesions, scan.own_spacing_mm)
    side = side_of(mm_right_of(midsagittal_plane(scan.brain, scan.space), np.argwhere(lesions), scan.own))
    row = {"scan": scan.name, "predicted_lesions": n_lesions, "predicted_cm3": cm3, "side": side}
    return {name: "" if value != value else value for name, value in row.items()}


if __name__ == "__main__":
    cli.run(main, parse_args)
