"""Evaluation of either stage on whole volumes: scores into CSV tables, predictions and pictures into a folder."""

from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from data.cohort import Case, read_mask
from data.grid import Grid, PreparedScan, grid_of
from data.slices import lesion_boxes
from data.volumes import extension_of, stem_of, write_like
from models.gradcam import find_layers, gradcam
from models.rpn import RPN
from models.strokeformer import DEFAULT_OVERLAP, StrokeFormer
from utils.files import update_table, write_json
from utils.metrics import (
    ProposalCounts,
    box_scores,
    count_proposals,
    proposal_scores,
    scan_scores,
    scores_by_size,
    slice_scores,
)
from utils.plots import plot_gradcam, plot_slice_boxes, plot_volume_prediction, save_figure
from utils.provenance import describe_run
from utils.regions import Region, region_mask, write_regions

# --- stage 1 -------------------------------------------------------------------------------------------


def evaluate_rpn(model: RPN, scans: Iterable[PreparedScan], total: int, args: Namespace, name: str) -> dict[str, float]:
    """Score the proposals of volumes with masks; `args` carries the arguments of ``test_rpn.py``.

    Writes a row of ``scores_file`` and, in ``<name>/`` below ``scores_dir``, regions, settings and pictures.

    Returns:
        The scores by column name of ``rpn_scores.csv``.
    """
    folder, drawn = Path(args.scores_dir) / name, pictures_per_scan(args.n_predictions, total, args.seed)
    counts, detections, targets, kept, all_regions = ProposalCounts(), [], [], [], {}
    for scan, pictures in zip(tqdm(scans, f"Testing {name}", total, unit="scan"), drawn, strict=True):
        found = model.detect_volume(scan, args.batch_size)
        regions = all_regions[scan.name] = model.propose(scan, found, tuple(args.roi_size))
        counts += count_proposals(region_mask(regions, scan.head.shape), scan.mask, scan.head)
        detections += found.values()
        proposing = model.keep(found)
        kept += [proposing.in_slice(z) for z in found]
        targets += [_box_target(scan.mask[z]) for z in found]
        for z in _slices_to_show(scan, found, pictures):
            _draw_proposals(scan, z, found[z], regions, folder / "predictions")
    scores = {**box_scores(detections, targets, kept), **proposal_scores(counts)}
    _save_row(args, name, args.scores_file, scores)
    write_regions(folder / "regions.json", all_regions)
    write_json(folder / "run.json", describe_run(vars(args)))
    return scores


def pictures_per_scan(n_pictures: int, n_scans: int, seed: int) -> np.ndarray:
    """(n_scans,) int: pictures drawn of each scan, spread evenly and otherwise at random; they sum to `n_pictures`."""
    shares = (np.arange(n_scans) + 1) * n_pictures // n_scans - np.arange(n_scans) * n_pictures // n_scans
    return np.random.default_rng(seed).permutation(shares)


def _box_target(mask: np.ndarray) -> dict[str, torch.Tensor]:
    boxes = torch.from_numpy(lesion_boxes(mask))
    return {"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64)}


def _slices_to_show(scan: PreparedScan, found: dict[int, dict], n: int) -> list[int]:
    """The slices with most lesion or, of a healthy scan, with the surest proposal."""
    certainty = {z: float(d["scores"].max()) if len(d["scores"]) else 0.0 for z, d in found.items()}
    return sorted(found, key=lambda z: (scan.mask[z].sum(), certainty[z]), reverse=True)[:n]


def _draw_proposals(scan: PreparedScan, z: int, found: dict, regions: list[Region], folder: Path) -> None:
    here = [r for r in regions if r.region_start <= z < r.region_end]
    box = np.array([[r.xmin, r.ymin, r.xmax, r.ymax] for r in here]).reshape(-1, 4)
    title = f"{scan.name}, slice {z}"
    image = scan.scan[0, z].astype(np.float32)
    figure = plot_slice_boxes(image, scan.mask[z], found["boxes"].numpy(), found["scores"].numpy(), box, title)
    save_figure(figure, folder / f"{stem_of(scan.name)}_slice-{z:03d}.png")


# --- stage 2 -------------------------------------------------------------------------------------------


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
    for case, scan, pictures in zip(tqdm(cases, f"Testing {name}", unit="scan"), scans, drawn, strict=True):
        regions = None if regions_of is None else regions_of(scan)
        probabilities = model.segment(scan, regions, args.overlap, args.subvolume_depth, args.batch_size)
        prediction = grid_of(args).restore(probabilities, scan.own_shape).argmax(0).astype(np.uint8)
        write_like(folder / "predictions" / prediction_name(case), prediction, case.scan)
        if case.mask is not None:
            scored.append(_score_case(case, scan, prediction > 0, grid_of(args)))
        if pictures:
            draw(scan, probabilities.argmax(0) > 0, regions)
        all_regions[case.name] = regions
    if regions_of is not None:
        write_regions(folder / "regions.json", all_regions)
    write_json(folder / "run.json", describe_run(vars(args)))
    return _save_scores(args, name, *zip(*scored, strict=True)) if scored else None


def _score_case(case: Case, scan: PreparedScan, prediction: np.ndarray, grid: Grid) -> tuple[dict, pd.DataFrame]:
    """A case's row of ``per_scan_scores.csv`` and the scores of its slices, on the scan's own grid."""
    target = read_mask(case)
    head = grid.restore(scan.head.astype(np.float32), scan.own_shape) > 0.5
    row = {"scan": case.name, **scan_scores(prediction, target, scan.spacing_mm)}
    return row, slice_scores(prediction, target, head)


def prediction_name(case: Case) -> str:
    return f"{case.stem}_prediction{extension_of(case.scan)}"


def _picture_maker(model: StrokeFormer, args: Namespace, folder: Path):
    """A function (scan, prediction, regions) that draws the prediction and, where wanted, its Grad-CAM."""
    layers = find_layers(model, args.target_layers) if args.target_layers else None
    overlap = DEFAULT_OVERLAP if args.overlap is None else args.overlap

    def draw(scan: PreparedScan, prediction: np.ndarray, regions: list[Region] | None) -> None:
        image, file = scan.scan[0].astype(np.float32), f"{stem_of(scan.name)}.png"
        figure = plot_volume_prediction(image, scan.mask, prediction, regions or [], scan.name)
        save_figure(figure, folder / "predictions" / file)
        if layers:
            heat = gradcam(model, scan, regions, layers, overlap)
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
