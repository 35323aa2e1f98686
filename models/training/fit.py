"""Training of either stage: from data and arguments to the path of the best checkpoint."""

import inspect
from argparse import Namespace
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import EMAWeightAveraging

from data.batches.cutting import boxes_of
from data.batches.datamodules import RPNDataModule, SegmentationDataModule, SliceDataset, StackedScans, scan_loader
from data.batches.slices import channels_of, grid_of_slices
from data.files.names import stem_of
from data.scans.cohort import Case
from data.scans.grid import Grid, grid_of
from data.scans.prepared import PreparedScan, cached_scan
from models.checkpoints import MarkCheckpoint, load_rpn, load_strokeformer, store_hyperparameters
from models.precision import gradient_scaling, use_precision
from models.rpn.anchors import ANCHOR_SIZES, fit_anchors
from models.rpn.calibration import calibration_summary, choose_threshold, coverage_curve
from models.rpn.hard_negatives import HardNegatives
from models.rpn.module import DEFAULT_THRESHOLD, MONITOR, RPN
from models.segmentation.decisions import SMALLEST_CM3, THRESHOLDS, choose_decision, decision_summary, decision_table
from models.segmentation.module import StrokeFormer
from models.training.processes import launch
from models.training.runs import best_checkpoint, finished_file, is_finished, is_trained, resume_point, run_folder
from models.training.shared_batch import share_batch_norms
from models.training.tracking import PredictionPictures, build_trainer, close_loggers, log_pictures, logged_metrics
from utils.errors import UserError
from utils.files import atomic_path, write_json
from utils.plots import plot_coverage, plot_loss_curves, plot_slice_boxes, plot_volume_prediction, save_figure
from utils.progress import progress
from utils.provenance import open_run
from utils.regions.region import Region, seen_mask


def build_rpn(args: Namespace, in_channels: int, anchor_sizes: tuple[float, ...], slice_side: int | None = None) -> RPN:
    """The untrained stage 1 that the arguments of ``train_rpn.py`` describe."""
    return RPN(
        in_channels=in_channels,
        anchor_sizes=anchor_sizes,
        image_size=args.image_size,
        slice_side=slice_side,
        consistency=args.consistency,
        evidence_growth=args.evidence_growth,
        lr=args.lr,
        eps=args.eps,
        betas=args.betas,
        weight_decay=args.weight_decay,
        backbone_weights=args.backbone_weights,
        context=tuple(args.context),
        matching=args.matching,
        focal=args.focal,
        label_smoothing=args.label_smoothing,
    )


def choose_anchors(args: Namespace, train: pd.DataFrame, slice_side: int) -> tuple[float, ...]:
    """The anchor sizes that ``--dataset_anchors`` names, or that fit the lesions of the training slices."""
    if args.dataset_anchors != "auto":
        return ANCHOR_SIZES[args.dataset_anchors]
    return fit_anchors(boxes_of(train), slice_side, args.image_size)


def build_strokeformer(args: Namespace) -> StrokeFormer:
    """The untrained stage 2 that the arguments of ``train_strokeformer.py`` describe."""
    names = inspect.signature(StrokeFormer).parameters
    return StrokeFormer(**{name: value for name, value in vars(args).items() if name in names and value is not None})


def train_rpn(args: Namespace, train: pd.DataFrame, val: pd.DataFrame, name: str, inputs: dict[str, str]) -> Path:
    """Train stage 1 on slice tables; `args` carries the arguments of ``train_rpn.py``.

    Args:
        inputs: what it learns from (`models.training.runs.inputs_of`); a begun training of other inputs is refused.
    """
    pl.seed_everything(args.seed, verbose=False)
    grid = grid_of_slices(train)
    slice_side = min(grid.shape[1:])
    data = RPNDataModule(
        train,
        val,
        args.batch_size,
        args.num_workers,
        args.transforms,
        args.seed,
        tuple(args.context),
        args.slice_sampling,
    )
    model = build_rpn(args, channels_of(train), choose_anchors(args, train, slice_side), slice_side)
    sick = np.flatnonzero(data.val_sick)
    shown = sick[np.linspace(0, len(sick) - 1, min(args.num_samples, len(sick))).astype(int)]
    monitor = MONITOR if len(sick) else ("train_loss", "min")
    draw, calibrate = partial(_draw_slices, slices=data.val, shown=shown), partial(_calibrate, args, val)
    callbacks = [HardNegatives(args.hard_negatives)] if args.hard_negatives else []
    return _fit(model, data, args, name, inputs, monitor, draw, grid, callbacks, calibrate)


def train_strokeformer(
    args: Namespace,
    train: list[Case],
    val: list[Case],
    regions: dict[str, list[Region]] | None,
    cache_dir: Path,
    name: str,
    inputs: dict[str, str],
) -> Path:
    """Train stage 2 on proposed regions; `args` carries the arguments of ``train_strokeformer.py``.

    Args:
        inputs: as for `train_rpn`.
    """
    pl.seed_everything(args.seed, verbose=False)
    grid = grid_of(args)
    model = build_strokeformer(args)
    data = SegmentationDataModule(
        train,
        val,
        regions,
        grid,
        model.window,
        cache_dir,
        args.batch_size,
        args.num_workers,
        args.transforms,
        args.seed,
        args.seg_context,
    )
    shown = val[: args.num_samples]
    monitor = ("val_loss" if len(data.val) else "train_loss", "min")
    draw = partial(_draw_volumes, shown=shown, regions=regions, grid=grid, cache_dir=cache_dir, args=args)
    decide = partial(_decide, args, val, regions, grid, cache_dir)
    return _fit(model, data, args, name, inputs, monitor, draw, grid, [], decide)


def _averaging(args: Namespace) -> list[pl.Callback]:
    """The moving average of the weights that ``--ema_decay`` asks for; it is what is validated and kept.

    Few lesions make noisy steps. On synthetic scans at 3 mm, after 294 steps of stage 1, the averaged weights covered
    0.92 of the lesions with 0.29 of the brain, the last ones 0.86 with 0.25 or 0.93 with 0.45 (one seed).
    """
    return [EMAWeightAveraging(decay=args.ema_decay)] if args.ema_decay else []


def _calibrate(args: Namespace, val: pd.DataFrame, folder: Path, checkpoint: Path) -> None:
    """Store the threshold asked for, or the one that the validation scans call for, in the checkpoint."""
    threshold = args.score_threshold
    if threshold is None:
        scans = scan_loader(StackedScans(val), args.num_workers)
        curve = coverage_curve(load_rpn(checkpoint), scans, tuple(args.roi_size))
        with atomic_path(folder / "calibration.csv") as temporary:
            curve.to_csv(temporary, index=False)
        threshold = choose_threshold(curve, args.target_coverage, DEFAULT_THRESHOLD)
        save_figure(plot_coverage(curve, threshold, args.target_coverage), folder / "calibration.png")
        print(calibration_summary(curve, threshold, args.target_coverage))
    store_hyperparameters(checkpoint, score_threshold=threshold)


def _decide(
    args: Namespace,
    val: list[Case],
    regions: dict[str, list[Region]] | None,
    grid: Grid,
    cache_dir: Path,
    folder: Path,
    checkpoint: Path,
) -> None:
    """Store what is lesion, as asked for or as it suits the validation scans best, in the checkpoint."""
    model, scans = load_strokeformer(checkpoint), (cached_scan(case, grid, cache_dir) for case in val)

    def proposed(scan: PreparedScan) -> list[Region] | None:
        return None if regions is None else regions[scan.name]

    def segment(scan: PreparedScan) -> np.ndarray:
        windows = args.overlap, args.subvolume_depth, args.batch_size, args.flip_average
        return model.segment(scan, proposed(scan), *windows)

    table = decision_table(
        segment,
        progress(scans, "Choosing what is lesion", len(val)),
        THRESHOLDS if args.lesion_threshold is None else [args.lesion_threshold],
        SMALLEST_CM3 if args.smallest_lesion_cm3 is None else [args.smallest_lesion_cm3],
        lambda scan: seen_mask(proposed(scan), scan.brain.shape),
    )
    with atomic_path(folder / "decisions.csv") as temporary:
        table.to_csv(temporary, index=False)
    chosen = choose_decision(table)
    print(decision_summary(table, chosen))
    store_hyperparameters(checkpoint, lesion_threshold=chosen.threshold, smallest_lesion_cm3=chosen.smallest_cm3)


def _fit(
    model: pl.LightningModule,
    data: pl.LightningDataModule,
    args: Namespace,
    name: str,
    inputs: dict[str, str],
    monitor: tuple[str, str],
    draw: Callable[[pl.LightningModule], Iterable[tuple[str, Figure]]],
    grid: Grid,
    callbacks: list[pl.Callback],
    finish: Callable[[Path, Path], None],
) -> Path:
    """Fit or resume a run in ``<default_root_dir>/<name>`` and return its best checkpoint.

    Args:
        inputs: what the network learns from, by name (`models.training.runs.inputs_of`).
        monitor: the logged value that tells the best epoch, and whether ``"min"`` or ``"max"`` is best.
        draw: pictures to draw now and then.
        grid: of what the network learns from, for its checkpoints.
        callbacks: what else the training of this stage needs.
        finish: what is left to do with the run's folder and its best checkpoint.
    """
    folder = run_folder(args, name)
    best = best_checkpoint(folder)
    if (folder / "folds.json").exists():
        raise UserError(f"{folder} holds a cross-validation; choose another --model_prefix for this training")
    open_run(folder, vars(args), inputs, begun=is_trained(folder))
    if is_finished(folder, args.max_epochs):
        print(f"{name} is trained already: {best}")
        return best
    pictures = PredictionPictures(draw, folder / "predictions", args.log_every_n_val_epochs)
    callbacks = [MarkCheckpoint(grid), pictures, *callbacks]
    train = partial(_train, model, data, args, folder, monitor, callbacks)
    launch(partial(_train_and_finish, train, args, folder, finish), args)
    return best


def _train_and_finish(
    train: Callable[[], pl.Trainer], args: Namespace, folder: Path, finish: Callable[[Path, Path], None]
) -> None:
    """The work of each process of a training; what is left to do after it is done by the first."""
    use_precision(args.precision)
    trainer = train()
    if not trainer.is_global_zero:
        return
    finish(folder, best_checkpoint(folder))
    log_pictures(trainer.loggers, "training", sorted(folder.glob("*.png")), trainer.global_step)
    close_loggers(trainer.loggers)
    write_json(finished_file(folder), {"max_epochs": args.max_epochs, "epochs": trainer.current_epoch})


def _train(
    model: pl.LightningModule,
    data: pl.LightningDataModule,
    args: Namespace,
    folder: Path,
    monitor: tuple[str, str],
    callbacks: list[pl.Callback],
) -> pl.Trainer:
    """Train on from the folder's last checkpoint, if any, and draw the curves."""
    resume_from = resume_point(folder)
    trainer = build_trainer(folder, args, *monitor, [*callbacks, *_averaging(args)], gradient_scaling())
    if trainer.world_size > 1:
        share_batch_norms(model)
    if args.compile:
        compile_network(model)
    # Steps take 1.2 to 1.4 times as long otherwise: a CPU's convolutions of few channels at full resolution.
    model = model.to(memory_format=torch.channels_last if isinstance(model, RPN) else torch.channels_last_3d)
    trainer.fit(model, data, ckpt_path=resume_from, weights_only=True)
    if trainer.is_global_zero:
        save_figure(plot_loss_curves(logged_metrics(folder)), folder / "loss_curves.png")
    return trainer


def compile_network(model: pl.LightningModule) -> None:
    """Compile the part of a model that does the most work, in place, so that checkpoints stay as they are.

    Where torch cannot compile it, for want of a compiler or otherwise, it runs as it is.
    """
    torch._dynamo.config.suppress_errors = True
    if isinstance(model, RPN):
        model.detector.backbone.compile(dynamic=True)  # slices are cut to their heads: each batch has a size of its own
    else:
        model.net.compile()


# --- pictures while training ---------------------------------------------------------------------------


def _draw_slices(module: RPN, slices: SliceDataset, shown: np.ndarray):
    for index in shown:
        image, target = slices[0, index]
        (found,) = module.detect([image])
        volume, z = slices.places[index]
        boxes, scores = found["boxes"].numpy(), found["scores"].numpy()
        figure = plot_slice_boxes(image[0].numpy(), target["mask"].numpy(), boxes, scores, None, volume)
        yield f"{stem_of(volume)}_slice-{z:03d}", figure


def _draw_volumes(module: StrokeFormer, shown: list[Case], regions, grid: Grid, cache_dir: Path, args: Namespace):
    for case in shown:
        prepared = cached_scan(case, grid, cache_dir)
        proposed = None if regions is None else regions.get(case.name, [])
        probabilities = module.segment(prepared, proposed, args.overlap, args.subvolume_depth)
        seen = seen_mask(proposed, prepared.brain.shape)
        predicted = module.decision.classes(probabilities, prepared.space.spacing_mm, seen) > 0
        yield (
            case.stem,
            plot_volume_prediction(
                prepared.scan[0].astype(np.float32), prepared.mask, predicted, proposed or [], case.name
            ),
        )
