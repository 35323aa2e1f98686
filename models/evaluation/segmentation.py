"""Evaluation of stage 2 on whole volumes: scores into CSV tables, predictions and pictures into a folder."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data.files.names import result_name
from data.files.space import resample
from data.files.volumes import write_like
from data.scans.checks import read_mask
from data.scans.cohort import Case
from data.scans.prepared import PreparedScan
from models.evaluation.gradcam import find_layers
from models.evaluation.maps import MapWriter
from models.evaluation.settings import Outputs
from models.pipeline import Prediction, TwoStage
from utils.files import STAGE_2_TABLES, intervals_file
from utils.plots import pictures_per_scan, plot_volume_prediction, save_figure
from utils.progress import progress
from utils.regions.region import write_regions
from utils.scores.components import lesion_load
from utils.scores.intervals import Estimate, interval_rows, means, ratios
from utils.scores.lesions import lesion_rows
from utils.scores.metrics import SIZE_BINS, scan_scores, scores_by_size, slice_scores
from utils.scores.overlap import OVERLAP_SCORES

Writer = Callable[[Case, Prediction], None]
PER_SCAN_FILE, PER_LESION_FILE, VOLUMES_FILE = STAGE_2_TABLES


@dataclass(frozen=True)
class CaseScores:
    """What is measured of a case on its own grid: by `scan_scores`, `lesion_rows` and `slice_scores`."""

    scores: dict[str, float]
    lesions: pd.DataFrame
    slices: pd.DataFrame


def evaluate_strokeformer(
    pipeline: TwoStage,
    cases: list[Case],
    scans: Iterable[PreparedScan],
    name: str,
    outputs: Outputs,
    seed: int,
    keep: Writer | None = None,
) -> dict[str, Estimate] | None:
    """Segment scans and, where they have masks, score them; writes what docs/outputs.md lists.

    Args:
        scans: the prepared scans of `cases`, in their order.
        seed: of the choice of pictures and of the intervals.
        keep: is given each case with its prediction.

    Returns:
        Mean scores by column name of ``scores.csv``, or None without masks.
    """
    folder = Path(outputs.scores_dir) / name
    maps = MapWriter(pipeline, outputs, folder)
    layers = find_layers(pipeline.segmenter, outputs.target_layers)
    drawn = pictures_per_scan(min(outputs.n_predictions, len(cases)), len(cases), seed)
    volumes, regions = {}, {}
    scored: dict[str, CaseScores] = {}
    for case, scan, pictures in zip(progress(cases, f"Testing {name}"), scans, drawn, strict=True):
        prediction = pipeline.predict(scan)
        write_like(folder / "predictions" / result_name(case.scan, "prediction"), prediction.classes, case.scan)
        maps.write(case, prediction)
        if keep:
            keep(case, prediction)
        target = None if case.mask is None else read_mask(case)
        volumes[case.name] = _volumes(prediction.lesions, target, scan.own_spacing_mm)
        if target is not None:
            scored[case.name] = _score_case(scan, prediction.lesions, target)
        if pictures:
            _draw(case.stem, prediction, folder / "predictions")
        if pictures and layers:
            maps.write_gradcam(case, prediction, layers)
        regions[case.name] = prediction.regions or []
    if pipeline.regions_of is not None:
        write_regions(folder / "regions.json", regions)
    outputs.update(name, {VOLUMES_FILE: _by_scan(volumes)})
    return _save_scores(outputs, name, scored, seed) if scored else None


def _volumes(prediction: np.ndarray, target: np.ndarray | None, spacing_mm: tuple[float, float, float] | None) -> dict:
    """A case's row of `VOLUMES_FILE`: number and cm3 of the predicted lesions and, with a mask, of the true ones."""
    row: dict[str, object] = {}
    for whose, mask in (("predicted", prediction), ("true", target)):
        load = (pd.NA, np.nan) if mask is None else lesion_load(mask, spacing_mm)
        row[f"{whose}_lesions"], row[f"{whose}_cm3"] = load
    return row


def _score_case(scan: PreparedScan, prediction: np.ndarray, target: np.ndarray) -> CaseScores:
    brain = resample(scan.brain[None], scan.space, scan.own)[0]
    return CaseScores(
        scan_scores(prediction, target, scan.own_spacing_mm),
        lesion_rows(prediction, target, scan.own_spacing_mm, scan.own.affine),
        slice_scores(prediction, target, brain),
    )


def _by_scan(rows: dict[str, dict]) -> pd.DataFrame:
    """A table of the rows of each scan by its name, which is the column ``scan``."""
    return pd.DataFrame([{"scan": scan, **row} for scan, row in rows.items()])


def _draw(file: str, prediction: Prediction, folder: Path) -> None:
    scan, lesions, regions = prediction.scan, prediction.lesions_on_grid, prediction.regions or []
    image = scan.scan[0].astype(np.float32)
    save_figure(plot_volume_prediction(image, scan.mask, lesions, regions, scan.name), folder / f"{file}.png")


def _save_scores(outputs: Outputs, name: str, scored: dict[str, CaseScores], seed: int) -> dict[str, Estimate]:
    per_scan = _by_scan({scan: case.scores for scan, case in scored.items()})
    per_lesion, per_slice = (
        pd.concat([getattr(case, part).assign(scan=scan) for scan, case in scored.items()], ignore_index=True)
        for part in ("lesions", "slices")
    )
    per_lesion.insert(0, "scan", per_lesion.pop("scan"))
    estimates = means(per_scan.drop(columns="scan"), seed)
    tables = {
        outputs.scores_file: pd.DataFrame([{score: estimate.mean for score, estimate in estimates.items()}]),
        intervals_file(outputs.scores_file): pd.concat([interval_rows(estimates), _size_intervals(per_slice, seed)]),
        PER_SCAN_FILE: per_scan,
        PER_LESION_FILE: per_lesion,
        outputs.per_size_scores_file: scores_by_size(per_slice),
    }
    outputs.update(name, tables)
    return estimates


def _size_intervals(per_slice: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Intervals of the means over the slices of each size; the slices of a scan are drawn together."""
    rows = []
    for size in SIZE_BINS:
        by_scan = per_slice[per_slice["size"] == size].groupby("scan")[list(OVERLAP_SCORES)]
        rows.append(interval_rows(ratios(by_scan.sum(), by_scan.count(), seed), size))
    return pd.concat(rows)
