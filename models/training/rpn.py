"""Training of stage 1 on slices, and its calibration: the score at which a detection proposes a region is
chosen on validation subjects for a wanted lesion coverage."""

import inspect
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch

from data.batches.cutting import boxes_of
from data.batches.datamodules import RPNDataModule, SliceDataset
from data.batches.sources import Slices
from data.files.names import stem_of
from data.scans.contrast import common_contrast
from data.scans.prepared import PreparedScan
from models.checkpoints import load_model, store_hyperparameters
from models.rpn.detector import MIN_SCORE
from models.rpn.module import DEFAULT_THRESHOLD, MONITOR, RPN
from models.rpn.settings import ANCHOR_SIZES, AUTO, REFERENCE_SIZE, SMALLEST_ON_LEVEL, RPNSettings
from models.training.fit import Task, fit
from models.training.settings import RPNTraining
from models.training.starts import start_from
from utils.files import write_csv
from utils.plots import plot_coverage, plot_slice_boxes, save_figure
from utils.progress import progress
from utils.regions.region import region_mask
from utils.scores.proposals import ProposalCounts, count_proposals, proposal_scores

# Share of the brain that may be proposed where the target coverage is out of reach. More would spare stage 2 too little
# of the class imbalance; with 0.30, more lesions were lost than false ones spared (docs/proposals.md).
FRACTION_BUDGET = 0.35
TARGET_COVERAGE = 0.98
# What the validation scans need is too little for others: few scans reach a target by luck, too. Ten networks on other
# synthetic cohorts, most with fainter lesions, had a mean recall of small lesions of 0.91 with 1.2 and 0.97 with this
# margin, with which at most 0.34 of the brain was proposed.
MARGIN = 1.6
# Even in log odds: scores crowd towards 1, most of all of networks that learned from few subjects.
THRESHOLDS = 1 / (1 + np.exp(-np.linspace(np.log(MIN_SCORE / (1 - MIN_SCORE)), 8, 45)))


def build_rpn(
    settings: RPNSettings,
    in_channels: int,
    anchor_sizes: tuple[float, ...] | None = None,
    slice_side: int | None = None,
) -> RPN:
    """The untrained network; arguments as in `RPN`. Without anchors it has those of the settings, or their number."""
    anchors = anchor_sizes or ANCHOR_SIZES.get(settings.dataset_anchors) or SMALLEST_ON_LEVEL
    names = inspect.signature(RPN).parameters
    given = {name: value for name, value in vars(settings).items() if name in names and value is not None}
    return RPN(**given, in_channels=in_channels, anchor_sizes=anchors, slice_side=slice_side)


def train_rpn(settings: RPNTraining, train: Slices, val: Slices, name: str, inputs: dict[str, str]) -> Path:
    """Train stage 1 on slices; the path of its best checkpoint.

    The run's folder has the `name`; where it holds a training of other `inputs` (`runs.inputs_of`), it is refused.
    """
    pl.seed_everything(settings.seed, verbose=False)
    network, grid = settings.network, train.grid
    slice_side = min(grid.shape[1:])
    data = RPNDataModule(train, val, settings.loading, settings.transforms, settings.seed)
    anchors = None
    if network.dataset_anchors == AUTO:
        anchors = fit_anchors(boxes_of(train.table), slice_side, network.image_size)
    model = build_rpn(network, grid.scan_dim[0], anchors, slice_side)
    start_from(model, settings.run.init_ckpt_path, grid.spacing_mm)
    sick = np.flatnonzero(data.val_sick)
    shown = sick[np.linspace(0, len(sick) - 1, min(settings.logging.num_samples, len(sick))).astype(int)]
    monitor = MONITOR if len(sick) else ("train_loss", "min")
    draw, finish = partial(draw_slices, slices=data.val, shown=shown), partial(calibrate, settings, val)
    contrast = common_contrast(train.table.volume.unique())
    return fit(Task(name, model, data, settings, inputs, grid, contrast, monitor, draw, finish))


def fit_anchors(boxes: np.ndarray, shorter_side: int, image_size: int) -> tuple[float, ...]:
    """One size a pyramid level: the medians of four equal shares of the lesions, from small to large.

    On synthetic scans of 2 mm 46 % of the lesion boxes have an IoU of half or more with a well placed anchor of ATLAS,
    and 87 % with one of the fitted sizes, which are of `REFERENCE_SIZE`, each at least two strides of its level.

    Args:
        boxes: (N, 4) xyxy of training lesions, in pixels of slices whose shorter side is `shorter_side`.
        image_size: shorter side of the slices inside the network.
    """
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1)) * image_size / shorter_side
    shares = (np.arange(len(SMALLEST_ON_LEVEL)) + 0.5) / len(SMALLEST_ON_LEVEL)
    fitted = np.maximum(np.quantile(sides, shares), SMALLEST_ON_LEVEL)
    return tuple((fitted * REFERENCE_SIZE / image_size).round(2).tolist())


def calibrate(settings: RPNTraining, val: Slices, folder: Path, checkpoint: Path) -> None:
    """Store ``--score_threshold``, or else the one calibrated on the validation scans, in the checkpoint."""
    threshold = settings.network.score_threshold
    if threshold is None:
        scans = val.scans(settings.loading.num_workers)
        threshold = calibrated(load_model(RPN, checkpoint), scans, settings.roi_size, folder)
    store_hyperparameters(checkpoint, score_threshold=threshold)


def calibrated(model: RPN, scans: Iterable[PreparedScan], roi_size: tuple[int, int, int], folder: Path) -> float:
    """The threshold chosen on scans with masks; the curve that it rests on is written into the folder."""
    curve = coverage_curve(model, scans, roi_size)
    write_csv(folder / "calibration.csv", curve)
    threshold = choose_threshold(curve, DEFAULT_THRESHOLD)
    save_figure(plot_coverage(curve, threshold, TARGET_COVERAGE), folder / "calibration.png")
    print(calibration_summary(curve, threshold))
    return threshold


def coverage_curve(model: RPN, scans: Iterable[PreparedScan], roi_size: tuple[int, int, int]) -> pd.DataFrame:
    """Lesion coverage, lesion recall and proposed fraction of scans with masks, a row for each of `THRESHOLDS`."""
    counts = [ProposalCounts() for _ in THRESHOLDS]
    for scan in progress(scans, "Calibrating"):
        detections = model.detect_volume(scan)
        for i, threshold in enumerate(THRESHOLDS):
            regions = model.propose(scan, detections, roi_size, threshold)
            counts[i] += count_proposals(region_mask(regions, scan.brain.shape), scan.lesions, scan.brain)
    return pd.DataFrame([{"threshold": t, **proposal_scores(c)} for t, c in zip(THRESHOLDS, counts, strict=True)])


def choose_threshold(curve: pd.DataFrame, default: float) -> float:
    """The lowest threshold that proposes at most `MARGIN` times the share of the brain that the target needs.

    `TARGET_COVERAGE` is of the lesion voxels and of the lesions, or a few large lesions would decide alone.
    It proposes at most `FRACTION_BUDGET`, which is spent where no threshold reaches the target. `default` without
    lesions.
    """
    if curve.lesion_coverage.isna().all():
        return default
    enough = curve[curve[["lesion_coverage", "lesion_recall"]].min(axis=1) >= TARGET_COVERAGE]
    needed = enough.proposed_fraction.iloc[enough.threshold.argmax()] if len(enough) else FRACTION_BUDGET
    affordable = curve[curve.proposed_fraction <= min(MARGIN * needed, FRACTION_BUDGET)]
    return float(affordable.threshold.min() if len(affordable) else curve.threshold.max())


def calibration_summary(curve: pd.DataFrame, threshold: float) -> str:
    """One line: what a threshold gives on the scans of the curve, and what to do where that is too little."""
    if curve.lesion_coverage.isna().all():
        return "Not calibrated: no validation scan holds a lesion"
    at = curve.iloc[(curve.threshold - threshold).abs().argmin()]
    line = (
        f"Calibrated: {at.proposed_fraction:.2f} of the brain is proposed and holds {at.lesion_coverage:.2f} of the "
        f"lesion voxels and {at.lesion_recall:.2f} of the lesions of the validation scans"
    )
    if min(at.lesion_coverage, at.lesion_recall) < TARGET_COVERAGE:
        return f"{line}; {TARGET_COVERAGE:g} is out of reach within {FRACTION_BUDGET:g}: train longer"
    if at.proposed_fraction > FRACTION_BUDGET:
        return f"{line}; train longer to propose less"
    return line


def draw_slices(module: RPN, slices: SliceDataset, shown: np.ndarray):
    """Pictures of the detections in some validation slices, (name, Figure) pairs."""
    for index in shown:
        item = slices[0, index]
        (detections,) = module.detect([torch.from_numpy(item["image"])])
        volume, z = slices.slices.table.loc[index, ["volume", "slice"]]
        boxes, scores = detections["boxes"].numpy(), detections["scores"].numpy()
        figure = plot_slice_boxes(item["image"][0], item["mask"][0] > 0, boxes, scores, None, volume)
        yield f"{stem_of(volume)}_slice-{z:03d}", figure
