"""Training of stage 2 on scans and their regions; on validation scans it chooses what is lesion, given its probability:
the threshold and the smallest lesion."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning as pl

from data.batches.datamodules import SegmentationDataModule
from data.scans.checks import read_mask
from data.scans.cohort import Case
from data.scans.contrast import common_contrast
from data.scans.open import Cohort
from models.checkpoints import load_strokeformer, store_hyperparameters
from models.pipeline import Prediction, Segmenter, TwoStage
from models.segmentation.module import StrokeFormer
from models.training.fit import Task, fit
from models.training.settings import StrokeFormerTraining
from utils.files import write_csv
from utils.plots import plot_volume_prediction
from utils.progress import progress
from utils.regions.region import Region
from utils.scores.masks import Components, Decision, find_components, overlap_scores, voxel_cm3

Regions = dict[str, list[Region]] | None  # of each scan by its file name; None for whole volumes
THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
SMALLEST_CM3 = (0.0, 0.02, 0.05, 0.1, 0.2)


def train_strokeformer(
    settings: StrokeFormerTraining,
    train: list[Case],
    val: list[Case],
    regions: Regions,
    cohort: Cohort,
    name: str,
    inputs: dict[str, str],
) -> Path:
    """Train stage 2 inside regions on cases of the `cohort`; the path of its best checkpoint. `name` and `inputs` are
    as for `models.training.rpn.train_rpn`."""
    pl.seed_everything(settings.seed, verbose=False)
    model = StrokeFormer(**vars(settings.network))
    data = SegmentationDataModule(
        train, val, regions, cohort, model.window, settings.loading, settings.transforms, settings.seed
    )
    shown = val[: settings.logging.num_samples]
    monitor = ("val_loss" if len(data.val) else "train_loss", "min")
    draw = partial(draw_volumes, settings=settings, shown=shown, regions=regions, cohort=cohort)
    finish = partial(decide, settings, val, regions, cohort)
    contrast = common_contrast(case.name for case in train)
    return fit(Task(name, model, data, settings, inputs, cohort.grid, contrast, monitor, draw, finish))


def pipeline_of(model: Segmenter, settings: StrokeFormerTraining, regions: Regions) -> TwoStage:
    """The network with the regions of its training."""
    regions_of = None if regions is None else lambda scan: regions[scan.name]
    return TwoStage(model, regions_of, settings.sliding, settings.loading.batch_size)


def decide(
    settings: StrokeFormerTraining, val: list[Case], regions: Regions, cohort: Cohort, folder: Path, checkpoint: Path
) -> None:
    """Store the best `Decision` on the validation scans in the checkpoint."""
    pipeline = pipeline_of(load_strokeformer(checkpoint), settings, regions)
    cases = progress(val, "Choosing what is lesion")
    table = decision_table((pipeline.predict(cohort.prepare(case)), read_mask(case)) for case in cases)
    write_csv(folder / "decisions.csv", table)
    chosen = choose_decision(table)
    print(decision_summary(table, chosen))
    store_hyperparameters(checkpoint, lesion_threshold=chosen.threshold, smallest_lesion_cm3=chosen.smallest_cm3)


def decision_table(predictions: Iterable[tuple[Prediction, np.ndarray]]) -> pd.DataFrame:
    """The scores of every `Decision` that may be chosen, a row each, on the scans' own grids as in an evaluation.

    Predictions come with the true lesions, (D, H, W) bool on the scan's own grid. ``dice`` is the mean over scans with
    lesions, NaN without any. ``lesion_f1`` of the 26-connected lesions, and the numbers of ``found``, ``missed`` and
    ``false`` ones, are over all scans together: the F1 of a scan without lesions is 0 or 1.
    """
    rows = []
    for prediction, target in predictions:
        detected, cm3 = prediction.detected, voxel_cm3(prediction.scan.own.spacing_mm)
        for threshold in THRESHOLDS:
            components = find_components(1 - prediction.own_probabilities[0] > threshold, target)
            confirmed = True if detected is None else components.touching(detected)
            for smallest in SMALLEST_CM3:
                kept = confirmed & (components.predicted_voxels * cm3 >= smallest)
                rows.append({"threshold": threshold, "smallest_cm3": smallest, **_scores(components, kept)})
    by_decision = pd.DataFrame(rows).groupby(["threshold", "smallest_cm3"], as_index=False)
    table = by_decision.agg({"dice": "mean", "found": "sum", "missed": "sum", "false": "sum"})
    table.insert(3, "lesion_f1", overlap_scores(table.found, table.false, table.missed, 0)["f1"])
    return table


def choose_decision(table: pd.DataFrame) -> Decision:
    """The decision with the largest sum of Dice and lesion F1; of equal ones that nearest to an argmax."""
    gain = (table.dice + table.lesion_f1).fillna(0)
    order = table.assign(gain=gain.round(6), off=(table.threshold - 0.5).abs())
    best = order.sort_values(["gain", "off", "smallest_cm3"], ascending=[False, True, True]).iloc[0]
    return Decision(float(best.threshold), float(best.smallest_cm3))


def decision_summary(table: pd.DataFrame, decision: Decision) -> str:
    """One line: what a decision of the table gives on its scans."""
    at = table[(table.threshold == decision.threshold) & (table.smallest_cm3 == decision.smallest_cm3)].iloc[0]
    return (
        f"Lesion is what has a probability above {decision.threshold:g} and fills {decision.smallest_cm3:g} cm3: "
        f"Dice {at.dice:.2f} and lesion F1 {at.lesion_f1:.2f} on the validation scans"
    )


def draw_volumes(
    module: StrokeFormer, settings: StrokeFormerTraining, shown: list[Case], regions: Regions, cohort: Cohort
):
    """Pictures of the predictions of some validation scans, (name, Figure) pairs."""
    pipeline = pipeline_of(module, settings, regions)
    for case in shown:
        prediction = pipeline.predict(cohort.prepare(case))
        image, mask = prediction.scan.scan[0].astype(np.float32), prediction.scan.mask
        boxes = prediction.regions or []
        yield case.stem, plot_volume_prediction(image, mask, prediction.lesions_on_grid, boxes, case.name)


def _scores(components: Components, kept: np.ndarray) -> dict[str, float]:
    """The Dice of the voxels, NaN without lesion, and the counts of lesions; (N,) bool tells the predicted ones."""
    common, true = components.common[:, kept], components.true_voxels.sum()
    inside, predicted, found = common.sum(), components.predicted_voxels[kept].sum(), int(common.any(1).sum())
    dice = float(overlap_scores(inside, predicted - inside, true - inside, 0)["dice"]) if true else np.nan
    return {"dice": dice, "found": found, "missed": len(common) - found, "false": int((~common.any(0)).sum())}
