"""Evaluation of stage 2 on whole volumes: scores into CSV tables, predictions and pictures into a folder."""

from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from data.checks import read_mask
from data.cohort import Case
from data.names import PREDICTION_SUFFIX, extension_of, stem_of
from data.prepared import PreparedScan
from data.space import resample
from data.volumes import write_like
from models.gradcam import find_layers, gradcam
from models.strokeformer import StrokeFormer
from utils.files import update_table, write_json
from utils.metrics import scan_scores, scores_by_size, slice_scores
from utils.plots import pictures_per_scan, plot_gradcam, plot_volume_prediction, save_figure
from utils.progress import progress
from utils.provenance import describe_run
from utils.regions.region import Region, write_regions


def evaluate_strokeformer(
    model: StrokeFormer,
    cases: list[Case],
    scans: Iterable[PreparedScan],
    regions_of: Callable[[PreparedScan], list[Region]] | None,
    args: Namespace,
    name: str,
) -> dict[str, float] | None:
    """Segment scans and, where they have masks, score them; `args` carries the arguments of ``test_strokeformer.py``.

    Writes into ``<name>/`` below ``scores_dir``: predictions in the grid of each scan, pictures, regions, settings
    and, with ``target_layers``, Grad-CAM. Scores go into ``scores_file``, ``per_scan_scores.csv`` and
    ``per_size_scores_file``.

    Args:
        scans: the prepared scans of `cases`, in their order.
        regions_of: proposes the regions of a scan; None to segment whole volumes.

    Returns:
        Mean scores by column name of ``scores.csv``, or None without masks.
    """
    folder = Path(args.scores_dir) / name
    draw = _picture_maker(model, args, folder)
    drawn = pictures_per_scan(min(args.n_predictions, len(cases)), len(cases), args.seed)
    scored, all_regions = [], {}
    for case, scan, pictures in zip(progress(cases, f"Testing {name}"), scans, drawn, strict=True):
        regions = None if regions_of is None else regions_of(scan)
        probabilities = model.segment(scan, regions, args.overlap, args.subvolume_depth, args.batch_size)
        prediction = scan.to_own_grid(probabilities).argmax(0).astype(np.uint8)
        write_like(folder / "predictions" / prediction_name(case), prediction, case.scan)
        if case.mask is not None:
            scored.append(_score_case(case, scan, prediction > 0))
        if pictures:
            draw(scan, probabilities.argmax(0) > 0, regions)
        all_regions[case.name] = regions
    if regions_of is not None:
        write_regions(folder / "regions.json", all_regions)
    write_json(folder / "run.json", describe_run(vars(args)))
    return _save_scores(args, name, *zip(*scored, strict=True)) if scored else None


def _score_case(case: Case, scan: PreparedScan, prediction: np.ndarray) -> tuple[dict, pd.DataFrame]:
    """A case's row of ``per_scan_scores.csv`` and the scores of its slices, on the scan's own grid."""
    target = read_mask(case)
    brain = resample(scan.brain[None], scan.space, scan.own)[0]
    row = {"scan": case.name, **scan_scores(prediction, target, scan.own_spacing_mm)}
    return row, slice_scores(prediction, target, brain)


def prediction_name(case: Case) -> str:
    return f"{case.stem}{PREDICTION_SUFFIX}{extension_of(case.scan)}"


def _picture_maker(model: StrokeFormer, args: Namespace, folder: Path):
    """A function (scan, prediction, regions) that draws the prediction and, where wanted, its Grad-CAM."""
    layers = find_layers(model, args.target_layers) if args.target_layers else None

    def draw(scan: PreparedScan, prediction: np.ndarray, regions: list[Region] | None) -> None:
        image, file = scan.scan[0].astype(np.float32), f"{stem_of(scan.name)}.png"
        figure = plot_volume_prediction(image, scan.mask, prediction, regions or [], scan.name)
        save_figure(figure, folder / "predictions" / file)
        if layers:
            heat = gradcam(model, scan, regions, layers, args.overlap)
            save_figure(plot_gradcam(image, heat, scan.mask, prediction, scan.name), folder / "gradcam" / file)

    return draw


def _save_scores(
    args: Namespace, name: str, per_scan: tuple[dict, ...], per_slice: tuple[pd.DataFrame, ...]
) -> dict[str, float]:
    table = pd.DataFrame(list(per_scan))
    means = table.drop(columns="scan").mean().to_dict()
    _save_row(args, name, args.scores_file, means)
    table.insert(0, "model_name", name)
    update_table(Path(args.scores_dir) / "per_scan_scores.csv", table)
    by_size = scores_by_size(pd.concat(per_slice, ignore_index=True))
    by_size.insert(0, "model_name", name)
    update_table(Path(args.scores_dir) / args.per_size_scores_file, by_size)
    return means


def _save_row(args: Namespace, name: str, file: str, scores: dict[str, float]) -> None:
    update_table(Path(args.scores_dir) / file, pd.DataFrame([{"model_name": name, **scores}]))
