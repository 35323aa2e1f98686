"""Training of stage 2 on scans and their regions."""

from functools import partial
from pathlib import Path

import numpy as np
import pytorch_lightning as pl

from data.batches.datamodules import SegmentationDataModule
from data.scans.checks import read_mask
from data.scans.cohort import Case
from data.scans.contrast import common_contrast
from data.scans.open import Cohort
from models.checkpoints import load_strokeformer, store_hyperparameters
from models.pipeline import Segmenter, TwoStage
from models.segmentation.module import StrokeFormer
from models.segmentation.thresholds import choose_decision, decision_summary, decision_table
from models.training.fit import Task, fit
from models.training.settings import StrokeFormerTraining
from utils.files import write_csv
from utils.plots import plot_volume_prediction
from utils.progress import progress
from utils.regions.region import Region

Regions = dict[str, list[Region]] | None  # of each scan by its file name; None for whole volumes


def train_strokeformer(
    settings: StrokeFormerTraining,
    train: list[Case],
    val: list[Case],
    regions: Regions,
    cohort: Cohort,
    name: str,
    inputs: dict[str, str],
) -> Path:
    """Train stage 2 inside regions; the path of its best checkpoint.

    Args:
        train, val: cases of the `cohort`.
        name, inputs: as for `models.training.rpn.train_rpn`.
    """
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
