"""Evaluation of stage 1 on whole volumes: scores into CSV tables, regions and pictures into a folder."""

from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from data.batches.cutting import lesion_boxes
from data.files.names import stem_of
from data.scans.prepared import PreparedScan
from models.evaluation.eigencam import eigencam, find_layers
from models.rpn.module import RPN
from utils.files import STAGE_1_TABLES, intervals_file, update_table, write_json
from utils.plots import pictures_per_scan, plot_eigencam, plot_slice_boxes, save_figure
from utils.progress import progress
from utils.provenance import describe_run
from utils.regions.measures import (
    ProposalCounts,
    SliceProposals,
    count_proposals,
    count_slice,
    counts_by_scan,
    lesions_covered,
    proposal_estimates,
    proposals_by_size,
    recall_by_volume,
    with_shares,
)
from utils.regions.region import Region, region_mask, write_regions
from utils.regions.rules import Kept, regions_of
from utils.scores.intervals import Estimate, interval_rows

PER_SCAN_FILE, PER_LESION_FILE, PER_SIZE_FILE = STAGE_1_TABLES
WORST_MISSES = 10  # pictures of the largest lesions, by voxels left out, that the regions do not cover


@dataclass(frozen=True)
class SlicePicture:
    """What a picture of a slice shows: scan, lesion, detections and the regions that were proposed."""

    scan: str
    z: int
    image: np.ndarray
    mask: np.ndarray
    found: dict[str, torch.Tensor]
    regions: list[Region]

    def draw(self, folder: Path) -> None:
        here = [r for r in self.regions if r.region_start <= self.z < r.region_end]
        box = np.array([[r.xmin, r.ymin, r.xmax, r.ymax] for r in here]).reshape(-1, 4)
        save_figure(plot_slice_boxes(self.image, self.mask, *self._detections, box, self._title), folder / self._file)

    def draw_heat(self, heat: np.ndarray, folder: Path) -> None:
        """Draw EigenCAM (H, W) over the slice."""
        save_figure(plot_eigencam(self.image, heat, self.mask, *self._detections, self._title), folder / self._file)

    @property
    def _detections(self) -> tuple[np.ndarray, np.ndarray]:
        return self.found["boxes"].numpy(), self.found["scores"].numpy()

    @property
    def _title(self) -> str:
        return f"{self.scan}, slice {self.z}"

    @property
    def _file(self) -> str:
        return f"{stem_of(self.scan)}_slice-{self.z:03d}.png"


def evaluate_rpn(
    model: RPN, scans: Iterable[PreparedScan], total: int, args: Namespace, name: str
) -> dict[str, Estimate]:
    """Score the proposals of volumes with masks; `args` carries the arguments of ``test_rpn.py``.

    Writes a row of ``scores_file``, rows of the file of its intervals, of `PER_SCAN_FILE`, `PER_SIZE_FILE` (slices by
    lesion size) and `PER_LESION_FILE` and, in ``<name>/`` below ``scores_dir``, regions, settings, pictures of
    predictions and of the worst misses and, with ``target_layers``, EigenCAM of the predictions' slices.

    Returns:
        The scores by column name of ``rpn_scores.csv``, and the lesion recall by volume.
    """
    folder, drawn = Path(args.scores_dir) / name, pictures_per_scan(args.n_predictions, total, args.seed)
    counts, slices, lesions, misses, all_regions = {}, [], [], [], {}
    roi_size, layers = tuple(args.roi_size), find_layers(model, args.target_layers)
    for scan, pictures in zip(progress(scans, f"Testing {name}", total), drawn, strict=True):
        found = model.detect_volume(scan, args.batch_size)
        kept = model.keep(scan, found, roi_size)
        regions = all_regions[scan.name] = regions_of(kept, scan.brain, roi_size, model.hparams.consistency)
        proposed = region_mask(regions, scan.brain.shape)
        counts[scan.name] = count_proposals(proposed, scan.mask, scan.brain)
        slices += _slices_of(scan, found, kept, proposed)
        lesions.append(lesions_covered(proposed, scan.mask, scan.spacing_mm).assign(scan=scan.name))
        misses = _worst([*misses, *_missed(scan, found, regions, proposed)])
        shown = {z: _picture(scan, z, found, regions) for z in _slices_to_show(scan, found, pictures)}
        _draw(shown, eigencam(model, scan, list(shown), layers) if layers else {}, folder)
    for _, picture in misses if args.n_predictions else []:
        picture.draw(folder / "misses")
    write_regions(folder / "regions.json", all_regions)
    write_json(folder / "run.json", describe_run(vars(args)))
    return _save_scores(args, name, counts, slices, pd.concat(lesions, ignore_index=True))


def _slices_of(scan: PreparedScan, found: dict, kept: Kept, proposed: np.ndarray) -> list[SliceProposals]:
    return [
        SliceProposals(
            scan=scan.name,
            prediction=detections,
            target=_box_target(scan.mask[z]),
            kept=kept.in_slice(z),
            **dict(zip(("size", "counts"), count_slice(proposed, scan.mask, scan.brain, z), strict=True)),
        )
        for z, detections in found.items()
    ]


def _box_target(mask: np.ndarray) -> dict[str, torch.Tensor]:
    boxes = torch.from_numpy(lesion_boxes(mask))
    return {"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64)}


def _save_scores(
    args: Namespace, name: str, counts: dict[str, ProposalCounts], slices: list[SliceProposals], lesions: pd.DataFrame
) -> dict[str, Estimate]:
    per_scan = counts_by_scan(list(counts), list(counts.values()), slices)
    scores, by_size = proposal_estimates(per_scan, slices, args.seed), proposals_by_size(slices, args.seed)
    estimates = {**scores, **recall_by_volume(lesions, args.seed)}
    size_rows = [{"size": size, "n": n, **_values(found)} for size, (n, found) in by_size.items()]
    size_intervals = [interval_rows(found, size) for size, (_, found) in by_size.items()]
    tables = {
        args.scores_file: pd.DataFrame([_values(scores)]),
        intervals_file(args.scores_file): pd.concat([interval_rows(estimates), *size_intervals]),
        PER_SCAN_FILE: with_shares(per_scan).rename_axis("scan").reset_index(),
        PER_SIZE_FILE: pd.DataFrame(size_rows),
        PER_LESION_FILE: lesions[["scan", "voxels", "volume_cm3", "covered"]],
    }
    for file, table in tables.items():
        update_table(Path(args.scores_dir) / file, name, table)
    return estimates


def _values(estimates: dict[str, Estimate]) -> dict[str, float]:
    return {score: found.mean for score, found in estimates.items()}


# --- pictures ------------------------------------------------------------------------------------------


def _picture(scan: PreparedScan, z: int, found: dict, regions: list[Region]) -> SlicePicture:
    return SlicePicture(scan.name, z, scan.scan[0, z].astype(np.float32), scan.mask[z].copy(), found[z], regions)


def _draw(shown: dict[int, SlicePicture], heats: dict[int, np.ndarray], folder: Path) -> None:
    """Draw slices, and those with EigenCAM once more with it."""
    for z, picture in shown.items():
        picture.draw(folder / "predictions")
        if z in heats:
            picture.draw_heat(heats[z], folder / "eigencam")


def _slices_to_show(scan: PreparedScan, found: dict[int, dict], n: int) -> list[int]:
    """The slices with most lesion or, of a healthy scan, with the surest proposal."""
    certainty = {z: float(d["scores"].max()) if len(d["scores"]) else 0.0 for z, d in found.items()}
    return sorted(found, key=lambda z: (scan.mask[z].sum(), certainty[z]), reverse=True)[:n]


def _missed(scan: PreparedScan, found: dict, regions: list[Region], proposed: np.ndarray) -> list[tuple]:
    """(voxels left out, picture) of the slice in which a scan's regions leave out most lesion; nothing if none do."""
    left_out = {z: int(np.count_nonzero(scan.mask[z] & ~proposed[z])) for z in found}
    worst = max(left_out, key=left_out.get, default=None)
    if worst is None or not left_out[worst]:
        return []
    return [(left_out[worst], _picture(scan, worst, found, regions))]


def _worst(misses: list[tuple[int, SlicePicture]]) -> list[tuple[int, SlicePicture]]:
    return sorted(misses, key=lambda miss: miss[0], reverse=True)[:WORST_MISSES]
