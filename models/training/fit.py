"""The training of a network of either stage in its run's folder."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.loggers import Logger
from torch.optim.swa_utils import get_ema_multi_avg_fn

from data.batches.datamodules import TrainingData
from data.scans.grid import Grid
from models.checkpoints import MarkCheckpoint, read_checkpoint
from models.rpn.module import RPN
from models.training import runs
from models.training.devices import Stopped, fit_on_devices, stoppable
from models.training.settings import RPNTraining, StrokeFormerTraining
from models.training.tracking import Draw, PredictionPictures, build_trainer, close_loggers, log_pictures
from utils.errors import UserError
from utils.files import write_json
from utils.plots import plot_loss_curves, save_figure
from utils.provenance import open_run

EMA_DECAY = 0.99  # per step, of the weights' moving average
EMA_WARM_UP = 10  # the larger, the longer the average follows the weights closely; TensorFlow's


@dataclass(frozen=True)
class Task:
    """A network to be trained."""

    name: str  # of the run and its folder
    model: pl.LightningModule
    data: TrainingData
    settings: RPNTraining | StrokeFormerTraining
    inputs: dict[str, str]  # digests of what the network learns from (`models.training.runs.inputs_of`)
    grid: Grid  # of the scans, for its checkpoints
    contrast: str | None  # of the scans, for its checkpoints
    monitor: tuple[str, str]  # the logged value that tells the best epoch, and whether "min" or "max" is best
    draw: Draw  # pictures of the network's predictions
    finish: Callable[[Path, Path], object]  # the last step, with the run's folder and its best checkpoint

    @property
    def folder(self) -> Path:
        return runs.run_folder(self.settings.run, self.name)


def fit(task: Task) -> Path:
    """Do or resume a training in ``<default_root_dir>/<name>``; its best checkpoint. A `UserError` says that the folder
    holds something else, or a training with other settings or inputs."""
    folder, max_epochs = task.folder, task.settings.run.max_epochs
    best = runs.best_checkpoint(folder)
    if (folder / "folds.json").exists():
        raise UserError(f"{folder} holds a cross-validation; choose another --model_prefix for this training")
    open_run(folder, task.settings, task.inputs, begun=runs.is_trained(folder))
    if runs.is_finished(folder, max_epochs):
        print(f"{task.name} is trained already: {best}")
        return best
    loggers = train(task)
    save_figure(plot_loss_curves(runs.logged_metrics(folder)), folder / "loss_curves.png")
    task.finish(folder, best)
    last = read_checkpoint(folder / runs.LAST)
    log_pictures(loggers, "training", sorted(folder.glob("*.png")), last["global_step"])
    close_loggers(loggers)
    write_json(folder / runs.FINISHED, {"max_epochs": max_epochs, "epochs": last["epoch"] + 1})
    return best


def train(task: Task) -> list[Logger]:
    """Train on from the folder's last checkpoint, if any; the logs. Raises a `UserError` where it has trained more
    epochs than it shall, and `Stopped` at a signal, of which it prints a line."""
    folder, max_epochs = task.folder, task.settings.run.max_epochs
    resume_from, trained = runs.resume_point(folder)
    if trained > max_epochs:
        raise UserError(f"--max_epochs {max_epochs}, but {task.name} has trained {trained}; give at least that")
    task.data.first_epoch = trained
    pictures = PredictionPictures(task.draw, folder / "predictions", task.settings.logging.log_every_n_val_epochs)
    # The average is what is validated and saved. On synthetic scans at 3 mm, after 294 steps of stage 1 (one seed), it
    # covered 0.92 of the lesions with 0.29 of the brain, the last weights 0.86 with 0.25 or 0.93 with 0.45.
    average = WeightAveraging(multi_avg_fn=move_averages)
    callbacks = [MarkCheckpoint(task.grid, task.contrast), pictures, average]
    # Steps take 1.2 to 1.4 times as long otherwise: a CPU's convolutions of few channels at full resolution.
    layout = torch.channels_last if isinstance(task.model, RPN) else torch.channels_last_3d
    try:
        with stoppable() as stop:
            trainer = build_trainer(folder, task.settings, task.monitor, [*callbacks, stop])
            fit_on_devices(trainer, task.model.to(memory_format=layout), task.data, resume_from)
    except Stopped as stopped:
        _, epochs = runs.resume_point(folder)
        line = f"{task.name} was stopped by {stopped.signal_name}; the same command goes on after epoch {epochs}"
        print(line, file=sys.stderr)
        raise
    return trainer.loggers


def move_averages(averages: list[torch.Tensor], weights: list[torch.Tensor], step: torch.Tensor | int) -> None:
    """Move the averages in place towards the weights: exponentially, in the first steps faster (`EMA_WARM_UP`)."""
    decay = min(EMA_DECAY, (1 + float(step)) / (EMA_WARM_UP + float(step)))
    get_ema_multi_avg_fn(decay)(averages, weights, step)
