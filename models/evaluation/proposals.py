"""Evaluation of stage 1 on whole volumes: scores into CSV tables, regions and pictures into a folder."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from heapq import nlargest
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

from data.batches.cutting import lesion_boxes
from data.files.names import stem_of
from data.scans.prepared import PreparedScan
from models.evaluation.settings import RPNOutputs
from models.rpn.module import RPN, Detections
from utils.files import STAGE_1_TABLES, intervals_file
from utils.plots import pictures_per_scan, plot_slice_boxes, save_figure
from utils.progress import progress
from utils.regions.region import Region, lying_on, region_mask, write_regions
from utils.regions.rules import ProposalBoxes, regions_of
from utils.scores import proposals as scoring
from utils.scores.intervals import Estimate, interval_rows
from utils.scores.subgroups import recall_by_volume

Miss = tuple[int, Callable[[], Figure], str]  # lesion voxels left out in a slice, what draws it, the picture's file
PER_SCAN_FILE, PER_LESION_FILE, PER_SIZE_FILE = STAGE_1_TABLES
WORST_MISSES = 10  # pictures of the largest lesions, by voxels left out, that the regions do not cover


def evaluate_rpn(
    model: RPN,
    scans: DataLoader,
    name: str,
    outputs: RPNOutputs,
    seed: int,
    roi_size: tuple[int, int, int],
    batch_size: int,
) -> dict[str, Estimate]:
    """Score the proposals of prepared scans with masks; writes what docs/outputs.md lists.

    Returns:
        The scores by column name of ``rpn_scores.csv``, and the lesion recall by volume.
    """
    folder, drawn = Path(outputs.scores_dir) / name, pictures_per_scan(outputs.n_predictions, len(scans), seed)
    counts, lesions, regions = {}, [], {}
    slices: list[scoring.SliceProposals] = []
    misses: list[Miss] = []
    for scan, n_pictures in zip(progress(scans, f"Testing {name}"), drawn, strict=True):
        assert scan.mask is not None  # stage 1 is tested on slices with masks
        detections = model.detect_volume(scan, batch_size)
        proposing = model.keep(detections)
        proposed_regions = regions_of(proposing, scan.brain, roi_size, model.hparams["consistency"])
        regions[scan.name] = lying_on(proposed_regions, scan.space.as_json if scan.place_known else None)
        proposed = region_mask(proposed_regions, scan.space.shape)
        proposals = ScanProposals(scan, scan.mask, detections, proposing, proposed_regions, proposed)
        counts[scan.name] = scoring.count_proposals(proposed, scan.mask, scan.brain)
        slices += proposals.slices()
        lesions.append(scoring.lesions_covered(proposed, scan.mask, scan.spacing_mm).assign(scan=scan.name))
        misses = nlargest(WORST_MISSES, [*misses, *proposals.miss()], key=itemgetter(0))
        for z in proposals.slices_to_show(n_pictures):
            save_figure(proposals.picture(z)(), folder / "predictions" / proposals.file(z))
    for _, draw, file in misses if outputs.n_predictions else []:
        save_figure(draw(), folder / "misses" / file)
    write_regions(folder / "regions.json", regions)
    return _save_scores(outputs, name, counts, slices, pd.concat(lesions, ignore_index=True), seed)


def _save_scores(
    outputs: RPNOutputs,
    name: str,
    counts: dict[str, scoring.ProposalCounts],
    slices: list[scoring.SliceProposals],
    lesions: pd.DataFrame,
    seed: int,
) -> dict[str, Estimate]:
    per_scan = scoring.counts_by_scan(list(counts), list(counts.values()), slices)
    scores, by_size = scoring.proposal_estimates(per_scan, slices, seed), scoring.proposals_by_size(slices, seed)
    recalls = recall_by_volume(lesions.assign(found=lesions.covered >= scoring.COVERED_SHARE), seed)
    estimates = {**scores, **{f"lesion_recall, {volume}": recall for volume, recall in recalls.items()}}
    size_rows = [{"size": size, "n": n, **_means(of_size)} for size, (n, of_size) in by_size.items()]
    size_intervals = [interval_rows(of_size, size) for size, (_, of_size) in by_size.items()]
    tables = {
        outputs.scores_file: pd.DataFrame([_means(scores)]),
        intervals_file(outputs.scores_file): pd.concat([interval_rows(estimates), *size_intervals]),
        PER_SCAN_FILE: scoring.with_shares(per_scan).rename_axis("scan").reset_index(),
        PER_SIZE_FILE: pd.DataFrame(size_rows),
        PER_LESION_FILE: lesions[["scan", "voxels", "volume_cm3", "covered"]],
    }
    outputs.update(name, tables)
    return estimates


def _means(estimates: dict[str, Estimate]) -> dict[str, float]:
    return {score: estimate.mean for score, estimate in estimates.items()}


@dataclass(frozen=True)
class ScanProposals:
    """What stage 1 proposes of a scan with lesions `mask`; `proposed` is the union of the regions, (D, H, W) bool."""

    scan: PreparedScan
    mask: np.ndarray
    detections: Detections
    proposing: ProposalBoxes
    regions: list[Region]
    proposed: np.ndarray

    def slices(self) -> list[scoring.SliceProposals]:
        rows = []
        for z, detections in self.detections.items():
            size, counts = scoring.count_slice(self.proposed, self.mask, self.scan.brain, z)
            boxes = torch.from_numpy(lesion_boxes(self.mask[z]))
            target = {"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64)}
            rows.append(
                scoring.SliceProposals(self.scan.name, size, detections, target, self.proposing.in_slice(z), counts)
            )
        return rows

    def slices_to_show(self, n: int) -> list[int]:
        """The slices with most lesion or, of a healthy scan, with the surest proposal."""
        certainty = {z: float(d["scores"].max()) if len(d["scores"]) else 0.0 for z, d in self.detections.items()}
        return sorted(self.detections, key=lambda z: (self.mask[z].sum(), certainty[z]), reverse=True)[:n]

    def miss(self) -> list[Miss]:
        """The slice in which the regions leave out most lesion; none if they leave out nothing."""
        left_out = [(int(np.count_nonzero(self.mask[z] & ~self.proposed[z])), z) for z in self.detections]
        voxels, z = max(left_out, key=itemgetter(0), default=(0, 0))
        return [(voxels, self.picture(z), self.file(z))] if voxels else []

    def picture(self, z: int) -> Callable[[], Figure]:
        """What draws a slice with its regions; it does not hold on to the volume."""
        here = [r for r in self.regions if r.region_start <= z < r.region_end]
        regions = np.array([[r.xmin, r.ymin, r.xmax, r.ymax] for r in here]).reshape(-1, 4)
        image, mask = self.scan.scan[0, z].astype(np.float32), self.mask[z].copy()
        boxes, scores = self.detections[z]["boxes"].numpy(), self.detections[z]["scores"].numpy()
        return partial(plot_slice_boxes, image, mask, boxes, scores, regions, f"{self.scan.name}, slice {z}")

    def file(self, z: int) -> str:
        return f"{stem_of(self.scan.name)}_slice-{z:03d}.png"
