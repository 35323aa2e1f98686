"""Evaluation of stage 2 on whole volumes: scores into CSV tables, predictions and pictures into a folder."""

from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data.files.names import result_name, stem_of
from data.files.space import resample
from data.files.volumes import write_like
from data.scans.checks import read_mask
from data.scans.cohort import Case
from data.scans.prepared import PreparedScan
from models.ensembles import StrokeFormerEnsemble
from models.evaluation.gradcam import find_layers, gradcam
from models.evaluation.maps import MapWriter
from models.segmentation.module import StrokeFormer
from models.segmentation.windows import seen_on_own_grid
from utils.files import STAGE_2_TABLES, intervals_file, update_table, write_json
from utils.plots import pictures_per_scan, plot_gradcam, plot_volume_prediction, save_figure
from utils.progress import progress
from utils.provenance import describe_run
from utils.regions.region import Region, seen_mask, write_regions
from utils.scores.components import lesion_load
from utils.scores.decision import lesion_probability
from utils.scores.intervals import Estimate, interval_rows, means, ratios
from utils.scores.lesions import lesion_rows
from utils.scores.metrics import SIZE_BINS, scan_scores, scores_by_size, slice_scores
from utils.scores.overlap import OVERLAP_SCORES

PER_SCAN_FILE, PER_LESION_FILE, VOLUMES_FILE = STAGE_2_TABLES


@dataclass(frozen=True)
class CaseScores:
    """What is measured of a case, on the scan's own grid.

    scores: all scores of `scan_scores`.
    lesions: rows of `lesion_rows`.
    slices: rows of `slice_scores`.
    """

    scores: dict[str, float]
    lesions: pd.DataFrame
    slices: pd.DataFrame


def evaluate_strokeformer(
    model: StrokeFormer | StrokeFormerEnsemble,
    cases: list[Case],
    scans: Iterable[PreparedScan],
    regions_of: Callable[[PreparedScan], list[Region]] | None,
    args: Namespace,
    name: str,
    keep: Callable[[Case, np.ndarray, np.ndarray], None] | None = None,
) -> dict[str, Estimate] | None:
    """Segment scans and, where they have masks, score them; `args` carries the arguments of ``test_strokeformer.py``.

    Writes into ``<name>/`` below ``scores_dir``: predictions in the grid of each scan, pictures, regions, settings
    and what ``target_layers``, ``probabilities`` and ``uncertainty`` ask for. Volumes go into `VOLUMES_FILE`; scores go
    into ``scores_file`` and the file of its intervals, ``per_size_scores_file``, `PER_SCAN_FILE` and `PER_LESION_FILE`.

    Args:
        scans: the prepared scans of `cases`, in their order.
        regions_of: proposes the regions of a scan; None to segment whole volumes.
        keep: is given each case with its lesions, bool, and their probability, (D, H, W) on the scan's own grid.

    Returns:
        Mean scores by column name of ``scores.csv``, or None without masks.
    """
    folder = Path(args.scores_dir) / name
    maps = MapWriter(model, args, folder)
    draw = _picture_maker(model, args, folder, maps)
    drawn = pictures_per_scan(min(args.n_predictions, len(cases)), len(cases), args.seed)
    volumes, scored, all_regions = {}, {}, {}
    for case, scan, pictures in zip(progress(cases, f"Testing {name}"), scans, drawn, strict=True):
        regions = None if regions_of is None else regions_of(scan)
        probabilities = model.segment(
            scan, regions, args.overlap, args.subvolume_depth, args.batch_size, args.flip_average
        )
        on_own_grid = scan.to_own_grid(probabilities)
        prediction = model.decision.classes(on_own_grid, scan.own.spacing_mm, seen_on_own_grid(scan, regions))
        write_like(folder / "predictions" / result_name(case.scan, "prediction"), prediction, case.scan)
        maps.write(case, scan, regions, probabilities, on_own_grid)
        if keep:
            keep(case, prediction > 0, lesion_probability(on_own_grid))
        target = None if case.mask is None else read_mask(case)
        volumes[case.name] = _volumes(prediction > 0, target, scan.own_spacing_mm)
        if target is not None:
            scored[case.name] = _score_case(scan, prediction > 0, target)
        if pictures:
            seen = seen_mask(regions, scan.brain.shape)
            draw(case, scan, model.decision.classes(probabilities, scan.space.spacing_mm, seen) > 0, regions)
        all_regions[case.name] = regions
    if regions_of is not None:
        write_regions(folder / "regions.json", all_regions)
    write_json(folder / "run.json", describe_run(vars(args)))
    update_table(Path(args.scores_dir) / VOLUMES_FILE, name, _by_scan(volumes))
    return _save_scores(args, name, scored) if scored else None


def _volumes(prediction: np.ndarray, target: np.ndarray | None, spacing_mm: tuple | None) -> dict:
    """A case's row of `VOLUMES_FILE`: number and cm3 of the predicted lesions and, with a mask, of the true ones."""
    row = {}
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


def _picture_maker(model: StrokeFormer | StrokeFormerEnsemble, args: Namespace, folder: Path, maps: MapWriter):
    """A function (case, scan, prediction, regions) that draws the prediction and, where wanted, its Grad-CAM.

    Grad-CAM is also written as a map.
    """
    layers = find_layers(model, args.target_layers)

    def draw(case: Case, scan: PreparedScan, prediction: np.ndarray, regions: list[Region] | None) -> None:
        image, file = scan.scan[0].astype(np.float32), f"{stem_of(scan.name)}.png"
        figure = plot_volume_prediction(image, scan.mask, prediction, regions or [], scan.name)
        save_figure(figure, folder / "predictions" / file)
        if layers:
            heat = gradcam(model, scan, regions, layers, args.overlap)
            save_figure(plot_gradcam(image, heat, scan.mask, prediction, scan.name), folder / "gradcam" / file)
            maps.write_gradcam(case, scan, heat)

    return draw


def _save_scores(args: Namespace, name: str, scored: dict[str, CaseScores]) -> dict[str, Estimate]:
    per_scan = _by_scan({scan: case.scores for scan, case in scored.items()})
    per_lesion, per_slice = (
        pd.concat([getattr(case, part).assign(scan=scan) for scan, case in scored.items()], ignore_index=True)
        for part in ("lesions", "slices")
    )
    per_lesion.insert(0, "scan", per_lesion.pop("scan"))
    estimates = means(per_scan.drop(columns="scan"), args.seed)
    tables = {
        args.scores_file: pd.DataFrame([{score: found.mean for score, found in estimates.items()}]),
        intervals_file(args.scores_file): pd.concat([interval_rows(estimates), _size_intervals(per_slice, args.seed)]),
        PER_SCAN_FILE: per_scan,
        PER_LESION_FILE: per_lesion,
        args.per_size_scores_file: scores_by_size(per_slice),
    }
    for file, table in tables.items():
        update_table(Path(args.scores_dir) / file, name, table)
    return estimates


def _size_intervals(per_slice: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Intervals of the means over the slices of each size; the slices of a scan are drawn together."""
    rows = []
    for size in SIZE_BINS:
        those = per_slice[per_slice["size"] == size].groupby("scan")[list(OVERLAP_SCORES)]
        rows.append(interval_rows(ratios(those.sum(), those.count(), seed), size))
    return pd.concat(rows)
