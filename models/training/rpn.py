"""Training of stage 1 on tables of slices."""

import inspect
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning as pl

from data.batches.cutting import boxes_of
from data.batches.datamodules import RPNDataModule, SliceDataset, stacked_scans
from data.batches.slices import grid_of_slices
from data.files.names import stem_of
from models.checkpoints import load_model, store_hyperparameters
from models.rpn.calibration import calibration_summary, choose_threshold, coverage_curve
from models.rpn.module import DEFAULT_THRESHOLD, MONITOR, RPN
from models.rpn.settings import ANCHOR_SIZES, AUTO, RPNSettings, fit_anchors
from models.training.fit import Task, fit
from models.training.settings import RPNTraining
from utils.files import write_csv
from utils.plots import plot_coverage, plot_slice_boxes, save_figure


def build_rpn(
    settings: RPNSettings, in_channels: int, anchor_sizes: tuple[float, ...], slice_side: int | None = None
) -> RPN:
    """The untrained network; arguments as in `RPN`."""
    names = inspect.signature(RPN).parameters
    given = {name: value for name, value in vars(settings).items() if name in names and value is not None}
    return RPN(**given, in_channels=in_channels, anchor_sizes=anchor_sizes, slice_side=slice_side)


def train_rpn(settings: RPNTraining, train: pd.DataFrame, val: pd.DataFrame, name: str, inputs: dict[str, str]) -> Path:
    """Train stage 1; the path of its best checkpoint.

    Args:
        train, val: slices, rows of `data.batches.cutting.COLUMNS` with full paths.
        name: of the run's folder.
        inputs: of `models.training.runs.inputs_of`; a begun training of other inputs is refused.
    """
    pl.seed_everything(settings.seed, verbose=False)
    network, grid = settings.network, grid_of_slices(train)
    slice_side = min(grid.shape[1:])
    data = RPNDataModule(train, val, settings.loading, settings.transforms, settings.seed)
    if network.dataset_anchors == AUTO:
        anchors = fit_anchors(boxes_of(train), slice_side, network.image_size)
    else:
        anchors = ANCHOR_SIZES[network.dataset_anchors]
    model = build_rpn(network, grid.scan_dim[0], anchors, slice_side)
    sick = np.flatnonzero(data.val_sick)
    shown = sick[np.linspace(0, len(sick) - 1, min(settings.logging.num_samples, len(sick))).astype(int)]
    monitor = MONITOR if len(sick) else ("train_loss", "min")
    draw, finish = partial(draw_slices, slices=data.val, shown=shown), partial(calibrate, settings, val)
    return fit(Task(name, model, data, settings, inputs, grid, monitor, draw, finish))


def calibrate(settings: RPNTraining, val: pd.DataFrame, folder: Path, checkpoint: Path) -> None:
    """Store ``--score_threshold``, or else the one calibrated on the validation scans, in the checkpoint."""
    threshold, target = settings.network.score_threshold, settings.network.target_coverage
    if threshold is None:
        scans = stacked_scans(val, settings.loading.num_workers)
        curve = coverage_curve(load_model(RPN, checkpoint), scans, settings.roi_size)
        write_csv(folder / "calibration.csv", curve)
        threshold = choose_threshold(curve, target, DEFAULT_THRESHOLD)
        save_figure(plot_coverage(curve, threshold, target), folder / "calibration.png")
        print(calibration_summary(curve, threshold, target))
    store_hyperparameters(checkpoint, score_threshold=threshold)


def draw_slices(module: RPN, slices: SliceDataset, shown: np.ndarray):
    """Pictures of the detections in some validation slices, (name, Figure) pairs."""
    for index in shown:
        image, target = slices[0, index]
        (detections,) = module.detect([image])
        volume, z = slices.places[index]
        boxes, scores = detections["boxes"].numpy(), detections["scores"].numpy()
        figure = plot_slice_boxes(image[0].numpy(), target["mask"].numpy(), boxes, scores, None, volume)
        yield f"{stem_of(volume)}_slice-{z:03d}", figure
